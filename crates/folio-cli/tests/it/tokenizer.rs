//! `folio tokenizer`, and training with a custom tokenizer.

use serde_json::{Value, json};

use crate::place::{MODEL, Place, plays};

const SAVED: &str = "--save_losses --save_checkpoint";
const SHORT: &str = "--block_sizes 8 --batch_sizes 4 --dropouts 0 --num_epochs 1";

/// A place with a tokenizer of 300 tokens, one of them special, in own.json.
fn place_with_tokenizer() -> Place {
    let place = Place::new();
    place.ok("tokenizer train --data plays.txt --vocab_size 300 --special <|endoftext|> --out own.json");
    place
}

#[test]
fn train_writes_the_file_that_encode_and_decode_read() {
    let place = place_with_tokenizer();
    let file = place.json("own.json");
    assert_eq!(file["model"]["merges"].as_array().unwrap().len(), 300 - 256 - 1);
    assert_eq!(file["added_tokens"][0]["id"], 299);
    let ids = place.ok_with("tokenizer encode --tokenizer_type own.json", plays()).stdout;
    // One line of ids per line of text.
    assert_eq!(ids.lines().count(), plays().lines().count());
    assert!(ids.split_whitespace().count() < plays().len() * 3 / 4, "{ids}");
    assert_eq!(place.ok_with("tokenizer decode --tokenizer_type own.json", ids).stdout, plays());
}

#[test]
fn train_reads_stdin_and_replaces_files_only_with_overwrite() {
    let place = place_with_tokenizer();
    let again = "tokenizer train --data - --vocab_size 300 --special <|endoftext|> --out";
    place.ok_with(&format!("{again} other.json"), plays());
    assert_eq!(place.text("other.json"), place.text("own.json"));
    let refused = place.run("tokenizer train --data plays.txt --vocab_size 260 --out own.json");
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("own.json exists") && refused.stderr.contains("--overwrite"));
    assert_eq!(place.text("other.json"), place.text("own.json"));
    place.ok("tokenizer train --data plays.txt --vocab_size 260 --out own.json --overwrite");
    assert_ne!(place.text("other.json"), place.text("own.json"));
}

#[test]
fn encode_writes_every_format() {
    let place = Place::new();
    let encode = |flags: &str, text: &str| {
        place.ok_with(&format!("tokenizer encode --tokenizer_type bpe {flags}"), text).stdout
    };
    assert_eq!(encode("", "Hello world"), "15496 995\n");
    assert_eq!(encode("", "a\n\nb\n"), "64 198\n198\n65 198\n");
    assert_eq!(encode("", ""), "");
    assert_eq!(encode("--format text", "a\tb\\\né"), "a\n\\t\nb\n\\\\\n\\n\né\n");
    assert_eq!(encode("--format text", "👧"), "\\xf0\\x9f\\x91\n\\xa7\n");
    let lines: Vec<Value> =
        (encode("--format jsonl", "Hi👧").lines()).map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        lines,
        [
            json!({ "id": 17250, "text": "Hi" }),
            json!({ "id": 41840, "bytes": [0xf0, 0x9f, 0x91] }),
            json!({ "id": 100, "bytes": [0xa7] })
        ]
    );
    let special = "a<|endoftext|>";
    assert_eq!(encode("--allow_special", special), "64 50256\n");
    assert!(!encode("", special).contains("50256"));
    let jsonl = encode("--format jsonl", "To be.\n");
    assert_eq!(
        place.ok_with("tokenizer decode --tokenizer_type bpe --format jsonl", jsonl).stdout,
        "To be.\n"
    );
}

#[test]
fn inspect_prints_statistics_and_tokens() {
    let place = place_with_tokenizer();
    let reported = place.ok("tokenizer inspect --tokenizer_type own.json --data plays.txt --top 3").stdout;
    for part in
        ["300 tokens, 43 merges", "299 <|endoftext|>", "characters per token", "longest tokens", "plays.txt"]
    {
        assert!(reported.contains(part), "lacks {part:?}: {reported}");
    }
    let shown =
        |text: &str| place.ok(&format!("tokenizer inspect --tokenizer_type bpe --text '{text}'")).stdout;
    assert_eq!(shown("To be, or"), "To| be|,| or\n4 tokens, 9 characters, 2.250 characters per token\n");
    // A character that spans two tokens belongs to the first.
    assert_eq!(shown("a👧b").lines().next(), Some("a|👧|b"));
}

