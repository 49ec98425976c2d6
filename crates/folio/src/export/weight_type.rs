//! The number formats of exported weights.

use half::{bf16, f16};

use crate::named_enum;

/// The number format of exported weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightType {
    /// 32 bits, as trained.
    F32,
    /// IEEE half precision: 11 significant bits, at most 65,504.
    F16,
    /// bfloat16: 8 significant bits, the range of f32.
    Bf16,
    /// ggml's blocks of 32 numbers of 8 bits with a common scale in f16.
    Q8_0,
}

named_enum!(WeightType, "type", { F32 => "f32", F16 => "f16", Bf16 => "bf16", Q8_0 => "q8_0" });

/// Numbers per block of q8_0, and the bytes of a block: the scale and one byte per number.
pub(super) const BLOCK: usize = 32;
pub(super) const BLOCK_BYTES: usize = 2 + BLOCK;

/// The largest number of steps in a block of q8_0.
const STEPS: f32 = 127.0;

impl WeightType {
    /// The bytes of a row of this many numbers; for q8_0 a multiple of [`BLOCK`].
    pub(super) fn bytes(self, numbers: u64) -> u64 {
        match self {
            Self::F32 => 4 * numbers,
            Self::F16 | Self::Bf16 => 2 * numbers,
            Self::Q8_0 => numbers / BLOCK as u64 * BLOCK_BYTES as u64,
        }
    }

    /// Whether this format has a finite number for `value`. One of q8_0 has it for the largest of its block.
    pub(super) fn holds(self, value: f32) -> bool {
        match self {
            Self::F32 => value.is_finite(),
            Self::F16 => f16::from_f32(value).is_finite(),
            Self::Bf16 => bf16::from_f32(value).is_finite(),
            Self::Q8_0 => f16::from_f32(value / STEPS).is_finite(),
        }
    }

    /// Appends a row in this format, little-endian. The error is a number that it cannot hold.
    pub(super) fn encode(self, row: &[f32], bytes: &mut Vec<u8>) -> Result<(), f32> {
        if let Some(value) = row.iter().find(|value| !self.holds(**value)) {
            return Err(*value);
        }
        match self {
            Self::F32 => row.iter().for_each(|value| bytes.extend(value.to_le_bytes())),
            Self::F16 => row.iter().for_each(|value| bytes.extend(f16::from_f32(*value).to_le_bytes())),
            Self::Bf16 => row.iter().for_each(|value| bytes.extend(bf16::from_f32(*value).to_le_bytes())),
            Self::Q8_0 => {
                let (blocks, rest) = row.as_chunks();
                assert!(rest.is_empty(), "a row of {} numbers in blocks of {BLOCK}", row.len());
                blocks.iter().for_each(|block| quantize(block, bytes));
            }
        }
        Ok(())
    }

    /// The numbers of a row in this format.
    pub(super) fn decode(self, bytes: &[u8]) -> Vec<f32> {
        let pairs = || bytes.as_chunks::<2>().0.iter().copied();
        match self {
            Self::F32 => bytes.as_chunks().0.iter().copied().map(f32::from_le_bytes).collect(),
            Self::F16 => pairs().map(|pair| f16::from_le_bytes(pair).to_f32()).collect(),
            Self::Bf16 => pairs().map(|pair| bf16::from_le_bytes(pair).to_f32()).collect(),
            Self::Q8_0 => {
                let blocks = bytes.as_chunks::<BLOCK_BYTES>().0.iter();
                let block = |&[low, high, ref steps @ ..]: &[u8; BLOCK_BYTES]| {
                    let scale = f16::from_le_bytes([low, high]).to_f32();
                    steps.iter().map(move |&step| scale * f32::from(step as i8)).collect::<Vec<f32>>()
                };
                blocks.flat_map(block).collect()
            }
        }
    }
}

