//! AVX2 and FMA: registers of 8 f32. bfloat16 is widened when loaded.

#![expect(clippy::needless_range_loop, reason = "loops over registers, unrolled by their constant bounds")]

use std::arch::x86_64::*;
use std::array::from_fn;

use crate::element::Element;
use crate::prefetch::{INT8_PREFETCH_AHEAD, PrefetchHint, prefetch};
use crate::quantized::{InputRows, InputStep, IntegerSums, STEP, STRIP_COLS, StripUnit, UNIT};
use crate::tile::{COLS, GROUP, ROWS, Sums, Walk};

/// Runs `body` compiled for this set.
///
/// # Safety
/// The processor must have AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn run<R>(body: impl FnOnce() -> R) -> R {
    body()
}

/// The fewest rows for which the right operand is prefetched by software. With fewer, the processor's out-of-order
/// window reaches far enough ahead to keep the memory busy. As with AVX-512 (docs/experiments.md).
const MIN_ROWS_TO_PREFETCH: usize = 3;
/// How far ahead the right operand is prefetched, in units: 8 KiB, as with AVX-512.
const PREFETCH_AHEAD: usize = 32;
/// f32 elements per register.
const LANES: usize = 8;

/// `sums = lhs rhs` or `sums += lhs rhs` in either number format. One pass over the depth computes as many columns as the registers
/// have room for: the fewer passes, the more evenly the right operand is read, which is in memory if there are few rows.
///
/// # Safety
/// The contract of [`Walk`] must hold; the processor must have AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn multiply<E: Element, const R: usize>(
    sums: Sums,
    lhs: &[*const E; ROWS],
    rhs: *const E,
    walk: &Walk,
) {
    let cols = walk.cols.next_multiple_of(GROUP);
    let mut first = 0;
    while first < cols {
        // SAFETY: guaranteed by the caller; the columns are inside the tile.
        first += unsafe {
            match (R, cols - first) {
                (1, 64..) => columns::<E, R, 8>(sums, lhs, rhs, walk, first),
                (1 | 2, 32..) => columns::<E, R, 4>(sums, lhs, rhs, walk, first),
                _ => columns::<E, R, 2>(sums, lhs, rhs, walk, first),
            }
        };
    }
}

/// The columns of the tile from `first` on, in `V` registers per row. Returns their number.
///
/// # Safety
/// As [`multiply`]; the columns must be inside the tile.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn columns<E: Element, const R: usize, const V: usize>(
    sums: Sums,
    lhs: &[*const E; ROWS],
    rhs: *const E,
    walk: &Walk,
    first: usize,
) -> usize {
    // SAFETY: the rows and columns are inside the tile; the caller guarantees the operands.
    unsafe {
        let mut tile = [[_mm256_setzero_ps(); V]; R];
        if sums.add {
            tile = from_fn(|r| from_fn(|v| _mm256_loadu_ps(sums.at(r, first + LANES * v))));
        }
        for segment in 0..walk.segments {
            let mut rhs = rhs.cast::<f32>().add(segment * walk.rhs_segment + first);
            let mut offset = segment * walk.lhs_segment;
            for _ in 0..walk.units {
                if R >= MIN_ROWS_TO_PREFETCH {
                    // One cache line: from three rows on, a pass has 16 columns.
                    prefetch(rhs.wrapping_add(PREFETCH_AHEAD * COLS).cast(), PrefetchHint::Read);
                }
                let a = |r: usize| _mm256_set1_ps(lhs[r].cast::<f32>().add(offset).read_unaligned());
                let b = |v: usize| _mm256_loadu_ps(rhs.add(LANES * v));
                if E::PER_UNIT == 1 {
                    let b: [__m256; V] = from_fn(b);
                    for r in 0..R {
                        let a = a(r);
                        for v in 0..V {
                            tile[r][v] = _mm256_fmadd_ps(a, b[v], tile[r][v]);
                        }
                    }
                } else {
                    // Six rows leave registers for the two halves of one load only.
                    for v in 0..V {
                        let b = (low(b(v)), high(b(v)));
                        for r in 0..R {
                            let sum = _mm256_fmadd_ps(low(a(r)), b.0, tile[r][v]);
                            tile[r][v] = _mm256_fmadd_ps(high(a(r)), b.1, sum);
                        }
                    }
                }
                rhs = rhs.add(COLS);
                offset += walk.lhs_step;
            }
        }
        for r in 0..R {
            for v in 0..V {
                _mm256_storeu_ps(sums.at(r, first + LANES * v), tile[r][v]);
            }
        }
    }
    V * LANES
}

