//! `folio export` of models. Tables of records are tested with reports.

use folio::export::gguf::{Gguf, Value};
use serde_json::Value as Json;

use crate::importing::golden;
use crate::mistakes::{FAILURE, USAGE, check_all, check_refused, place_with_run};
use crate::place::{Place, TINY};

/// The value of a key of a GGUF file.
fn value(place: &Place, file: &str, key: &str) -> Value {
    let file = Gguf::read(&place.path(file)).unwrap_or_else(|error| panic!("{error}"));
    file.value(key).unwrap_or_else(|| panic!("no {key}")).clone()
}

#[test]
fn exports_are_named_after_the_run_the_type_and_a_named_checkpoint() {
    let place = place_with_run();
    for (arguments, file) in [
        ("run --to gguf", "run-f16.gguf"),
        ("run --to gguf --type q8_0", "run-q8_0.gguf"),
        ("run/checkpoint_1 --to gguf --type f32", "run-checkpoint_1-f32.gguf"),
        ("run --checkpoint_step 1 --to gguf --type bf16", "run-checkpoint_1-bf16.gguf"),
        ("run/latest --to onnx", "run-checkpoint_2.onnx"),
        ("run --to onnx --type f32 --out my.onnx", "my.onnx"),
        ("run --to hf", "run-hf"),
        ("run --to hf --type bf16 --out half", "half"),
    ] {
        let ran = place.ok(&format!("export {arguments}"));
        assert_eq!(ran.stdout, format!("{file}\n"), "{arguments}");
        assert!(ran.stderr.starts_with("using run/checkpoint_"), "{arguments}: {}", ran.stderr);
        assert!(place.path(file).exists(), "{file}");
    }
    assert_eq!(value(&place, "run-f16.gguf", "general.name"), Value::Text("run".to_owned()));
    assert_eq!(value(&place, "run-f16.gguf", "general.file_type"), Value::U32(1));
    assert_ne!(place.read("run-checkpoint_1-f32.gguf"), place.read("run-f16.gguf"));
    let config: Json = serde_json::from_str(&place.text("half/config.json")).expect("JSON");
    assert_eq!((&config["model_type"], &config["torch_dtype"]), (&"gpt2".into(), &"bfloat16".into()));
    let inside = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(place.names("run-hf"), inside);
    assert_eq!(place.read("run-hf/model.safetensors"), place.read("run/best/model.safetensors"));
    assert_eq!(place.read("run-hf/config.json"), place.read("run/best/config.json"));
}

#[test]
fn what_differs_from_the_model_is_noted() {
    let place = place_with_run();
    let ran = place.ok("export run --to gguf --type q8_0");
    let notes: Vec<&str> = ran.stderr.lines().skip(1).collect();
    let [token, head, types, context] = notes[..] else { panic!("{}", ran.stderr) };
    assert!(token.starts_with("note: <|endoftext|> was added as token"), "{token}");
    // The biases of a model of 26 steps are small.
    assert!(head.starts_with("note: the head is f"), "{head}");
    // A model of 16 channels: beside the head, only the second matrix of the MLP has rows of 64.
    assert_eq!(types, "note: 3 matrices are f16: their rows cannot be divided into q8_0's blocks of 32");
    assert!(context.starts_with("note: llama.cpp aborts after 16 tokens"), "{context}");
    assert_eq!(place.ok("export run --to onnx").stderr.lines().count(), 1);
}

#[test]
fn rows_that_stand_for_no_token_are_left_out() {
    let place = Place::new();
    // 265 tokens in 270 rows, as programs pad the embedding.
    place.ok(&format!("import '{}' --run_dir padded", golden("hf").display()));
    assert_eq!(place.json("padded/checkpoint_0/config.json")["vocab_size"], 270);
    for (format, out) in [("hf", "hf"), ("gguf", "padded.gguf"), ("onnx", "padded.onnx")] {
        place.ok(&format!("export padded --to {format} --out {out}"));
    }
    assert_eq!(place.json("hf/config.json")["vocab_size"], 265);
    let gguf = Gguf::read(&place.path("padded.gguf")).expect("readable");
    assert_eq!(gguf.tensor("token_embd.weight").expect("the embedding").shape[0], 265);
}

#[test]
fn the_newest_run_and_the_best_of_a_sweep_are_exported() {
    let place = Place::new();
    place.ok(&format!("train {TINY} --save_losses --learning_rates 1e-3 3e-3 --run_dir runs/search"));
    let ran = place.ok("export --to gguf");
    assert_eq!(ran.stdout, "search-f16.gguf\n");
    assert!(
        ran.stderr.contains("using runs/search/run_") && ran.stderr.contains("the best"),
        "{}",
        ran.stderr
    );
    assert_eq!(place.ok("export --to csv").stdout, place.ok("export runs/search --to csv").stdout);
}

