//! The micro-kernels: inline assembly with tile registers 0 to 3 for sums and 4 to 7 for operands.

use std::arch::asm;

use super::PREFETCH_AHEAD;
use super::registers::{
    PANEL_ROW_BYTES, ROWS, STEP, TILE_BYTES, TILE_ROW_BYTES, TILE_ROWS, Tiles, UNIT_BYTES,
};
use crate::tile::Sums;

/// Two tiles of the left operand per step.
#[derive(Clone, Copy)]
pub(super) struct LeftTiles {
    pub(super) start: *const u8,
    /// Bytes from one row to the next.
    pub(super) stride: usize,
    /// Bytes from the first tile to the second.
    pub(super) second: usize,
    /// Bytes from one step to the next.
    pub(super) step: usize,
}

/// The tiles of the right operand for a number of steps.
#[derive(Clone, Copy)]
pub(super) struct RightTiles {
    pub(super) start: *const u8,
    pub(super) steps: usize,
    pub(super) segments: usize,
    /// Bytes from the end of a segment to the start of the next.
    pub(super) gap: usize,
}

/// The sums of 32 rows and 32 columns: four tiles. Each tile of an operand is loaded once per step.
///
/// # Safety
/// As [`super::multiply`].
#[inline]
pub(super) unsafe fn two_by_two<const ADD: bool>(sums: Sums, block: LeftTiles, right: RightTiles) {
    macro_rules! code {
        ($($begin:literal),*) => {
            asm!(
                $($begin,)*
                "3:",
                "mov {n}, {steps}",
                "2:",
                "tileloadd tmm6, [{b}+{line}]",
                "tileloadd tmm4, [{a}+{stride}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b}+{line}+64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{a2}+{stride}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a}, {step}",
                "add {a2}, {step}",
                "add {b}, 4096",
                "dec {n}",
                "jnz 2b",
                "add {b}, {gap}",
                "dec {segments}",
                "jnz 3b",
                "lea {n}, [{c}+{c_stride}*8]",
                "lea {n}, [{n}+{c_stride}*8]",
                "tilestored [{c}+{c_stride}], tmm0",
                "tilestored [{c}+{c_stride}+64], tmm1",
                "tilestored [{n}+{c_stride}], tmm2",
                "tilestored [{n}+{c_stride}+64], tmm3",
                a = inout(reg) block.start => _,
                a2 = inout(reg) block.start.wrapping_add(block.second) => _,
                b = inout(reg) right.start => _,
                n = out(reg) _,
                segments = inout(reg) right.segments => _,
                steps = in(reg) right.steps,
                stride = in(reg) block.stride,
                step = in(reg) block.step,
                line = in(reg) PANEL_ROW_BYTES,
                gap = in(reg) right.gap,
                c = in(reg) sums.start,
                c_stride = in(reg) sums.stride * size_of::<f32>(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            )
        };
    }
    // SAFETY: guaranteed by the caller.
    unsafe {
        if ADD {
            code!(
                "lea {n}, [{c}+{c_stride}*8]",
                "lea {n}, [{n}+{c_stride}*8]",
                "tileloadd tmm0, [{c}+{c_stride}]",
                "tileloadd tmm1, [{c}+{c_stride}+64]",
                "tileloadd tmm2, [{n}+{c_stride}]",
                "tileloadd tmm3, [{n}+{c_stride}+64]"
            );
        } else {
            code!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3");
        }
    }
}

/// The beginning of [`two_by_two`] in steps: sets the sums to zero.
///
/// From here to [`store_two_by_two`] the sums stay in tile registers, from one `asm!` to the next. Compilers know these registers only
/// as clobbered, and use them for nothing.
///
/// # Safety
/// [`Tiles`] must be configured for more than 16 rows.
#[inline(always)]
pub(super) unsafe fn zero_two_by_two() {
    // SAFETY: guaranteed by the caller.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            options(nostack, nomem, preserves_flags),
        );
    }
}

/// One step of [`two_by_two`]: the first tiles of `left`, and those at `right`.
///
/// # Safety
/// As [`zero_two_by_two`]; the tiles of both operands must be readable.
#[inline(always)]
pub(super) unsafe fn step_two_by_two(left: LeftTiles, right: *const u8) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        asm!(
            "tileloadd tmm6, [{b}+{line}]",
            "tileloadd tmm4, [{a}+{stride}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b}+{line}+64]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a2}+{stride}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            a = in(reg) left.start,
            a2 = in(reg) left.start.wrapping_add(left.second),
            b = in(reg) right,
            stride = in(reg) left.stride,
            line = in(reg) PANEL_ROW_BYTES,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, readonly, preserves_flags),
        );
    }
}

