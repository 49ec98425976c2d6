//! `tokenizer.json` in the format of Hugging Face's library `tokenizers`, written and read.
//!
//! Characters are a BPE without merges and without a pre-tokenizer, whose decoder joins the tokens. A byte-level BPE has
//! the settings of GPT-2's published file, so that other programs give the same ids.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use serde::ser::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::Model;
use super::bpe::Bpe;
use super::chars::CharVocabulary;
use super::gpt2::{byte_alphabet, spell};
use crate::error::{Error, Result};

/// A larger file is refused unread. GPT-2's takes 2 to 4 MB, one with every character of Unicode about 30.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// The whole file, its fields in the format's order.
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
    /// Each the two parts with a space between, which every version of the library reads.
    merges: Vec<String>,
}

/// Tokens in the order of their ids, written as an object from token to id.
struct VocabJson(Vec<String>);

impl Serialize for VocabJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().zip(0_u32..))
    }
}

/// The file of a tokenizer.
pub(super) fn of(model: &Model) -> TokenizerJson<'static> {
    match model {
        Model::Chars(vocabulary) => chars_json(vocabulary),
        Model::Bpe(bpe) => bpe_file(bpe),
    }
}

fn chars_json(vocabulary: &CharVocabulary) -> TokenizerJson<'static> {
    let tokens = vocabulary.chars().iter().map(char::to_string).collect();
    tokenizer_json(bpe_json(tokens, Vec::new()), json!({ "type": "Fuse" }))
}

fn bpe_file(bpe: &Bpe) -> TokenizerJson<'static> {
    let alphabet = byte_alphabet();
    // A special token is spelled as the text it is.
    let token = |id| match bpe.is_special(id) {
        true => String::from_utf8_lossy(bpe.token(id)).into_owned(),
        false => spell(&alphabet, bpe.token(id)),
    };
    let merges = bpe.merges().iter().map(|&(left, right)| format!("{} {}", token(left), token(right)));
    let special = |&id: &u32| {
        json!({
            "id": id, "content": token(id), "special": true,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": true,
        })
    };
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let tokens = (0..bpe.vocab_size() as u32).map(token).collect();
    TokenizerJson {
        added_tokens: bpe.specials().iter().map(special).collect(),
        pre_tokenizer: Some(byte_level.clone()),
        post_processor: Some(byte_level.clone()),
        ..tokenizer_json(bpe_json(tokens, merges.collect()), byte_level)
    }
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

/// The tokenizer in a file, if it is one that this program runs.
pub(super) fn read(path: &Path) -> Result<Model> {
    let bytes = read_capped(path)?;
    let json = serde_json::from_slice(&bytes)
        .map_err(|error| refused(path, format!("is not valid JSON: {error}")))?;
    from_json(&json).map_err(|reason| refused(path, reason))
}

fn read_capped(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)).map_err(
        |source| match source.kind() {
            ErrorKind::NotFound => {
                refused(path, "does not exist; give the folder of a run that has saved one")
            }
            _ => Error::file("read", path)(source),
        },
    )?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(refused(
            path,
            format!("is larger than {} MiB, too large for a tokenizer", MAX_FILE_BYTES >> 20),
        ));
    }
    Ok(bytes)
}

fn refused(path: &Path, reason: impl Into<String>) -> Error {
    Error::Tokenizer { reason: format!("the tokenizer {} {}", path.display(), reason.into()) }
}

/// The errors of this function and those below complete "the tokenizer FILE ...".
fn from_json(json: &Value) -> std::result::Result<Model, String> {
    require_plain_bpe(json)?;
    let vocab = json["model"]["vocab"].as_object().ok_or("has no object 'model.vocab'")?;
    let pre_tokenizer = &json["pre_tokenizer"];
    if pre_tokenizer.is_null() {
        return chars_from_json(json, vocab);
    }
    if pre_tokenizer["type"] != "ByteLevel" || json["decoder"]["type"] != "ByteLevel" {
        return Err(unsupported("a BPE that is not byte-level"));
    }
    if pre_tokenizer["add_prefix_space"] != false {
        return Err(unsupported("the option 'pre_tokenizer.add_prefix_space'"));
    }
    if pre_tokenizer["use_regex"] == false {
        return Err(unsupported("a byte-level BPE without GPT-2's split into words"));
    }
    bpe_from_json(json, vocab.clone())
}

