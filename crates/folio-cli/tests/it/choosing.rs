//! Which checkpoint a command uses.

use std::fs::File;
use std::time::{Duration, SystemTime};

use serde_json::json;

use crate::mistakes::{FAILURE, USAGE, check_all, place_with_run};
use crate::place::{Place, Ran, TINY};

const SAVED: &str = "--save_losses --save_checkpoint";

/// Overwrites the evaluation losses of a run.
fn set_losses(place: &Place, run: &str, eval_losses: &[f64]) {
    let name = format!("{run}/losses.json");
    let mut losses = place.json(&name);
    losses["eval_losses"] = json!(eval_losses);
    place.write(&name, losses.to_string());
}

/// Sets the age of every checkpoint of a run.
fn set_age(place: &Place, run: &str, seconds: u64) {
    for epoch in 1..=2 {
        let directory = File::open(place.path(&format!("{run}/checkpoint_{epoch}"))).expect("a checkpoint");
        directory.set_modified(SystemTime::now() - Duration::from_secs(seconds)).expect("our own directory");
    }
}

/// The checkpoint that a command reports to use.
fn used(ran: &Ran) -> &str {
    let line = ran.stderr.lines().find_map(|line| line.strip_prefix("using "));
    let line = line.unwrap_or_else(|| panic!("no line starts with 'using': {}", ran.stderr));
    line.split(',').next().expect("a path")
}

#[test]
fn the_default_is_the_checkpoint_with_the_lowest_eval_loss() {
    let place = place_with_run();
    for (losses, best) in [([2.0, 3.0], "run/checkpoint_1"), ([3.0, 2.0], "run/checkpoint_2")] {
        set_losses(&place, "run", &losses);
        for command in ["generate run --seed 1 --max_new_tokens 3", "eval run", "chat run"] {
            let ran = place.ok(command);
            assert_eq!(used(&ran), best, "{command}");
            assert!(ran.stderr.contains("the best by evaluation loss (2.0000)"), "{}", ran.stderr);
        }
        let said = place.ok("eval run --json").stdout;
        assert!(said.contains(&format!("{best:?}")), "{said}");
    }
    // Of equal losses the first wins.
    set_losses(&place, "run", &[2.0, 2.0]);
    assert_eq!(used(&place.ok("eval run")), "run/checkpoint_1");
}

#[test]
fn without_losses_the_newest_checkpoint_is_used() {
    let place = place_with_run();
    std::fs::remove_file(place.path("run/losses.json")).expect("it was written");
    std::fs::remove_file(place.path("run/status.json")).expect("it was written");
    for command in ["generate run --max_new_tokens 3", "eval run", "chat run"] {
        let ran = place.ok(command);
        assert_eq!(used(&ran), "run/checkpoint_2", "{command}");
        assert!(ran.stderr.contains("the newest"), "{}", ran.stderr);
    }
}

#[test]
fn paths_may_name_checkpoints_runs_or_sweeps() {
    let place = place_with_run();
    place.ok(&format!("train {TINY} {SAVED} --learning_rates 1e-3 1e-4 --run_dir search"));
    set_losses(&place, "run", &[2.0, 3.0]);
    set_losses(&place, "search/run_1", &[4.0, 4.0]);
    set_losses(&place, "search/run_2", &[3.5, 4.0]);
    for (path, taken) in [
        ("run", "run/checkpoint_1"),
        ("run/", "run/checkpoint_1"),
        ("./run", "./run/checkpoint_1"),
        ("run/best", "run/checkpoint_1"),
        ("run/latest", "run/checkpoint_2"),
        ("run/checkpoint_1", "run/checkpoint_1"),
        ("run/checkpoint_2/", "run/checkpoint_2"),
        ("search", "search/run_2/checkpoint_1"),
        ("search/run_1", "search/run_1/checkpoint_1"),
        ("search/run_1/latest", "search/run_1/checkpoint_2"),
        ("search --best_eval_loss_model", "search/run_2/checkpoint_1"),
        ("run --checkpoint_step 2", "run/checkpoint_2"),
    ] {
        for command in ["generate", "eval", "chat"] {
            assert_eq!(used(&place.ok(&format!("{command} {path}"))), taken, "{command} {path}");
        }
    }
    // --write_to_file writes to the run directory, even if the path names a checkpoint.
    place.ok("generate run/latest --max_new_tokens 3 --write_to_file samples.txt");
    assert!(place.text("run/samples.txt").starts_with("Checkpoint 2 output:"));
}

#[test]
fn without_a_path_the_newest_run_in_runs_is_used() {
    let place = Place::new();
    std::fs::create_dir(place.path("runs")).expect("room");
    for run in ["a", "b"] {
        place.ok(&format!("train {TINY} {SAVED} --run_dir runs/{run}"));
    }
    // A run without checkpoints does not count.
    std::fs::create_dir(place.path("runs/empty")).expect("room");
    place.write("runs/empty/hyperparameters.json", place.read("runs/a/hyperparameters.json"));
    for (a, b, newest) in [(100, 50, "b"), (50, 100, "a")] {
        set_age(&place, "runs/a", a);
        set_age(&place, "runs/b", b);
        for command in ["generate --max_new_tokens 3", "eval", "chat", "generate runs --max_new_tokens 3"] {
            let ran = place.ok(command);
            assert!(
                used(&ran).starts_with(&format!("runs/{newest}/checkpoint_")),
                "{command}: {}",
                ran.stderr
            );
        }
        let ran = place.ok("generate --checkpoint_step 1 --max_new_tokens 3");
        assert_eq!(used(&ran), format!("runs/{newest}/checkpoint_1"));
    }
}

#[test]
fn paths_without_a_checkpoint_are_rejected() {
    let place = place_with_run();
    std::fs::create_dir_all(place.path("nothing/here")).expect("room");
    place.ok(&format!("train {TINY} {SAVED} --learning_rates 1e-3 1e-4 --run_dir search"));
    let mut mistakes: Vec<(String, i32, &[&str])> = Vec::new();
    for command in ["generate", "eval", "chat"] {
        for (path, code, parts) in [
            ("", FAILURE, &["runs holds no run with a checkpoint", "folio train"][..]),
            ("none", FAILURE, &["none does not exist", "--run_dir"]),
            (
                "nothing",
                FAILURE,
                &["nothing is not a folio run", "hyperparameters.json", "directory of runs"],
            ),
            ("plays.txt", FAILURE, &["plays.txt is not a directory"]),
            ("run/checkpoint_9", FAILURE, &["run holds no checkpoint 9", "there are 1, 2"]),
            (
                "run/best --checkpoint_step 1",
                USAGE,
                &["run/best is already a checkpoint", "--checkpoint_step"],
            ),
            (
                "run/best --best_eval_loss_model",
                USAGE,
                &["run/best is already a checkpoint", "--best_eval_loss_model"],
            ),
            ("search --checkpoint_step 1", USAGE, &["search is a sweep", "one of its runs"]),
        ] {
            mistakes.push((format!("{command} {path}"), code, parts));
        }
    }
    let mistakes: Vec<(&str, i32, &[&str])> =
        mistakes.iter().map(|(line, code, parts)| (line.as_str(), *code, *parts)).collect();
    check_all(&place, &mistakes);
}
