//! The number format of the weights of inference.

use std::str::FromStr;

use super::{ModelConfig, Precision};
use crate::error::{Error, Result};

/// The number format of the weights of an [`InferenceModel`](super::InferenceModel).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// As trained.
    F32,
    /// bfloat16, as are keys, values and activations: the format of [`Precision::Bf16`].
    Bf16,
    /// Eight bits with one scale per column; keys, values and activations are f32. A quarter of the memory of f32; the logits
    /// are approximate.
    Int8,
}

impl WeightFormat {
    /// The format in which a model of this precision was trained.
    pub fn of(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
        }
    }

    /// Bytes per weight.
    pub fn bytes_per_weight(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
            Self::Int8 => 1,
        }
    }

    /// `f32`, `bf16` or `int8`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }

    /// Checks that a model can be computed in this format.
    ///
    /// # Errors
    /// If it is bfloat16 and the heads are of odd size.
    pub fn check(self, config: &ModelConfig) -> Result<()> {
        if self == Self::Bf16 { Precision::Bf16.check(config) } else { Ok(()) }
    }
}

impl FromStr for WeightFormat {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "int8" => Ok(Self::Int8),
            _ => Err(Error::unknown_name("precision", name, &["f32", "bf16", "int8"])),
        }
    }
}
