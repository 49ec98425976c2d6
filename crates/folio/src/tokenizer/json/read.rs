//! Reading a `tokenizer.json`: what gives other ids than its program would is refused, by the name of the field.
//!
//! The errors of this file complete "the tokenizer FILE ...".

use std::sync::Arc;

use rustc_hash::FxHashMap;
use serde_json::{Map, Value};

use super::super::TokenizerModel;
use super::super::added::{Added, AddedVocabulary};
use super::super::bpe::Bpe;
use super::super::chars::CharVocabulary;
use super::super::gpt2::byte_alphabet;
use super::super::pattern::Pattern;
use super::super::recipe::{Behavior, Recipe, Step};

/// Steps of a split into words. Published tokenizers have up to 5. Each needs a part of the stack.
const MOST_STEPS: usize = 100;

/// What messages show of a pattern at most; the published ones are shorter.
const SHOWN_CHARS: usize = 500;

type Read<T> = Result<T, String>;

/// The tokenizer of a file.
pub(super) fn from_json(json: &Value) -> Read<TokenizerModel> {
    let model = &json["model"];
    if !model.is_object() {
        return Err("has no object 'model', so it is not in Hugging Face's format".to_owned());
    }
    // Old files, GPT-2's published one among them, leave the type out.
    match model.get("type").map(|kind| kind.as_str().unwrap_or_default()) {
        Some("BPE") | None => {}
        Some(kind) => return Err(unsupported(&format!("a model of type '{kind}'"))),
    }
    let vocab = model["vocab"].as_object().ok_or("has no object 'model.vocab'")?;
    check_options(json)?;
    check_post_processor(&json["post_processor"])?;
    if json["pre_tokenizer"].is_null() {
        return chars(json, vocab);
    }
    if json["decoder"]["type"] != "ByteLevel" {
        return Err(unsupported("a 'decoder' that is not ByteLevel"));
    }
    byte_level(json, vocab)
}

/// Refuses options that change ids, whatever the tokens.
fn check_options(json: &Value) -> Read<()> {
    for field in ["truncation", "padding"] {
        if !json[field].is_null() {
            return Err(format!(
                "has the setting '{field}', which changes the ids of a text: set it to null"
            ));
        }
    }
    let options = ["dropout", "continuing_subword_prefix", "end_of_word_suffix"];
    match options.iter().find(|option| !is_off(&json["model"][**option])) {
        Some(option) => Err(unsupported(&format!("the option 'model.{option}'"))),
        None => Ok(()),
    }
}

fn is_off(value: &Value) -> bool {
    matches!(value, Value::Null | Value::Bool(false)) || value == "" || value == 0.0
}

/// Refuses what puts tokens around a text.
fn check_post_processor(processor: &Value) -> Read<()> {
    let template = |single: &Value| -> Read<()> {
        // The text itself, and the special tokens around it.
        let adds = elements(single).iter().find_map(|piece| piece["SpecialToken"]["id"].as_str());
        if let Some(token) = adds {
            return Err(format!(
                "has a 'post_processor' that adds {token:?} to every text, which this program does not: set \
                 'post_processor' to null, and write the token where it is wanted"
            ));
        }
        let is_text_alone = matches!(elements(single), [piece] if piece["Sequence"]["id"] == "A");
        if is_text_alone {
            Ok(())
        } else {
            Err(unsupported("a 'post_processor.single' that is not the text alone"))
        }
    };
    match processor["type"].as_str() {
        None if processor.is_null() => Ok(()),
        Some("ByteLevel") => Ok(()),
        Some("TemplateProcessing") => template(&processor["single"]),
        Some("Sequence") => elements(&processor["processors"]).iter().try_for_each(check_post_processor),
        kind => Err(unsupported(&format!("a 'post_processor' of type '{}'", kind.unwrap_or_default()))),
    }
}

/// Characters: a BPE without merges and without a split.
fn chars(json: &Value, vocab: &Map<String, Value>) -> Read<TokenizerModel> {
    if !elements(&json["model"]["merges"]).is_empty() || !elements(&json["added_tokens"]).is_empty() {
        return Err(unsupported("merges or added tokens without a byte-level 'pre_tokenizer'"));
    }
    if !json["normalizer"].is_null() {
        return Err(unsupported("a 'normalizer' without a byte-level 'pre_tokenizer'"));
    }
    let options = ["unk_token", "byte_fallback", "ignore_merges"];
    if let Some(option) = options.iter().find(|option| !is_off(&json["model"][**option])) {
        return Err(unsupported(&format!(
            "the option 'model.{option}' without a byte-level 'pre_tokenizer'"
        )));
    }
    if json["decoder"]["type"] != "Fuse" {
        return Err(unsupported("characters without the decoder 'Fuse'"));
    }
    let single_char = |token: String| {
        let mut chars = token.chars();
        match (chars.next(), chars.next()) {
            (Some(c), None) => Ok(c),
            _ => Err(format!("has the token {token:?}, where each token must be one character")),
        }
    };
    let chars: Vec<char> = tokens_by_id(vocab)?.into_iter().map(single_char).collect::<Read<_>>()?;
    CharVocabulary::new(chars)
        .map(TokenizerModel::Chars)
        .map_err(|twin| format!("has the character {twin:?} twice"))
}

