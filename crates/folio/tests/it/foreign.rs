//! Tokenizers saved by other programs, compared to the golden file of `reference/foreign_tokenizers.py` (Hugging Face's
//! `tokenizers`).

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use folio::tokenizer::Tokenizer;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

#[derive(Deserialize)]
struct Golden {
    /// Tokens in the order of their ids.
    vocab: Vec<String>,
    merges: Vec<String>,
    texts: Vec<String>,
    cases: BTreeMap<String, Case>,
}

/// The settings of a kind of tokenizer, and the beginnings of the hashes of its ids.
#[derive(Deserialize)]
struct Case {
    normalizer: Value,
    pre_tokenizer: Value,
    added_tokens: Value,
    ignore_merges: bool,
    /// For each text, with special tokens recognized.
    special: String,
    /// For each text, with special tokens as ordinary text.
    ordinary: String,
    /// For a text of many code points.
    strided: String,
}

fn golden() -> Golden {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../reference/golden/tokenizers/foreign.json");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).expect("JSON")
}

/// The tokenizer file of a case.
fn file(golden: &Golden, case: &Case) -> Value {
    let vocab: serde_json::Map<_, _> =
        golden.vocab.iter().zip(0..).map(|(token, id)| (token.clone(), json!(id))).collect();
    let ignore_merges = case.ignore_merges;
    json!({
        "added_tokens": case.added_tokens, "normalizer": case.normalizer, "pre_tokenizer": case.pre_tokenizer,
        "post_processor": null, "decoder": { "type": "ByteLevel" },
        "model": { "type": "BPE", "vocab": vocab, "merges": golden.merges, "ignore_merges": ignore_merges },
    })
}

/// Writes and reads a tokenizer file.
fn read(file: &Value) -> Result<Tokenizer, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tokenizer.json");
    fs::write(&path, file.to_string()).unwrap();
    Tokenizer::read(&path).map_err(|error| error.to_string())
}

fn start_of_sha256(ids: &[u32]) -> String {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    Sha256::digest(&bytes)[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Every 41st code point, next to letters, digits and spaces.
fn strided() -> String {
    (0..0x11_0000).step_by(41).filter_map(char::from_u32).map(|c| format!("a{c}1{c} {c}\n")).collect()
}

#[test]
fn foreign_tokenizers_give_the_ids_of_the_library() {
    let golden = golden();
    let strided = strided();
    assert!(golden.cases.len() >= 18 && golden.texts.len() >= 120);
    for (name, case) in &golden.cases {
        let tokenizer = read(&file(&golden, case)).unwrap_or_else(|reason| panic!("{name}: {reason}"));
        let check = |text: &String, ids: Vec<u32>, want: &str| {
            assert!(start_of_sha256(&ids) == want, "{name}: {text:?} is {ids:?}");
        };
        for (text, want) in golden.texts.iter().zip(case.special.split(' ')) {
            check(text, tokenizer.encode_special(text).unwrap(), want);
        }
        for (text, want) in golden.texts.iter().zip(case.ordinary.split(' ')) {
            check(text, tokenizer.encode(text).unwrap(), want);
        }
        let ids = tokenizer.encode_special(&strided).unwrap();
        assert_eq!(start_of_sha256(&ids), case.strided, "{name}: many code points");
    }
}

#[test]
fn foreign_tokenizers_round_trip() {
    let golden = golden();
    for (name, case) in &golden.cases {
        let read_first = read(&file(&golden, case)).unwrap();
        let directory = tempfile::tempdir().unwrap();
        read_first.save(directory.path()).unwrap();
        let again = Tokenizer::load(directory.path()).unwrap();
        assert_eq!(again, read_first, "{name}");
        assert_eq!(again.digest(), read_first.digest(), "{name}");
        let written: Value =
            serde_json::from_slice(&fs::read(directory.path().join("tokenizer.json")).unwrap()).unwrap();
        assert_eq!(written["pre_tokenizer"], case.pre_tokenizer, "{name}");
        assert_eq!(written["added_tokens"], case.added_tokens, "{name}");
        assert_eq!(written["normalizer"], case.normalizer, "{name}");
        assert_eq!(written["model"]["ignore_merges"], case.ignore_merges, "{name}");
    }
}

#[test]
fn pieces_make_up_the_text_and_its_ids() {
    let golden = golden();
    let text: String = golden.texts.concat().repeat(60);
    for name in ["qwen3.5", "cl100k", "prefix", "next"] {
        let tokenizer = read(&file(&golden, &golden.cases[name])).unwrap();
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (mut seen, mut ids) = (String::new(), Vec::new());
            pool.install(|| {
                let on_piece = |piece: &str, piece_ids: &[u32]| {
                    seen += piece;
                    ids.extend_from_slice(piece_ids);
                };
                tokenizer.encode_pieces_special(&text, on_piece).unwrap();
            });
            (seen, ids)
        };
        let (seen, ids) = on(1);
        assert!(seen == text, "{name}: the pieces are not the text");
        assert!(on(3) == (seen, ids), "{name}: threads change the ids");
    }
}

/// Changes the file of a case, which must then load or be refused for this reason.
#[track_caller]
fn check(case: &str, pointer: &str, value: Value, refused: Option<&str>) {
    let golden = golden();
    let whole = file(&golden, &golden.cases[case]);
    let mut file = whole.clone();
    *file.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer}")) = value;
    match (read(&file), refused) {
        (Ok(tokenizer), None) => {
            let plain = read(&whole).unwrap();
            let text = "It's  12 o'clock\n<|l|> word";
            assert_eq!(tokenizer.encode_special(text).unwrap(), plain.encode_special(text).unwrap());
        }
        (Err(reason), Some(part)) => assert!(reason.contains(part), "lacks {part:?}: {reason}"),
        (Err(reason), None) => panic!("{reason}"),
        (Ok(_), Some(part)) => panic!("not refused: {part}"),
    }
}

