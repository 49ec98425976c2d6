//! Squares of units transposed in registers: the layout of a panel from rows that run along the sum.

#[cfg(target_arch = "x86_64")]
use crate::arch::x86_64::avx512;
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
            avx512::transpose(out.as_mut_ptr().cast(), stride / E::PAIR, from, step);
        };
    }
    let _ = isa;
    for (u, out) in out.chunks_mut(stride).take(SIDE).enumerate() {
        for (unit, row) in out.chunks_exact_mut(E::PAIR).zip(square) {
            unit.copy_from_slice(&row[u * E::PAIR..][..E::PAIR]);
        }
    }
}