/// The sums of the high and the low parts of some rows times a strip of 8-bit weights.
///
/// Integers are widened to 16 bits, of which an instruction multiplies and adds two neighbors: a unit of a column gives two sums.
///
/// # Safety
/// The processor must have AVX2; the rows must have the depth of the strip.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn multiply_int8(sums: &mut IntegerSums, rows: InputRows, weights: &[StripUnit]) {
    /// Columns of a pass.
    const COLS: usize = 16;
    /// Columns that are widened at a time: 16 bytes.
    const WIDENED: usize = 4;
    for r in 0..rows.rows {
        for first in (0..STRIP_COLS).step_by(COLS) {
            let mut high = [_mm256_setzero_si256(); COLS / WIDENED];
            let mut low = high;
            for (u, unit) in weights.iter().enumerate() {
                let ahead = std::ptr::from_ref(unit).cast::<u8>().wrapping_add(INT8_PREFETCH_AHEAD);
                prefetch(ahead.wrapping_add(first * UNIT), PrefetchHint::Read);
                let place = r * rows.steps * STEP + u * UNIT;
                // SAFETY: the caller guarantees the rows.
                let (x, y) = unsafe { (widened_unit(rows.high, place), widened_unit(rows.low, place)) };
                for v in 0..COLS / WIDENED {
                    // SAFETY: 16 bytes of the unit, which has 32 columns of 4.
                    let bytes = unsafe { _mm_loadu_si128(unit.0[first + v * WIDENED..].as_ptr().cast()) };
                    let w = _mm256_cvtepi8_epi16(bytes);
                    high[v] = _mm256_add_epi32(high[v], _mm256_madd_epi16(x, w));
                    low[v] = _mm256_add_epi32(low[v], _mm256_madd_epi16(y, w));
                }
            }
            for (registers, sums) in [(high, &mut sums.high[r]), (low, &mut sums.low[r])] {
                for (v, register) in registers.into_iter().enumerate() {
                    let mut pairs = [0i32; 8];
                    // SAFETY: the array has the size of a register.
                    unsafe { _mm256_storeu_si256(pairs.as_mut_ptr().cast(), register) };
                    for c in 0..WIDENED {
                        sums[first + v * WIDENED + c] = pairs[2 * c] + pairs[2 * c + 1];
                    }
                }
            }
        }
    }
}

/// A unit of a row as 16-bit integers, in each quarter of a register.
///
/// # Safety
/// There must be a unit at `place`.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn widened_unit(row: &[InputStep], place: usize) -> __m256i {
    // SAFETY: guaranteed by the caller.
    let unit = unsafe { row.as_ptr().cast::<i8>().add(place).cast::<i32>().read_unaligned() };
    _mm256_cvtepi8_epi16(_mm_set1_epi32(unit))
}

/// The first bfloat16 of each unit, as f32.
#[target_feature(enable = "avx2")]
#[inline]
fn low(units: __m256) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(units)))
}

/// The second bfloat16 of each unit, as f32.
#[target_feature(enable = "avx2")]
#[inline]
fn high(units: __m256) -> __m256 {
    let mask = _mm256_set1_epi32(0xffff_0000_u32 as i32);
    _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(units), mask))
}