#[test]
fn post_processors_that_add_tokens_are_refused() {
    let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let template = |single: Value| json!({ "type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {} });
    let begin = json!({ "SpecialToken": { "id": "<|begin|>", "type_id": 0 } });
    let alone = template(json!([text]));
    check("llama3", "/post_processor", alone.clone(), None);
    check("llama3", "/post_processor", json!({ "type": "ByteLevel", "trim_offsets": true }), None);
    check(
        "llama3",
        "/post_processor",
        json!({ "type": "Sequence", "processors": [{ "type": "ByteLevel" }, alone] }),
        None,
    );
    let adds = "has a 'post_processor' that adds \"<|begin|>\" to every text";
    check("llama3", "/post_processor", template(json!([begin, text])), Some(adds));
    let inside = json!({ "type": "Sequence", "processors": [template(json!([text, begin]))] });
    check("llama3", "/post_processor", inside, Some(adds));
    check("llama3", "/post_processor", template(json!([text, text])), Some("'post_processor.single'"));
    check(
        "llama3",
        "/post_processor",
        json!({ "type": "BertProcessing" }),
        Some("a 'post_processor' of type 'BertProcessing'"),
    );
}

#[test]
fn unsupported_settings_are_refused_by_name() {
    let set = |pointer, value, part| check("qwen2", pointer, value, Some(part));
    set("/normalizer", json!({ "type": "NFKC" }), "has a 'normalizer' of type 'NFKC'");
    set("/pre_tokenizer", json!({ "type": "Metaspace" }), "a 'pre_tokenizer' of type 'Metaspace'");
    let split = "/pre_tokenizer/pretokenizers/0";
    set(split, json!({ "type": "Whitespace" }), "a 'pre_tokenizer' of type 'Whitespace'");
    set(split, json!({ "type": "ByteLevel", "add_prefix_space": false }), "with steps after ByteLevel");
    set("/pre_tokenizer/pretokenizers/1", json!({ "type": "Digits" }), "does not end with ByteLevel");
    set("/pre_tokenizer/pretokenizers/0/behavior", json!("Shuffled"), "'pre_tokenizer.behavior' 'Shuffled'");
    set(
        "/pre_tokenizer/pretokenizers/0/pattern",
        json!({ "Regex": "\\w+" }),
        "has the escape '\\w' at character 2",
    );
    set(
        "/pre_tokenizer/pretokenizers/0/pattern",
        json!({ "Regex": "a?".repeat(200_000) + "b" }),
        "a?…\", which is not supported: it has more than 4096 bytes",
    );
    let step = json!({ "type": "Digits", "individual_digits": true });
    set("/pre_tokenizer/pretokenizers", json!(vec![step; 200_000]), "'pre_tokenizer' of more than 100 steps");
    set("/pre_tokenizer/pretokenizers/0/invert", json!(1), "has 1 in 'pre_tokenizer.invert'");
    set("/decoder", json!({ "type": "Metaspace" }), "a 'decoder' that is not ByteLevel");
    set("/model/type", json!("Unigram"), "a model of type 'Unigram'");
    let added = json!([{ "id": 7000, "content": "<x>", "special": true }]);
    set("/added_tokens", added, "gives the added token \"<x>\" the id 7000, but the next id is");
    let golden = golden();
    let mut file = file(&golden, &golden.cases["qwen2"]);
    file["truncation"] = json!({ "max_length": 8 });
    assert!(read(&file).unwrap_err().contains("has the setting 'truncation'"));
    file["truncation"] = json!(null);
    file["model"]["dropout"] = json!(0.1);
    assert!(read(&file).unwrap_err().contains("the option 'model.dropout'"));
}

#[test]
fn texts_that_split_at_a_long_string_load_and_encode() {
    let golden = golden();
    let mut file = file(&golden, &golden.cases["qwen2"]);
    let long = "ab".repeat(100_000);
    file["pre_tokenizer"]["pretokenizers"][0]["pattern"] = json!({ "String": long });
    let tokenizer = read(&file).unwrap();
    let text = format!("c{long}c");
    assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap()), text);
}

