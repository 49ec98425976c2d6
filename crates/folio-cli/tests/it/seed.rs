//! The commands in the README of the original project work unchanged, with `folio train` instead of `run.py`.

use serde_json::json;

use crate::place::{MODEL, Place};

/// `%run` is a command of Jupyter notebooks.
const BPE: &str = r#"
%run run.py \
--tokenizer_type 'bpe' \
--batch_sizes 32 \
--block_sizes 128 \
--num_epochs 100 \
--learning_rates 1e-4 \
--weight_decays 3 \
--dropouts 0.2 \
--save_losses \
--save_checkpoint \
--run_dir "./from_checkpoint_lr5e-5" \
--lr_schedule 'cosine' \
--cosine_final_lr 1e-8 \
--cosine_T_max 100
"#;

const SEARCH: &str = r#"
%run run.py \
--tokenizer_type 'bpe' \
--batch_sizes 32 \
--block_sizes 128 \
--num_epochs 100 \
--learning_rates 1e-3 5e-4 1e-4 \
--weight_decays 3 \
--dropouts 0.2 \
--save_losses \
--save_checkpoint \
--run_dir "./from_checkpoint_lr5e-5" \
--lr_schedule 'cosine' \
--cosine_final_lr 1e-8 \
--cosine_T_max 100
"#;

const ALL_OPTIONS: &str = r#"
%run run.py \
--n_emb 384 \
--n_heads 6 \
--n_blocks 6 \
--tokenizer_type 'bpe' \ # or 'chrs'
--batch_sizes 32 \
--block_sizes 128 \
--num_epochs 100 \
--learning_rates 1e-3 5e-4 1e-4 \
--weight_decays 3 \
--dropouts 0.2 \
--save_losses \
--save_checkpoint \
--run_dir "./from_checkpoint_lr5e-5" \
--from_checkpoint \
--from_checkpoint_run_dir "checkpoint_dir" \
--from_checkpoint_step 300 \
--lr_schedule 'cosine' \ # or 'const' or 'cosine_warm_restarts'
--cosine_final_lr 1e-8 \
--cosine_T_max 100 \
--cosine_T_mult 1 \
--cosine_lr_restart_decay 2
"#;

const RUN_DIR: &str = "from_checkpoint_lr5e-5";

/// Smaller sizes, so that the tests are fast. Nothing else changes.
const SMALLER: [(&str, &str); 7] = [
    ("--n_emb 384", "--n_emb 16"),
    ("--n_heads 6", "--n_heads 2"),
    ("--n_blocks 6", "--n_blocks 1"),
    ("--batch_sizes 32", "--batch_sizes 4"),
    ("--block_sizes 128", "--block_sizes 16"),
    ("--num_epochs 100", "--num_epochs 2"),
    ("--from_checkpoint_step 300", "--from_checkpoint_step 1"),
];

/// Converts a command to a `folio` command line: without comments, on one line, with smaller sizes.
fn ours(command: &str) -> String {
    let lines = command.lines().map(|line| line.split(" #").next().unwrap_or(line).trim_end_matches('\\'));
    let line: String = lines.map(str::trim).collect::<Vec<_>>().join(" ");
    let line = line.trim().replacen("%run run.py", "train", 1);
    let line = SMALLER.iter().fold(line, |line, (full, small)| line.replace(full, small));
    match line.contains("--n_emb") {
        true => line + " --data plays.txt",
        false => format!("{line} {MODEL}"),
    }
}

/// The rate of epoch `e`, from 0: `final + (lr - final) (1 + cos(pi e / T_max)) / 2`.
fn cosine(learning_rate: f64, e: usize) -> f64 {
    let wave = (1.0 + (std::f64::consts::PI * e as f64 / 100.0).cos()) / 2.0;
    1e-8 + (learning_rate - 1e-8) * wave
}

/// Checks what the run at `path` recorded, and that `epochs` of them have been reported.
#[track_caller]
fn check_run(place: &Place, path: &str, learning_rate: f64, epochs: usize) {
    let settings = place.json(&format!("{path}/hyperparameters.json"));
    let expected = json!({
        "tokenizer_type": "bpe", "batch_size": 4, "block_size": 16, "num_epochs": 2, "learning_rate": learning_rate,
        "weight_decay": 3.0, "dropout": 0.2, "save_losses": true, "save_checkpoint": true, "lr_schedule": "cosine",
        "cosine_final_lr": 1e-8, "cosine_T_max": 100,
    });
    for (key, value) in expected.as_object().expect("an object") {
        assert_eq!(settings[key], *value, "{key} of {path}");
    }
    let losses = format!("{path}/losses.json");
    assert_eq!(place.numbers(&losses, "/train_losses").len(), epochs);
    assert_eq!(place.numbers(&losses, "/eval_losses").len(), epochs);
    let rates = place.numbers(&format!("{path}/lrs.json"), "");
    let first = epochs - 2;
    assert_eq!(rates[first..], [first, first + 1].map(|e| cosine(learning_rate, e)), "rates of {path}");
    for epoch in [epochs - 1, epochs] {
        assert!(
            place.path(&format!("{path}/checkpoint_{epoch}/model.safetensors")).is_file(),
            "{path} {epoch}"
        );
    }
}

#[test]
fn a_bpe_model_trains_on_a_cosine() {
    let place = Place::new();
    let ran = place.ok(&ours(BPE));
    check_run(&place, RUN_DIR, 1e-4, 2);
    let reports: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(reports.len(), 2, "{}", ran.stdout);
    assert!(reports[0].starts_with("Epoch: 1/2 || Train loss: 1"), "{}", reports[0]);
    assert!(reports[1].contains(" || lr: 9.9975e-05 || bits per character: "), "{}", reports[1]);
}

#[test]
fn several_learning_rates_make_a_search() {
    let place = Place::new();
    let ran = place.ok(&ours(SEARCH));
    for (run, learning_rate) in [(1, 1e-3), (2, 5e-4), (3, 1e-4)] {
        check_run(&place, &format!("{RUN_DIR}/run_{run}"), learning_rate, 2);
        let title = format!("Experiment {run}/3: learning_rate {learning_rate}");
        assert!(ran.stdout.lines().any(|line| line == title), "no '{title}' in\n{}", ran.stdout);
    }
    assert!(!place.path(RUN_DIR).join("run_4").exists());
    assert!(!place.path(RUN_DIR).join("losses.json").exists(), "a search has no losses of its own");
}

#[test]
fn all_options_together_continue_from_a_checkpoint() {
    let place = Place::new();
    // The run that the command continues: any of this model, text and tokenizer.
    let first = "--tokenizer_type bpe --block_sizes 16 --batch_sizes 4 --num_epochs 1 --save_checkpoint";
    place.ok(&format!("train {MODEL} {first} --run_dir checkpoint_dir"));
    place.ok(&ours(ALL_OPTIONS));
    for (run, learning_rate) in [(1, 1e-3), (2, 5e-4), (3, 1e-4)] {
        let path = format!("{RUN_DIR}/run_{run}");
        check_run(&place, &path, learning_rate, 3);
        let settings = place.json(&format!("{path}/hyperparameters.json"));
        assert_eq!(settings["cosine_T_mult"], json!(1));
        assert_eq!(settings["cosine_lr_restart_decay"], json!(2.0));
        let steps = place.numbers(&format!("{path}/losses.json"), "/steps");
        assert_eq!(
            steps,
            [steps[0], 2.0 * steps[0], 3.0 * steps[0]],
            "steps are counted on from the checkpoint"
        );
    }
}
