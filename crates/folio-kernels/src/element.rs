//! The number formats of activations and packed weights: f32 and bfloat16.
//!
//! bfloat16 is the upper half of an f32: sign, 8 exponent bits and the upper 7 of 23 fraction bits (Kalamkar et al.
//! 2019, "A Study of BFLOAT16 for Deep Learning Training"). Rounding to it has a relative error of at most 2^-8.
//!
//! Matmuls read their operands in **units** of 32 bits: one f32, or two bfloat16 that are adjacent along the summed
//! dimension. The dot product of AVX512-BF16 multiplies the pairs of two units and adds both products.

use std::fmt;

mod sealed {
    /// Matmuls read units as raw memory, and buffers start as zero bits, so only formats that allow this may implement
    /// it.
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for super::Bf16 {}
}

/// A number format of matmul operands; sums are always f32. All zero bits represent the value zero.
pub trait Element: sealed::Sealed + Copy + Default + PartialEq + Send + Sync + fmt::Debug + 'static {
    /// Elements per 32-bit unit.
    const PER_UNIT: usize;
    /// The maximum relative error of rounding a normal number to this format: 2^-24 or 2^-8, half the distance from 1
    /// to the next greater value.
    const UNIT_ROUNDOFF: f32;

    /// The value as f32, exactly.
    fn to_f32(self) -> f32;

    /// The nearest value of this format, ties to even.
    fn from_f32(value: f32) -> Self;

    /// The elements as f32, if this format is f32.
    fn as_f32(elements: &[Self]) -> Option<&[f32]>;

    /// The bits of the value, in the low end of a unit.
    fn to_bits(self) -> u32;

    /// The value with these bits, from the low end of a unit.
    fn from_bits(bits: u32) -> Self;
}

impl Element for f32 {
    const PER_UNIT: usize = 1;
    const UNIT_ROUNDOFF: f32 = f32::EPSILON / 2.0;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn as_f32(elements: &[Self]) -> Option<&[f32]> {
        Some(elements)
    }

    #[inline(always)]
    fn to_bits(self) -> u32 {
        self.to_bits()
    }

    #[inline(always)]
    fn from_bits(bits: u32) -> Self {
        f32::from_bits(bits)
    }
}

/// A bfloat16 number. Two are equal if their bits are equal.
///
/// ```
/// use folio_kernels::element::{Bf16, Element};
/// assert_eq!(Bf16::from_f32(1.0).to_f32(), 1.0);
/// assert_eq!(Bf16::from_f32(1.0 + 1.0 / 256.0).to_f32(), 1.0); // ties to even
/// ```
#[derive(Clone, Copy, Default, PartialEq, Debug)]
#[repr(transparent)]
pub struct Bf16(u16);

impl Element for Bf16 {
    const PER_UNIT: usize = 2;
    const UNIT_ROUNDOFF: f32 = 1.0 / 256.0;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        let bits = value.to_bits();
        // Adding 0x7fff, plus one if the last remaining bit is odd, carries into that bit exactly when rounding up.
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        // The carry would turn some NaNs into infinities, so a NaN is truncated and made quiet instead.
        let quiet = (bits >> 16) | 0x40;
        Bf16(if value.is_nan() { quiet } else { rounded } as u16)
    }

    #[inline(always)]
    fn as_f32(_: &[Self]) -> Option<&[f32]> {
        None
    }

    #[inline(always)]
    fn to_bits(self) -> u32 {
        u32::from(self.0)
    }

    #[inline(always)]
    fn from_bits(bits: u32) -> Self {
        Bf16(bits as u16)
    }
}
