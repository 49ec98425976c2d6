//! The files that transformers needs to load a checkpoint with `AutoModelForCausalLM`, `AutoTokenizer` and
//! `pipeline("text-generation", DIRECTORY)`.

use std::path::Path;

use serde_json::{Value, json};

use crate::error::Result;
use crate::files::write_json;
use crate::model::ModelConfig;
use crate::tokenizer::{CONFIG_FILE as TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, Tokenizer};

pub(crate) const CONFIG_FILE: &str = "config.json";
const GENERATION_FILE: &str = "generation_config.json";

/// The files that [`write`] writes.
pub(crate) const FILES: [&str; 4] = [CONFIG_FILE, GENERATION_FILE, TOKENIZER_FILE, TOKENIZER_CONFIG_FILE];

/// Writes [`FILES`] into a checkpoint's directory.
pub(crate) fn write(directory: &Path, config: &ModelConfig, tokenizer: &Tokenizer) -> Result<()> {
    write_json(&directory.join(CONFIG_FILE), &model(config, tokenizer))?;
    write_json(&directory.join(GENERATION_FILE), &generation(config, tokenizer))?;
    tokenizer.write(&directory.join(TOKENIZER_FILE))?;
    tokenizer.write_config(&directory.join(TOKENIZER_CONFIG_FILE), Some(config.block_size))
}

/// `config.json`, the model's configuration.
fn model(config: &ModelConfig, tokenizer: &Tokenizer) -> Value {
    json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": config.activation,
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_embd": config.n_emb,
        "n_layer": config.n_blocks,
        "n_head": config.n_heads,
        "n_inner": config.n_inner,
        "layer_norm_epsilon": decimal(config.layer_norm_epsilon),
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": tokenizer.begin_token(),
        "eos_token_id": tokenizer.end_token(),
        "torch_dtype": "float32",
    })
}

/// The number whose shortest decimal is that of `x`: 1e-6, and not 9.999999974752427e-7.
fn decimal(x: f32) -> f64 {
    x.to_string().parse().expect("a number was just written")
}

/// `generation_config.json`. It sets a length, because the default of 256 tokens exceeds the context of small models, and
/// transformers then fails with an index error.
fn generation(config: &ModelConfig, tokenizer: &Tokenizer) -> Value {
    /// The value for "not set".
    const UNSET: usize = 20;
    let max_length = if config.block_size == UNSET { UNSET - 1 } else { config.block_size };
    json!({
        "bos_token_id": tokenizer.begin_token(),
        "eos_token_id": tokenizer.end_token(),
        "pad_token_id": tokenizer.end_token(),
        "max_length": max_length,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Activation;

    #[test]
    fn the_configuration_names_every_variation() {
        let tokenizer = Tokenizer::chars("abc");
        let plain = ModelConfig { vocab_size: 3, ..ModelConfig::GPT2 };
        let varied = ModelConfig {
            n_inner: Some(7),
            activation: Activation::Gelu,
            layer_norm_epsilon: 1e-6,
            tie_word_embeddings: false,
            ..plain
        };
        let keys = ["n_inner", "activation_function", "layer_norm_epsilon", "tie_word_embeddings"];
        let written = |config: &ModelConfig| {
            let json = model(config, &tokenizer);
            keys.map(|key| json[key].to_string()).join(" ")
        };
        assert_eq!(written(&plain), r#"null "gelu_new" 0.00001 true"#);
        assert_eq!(written(&varied), r#"7 "gelu" 1e-6 false"#);
        let smallest = ModelConfig { layer_norm_epsilon: 1e-12, ..varied };
        assert_eq!(written(&smallest), r#"7 "gelu" 1e-12 false"#);
    }
}
