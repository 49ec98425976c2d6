//! Rows of f32 rounded to the format that products read, by the processor's own instruction where it has one.
//!
//! The instruction takes subnormal numbers, below 1.2e-38, for zero, as the dot product does that reads the result.
//! [`Element::from_f32`] rounds them like all others; everywhere else the two agree in every bit.

#[cfg(target_arch = "x86_64")]
use crate::arch::x86_64::avx512;
use crate::element::Element;
use crate::isa::Isa;

/// `out = values`, rounded to the nearest value, ties to even. To be called inside [`Isa::run`].
#[inline(always)]
pub fn round<E: Element>(isa: Isa, out: &mut [E], values: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    if E::PAIR == 2 && isa.has_avx512_bf16() {
        assert_eq!(out.len(), values.len(), "rounding");
        // SAFETY: an `Isa` exists only if the processor has it; a bfloat16 is 16 bits; both are as long.
        return unsafe { avx512::round(out.as_mut_ptr().cast(), values.as_ptr(), values.len()) };
    }
    let _ = isa;
    // Piece by piece, or the compiler sees a copy of f32 and calls memcpy for each of many short rows.
    let (pieces, rest) = values.as_chunks::<LANES>();
    let (out_pieces, out_rest) = out.as_chunks_mut::<LANES>();
    for (out, values) in out_pieces.iter_mut().zip(pieces) {
        *out = values.map(E::from_f32);
    }
    for (out, &value) in out_rest.iter_mut().zip(rest) {
        *out = E::from_f32(value);
    }
}

/// Elements of the widest register of f32.
pub(crate) const LANES: usize = 16;

/// `out = values` in another format, rounded, or in the same one as they are. To be called inside [`Isa::run`].
#[inline(always)]
pub(crate) fn convert<S: Element, E: Element>(isa: Isa, out: &mut [E], values: &[S]) {
    match S::singles(values) {
        Some(values) => round(isa, out, values),
        None => out.iter_mut().zip(values).for_each(|(out, &value)| *out = cast(value)),
    }
}

/// A value in a format that is not narrower, exactly.
#[inline(always)]
fn cast<S: Element, E: Element>(value: S) -> E {
    // The two formats differ in this number.
    if S::PAIR == E::PAIR { E::from_bits(value.to_bits()) } else { E::from_f32(value.to_f32()) }
}

/// `out[2 i] = low[i]` and `out[2 i + 1] = high[i]` as by [`convert`]: two rows zipped into units of pairs. To be
/// called inside [`Isa::run`].
#[inline(always)]
pub(crate) fn convert_pairs<S: Element, E: Element>(isa: Isa, out: &mut [E], low: &[S], high: &[S]) {
    debug_assert_eq!(E::PAIR, 2, "pairs");
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx512_bf16()
        && let (Some(low), Some(high)) = (S::singles(low), S::singles(high))
    {
        assert_eq!((out.len(), high.len()), (2 * low.len(), low.len()), "rounding to pairs");
        // SAFETY: as above; `out` has a pair for every element of `low` and `high`.
        return unsafe {
            avx512::round_pairs(out.as_mut_ptr().cast(), low.as_ptr(), high.as_ptr(), low.len());
        };
    }
    let _ = isa;
    for (out, (&low, &high)) in out.chunks_exact_mut(2).zip(low.iter().zip(high)) {
        out[0] = cast(low);
        out[1] = cast(high);
    }
}
