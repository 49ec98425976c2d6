//! The forms in which a text comes: files, directories, patterns, stdin, packed, from other systems; a text of its own to
//! evaluate on; and another text for a model that is trained.

use std::fs;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use folio::files::digest;
use folio::text::Corpus;
use serde_json::json;

use crate::place::{Place, TINY, plays};

const SAVED: &str = "--save_losses --save_checkpoint";
const FAILURE: Option<i32> = Some(1);
const USAGE: Option<i32> = Some(2);

/// [`TINY`] on another text.
fn tiny(data: &str) -> String {
    TINY.replace("plays.txt", data)
}

fn from(run: &str, step: u64) -> String {
    format!("train --from_checkpoint --from_checkpoint_run_dir {run} --from_checkpoint_step {step}")
}

/// Text that follows that of plays.txt.
fn more() -> String {
    Corpus::embedded().text[1000..1400].to_owned()
}

/// A place with a run of two epochs in `run`.
fn place_with_run() -> Place {
    let place = Place::new();
    place.ok(&format!("train {TINY} {SAVED} --run_dir run"));
    place
}

fn packed(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes()).expect("room in memory");
    encoder.finish().expect("room in memory")
}

#[track_caller]
fn check_refused(place: &Place, line: &str, stdin: &str, code: Option<i32>, expected: &[&str]) {
    let before = place.files("");
    let ran = place.run_with(line, stdin);
    assert_eq!(ran.code, code, "folio {line}\n{}", ran.stderr);
    for part in expected {
        assert!(ran.stderr.contains(part), "folio {line}\n{} lacks {part:?}", ran.stderr);
    }
    assert_eq!(place.files(""), before, "folio {line} changed files");
}

