//! What the files say of a model beside its weights: the `config.json` of transformers and minGPT, and the `model_args` of
//! nanoGPT. What folio cannot compute is refused by name.

use std::path::Path;

use serde_json::{Map, Value};

use super::Origin;
use super::pickle::{Node, Pickle};
use super::tensors::plain;
use crate::model::Activation;

/// What is known of a model. Sizes that are not known are those of its tensors.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Description {
    pub(super) origin: Origin,
    pub(super) vocab_size: Option<usize>,
    pub(super) block_size: Option<usize>,
    pub(super) n_emb: Option<usize>,
    pub(super) n_blocks: Option<usize>,
    pub(super) n_heads: Option<usize>,
    pub(super) n_inner: Option<usize>,
    pub(super) activation: Activation,
    pub(super) layer_norm_epsilon: f64,
    pub(super) dropout: f64,
    /// Whether the head shares the weights of the token embedding; unknown if either may be.
    pub(super) tied: Option<bool>,
    /// Whether there are biases; unknown if there may be none.
    pub(super) biases: Option<bool>,
}

type Read<T> = Result<T, String>;

/// The sizes that minGPT knows by name (`mingpt/model.py`): the heads of each.
const MINGPT_HEADS: [(&str, usize); 9] = [
    ("openai-gpt", 12),
    ("gpt2", 12),
    ("gpt2-medium", 16),
    ("gpt2-large", 20),
    ("gpt2-xl", 25),
    ("gopher-44m", 16),
    ("gpt-mini", 6),
    ("gpt-micro", 4),
    ("gpt-nano", 3),
];

impl Description {
    /// What is true of minGPT's models without any file: GELU in its tanh form and PyTorch's epsilon.
    pub(super) fn of_mingpt() -> Self {
        Self {
            origin: Origin::MinGpt,
            vocab_size: None,
            block_size: None,
            n_emb: None,
            n_blocks: None,
            n_heads: None,
            n_inner: None,
            activation: Activation::GeluNew,
            layer_norm_epsilon: 1e-5,
            dropout: 0.1,
            tied: None,
            biases: None,
        }
    }

    /// Reads a `config.json`. The error completes the sentence "FILE ...".
    pub(super) fn of_json(json: &Value) -> Read<Self> {
        match (json["model_type"].as_str(), &json["model"]) {
            (Some("gpt2"), _) => of_transformers(json),
            (Some(other), _) => Err(format!(
                "describes a model of type '{}', which folio does not have: it reads GPT-2s (model_type gpt2)",
                plain(other)
            )),
            (None, Value::Object(model)) => of_mingpt_json(model),
            (None, _) => {
                Err("has no model_type: give the config.json that transformers saves with a model".to_owned())
            }
        }
    }

    /// Reads the `model_args` of a checkpoint of nanoGPT.
    pub(super) fn of_nanogpt(pickle: &Pickle, args: &Node) -> Read<Self> {
        let size = |name: &str| match pickle.get(args, name) {
            Some(Node::Int(size)) if *size >= 0 => Ok(Some(*size as usize)),
            None => Ok(None),
            _ => Err(format!("has a model_args.{name} that is not a whole number")),
        };
        let dropout = match pickle.get(args, "dropout") {
            Some(Node::Float(dropout)) => *dropout,
            _ => 0.0,
        };
        let Some(n_heads) = size("n_head")? else {
            return Err(
                "has no model_args.n_head, which nanoGPT saves: it is not a checkpoint of nanoGPT".to_owned()
            );
        };
        Ok(Self {
            origin: Origin::NanoGpt,
            vocab_size: size("vocab_size")?,
            block_size: size("block_size")?,
            n_emb: size("n_embd")?,
            n_blocks: size("n_layer")?,
            n_heads: Some(n_heads),
            // nn.GELU(), with erf. The epsilon is PyTorch's default.
            activation: Activation::Gelu,
            dropout,
            tied: Some(true),
            biases: match pickle.get(args, "bias") {
                Some(Node::Bool(biases)) => Some(*biases),
                _ => None,
            },
            ..Self::of_mingpt()
        })
    }
}

