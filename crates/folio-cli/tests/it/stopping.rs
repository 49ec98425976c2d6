//! Runs that are killed, interrupted or saved on request at any moment, and then resumed.
#![cfg(unix)]

use std::process::{Command, ExitStatus};
use std::time::Instant;

use folio::rng::{Rng, Stream};
use rustix::process::Signal;
use serde_json::Value;

use crate::place::{Place, words};
use crate::running::{start, start_command};

/// Three epochs of 13 steps, each of them saved, so that most of the time goes into saving.
const RUN: &str = "--data plays.txt --n_emb 16 --n_heads 2 --n_blocks 1 --block_sizes 16 --batch_sizes 4 --dropouts 0.1 \
                   --num_epochs 3 --save_losses --save_checkpoint --save_every 1 --sample_tokens 5";

/// The lines of metrics.jsonl without what depends on the time and the number of starts.
fn records(place: &Place, run: &str) -> Vec<Value> {
    let text = place.text(&format!("{run}/metrics.jsonl"));
    let lines =
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")));
    let reported = lines.filter(|line: &Value| line["event"] != "start");
    reported
        .map(|mut line| {
            line.as_object_mut().expect("an object").remove("tokens_per_s");
            line
        })
        .collect()
}

/// Checks that two runs left the same files, to the bit.
#[track_caller]
fn check_same(place: &Place, run: &str, whole: &str, context: &str) {
    let names = place.names(whole);
    assert_eq!(place.names(run), names, "{context}");
    let (run_files, whole_files) = (place.files(run).into_values(), place.files(whole).into_values());
    for ((run_file, whole_file), name) in run_files.zip(whole_files).zip(names) {
        assert!(run_file == whole_file || name == "metrics.jsonl", "{name} differs: {context}");
    }
    assert_eq!(records(place, run), records(place, whole), "{context}");
}

/// Stops a run again and again at random moments, going on each time with another number of threads, and checks that
/// it ends like one that was never stopped. Returns how often it was stopped inside a save.
#[track_caller]
fn check_survives(settings: &str, signal: Signal, seed: u64) -> usize {
    let place = Place::new();
    let begun = Instant::now();
    place.ok(&format!("train {RUN} {settings} --threads 1 --run_dir whole"));
    let longest = begun.elapsed() / 4;
    let mut rng = Rng::new(seed, Stream::Sampling);
    let (mut stops, mut inside_saves) = (0, 0);
    while stops < STOPS {
        // A run that has ended gives way to another.
        let run = format!("run_after_{stops}");
        loop {
            let threads = 1 + rng.below(3);
            let line = match place.path(&format!("{run}/hyperparameters.json")).exists() {
                true => format!("train --resume {run} --threads {threads}"),
                false => format!("train {RUN} {settings} --threads {threads} --run_dir {run} --overwrite"),
            };
            let mut running = start(&place, &line);
            // Mostly while it trains and saves; now and then while it starts.
            if rng.below(5) > 0 {
                running.until(" parameters, ");
            }
            if stops < STOPS {
                running.signal_after(longest.mul_f64(rng.next_f64()), signal);
                // A second one, now and then, does not wait for the save.
                if signal != Signal::KILL && rng.below(3) == 0 {
                    running.signal(signal);
                }
            }
            let (status, lines) = running.end();
            if status.success() {
                break;
            }
            stops += 1;
            check_stopped(status, &lines, signal);
            inside_saves += unfinished(&place, &run);
        }
        check_same(&place, &run, "whole", &format!("{settings}, seed {seed}"));
    }
    inside_saves
}

/// Stops of each kind of run.
const STOPS: usize = 10;

/// Checks how a run ended that was stopped.
#[track_caller]
fn check_stopped(status: ExitStatus, lines: &[String], signal: Signal) {
    use std::os::unix::process::ExitStatusExt;
    if signal == Signal::KILL {
        assert_eq!(status.signal(), Some(9), "{lines:?}");
        return;
    }
    // Before it listens the signal's own effect is as harmless.
    let early = status.signal() == Some(signal.as_raw());
    assert!(early || status.code() == Some(128 + signal.as_raw()), "{status}: {lines:?}");
}

/// What a run left half-written.
fn unfinished(place: &Place, run: &str) -> usize {
    let Ok(entries) = std::fs::read_dir(place.path(run)) else { return 0 };
    let names = entries.map(|entry| entry.expect("readable").file_name());
    usize::from(names.into_iter().any(|name| name.to_string_lossy().starts_with(".folio-")))
}

#[test]
fn killed_at_any_moment_in_f32_at_a_constant_rate() {
    let inside_saves = check_survives("--precision f32 --keep all", Signal::KILL, 1);
    // Most of the time is spent in saves: that ten kills miss them all has a probability below 0.001.
    assert!(inside_saves > 0, "no kill hit a save");
}

#[test]
fn killed_at_any_moment_in_bf16_along_a_cosine() {
    check_survives("--precision bf16 --keep all --lr_schedule cosine --cosine_T_max 3", Signal::KILL, 2);
}

#[test]
fn killed_at_any_moment_with_warm_restarts() {
    let schedule =
        "--lr_schedule cosine_warm_restarts --cosine_T_max 1 --cosine_T_mult 2 --cosine_lr_restart_decay 0.5";
    check_survives(schedule, Signal::KILL, 3);
}

