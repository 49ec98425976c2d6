//! BF16's matmuls of 2 x 4 by 4 x 2. NEON itself, registers of 4 f32, is in every 64-bit ARM processor: the compiler vectorizes for it.

use std::arch::aarch64::*;
use std::arch::asm;
use std::array::from_fn;

use crate::tile::{COLS, GROUP, ROWS, Sums, Walk};

/// Runs `body` compiled for NEON with BF16.
///
/// # Safety
/// The processor must have NEON and BF16.
#[target_feature(enable = "neon,bf16")]
pub(crate) unsafe fn run_bf16<R>(body: impl FnOnce() -> R) -> R {
    body()
}

/// Registers of sums for each pair of rows: 2 x 2 sums in each.
const SQUARES: usize = GROUP / 2;

/// `sums = lhs rhs` or `sums += lhs rhs` in bfloat16, [`GROUP`] columns at a time.
///
/// # Safety
/// The contract of [`Walk`] must hold; the processor must have NEON and BF16.
#[target_feature(enable = "neon,bf16")]
pub(crate) unsafe fn multiply_bf16(sums: Sums, lhs: &[*const u32; ROWS], rhs: *const u32, walk: &Walk) {
    for first in (0..walk.cols).step_by(GROUP) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            match walk.rows.div_ceil(2) {
                1 => group::<1>(sums, lhs, rhs, walk, first),
                2 => group::<2>(sums, lhs, rhs, walk, first),
                _ => group::<3>(sums, lhs, rhs, walk, first),
            }
        }
    }
}

/// [`multiply_bf16`] for the columns from `first` on, and `P` pairs of rows. If the number of rows is odd, the last one is read twice.
///
/// # Safety
/// As [`multiply_bf16`].
#[target_feature(enable = "neon,bf16")]
unsafe fn group<const P: usize>(
    sums: Sums,
    lhs: &[*const u32; ROWS],
    rhs: *const u32,
    walk: &Walk,
    first: usize,
) {
    let mut tile = [[vdupq_n_f32(0.0); SQUARES]; P];
    // SAFETY: the caller guarantees the rows, whole groups of columns, and every unit of the walk.
    unsafe {
        if sums.add {
            for (pair, squares) in tile.iter_mut().enumerate() {
                for (four, squares) in squares.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                    let load = |row: usize| vld1q_f32(sums.at(row.min(walk.rows - 1), first + 4 * four));
                    *squares = transposed([load(2 * pair), load(2 * pair + 1)]);
                }
            }
        }
        for segment in 0..walk.segments {
            let (left, right) = (segment * walk.lhs_segment, segment * walk.rhs_segment + first);
            for unit in (0..walk.units).step_by(2) {
                let is_pair = unit + 1 < walk.units;
                let at = left + unit * walk.lhs_step;
                let row = |row: *const u32| {
                    if is_pair && walk.lhs_step == 1 {
                        vld1_u32(row.add(at))
                    } else {
                        let next = if is_pair { row.add(at + walk.lhs_step).read_unaligned() } else { 0 };
                        vset_lane_u32::<1>(next, vdup_n_u32(row.add(at).read_unaligned()))
                    }
                };
                let a: [_; P] = from_fn(|pair| {
                    vcombine_u32(row(lhs[2 * pair]), row(lhs[(2 * pair + 1).min(walk.rows - 1)]))
                });
                for four in 0..GROUP / 4 {
                    let place = rhs.add(right + unit * COLS + 4 * four);
                    let units = vld1q_u32(place);
                    let next = if is_pair { vld1q_u32(place.add(COLS)) } else { vdupq_n_u32(0) };
                    for (half, b) in
                        [vzip1q_u32(units, next), vzip2q_u32(units, next)].into_iter().enumerate()
                    {
                        for (squares, a) in tile.iter_mut().zip(a) {
                            let square = &mut squares[2 * four + half];
                            *square = multiply_add(*square, a, b);
                        }
                    }
                }
            }
        }
        for (pair, squares) in tile.iter().enumerate() {
            for (four, squares) in squares.as_chunks::<2>().0.iter().enumerate() {
                let rows = transposed(*squares).into_iter().enumerate();
                for (row, values) in rows.take(walk.rows - 2 * pair) {
                    vst1q_f32(sums.at(2 * pair + row, first + 4 * four), values);
                }
            }
        }
    }
}

/// From 4 columns of two rows to two squares of 2 x 2, and back.
#[target_feature(enable = "neon")]
fn transposed([a, b]: [float32x4_t; 2]) -> [float32x4_t; 2] {
    [vcombine_f32(vget_low_f32(a), vget_low_f32(b)), vcombine_f32(vget_high_f32(a), vget_high_f32(b))]
}

/// `sum + a b` for 2 x 2 sums. `a` has 2 rows, `b` has 2 columns, of two units (4 elements) each. The products of a unit are added first, then
/// their sum to `sum`. Both additions round to odd, and subnormal numbers count as zero, unless the processor is set otherwise (Arm Architecture
/// Reference Manual for A-profile, BFMMLA).
#[inline]
#[target_feature(enable = "neon,bf16")]
fn multiply_add(mut sum: float32x4_t, a: uint32x4_t, b: uint32x4_t) -> float32x4_t {
    // SAFETY: the instruction only computes; the processor has BF16.
    unsafe {
        asm!(
            "bfmmla {sum:v}.4s, {a:v}.8h, {b:v}.8h",
            sum = inout(vreg) sum,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// `rounds` times 24 independent products. Returns the number of floating-point operations, and a value that depends on all.
///
/// # Safety
/// The processor must have NEON and BF16.
#[target_feature(enable = "neon,bf16")]
pub(crate) unsafe fn peak_bf16(rounds: usize) -> (f64, f32) {
    const CHAINS: usize = 24;
    let (a, b) = (vdupq_n_u32(0x3F80_3F80), vdupq_n_u32(0x3080_3080));
    let mut sums = [vdupq_n_f32(0.0); CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = multiply_add(*sum, a, b);
        }
    }
    // 4 sums of 4 products.
    let flop = rounds * CHAINS * 4 * 4 * 2;
    (flop as f64, sums.into_iter().map(|sum| vaddvq_f32(sum)).sum())
}
