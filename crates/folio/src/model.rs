//! GPT-2: its configuration, its parameters, and the backends that train it.
//!
//! This module knows nothing of files, tokenizers and the optimizer's settings. Radford et al. 2019, "Language Models are
//! Unsupervised Multitask Learners": pre-LayerNorm transformer blocks (Vaswani et al. 2017), learned positions, GELU, and a
//! head tied to the token embedding.
//!
//! ```
//! use folio::model::{Backend, Batch, CpuBackend, ModelConfig, Precision};
//! use folio::rng::{Rng, Stream};
//!
//! let config =
//!     ModelConfig { vocab_size: 5, n_blocks: 1, n_emb: 8, n_heads: 2, block_size: 4, dropout: 0.0, ..ModelConfig::GPT2 };
//! let mut model = CpuBackend::new(config, Precision::F32, &mut Rng::new(1, Stream::Init));
//! let batch = Batch { inputs: &[0, 1, 2], targets: &[1, 2, 3], time: 3 };
//! let loss = model.loss_and_gradients(batch, 0);
//! // Before training, all five tokens are about equally likely.
//! assert!((loss - 5f32.ln()).abs() < 0.1);
//! ```

mod backend;
mod config;
mod cpu;
mod frozen;
mod growing;
mod inference;
mod muon;
mod packed_matrix;
mod parameters;
mod precision;
mod weight_format;

pub use backend::{AdamWUpdate, Backend, Batch, MicroBatch, Moments, StepBatch, Update, tree_split};
pub use config::{Activation, ModelConfig};
pub use cpu::{CpuBackend, precision_reason, resolve_precision};
pub use folio_kernels::head::SoftTargets;
pub use frozen::Frozen;
pub(crate) use growing::AddedTokens;
pub use inference::{Cache, CachedSequence, InferenceModel, PASS_TOKENS, Workspace};
pub use muon::MuonUpdate;
pub use parameters::{ParameterSpec, Parameters};
pub use precision::{Precision, PrecisionChoice};
pub use weight_format::WeightFormat;
