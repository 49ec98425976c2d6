//! Directories that vanish, refuse and come back while a run trains; two runs in one directory; numbers that are not
//! finite.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use folio::checkpoint::CheckpointName;
use folio::data::TokenStream;
use folio::error::Error;
use folio::records::{self, run_recorded};
use folio::run_dir::{RunDir, RunLock, RunState};
use folio::settings::Settings;
use folio::tokenizer::Tokenizer;
use folio::train::{Event, Outcome, Requests, Start, Trainer};

fn settings() -> Settings {
    Settings {
        n_emb: 4,
        n_heads: 1,
        n_blocks: 1,
        block_size: 4,
        batch_size: 4,
        num_epochs: 4,
        save_losses: true,
        save_checkpoint: true,
        ..Settings::default()
    }
}

fn trainer(settings: Settings, start: &Start) -> Trainer {
    let text = "to be or not to be that is the question ".repeat(3);
    let tokenizer = Tokenizer::chars(&text);
    let stream = TokenStream::encode(&text, &tokenizer, settings.split).expect("its own characters");
    Trainer::new(settings, Arc::new(stream), Arc::new(tokenizer), start).expect("valid settings")
}

/// Trains, calling `at_epoch` when an epoch has ended and before it is saved. Returns the warnings beside the outcome.
fn train(run: &RunDir, mut at_epoch: impl FnMut(u64)) -> (Result<Outcome, Error>, Vec<String>) {
    let mut warnings = Vec::new();
    let outcome = run_recorded(
        &mut trainer(settings(), &Start::Fresh),
        Some(run),
        &Requests::default(),
        &mut |event| match event {
            Event::EpochEnded { epoch, .. } => at_epoch(*epoch),
            Event::Warning { message } => warnings.push(message.clone()),
            _ => {}
        },
    );
    (outcome, warnings)
}

#[test]
fn a_directory_that_is_removed_is_made_again_at_the_next_save() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let run = RunDir::new(place.path().join("run"));
    let (outcome, warnings) = train(&run, |epoch| {
        if epoch == 2 {
            fs::remove_dir_all(run.path()).expect("there");
        }
    });
    assert_eq!(outcome.expect("it goes on"), Outcome::Finished);
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(run.epochs().expect("readable"), [2, 3, 4]);
    assert_eq!(
        run.history().expect("readable").expect("saved").epochs.len(),
        4,
        "no epoch's losses are lost"
    );
    assert_eq!(run.status().expect("a status").state, RunState::Finished);
}

#[test]
fn what_cannot_be_saved_now_is_saved_later() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let (run, aside) = (RunDir::new(place.path().join("run")), place.path().join("aside"));
    let (outcome, warnings) = train(&run, |epoch| match epoch {
        // A file in the directory's place refuses everything.
        2 => {
            fs::rename(run.path(), &aside).expect("there");
            fs::write(run.path(), "not a directory").expect("room");
        }
        4 => {
            fs::remove_file(run.path()).expect("there");
            fs::rename(&aside, run.path()).expect("there");
        }
        _ => {}
    });
    assert_eq!(outcome.expect("it goes on"), Outcome::Finished);
    assert_eq!(warnings.len(), 2, "one for each save that failed: {warnings:?}");
    assert!(warnings.iter().all(|reported| reported.contains("retries at the next save")), "{warnings:?}");
    assert_eq!(run.epochs().expect("readable"), [1, 4]);
    let reported = records::read(&run).expect("readable");
    let epochs: Vec<u64> = reported
        .iter()
        .filter(|line| line["event"] == "epoch")
        .filter_map(|line| line["epoch"].as_u64())
        .collect();
    assert_eq!(epochs, [1, 2, 3, 4], "lines that could not be written have waited");
    let steps: Vec<u64> = reported
        .iter()
        .filter(|line| line["event"] == "step")
        .filter_map(|line| line["step"].as_u64())
        .collect();
    assert_eq!(steps, (1..=steps.len() as u64).collect::<Vec<_>>());
}

#[test]
fn a_run_that_is_stopped_tries_once_more_to_save_what_could_not_be_saved() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let (run, aside) = (RunDir::new(place.path().join("run")), place.path().join("aside"));
    let (requests, mut warnings) = (Requests::default(), 0);
    let outcome = run_recorded(
        &mut trainer(settings(), &Start::Fresh),
        Some(&run),
        &requests,
        &mut |event| match event {
            Event::EpochEnded { epoch: 2, .. } => {
                fs::rename(run.path(), &aside).expect("there");
                fs::write(run.path(), "not a directory").expect("room");
            }
            Event::Warning { .. } => {
                warnings += 1;
                fs::remove_file(run.path()).expect("there");
                fs::rename(&aside, run.path()).expect("there");
                requests.stop.store(true, Ordering::Relaxed);
            }
            _ => {}
        },
    );
    assert_eq!((outcome.expect("it is saved"), warnings), (Outcome::Stopped, 1));
    assert_eq!(run.epochs().expect("readable"), [1, 2]);
    assert_eq!(run.status().expect("a status").state, RunState::Stopped);
}

