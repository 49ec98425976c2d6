//! The number format of a model's activations and products.

use folio_kernels::isa::Isa;
use folio_kernels::peak::bf16_speedup;

use super::ModelConfig;
use crate::error::{Error, Result};
use crate::named_enum;

/// In what numbers a model computes. Weights, their gradients, AdamW, LayerNorm, softmax, the residual stream, the
/// loss and every sum are f32 in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Products of f32, activations kept in f32.
    #[default]
    F32,
    /// Products of bfloat16, activations kept in bfloat16: half the memory, and twice the speed where the
    /// processor multiplies it.
    Bf16,
}

impl Precision {
    /// Checks that a model can be computed in this format: bfloat16 numbers are multiplied in pairs.
    ///
    /// # Errors
    /// If the heads are of odd size.
    pub fn check(self, config: &ModelConfig) -> Result<()> {
        if self == Self::Bf16 && !is_even(config.n_emb, config.n_heads) {
            let head_size = config.head_size();
            let reason =
                format!("bf16 needs heads of even size, not {head_size}: take f32 or another `n_emb`");
            return Err(Error::setting("precision", reason));
        }
        Ok(())
    }
}

named_enum!(Precision, "precision", { F32 => "f32", Bf16 => "bf16" });

/// A precision, or whichever is the faster.
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

impl PrecisionChoice {
    /// The precision that a model of this width and number of heads gets. `Auto` takes bf16 if the processor multiplies it
    /// faster than f32, which is measured, and heads are of even size.
    pub fn resolve(self, n_emb: usize, n_heads: usize) -> Precision {
        match self {
            Self::F32 => Precision::F32,
            Self::Bf16 => Precision::Bf16,
            Self::Auto if bf16_speedup() > 1.0 && is_even(n_emb, n_heads) => Precision::Bf16,
            Self::Auto => Precision::F32,
        }
    }

    /// Why [`PrecisionChoice::resolve`] takes what it takes for `Auto`; nothing if there was no choice.
    ///
    /// ```
    /// use folio::model::PrecisionChoice;
    /// assert_eq!(PrecisionChoice::F32.reason(384, 6), None);
    /// assert!(PrecisionChoice::Auto.reason(384, 6).is_some());
    /// ```
    pub fn reason(self, n_emb: usize, n_heads: usize) -> Option<String> {
        if self != Self::Auto {
            return None;
        }
        let (precision, isa) = (self.resolve(n_emb, n_heads).name(), Isa::detected());
        Some(if !isa.multiplies_bf16() {
            format!("{precision}: the instruction set in use ({}) has no bf16 arithmetic", isa.name())
        } else if !is_even(n_emb, n_heads) {
            format!("{precision}: bf16 needs heads of even size, not {}", n_emb / n_heads.max(1))
        } else {
            let speedup = bf16_speedup();
            format!("{precision}: {} multiplies bf16 at {speedup:.1} times the speed of f32", isa.name())
        })
    }
}

/// Whether heads are of even size.
fn is_even(n_emb: usize, n_heads: usize) -> bool {
    (n_emb / n_heads.max(1)).is_multiple_of(2)
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
