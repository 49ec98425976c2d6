//! Searches that draw, that stop poor runs early, that are stopped and go on.
#![cfg(unix)]

use std::collections::{BTreeSet, HashSet};

use rustix::process::Signal;
use serde_json::Value;

use crate::place::{MODEL, Place};
use crate::running::{Running, start};

/// Runs of two epochs of 13 steps.
const RUNS: &str = "--block_sizes 16 --batch_sizes 4 --num_epochs 2 --save_losses";
/// A grid of twelve.
const GRID: &str = "--learning_rates 1e-3 3e-3 1e-2 --weight_decays 0 1 --dropouts 0 0.1";

/// The first runs and epochs that a sweep prints as JSON.
fn epochs(running: &Running, most: usize) -> Vec<(String, u64)> {
    let lines = std::iter::from_fn(|| running.next_line());
    let reported = lines.filter_map(|line| serde_json::from_str::<Value>(&line).ok());
    reported
        .map(|line| {
            (line["run"].as_str().expect("a name").to_owned(), line["epoch"].as_u64().expect("a number"))
        })
        .take(most)
        .collect()
}

/// Stops a sweep after `stop_after` epochs with a signal, resumes it, and checks that it ends like one that was never
/// stopped and trains no epoch twice.
#[track_caller]
fn check_goes_on(sweep: &str, signal: Signal, stop_after: usize) {
    let place = Place::new();
    place.ok(&format!("train {MODEL} {sweep} --threads 1 --run_dir whole"));
    let first = start(&place, &format!("train {MODEL} {sweep} --json --jobs 2 --threads 2 --run_dir search"));
    let mut reported = epochs(&first, stop_after);
    assert_eq!(reported.len(), stop_after, "the sweep is stopped before its end");
    first.signal(signal);
    reported.extend(epochs(&first, usize::MAX));
    assert!(!first.end().0.success());
    let rest = start(&place, "train --resume search --json --jobs 3 --threads 3");
    reported.extend(epochs(&rest, usize::MAX));
    assert!(rest.end().0.success());
    let distinct: HashSet<_> = reported.iter().collect();
    assert_eq!(distinct.len(), reported.len(), "an epoch is trained twice: {reported:?}");
    assert_eq!(place.ok("runs search").stdout, place.ok("runs whole").stdout);
    assert_eq!(place.names("search"), place.names("whole"));
    let files = place.files("search").into_values().zip(place.files("whole").into_values());
    for ((search, whole), name) in files.zip(place.names("whole")) {
        assert!(search == whole || name.ends_with("metrics.jsonl"), "{name}");
    }
}

#[test]
fn a_sweep_from_a_checkpoint_that_is_killed_goes_on() {
    let place = Place::new();
    place.ok(&format!(
        "train {MODEL} --block_sizes 16 --batch_sizes 4 --num_epochs 3 --save_checkpoint --run_dir first"
    ));
    let from = "train --from_checkpoint --from_checkpoint_run_dir first --from_checkpoint_step 3 --num_epochs 2 \
                --learning_rates 1e-3 3e-3 1e-4 --save_losses";
    place.ok(&format!("{from} --run_dir whole"));
    let killed = start(&place, &format!("{from} --json --run_dir search"));
    // In the midst of the second run, at an epoch beyond the number of those it is to train.
    assert_eq!(epochs(&killed, 3).last(), Some(&("run_2".to_owned(), 4)));
    killed.signal(Signal::KILL);
    killed.end();
    place.ok("train --resume search");
    for run in ["run_1", "run_2", "run_3"] {
        for name in ["losses.json", "status.json", "hyperparameters.json"] {
            let read = |sweep: &str| place.text(&format!("{sweep}/{run}/{name}"));
            assert_eq!(read("search"), read("whole"), "{name} of {run}");
        }
        assert_eq!(place.numbers(&format!("search/{run}/losses.json"), "/eval_losses").len(), 5);
    }
}

#[test]
fn a_grid_of_twelve_that_is_killed_goes_on() {
    check_goes_on(&format!("{RUNS} {GRID}"), Signal::KILL, 13);
}

#[test]
fn a_grid_with_checkpoints_that_is_interrupted_goes_on() {
    check_goes_on(&format!("{RUNS} {GRID} --save_checkpoint --keep all"), Signal::INT, 5);
}

#[test]
fn a_search_that_is_halved_goes_on_after_its_first_stage_and_in_it() {
    let halving = "--block_sizes 16 --batch_sizes 4 --num_epochs 9 --save_losses --search halving --trials 9 \
                   --learning_rates 1e-4..1e-2:log --dropouts 0..0.3";
    for stop_after in [4, 12, 17] {
        check_goes_on(halving, Signal::KILL, stop_after);
    }
}

