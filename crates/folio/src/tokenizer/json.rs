//! Reads and writes `tokenizer.json`, the format of Hugging Face's library `tokenizers`.
//!
//! Characters are written as a BPE without merges and pre-tokenizer, with a decoder that joins the tokens. A byte-level BPE
//! trained by folio has the settings of GPT-2's published file, so that other programs give the same ids. One that was read
//! from a file is written with all settings that affect ids.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use serde::ser::{Serialize, Serializer};
use serde_json::{Value, json};

use super::TokenizerModel;
use super::added::Added;
use super::bpe::Bpe;
use super::chars::CharVocabulary;
use super::gpt2::{byte_alphabet, spell};
use super::recipe::Step;
use crate::error::{Error, Result};
use crate::files;

mod merges;
mod read;

pub(super) use merges::read_merges;

/// Larger files are refused. GPT-2's file has 2 to 4 MB, one with every character of Unicode about 30.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// The file, with its fields in the usual order.
#[derive(serde::Serialize)]
pub(super) struct TokenizerJson<'a> {
    version: &'a str,
    truncation: Option<Value>,
    padding: Option<Value>,
    added_tokens: Vec<Value>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Value,
    model: BpeJson<'a>,
}

#[derive(serde::Serialize)]
struct BpeJson<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    dropout: Option<f32>,
    unk_token: Option<&'a str>,
    continuing_subword_prefix: Option<&'a str>,
    end_of_word_suffix: Option<&'a str>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: VocabJson,
    /// Two parts separated by a space, the form that every version of the library can read.
    merges: Vec<String>,
}

/// Tokens in the order of their ids, written as an object that maps tokens to ids.
struct VocabJson(Vec<String>);

impl Serialize for VocabJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().zip(0_u32..))
    }
}

/// The spelling of a token in the file.
pub(super) fn spelling(model: &TokenizerModel, id: u32) -> String {
    match model {
        TokenizerModel::Chars(vocabulary) => vocabulary.char(id).to_string(),
        TokenizerModel::Bpe(bpe) => bpe_spelling(bpe, &byte_alphabet(), id),
    }
}

/// The id of an added or ordinary token, by its spelling in the file.
pub(super) fn id_of(model: &TokenizerModel, spelling: &str) -> Option<u32> {
    match model {
        TokenizerModel::Chars(vocabulary) => {
            let found = vocabulary.chars().iter().zip(0..).find(|(c, _)| spelling == c.to_string());
            found.map(|(_, id)| id)
        }
        TokenizerModel::Bpe(bpe) => {
            let added = bpe.recipe().added.tokens();
            if let Some(token) = added.iter().find(|token| token.content == spelling) {
                return Some(token.id);
            }
            let bytes = read::unspell(spelling)?;
            let is_added = |id: &u32| added.binary_search_by_key(id, |token| token.id).is_ok();
            (0..bpe.vocab_size() as u32).find(|id| bpe.token(*id) == bytes && !is_added(id))
        }
    }
}

fn bpe_spelling(bpe: &Bpe, alphabet: &[char; 256], id: u32) -> String {
    let added = bpe.recipe().added.tokens();
    // The spelling of an added token is its text.
    match added.binary_search_by_key(&id, |token| token.id) {
        Ok(place) => added[place].content.clone(),
        Err(_) => spell(alphabet, bpe.token(id)),
    }
}

/// The file for a tokenizer.
pub(super) fn of(model: &TokenizerModel) -> TokenizerJson<'static> {
    match model {
        TokenizerModel::Chars(vocabulary) => chars_json(vocabulary),
        TokenizerModel::Bpe(bpe) => bpe_file(bpe),
    }
}

fn chars_json(vocabulary: &CharVocabulary) -> TokenizerJson<'static> {
    let tokens = vocabulary.chars().iter().map(char::to_string).collect();
    tokenizer_json(bpe_json(tokens, Vec::new()), json!({ "type": "Fuse" }))
}

