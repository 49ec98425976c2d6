//! Ranks and gradient accumulation: equal divisions of a batch give equal bits.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use folio::data::{BlockOffset, SplitKind, TokenStream};
use folio::error::{Error, Result};
use folio::model::{Backend, Batch, ModelConfig, Parameters, Precision, StepBatch};
use folio::rng::{Rng, Stream};
use folio::run_dir::RunDir;
use folio::settings::{Keep, Settings};
use folio::tokenizer::Tokenizer;
use folio::train::{Event, Outcome, Requests, Start, Trainer};

use folio::distributed::{Communicator, Division, Exchanges};

use rayon::ThreadPoolBuilder;

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

/// Trains on some ranks. `on_event` is called with the rank.
pub(crate) fn train(
    new: New,
    ranks: usize,
    directory: &Path,
    start: &Start,
    settings: &Settings,
    on_event: impl Fn(usize, &Requests, &Event) + Sync,
) -> Vec<Result<Outcome>> {
    let ranks = ThreadRank::world(ranks).into_iter().map(|rank| Box::new(rank) as Box<dyn Communicator>);
    train_with(new, ranks.collect(), directory, start, settings, on_event)
}

fn train_with(
    new: New,
    ranks: Vec<Box<dyn Communicator>>,
    directory: &Path,
    start: &Start,
    settings: &Settings,
    on_event: impl Fn(usize, &Requests, &Event) + Sync,
) -> Vec<Result<Outcome>> {
    let run = RunDir::new(directory);
    std::thread::scope(|scope| {
        let rank = |communicator: Box<dyn Communicator>| {
            let (run, on_event) = (&run, &on_event);
            scope.spawn(move || {
                // Ranks wait for each other on threads of their pools, so that each needs its own.
                let pool = ThreadPoolBuilder::new().num_threads(2).build().expect("threads");
                pool.install(|| {
                    let rank = communicator.rank();
                    let mut trainer = match rank {
                        0 => {
                            let (stream, tokenizer) = data();
                            Trainer::on(&new, communicator, settings.clone(), stream, tokenizer, start)?
                        }
                        _ => Trainer::follow(&new, communicator)?,
                    };
                    let requests = Requests::default();
                    trainer.run(Some(run), &requests, &mut |event| on_event(rank, &requests, event))
                })
            })
        };
        let threads: Vec<_> = ranks.into_iter().map(rank).collect();
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
                let settings = Settings { precision, gradient_accumulation_steps: 4 / ranks, ..settings() };
                for outcome in train(new, ranks, &place(ranks), &Start::Fresh, &settings, |_, _, _| {}) {
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
    let on = |ranks: usize| Settings {
        gradient_accumulation_steps: 4 / ranks,
        ema_decay: 0.9,
        block_offset: BlockOffset::Random,
        ..settings()
    };
    train(CPU, 1, &whole, &Start::Fresh, &on(1), |_, _, _| {});
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
        for outcome in train(CPU, ranks, &pieces, start, &on(ranks), stop_at(ranks, at)) {
            assert_eq!(outcome.expect("it trains"), want, "{ranks} ranks");
        }
    }
    check_same(&pieces, &whole, "4 ranks, then 1, then 2");
}

/// Receives everything from rank 0 changed, if it is rank 2: as if rank 0 had another version.
struct OfAnotherVersion(ThreadRank);

impl Communicator for OfAnotherVersion {
    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn world_size(&self) -> usize {
        self.0.world_size()
    }

    fn exchange<'env>(&self, body: &mut dyn FnMut(&mut (dyn Exchanges<'env> + Send))) {
        self.0.exchange(body);
    }

    fn all_reduce_f64(&self, values: &mut [f64]) {
        self.0.all_reduce_f64(values);
    }

    fn broadcast(&self, bytes: &mut [u8]) {
        self.0.broadcast(bytes);
        if self.rank() == 2 {
            bytes.iter_mut().for_each(|byte| *byte ^= 1);
        }
    }

    fn send(&self, to: usize, message: &[u8]) {
        self.0.send(to, message);
    }

    fn try_receive(&self, from: usize) -> Option<Vec<u8>> {
        self.0.try_receive(from)
    }
}

#[test]
fn ranks_that_differ_are_refused_by_name() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let ranks = ThreadRank::world(3)
        .into_iter()
        .map(|rank| Box::new(OfAnotherVersion(rank)) as Box<dyn Communicator>);
    for outcome in
        train_with(CPU, ranks.collect(), directory.path(), &Start::Fresh, &settings(), |_, _, _| {})
    {
        let error = outcome.expect_err("rank 2 has another version");
        assert!(matches!(error, Error::Ranks { .. }), "{error}");
        assert!(error.to_string().contains("rank 2 and rank 0 have different versions of folio"), "{error}");
    }
    let too_small = Settings { batch_size: 2, ..settings() };
    let outcomes = train(CPU, 3, directory.path(), &Start::Fresh, &too_small, |_, _, _| {});
    let errors: Vec<String> =
        outcomes.into_iter().map(|outcome| outcome.expect_err("2 sequences").to_string()).collect();
    assert!(errors[0].contains("3 ranks share a batch of 2 sequences"), "{errors:?}");
    assert!(errors[1].contains("rank 0 failed to prepare the run"), "{errors:?}");
    assert!(fs::read_dir(directory.path()).expect("a directory").next().is_none(), "nothing was written");
}

#[test]
fn a_failure_of_one_rank_ends_all() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    // Rank 0 cannot create its directory.
    let taken = directory.path().join("taken");
    fs::write(&taken, "not a directory").expect("room");
    let outcomes = train(CPU, 3, &taken, &Start::Fresh, &settings(), |_, _, _| {});
    let errors: Vec<_> = outcomes.into_iter().map(|outcome| outcome.expect_err("nowhere to save")).collect();
    assert!(!matches!(errors[0], Error::Ranks { .. }), "{}", errors[0]);
    for error in &errors[1..] {
        assert!(error.to_string().contains("rank 0 failed to start the run"), "{error}");
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
            let step = StepBatch {
                batch,
                division,
                dropout_key: 11,
                dropout: None,
                label_smoothing: 0.1,
                soft_targets: None,
            };
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