fn bpe_from_json(json: &Value, mut vocab: Map<String, Value>) -> std::result::Result<Model, String> {
    let mut specials = Vec::new();
    for added in elements(&json["added_tokens"]) {
        let content = added["content"].as_str().ok_or("has an added token without a 'content'")?;
        if added["special"] != true {
            return Err(unsupported(&format!("the added token {content:?}, which is not special")));
        }
        if let Some(id) = vocab.insert(content.to_owned(), added["id"].clone())
            && id != added["id"]
        {
            return Err(format!("gives {content:?} the id {id} in one place and {} in another", added["id"]));
        }
        specials.push(content);
    }
    let spelled = tokens_by_id(&vocab)?;
    let ids: FxHashMap<&str, u32> = spelled.iter().map(String::as_str).zip(0..).collect();
    let bytes_of: FxHashMap<char, u8> = byte_alphabet().into_iter().zip(0..=u8::MAX).collect();
    let token = |spelled: &String| -> std::result::Result<Vec<u8>, String> {
        if specials.contains(&spelled.as_str()) {
            return Ok(spelled.as_bytes().to_vec());
        }
        let byte = |c| bytes_of.get(&c).copied();
        spelled.chars().map(byte).collect::<Option<_>>().ok_or_else(|| {
            format!("has the token {spelled:?}, which is not written in the alphabet of byte-level BPE")
        })
    };
    let tokens = spelled.iter().map(token).collect::<std::result::Result<Vec<_>, _>>()?;
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
    let merges =
        elements(&json["model"]["merges"]).iter().map(merge).collect::<std::result::Result<_, _>>()?;
    let specials = specials.iter().filter_map(|special| id_of(special)).collect();
    Ok(Model::Bpe(Arc::new(Bpe::new(&tokens, merges, specials)?)))
}

/// Refuses whatever would give other ids than plain BPE on the text as it is.
fn require_plain_bpe(json: &Value) -> std::result::Result<(), String> {
    let model = &json["model"];
    if !model.is_object() {
        return Err("has no object 'model', so it is not in Hugging Face's format".to_owned());
    }
    // Old files, GPT-2's published one among them, leave the type out.
    match model.get("type").map(|kind| kind.as_str().unwrap_or_default()) {
        Some("BPE") | None => {}
        Some(kind) => return Err(unsupported(&format!("a model of type '{kind}'"))),
    }
    if !json["normalizer"].is_null() {
        return Err(unsupported("a normalizer"));
    }
    if !json["post_processor"].is_null() && json["post_processor"]["type"] != "ByteLevel" {
        return Err(unsupported("a post-processor that adds tokens"));
    }
    let is_off =
        |value: &Value| matches!(value, Value::Null | Value::Bool(false)) || value == "" || value == 0.0;
    let options = [
        "dropout",
        "unk_token",
        "continuing_subword_prefix",
        "end_of_word_suffix",
        "byte_fallback",
        "ignore_merges",
    ];
    match options.iter().find(|option| !is_off(&model[**option])) {
        Some(option) => Err(unsupported(&format!("the option 'model.{option}'"))),
        None => Ok(()),
    }
}