fn bpe_file(bpe: &Bpe) -> TokenizerJson<'static> {
    let (alphabet, recipe) = (byte_alphabet(), bpe.recipe());
    let added = recipe.added.tokens();
    let token = |id: u32| bpe_spelling(bpe, &alphabet, id);
    let merges = bpe.merges().iter().map(|&(left, right)| format!("{} {}", token(left), token(right)));
    // Added tokens that are not in the vocabulary come last.
    let listed = bpe.vocab_size() - added.iter().filter(|token| !token.in_vocab).count();
    let tokens = (0..listed as u32).map(token).collect();
    let byte_level = byte_level_json(false, true);
    let mut model = bpe_json(tokens, merges.collect());
    model.ignore_merges = recipe.whole_words.is_some();
    TokenizerJson {
        added_tokens: added.iter().map(added_json).collect(),
        normalizer: recipe.is_nfc.then(|| json!({ "type": "NFC" })),
        pre_tokenizer: Some(steps_json(&recipe.steps)),
        post_processor: Some(byte_level.clone()),
        ..tokenizer_json(model, byte_level)
    }
}

fn added_json(token: &Added) -> Value {
    json!({
        "id": token.id, "content": token.content, "special": token.special,
        "single_word": token.single_word, "lstrip": token.lstrip, "rstrip": token.rstrip,
        "normalized": token.normalized,
    })
}

fn steps_json(steps: &[Step]) -> Value {
    let step_json = |step: &Step| match step {
        Step::ByteLevel { add_prefix_space, use_regex } => byte_level_json(*add_prefix_space, *use_regex),
        Step::Digits { individual } => json!({ "type": "Digits", "individual_digits": individual }),
        Step::Split { pattern, is_regex, behavior, invert } => {
            let kind = if *is_regex { "Regex" } else { "String" };
            let pattern = json!({ kind: pattern.source() });
            json!({ "type": "Split", "pattern": pattern, "behavior": behavior.name(), "invert": invert })
        }
    };
    match steps {
        [step] => step_json(step),
        steps => {
            let steps: Vec<Value> = steps.iter().map(step_json).collect();
            json!({ "type": "Sequence", "pretokenizers": steps })
        }
    }
}

fn byte_level_json(add_prefix_space: bool, use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": use_regex,
    })
}

fn tokenizer_json(model: BpeJson<'static>, decoder: Value) -> TokenizerJson<'static> {
    TokenizerJson {
        version: "1.0",
        truncation: None,
        padding: None,
        added_tokens: Vec::new(),
        normalizer: None,
        pre_tokenizer: None,
        post_processor: None,
        decoder,
        model,
    }
}

fn bpe_json(tokens: Vec<String>, merges: Vec<String>) -> BpeJson<'static> {
    BpeJson {
        kind: "BPE",
        dropout: None,
        unk_token: None,
        continuing_subword_prefix: None,
        end_of_word_suffix: None,
        fuse_unk: false,
        byte_fallback: false,
        ignore_merges: false,
        vocab: VocabJson(tokens),
        merges,
    }
}

/// Reads a tokenizer file.
pub(super) fn read(path: &Path) -> Result<TokenizerModel> {
    let bytes = read_capped(path)?
        .ok_or_else(|| refused(path, "does not exist; give the directory of a run, which contains one"))?;
    let json = serde_json::from_slice(&bytes)
        .map_err(|error| refused(path, format!("is not valid JSON: {error}")))?;
    read::from_json(&json).map_err(|reason| refused(path, reason))
}

/// The file of a tokenizer that this version has written.
pub(super) fn text(model: &TokenizerModel) -> String {
    files::json(&of(model))
}

/// The tokenizer of such a file.
pub(super) fn from_text(text: &str) -> TokenizerModel {
    let json = serde_json::from_str(text).expect("it was written as JSON");
    read::from_json(&json).expect("a tokenizer that was written can be read")
}

/// Reads a file, if it exists and is not too large.
pub(super) fn read_capped(path: &Path) -> Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
    match read {
        Ok(_) if bytes.len() as u64 > MAX_FILE_BYTES => Err(refused(
            path,
            format!("is larger than {} MiB, too large for a tokenizer", MAX_FILE_BYTES >> 20),
        )),
        Ok(_) => Ok(Some(bytes)),
        Err(source) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::file("read", path)(source)),
    }
}

fn refused(path: &Path, reason: impl Into<String>) -> Error {
    Error::Tokenizer { reason: format!("the tokenizer {} {}", path.display(), reason.into()) }
}

#[cfg(test)]
mod tests;
