//! `folio import`, and training that begins with another program's model.

use std::path::PathBuf;

use serde_json::json;

use crate::place::Place;

/// A model of `reference/import_golden.py`.
pub(crate) fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../reference/golden/import").join(name)
}

/// A place with a model of nanoGPT as a run, and a text of its eight characters.
fn place() -> Place {
    let place = Place::new();
    place.ok(&format!("import '{}' --run_dir model", golden("nanogpt").display()));
    place.write("text.txt", "to be, or not to be, or not to be, to be or not".repeat(4));
    place
}

#[test]
fn every_command_works_on_an_imported_model_or_says_what_it_lacks() {
    let place = place();
    assert_eq!(place.json("model/status.json")["state"], json!("imported"));
    assert_eq!(place.link("model/latest"), "checkpoint_0");
    let works = |line: &str, part: &str| {
        let ran = place.ok(line);
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert!(said.contains(part), "{line}: {said}");
    };
    works("generate model --prompt 'to be' --max_new_tokens 8", "model/checkpoint_0");
    works("eval model --data text.txt", "evaluated on");
    works("runs model", "imported");
    works("runs .", "imported");
    works("report model --out report.html", "");
    works("export model", "epoch");
    works("tokenizer inspect --tokenizer_type model --text 'to be'", "t|o| |b|e");
    assert!(place.text("report.html").contains("imported"));
    let lacks = |line: &str, code: i32, part: &str| {
        let ran = place.run(line);
        assert_eq!((ran.code, ran.stderr.lines().count()), (Some(code), 1), "{line}: {}", ran.stderr);
        assert!(ran.stderr.contains(part), "{line}: {}", ran.stderr);
    };
    lacks("eval model", 2, "the run was imported and has no text of its own; give one with --data FILE");
    lacks("plot model", 2, "has no losses to plot yet");
    lacks(
        "train --resume model",
        1,
        "was imported and never trained, so there is nothing to resume: train it with --init_from model",
    );
    lacks("generate model --best_eval_loss_model", 1, "has no losses.json");
    lacks("import model --run_dir model", 1, "already holds a run");
    lacks("import nowhere --run_dir new", 1, "nowhere does not exist");
    lacks("import plays.txt", 1, "is neither a safetensors file nor a file of torch.save");
    lacks("import model --run_dir new --tokenizer plays.txt", 1, "plays.txt");
    for nothing in ["new", "runs"] {
        assert!(!place.path(nothing).exists(), "{nothing}");
    }
}

#[test]
fn a_run_without_a_directory_is_named_after_its_model() {
    let place = Place::new();
    let line = format!(
        "import '{}' --tokenizer '{}'",
        golden("mingpt/model.pt").display(),
        golden("nanogpt/meta.pkl").display()
    );
    let said = place.ok(&line).stderr;
    assert!(said.contains("a model of minGPT") && said.contains("5 more rows"), "{said}");
    place.ok(&line);
    assert!(
        place.path("runs/mingpt/checkpoint_0").exists() && place.path("runs/mingpt-2/checkpoint_0").exists()
    );
}

#[test]
fn fine_tuning_takes_sizes_and_tokenizer_from_the_model() {
    let place = place();
    let rest = "--data text.txt --batch_sizes 2 --num_epochs 2 --save_losses";
    place.ok(&format!("train --init_from model {rest} --run_dir tuned"));
    let settings = place.json("tuned/hyperparameters.json");
    let imported = place.json("model/hyperparameters.json");
    for (key, value) in [
        ("n_emb", json!(8)),
        ("n_heads", json!(2)),
        ("n_blocks", json!(2)),
        ("block_size", json!(12)),
        ("dropout", json!(0.1)),
        ("embedding_rows", json!(13)),
        ("activation", json!("gelu")),
        ("tokenizer_type", json!("chrs")),
    ] {
        assert_eq!(settings[key], value, "{key}");
    }
    assert_eq!(settings["init_from_sha256"], imported["init_from_sha256"]);
    assert_eq!(
        settings["init_from"],
        json!(place.path("model").canonicalize().unwrap().display().to_string())
    );
    // A preset gives way to the model; its other settings count. The run gets a name of its own.
    place.ok(&format!("train --preset quick --init_from model {rest} --max_steps 3"));
    let settings = place.json("runs/quick/hyperparameters.json");
    assert_eq!(
        (&settings["n_emb"], &settings["block_size"], &settings["split"]),
        (&json!(8), &json!(12), &json!("contiguous"))
    );
    place.ok(&format!("train --init_from model {rest} --block_size 6 --dropout 0 --n_emb 8"));
    let settings = place.json("runs/model-tuned/hyperparameters.json");
    assert_eq!((&settings["block_size"], &settings["dropout"]), (&json!(6), &json!(0.0)));
    // Continuing keeps what the model is, and another sweep varies what it may.
    place.ok("train --from_checkpoint --from_checkpoint_run_dir tuned --from_checkpoint_step 2 --num_epochs 1 --run_dir more");
    assert_eq!(place.json("more/hyperparameters.json")["embedding_rows"], json!(13));
    place.ok(&format!("train --init_from model {rest} --lr 1e-3 1e-4 --block_sizes 6 12 --run_dir search"));
    for run in ["run_1", "run_4"] {
        let settings = place.json(&format!("search/{run}/hyperparameters.json"));
        assert_eq!(settings["init_from_sha256"], imported["init_from_sha256"]);
    }
}

