//! The sizes and the variations of a GPT-2.

use folio_kernels::gelu::Gelu;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::named_enum;

/// The function between the two layers of the MLP, with the names of Hugging Face's `activation_function`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// GELU in its tanh form, as in the published GPT-2.
    #[default]
    GeluNew,
    /// GELU as it is defined, with erf: PyTorch's `nn.GELU()`, as in nanoGPT.
    Gelu,
}

named_enum!(Activation, "activation", { GeluNew => "gelu_new", Gelu => "gelu" });

impl Activation {
    /// The kernels' name for it.
    pub fn kernel(self) -> Gelu {
        match self {
            Self::GeluNew => Gelu::Tanh,
            Self::Gelu => Gelu::Erf,
        }
    }
}

/// The sizes of a GPT-2, with the names of the original project's `model_hyperparameters.json`, and its variations, with
/// Hugging Face's names. The variations are written only where they differ from the published GPT-2.
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
    /// The width of the MLP, if it is not 4 C: see [`ModelConfig::inner`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_inner: Option<usize>,
    /// The activation function of the MLP.
    #[serde(default, skip_serializing_if = "is_default")]
    pub activation: Activation,
    /// Added to the variance in every LayerNorm.
    #[serde(default = "gpt2_epsilon", skip_serializing_if = "is_gpt2_epsilon")]
    pub layer_norm_epsilon: f32,
    /// Whether the head shares the weights of the token embedding. If not, `lm_head.weight` is the last parameter.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub tie_word_embeddings: bool,
}

fn is_default(activation: &Activation) -> bool {
    *activation == Activation::default()
}

fn gpt2_epsilon() -> f32 {
    ModelConfig::GPT2.layer_norm_epsilon
}

fn is_gpt2_epsilon(epsilon: &f32) -> bool {
    *epsilon == gpt2_epsilon()
}

fn yes() -> bool {
    true
}

fn is_yes(value: &bool) -> bool {
    *value
}

impl ModelConfig {
    /// The published GPT-2 with 124M parameters.
    pub const GPT2: Self = Self {
        vocab_size: 50_257,
        n_blocks: 12,
        n_emb: 768,
        n_heads: 12,
        block_size: 1024,
        dropout: 0.1,
        n_inner: None,
        activation: Activation::GeluNew,
        layer_norm_epsilon: 1e-5,
        tie_word_embeddings: true,
    };

    /// Larger sizes are rejected as mistakes or damage. GPT-2 XL has 1,600 channels, 48 blocks and 1,024 tokens.
    pub(crate) const LARGEST: usize = 1 << 20;

    /// Models with more parameters are rejected too: at sixteen bytes per parameter they need 64 GiB.
    const MOST_PARAMETERS: u128 = 1 << 32;

    /// D, the channels of one head.
    pub fn head_size(&self) -> usize {
        self.n_emb / self.n_heads
    }

    /// I, the width of the MLP: 4 C unless `n_inner` says otherwise.
    pub fn inner(&self) -> usize {
        self.n_inner.unwrap_or(self.n_emb.saturating_mul(4))
    }

    /// What a format that multiplies in pairs, such as bfloat16, needs and this model lacks. The sizes may not have been
    /// validated.
    pub(crate) fn odd_size(&self) -> Option<String> {
        let (head_size, inner) = (self.n_emb / self.n_heads.max(1), self.inner());
        if !head_size.is_multiple_of(2) {
            return Some(format!("heads of even size, not {head_size}"));
        }
        (!inner.is_multiple_of(2)).then(|| format!("an MLP of even width, not {inner}"))
    }

    /// Whether this is the published GPT-2's architecture, which every version of folio computes.
    pub(crate) fn is_plain(&self) -> bool {
        let sizes = Self { n_inner: self.n_inner.filter(|&inner| inner != 4 * self.n_emb), ..*self };
        let Self { vocab_size, n_blocks, n_emb, n_heads, block_size, dropout, .. } = sizes;
        sizes == Self { vocab_size, n_blocks, n_emb, n_heads, block_size, dropout, ..Self::GPT2 }
    }