#[test]
fn tokenizer_config_names_the_tokens_that_begin_and_end_a_text() {
    let golden = golden();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tokenizer.json");
    let file = file(&golden, &golden.cases["prefix"]);
    fs::write(&path, file.to_string()).unwrap();
    let read_with = |config: Value| {
        fs::write(directory.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        Tokenizer::read(&path).map(|tokenizer| {
            let name = |id: Option<u32>| id.map(|id| tokenizer.decode(&[id]));
            (name(tokenizer.begin_token()), name(tokenizer.end_token()))
        })
    };
    let named = |begin: Option<&str>, end: Option<&str>| (begin.map(str::to_owned), end.map(str::to_owned));
    assert_eq!(read_with(json!({})).unwrap(), named(None, None));
    let config = json!({ "bos_token": { "content": "<|l|>" }, "eos_token": "<|r|>" });
    assert_eq!(read_with(config).unwrap(), named(Some("<|l|>"), Some("<|r|>")));
    // A run keeps these tokens.
    let tokenizer = Tokenizer::read(&path).unwrap();
    let run = tempfile::tempdir().unwrap();
    tokenizer.save(run.path()).unwrap();
    assert_eq!(Tokenizer::load(run.path()).unwrap(), tokenizer);
    let unknown = read_with(json!({ "eos_token": "<|z|>" })).unwrap_err().to_string();
    assert!(unknown.contains("tokenizer_config.json names the eos_token \"<|z|>\""), "{unknown}");

    // Any token may end a text: an added one that is not special, or an ordinary one in the spelling of the vocabulary.
    for (eos, text) in [
        ("<|a|>longer>", "<|a|>longer>"),
        ("cafe\u{301}", "cafe\u{301}"),
        ("ĠĠ", "  "),
        ("e", "e"),
        ("é", "\u{fffd}"),
    ] {
        assert_eq!(read_with(json!({ "eos_token": eos })).unwrap(), named(None, Some(text)));
        let tokenizer = Tokenizer::read(&path).unwrap();
        tokenizer.save(run.path()).unwrap();
        assert_eq!(Tokenizer::load(run.path()).unwrap(), tokenizer);
    }
    assert_eq!(read_with(json!({ "eos_token": "" })).unwrap(), named(None, None));

    let refused = |config: Value, part: &str| {
        let reason = read_with(config).unwrap_err().to_string();
        assert!(
            reason.contains(part) && reason.contains("tokenizer_config.json"),
            "lacks {part:?}: {reason}"
        );
    };
    refused(json!({ "eos_token": " e" }), "names the eos_token \" e\"");
    refused(json!([1]), "is not a JSON object");
    refused(json!({ "eos_token": 5 }), "has 5 in 'eos_token'");
    refused(json!({ "bos_token": { "content": true } }), "has {\"content\":true} in 'bos_token'");
    refused(json!(" ".repeat(64 << 20)), "is larger than 64 MiB");

    // Also for characters.
    Tokenizer::chars("ab\n").write(&path).unwrap();
    assert_eq!(read_with(json!({ "eos_token": "\n" })).unwrap(), named(None, Some("\n")));
    refused(json!({ "eos_token": "c" }), "names the eos_token \"c\"");

    // GPT-2's published configuration does not name them, but they are known by name. null means no token.
    Tokenizer::gpt2().write(&path).unwrap();
    let end = Some("<|endoftext|>");
    assert_eq!(read_with(json!({ "model_max_length": 1024 })).unwrap(), named(end, end));
    assert_eq!(read_with(json!({ "eos_token": null })).unwrap(), named(end, None));
}
