//! Tokenizers, compared to the golden files of `reference/tokenizers_golden.py` (Hugging Face's `tokenizers`).

use std::fs;
use std::path::PathBuf;

use folio::text::Corpus;
use folio::tokenizer::Tokenizer;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The result of the library's trainer on tiny Shakespeare.
#[derive(Deserialize)]
struct Training {
    vocab_size: usize,
    train_chars: usize,
    merges: usize,
    merges_sha256: String,
    first_merges: Vec<String>,
    ids: usize,
    ids_sha256: String,
}

#[derive(Deserialize)]
struct Encoded {
    text: String,
    ids: Vec<u32>,
}

fn golden(name: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../reference/golden/tokenizers").join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).expect("JSON")
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn merges_and_ids_of_tiny_shakespeare_match_the_library() {
    let text = Corpus::embedded().text;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tokenizer.json");
    let trainings: Vec<Training> =
        serde_json::from_value(golden("merges_tiny_shakespeare.json")["trainings"].clone()).unwrap();
    assert!(trainings.len() >= 4, "{} trainings", trainings.len());
    for golden in trainings {
        // The text is ASCII: every character is one byte.
        let tokenizer = Tokenizer::train_bpe(&text[..golden.train_chars], golden.vocab_size, &[]).unwrap();
        assert_eq!(tokenizer.vocab_size(), golden.vocab_size);
        tokenizer.write(&path).unwrap();
        let file: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let merges: Vec<&str> =
            file["model"]["merges"].as_array().unwrap().iter().map(|merge| merge.as_str().unwrap()).collect();
        assert_eq!(merges.len(), golden.merges, "of {}", golden.vocab_size);
        assert_eq!(merges[..golden.first_merges.len()], golden.first_merges, "of {}", golden.vocab_size);
        let lines: String = merges.iter().map(|merge| format!("{merge}\n")).collect();
        assert_eq!(sha256(lines.as_bytes()), golden.merges_sha256, "merges of {}", golden.vocab_size);

        let ids = tokenizer.encode(&text).unwrap();
        assert_eq!(ids.len(), golden.ids, "ids of {}", golden.vocab_size);
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        assert_eq!(sha256(&bytes), golden.ids_sha256, "ids of {}", golden.vocab_size);
    }
}

#[test]
fn gpt2_ids_match_the_library() {
    let texts: Vec<Encoded> = serde_json::from_value(golden("gpt2_ids.json")).unwrap();
    assert!(texts.len() >= 60, "{} texts", texts.len());
    let gpt2 = Tokenizer::gpt2();
    for Encoded { text, ids } in texts {
        assert_eq!(gpt2.encode(&text).unwrap(), ids, "{text:?}");
        assert_eq!(gpt2.decode(&ids), text);
    }
}
