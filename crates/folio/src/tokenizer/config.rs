//! `tokenizer_config.json`, the companion of `tokenizer.json` in transformers: it names the special tokens that begin and
//! end a text.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::json::{read_capped, spelling};
use super::{TOKENIZER_FILE, Tokenizer};
use crate::error::{Error, Result};

/// The file's name.
pub(crate) const CONFIG_FILE: &str = "tokenizer_config.json";

/// Names of end tokens in published vocabularies, for files without a configuration.
const ENDS: [&str; 5] = [super::END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[EOS]"];

/// Names of begin tokens. GPT-2 uses one token for both.
const BEGINNINGS: [&str; 6] = [super::END_OF_TEXT, "<|begin_of_text|>", "<s>", "<bos>", "[BOS]", "<|bos|>"];

/// The tokens that begin and end a text, if any. A configuration may name ordinary tokens, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Borders {
    pub(super) begin: Option<u32>,
    pub(super) end: Option<u32>,
}

impl Borders {
    /// Recognizes special tokens by their names.
    pub(super) fn of_names(id_of: impl Fn(&str) -> Option<u32>) -> Self {
        let find = |names: &[&str]| names.iter().find_map(|name| id_of(name));
        Self { begin: find(&BEGINNINGS), end: find(&ENDS) }
    }

    /// Reads the configuration next to a `tokenizer.json`. Files with other names have none.
    pub(super) fn read_beside(self, path: &Path, id_of: impl Fn(&str) -> Option<u32>) -> Result<Self> {
        if path.file_name().is_none_or(|name| name != TOKENIZER_FILE) {
            return Ok(self);
        }
        let path = path.with_file_name(CONFIG_FILE);
        let Some(bytes) = read_capped(&path)? else { return Ok(self) };
        let refused = |reason: String| Error::Tokenizer { reason: format!("{} {reason}", path.display()) };
        let json: Value =
            serde_json::from_slice(&bytes).map_err(|error| refused(format!("is not valid JSON: {error}")))?;
        if !json.is_object() {
            return Err(refused(format!(
                "is not a JSON object; delete it, or save the {TOKENIZER_FILE} again"
            )));
        }
        let token = |field: &str, otherwise| {
            let named = match json.get(field) {
                None => return Ok(otherwise),
                Some(Value::Null) => return Ok(None),
                Some(named) => named,
            };
            // A name, or an object with all options of the token.
            let Some(name) = named.as_str().or_else(|| named["content"].as_str()) else {
                return Err(refused(format!(
                    "has {named} in '{field}', which must be a token: its text, an object with its text in 'content', or \
                     null"
                )));
            };
            // transformers treats an empty name as none.
            if name.is_empty() {
                return Ok(None);
            }
            id_of(name).map(Some).ok_or_else(|| {
                refused(format!(
                    "names the {field} {name:?}, which is not among the tokens of {TOKENIZER_FILE}: add it to its \
                     'added_tokens', or set {field} to null"
                ))
            })
        };
        Ok(Self { begin: token("bos_token", self.begin)?, end: token("eos_token", self.end)? })
    }
}

/// The file for a tokenizer. `context` is the context length of its model.
pub(super) fn of(tokenizer: &Tokenizer, context: Option<usize>) -> Value {
    let name = |id: Option<u32>| id.map(|id| spelling(&tokenizer.model, id));
    let mut config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": name(tokenizer.begin_token()),
        "eos_token": name(tokenizer.end_token()),
        "clean_up_tokenization_spaces": false,
    });
    if let Some(context) = context {
        config["model_max_length"] = context.into();
    }
    config
}
