//! Settings that are valid but rarely intended cause one line of warning.

use crate::mistakes::{USAGE, check_refused};
use crate::place::{Place, TINY};

/// The warnings of a run of 2 epochs of 13 steps with more flags.
#[track_caller]
fn check(flags: &str, expected: &[&[&str]]) {
    let place = Place::new();
    let ran = place.ok(&format!("train {TINY} {flags}"));
    let warnings: Vec<&str> = ran.stderr.lines().filter(|line| line.starts_with("warning: --")).collect();
    assert_eq!(warnings.len(), expected.len(), "{flags}: {warnings:#?}");
    for (warning, parts) in warnings.iter().zip(expected) {
        for part in *parts {
            assert!(warning.contains(part), "{flags}: lacks '{part}': {warning}");
        }
    }
}

#[test]
fn a_cosine_by_step_with_the_default_period() {
    let by_step = "--lr_schedule cosine --lr_schedule_unit step";
    check(by_step, &[&["--cosine_T_max: 10", "rises again", "26 steps", "use 26"]]);
    check(&format!("{by_step} --cosine_T_max 26"), &[]);
}

#[test]
fn flags_of_a_schedule_that_is_not_chosen() {
    check("--cosine_T_max 26", &[&["--cosine_T_max", "no effect with `--lr_schedule const`", "cosine"]]);
    let restarts = "--lr_schedule cosine --cosine_T_max 2 --cosine_T_mult 2";
    check(restarts, &[&["--cosine_T_mult", "`--lr_schedule cosine`;", "cosine_warm_restarts"]]);
}

#[test]
fn a_config_file_counts_as_flags_and_a_preset_does_not() {
    let place = Place::new();
    place.write("mine.toml", "cosine_T_max = 5\n");
    let warned = |line: &str| place.ok(line).stderr.contains("warning: --cosine_T_max: has no effect");
    assert!(warned(&format!("train {TINY} --config mine.toml")));
    let quick = format!("train --preset quick {TINY} --lr_schedule const --warmup_steps 0 --run_dir quick");
    assert!(!warned(&quick), "the user did not give the preset's T_max");
}

#[test]
fn a_warm_up_longer_than_the_run() {
    check("--warmup_steps 100", &[&["--warmup_steps: 100 warm-up steps in a run of 26"]]);
}

#[test]
fn a_floor_above_the_peak() {
    let flags = "--lr_schedule cosine --cosine_T_max 2 --learning_rates 1e-4 --cosine_final_lr 1e-3";
    check(flags, &[&["--cosine_final_lr", "floor 1e-3", "above the peak `--learning_rates 1e-4`"]]);
}

#[test]
fn a_sweep_warns_once_about_each_trap() {
    check("--warmup_steps 100 --learning_rates 1e-3 2e-3", &[&["--warmup_steps", "(in 2 of 2 runs)"]]);
    let floors = "--lr_schedule cosine --cosine_T_max 2 --learning_rates 1e-4 1e-2 --cosine_final_lr 1e-3";
    check(floors, &[&["--cosine_final_lr", "(in 1 of 2 runs)"]]);
}

#[test]
fn parallel_without_several_ranks_or_runs() {
    check("--parallel batches", &[&["--parallel has no effect: there is a single run"]]);
    let sweep = "--parallel runs --learning_rates 1e-3 2e-3";
    check(sweep, &[&["--parallel has no effect: there is a single rank"]]);
}

#[test]
fn an_empty_list_in_a_config_file_is_refused() {
    for key in ["learning_rates", "block_sizes", "cosine_T_max"] {
        let place = Place::new();
        place.write("empty.toml", format!("{key} = []\n"));
        let expected = ["empty.toml, line 1", key, "an empty list", "at least one value"];
        check_refused(&place, "train --data plays.txt --config empty.toml", USAGE, &expected);
        let random = "train --data plays.txt --config empty.toml --search random --trials 2";
        check_refused(&place, random, USAGE, &expected);
    }
}

#[test]
fn directories_with_odd_numbers_are_not_runs_of_a_sweep() {
    let place = Place::new();
    place.ok(&format!("train {TINY} --learning_rates 1e-3 2e-3 --run_dir search"));
    for name in ["run_007", "run_+7", "run_0x1"] {
        std::fs::create_dir(place.path(&format!("search/{name}"))).expect("room");
    }
    let listed = place.ok("runs search").stdout;
    assert_eq!(listed.lines().count(), 3, "{listed}");
    assert!(!listed.contains("run_7"), "{listed}");
}

#[test]
fn bench_names_its_own_flags() {
    for (line, expected) in [
        ("bench step --emb 385", &["`--emb 385` is not divisible by `--heads 6`; use 384 or 390"][..]),
        ("bench step --emb 0", &["`--emb 0` is out of range"]),
        ("bench generate --emb 385 --heads 2", &["`--emb 385` is not divisible by `--heads 2`"]),
        ("bench step --vocab 0", &["`--vocab 0`"]),
        ("bench step --dropout 2", &["`--dropout 2` is out of range"]),
        ("bench step --emb 30 --heads 6 --precision bf16", &["--precision", "another `--emb`"]),
    ] {
        let ran = check_refused(&Place::new(), line, USAGE, expected);
        assert!(!ran.stderr.contains("--n_") && !ran.stderr.contains("--block_sizes"), "{}", ran.stderr);
    }
}
