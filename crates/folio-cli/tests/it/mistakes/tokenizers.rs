//! Tokenizers that cannot be, and what they cannot take.

use super::*;

#[test]
fn tokenizers_that_cannot_be() {
    let place = place_with_run();
    place.write("broken.json", "{\"model\":");
    place.write("foreign.json", "{\"model\": {\"type\": \"Unigram\", \"vocab\": {}}}");
    let own = "train {TINY} --tokenizer_type corpus_bpe";
    let train = "tokenizer train {DATA} --out x.json";
    let mistakes: &[(&str, i32, &[&str])] = &[
        (&format!("{own} --vocab_size 255"), USAGE, &["`--vocab_size 255` is too small", "at least 256"]),
        (
            &format!("{own} --vocab_size 100000"),
            USAGE,
            &["--vocab_size", "too large for this text", "at most"],
        ),
        (&format!("{own} --split blocks"), USAGE, &["`--split blocks`", "evaluation text", "use contiguous"]),
        (
            "train {TINY} --vocab_size 300",
            USAGE,
            &["--vocab_size", "chrs has a fixed vocabulary", "`--tokenizer_type corpus_bpe`"],
        ),
        ("train {TINY} --tokenizer_type none.json", FAILURE, &["none.json", "does not exist"]),
        ("train {TINY} --tokenizer_type broken.json", FAILURE, &["broken.json", "not valid JSON"]),
        (
            "train {TINY} --tokenizer_type foreign.json",
            FAILURE,
            &["foreign.json", "'Unigram'", "is not supported"],
        ),
        ("train {TINY} --tokenizer_type own_bpe", USAGE, &["--tokenizer_type", "own_bpe", "corpus_bpe"]),
        (&format!("{train} --vocab_size 255"), USAGE, &["--vocab_size", "too small"]),
        (
            &format!("{train} --vocab_size 256 --special <a>"),
            USAGE,
            &["--vocab_size", "1 are special", "at least 257"],
        ),
        (&format!("{train} --vocab_size 99999"), USAGE, &["--vocab_size", "too large for this text"]),
        (&format!("{train} --vocab_size 300 --special a a"), USAGE, &["--special", "given twice"]),
        (
            "tokenizer train --data none.txt --vocab_size 300 --out x.json",
            FAILURE,
            &["none.txt", "does not exist"],
        ),
        ("tokenizer train {DATA} --vocab_size 300 --out none/x.json", FAILURE, &["none/x.json"]),
        (
            "tokenizer encode --tokenizer_type chrs",
            USAGE,
            &["--tokenizer_type", "chrs depends on the training text"],
        ),
        ("tokenizer encode --tokenizer_type bep", USAGE, &["'bep'", "bpe"]),
        ("tokenizer encode --tokenizer_type none.json", FAILURE, &["none.json", "does not exist"]),
        ("tokenizer decode --tokenizer_type bpe --format text", USAGE, &["--format", "ids or jsonl"]),
        ("tokenizer inspect --tokenizer_type run --text 'ß'", FAILURE, &["'ß'", "not among"]),
        ("plot run run", USAGE, &["several runs", "--out"]),
    ];
    check_all(&place, mistakes);
}

#[test]
fn input_that_a_tokenizer_cannot_take() {
    let place = Place::new();
    let refused = |line: &str, stdin: &[u8], parts: &[&str]| {
        let ran = place.run_with(line, stdin);
        assert_eq!(ran.code, Some(FAILURE), "{}", ran.stderr);
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        for part in parts {
            assert!(ran.stderr.contains(part), "lacks '{part}': {}", ran.stderr);
        }
    };
    refused("tokenizer encode --tokenizer_type bpe", b"caf\xe9", &["stdin", "not UTF-8", "offset 3"]);
    let decode = "tokenizer decode --tokenizer_type bpe";
    refused(decode, b"1 2\n3 50257\n", &["line 2 of stdin", "50257 is out of range", "0 to 50256"]);
    refused(decode, b"1 -2", &["line 1 of stdin", "\"-2\" is not a token id"]);
    refused(decode, b"1 x", &["line 1 of stdin", "\"x\" is not a token id"]);
    refused(&format!("{decode} --format jsonl"), b"{\"text\":1}", &["line 1 of stdin", "an id"]);
}
