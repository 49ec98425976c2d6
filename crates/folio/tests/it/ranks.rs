//! Ranks and gradient accumulation: equal divisions of a batch give equal bits.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use folio::data::{SplitKind, TokenStream};
use folio::error::{Error, Result};
use folio::model::{Backend, Batch, ModelConfig, Parameters, Precision, StepBatch};
use folio::rng::{Rng, Stream};
use folio::run_dir::RunDir;
use folio::settings::{Keep, Settings};
use folio::tokenizer::Tokenizer;
use folio::train::{Event, Outcome, Requests, Start, Trainer};

use folio::distributed::Division;

use crate::support::{BACKENDS, CPU, New, ThreadRank};

const EPOCHS: u64 = 3;

/// Forty training blocks: three batches of 13, and one of a single sequence, which leaves ranks without any.
pub(crate) fn settings() -> Settings {
    Settings {
        n_emb: 16,
        n_heads: 2,
        n_blocks: 2,
        block_size: 16,
        batch_size: 13,
        dropout: 0.2,
        num_epochs: EPOCHS,
        learning_rate: 3e-3,
        save_checkpoint: true,
        keep: Keep::All,
        ..Settings::default()
    }
}

pub(crate) fn data() -> (Arc<TokenStream>, Arc<Tokenizer>) {
    let mut rng = Rng::new(11, Stream::Sampling);
    let text: String = (0..50 * 16 + 1).map(|_| char::from(b'a' + rng.below(26) as u8)).collect();
    let tokenizer = Tokenizer::chars(&text);
    let stream = TokenStream::encode(&text, &tokenizer, SplitKind::Blocks).expect("its own characters");
    (Arc::new(stream), Arc::new(tokenizer))
}

/// Trains on some ranks. `settings` and `on_event` are called with the rank.
pub(crate) fn train(
    new: New,
    ranks: usize,
    directory: &Path,
    start: &Start,
    settings: impl Fn(usize) -> Settings + Sync,
    on_event: impl Fn(usize, &Requests, &Event) + Sync,
) -> Vec<Result<Outcome>> {
    let run = RunDir::new(directory);
    std::thread::scope(|scope| {
        let rank = |communicator: ThreadRank| {
            let (run, settings, on_event) = (&run, &settings, &on_event);
            scope.spawn(move || {
                let rank = folio::distributed::Communicator::rank(&communicator);
                let (stream, tokenizer) = data();
                let mut trainer =
                    Trainer::on(&new, Box::new(communicator), settings(rank), stream, tokenizer, start)?;
                let requests = Requests::default();
                trainer.run(Some(run), &requests, &mut |event| on_event(rank, &requests, event))
            })
        };
        let threads: Vec<_> = ThreadRank::world(ranks).into_iter().map(rank).collect();
        threads.into_iter().map(|thread| thread.join().expect("no rank panics")).collect()
    })
}

/// Checks that two runs have saved the same bits after each epoch.
#[track_caller]
pub(crate) fn check_same(got: &Path, want: &Path, context: &str) {
    let inside = ["model.safetensors", "optimizer.safetensors", "state.json"];
    let checkpoints = (1..=EPOCHS).flat_map(|n| inside.map(|name| format!("checkpoint_{n}/{name}")));
    for name in checkpoints.chain(["losses.json".to_owned(), "lrs.json".to_owned()]) {
        let bytes = |run: &Path| fs::read(run.join(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(bytes(got) == bytes(want), "{name} differs: {context}");
    }
}

/// A listener that asks a run on one rank to stop after a step.
pub(crate) fn stop_after(step: u64) -> impl Fn(usize, &Requests, &Event) + Sync {
    move |_, requests, event| {
        if matches!(event, Event::Step(report) if report.step == step) {
            requests.stop.store(true, Ordering::Relaxed);
        }
    }
}

#[test]
fn four_micro_batches_give_the_same_bits_on_one_two_and_four_ranks() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (name, new) in BACKENDS {
        for precision in [Precision::F32, Precision::Bf16] {
            let place = |ranks: usize| directory.path().join(format!("{name}_{precision:?}_{ranks}"));
            for ranks in [1, 2, 4] {
                let settings =
                    |_| Settings { precision, gradient_accumulation_steps: 4 / ranks, ..settings() };
                for outcome in train(new, ranks, &place(ranks), &Start::Fresh, settings, |_, _, _| {}) {
                    assert_eq!(outcome.expect("it trains"), Outcome::Finished);
                }
                check_same(&place(ranks), &place(1), &format!("{name}, {precision:?}, {ranks} ranks"));
            }
        }
    }
}

#[test]
fn a_run_is_resumed_with_the_same_bits_on_another_number_of_ranks() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let [whole, pieces] = ["whole", "pieces"].map(|name| directory.path().join(name));
    let on = |ranks: usize| move |_| Settings { gradient_accumulation_steps: 4 / ranks, ..settings() };
    train(CPU, 1, &whole, &Start::Fresh, on(1), |_, _, _| {});
    // A stop that reaches only the last rank, inside an epoch, stops all.
    let stop_at = |ranks: usize, at: u64| {
        move |rank: usize, requests: &Requests, event: &Event| {
            if let Event::Step(report) = event
                && (rank, report.step) == (ranks - 1, at)
            {
                requests.stop.store(true, Ordering::Relaxed);
            }
        }
    };
    let resume = Start::Resume { run: RunDir::new(&pieces), skip_damaged: false };
    for (ranks, start, at, want) in [
        (4, &Start::Fresh, 2, Outcome::Stopped),
        (1, &resume, 6, Outcome::Stopped),
        (2, &resume, u64::MAX, Outcome::Finished),
    ] {
        for outcome in train(CPU, ranks, &pieces, start, on(ranks), stop_at(ranks, at)) {
            assert_eq!(outcome.expect("it trains"), want, "{ranks} ranks");
        }
    }
    check_same(&pieces, &whole, "4 ranks, then 1, then 2");
}

