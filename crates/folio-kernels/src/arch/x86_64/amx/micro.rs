//! The micro-kernels: inline assembly over tile registers 0 to 3 for sums, 4 to 7 for operands.

use std::arch::asm;

use super::{PANEL_ROW, ROWS, STEP, TILE, TILE_ROW, TILE_ROWS, Tiles, UNIT};
use crate::tile::Sums;

/// Two tiles of the left operand for every step.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub(super) start: *const u8,
    /// From one row to the next.
    pub(super) stride: usize,
    /// From the first tile to the second.
    pub(super) second: usize,
    /// From one step to the next.
    pub(super) step: usize,
}

/// The right operand's tiles for some steps.
#[derive(Clone, Copy)]
pub(super) struct Right {
    pub(super) start: *const u8,
    pub(super) steps: usize,
    pub(super) segments: usize,
    /// From the end of a segment to the next.
    pub(super) gap: usize,
}

/// The sums of 32 rows and 32 columns: four tiles of them, for which each tile of an operand is loaded once a step.
///
/// # Safety
/// As [`super::multiply`].
#[inline]
pub(super) unsafe fn two_by_two<const ADD: bool>(sums: Sums, block: Block, right: Right) {
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
                line = in(reg) PANEL_ROW,
                gap = in(reg) right.gap,
                c = in(reg) sums.start,
                c_stride = in(reg) sums.stride * size_of::<f32>(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            )
        };
    }
    // SAFETY: passed on to the caller.
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

/// The sums of up to 16 rows and 64 columns. The right operand, of which every load is used once, is prefetched 8 KiB ahead.
///
/// # Safety
/// As [`super::multiply`].
#[inline]
pub(super) unsafe fn one_by_four<const ADD: bool>(sums: Sums, block: Block, right: Right) {
    /// Prefetches the 16 lines of one KiB of the step after the next, which begins 8 KiB ahead.
    macro_rules! prefetch {
        ($kib:literal) => {
            concat!(
                "prefetcht0 [{b}+8192+",
                $kib,
                "*1024+0]\n",
                "prefetcht0 [{b}+8192+",
                $kib,
                "*1024+64]\n",
                "prefetcht0 [{b}+8192+",
                $kib,
                "*1024+128]\n",
                "prefetcht0 [{b}+8192+",
                $kib,
                "*1024+192]\n",
                "prefetcht0 [{b}+8192+",
                $kib,
                "*1024+256]\n",
                "prefetcht0 [{b}+8192+",
                $kib,
                "*1024+320]\n",
                "prefetcht0 [{b}+8192+",
                $kib,
                "*1024+384]\n",
                "prefetcht0 [{b}+8192+",
                $kib,
                "*1024+448]\n",
                "prefetcht0 [{b}+8192+",
                $kib,
                "*1024+512]\n",
                "prefetcht0 [{b}+8192+",
                $kib,
                "*1024+576]\n",
                "prefetcht0 [{b}+8192+",
                $kib,
                "*1024+640]\n",
                "prefetcht0 [{b}+8192+",
                $kib,
                "*1024+704]\n",
                "prefetcht0 [{b}+8192+",
                $kib,
                "*1024+768]\n",
                "prefetcht0 [{b}+8192+",
                $kib,
                "*1024+832]\n",
                "prefetcht0 [{b}+8192+",
                $kib,
                "*1024+896]\n",
                "prefetcht0 [{b}+8192+",
                $kib,
                "*1024+960]"
            )
        };
    }
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
                prefetch!(0), prefetch!(1), prefetch!(2), prefetch!(3),
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
                line = in(reg) PANEL_ROW,
                gap = in(reg) right.gap,
                c = in(reg) sums.start,
                c_stride = in(reg) sums.stride * size_of::<f32>(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            )
        };
    }
    // SAFETY: passed on to the caller.
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

/// Multiplies two tiles `rounds` times over, into four of sums that do not wait for each other, as [`two_by_two`] does.
/// Returns the floating-point operations done, and a sum.
///
/// # Safety
/// [`super::support`] must have said `Granted`.
pub(crate) unsafe fn peak(rounds: usize) -> (f64, f32) {
    const FLOP: usize = 4 * 2 * TILE_ROWS * (2 * STEP) * (TILE_ROW / UNIT);
    let mut sum = [0.0f32; TILE / UNIT];
    // SAFETY: the process may use AMX; a tile of sums is stored where there is room for one.
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
            stride = in(reg) TILE_ROW,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _,
            options(nostack),
        );
    }
    ((rounds.max(1) * FLOP) as f64, sum[0])
}
