//! Squares of units transposed in registers: the layout of a panel from rows that run along the sum.

use crate::element::Element;
use crate::isa::Isa;

/// Rows and units of a square: the units of the widest register.
pub(crate) const SIDE: usize = 16;

/// Sixteen rows of as many units; of a format whose unit is one element only the first halves count.
pub(crate) type Square<E> = [[E; 2 * SIDE]; SIDE];

/// Unit u of row c of `square` becomes unit c of `out[u * stride..]`. To be called inside [`Isa::run`].
///
/// # Panics
/// If `out` is too short.
#[inline(always)]
pub(crate) fn transpose<E: Element>(isa: Isa, out: &mut [E], stride: usize, square: &Square<E>) {
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx512() {
        assert!(out.len() >= (SIDE - 1) * stride + SIDE * E::PAIR, "transposing");
        // SAFETY: an `Isa` exists only if the processor has it; a unit is 32 bits; `out` is checked above.
        return unsafe {
            let (from, step) = (square.as_ptr().cast(), 2 * SIDE / E::PAIR);
            x86::transpose(out.as_mut_ptr().cast(), stride / E::PAIR, from, step);
        };
    }
    let _ = isa;
    for (u, out) in out.chunks_mut(stride).take(SIDE).enumerate() {
        for (unit, row) in out.chunks_exact_mut(E::PAIR).zip(square) {
            unit.copy_from_slice(&row[u * E::PAIR..][..E::PAIR]);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::SIDE;

    /// Four perfect shuffles of all 256 units. Where one stands is row and column, 4 bits each; a shuffle takes the rows of
    /// both halves in turn, which turns these 8 bits by one, so that after four row and column have changed places.
    ///
    /// # Safety
    /// The processor must have AVX-512 F; 16 units each must be readable at `SIDE` places that are `step` units apart, and
    /// writable at as many, `stride` apart.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) unsafe fn transpose(out: *mut i32, stride: usize, from: *const i32, step: usize) {
        let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        let mut rows = [_mm512_setzero_si512(); SIDE];
        for (r, row) in rows.iter_mut().enumerate() {
            // SAFETY: passed on to the caller.
            *row = unsafe { _mm512_loadu_si512(from.add(r * step).cast()) };
        }
        for _ in 0..4 {
            let before = rows;
            for r in 0..SIDE / 2 {
                rows[2 * r] = _mm512_permutex2var_epi32(before[r], low, before[r + SIDE / 2]);
                rows[2 * r + 1] = _mm512_permutex2var_epi32(before[r], high, before[r + SIDE / 2]);
            }
        }
        for (r, row) in rows.into_iter().enumerate() {
            // SAFETY: passed on to the caller.
            unsafe { _mm512_storeu_si512(out.add(r * stride).cast(), row) };
        }
    }
}