/// Appends a block of q8_0: the scale s = max |x| / 127 in f16, then round(x / s) as signed bytes.
///
/// The steps are computed with the unrounded s, so a number is off by at most s / 2 from the step, and 127 s 2^-11 from the
/// rounding of s.
fn quantize(block: &[f32; BLOCK], bytes: &mut Vec<u8>) {
    let scale = block.iter().fold(0_f32, |largest, value| largest.max(value.abs())) / STEPS;
    bytes.extend(f16::from_f32(scale).to_le_bytes());
    // The inverse of the smallest numbers is infinite; they are zero in f16.
    let inverse = if scale < f32::MIN_POSITIVE { 0.0 } else { 1.0 / scale };
    bytes.extend(block.iter().map(|value| (value * inverse).round() as i8 as u8));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_trip(weight_type: WeightType, row: &[f32]) -> Vec<f32> {
        let mut bytes = Vec::new();
        weight_type.encode(row, &mut bytes).expect("in range");
        assert_eq!(bytes.len() as u64, weight_type.bytes(row.len() as u64));
        weight_type.decode(&bytes)
    }

    proptest! {
        #[test]
        fn rounding_errors_are_those_of_the_format(
            row in proptest::collection::vec(-300.0f32..300.0, BLOCK),
            exponent in -10..1,
        ) {
            let row: Vec<f32> = row.iter().map(|value| value * 2f32.powi(exponent)).collect();
            prop_assert_eq!(round_trip(WeightType::F32, &row), row.clone());
            let largest = row.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            // Half a step of q8_0, and f16's rounding of the scale, both with f32's rounding on top (1 %). Numbers below
            // 2^-14 are subnormal in f16, 2^-24 apart.
            let step = largest / 127.0;
            let errors = [
                (WeightType::F16, 2f32.powi(-11), 2f32.powi(-25)),
                (WeightType::Bf16, 2f32.powi(-8), 0.0),
                (WeightType::Q8_0, 1.01 * 2f32.powi(-11), 1.01 * step / 2.0 + 127.0 * 2f32.powi(-25)),
            ];
            for (weight_type, relative, absolute) in errors {
                for (got, want) in round_trip(weight_type, &row).iter().zip(&row) {
                    let allowed = relative * want.abs().max(step) + absolute;
                    prop_assert!((got - want).abs() <= allowed, "{} as {}: {}", want, weight_type, got);
                }
            }
        }
    }

    #[test]
    fn a_block_has_the_bytes_of_ggml_s_description() {
        let mut block = [0.0; BLOCK];
        (block[0], block[1], block[2], block[31]) = (-127.0, 1.0, 2.5, 63.4);
        let mut bytes = Vec::new();
        WeightType::Q8_0.encode(&block, &mut bytes).expect("in range");
        // The scale 1.0 is 0x3c00 in f16. Halves are rounded away from zero.
        let mut want = [0; BLOCK_BYTES];
        want[..5].copy_from_slice(&[0x00, 0x3c, -127i8 as u8, 1, 3]);
        want[BLOCK_BYTES - 1] = 63;
        assert_eq!(bytes, want);
        assert_eq!(round_trip(WeightType::Q8_0, &[0.0; BLOCK]), [0.0; BLOCK]);
        assert_eq!(round_trip(WeightType::Q8_0, &[1e-44; BLOCK]), [0.0; BLOCK]);
    }

    #[test]
    fn numbers_that_a_format_cannot_hold_are_named() {
        let check = |weight_type: WeightType, value: f32, is_held: bool| {
            let mut row = [0.0; BLOCK];
            row[7] = value;
            let want = if is_held { Ok(()) } else { Err(value) };
            let got = weight_type.encode(&row, &mut Vec::new());
            assert!(got == want || value.is_nan() && got.is_err(), "{value} as {weight_type}: {got:?}");
        };
        for weight_type in [WeightType::F32, WeightType::F16, WeightType::Bf16, WeightType::Q8_0] {
            check(weight_type, f32::NAN, false);
            check(weight_type, f32::NEG_INFINITY, false);
            check(weight_type, 65_504.0, true);
            check(weight_type, -65_520.0, weight_type != WeightType::F16);
            check(weight_type, f32::MAX, weight_type == WeightType::F32);
        }
    }
}
