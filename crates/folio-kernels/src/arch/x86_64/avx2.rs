//! AVX2 and FMA: registers of 8 f32. bfloat16 is widened when loaded.

#![expect(clippy::needless_range_loop, reason = "loops over registers, unrolled by their constant bounds")]

use std::arch::x86_64::*;
use std::array::from_fn;

use crate::element::Element;
use crate::tile::{COLS, ROWS, Sums, Walk};

/// Runs `body` compiled for this set.
///
/// # Safety
/// The processor must have AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn run<R>(body: impl FnOnce() -> R) -> R {
    body()
}

/// `sums = lhs rhs` or `sums += lhs rhs` in either number format.
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
    // SAFETY: the rows and columns are inside the tile; the caller guarantees the operands.
    unsafe {
        for first in (0..walk.cols).step_by(16) {
            let mut tile = [[_mm256_setzero_ps(); 2]; R];
            if sums.add {
                tile = from_fn(|r| from_fn(|v| _mm256_loadu_ps(sums.at(r, first + 8 * v))));
            }
            for segment in 0..walk.segments {
                let mut rhs = rhs.cast::<f32>().add(segment * walk.rhs_segment + first);
                let mut offset = segment * walk.lhs_segment;
                for _ in 0..walk.units {
                    let b: [__m256; 2] = from_fn(|v| _mm256_loadu_ps(rhs.add(8 * v)));
                    for r in 0..R {
                        let a = _mm256_set1_ps(lhs[r].cast::<f32>().add(offset).read_unaligned());
                        for v in 0..2 {
                            tile[r][v] = if E::PER_UNIT == 1 {
                                _mm256_fmadd_ps(a, b[v], tile[r][v])
                            } else {
                                let sum = _mm256_fmadd_ps(low(a), low(b[v]), tile[r][v]);
                                _mm256_fmadd_ps(high(a), high(b[v]), sum)
                            };
                        }
                    }
                    rhs = rhs.add(COLS);
                    offset += walk.lhs_step;
                }
            }
            for r in 0..R {
                for v in 0..2 {
                    _mm256_storeu_ps(sums.at(r, first + 8 * v), tile[r][v]);
                }
            }
        }
    }
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