#[test]
fn killed_at_any_moment_with_a_rate_for_every_step_and_a_limit() {
    let schedule =
        "--lr_schedule cosine --lr_schedule_unit step --cosine_T_max 33 --warmup_steps 5 --max_steps 33";
    check_survives(schedule, Signal::KILL, 4);
}

#[test]
fn killed_at_any_moment_keeping_little() {
    check_survives("--keep weights --split contiguous", Signal::KILL, 5);
}

#[test]
fn interrupted_at_any_moment() {
    check_survives("--precision f32 --keep best", Signal::INT, 6);
}

#[test]
fn terminated_at_any_moment() {
    let own = "--tokenizer_type corpus_bpe --vocab_size 300 --lr_schedule cosine --cosine_T_max 3";
    check_survives(own, Signal::TERM, 7);
}

#[test]
fn a_run_that_only_writes_to_a_directory_goes_on_too() {
    let place = Place::new();
    // Long enough that it is stopped before its end.
    let line =
        "train --data plays.txt --n_emb 16 --n_heads 2 --n_blocks 1 --block_sizes 16 --num_epochs 1000000";
    let running = start(&place, &format!("{line} --run_dir run"));
    assert!(running.until(" parameters, "));
    running.signal(Signal::INT);
    let (status, lines) = running.end();
    assert_eq!(status.code(), Some(130), "{lines:?}");
    let reported = lines.iter().any(|line| line.contains("stopped; to resume: folio train --resume run"));
    assert!(reported, "it says how to go on: {lines:?}");
    let (epoch, step) =
        (place.json("run/status.json")["epoch"].clone(), place.json("run/status.json")["step"].clone());
    assert_eq!(place.json("run/status.json")["state"], "stopped");
    assert_eq!(place.link("run/latest"), format!("step_{step}"));
    // A million epochs are not its settings' only possible end.
    let ran = place.ok(&format!("train --resume run --num_epochs {}", epoch.as_u64().expect("a number") + 1));
    assert!(ran.stderr.contains(&format!("run resumes from step_{step}")), "{}", ran.stderr);
    assert_eq!(place.json("run/status.json")["state"], "finished");
    assert!(!place.path(&format!("run/step_{step}")).exists(), "the epoch's checkpoint takes its place");
}

#[test]
fn a_stopped_run_that_is_not_saved_says_so() {
    let place = Place::new();
    let line =
        "train --data plays.txt --n_emb 16 --n_heads 2 --n_blocks 1 --block_sizes 16 --num_epochs 1000000";
    let running = start(&place, &format!("{line} --no_save"));
    assert!(running.until(" parameters, "));
    running.signal(Signal::TERM);
    let (status, lines) = running.end();
    assert_eq!(status.code(), Some(143), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("stopped; --no_save: nothing was saved")), "{lines:?}");
}

#[test]
fn a_closed_terminal_saves_and_stops_unless_nohup_says_otherwise() {
    let place = Place::new();
    let line = "train --data plays.txt --n_emb 16 --n_heads 2 --n_blocks 1 --block_sizes 16 --batch_sizes 4";
    let running = start(&place, &format!("{line} --num_epochs 1000000 --keep best --run_dir run"));
    assert!(running.until(" parameters, "));
    running.signal(Signal::HUP);
    let (status, lines) = running.end();
    assert_eq!(status.code(), Some(129), "{lines:?}");
    assert_eq!(place.json("run/status.json")["state"], "stopped");
    place.ok("generate run --max_new_tokens 3");

    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_folio")]);
    command.args(words(&format!("{line} --num_epochs 1000000 --keep best --run_dir other")));
    command.current_dir(place.path("")).env("RAYON_NUM_THREADS", "1");
    let running = start_command(command);
    assert!(running.until("Epoch: 1/"));
    running.signal(Signal::HUP);
    // It takes no notice, so that a second signal is its first.
    assert!(running.until("Epoch: "));
    running.signal(Signal::INT);
    let (status, lines) = running.end();
    assert_eq!(status.code(), Some(130), "{lines:?}");
    assert_eq!(place.json("other/status.json")["state"], "stopped");
}

#[test]
fn a_signal_that_comes_twice_at_once_is_one() {
    let place = Place::new();
    // A step takes longer than two signals.
    let line = "train --n_emb 128 --n_heads 2 --n_blocks 2 --block_sizes 64 --batch_sizes 32 --run_dir run";
    let running = start(&place, line);
    assert!(running.until(" parameters, "));
    // As `timeout` does it.
    running.signal(Signal::TERM);
    running.signal(Signal::TERM);
    let (status, lines) = running.end();
    assert_eq!(status.code(), Some(143), "{lines:?}");
    assert_eq!(place.json("run/status.json")["state"], "stopped", "{lines:?}");
}

#[test]
fn asked_to_save_it_saves_and_goes_on() {
    let place = Place::new();
    let line = "train --data plays.txt --n_emb 16 --n_heads 2 --n_blocks 1 --block_sizes 16 --batch_sizes 4";
    let running = start(&place, &format!("{line} --num_epochs 1000000 --run_dir run"));
    assert!(running.until(" parameters, "));
    for _ in 0..3 {
        running.signal(Signal::USR1);
        assert!(running.until("saved run/step_"), "it saves");
    }
    running.signal(Signal::INT);
    let (status, lines) = running.end();
    assert_eq!(status.code(), Some(130), "{lines:?}");
}