#[test]
fn halving_trains_the_better_third_for_three_times_as_long() {
    let place = Place::new();
    let search = "--search halving --trials 9 --learning_rates 1e-4..1e-2:log --num_epochs 9";
    let ran = place.ok(&format!("train {MODEL} --block_sizes 16 --batch_sizes 4 {search} --run_dir search"));
    let losses: Vec<Vec<f64>> =
        (1..=9).map(|run| place.numbers(&format!("search/run_{run}/status.json"), "/eval_losses")).collect();
    let trained_for = |epochs: usize| losses.iter().filter(|losses| losses.len() == epochs).count();
    assert_eq!([1, 3, 9].map(trained_for), [6, 2, 1], "{losses:?}");
    // Nobody who went on was worse, when it was decided, than one who did not.
    for epochs in [1, 3] {
        let best = |losses: &Vec<f64>| losses[..epochs].iter().copied().fold(f64::INFINITY, f64::min);
        let took_part = losses.iter().filter(|losses| losses.len() >= epochs);
        let (went_on, stayed): (Vec<_>, Vec<_>) = took_part.partition(|losses| losses.len() > epochs);
        let worst = went_on.iter().map(|losses| best(losses)).fold(0.0, f64::max);
        assert!(stayed.iter().all(|losses| best(losses) >= worst), "after {epochs}: {losses:?}");
    }
    let ranks: Vec<&str> = ran.stdout.lines().rev().take(9).collect();
    assert!(ranks[8].contains(" 9 "), "the best was trained to the end: {}", ran.stdout);
    let left = place.names("search").into_iter().filter(|name| name.contains("step_"));
    assert_eq!(left.collect::<Vec<_>>(), Vec::<String>::new(), "what only going on needed is gone");
}

#[test]
fn a_random_search_depends_on_the_seed_alone() {
    let place = Place::new();
    let search =
        "--search random --trials 4 --learning_rates 1e-4..3e-3:log --batch_sizes 2..8 --block_sizes 8 16";
    for (flags, run_dir) in [("--jobs 2", "a"), ("--jobs 1", "b"), ("--seed 5", "c")] {
        place.ok(&format!("train {MODEL} {search} --num_epochs 1 {flags} --run_dir {run_dir}"));
    }
    let drawn = |sweep: &str| -> BTreeSet<String> {
        let runs = place.json(&format!("{sweep}/sweep.json"))["runs"].as_array().expect("a list").clone();
        let values =
            |run: &Value| ["learning_rate", "batch_size", "block_size"].map(|key| run[key].to_string());
        runs.iter().map(|run| values(run).join(" ")).collect()
    };
    assert_eq!(place.json("a/sweep.json"), place.json("b/sweep.json"));
    assert_eq!(drawn("a").len(), 4);
    assert!(drawn("a").is_disjoint(&drawn("c")));
    for run in 1..=4 {
        let status = |sweep: &str| place.read(&format!("{sweep}/run_{run}/status.json"));
        assert!(status("a") == status("b"), "run {run} depends on how many train at a time");
    }
}

#[test]
fn a_run_that_fails_is_recorded_and_the_others_go_on() {
    let place = Place::new();
    let sweep = "--block_sizes 16 --num_epochs 1 --batch_sizes 4 --learning_rates 1e30 1e-3";
    let ran = place.ok(&format!("train {MODEL} {sweep} --run_dir search"));
    assert!(ran.stderr.contains("run_1 failed: training diverged"), "{}", ran.stderr);
    assert_eq!(place.json("search/run_1/status.json")["state"], "diverged");
    assert_eq!(place.json("search/run_2/status.json")["state"], "finished");
    let table = place.ok("runs search").stdout;
    let rows: Vec<Vec<&str>> =
        table.lines().skip(1).map(|line| line.split_whitespace().take(3).collect()).collect();
    assert_eq!(rows, [["1", "run_2", "finished"], ["2", "run_1", "diverged"]]);
    // It would again: going on trains nothing.
    let again = place.ok("train --resume search --json");
    assert_eq!(again.stdout, "");
    let all =
        place.run(&format!("train {MODEL} --block_sizes 16 --batch_sizes 4 --learning_rates 1e30 2e30"));
    assert_eq!(all.code, Some(1));
    assert!(
        all.stderr.contains("every run has failed; the first error: training diverged"),
        "{}",
        all.stderr
    );
}