#[test]
fn line_endings_of_windows_make_the_same_run_and_are_told_once() {
    let place = place_with_run();
    place.write("dos.txt", plays().replace('\n', "\r\n"));
    let ran = place.ok(&format!("train {} {SAVED} --run_dir dos", tiny("dos.txt")));
    let lines = plays().matches('\n').count();
    let reported = format!("dos.txt: converted {lines} line endings (CRLF or CR) to LF\n");
    assert_eq!(ran.stderr.matches(&reported).count(), 1, "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("line endings").count(), 1, "{}", ran.stderr);
    for name in ["losses.json", "vocab.json", "checkpoint_2/model.safetensors"] {
        assert!(place.read(&format!("dos/{name}")) == place.read(&format!("run/{name}")), "{name}");
    }
    assert!(!place.ok("eval run").stderr.contains("line endings"));
}

#[test]
fn files_directories_patterns_and_packed_files_are_one_text() {
    let place = Place::new();
    let (first, second) = (plays()[..500].to_owned() + "\n", plays()[500..].to_owned());
    fs::create_dir(place.path("texts")).expect("a new directory");
    place.write("texts/a.txt", &first);
    place.write("texts/b.txt.gz", packed(&second));
    place.write("texts/notes.md", "not a text by its name");
    let both = ["texts/a.txt", "texts/b.txt.gz"].map(|name| place.path(name).display().to_string());
    let sha256 = digest(format!("{}\n{}\n", digest(first.as_bytes()), digest(second.as_bytes())).as_bytes());
    for (index, data) in
        ["texts", "texts/a.txt texts/b.txt.gz", "texts/a.txt --data texts/b.txt.gz", "'texts/?.t*'"]
            .iter()
            .enumerate()
    {
        place.ok(&format!("train {} --max_steps 1 --run_dir run_{index}x", tiny(data)));
        let settings = place.json(&format!("run_{index}x/hyperparameters.json"));
        assert_eq!((&settings["data"], &settings["data_sha256"]), (&json!(both), &json!(sha256)), "{data}");
    }
    // One file is a string, as it always was.
    place.write("plays.gz", packed(&plays()));
    place.ok(&format!("train {} --max_steps 1 --run_dir packed", tiny("plays.gz")));
    let settings = place.json("packed/hyperparameters.json");
    assert_eq!(settings["data"], json!(place.path("plays.gz").display().to_string()));
    assert_eq!(settings["data_sha256"], json!(digest(plays().as_bytes())));
    // A file of settings may name several, too.
    place.write(
        "two.toml",
        "data = [\"texts/a.txt\", \"texts/b.txt.gz\"]\nmax_steps = 1\nn_emb = 16\nn_heads = 2",
    );
    place.ok("train --config two.toml --n_blocks 1 --block_sizes 16 --batch_sizes 4 --run_dir config");
    assert_eq!(place.json("config/hyperparameters.json")["data_sha256"], json!(sha256));
    check_refused(
        &place,
        &format!("train {}", tiny("plays.txt plays.txt")),
        "",
        FAILURE,
        &["plays.txt: it is given twice"],
    );
    check_refused(&place, &format!("train {}", tiny("'*.md'")), "", FAILURE, &["*.md: no file matches it"]);
}

#[test]
fn a_run_on_several_files_resumes_and_is_evaluated() {
    let place = Place::new();
    place.write("a.txt", &plays()[..500]);
    place.write("b.txt", &plays()[500..]);
    place.ok(&format!("train {} {SAVED} --run_dir run", tiny("a.txt b.txt")));
    place.ok("train --resume run --num_epochs 3");
    place.ok("eval run");
    place.write("b.txt", &plays()[501..]);
    check_refused(&place, "eval run", "", FAILURE, &["a.txt and 1 more", "has changed"]);
}

#[test]
fn text_from_stdin_is_known_again_by_its_hash() {
    let place = Place::new();
    let ran = place.run_with(&format!("train {} {SAVED} --run_dir run", tiny("-")), plays());
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let settings = place.json("run/hyperparameters.json");
    assert_eq!(
        (&settings["data"], &settings["data_sha256"]),
        (&json!("-"), &json!(digest(plays().as_bytes())))
    );
    let gone = ["came from stdin", "cannot be read again", "--data FILE"];
    for line in ["train --resume run --num_epochs 3", "eval run", &format!("{} --run_dir x", from("run", 2))]
    {
        check_refused(&place, line, "", FAILURE, &gone);
    }
    place.write("other.txt", more());
    check_refused(
        &place,
        "train --resume run --data other.txt --num_epochs 3",
        "",
        FAILURE,
        &["other.txt", "is not the text"],
    );
    place.ok("train --resume run --data plays.txt --num_epochs 3");
    place.ok("eval run --data plays.txt --split eval");
    place.ok(&format!("{} --data plays.txt --num_epochs 1 --run_dir more", from("run", 3)));
    assert_eq!(place.json("more/hyperparameters.json")["new_text"], json!(false));
    // Packed, and piped into a resumption.
    let mut line = "train --resume run --data - --num_epochs 4".to_owned();
    let ran = place.run_with(&line, packed(&plays()));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    line = format!("train {} --eval_data - --run_dir x", tiny("-"));
    check_refused(&place, &line, &plays(), USAGE, &["stdin is already used by --data"]);
}

#[test]
fn what_is_no_text_is_named() {
    let place = Place::new();
    place.write("play.docx", b"PK\x03\x04\x14\0");
    place.write("play.pdf", "%PDF-1.5");
    let wide: Vec<u8> = plays().encode_utf16().flat_map(u16::to_le_bytes).collect();
    place.write("wide.txt", wide);
    place.write("nul.txt", [0; 99]);
    for (name, expected) in [
        ("play.docx", ["zip archive", "unzip play.docx"]),
        ("play.pdf", ["a PDF", "pdftotext play.pdf"]),
        ("wide.txt", ["UTF-16LE without a byte-order mark", "iconv -f UTF-16LE -t UTF-8 wide.txt"]),
        ("nul.txt", ["99 of its 99 bytes are NUL", "fetch it again"]),
    ] {
        check_refused(&place, &format!("train --run_dir x --data {name}"), "", FAILURE, &expected);
    }
    check_refused(
        &place,
        "train --data - --run_dir x",
        "%PDF-1",
        FAILURE,
        &["text on stdin", "pdftotext FILE"],
    );
}

#[test]
fn with_a_text_to_evaluate_on_all_of_the_other_trains() {
    let place = Place::new();
    place.write("eval.txt", more());
    place.ok(&format!("train {TINY} --eval_data eval.txt {SAVED} --run_dir run"));
    // All 62 blocks, in batches of 4.
    assert_eq!(place.numbers("run/losses.json", "/steps"), [16.0, 32.0]);
    let settings = place.json("run/hyperparameters.json");
    assert!(settings["eval_data"].as_str().is_some_and(|path| path.ends_with("eval.txt")), "{settings}");
    assert_eq!(settings["eval_data_sha256"], json!(digest(more().as_bytes())));
    let eval: serde_json::Value = serde_json::from_str(&place.ok("eval run --json").stdout).expect("JSON");
    assert_eq!(eval["characters"], json!(399), "all of it but its first character");
    place.ok("train --resume run --num_epochs 3");
    place.write("moved.txt", more());
    place.write("eval.txt", more().to_uppercase());
    let changed = ["eval.txt", "has changed"];
    check_refused(&place, "train --resume run --num_epochs 4", "", FAILURE, &changed);
    place.ok("train --resume run --num_epochs 4 --eval_data moved.txt");
    place.ok("eval run --eval_data moved.txt");
    // A text that has changed under its name was not given as a different one.
    let line = format!("{} --num_epochs 1 --run_dir x", from("run", 2));
    check_refused(&place, &line, "", USAGE, &["--eval_data", "must not mix"]);
}

#[test]
fn evaluation_text_is_no_training_text() {
    let place = place_with_run();
    place.write("part.txt", &plays()[100..400]);
    place.write("same.txt", plays());
    place.write("more.txt", more());
    place.write("whole.txt", plays() + "One more line.\n");
    for eval in ["same.txt", "part.txt", "whole.txt"] {
        let line = format!("train {TINY} --eval_data {eval} --run_dir x");
        let expected = [eval, "has text in common with the training text", "cannot be used for evaluation"];
        check_refused(&place, &line, "", FAILURE, &expected);
    }
    let line = format!("train {TINY} --eval_data more.txt --split blocks --run_dir x");
    check_refused(&place, &line, "", USAGE, &["--split", "--eval_data", "leave one of them out"]);
    check_refused(&place, "train --resume run --eval_data more.txt", "", USAGE, &["a part of its own text"]);
    // A continued run may be evaluated on another text whose characters are in its vocabulary.
    let line = format!("{} --eval_data more.txt --num_epochs 1 --run_dir more", from("run", 2));
    check_refused(&place, &line, "", FAILURE, &["lacks", "of the characters of more.txt"]);
    place.ok(&format!("{line} --extend_vocab {SAVED}"));
    // The best is on this text.
    let eval = place.numbers("more/losses.json", "/eval_losses");
    assert_eq!(place.numbers("more/losses.json", "/best_eval_loss")[0], eval[2], "{eval:?}");
    place.ok("train --resume more --num_epochs 2");
}

#[test]
fn any_text_can_be_evaluated() {
    let place = place_with_run();
    let json = |line: &str| -> serde_json::Value {
        serde_json::from_str(&place.ok(line).stdout).expect("one JSON object")
    };
    place.write("lines.txt", plays().lines().rev().collect::<Vec<_>>().join("\r\n"));
    place.write("short.txt", "speak");
    let whole = json("eval run --data lines.txt --json");
    assert_eq!(whole["characters"], json!(plays().lines().map(|line| line.len() + 1).sum::<usize>() - 2));
    assert!(whole["loss"].as_f64().is_some_and(|loss| loss > 1.0 && loss < 6.0), "{whole}");
    // Shorter than a block.
    assert_eq!(json("eval run --data short.txt --json")["tokens"], json!(4));
    let ran = place.ok("eval run --data plays.txt");
    assert!(ran.stderr.contains(" was trained on this text"), "{}", ran.stderr);
    let own = json("eval run --json");
    assert_eq!(json("eval run --data plays.txt --split eval --json"), own);
    check_refused(
        &place,
        "eval run --data lines.txt --split eval",
        "",
        FAILURE,
        &["lines.txt", "is not the text"],
    );
    place.write("french.txt", "ça speak ça\u{e9}");
    let expected =
        ["lacks 2 of the characters of french.txt, 3 occurrences", "'ç' (U+00E7) 2, 'é' (U+00E9) 1"];
    check_refused(&place, "eval run --data french.txt", "", FAILURE, &expected);
    place.write("one.txt", "a");
    check_refused(&place, "eval run --data one.txt", "", USAGE, &["the text has fewer than two tokens"]);
}

/// The lines of plays.txt in another order: another text in the same characters.
fn reversed() -> String {
    plays().lines().rev().collect::<Vec<_>>().join("\n") + "\n"
}

#[test]
fn a_model_goes_on_with_another_text() {
    let place = place_with_run();
    place.write("other.txt", reversed());
    let line = format!("{} --data other.txt {SAVED} --num_epochs 1", from("run", 2));
    let ran = place.ok(&format!("{line} --run_dir tuned"));
    assert!(ran.stderr.contains("other.txt is not the text that the model was trained on"), "{}", ran.stderr);
    let settings = place.json("tuned/hyperparameters.json");
    assert_eq!(
        (&settings["new_text"], &settings["data_sha256"]),
        (&json!(true), &json!(digest(reversed().as_bytes())))
    );
    let state = place.json("tuned/checkpoint_3/state.json");
    // Two epochs of 13 steps, and one more with the same AdamW.
    assert_eq!((&state["epoch"], &state["optimizer_steps"]), (&json!(3), &json!(39)));
    // The best is of this text, whatever the losses on the other were.
    let eval = place.numbers("tuned/losses.json", "/eval_losses");
    assert_eq!(place.numbers("tuned/losses.json", "/best_eval_loss"), [eval[2], 39.0]);
    place.ok("train --resume tuned --num_epochs 2");
    place.ok("eval tuned");
    // The split of the new text is its own.
    let ran = place.ok(&format!("{line} --split contiguous --seed 9 --run_dir split"));
    assert!(ran.stdout.contains("Epoch: 3/3"), "{}", ran.stdout);
    let settings = place.json("split/hyperparameters.json");
    assert_eq!((&settings["split"], &settings["seed"]), (&json!("contiguous"), &json!(9)));
    place.ok("train --resume split --num_epochs 2");
    check_refused(
        &place,
        &format!("{line} --run_dir run"),
        "",
        FAILURE,
        &["run holds the run", "another --run_dir"],
    );
    let own = format!("{line} --tokenizer_type bpe --run_dir x");
    check_refused(&place, &own, "", USAGE, &["--tokenizer_type", "has chrs", "keeps its tokenizer"]);
    // An edited copy would be evaluated on what the model was trained on.
    place.write("edited.txt", plays() + "One more line.\n");
    let edited = format!("{} --data edited.txt --num_epochs 1 --run_dir x", from("run", 2));
    check_refused(&place, &edited, "", FAILURE, &["edited.txt", "shares text with", "--eval_data"]);
    place.write("apart.txt", reversed());
    place.ok(&format!("{edited} --eval_data apart.txt"));
    // A text that has changed under its name is no other text.
    place.write("plays.txt", reversed());
    let same_name = format!("{} --data plays.txt --num_epochs 1 --run_dir y", from("run", 2));
    check_refused(&place, &same_name, "", FAILURE, &["plays.txt", "shares text with"]);
    let line = format!("{} --num_epochs 1 --run_dir x", from("run", 2));
    check_refused(&place, &line, "", USAGE, &["--data", "must not mix"]);
}

#[test]
fn weights_alone_go_on_from_every_saved_epoch() {
    let place = Place::new();
    let cosine = "--lr_schedule cosine --cosine_T_max 2";
    place.ok(&format!("train {TINY} {SAVED} {cosine} --run_dir run"));
    place.write("other.txt", reversed());
    let line = format!("{} {SAVED} --num_epochs 1", from("run", 1));
    for (index, data) in ["", "--data other.txt"].iter().enumerate() {
        place.ok(&format!("{line} --weights_only {data} --run_dir alone_{index}"));
        let state = place.json(&format!("alone_{index}/checkpoint_2/state.json"));
        // Epochs and steps go on; AdamW and the schedule begin anew.
        let counts =
            ["epoch", "global_step", "optimizer_steps"].map(|key| state[key].as_u64().expect("a count"));
        assert_eq!(counts, [2, 26, 13], "{data}");
        let rates = place.numbers(&format!("alone_{index}/lrs.json"), "");
        assert_eq!(rates, [1e-3, 1e-3], "{data}");
        // A resumption is of the run itself, with its own AdamW.
        place.ok(&format!("train --resume alone_{index} --num_epochs 2"));
        let state = place.json(&format!("alone_{index}/checkpoint_3/state.json"));
        assert_eq!(state["optimizer_steps"], json!(26), "{data}");
    }
    check_refused(&place, "train --weights_only", "", USAGE, &["--from_checkpoint"]);
}

#[test]
fn characters_that_the_vocabulary_lacks_are_counted_or_added() {
    let place = place_with_run();
    place.write("french.txt", format!("{}\nça è ç\n", reversed()));
    let line = format!("{} --data french.txt {SAVED} --num_epochs 1 --run_dir wide", from("run", 2));
    let expected = [
        "lacks 2 of the characters of french.txt, 3 occurrences in all: 'ç' (U+00E7) 2, 'è' (U+00E8) 1",
        "--extend_vocab",
    ];
    check_refused(&place, &line, "", FAILURE, &expected);
    place.ok(&format!("{line} --extend_vocab"));
    let list = |name: &str| -> Vec<String> { serde_json::from_slice(&place.read(name)).expect("a list") };
    let (old, new) = (list("run/vocab.json"), list("wide/vocab.json"));
    assert_eq!(new, [old.clone(), vec!["ç".to_owned(), "è".to_owned()]].concat());
    assert_eq!(place.json("wide/model_hyperparameters.json")["vocab_size"], json!(old.len() + 2));
    let text = place.ok("generate wide --prompt 'ça' --max_new_tokens 5").stdout;
    assert!(text.starts_with("ça"), "{text}");
    place.ok("train --resume wide --num_epochs 2");
    place.ok("eval wide");
    // In the run's own directory the tokenizer of its checkpoints would be another.
    let line = line.replace("--run_dir wide", "--run_dir run --extend_vocab");
    check_refused(&place, &line, "", FAILURE, &["run holds the run", "another --run_dir"]);
}

#[test]
fn special_tokens_in_the_text_are_tokens_if_they_are_asked_for() {
    let place = Place::new();
    place.write("marked.txt", plays().replace("\n\n", "<|endoftext|>"));
    let line = format!("train {} --tokenizer_type corpus_bpe --vocab_size 280 {SAVED}", tiny("marked.txt"));
    place.ok(&format!("{line} --special_tokens --run_dir special"));
    let tokenizer = place.json("special/tokenizer.json");
    assert_eq!(tokenizer["added_tokens"][0]["content"], json!("<|endoftext|>"));
    assert_eq!(place.json("special/hyperparameters.json")["special_tokens"], json!(true));
    place.ok("train --resume special --num_epochs 3");
    place.ok("eval special");
    place.ok(&format!("{line} --run_dir plain"));
    assert_eq!(place.json("plain/tokenizer.json")["added_tokens"], json!([]));
    check_refused(
        &place,
        &format!("train {TINY} --special_tokens"),
        "",
        USAGE,
        &["--special_tokens: the tokenizer has no"],
    );
    let line = format!("{} --special_tokens=false --run_dir x", from("special", 2));
    check_refused(&place, &line, "", USAGE, &["--special_tokens", "has true"]);
}