    /// The elements of all matrices: embeddings, linear weights and a separate head.
    pub(crate) fn matrix_elements(&self) -> u128 {
        let [v, l, c, t, i] = [self.vocab_size, self.n_blocks, self.n_emb, self.block_size, self.inner()]
            .map(|size| size as u128);
        let embeddings = if self.tie_word_embeddings { v + t } else { 2 * v + t };
        embeddings * c + l * (4 * c * c + 2 * c * i)
    }

    /// The number of parameters: matrices, biases and LayerNorms.
    pub fn parameters(&self) -> u64 {
        let [l, c, i] = [self.n_blocks, self.n_emb, self.inner()].map(|size| size as u128);
        u64::try_from(self.matrix_elements() + l * (9 * c + i) + 2 * c).unwrap_or(u64::MAX)
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
        let inner = self.n_inner.map(|inner| ("n_inner", inner));
        for (name, size) in sizes.into_iter().chain(inner) {
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
        if !(f32::MIN_POSITIVE..=1.0).contains(&self.layer_norm_epsilon) {
            let reason = format!(
                "`layer_norm_epsilon {}` is out of range; use a number from 1.2e-38 to 1",
                self.layer_norm_epsilon
            );
            return Err(Error::setting("layer_norm_epsilon", reason));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: &str = r#"{"vocab_size":5,"n_blocks":1,"n_emb":8,"n_heads":2,"block_size":4,"dropout":0.0}"#;

    #[test]
    fn a_plain_gpt_2_is_written_as_before_there_were_variations() {
        let plain: ModelConfig = serde_json::from_str(SIZES).unwrap();
        assert!(plain.is_plain() && plain.inner() == 32);
        assert_eq!(serde_json::to_string(&plain).unwrap(), SIZES);
        let varied = ModelConfig {
            n_inner: Some(7),
            activation: Activation::Gelu,
            layer_norm_epsilon: 1e-12,
            tie_word_embeddings: false,
            ..plain
        };
        let text = serde_json::to_string(&varied).unwrap();
        let added =
            r#","n_inner":7,"activation":"gelu","layer_norm_epsilon":1e-12,"tie_word_embeddings":false}"#;
        assert_eq!(text, SIZES.replace('}', added));
        assert_eq!(serde_json::from_str::<ModelConfig>(&text).unwrap(), varied);
        for one in [
            ModelConfig { n_inner: varied.n_inner, ..plain },
            ModelConfig { activation: varied.activation, ..plain },
            ModelConfig { layer_norm_epsilon: varied.layer_norm_epsilon, ..plain },
            ModelConfig { tie_word_embeddings: false, ..plain },
        ] {
            assert!(!one.is_plain(), "{one:?}");
        }
        assert!(ModelConfig { n_inner: Some(32), ..plain }.is_plain(), "4 C as given");
    }

    #[test]
    fn variations_are_validated() {
        let refused = |config: ModelConfig| config.validate().unwrap_err().to_string();
        let default = ModelConfig::GPT2;
        assert!(default.validate().is_ok());
        for n_inner in [0, 1 << 21] {
            let message = refused(ModelConfig { n_inner: Some(n_inner), ..default });
            assert!(message.starts_with(&format!("`n_inner {n_inner}` is out of range")), "{message}");
        }
        for layer_norm_epsilon in [0.0, -1e-5, f32::NAN, f32::INFINITY, 1e-39, 2.0] {
            let message = refused(ModelConfig { layer_norm_epsilon, ..default });
            assert!(message.starts_with("`layer_norm_epsilon "), "{message}");
        }
    }

    #[test]
    fn every_parameter_is_counted() {
        let plain: ModelConfig = serde_json::from_str(SIZES).unwrap();
        for config in [plain, ModelConfig { n_inner: Some(7), tie_word_embeddings: false, ..plain }] {
            let specs = crate::model::parameters::specs(&config);
            assert_eq!(config.parameters(), specs.last().unwrap().range.end as u64, "{config:?}");
            let matrices = specs.iter().filter(|spec| spec.is_matrix()).map(|spec| spec.range.len() as u128);
            assert_eq!(config.matrix_elements(), matrices.sum::<u128>(), "{config:?}");
        }
    }
}