fn byte_level(json: &Value, vocab: &Map<String, Value>) -> Read<TokenizerModel> {
    let is_nfc = is_nfc(&json["normalizer"])?;
    let mut steps = Vec::new();
    push_steps(&json["pre_tokenizer"], &mut steps)?;
    if !matches!(steps.last(), Some(Step::ByteLevel { .. })) {
        return Err(unsupported(
            "a BPE that is not byte-level: its 'pre_tokenizer' does not end with ByteLevel",
        ));
    }
    let ignores_merges = !is_off(&json["model"]["ignore_merges"]);
    let (all, added) = with_added(vocab, elements(&json["added_tokens"]), ignores_merges)?;
    let spelled = tokens_by_id(&all)?;
    let tokens = bytes_of(&spelled, &added)?;
    let whole_words = ignores_merges.then(|| {
        let ids = spelled.iter().zip(0..).filter(|(token, _)| vocab.contains_key(token.as_str()));
        ids.filter_map(|(token, id)| Some((unspell(token)?, id))).collect()
    });
    let merges = merges(&json["model"]["merges"], &spelled)?;
    let added = AddedVocabulary::new(added, is_nfc)?;
    Bpe::with_recipe(&tokens, merges, Recipe { is_nfc, steps, added, whole_words })
        .map(|bpe| TokenizerModel::Bpe(Arc::new(bpe)))
}

fn is_nfc(normalizer: &Value) -> Read<bool> {
    match normalizer["type"].as_str() {
        None if normalizer.is_null() => Ok(false),
        Some("NFC") => Ok(true),
        Some("Sequence") => {
            let inner =
                elements(&normalizer["normalizers"]).iter().map(is_nfc).collect::<Read<Vec<bool>>>()?;
            Ok(inner.contains(&true))
        }
        kind => Err(unsupported(&format!("a 'normalizer' of type '{}'", kind.unwrap_or_default()))),
    }
}

/// Appends the steps of a split into words.
fn push_steps(json: &Value, steps: &mut Vec<Step>) -> Read<()> {
    if matches!(steps.last(), Some(Step::ByteLevel { .. })) {
        return Err(unsupported("a 'pre_tokenizer' that goes on after ByteLevel"));
    }
    let step = match json["type"].as_str().unwrap_or_default() {
        "Sequence" => {
            return elements(&json["pretokenizers"]).iter().try_for_each(|json| push_steps(json, steps));
        }
        "ByteLevel" => Step::ByteLevel {
            add_prefix_space: flag(json, "pre_tokenizer", "add_prefix_space", None)?,
            use_regex: flag(json, "pre_tokenizer", "use_regex", Some(true))?,
        },
        "Digits" => {
            Step::Digits { individual: flag(json, "pre_tokenizer", "individual_digits", Some(false))? }
        }
        "Split" => {
            let name = json["behavior"].as_str().unwrap_or_default();
            let behavior = Behavior::ALL.iter().find(|(known, _)| *known == name);
            let Some(&(_, behavior)) = behavior else {
                return Err(unsupported(&format!("the 'pre_tokenizer.behavior' '{name}'")));
            };
            let (regex, literal) = (&json["pattern"]["Regex"], &json["pattern"]["String"]);
            let refused = |pattern: &str, reason| {
                let mut shown: String = pattern.chars().take(SHOWN_CHARS).collect();
                if shown.len() < pattern.len() {
                    shown.push('…');
                }
                format!(
                    "has the 'pre_tokenizer.pattern' {shown:?}, which this program does not run: it has {reason}"
                )
            };
            let pattern = match (regex.as_str(), literal.as_str()) {
                (Some(regex), _) => Pattern::new(regex).map_err(|reason| refused(regex, reason))?,
                (None, Some(text)) => Pattern::literal(text).map_err(|reason| refused(text, reason))?,
                (None, None) => {
                    return Err("has a 'pre_tokenizer' of type Split without a pattern".to_owned());
                }
            };
            let invert = flag(json, "pre_tokenizer", "invert", None)?;
            Step::Split { pattern, is_regex: regex.is_string(), behavior, invert }
        }
        kind => return Err(unsupported(&format!("a 'pre_tokenizer' of type '{kind}'"))),
    };
    if steps.len() == MOST_STEPS {
        return Err(unsupported(&format!("a 'pre_tokenizer' of more than {MOST_STEPS} steps")));
    }
    steps.push(step);
    Ok(())
}

/// A field that is true or false.
fn flag(json: &Value, place: &str, name: &str, otherwise: Option<bool>) -> Read<bool> {
    match &json[name] {
        Value::Bool(value) => Ok(*value),
        Value::Null if otherwise.is_some() => Ok(otherwise.unwrap_or_default()),
        other => Err(format!("has {other} in '{place}.{name}', where true or false must be")),
    }
}