/// The end of [`two_by_two`] in steps: stores the sums.
///
/// # Safety
/// As [`zero_two_by_two`]; 32 rows and columns must be writable.
#[inline(always)]
pub(super) unsafe fn store_two_by_two(sums: Sums) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        asm!(
            "tilestored [{c}+{c_stride}], tmm0",
            "tilestored [{c}+{c_stride}+64], tmm1",
            "tilestored [{c2}+{c_stride}], tmm2",
            "tilestored [{c2}+{c_stride}+64], tmm3",
            c = in(reg) sums.start,
            c2 = in(reg) sums.at(TILE_ROWS, 0),
            c_stride = in(reg) sums.stride * size_of::<f32>(),
            options(nostack, preserves_flags),
        );
    }
}

/// The sums of up to 16 rows and 64 columns. The right operand, each tile of which is used only once, is prefetched 8
/// KiB ahead.
///
/// # Safety
/// As [`super::multiply`].
#[inline]
pub(super) unsafe fn one_by_four<const ADD: bool>(sums: Sums, block: LeftTiles, right: RightTiles) {
    macro_rules! code {
        ($($begin:literal),*) => {
            asm!(
                $($begin,)*
                "3:",
                "mov {n}, {steps}",
                "2:",
                "tileloadd tmm4, [{a}+{stride}]",
                "tileloadd tmm5, [{b}+{line}]",
                "tdpbf16ps tmm0, tmm4, tmm5",
                "tileloadd tmm6, [{b}+{line}+64]",
                "tdpbf16ps tmm1, tmm4, tmm6",
                "tileloadd tmm7, [{b}+{line}+128]",
                "tdpbf16ps tmm2, tmm4, tmm7",
                "tileloadd tmm5, [{b}+{line}+192]",
                "tdpbf16ps tmm3, tmm4, tmm5",
                prefetch_kib!(0), prefetch_kib!(1), prefetch_kib!(2), prefetch_kib!(3),
                "add {a}, {step}",
                "add {b}, 4096",
                "dec {n}",
                "jnz 2b",
                "add {b}, {gap}",
                "dec {segments}",
                "jnz 3b",
                "tilestored [{c}+{c_stride}], tmm0",
                "tilestored [{c}+{c_stride}+64], tmm1",
                "tilestored [{c}+{c_stride}+128], tmm2",
                "tilestored [{c}+{c_stride}+192], tmm3",
                a = inout(reg) block.start => _,
                b = inout(reg) right.start => _,
                n = out(reg) _,
                segments = inout(reg) right.segments => _,
                steps = in(reg) right.steps,
                stride = in(reg) block.stride,
                step = in(reg) block.step,
                ahead = const PREFETCH_AHEAD,
                line = in(reg) PANEL_ROW_BYTES,
                gap = in(reg) right.gap,
                c = in(reg) sums.start,
                c_stride = in(reg) sums.stride * size_of::<f32>(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            )
        };
    }
    // SAFETY: guaranteed by the caller.
    unsafe {
        if ADD {
            code!(
                "tileloadd tmm0, [{c}+{c_stride}]",
                "tileloadd tmm1, [{c}+{c_stride}+64]",
                "tileloadd tmm2, [{c}+{c_stride}+128]",
                "tileloadd tmm3, [{c}+{c_stride}+192]"
            );
        } else {
            code!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3");
        }
    }
}

/// Multiplies two tiles `rounds` times into each of four independent tiles of sums, like [`two_by_two`]. Returns the
/// number of floating-point operations and a sum.
///
/// # Safety
/// [`super::support`] must have returned `Granted`.
pub(crate) unsafe fn peak(rounds: usize) -> (f64, f32) {
    const FLOP: usize = 4 * 2 * TILE_ROWS * (2 * STEP) * (TILE_ROW_BYTES / UNIT_BYTES);
    let mut sum = [0.0f32; TILE_BYTES / UNIT_BYTES];
    // SAFETY: the process may use AMX; `sum` has room for the tile that is stored.
    unsafe {
        let _tiles = Tiles::configure(ROWS);
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", "tilezero tmm4", "tilezero tmm5",
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm5",
            "tdpbf16ps tmm1, tmm4, tmm5",
            "tdpbf16ps tmm2, tmm4, tmm5",
            "tdpbf16ps tmm3, tmm4, tmm5",
            "dec {rounds}",
            "jnz 2b",
            "tilestored [{sum}+{stride}], tmm0",
            rounds = inout(reg) rounds.max(1) => _,
            sum = in(reg) sum.as_mut_ptr(),
            stride = in(reg) TILE_ROW_BYTES,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _,
            options(nostack),
        );
    }
    ((rounds.max(1) * FLOP) as f64, sum[0])
}
