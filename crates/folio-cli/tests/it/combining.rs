//! Evaluations inside epochs, early stopping, test parts, averages of checkpoints and ensembles.

use serde_json::{Value, json};

use crate::mistakes::{FAILURE, USAGE, check_all};
use crate::place::{Place, TINY};

/// [`TINY`] that stops soon: the rate is far too high for a loss that falls at every step.
fn early() -> String {
    TINY.replace("--num_epochs 2", "--num_epochs 20 --eval_every 1 --patience 2 --lr 5e-2")
}

/// The JSON objects of a run's output, one per line.
fn lines(stdout: &str) -> Vec<Value> {
    stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn loss(place: &Place, line: &str) -> f64 {
    lines(&place.ok(line).stdout)[0]["loss"].as_f64().expect("a number")
}

#[test]
fn a_run_stops_early_and_every_command_takes_its_best_moment() {
    let place = Place::new();
    let ran = place.ok(&format!("train {} --tensorboard --run_dir run", early()));
    let said = ran.stderr.lines().find(|line| line.starts_with("stopped early")).expect("a line about it");
    assert!(
        said.starts_with("stopped early: 2 evaluations in a row without improvement; the best was at step ")
    );
    assert!(ran.stdout.starts_with("Step: 1 || Eval loss: "), "{}", ran.stdout);
    let [best, step] = place.numbers("run/losses.json", "/best_eval_loss")[..] else { panic!("two numbers") };
    assert!(said.contains(&format!("at step {step}, eval loss {best:.4}")), "{said}");
    assert!(!(step as u64).is_multiple_of(13), "13 steps are an epoch: {step}");
    assert_eq!(place.link("run/best"), format!("step_{step}"));
    assert_eq!(place.json("run/status.json")["state"], "finished");

    // All six evaluation blocks are one batch and a half, so `eval` weighs them differently.
    for command in ["eval run", "generate run --max_new_tokens 3", "eval run --best_eval_loss_model"] {
        let used = place.ok(command).stderr;
        assert!(used.contains(&format!("run/step_{step}")), "{command}: {used}");
    }
    place.ok("export run --to hf --out exported");
    let row = &lines(&place.ok("runs run --json").stdout)[0];
    assert_eq!((&row["best_step"], &row["best_epoch"]), (&json!(step as u64), &Value::Null));
    assert_eq!(row["best_eval_loss"], json!(best));
    assert!(row["bits_per_character"].is_number(), "{row}");
    assert!(place.ok("runs run").stdout.contains(&format!("step {step}")));
    place.ok("report run --out report.html");
    assert!(place.text("report.html").contains(&format!("after step {step}")));
    place.ok("plot run --out curves.svg");

    let records: Vec<Value> = lines(&place.text("run/metrics.jsonl"));
    let evaluations: Vec<&Value> = records.iter().filter(|record| record["event"] == "evaluation").collect();
    assert_eq!(evaluations.len() as f64, step + 2.0);
    assert_eq!(evaluations[step as usize - 1]["eval_loss"], json!(best));

    // The table tells evaluations from ends of epochs.
    let csv = place.ok("export run --to csv").stdout;
    assert!(csv.lines().next().is_some_and(|line| line.ends_with(",event")), "{csv}");
    let count = |event: &str| csv.lines().filter(|line| line.ends_with(&format!(",{event}"))).count();
    assert_eq!(count("evaluation"), evaluations.len(), "{csv}");
    assert_eq!(count("evaluation") + count("epoch") + 1, csv.lines().count(), "{csv}");
    let stop = records.iter().find(|record| record["event"] == "early_stop").expect("a record");
    assert_eq!((&stop["evaluations"], &stop["best_step"]), (&json!(2), &json!(step as u64)));
    assert_eq!(stop["best_loss"], json!(best));

    // Nothing is left, until there is more patience.
    let again = place.ok("train --resume run").stderr;
    assert!(again.contains("nothing is left to train; use a larger --patience"), "{again}");
    place.ok("train --resume run --patience 3");
    let evaluated = place.json("run/losses.json")["step_evaluations"].as_array().expect("a list").len();
    assert!(evaluated as f64 > step + 2.0, "{evaluated}");
}

#[test]
fn lines_of_json_have_the_evaluations_inside_epochs() {
    let place = Place::new();
    let ran = place
        .ok(&format!("train {} --eval_every 6 --json --run_dir run", TINY.replace("epochs 2", "epochs 1")));
    let lines = lines(&ran.stdout);
    let steps: Vec<u64> = lines.iter().map(|line| line["step"].as_u64().expect("a step")).collect();
    assert_eq!(steps, [6, 12, 13]);
    assert!(lines[0].get("train_loss").is_none() && lines[0]["eval_loss"].is_number(), "{}", lines[0]);
}

#[test]
fn the_runs_of_a_sweep_are_ranked_by_their_best_moments() {
    let place = Place::new();
    place.ok(&format!("train {} --run_dir search", early().replace("--dropouts 0.1", "--dropouts 0 0.1")));
    let rows = lines(&place.ok("runs search --json").stdout);
    let best = |run: u64| place.numbers(&format!("search/run_{run}/losses.json"), "/best_eval_loss")[0];
    let lowest = best(1).min(best(2));
    assert_eq!(rows[0]["best_eval_loss"], json!(lowest));
    // The sweep is done, though its runs have trained fewer epochs than they might.
    let again = place.ok("train --resume search").stdout;
    assert!(!again.contains("Step: "), "{again}");
}

#[test]
fn a_test_part_is_measured_apart_and_inherited() {
    let place = Place::new();
    let train = format!("train {} --split contiguous", TINY.replace("--block_sizes 16", "--block_sizes 8"));
    place.ok(&format!("{train} --test_fraction 0.5 --run_dir run"));
    let parts = ["eval", "test"]
        .map(|part| lines(&place.ok(&format!("eval run --json --part {part}")).stdout)[0].clone());
    // 50 of the last 100 characters each; the first is not predicted.
    assert_eq!(parts.each_ref().map(|part| part["characters"].as_u64()), [Some(49), Some(49)]);
    assert_ne!(parts[0]["loss"], parts[1]["loss"]);
    assert_eq!(lines(&place.ok("eval run --json").stdout)[0], parts[0], "eval is the default");
    // Training reports the evaluation part alone: its six whole blocks, in batches of four.
    assert!(place.numbers("run/losses.json", "/eval_losses")[1].is_finite());
    place.ok("train --from_checkpoint --from_checkpoint_run_dir run --from_checkpoint_step 2 --num_epochs 1 --run_dir more");
    assert_eq!(place.json("more/hyperparameters.json")["test_fraction"], json!(0.5));
    place.ok(&format!("{train} --run_dir none"));
    check_all(
        &place,
        &[
            ("eval none --part test", USAGE, &["--part", "no such part", "--test_fraction 0.5"]),
            (
                "train --from_checkpoint --from_checkpoint_run_dir run --from_checkpoint_step 2 --test_fraction 0.25 \
                 --run_dir other",
                USAGE,
                &["--test_fraction", "has 0.5"],
            ),
            ("train --test_fraction 1 --run_dir other", USAGE, &["--test_fraction", "out of range"]),
        ],
    );
}

#[test]
fn checkpoints_are_averaged_to_a_run() {
    let place = Place::new();
    place.ok(&format!(
        "train {} --save_checkpoint --keep all --run_dir run",
        TINY.replace("epochs 2", "epochs 3")
    ));
    let ran = place.ok("average run --checkpoints 2,3 --run_dir mean");
    let of_mean = loss(&place, "eval mean --json");
    let want = format!("mean: loss {of_mean:.4} nats per token");
    let members = [2, 3].map(|epoch| loss(&place, &format!("eval run --checkpoint_step {epoch} --json")));
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(
        lines[..2],
        [2, 3].map(|epoch| {
            format!("run/checkpoint_{epoch}: loss {:.4} nats per token", members[epoch - 2])
        })
    );
    assert_eq!(lines[2..], [want]);

    place.ok("generate mean --max_new_tokens 3");
    place.ok("export mean --to hf --out exported");
    assert!(place.ok("runs mean").stdout.contains("averaged"));
    let start =
        "train --from_checkpoint --from_checkpoint_run_dir mean --from_checkpoint_step 0 --weights_only";
    place.ok(&format!("{start} --num_epochs 1 --run_dir more"));
    // Without --run_dir, and of several runs.
    place.ok(&format!("train {TINY} --run_dir two"));
    place.ok(&format!("train {} --run_dir other", TINY.replace("--n_heads 2", "--n_heads 4")));
    place.ok("average run two/latest --no_eval");
    place.ok("eval runs/run-average");
    check_all(
        &place,
        &[
            ("average run", USAGE, &["at least two checkpoints"]),
            ("average run two --checkpoints 1 2", USAGE, &["--checkpoints", "a single run"]),
            ("average run --checkpoints 2 3 2", USAGE, &["run/checkpoint_2 is named twice"]),
            ("average run/checkpoint_3 two ./run/checkpoint_3", USAGE, &["run/checkpoint_3 is named twice"]),
            ("average run --checkpoints 2 9", FAILURE, &["holds no checkpoint 9", "1, 2, 3"]),
            (
                "average run other",
                FAILURE,
                &["other/checkpoint_", "n_heads 4", "only checkpoints of the same model"],
            ),
            ("average run two --run_dir two --overwrite", USAGE, &["--run_dir two", "which is averaged"]),
            ("average run two --run_dir mean", FAILURE, &["mean", "already holds a run"]),
            ("average run none", FAILURE, &["none does not exist"]),
            ("train --resume mean", FAILURE, &["mean is an average", "--from_checkpoint_step 0"]),
        ],
    );
}

#[test]
fn ensembles_are_evaluated_and_generate() {
    let place = Place::new();
    place.ok(&format!("train {TINY} --split contiguous --seed 1 --run_dir one"));
    let wider = TINY.replace("--n_emb 16", "--n_emb 24");
    place.ok(&format!("train {wider} --split contiguous --seed 2 --run_dir two"));
    place.ok(&format!("train {TINY} --split blocks --run_dir blocks"));
    let alone = ["one", "two"].map(|run| loss(&place, &format!("eval {run} --json")));
    let ran = place.ok("eval --ensemble one two --json");
    let together = &lines(&ran.stdout)[0];
    let mean = (alone[0] + alone[1]) / 2.0;
    assert!(together["loss"].as_f64().expect("a number") < mean, "{together} {alone:?}");
    let label = together["checkpoint"].as_str().expect("paths");
    assert!(label.starts_with("one/checkpoint_") && label.contains(" + two/checkpoint_"), "{label}");
    assert_eq!(ran.stderr.lines().filter(|line| line.starts_with("using ")).count(), 2, "{}", ran.stderr);

    // The mean of a model with itself is the model.
    let greedy = "--prompt 'First' --temperature 0 --max_new_tokens 30 --json";
    let text = |line: &str| lines(&place.ok(line).stdout)[0]["text"].clone();
    for precision in ["f32", "bf16", "int8"] {
        let one = text(&format!("generate one {greedy} --precision {precision}"));
        assert_eq!(text(&format!("generate {greedy} --precision {precision} --ensemble one one")), one);
    }
    place.ok(&format!("generate {greedy} --num_samples 2 --ensemble one two"));

    place.ok("train --data plays.txt --n_emb 16 --n_heads 2 --n_blocks 1 --block_sizes 16 --max_steps 1 \
              --tokenizer_type corpus_bpe --vocab_size 260 --run_dir bpe");
    place.ok(&format!(
        "train {} --split contiguous --max_steps 1 --run_dir short",
        TINY.replace("--block_sizes 16", "--block_sizes 8")
    ));
    place.ok("eval --ensemble one blocks --data plays.txt");
    check_all(
        &place,
        &[
            ("eval --ensemble one", USAGE, &["--ensemble", "2 values"]),
            ("eval one --ensemble one two", USAGE, &["--ensemble", "cannot be used"]),
            (
                "eval --ensemble one blocks",
                FAILURE,
                &["blocks/checkpoint_", "another split than one/checkpoint_"],
            ),
            (
                "eval --ensemble one bpe",
                FAILURE,
                &["bpe/checkpoint_1", "another tokenizer than one/checkpoint_"],
            ),
            ("generate --ensemble one bpe", FAILURE, &["bpe/checkpoint_1", "another tokenizer"]),
            ("generate --ensemble one short", FAILURE, &["short/checkpoint_1", "block_size 8", "has 16"]),
            ("eval --ensemble one none", FAILURE, &["none does not exist"]),
            ("generate --ensemble one two --write_to_file x", USAGE, &["--write_to_file", "cannot be used"]),
        ],
    );
}
