//! Reads the files of GPT-2's published tokenizer: `vocab.json`, which maps tokens to ids, and `merges.txt`.

use std::path::Path;

use serde_json::{Value, json};

use super::super::TokenizerModel;
use super::super::config::CONFIG_FILE;
use super::super::gpt2::END_OF_TEXT;
use super::{byte_level_json, read, read_capped, refused};
use crate::error::Result;

/// Tokens that were added to a vocabulary, in old versions of transformers.
const ADDED_FILE: &str = "added_tokens.json";

/// Reads the two files, and `added_tokens.json` and the option `add_prefix_space` of `tokenizer_config.json` beside them.
pub(in super::super) fn read_merges(vocab_path: &Path, merges_path: &Path) -> Result<TokenizerModel> {
    let vocab = json_of(vocab_path)?
        .ok_or_else(|| refused(vocab_path, "does not exist, but merges.txt does, which needs it"))?;
    let bytes = read_capped(merges_path)?.unwrap_or_default();
    let text = String::from_utf8(bytes).map_err(|_| refused(merges_path, "is not UTF-8"))?;
    // The first line may be "#version: 0.2".
    let merges: Vec<&str> =
        text.lines().filter(|line| !line.is_empty() && !line.starts_with("#version")).collect();
    let added = match json_of(&vocab_path.with_file_name(ADDED_FILE))? {
        Some(Value::Object(tokens)) => tokens.into_iter().collect(),
        _ => Vec::new(),
    };
    let (end, _) = END_OF_TEXT;
    let end = vocab.get(end).map(|id| (end.to_owned(), id.clone()));
    let mut special: Vec<(String, Value)> = end.into_iter().chain(added).collect();
    special.sort_by_key(|(_, id)| id.as_u64());
    let special: Vec<Value> = special
        .iter()
        .map(|(content, id)| json!({ "content": content, "id": id, "special": true }))
        .collect();
    let config = json_of(&vocab_path.with_file_name(CONFIG_FILE))?.unwrap_or_default();
    let add_prefix_space = config["add_prefix_space"].as_bool().unwrap_or(false);
    let json = json!({
        "added_tokens": special,
        "pre_tokenizer": byte_level_json(add_prefix_space, true),
        "decoder": { "type": "ByteLevel" },
        "model": { "type": "BPE", "vocab": vocab, "merges": merges },
    });
    read::from_json(&json).map_err(|reason| refused(vocab_path, reason))
}

/// The value in a file, if it exists.
fn json_of(path: &Path) -> Result<Option<Value>> {
    let Some(bytes) = read_capped(path)? else { return Ok(None) };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| refused(path, format!("is not valid JSON: {error}")))
}
