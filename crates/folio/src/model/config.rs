//! The sizes of a GPT-2.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The sizes of a GPT-2, with the names of the original project's `model_hyperparameters.json`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// V, the size of the vocabulary.
    pub vocab_size: usize,
    /// L, the number of transformer blocks.
    pub n_blocks: usize,
    /// C, the width of the residual stream.
    pub n_emb: usize,
    /// H, the attention heads per block.
    pub n_heads: usize,
    /// The longest context, in tokens.
    pub block_size: usize,
    /// The probability of dropout in training, in [0, 1).
    pub dropout: f32,
}

impl ModelConfig {
    /// Larger sizes are rejected as mistakes or damage. GPT-2 XL has 1,600 channels, 48 blocks and 1,024 tokens.
    pub(crate) const LARGEST: usize = 1 << 20;

    /// Models with more parameters are rejected too: at sixteen bytes per parameter they need 64 GiB.
    const MOST_PARAMETERS: u128 = 1 << 32;

    /// D, the channels of one head.
    pub fn head_size(&self) -> usize {
        self.n_emb / self.n_heads
    }

    /// The elements of all matrices: embeddings and linear weights.
    pub(crate) fn matrix_elements(&self) -> u128 {
        let [v, l, c, t] =
            [self.vocab_size, self.n_blocks, self.n_emb, self.block_size].map(|size| size as u128);
        (v + t) * c + 12 * l * c * c
    }

    /// The number of parameters: matrices, biases and LayerNorms.
    pub fn parameters(&self) -> u64 {
        let [l, c] = [self.n_blocks, self.n_emb].map(|size| size as u128);
        u64::try_from(self.matrix_elements() + 13 * l * c + 2 * c).unwrap_or(u64::MAX)
    }

    /// Checks each size and their combination.
    ///
    /// # Errors
    /// [`Error::Setting`] with the setting to change.
    pub fn validate(&self) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("n_blocks", self.n_blocks),
            ("n_emb", self.n_emb),
            ("n_heads", self.n_heads),
            ("block_size", self.block_size),
        ];
        for (name, size) in sizes {
            if size == 0 || size > Self::LARGEST {
                let reason =
                    format!("`{name} {size}` is out of range; use an integer from 1 to {}", Self::LARGEST);
                return Err(Error::setting(name, reason));
            }
        }
        let parameters = self.matrix_elements();
        if parameters > Self::MOST_PARAMETERS {
            let most = Self::MOST_PARAMETERS;
            let reason = format!(
                "a width of {} in {} blocks makes a model of {parameters} parameters, more than {most}: give less",
                self.n_emb, self.n_blocks
            );
            // Blames the depth if a single block would be small enough.
            let one_block = Self { n_blocks: 1, ..*self };
            let setting = if one_block.matrix_elements() > most { "n_emb" } else { "n_blocks" };
            return Err(Error::setting(setting, reason));
        }
        if !self.n_emb.is_multiple_of(self.n_heads) {
            let (width, heads) = (self.n_emb, self.n_heads);
            let below = width / heads * heads;
            let near = if below == 0 { heads.to_string() } else { format!("{below} or {}", below + heads) };
            let reason = format!("`n_emb {width}` is not divisible by `n_heads {heads}`; use {near}");
            return Err(Error::setting("n_emb", reason));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let reason =
                format!("`dropout {}` is out of range; use a number from 0 to less than 1", self.dropout);
            return Err(Error::setting("dropout", reason));
        }
        Ok(())
    }
}