#[test]
fn without_a_format_it_writes_csv_with_a_note() {
    let place = place_with_run();
    let (old, new) = (place.ok("export run --steps"), place.ok("export run --to csv --steps"));
    assert_eq!(old.stdout, new.stdout);
    assert_eq!((old.stderr.lines().count(), new.stderr.as_str()), (1, ""), "{}", old.stderr);
    assert!(old.stderr.contains("note: ") && old.stderr.contains("--to csv"), "{}", old.stderr);
}

#[test]
fn only_exports_are_overwritten_and_only_on_request() {
    let place = place_with_run();
    place.write("notes.gguf", "my notes");
    place.write("notes.onnx", "");
    std::fs::create_dir(place.path("mine")).expect("room");
    place.write("mine/config.json", "");
    place.write("mine/poem.txt", "a poem");
    for (format, out) in [("gguf", "a.gguf"), ("onnx", "a.onnx"), ("hf", "a")] {
        let line = format!("export run --to {format} --out {out}");
        place.ok(&line);
        let before = place.files("");
        check_refused(
            &place,
            &line,
            FAILURE,
            &[&format!("{out} exists"), "give another --out", "--overwrite"],
        );
        place.ok(&format!("{line} --overwrite"));
        assert!(place.files("") == before, "{line}");
    }
    let mistakes: &[(&str, i32, &[&str])] = &[
        (
            "export run --to gguf --out notes.gguf --overwrite",
            FAILURE,
            &["notes.gguf is not a file of folio export"],
        ),
        (
            "export run --to onnx --out notes.onnx --overwrite",
            FAILURE,
            &["notes.onnx is not a file of folio export"],
        ),
        ("export run --to onnx --out a.gguf --overwrite", FAILURE, &["a.gguf is not a file of folio export"]),
        ("export run --to hf --out mine --overwrite", FAILURE, &["mine contains poem.txt", "did not write"]),
        ("export run --to hf --out run --overwrite", FAILURE, &["run contains", "did not write"]),
        ("export run --to hf --out run/checkpoint_2 --overwrite", FAILURE, &["contains", "did not write"]),
        ("export run --to hf --out a.gguf --overwrite", FAILURE, &["a.gguf is not a directory"]),
        ("export run --to gguf --out mine", FAILURE, &["mine is a directory", "give a file with --out"]),
    ];
    check_all(&place, mistakes);
}

#[test]
fn mistakes_are_one_line_and_write_nothing() {
    let place = place_with_run();
    let mistakes: &[(&str, i32, &[&str])] = &[
        ("export run --to ggml", USAGE, &["ggml", "did you mean 'gguf'?", "hf, gguf, onnx, csv"]),
        ("export run --to gguf --type q4_0", USAGE, &["q4_0", "f32, f16, bf16, q8_0"]),
        ("export run --to hf --type q8_0", USAGE, &["q8_0 is a type of gguf only"]),
        ("export run --to onnx --type f16", USAGE, &["onnx files have f32 weights", "remove --type f16"]),
        ("export run --to csv --type f16", USAGE, &["--type is for models"]),
        ("export run --type f16", USAGE, &["--type is for models", "--to gguf"]),
        ("export run --to gguf --steps", USAGE, &["--steps is for --to csv"]),
        ("export run --to csv --checkpoint_step 1", USAGE, &["remove the choice of a checkpoint"]),
        ("export run --to csv --overwrite", USAGE, &["--overwrite is for models"]),
        ("export run --to gguf --checkpoint_step 1 2", USAGE, &["one checkpoint is exported at a time"]),
        ("export run --to gguf --checkpoint_step 7", FAILURE, &["run holds no checkpoint 7"]),
        ("export none --to gguf", FAILURE, &["none does not exist"]),
        ("export --to gguf", FAILURE, &["runs holds no run with a checkpoint"]),
        ("export run --to gguf --out none/x.gguf", FAILURE, &["cannot write none/x.gguf"]),
        ("export run --to hf --out none/x", FAILURE, &["cannot write none/x"]),
        ("export run --to onnx --out none/x.onnx", FAILURE, &["cannot write none/x.onnx"]),
    ];
    check_all(&place, mistakes);
    let model = place.read("run/checkpoint_2/model.safetensors");
    place.write("run/checkpoint_2/model.safetensors", &model[..model.len() - 1]);
    check_refused(&place, "export run/checkpoint_2 --to gguf", FAILURE, &["model.safetensors", "is damaged"]);
}