#[test]
fn an_imported_run_is_continued_on_any_text() {
    let place = place();
    let from = "train --from_checkpoint --from_checkpoint_run_dir model --from_checkpoint_step 0";
    let said =
        place.ok(&format!("{from} --data text.txt --batch_sizes 2 --num_epochs 1 --run_dir more")).stderr;
    assert!(said.contains("an imported model has no optimizer state, so AdamW starts fresh"), "{said}");
    assert!(!said.contains("is not the text that the model was trained on"), "{said}");
    // The same steps as those that begin with the model.
    place.ok("train --init_from model --data text.txt --batch_sizes 2 --num_epochs 1 --run_dir tuned");
    assert!(
        place.read("more/checkpoint_1/model.safetensors")
            == place.read("tuned/checkpoint_1/model.safetensors")
    );
    let ran = place.run(&format!("{from} --num_epochs 1 --run_dir plays"));
    assert!(
        ran.code == Some(1) && ran.stderr.contains("is not among the 8 characters")
            || ran.stderr.contains("lacks"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_run_that_was_stopped_before_its_first_checkpoint_resumes_from_the_model() {
    let place = place();
    let line = "train --init_from model --data text.txt --batch_sizes 2 --num_epochs 1";
    place.ok(&format!("{line} --run_dir whole"));
    place.ok(&format!("{line} --run_dir stopped"));
    // As killed before the first save: with a tokenizer or without.
    for name in ["checkpoint_1", "status.json", "losses.json", "lrs.json", "latest", "best", "tokenizer.json"]
    {
        let path = place.path(&format!("stopped/{name}"));
        if path.is_dir() && !path.is_symlink() {
            std::fs::remove_dir_all(path)
        } else {
            std::fs::remove_file(path)
        }
        .unwrap();
    }
    std::fs::rename(place.path("model"), place.path("moved")).unwrap();
    let ran = place.run("train --resume stopped");
    assert!(ran.code == Some(1) && ran.stderr.contains("model does not exist"), "{}", ran.stderr);
    place.ok("train --resume stopped --init_from moved");
    assert!(
        place.read("whole/checkpoint_1/model.safetensors")
            == place.read("stopped/checkpoint_1/model.safetensors")
    );
}

#[test]
fn what_contradicts_the_model_is_refused() {
    let place = place();
    let before = place.names("");
    let refused = |flags: &str, part: &str| {
        let ran = place.run(&format!("train --init_from model --data text.txt {flags} --run_dir new"));
        assert_eq!((ran.code, ran.stderr.lines().count()), (Some(2), 1), "{flags}: {}", ran.stderr);
        assert!(ran.stderr.contains(part), "{flags}: {}", ran.stderr);
    };
    refused("--n_emb 16", "`--n_emb 16` contradicts the model in model, which has 8; leave the flag out");
    refused("--n_blocks 3", "`--n_blocks 3` contradicts the model");
    refused("--n_heads 4", "`--n_heads 4` contradicts the model");
    refused(
        "--block_size 13",
        "`--block_sizes 13` is longer than the imported model's context: it has learned 12 positions",
    );
    refused("--block_sizes 6 13", "`--block_sizes 13` is longer");
    refused("--tokenizer_type bpe", "bpe is not the tokenizer of the model");
    refused("--vocab_size 300", "--vocab_size: the model in model has a tokenizer of its own");
    let from = "--from_checkpoint --from_checkpoint_run_dir model --from_checkpoint_step 0";
    refused(from, "--init_from contradicts --from_checkpoint");
    assert_eq!(place.names(""), before);

    // The model that a run begins with is not overwritten.
    for flags in ["", "--lr 1e-3 1e-4"] {
        let ran = place
            .run(&format!("train --init_from model --data text.txt {flags} --run_dir model --overwrite"));
        assert!(
            ran.stderr.contains("--run_dir model is where the model of --init_from is"),
            "{}",
            ran.stderr
        );
        assert_eq!(place.names(""), before);
    }
}

#[test]
fn the_preset_for_fine_tuning_needs_a_model_and_takes_its_sizes() {
    let place = place();
    let train = "train --preset finetune-shakespeare --data text.txt";
    let ran = place.run(train);
    assert_eq!((ran.code, ran.stderr.lines().count()), (Some(2), 1), "{}", ran.stderr);
    assert!(ran.stderr.contains("name one with --init_from"), "{}", ran.stderr);
    place.ok(&format!("{train} --init_from model --freeze embeddings --max_steps 2 --sample_tokens 4"));
    let settings = place.json("runs/finetune-shakespeare/hyperparameters.json");
    let model = place.json("model/hyperparameters.json");
    for (name, value) in [
        ("learning_rate", json!(3e-5)),
        ("gradient_accumulation_steps", json!(32)),
        ("batch_size", json!(32)),
        ("beta2", json!(0.95)),
        ("dropout", json!(0.0)),
        ("lr_schedule", json!("const")),
        ("freeze", json!("embeddings")),
        ("n_emb", model["n_emb"].clone()),
        ("block_size", model["block_size"].clone()),
        ("tokenizer_type", model["tokenizer_type"].clone()),
    ] {
        assert_eq!(settings[name], value, "{name}");
    }
}
