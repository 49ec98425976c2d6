//! AMX-INT8: `TDPBSSD` multiplies a tile of 16 rows of 16 units of four 8-bit integers by a tile of 16 units of 16 columns, and adds
//! the result to a tile of 16 x 16 sums of 32 bits. Source: as [`super`], volume 2, TDPBSSD.

use std::arch::asm;
use std::sync::OnceLock;

use super::PREFETCH_AHEAD;
use crate::quantized::{GROUP, InputRows, IntegerSums, STEP, STRIP_COLS, StripUnit, UNIT};

/// Whether CPUID reports AMX-INT8: leaf 7, EDX bit 25.
pub(crate) fn has_int8() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| super::cpuid_leaf_7_edx() & 1 << 25 != 0)
}

/// The sums of the high and the low parts of some rows times a strip of 8-bit weights: a step at a time, two tiles of sums per part.
///
/// # Safety
/// [`super::Tiles::configure_int8`] must have configured the registers for the number of rows, or for more than 16, and then there
/// must be [`GROUP`] readable rows of each part. The rows must have the depth of the strip.
#[inline]
pub(crate) unsafe fn multiply_int8(sums: &mut IntegerSums, rows: InputRows, weights: &[StripUnit]) {
    const LINE: usize = STRIP_COLS * UNIT;
    const { assert!(GROUP == 16 && STEP == 16 * UNIT && LINE == 128) };
    let steps = weights.len() * UNIT / STEP;
    if steps == 0 {
        (sums.high, sums.low) = ([[0; STRIP_COLS]; GROUP], [[0; STRIP_COLS]; GROUP]);
        return;
    }
    // SAFETY: guaranteed by the caller; `IntegerSums` has room for 16 rows of each part.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "2:",
            "tileloadd tmm6, [{b}+{line}]",
            "tileloadd tmm4, [{high}+{depth}]",
            "tdpbssd tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b}+{line}+64]",
            "tdpbssd tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{low}+{depth}]",
            "tdpbssd tmm2, tmm5, tmm6",
            "tdpbssd tmm3, tmm5, tmm7",
            prefetch_kib!(0), prefetch_kib!(1),
            "add {high}, 64",
            "add {low}, 64",
            "add {b}, 2048",
            "dec {n}",
            "jnz 2b",
            "tilestored [{high_sums}+{line}], tmm0",
            "tilestored [{high_sums}+{line}+64], tmm1",
            "tilestored [{low_sums}+{line}], tmm2",
            "tilestored [{low_sums}+{line}+64], tmm3",
            high = inout(reg) rows.high.as_ptr() => _,
            low = inout(reg) rows.low.as_ptr() => _,
            b = inout(reg) weights.as_ptr() => _,
            n = inout(reg) steps => _,
            ahead = const PREFETCH_AHEAD,
            depth = in(reg) rows.steps * STEP,
            line = in(reg) LINE,
            high_sums = in(reg) sums.high.as_mut_ptr(),
            low_sums = in(reg) sums.low.as_mut_ptr(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