#[test]
fn a_run_that_is_stopped_inside_an_epoch_tries_once_more_too() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let (run, aside) = (RunDir::new(place.path().join("run")), place.path().join("aside"));
    let (requests, mut warnings) = (Requests::default(), 0);
    let mut trainer = trainer(settings(), &Start::Fresh);
    let outcome = trainer.run(Some(&run), &requests, &mut |event| match event {
        Event::Step(report) if report.step == 2 => {
            fs::rename(run.path(), &aside).expect("there");
            fs::write(run.path(), "not a directory").expect("room");
            requests.stop.store(true, Ordering::Relaxed);
        }
        Event::Warning { .. } => {
            warnings += 1;
            fs::remove_file(run.path()).expect("there");
            fs::rename(&aside, run.path()).expect("there");
        }
        _ => {}
    });
    assert_eq!((outcome.expect("it is saved"), warnings), (Outcome::Stopped, 1));
    assert_eq!(run.checkpoints().expect("readable"), [CheckpointName::Step(2)]);
}

#[test]
fn a_run_whose_end_cannot_be_saved_fails_and_says_so() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let run = RunDir::new(place.path().join("run"));
    let aside = place.path().join("aside");
    let (outcome, _) = train(&run, |epoch| {
        if epoch == 3 {
            fs::rename(run.path(), &aside).expect("there");
            fs::write(run.path(), "not a directory").expect("room");
        }
    });
    let error = outcome.expect_err("it is not saved");
    assert!(matches!(error, Error::Unsaved { .. }), "{error:?}");
    assert!(error.to_string().contains("could not be saved"), "{error}");
    assert_eq!(RunDir::new(aside).epochs().expect("readable"), [1, 2], "what was saved still is");
}

#[test]
fn a_second_holder_is_refused_and_told_who_the_first_is() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let run = RunDir::new(place.path());
    assert!(!RunLock::is_held(&run));
    let lock = RunLock::take(&run).expect("free");
    assert!(RunLock::is_held(&run));
    let reported = RunLock::take(&run).expect_err("taken").to_string();
    assert!(reported.contains(&format!("process {}", std::process::id())), "{reported}");
    drop(lock);
    assert!(!RunLock::is_held(&run));
    RunLock::take(&run).expect("free again, though the file is still there");
}

/// Trains with weights that are not finite from one event on, and as they were from another on.
#[test]
fn a_step_that_is_not_finite_changes_nothing() {
    let run = |spoil: &[u64]| {
        let mut trainer = trainer(Settings { max_skipped_steps: 3, ..settings() }, &Start::Fresh);
        let mut weights = Vec::new();
        let mut reported = Vec::new();
        for step in 1..=5 {
            let sound = trainer.backend().parameters().values().to_vec();
            if spoil.contains(&step) {
                spoil_weights(&mut trainer, f32::NAN);
            }
            let limit = Requests::default();
            limit.stop.store(true, std::sync::atomic::Ordering::Relaxed);
            let outcome = trainer.run(None, &limit, &mut |event| {
                if let Event::Step(report) = event {
                    reported.push(report.skipped);
                }
            });
            assert_eq!(outcome.expect("fewer than three in a row"), Outcome::Stopped);
            if spoil.contains(&step) {
                restore_weights(&mut trainer, &sound);
            }
            weights.push(trainer.backend().parameters().values().to_vec());
        }
        (weights, reported, trainer.state().clone())
    };
    let (weights, reported, state) = run(&[2, 4, 5]);
    assert_eq!(reported, [false, true, false, true, true]);
    assert_eq!((state.global_step, state.optimizer_steps, state.skipped_in_a_row), (5, 2, 2));
    assert_eq!((state.epoch_progress.batches, state.epoch_progress.skipped), (5, 3));
    assert!(state.epoch_progress.loss.is_finite() && state.epoch_progress.gradient_norm.is_finite());
    assert!(
        weights[1] == weights[0] && weights[3] == weights[2] && weights[4] == weights[2],
        "nothing moves"
    );
    assert!(weights[2] != weights[1], "and then it does");
}

fn spoil_weights(trainer: &mut Trainer, value: f32) {
    let mut parameters = trainer.backend().parameters().into_owned();
    parameters.values_mut()[0] = value;
    trainer.backend_mut().load_parameters(parameters);
}

fn restore_weights(trainer: &mut Trainer, sound: &[f32]) {
    let mut parameters = trainer.backend().parameters().into_owned();
    parameters.values_mut().copy_from_slice(sound);
    trainer.backend_mut().load_parameters(parameters);
}

#[test]
fn too_many_steps_that_are_not_finite_end_the_run_with_its_last_checkpoint() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let run = RunDir::new(place.path().join("run"));
    let one = Settings { num_epochs: 1, ..settings() };
    trainer(one, &Start::Fresh).run(Some(&run), &Requests::default(), &mut |_| {}).expect("it trains");
    let wild = Settings { learning_rate: 1e30, max_skipped_steps: 4, ..settings() };
    let start = Start::Checkpoint { run: run.clone(), number: 1, restart_schedule: false };
    let mut trainer = trainer(wild, &start);
    let error = trainer.run(Some(&run), &Requests::default(), &mut |_| {}).expect_err("it diverges");
    let first = run.history().expect("readable").expect("saved").epochs[0].step;
    let Error::Diverged { step, learning_rate, last_checkpoint, .. } = &error else { panic!("{error:?}") };
    // One step at that rate, then four that see what it did.
    assert_eq!((*step, *learning_rate), (first + 5, 1e30));
    assert_eq!(last_checkpoint.as_deref(), Some(run.checkpoint(CheckpointName::Epoch(1)).as_path()));
    assert_eq!(run.status().expect("a status").state, RunState::Diverged);
}
