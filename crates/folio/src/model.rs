//! GPT-2: its configuration, its parameters, its forward and its backward pass.
//!
//! Knows no files, tokenizers or optimizers. Radford et al. 2019, "Language Models are Unsupervised Multitask
//! Learners": pre-LayerNorm transformer blocks (Vaswani et al. 2017), learned positions, GELU, a head tied to
//! the token embedding.
//!
//! ```
//! use folio::model::{Batch, Gpt2, ModelConfig, Precision};
//! use folio::rng::{Rng, Stream};
//!
//! let config = ModelConfig { vocab_size: 5, n_blocks: 1, n_emb: 8, n_heads: 2, block_size: 4, dropout: 0.0 };
//! let mut model = Gpt2::new(config, Precision::F32, &mut Rng::new(1, Stream::Init));
//! let batch = Batch { inputs: &[0, 1, 2], targets: &[1, 2, 3], time: 3 };
//! let loss = model.train_step(batch, 0);
//! // An untrained model guesses evenly.
//! assert!((loss - 5f32.ln()).abs() < 0.1);
//! ```

mod activations;
mod config;
mod gpt2;
mod growing;
mod packed;
mod parameters;
mod pass;
mod precision;
mod predictor;
mod weight_format;

pub use config::ModelConfig;
pub use gpt2::{Batch, Gpt2};
pub(crate) use growing::AddedTokens;
pub use parameters::{ParameterSpec, Parameters};
pub use precision::{Precision, PrecisionChoice};
pub use predictor::{Cache, PASS_TOKENS, Predictor, Text, Workspace};
pub use weight_format::WeightFormat;