/// A size under the first of its names that is there.
fn size(json: &Map<String, Value>, names: &[&str]) -> Read<Option<usize>> {
    let Some((name, value)) = names.iter().find_map(|name| json.get_key_value(*name)) else {
        return Ok(None);
    };
    match value {
        Value::Null => Ok(None),
        value => match value.as_u64().and_then(|size| usize::try_from(size).ok()) {
            Some(size) => Ok(Some(size)),
            None => Err(format!("has {name} = {}, which must be a whole number", plain(&value.to_string()))),
        },
    }
}

fn number(json: &Map<String, Value>, name: &str, otherwise: f64) -> Read<f64> {
    match json.get(name) {
        None | Some(Value::Null) => Ok(otherwise),
        Some(value) => value
            .as_f64()
            .ok_or_else(|| format!("has {name} = {}, which must be a number", plain(&value.to_string()))),
    }
}

/// Switches of transformers' GPT-2 that change what is computed, each with the value that folio computes. (The remaining
/// one, reorder_and_upcast_attn, only says in which precision attention is computed.)
const SWITCHES: [(&str, bool); 4] = [
    ("scale_attn_weights", true),
    ("scale_attn_by_inverse_layer_idx", false),
    ("add_cross_attention", false),
    ("is_encoder_decoder", false),
];

/// Other fields that folio does not know how to follow.
const UNSUPPORTED: [&str; 2] = ["quantization_config", "pruned_heads"];

fn of_transformers(json: &Value) -> Read<Description> {
    let fields = json.as_object().expect("it has a field");
    let is_empty = |value: &Value| value.is_null() || value.as_object().is_some_and(Map::is_empty);
    for (name, wanted) in SWITCHES {
        let value = fields.get(name).filter(|value| !value.is_null() && **value != wanted);
        if let Some(value) = value {
            let value = plain(&value.to_string());
            return Err(format!("has {name} = {value}, which folio does not compute: it needs {wanted}"));
        }
    }
    if let Some(name) =
        UNSUPPORTED.iter().find(|name| fields.get(**name).is_some_and(|value| !is_empty(value)))
    {
        return Err(format!("has a {name}, which folio does not read: give the model without it"));
    }
    let known = ["GPT2LMHeadModel", "GPT2Model"];
    let architectures = json["architectures"].as_array().into_iter().flatten().filter_map(Value::as_str);
    if let Some(other) = architectures.into_iter().find(|name| !known.contains(name)) {
        let other = plain(other);
        return Err(format!(
            "describes the architecture {other}, not a language model: folio reads {}",
            known[0]
        ));
    }
    let activation = match fields.get("activation_function").map(|name| name.as_str().unwrap_or_default()) {
        // The last two are the same formula under other names (transformers' activations.py).
        None | Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Activation::GeluNew,
        Some("gelu" | "gelu_python") => Activation::Gelu,
        Some(other) => {
            let other = plain(other);
            return Err(format!("has the activation_function '{other}': folio has gelu_new and gelu"));
        }
    };
    // What GPT2Config leaves out has its default.
    let sized = |names: &[&str], otherwise| Ok::<_, String>(Some(size(fields, names)?.unwrap_or(otherwise)));
    Ok(Description {
        origin: Origin::Transformers,
        vocab_size: sized(&["vocab_size"], 50_257)?,
        block_size: sized(&["n_positions", "max_position_embeddings"], 1024)?,
        n_emb: sized(&["n_embd", "hidden_size"], 768)?,
        n_blocks: sized(&["n_layer", "num_hidden_layers"], 12)?,
        n_heads: sized(&["n_head", "num_attention_heads"], 12)?,
        n_inner: size(fields, &["n_inner"])?,
        activation,
        layer_norm_epsilon: number(fields, "layer_norm_epsilon", 1e-5)?,
        dropout: number(fields, "resid_pdrop", 0.1)?,
        tied: Some(json["tie_word_embeddings"].as_bool().unwrap_or(true)),
        biases: Some(true),
    })
}

