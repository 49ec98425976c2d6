//! The number format of a model's activations and matmuls.

use super::ModelConfig;
use crate::error::{Error, Result};
use crate::named_enum;

/// The number format that a model computes in. Weights, their gradients, AdamW, LayerNorm, softmax, the residual stream, the
/// loss and every sum are f32 in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    /// If the heads are of odd size, or the MLP is.
    pub fn check(self, config: &ModelConfig) -> Result<()> {
        match config.odd_size() {
            Some(needed) if self == Self::Bf16 => {
                let way_out = if needed.starts_with("heads") { " or another `n_emb`" } else { "" };
                let reason = format!("bf16 needs {needed}: use `precision f32`{way_out}");
                Err(Error::setting("precision", reason))
            }
            _ => Ok(()),
        }
    }
}

named_enum!(Precision, "precision", { F32 => "f32", Bf16 => "bf16" });

/// A precision, or the faster one of the device ([`resolve_precision`](super::resolve_precision)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

named_enum!(PrecisionChoice, "precision", { Auto => "auto", F32 => "f32", Bf16 => "bf16" });
