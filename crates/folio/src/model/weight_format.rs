//! The number format of the weights of inference.

use folio_kernels::quantized::MAX_DEPTH;

use super::{ModelConfig, Precision};
use crate::error::{Error, Result};
use crate::named_enum;

/// The number format of the weights of an [`InferenceModel`](super::InferenceModel).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// As trained.
    F32,
    /// bfloat16, as are keys, values and activations: the format of [`Precision::Bf16`].
    Bf16,
    /// Eight bits with one scale per column; keys, values and activations are f32, and inputs of matmuls are rounded to 15
    /// bits. A quarter of the memory of f32; the logits are approximate.
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

    /// Checks that a model can be computed in this format.
    ///
    /// # Errors
    /// If it is bfloat16 and the heads are of odd size, or the MLP is; if it is int8 and the model is wider than [`MAX_DEPTH`].
    pub fn check(self, config: &ModelConfig) -> Result<()> {
        match self {
            Self::F32 => Ok(()),
            Self::Bf16 => Precision::Bf16.check(config),
            Self::Int8 => {
                let widest = config.n_emb.max(config.inner());
                if widest <= MAX_DEPTH {
                    return Ok(());
                }
                let reason =
                    format!("int8 multiplies up to {MAX_DEPTH} inputs, not {widest}: use `precision f32`");
                Err(Error::setting("precision", reason))
            }
        }
    }
}

named_enum!(WeightFormat, "precision", { F32 => "f32", Bf16 => "bf16", Int8 => "int8" });
