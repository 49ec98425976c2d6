//! The number format of a model's activations and matmuls.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ModelConfig;
use crate::error::{Error, Result};

/// The number format that a model computes in. Weights, their gradients, AdamW, LayerNorm, softmax, the residual stream, the
/// loss and every sum are f32 in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Matmuls and activations in f32.
    #[default]
    F32,
    /// Matmuls and activations in bfloat16: half the memory, and faster where the processor has instructions for it.
    Bf16,
}

impl Precision {
    /// Checks that a model can be computed in this format: bfloat16 is multiplied in pairs.
    ///
    /// # Errors
    /// If the heads are of odd size.
    pub fn check(self, config: &ModelConfig) -> Result<()> {
        let head_size = config.head_size();
        if self == Self::Bf16 && !head_size.is_multiple_of(2) {
            let reason =
                format!("bf16 needs heads of even size, not {head_size}: take f32 or another --n_emb");
            return Err(Error::setting("--precision", reason));
        }
        Ok(())
    }

    /// `f32` or `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// A precision, or the faster one of the device ([`resolve_precision`](super::resolve_precision)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", rename_all = "lowercase")]
pub enum PrecisionChoice {
    /// The faster on this machine.
    #[default]
    Auto,
    /// [`Precision::F32`]
    F32,
    /// [`Precision::Bf16`]
    Bf16,
}

impl From<Precision> for PrecisionChoice {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
        }
    }
}

impl TryFrom<String> for PrecisionChoice {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

impl FromStr for PrecisionChoice {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(Error::unknown_name("precision", name, &["auto", "f32", "bf16"])),
        }
    }
}
