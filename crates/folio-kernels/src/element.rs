//! The number formats of activations and packed weights: f32, and bfloat16, its upper half.
//!
//! bfloat16 has f32's sign and 8 exponent bits and the upper 7 of its 23 fraction bits (Kalamkar et al. 2019,
//! "A Study of BFLOAT16 for Deep Learning Training"): a value is rounded with a relative error of at most 2^-8.
//!
//! Matrix products read their operands in **units** of 32 bits: one f32, or two bfloat16 that stand next to
//! each other along the sum. AVX512-BF16's dot product multiplies two units' pairs and adds both products.

use std::fmt;

mod sealed {
    /// Products read units as raw memory, and buffers begin as zero bits: only formats that are known to bear it.
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for super::Bf16 {}
}

/// A number format that products take as operands; sums are always f32. All bits zero are the value zero.
pub trait Element: sealed::Sealed + Copy + Default + PartialEq + Send + Sync + fmt::Debug + 'static {
    /// Elements of one 32-bit unit.
    const PAIR: usize;
    /// The greatest relative error of rounding a normal number to this format: half the distance of 1 to the
    /// next greater value, 2^-24 and 2^-8.
    const UNIT_ROUNDOFF: f32;

    /// The value, exactly.
    fn to_f32(self) -> f32;

    /// The nearest value of this format, ties to even.
    fn from_f32(value: f32) -> Self;

    /// The elements as f32, if that is what they are.
    fn singles(elements: &[Self]) -> Option<&[f32]>;

    /// The value's bits, in the lower end of a unit.
    fn to_bits(self) -> u32;

    /// The value whose bits stand in the lower end of a unit.
    fn from_bits(bits: u32) -> Self;
}

impl Element for f32 {
    const PAIR: usize = 1;
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
    fn singles(elements: &[Self]) -> Option<&[f32]> {
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

/// A bfloat16 number, as its bits: two are equal if their bits are.
///
/// ```
/// use folio_kernels::element::{Bf16, Element};
/// assert_eq!(Bf16::from_f32(1.0).to_f32(), 1.0);
/// assert_eq!(Bf16::from_f32(1.0 + 1.0 / 256.0).to_f32(), 1.0); // a tie goes to the even neighbour
/// ```
#[derive(Clone, Copy, Default, PartialEq, Debug)]
#[repr(transparent)]
pub struct Bf16(u16);

impl Element for Bf16 {
    const PAIR: usize = 2;
    const UNIT_ROUNDOFF: f32 = 1.0 / 256.0;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        let bits = value.to_bits();
        // Adding 0x7fff, and one more if the last bit kept is odd, carries into it exactly when rounding up.
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        // The carry would turn some NaNs into infinities; a NaN keeps its upper bits and is made quiet.
        let quiet = (bits >> 16) | 0x40;
        Bf16(if value.is_nan() { quiet } else { rounded } as u16)
    }

    #[inline(always)]
    fn singles(_: &[Self]) -> Option<&[f32]> {
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
