//! Rounds rows of f32 to the number format of a matmul's operands, with the processor's own instruction if it has one.
//!
//! The AVX512-BF16 instruction flushes subnormal numbers (below 1.2e-38) to zero, as does the dot product that reads
//! the result. [`Element::from_f32`] rounds them correctly. For all other numbers, the two agree in every bit.

#[cfg(target_arch = "x86_64")]
use crate::arch::x86_64::avx512;
use crate::element::Element;
use crate::isa::Isa;

/// Elements per piece: the number of f32 in the widest register.
const LANES: usize = 16;

/// `out = values`, rounded to the nearest value, ties to even. Call it inside [`Isa::run`].
#[inline(always)]
pub fn round<E: Element>(isa: Isa, out: &mut [E], values: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    if E::PER_UNIT == 2 && isa.has_avx512_bf16() {
        assert_eq!(out.len(), values.len(), "input and output of round differ in length");
        // SAFETY: an `Isa` proves that the processor has it; a bfloat16 is 16 bits; the lengths are equal.
        return unsafe { avx512::round(out.as_mut_ptr().cast(), values.as_ptr(), values.len()) };
    }
    let _ = isa;
    // In pieces of constant length: for f32 the compiler would otherwise call memcpy for each of many short rows.
    let (pieces, rest) = values.as_chunks::<LANES>();
    let (out_pieces, out_rest) = out.as_chunks_mut::<LANES>();
    for (out, values) in out_pieces.iter_mut().zip(pieces) {
        *out = values.map(E::from_f32);
    }
    for (out, &value) in out_rest.iter_mut().zip(rest) {
        *out = E::from_f32(value);
    }
}

/// `out = values`, rounded if the number formats differ. Call it inside [`Isa::run`].
#[inline(always)]
pub(crate) fn convert<S: Element, E: Element>(isa: Isa, out: &mut [E], values: &[S]) {
    match S::as_f32(values) {
        Some(values) => round(isa, out, values),
        None => out.iter_mut().zip(values).for_each(|(out, &value)| *out = cast(value)),
    }
}

/// Converts to a format that is at least as wide, exactly.
#[inline(always)]
fn cast<S: Element, E: Element>(value: S) -> E {
    // `PER_UNIT` tells the two formats apart.
    if S::PER_UNIT == E::PER_UNIT { E::from_bits(value.to_bits()) } else { E::from_f32(value.to_f32()) }
}

/// `out[2 i] = low[i]` and `out[2 i + 1] = high[i]`, converted as by [`convert`]: two rows interleaved into units of
/// pairs. Call it inside [`Isa::run`].
#[inline(always)]
pub(crate) fn convert_pairs<S: Element, E: Element>(isa: Isa, out: &mut [E], low: &[S], high: &[S]) {
    debug_assert_eq!(E::PER_UNIT, 2, "units must be pairs");
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx512_bf16()
        && let (Some(low), Some(high)) = (S::as_f32(low), S::as_f32(high))
    {
        assert_eq!(
            (out.len(), high.len()),
            (2 * low.len(), low.len()),
            "lengths of rows and of their interleaved output"
        );
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
