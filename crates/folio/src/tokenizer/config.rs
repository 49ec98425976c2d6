//! `tokenizer_config.json`, which transformers keeps beside `tokenizer.json`: it names the special tokens that begin and
//! end a text.

use std::path::Path;

use serde_json::{Value, json};

use super::json::{read_capped, spelling};
use super::{TOKENIZER_FILE, Tokenizer};
use crate::error::{Error, Result};

/// The file's name.
pub(crate) const CONFIG_FILE: &str = "tokenizer_config.json";

/// Special tokens that end a text in the published vocabularies, for files without a configuration beside them.
const ENDS: [&str; 5] = [super::END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[EOS]"];

/// Special tokens that begin one. GPT-2 uses a single token for both.
const BEGINNINGS: [&str; 6] = [super::END_OF_TEXT, "<|begin_of_text|>", "<s>", "<bos>", "[BOS]", "<|bos|>"];

/// The tokens that begin and end a text, as far as a tokenizer has them. A configuration may name any token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Borders {
    pub(super) begin: Option<u32>,
    pub(super) end: Option<u32>,
}

impl Borders {
    /// The special tokens whose names are well known.
    pub(super) fn of_names(id_of: impl Fn(&str) -> Option<u32>) -> Self {
        let find = |names: &[&str]| names.iter().find_map(|name| id_of(name));
        Self { begin: find(&BEGINNINGS), end: find(&ENDS) }
    }

    /// What the configuration beside a `tokenizer.json` names. A file with another name has none.
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
            // A name alone, or an object with all that is to know of the token.
            let Some(name) = named.as_str().or_else(|| named["content"].as_str()) else {
                return Err(refused(format!(
                    "has {named} in '{field}', where a token must be: give its text, an object with its text in \
                     'content', or null"
                )));
            };
            // transformers takes an empty name for none.
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

/// The file of a tokenizer. `context` is the largest number of tokens that its model takes.
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