#[test]
fn ranks_that_differ_are_refused_by_name() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let settings = |rank| Settings { learning_rate: if rank == 2 { 1e-3 } else { 3e-3 }, ..settings() };
    for outcome in train(CPU, 3, directory.path(), &Start::Fresh, settings, |_, _, _| {}) {
        let error = outcome.expect_err("rank 2 has another learning rate");
        assert!(matches!(error, Error::Ranks { .. }), "{error}");
        assert!(error.to_string().contains("rank 2 and rank 0 have different settings"), "{error}");
    }
}

#[test]
fn a_failure_of_one_rank_ends_all() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    // Rank 0 cannot create its directory.
    let taken = directory.path().join("taken");
    fs::write(&taken, "not a directory").expect("room");
    let outcomes = train(CPU, 3, &taken, &Start::Fresh, |_| settings(), |_, _, _| {});
    let errors: Vec<_> = outcomes.into_iter().map(|outcome| outcome.expect_err("nowhere to save")).collect();
    assert!(!matches!(errors[0], Error::Ranks { .. }), "{}", errors[0]);
    for error in &errors[1..] {
        assert!(error.to_string().contains("another rank failed to start the run"), "{error}");
    }
    // One rank cannot prepare the run.
    let invalid = |rank| Settings { batch_size: if rank == 1 { 0 } else { 13 }, ..settings() };
    for outcome in train(CPU, 3, &directory.path().join("run"), &Start::Fresh, invalid, |_, _, _| {}) {
        outcome.expect_err("a rank has invalid settings");
    }
}

/// The parts of a batch of 7 sequences for each rank, and the whole of it.
fn parts(micro_batches: usize, world_size: usize) -> Vec<Division> {
    (0..world_size).map(|rank| Division { sequences: 7, micro_batches, rank, world_size }).collect()
}

#[test]
fn the_gradients_of_a_divided_batch_are_those_of_the_whole_but_for_rounding() {
    let config = ModelConfig {
        vocab_size: 9,
        n_blocks: 2,
        n_emb: 8,
        n_heads: 2,
        block_size: 5,
        dropout: 0.3,
        ..ModelConfig::GPT2
    };
    let mut rng = Rng::new(3, Stream::Sampling);
    let mut draw = || (0..7 * 5).map(|_| rng.below(9) as u32).collect::<Vec<_>>();
    let (inputs, targets) = (draw(), draw());
    let batch = Batch { inputs: &inputs, targets: &targets, time: 5 };
    let parameters = Parameters::random(&config, &mut Rng::new(5, Stream::Init));
    for (name, new) in BACKENDS {
        let step = |model: &mut dyn Backend, division: Division| {
            let batch = batch.select(division.own());
            let step = StepBatch { batch, division, dropout_key: 11, label_smoothing: 0.1 };
            let loss = model.forward_backward(step);
            (loss, model.gradients().values().to_vec())
        };
        let mut model = new(config, Precision::F32, parameters.clone());
        let (loss, want) = step(&mut *model, Division::whole(7));
        // Nine micro-batches of seven sequences: two are empty.
        for (micro_batches, world_size) in [(2, 1), (3, 1), (9, 1), (1, 2), (2, 2), (1, 9)] {
            let parts = parts(micro_batches, world_size).into_iter().map(|part| step(&mut *model, part));
            let (losses, gradients): (Vec<f64>, Vec<Vec<f32>>) = parts.unzip();
            let context = format!("{name}: {micro_batches} micro-batches on {world_size} ranks");
            // Sums of 35 losses of about ln 9 in f64.
            let off = (losses.iter().sum::<f64>() - loss).abs();
            assert!(off <= 35.0 * f64::EPSILON * loss, "{context}: the loss is off by {off:e}");
            // Each element is a sum over 35 tokens, whose order and rounding differ: sqrt(35) roundings of the norm.
            let norm = want.iter().map(|g| g * g).sum::<f32>().sqrt();
            for (index, want) in want.iter().enumerate() {
                let got: f32 = gradients.iter().map(|part| part[index]).sum();
                let tolerance = 35f32.sqrt() * f32::EPSILON * norm;
                assert!((got - want).abs() <= tolerance, "{context}: [{index}] is {got}, want {want}");
            }
        }
    }
}