/// The vocabulary with the added tokens, and these.
fn with_added(
    vocab: &Map<String, Value>,
    listed: &[Value],
    ignores_merges: bool,
) -> Read<(Map<String, Value>, Vec<Added>)> {
    let (mut all, mut added) = (vocab.clone(), Vec::new());
    for json in listed {
        let content = json["content"].as_str().ok_or("has an added token without a 'content'")?;
        if content.is_empty() {
            return Err("has an added token whose 'content' is empty".to_owned());
        }
        let next = all.len();
        if let Some(id) = all.insert(content.to_owned(), json["id"].clone()) {
            if id != json["id"] {
                return Err(format!(
                    "gives {content:?} the id {id} in one place and {} in another",
                    json["id"]
                ));
            }
        } else if json["id"] != next {
            // Hugging Face's library numbers them anew.
            let reason =
                format!("gives the added token {content:?} the id {}, where {next} is next", json["id"]);
            return Err(format!("{reason}; list added tokens in the order of their ids"));
        }
        let is = |name| flag(json, "added_tokens", name, Some(false));
        let id = json["id"].as_u64().and_then(|id| u32::try_from(id).ok());
        added.push(Added {
            id: id.ok_or_else(|| format!("gives {content:?} the id {}, which is no number", json["id"]))?,
            content: content.to_owned(),
            special: is("special")?,
            single_word: is("single_word")?,
            lstrip: is("lstrip")?,
            rstrip: is("rstrip")?,
            normalized: is("normalized")?,
            // That makes a difference for words that are looked up alone.
            in_vocab: !ignores_merges || vocab.contains_key(content),
        });
    }
    Ok((all, added))
}

/// The bytes of each token: what its spelling stands for, or the content of an added token.
fn bytes_of(spelled: &[String], added: &[Added]) -> Read<Vec<Vec<u8>>> {
    let contents: FxHashMap<&str, u32> =
        added.iter().map(|token| (token.content.as_str(), token.id)).collect();
    if contents.len() < added.len() {
        return Err("lists an added token twice".to_owned());
    }
    let bytes = |spelling: &String| {
        if contents.contains_key(spelling.as_str()) {
            return Ok(spelling.as_bytes().to_vec());
        }
        unspell(spelling).ok_or_else(|| {
            format!("has the token {spelling:?}, which is not written in the alphabet of byte-level BPE")
        })
    };
    spelled.iter().map(bytes).collect()
}

/// The bytes that a spelling in GPT-2's alphabet stands for.
pub(super) fn unspell(spelling: &str) -> Option<Vec<u8>> {
    static BYTES: std::sync::LazyLock<FxHashMap<char, u8>> =
        std::sync::LazyLock::new(|| byte_alphabet().into_iter().zip(0..=u8::MAX).collect());
    spelling.chars().map(|c| BYTES.get(&c).copied()).collect()
}

fn merges(json: &Value, spelled: &[String]) -> Read<Vec<(u32, u32)>> {
    let ids: FxHashMap<&str, u32> = spelled.iter().map(String::as_str).zip(0..).collect();
    let id_of = |part: &str| ids.get(part).copied();
    let merge = |merge: &Value| {
        let parts = match merge {
            Value::String(pair) => pair.split_once(' '),
            Value::Array(pair) => match pair.as_slice() {
                [Value::String(left), Value::String(right)] => Some((left.as_str(), right.as_str())),
                _ => None,
            },
            _ => None,
        };
        let ids = parts.and_then(|(left, right)| Some((id_of(left)?, id_of(right)?)));
        ids.ok_or_else(|| format!("has the merge {merge}, which is not a pair of its tokens"))
    };
    elements(json).iter().map(merge).collect()
}

/// The tokens in the order of their ids, which must be 0, 1, 2 and so on, each once.
fn tokens_by_id(vocab: &Map<String, Value>) -> Read<Vec<String>> {
    if vocab.is_empty() {
        return Err("has an empty vocabulary".to_owned());
    }
    let mut tokens: Vec<Option<&str>> = vec![None; vocab.len()];
    for (token, id) in vocab {
        let slot = id.as_u64().and_then(|id| tokens.get_mut(usize::try_from(id).ok()?));
        let slot = slot.ok_or_else(|| {
            format!(
                "gives {token:?} the id {id}; the ids of {} tokens must be 0 to {}",
                vocab.len(),
                vocab.len() - 1
            )
        })?;
        if let Some(other) = slot.replace(token) {
            return Err(format!("gives {other:?} and {token:?} the same id {id}"));
        }
    }
    Ok(tokens.into_iter().flatten().map(str::to_owned).collect())
}

/// The elements of an array; none of anything else.
pub(super) fn elements(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn unsupported(what: &str) -> String {
    format!("has {what}, which this program does not run; docs/tokenizers.md lists what it does")
}
