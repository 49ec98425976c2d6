//! The moving average of the weights.

use std::path::Path;
use std::sync::Arc;

use folio::checkpoint::{Checkpoint, CheckpointName};
use folio::data::TokenStream;
use folio::distributed::SingleProcess;
use folio::run_dir::RunDir;
use folio::settings::{Keep, Settings};
use folio::tokenizer::Tokenizer;
use folio::train::{Requests, Start, Trainer};

use crate::support::{BACKENDS, CPU, New};

const DECAY: f64 = 0.6;
const EPOCHS: u64 = 3;

fn settings(ema_decay: f64) -> Settings {
    Settings {
        ema_decay,
        n_emb: 8,
        n_heads: 2,
        n_blocks: 1,
        block_size: 8,
        batch_size: 4,
        num_epochs: EPOCHS,
        learning_rate: 1e-2,
        save_checkpoint: true,
        keep: Keep::All,
        ..Settings::default()
    }
}

/// Trains and saves every epoch. An epoch has a single step, so that the weights of every step are saved.
fn train(new: New, settings: &Settings, start: &Start, directory: &Path) -> RunDir {
    let text = "to be, or not to be, that is the question.";
    let tokenizer = Arc::new(Tokenizer::chars(text));
    let stream = TokenStream::encode(text, &tokenizer, settings.split).expect("its own characters");
    let run = RunDir::new(directory);
    let mut trainer =
        Trainer::on(&new, Box::new(SingleProcess), settings.clone(), Arc::new(stream), tokenizer, start)
            .expect("valid settings");
    trainer.run(Some(&run), &Requests::default(), &mut |_| {}).expect("it trains");
    run
}

fn checkpoint(run: &RunDir, epoch: u64) -> Checkpoint {
    run.open_checkpoint(CheckpointName::Epoch(epoch)).expect("saved")
}

fn model(run: &RunDir, epoch: u64) -> Vec<f32> {
    checkpoint(run, epoch).parameters().expect("saved").values().to_vec()
}

#[test]
fn the_saved_model_is_the_average_and_training_goes_on_as_without_it() {
    for (name, new) in BACKENDS {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let plain = train(new, &settings(0.0), &Start::Fresh, &directory.path().join("plain"));
        let averaged = train(new, &settings(DECAY), &Start::Fresh, &directory.path().join("averaged"));
        let first_step = checkpoint(&plain, 1).state().global_step;
        assert_eq!(first_step, 1, "one step per epoch");
        // The average starts with the initial weights, and forgets them faster at first.
        let initial = {
            let unmoved = Settings { learning_rate: 1e-300, weight_decay: 0.0, ..settings(0.0) };
            model(&train(new, &unmoved, &Start::Fresh, &directory.path().join("initial")), 1)
        };
        let mut want: Vec<f64> = initial.into_iter().map(f64::from).collect();
        for step in 1..=EPOCHS {
            let decay = DECAY.min((1 + step) as f64 / (10 + step) as f64);
            let weights = model(&plain, step);
            want.iter_mut().zip(&weights).for_each(|(average, &weight)| {
                *average = decay * *average + (1.0 - decay) * f64::from(weight);
            });
            let saved = checkpoint(&averaged, step);
            assert_eq!(saved.weights_without_averaging().expect("saved").values(), weights, "{name} {step}");
            // Each update rounds at most four times, by half a unit in the last place of a value below 2.
            let tolerance = step as f64 * 4.0 * f64::from(f32::EPSILON);
            for (index, (got, want)) in model(&averaged, step).iter().zip(&want).enumerate() {
                let off = (f64::from(*got) - want).abs();
                assert!(off <= tolerance, "{name}, step {step}, weight {index}: got {got}, want {want}");
            }
        }
    }
}

#[test]
fn the_average_of_frozen_parameters_keeps_their_bits() {
    for (name, new) in BACKENDS {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let frozen = Settings { freeze: "embeddings,blocks:1".parse().expect("parts"), ..settings(DECAY) };
        let run = train(new, &frozen, &Start::Fresh, &directory.path().join("frozen"));
        let saved = checkpoint(&run, EPOCHS);
        let weights = saved.weights_without_averaging().expect("saved");
        let average = saved.parameters().expect("saved");
        for spec in weights.specs() {
            let is_same = weights.tensor(spec) == average.tensor(spec);
            assert_eq!(is_same, !spec.name.starts_with("ln_f"), "{name}: {}", spec.name);
        }
    }
}

#[test]
fn both_losses_are_reported() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let history = |decay: f64, name: &str| {
        let run = train(CPU, &settings(decay), &Start::Fresh, &directory.path().join(name));
        run.history().expect("readable").expect("saved").epochs
    };
    let (plain, averaged) = (history(0.0, "plain"), history(DECAY, "averaged"));
    for (plain, averaged) in plain.iter().zip(&averaged) {
        assert_eq!(averaged.raw_eval_loss, Some(plain.eval_loss));
        assert_ne!(averaged.eval_loss, plain.eval_loss);
        assert_eq!(plain.raw_eval_loss, None);
    }
}

#[test]
fn a_run_may_continue_with_an_average_or_without() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let place = |name: &str| directory.path().join(name);
    let plain = train(CPU, &settings(0.0), &Start::Fresh, &place("plain"));
    let averaged = train(CPU, &settings(DECAY), &Start::Fresh, &place("averaged"));
    let after = |run: &RunDir| Start::Checkpoint { run: run.clone(), number: 2, restart_schedule: false };
    let one = |decay: f64| Settings { num_epochs: 1, ..settings(decay) };

    // Without an average, training continues from the weights themselves.
    let without = train(CPU, &one(0.0), &after(&averaged), &place("without"));
    assert_eq!(model(&without, 3), model(&plain, 3));
    // A new average starts with the weights.
    let with = train(CPU, &one(DECAY), &after(&plain), &place("with"));
    assert_eq!(checkpoint(&with, 3).weights_without_averaging().expect("saved").values(), model(&plain, 3));
    assert_ne!(model(&with, 3), model(&averaged, 3));
    // A checkpoint without optimizer keeps the average alone.
    let kept = model(&averaged, 2);
    folio::checkpoint::strip(&averaged.checkpoint(CheckpointName::Epoch(2))).expect("writable");
    assert_eq!(model(&averaged, 2), kept);
    let error = checkpoint(&averaged, 2).weights_without_averaging().expect_err("removed").to_string();
    assert!(error.contains("keeps the weights alone"), "{error}");
    train(CPU, &one(DECAY), &after(&averaged), &place("from_average"));
}