#[test]
fn corpus_bpe_trains_a_tokenizer_with_the_run() {
    let place = Place::new();
    let flags = format!("train {MODEL} {SHORT} {SAVED} --tokenizer_type corpus_bpe --vocab_size 280");
    place.ok(&format!("{flags} --run_dir run"));
    let settings = place.json("run/hyperparameters.json");
    assert_eq!((&settings["tokenizer_type"], &settings["vocab_size"]), (&json!("corpus_bpe"), &json!(280)));
    assert_eq!(settings["split"], "contiguous", "learning from evaluation text is out of the question");
    assert_eq!(place.json("run/model_hyperparameters.json")["vocab_size"], 280);

    // Only the first nine tenths of the text matter.
    let changed = plays()[..900].to_owned() + &"zq zq\n".repeat(20)[..100];
    place.write("changed.txt", changed);
    let other = flags.replace("plays.txt", "changed.txt");
    place.ok(&format!("{other} --run_dir other"));
    assert_eq!(place.text("other/tokenizer.json"), place.text("run/tokenizer.json"));

    // A continued run uses the tokenizer of the run it continues.
    let from = "--from_checkpoint --from_checkpoint_run_dir run --from_checkpoint_step 1";
    place.ok(&format!("train {from} {SAVED} --num_epochs 1 --run_dir more"));
    assert_eq!(place.text("more/tokenizer.json"), place.text("run/tokenizer.json"));
    place.ok("generate run --max_new_tokens 5 --seed 1");
    place.ok("eval more");
}

#[test]
fn a_run_can_use_the_tokenizer_of_a_file() {
    let place = place_with_tokenizer();
    place.ok(&format!("train {MODEL} {SHORT} {SAVED} --tokenizer_type own.json --run_dir run"));
    assert_eq!(place.text("run/tokenizer.json"), place.text("own.json"));
    assert_eq!(place.json("run/model_hyperparameters.json")["vocab_size"], 300);
    // The run keeps a copy of the tokenizer.
    std::fs::remove_file(place.path("own.json")).unwrap();
    let from = "--from_checkpoint --from_checkpoint_run_dir run --from_checkpoint_step 1";
    place.ok(&format!("train {from} {SAVED} --num_epochs 1 --run_dir more"));
    place.ok("tokenizer inspect --tokenizer_type run --text 'so be it'");
}

#[test]
fn every_loss_is_reported_in_bits_too() {
    let place = Place::new();
    let flags = format!("{SHORT} {SAVED} --split contiguous");
    place.ok(&format!("train {MODEL} {flags} --run_dir chrs"));
    place.ok(&format!("train {MODEL} {flags} --tokenizer_type corpus_bpe --vocab_size 280 --run_dir own"));
    let bits = |run: &str, name: &str| place.numbers(&format!("{run}/losses.json"), &format!("/{name}"))[0];
    for part in ["train", "eval"] {
        let nats = bits("chrs", &format!("{part}_losses"));
        // One character per token, one byte per character.
        let want = nats / std::f64::consts::LN_2;
        assert_eq!(bits("chrs", &format!("{part}_bits_per_character")), want);
        assert_eq!(bits("chrs", &format!("{part}_bits_per_byte")), want);
        // Tokens have more than one character: fewer bits per character than per token.
        let nats = bits("own", &format!("{part}_losses")) / std::f64::consts::LN_2;
        assert!(bits("own", &format!("{part}_bits_per_character")) < nats);
    }
    // Runs are ranked by bits, not by loss per token.
    let table = place.ok("runs chrs own").stdout;
    let best = if bits("chrs", "eval_bits_per_character") < bits("own", "eval_bits_per_character") {
        "chrs"
    } else {
        "own"
    };
    let first = table.lines().nth(1).unwrap();
    assert!(table.contains("bits/char") && first.contains(best), "{table}");
    let figure = place.ok("plot chrs own --unit bits_per_character --out both.svg").stdout;
    assert!(figure.contains("bits per character"), "{figure}");
    assert!(place.text("both.svg").contains("loss (bits per character)"));
    let evaluated: Value = serde_json::from_str(&place.ok("eval own --json").stdout).unwrap();
    let ratio =
        evaluated["bits_per_byte"].as_f64().unwrap() / evaluated["bits_per_character"].as_f64().unwrap();
    assert_eq!(ratio, 1.0, "{evaluated}");
}

#[test]
fn special_tokens_in_a_prompt_need_a_flag() {
    let place = place_with_tokenizer();
    place.ok(&format!("train {MODEL} {SHORT} {SAVED} --tokenizer_type own.json --run_dir run"));
    let write = |flags: &str| {
        let line =
            format!("generate run --prompt a<|endoftext|>b --seed 3 --max_new_tokens 30 --json {flags}");
        let reported: Value = serde_json::from_str(&place.ok(&line).stdout).unwrap();
        reported["text"].as_str().unwrap().to_owned()
    };
    // Read as ordinary text, the special token is a different prompt, and the continuation differs.
    assert_ne!(write("--special_tokens"), write(""));
    // The flag does not change a prompt without special tokens.
    let plain = |flags: &str| place.ok(&format!("generate run --prompt First --seed 3 {flags}")).stdout;
    assert_eq!(plain("--special_tokens"), plain(""));
}