fn chars_from_json(json: &Value, vocab: &Map<String, Value>) -> std::result::Result<Model, String> {
    if !elements(&json["model"]["merges"]).is_empty() || !elements(&json["added_tokens"]).is_empty() {
        return Err(unsupported("merges or added tokens without a byte-level pre-tokenizer"));
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
    let chars: Vec<char> =
        tokens_by_id(vocab)?.into_iter().map(single_char).collect::<std::result::Result<_, _>>()?;
    CharVocabulary::new(chars).map(Model::Chars).map_err(|twin| format!("has the character {twin:?} twice"))
}

/// The tokens in the order of their ids, which must be 0, 1, 2 and so on, each once.
fn tokens_by_id(vocab: &Map<String, Value>) -> std::result::Result<Vec<String>, String> {
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
fn elements(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn unsupported(what: &str) -> String {
    format!(
        "has {what}, which this program does not run; give one that it wrote, GPT-2's, or another byte-level BPE with \
         GPT-2's split into words"
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::gpt2::gpt2;
    use super::*;

    fn chars_file() -> Value {
        serde_json::to_value(of(&Model::Chars(CharVocabulary::of_text("abé")))).unwrap()
    }

    fn gpt2_file() -> Value {
        serde_json::to_value(of(&Model::Bpe(gpt2()))).unwrap()
    }

    /// Changes a good file, which must then be refused with this message.
    #[track_caller]
    fn check_refused(mut file: Value, edit: impl Fn(&mut Value), expected: &str) {
        edit(&mut file);
        let reason = from_json(&file).unwrap_err();
        assert!(reason.starts_with(expected), "{reason:?} does not start with {expected:?}");
    }

    #[test]
    fn files_have_the_fields_of_the_format() {
        let chars = chars_file();
        assert_eq!(chars["model"]["vocab"], json!({ "a": 0, "b": 1, "é": 2 }));
        assert_eq!((&chars["decoder"], &chars["pre_tokenizer"]), (&json!({ "type": "Fuse" }), &Value::Null));
        let gpt2 = gpt2_file();
        assert_eq!(gpt2["model"]["vocab"]["<|endoftext|>"], 50_256);
        assert_eq!(gpt2["added_tokens"][0]["content"], "<|endoftext|>");
        assert_eq!(gpt2["model"]["merges"][2], "h e");
        assert_eq!(gpt2["pre_tokenizer"]["add_prefix_space"], false);
    }

    #[test]
    fn characters_in_any_order_load() {
        let mut file = chars_file();
        file["model"]["vocab"] = json!({ "a": 2, "é": 0, "b": 1 });
        let expected = CharVocabulary::new(vec!['é', 'b', 'a']).unwrap();
        assert_eq!(from_json(&file), Ok(Model::Chars(expected)));
    }

    #[test]
    fn other_spellings_of_gpt2_load() {
        let mut file = gpt2_file();
        let pairs = elements(&file["model"]["merges"]).iter().map(|merge| {
            let (left, right) = merge.as_str().unwrap().split_once(' ').unwrap();
            json!([left, right])
        });
        file["model"]["merges"] = pairs.collect();
        file["model"].as_object_mut().unwrap().remove("type");
        file["model"]["vocab"].as_object_mut().unwrap().remove("<|endoftext|>");
        file["model"]["continuing_subword_prefix"] = json!("");
        assert_eq!(from_json(&file), Ok(Model::Bpe(gpt2())));
    }

    #[test]
    fn broken_vocabularies_are_refused() {
        let vocab = |vocab: Value| move |file: &mut Value| file["model"]["vocab"] = vocab.clone();
        check_refused(chars_file(), vocab(json!({})), "has an empty vocabulary");
        check_refused(chars_file(), vocab(json!(["a"])), "has no object 'model.vocab'");
        check_refused(
            chars_file(),
            vocab(json!({ "a": 1 })),
            "gives \"a\" the id 1; the ids of 1 tokens must be 0 to 0",
        );
        check_refused(chars_file(), vocab(json!({ "a": -1 })), "gives \"a\" the id -1");
        check_refused(chars_file(), vocab(json!({ "a": 0, "b": 0 })), "gives \"a\" and \"b\" the same id 0");
        check_refused(chars_file(), vocab(json!({ "ab": 0 })), "has the token \"ab\"");
        check_refused(chars_file(), vocab(json!({ "": 0 })), "has the token \"\"");
    }

    #[test]
    fn foreign_tokenizers_are_refused() {
        let set = |pointer: &'static str, value: Value| {
            move |file: &mut Value| *file.pointer_mut(pointer).unwrap() = value.clone()
        };
        let byte_level = || json!({ "type": "ByteLevel", "add_prefix_space": true });
        check_refused(json!([]), |_| {}, "has no object 'model'");
        check_refused(chars_file(), set("/model/type", json!("Unigram")), "has a model of type 'Unigram'");
        check_refused(chars_file(), set("/model/type", json!(1)), "has a model of type ''");
        check_refused(chars_file(), set("/model/dropout", json!(0.1)), "has the option 'model.dropout'");
        check_refused(
            chars_file(),
            set("/model/ignore_merges", json!(true)),
            "has the option 'model.ignore_merges'",
        );
        check_refused(chars_file(), set("/model/merges", json!(["a b"])), "has merges or added tokens");
        check_refused(chars_file(), set("/normalizer", json!({ "type": "NFC" })), "has a normalizer");
        check_refused(
            chars_file(),
            set("/post_processor", json!({ "type": "Bert" })),
            "has a post-processor",
        );
        check_refused(
            chars_file(),
            set("/decoder", Value::Null),
            "has characters without the decoder 'Fuse'",
        );
        check_refused(chars_file(), set("/pre_tokenizer", byte_level()), "has a BPE that is not byte-level");
        check_refused(
            gpt2_file(),
            set("/pre_tokenizer", byte_level()),
            "has the option 'pre_tokenizer.add_prefix_space'",
        );
        check_refused(
            gpt2_file(),
            set("/pre_tokenizer/use_regex", json!(false)),
            "has a byte-level BPE without GPT-2's split",
        );
        check_refused(
            gpt2_file(),
            set("/added_tokens/0/special", json!(false)),
            "has the added token \"<|endof",
        );
    }

    #[test]
    fn byte_level_bpes_that_do_not_fit_together_are_refused() {
        let set = |pointer: &'static str, value: Value| {
            move |file: &mut Value| *file.pointer_mut(pointer).unwrap() = value.clone()
        };
        let merge = |value| set("/model/merges/7", value);
        check_refused(gpt2_file(), merge(json!("q zzz")), "has the merge \"q zzz\", which is not a pair");
        check_refused(gpt2_file(), merge(json!(["a", "b", "c"])), "has the merge [\"a\",\"b\",\"c\"]");
        check_refused(gpt2_file(), merge(json!(7)), "has the merge 7");
        check_refused(gpt2_file(), merge(json!("zz qq")), "has");
        check_refused(gpt2_file(), merge(json!("Ġ t")), "has merge 7, whose result is \" t\", twice");
        check_refused(
            gpt2_file(),
            set("/added_tokens/0/id", json!(7)),
            "gives \"<|endoftext|>\" the id 50256 in one",
        );
        check_refused(gpt2_file(), set("/added_tokens/0/content", json!("<pad>")), "gives");
        let rename = |from: &'static str, to: &'static str| {
            move |file: &mut Value| {
                let vocab = file["model"]["vocab"].as_object_mut().unwrap();
                let id = vocab.remove(from).unwrap();
                vocab.insert(to.to_owned(), id);
            }
        };
        check_refused(
            gpt2_file(),
            rename("!", "日"),
            "has the token \"日\", which is not written in the alphabet",
        );
        check_refused(gpt2_file(), rename("zzle", "zzqx"), "has");
    }

    #[test]
    fn any_byte_level_bpe_loads() {
        let mut file = gpt2_file();
        let swap = |file: &mut Value| {
            let vocab = &mut file["model"]["vocab"];
            assert_eq!((&vocab["the"], &vocab["oad"]), (&json!(1169), &json!(1170)));
            vocab["the"] = json!(1170);
            vocab["oad"] = json!(1169);
        };
        swap(&mut file);
        let Ok(Model::Bpe(bpe)) = from_json(&file) else { panic!("a BPE") };
        assert_eq!((bpe.encode("the"), bpe.encode("oad")), (vec![1170], vec![1169]));
        file["model"]["merges"] = json!([]);
        let Ok(Model::Bpe(bytes)) = from_json(&file) else { panic!("a BPE") };
        assert_eq!(bytes.encode("the"), [83, 71, 68]);
    }

    #[track_caller]
    fn check_unreadable(contents: Option<&[u8]>, expected: &str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        if let Some(contents) = contents {
            fs::write(&path, contents).unwrap();
        }
        let message = read(&path).unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains("tokenizer.json"), "{message:?}");
        assert!(!message.contains('\n'), "{message:?}");
    }

    #[test]
    fn unreadable_files_are_named() {
        check_unreadable(None, "does not exist; give the folder of a run");
        check_unreadable(Some(b"{\"model\":"), "is not valid JSON: EOF");
        check_unreadable(Some(b"\xff"), "is not valid JSON");
        check_unreadable(Some(&vec![b' '; (MAX_FILE_BYTES + 1) as usize]), "is larger than 64 MiB");
    }
}
