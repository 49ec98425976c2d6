//! Trained models as files of other programs: Hugging Face's transformers ([`hf`]), llama.cpp ([`gguf`]) and ONNX ([`onnx`]).
//!
//! Writers convert row by row: beside the weights they hold one row, or for Hugging Face's format one tensor. A file appears
//! under its name once it is complete; a file that was there before is replaced.
//!
//! ```
//! use folio::export::{TrainedModel, WeightType, gguf};
//! use folio::model::{ModelConfig, Parameters};
//! use folio::rng::{Rng, Stream};
//! use folio::tokenizer::Tokenizer;
//!
//! let tokenizer = Tokenizer::chars("to be or not to be");
//! let sizes = ModelConfig { vocab_size: 7, n_blocks: 1, n_emb: 8, n_heads: 2, block_size: 16, ..ModelConfig::GPT2 };
//! let parameters = Parameters::random(&sizes, &mut Rng::new(1, Stream::Init));
//! let model = TrainedModel { name: "hamlet", config: sizes, parameters: &parameters, tokenizer: &tokenizer };
//! let directory = tempfile::tempdir()?;
//! let path = directory.path().join("hamlet.gguf");
//! gguf::write(&model, WeightType::F16, &path)?;
//! assert_eq!(gguf::Gguf::read(&path)?.tensor("token_embd.weight").unwrap().shape, [8, 8]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::error::{Error, Result};
use crate::model::{ModelConfig, ParameterSpec, Parameters};
use crate::tokenizer::Tokenizer;

pub mod gguf;
pub mod hf;
#[cfg(feature = "onnx")]
pub mod onnx;
mod weight_type;

pub use weight_type::WeightType;

/// A model to export.
#[derive(Clone, Copy, Debug)]
pub struct TrainedModel<'a> {
    /// Its name in files that have a place for one.
    pub name: &'a str,
    /// Its sizes.
    pub config: ModelConfig,
    /// Its weights.
    pub parameters: &'a Parameters,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
}

impl<'a> TrainedModel<'a> {
    /// The parameter that holds the head (V, C).
    fn head(&self) -> &'static str {
        if self.config.tie_word_embeddings { "wte.weight" } else { "lm_head.weight" }
    }

    /// The values of the parameter `name`, which every model has.
    fn values(&self, name: &str) -> &'a [f32] {
        let spec = self.parameters.specs().iter().find(|spec| spec.name == name);
        self.parameters.tensor(spec.unwrap_or_else(|| panic!("no parameter {name}")))
    }
}

/// The error for a value that a type cannot hold.
fn not_held(spec: &ParameterSpec, value: f32, weight_type: WeightType) -> Error {
    let way_out = match weight_type {
        _ if !value.is_finite() => "the model is damaged: take another checkpoint",
        WeightType::F16 | WeightType::Q8_0 => "use the type bf16 or f32",
        WeightType::F32 | WeightType::Bf16 => "use the type f32",
    };
    refused(format!("{} has the value {value}, which {weight_type} cannot hold; {way_out}", spec.name))
}

fn refused(reason: String) -> Error {
    Error::Export { reason }
}

/// Checks that the tokenizer is the model's.
fn check_sizes(model: &TrainedModel<'_>) -> Result<()> {
    let (tokens, rows) = (model.tokenizer.vocab_size(), model.config.vocab_size);
    if tokens == rows {
        return Ok(());
    }
    Err(refused(format!(
        "the tokenizer has {tokens} tokens, but the model {rows}: they do not belong together"
    )))
}