fn of_mingpt_json(model: &Map<String, Value>) -> Read<Description> {
    let named = model.get("model_type").and_then(Value::as_str);
    let by_name = MINGPT_HEADS.iter().find(|(name, _)| named == Some(name)).map(|(_, heads)| *heads);
    Ok(Description {
        n_heads: size(model, &["n_head"])?.or(by_name),
        dropout: number(model, "resid_pdrop", 0.1)?,
        ..Description::of_mingpt()
    })
}

/// What describes a model, for messages.
pub(super) fn described_by(origin: Origin, config: &Path) -> String {
    match origin {
        Origin::Transformers => config.file_name().unwrap_or_default().display().to_string(),
        Origin::NanoGpt => "its model_args".to_owned(),
        Origin::MinGpt => "its other tensors".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn gpt2(field: &str, value: Value) -> Read<Description> {
        let mut json = json!({ "model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 3, "n_positions": 16, "vocab_size": 5 });
        json[field] = value;
        Description::of_json(&json)
    }

    #[test]
    fn plain_fields_are_accepted() {
        let plain = gpt2("transformers_version", "5.0.0".into()).unwrap();
        assert_eq!((plain.vocab_size, plain.block_size, plain.n_emb), (Some(5), Some(16), Some(8)));
        assert_eq!((plain.n_blocks, plain.n_heads, plain.tied), (Some(3), Some(2), Some(true)));
        for (field, value) in [
            ("scale_attn_weights", json!(true)),
            ("scale_attn_by_inverse_layer_idx", json!(false)),
            ("reorder_and_upcast_attn", json!(true)),
            ("add_cross_attention", json!(false)),
            ("n_inner", Value::Null),
            ("architectures", json!(["GPT2Model"])),
            ("activation_function", json!("gelu_pytorch_tanh")),
            ("pruned_heads", json!({})),
        ] {
            assert_eq!(gpt2(field, value), Ok(plain.clone()), "{field}");
        }
        assert_eq!(gpt2("n_inner", json!(20)).unwrap().n_inner, Some(20));
        assert_eq!(gpt2("activation_function", json!("gelu")).unwrap().activation, Activation::Gelu);
        assert_eq!(gpt2("layer_norm_epsilon", json!(1e-6)).unwrap().layer_norm_epsilon, 1e-6);
        assert_eq!(gpt2("tie_word_embeddings", json!(false)).unwrap().tied, Some(false));
    }

    #[test]
    fn what_folio_does_not_compute_is_refused_by_name() {
        for (field, value, part) in [
            ("model_type", json!("llama"), "a model of type 'llama'"),
            ("model_type", json!("a\nb"), "a model of type 'a?b'"),
            ("scale_attn_weights", json!(false), "has scale_attn_weights = false"),
            ("scale_attn_by_inverse_layer_idx", json!(true), "has scale_attn_by_inverse_layer_idx = true"),
            ("add_cross_attention", json!(true), "has add_cross_attention = true"),
            ("activation_function", json!("relu"), "the activation_function 'relu'"),
            ("activation_function", json!(7), "the activation_function ''"),
            (
                "architectures",
                json!(["GPT2ForSequenceClassification"]),
                "the architecture GPT2ForSequenceClassification",
            ),
            ("quantization_config", json!({ "bits": 4 }), "a quantization_config"),
            ("n_embd", json!(-8), "has n_embd = -8, which must be a whole number"),
            ("n_head", json!("two"), "has n_head = \"two\""),
            ("layer_norm_epsilon", json!([]), "has layer_norm_epsilon = []"),
        ] {
            let reason = gpt2(field, value).unwrap_err();
            assert!(reason.contains(part) && !reason.contains('\n'), "{field}: {reason}");
        }
        let reason = Description::of_json(&json!({ "n_embd": 8 })).unwrap_err();
        assert!(reason.starts_with("has no model_type"), "{reason}");
    }

    #[test]
    fn mingpt_knows_its_heads_by_name_or_number() {
        let heads = |model: Value| Description::of_json(&json!({ "model": model })).unwrap().n_heads;
        assert_eq!(heads(json!({ "model_type": "gpt-nano", "n_head": null })), Some(3));
        assert_eq!(heads(json!({ "model_type": null, "n_head": 5 })), Some(5));
        assert_eq!(heads(json!({ "model_type": "my-gpt" })), None);
    }
}
