//! Transposes squares of units in registers, to pack panels from rows that run along the depth.

#[cfg(target_arch = "x86_64")]
use crate::arch::x86_64::avx512;
use crate::element::Element;
use crate::isa::Isa;

/// Rows of a square, and units per row: the number of units in the widest register.
pub(crate) const SIDE: usize = 16;

/// Sixteen rows of 16 units. With one element per unit, only the first half of each row is used.
pub(crate) type Square<E> = [[E; 2 * SIDE]; SIDE];

/// Unit `u` of row `c` of `square` becomes unit `c` of `out[u * stride..]`. Call it inside [`Isa::run`].
///
/// # Panics
/// If `out` is too short.
#[inline(always)]
pub(crate) fn transpose<E: Element>(isa: Isa, out: &mut [E], stride: usize, square: &Square<E>) {
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx512() {
        const { assert!(SIDE == avx512::LANES) };
        assert!(
            out.len() >= (SIDE - 1) * stride + SIDE * E::PER_UNIT,
            "output of transpose too short: {}",
            out.len()
        );
        // SAFETY: an `Isa` proves that the processor has it; a unit is 32 bits; `out` is checked above.
        return unsafe {
            let (from, step) = (square.as_ptr().cast(), 2 * SIDE / E::PER_UNIT);
            avx512::transpose(out.as_mut_ptr().cast(), stride / E::PER_UNIT, from, step);
        };
    }
    let _ = isa;
    for (u, out) in out.chunks_mut(stride).take(SIDE).enumerate() {
        for (unit, row) in out.chunks_exact_mut(E::PER_UNIT).zip(square) {
            unit.copy_from_slice(&row[u * E::PER_UNIT..][..E::PER_UNIT]);
        }
    }
}
