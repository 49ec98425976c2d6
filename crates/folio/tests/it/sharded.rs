//! AdamW divided over ranks, gradients in bfloat16, and what ranks report.

use std::sync::Mutex;

use folio::distributed::{Communicator, Division, Reduction, SingleProcess};
use folio::model::{Backend, Batch, Frozen, ModelConfig, Moments, Parameters, Precision, StepBatch};
use folio::optim::{AdamW, AdamWConfig};
use folio::rng::{Rng, Stream};
use folio::run_dir::RunDir;
use folio::settings::Settings;
use folio::train::{Event, Outcome, Requests, Start};
use folio_kernels::element::{Bf16, Element};
use rayon::ThreadPoolBuilder;

use crate::ranks::{check_same, settings, train};
use crate::support::{BACKENDS, CPU, ThreadRank};

#[test]
fn dividing_adamw_over_ranks_changes_no_bits() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (name, new) in BACKENDS {
        for (freeze, precision, batch_size) in [
            ("none", Precision::F32, 13),
            ("none", Precision::Bf16, 7),
            ("blocks:1", Precision::F32, 7),
            ("embeddings,blocks:1", Precision::F32, 13),
        ] {
            let context = format!("{name}, {freeze}, {precision:?}, batches of {batch_size}");
            let place = |what: &str| directory.path().join(format!("{context} {what}").replace(':', "_"));
            let on = |accumulation: usize, zero: usize| Settings {
                freeze: freeze.parse().expect("parts"),
                precision,
                batch_size,
                gradient_accumulation_steps: accumulation,
                zero,
                ema_decay: 0.9,
                ..settings()
            };
            let run = |ranks: usize, settings: &Settings, what: &str| {
                for outcome in train(new, ranks, &place(what), &Start::Fresh, settings, |_, _, _| {}) {
                    assert_eq!(outcome.expect("it trains"), Outcome::Finished);
                }
            };
            run(1, &on(4, 0), "four parts");
            run(1, &on(3, 0), "three parts");
            for (ranks, accumulation) in [(1, 4), (2, 2), (4, 1), (3, 1)] {
                let divided = format!("{ranks} ranks");
                run(ranks, &on(accumulation, 1), &divided);
                let whole = place(if ranks == 3 { "three parts" } else { "four parts" });
                check_same(&place(&divided), &whole, &format!("{context}, {ranks} ranks"));
            }
        }
    }
}

#[test]
fn a_run_is_resumed_with_adamw_divided_or_not_on_any_number_of_ranks() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let [whole, pieces] = ["whole", "pieces"].map(|name| directory.path().join(name));
    let on = |ranks: usize, zero: usize| Settings {
        gradient_accumulation_steps: 4 / ranks,
        ema_decay: 0.9,
        zero,
        ..settings()
    };
    train(CPU, 1, &whole, &Start::Fresh, &on(1, 0), |_, _, _| {});
    let stop_at = |at: u64| {
        move |rank: usize, requests: &Requests, event: &Event| {
            if let Event::Step(report) = event
                && (rank, report.step) == (0, at)
            {
                requests.stop.store(true, std::sync::atomic::Ordering::Relaxed);
            }
        }
    };
    let resume = Start::Resume { run: RunDir::new(&pieces), skip_damaged: false };
    for (ranks, zero, start, at, want) in [
        (4, 1, &Start::Fresh, 2, Outcome::Stopped),
        (2, 0, &resume, 4, Outcome::Stopped),
        (2, 1, &resume, 6, Outcome::Stopped),
        (1, 1, &resume, 8, Outcome::Stopped),
        (4, 1, &resume, u64::MAX, Outcome::Finished),
    ] {
        for outcome in train(CPU, ranks, &pieces, start, &on(ranks, zero), stop_at(at)) {
            assert_eq!(outcome.expect("it trains"), want, "{ranks} ranks, zero {zero}");
        }
    }
    check_same(&pieces, &whole, "resumed four times");
}

#[test]
fn every_rank_reports_its_work() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for ranks in [1, 3] {
        let reports = Mutex::new(Vec::new());
        let run = directory.path().join(ranks.to_string());
        train(CPU, ranks, &run, &Start::Fresh, &settings(), |rank, _, event| {
            if let Event::Ranks { epoch, step, ranks } = event {
                reports.lock().expect("no panic").push((rank, *epoch, *step, ranks.clone()));
            }
        });
        let mut reports = reports.into_inner().expect("no panic");
        reports.sort_by_key(|(rank, ..)| *rank);
        assert_eq!(reports.len(), if ranks == 1 { 0 } else { ranks }, "one per rank, if there are several");
        for (rank, epoch, step, report) in &reports {
            assert_eq!((*epoch, *step, report.len()), (3, 12, ranks));
            assert_eq!(*report, reports[0].3, "rank {rank} has the same figures");
            for one in report {
                assert!(one.tokens_per_s > 0.0 && one.peak_memory != Some(0), "{one:?}");
                assert!((0.0..=one.seconds).contains(&one.communication_seconds), "{one:?}");
            }
        }
    }
}

/// A model, and a batch of 7 sequences.
struct Small {
    config: ModelConfig,
    parameters: Parameters,
    inputs: Vec<u32>,
    targets: Vec<u32>,
}

impl Small {
    fn new() -> Self {
        let config = ModelConfig {
            vocab_size: 150,
            n_blocks: 2,
            n_emb: 24,
            n_heads: 2,
            block_size: 5,
            dropout: 0.2,
            tie_word_embeddings: false,
            ..ModelConfig::GPT2
        };
        let mut rng = Rng::new(3, Stream::Sampling);
        let mut tokens = || (0..7 * 5).map(|_| rng.below(150) as u32).collect();
        let (inputs, targets) = (tokens(), tokens());
        let parameters = Parameters::random(&config, &mut Rng::new(5, Stream::Init));
        Self { config, parameters, inputs, targets }
    }

    fn model(&self) -> Box<dyn Backend> {
        CPU(self.config, Precision::F32, self.parameters.clone())
    }

    fn step(&self, rank: usize, world_size: usize) -> StepBatch<'_> {
        let division = Division { sequences: 7, micro_batches: 3, rank, world_size };
        let batch = Batch { inputs: &self.inputs, targets: &self.targets, time: 5 };
        StepBatch {
            batch: batch.select(division.own()),
            division,
            dropout_key: 11,
            dropout: None,
            label_smoothing: 0.1,
            soft_targets: None,
        }
    }
}

/// Calls `work` on every rank, on threads of its own.
fn on_ranks<R: Send>(world_size: usize, work: impl Fn(&ThreadRank) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let start = |rank: ThreadRank| {
            let work = &work;
            scope.spawn(move || {
                let pool = ThreadPoolBuilder::new().num_threads(2).build().expect("threads");
                pool.install(|| work(&rank))
            })
        };
        let threads: Vec<_> = ThreadRank::world(world_size).into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("no rank panics")).collect()
    })
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// What a rank has after a step: its norm, weights, moments, the places it owns, and on rank 0 all moments.
type AfterStep = (f64, Vec<f32>, Moments, Vec<std::ops::Range<usize>>, Option<Moments>);

#[test]
fn a_rank_keeps_only_its_own_moments_and_all_have_the_same_weights() {
    let small = Small::new();
    let all = small.parameters.values().len();
    for frozen in ["none", "embeddings", "embeddings,blocks:2"] {
        let frozen: Frozen = frozen.parse().expect("parts");
        let step = |rank: &ThreadRank, divided: bool| -> AfterStep {
            let mut model = small.model();
            model.freeze(frozen);
            if divided {
                model.shard(rank.rank(), rank.world_size());
            }
            let mut optimizer = AdamW::new(AdamWConfig { grad_clip: 1e-3, ..AdamWConfig::default() });
            let mut norm = 0.0;
            for _ in 0..3 {
                let reduction = Reduction { communicator: rank, precision: Precision::F32 };
                model.reduced_forward_backward(small.step(rank.rank(), rank.world_size()), reduction);
                norm = optimizer.step(&mut *model, 1e-2);
                model.share_weights(rank);
            }
            let whole = model.whole_moments(rank).map(std::borrow::Cow::into_owned);
            let moments = model.moments().into_owned();
            (norm, model.parameters().values().to_vec(), moments, model.own(), whole)
        };
        for world_size in [2, 3, 4] {
            let whole = on_ranks(world_size, |rank| step(rank, false));
            let divided = on_ranks(world_size, |rank| step(rank, true));
            let context = format!("{frozen}, {world_size} ranks");
            let (norm, weights, moments, ..) = &whole[0];
            for (rank, (own_norm, own_weights, own_moments, own, gathered)) in divided.iter().enumerate() {
                assert_eq!(own_norm.to_bits(), norm.to_bits(), "{context}, rank {rank}");
                assert_eq!(bits(own_weights), bits(weights), "{context}, rank {rank}");
                assert_eq!(*own_moments, moments.select(own), "{context}, rank {rank}");
                let held = own_moments.exp_avg.len();
                // Each of the 5 buckets (4 if all blocks are frozen) has parts that differ by one unit of 1,024 at most.
                assert!(held <= all / world_size + 5 * 1024, "{context}, rank {rank}: {held} of {all}");
                assert_eq!(gathered.is_some(), rank == 0);
                if let Some(gathered) = gathered {
                    assert_eq!(gathered, moments, "{context}: gathered");
                }
            }
        }
    }
}

#[test]
fn gradients_in_bfloat16_are_off_by_their_roundings_and_equal_on_all_ranks() {
    let small = Small::new();
    // A single process sends nothing, so that it does not round.
    let [mut alone, mut plain] = [small.model(), small.model()];
    let reduction = Reduction { communicator: &SingleProcess, precision: Precision::Bf16 };
    alone.reduced_forward_backward(small.step(0, 1), reduction);
    plain.forward_backward(small.step(0, 1));
    assert_eq!(bits(alone.gradients().values()), bits(plain.gradients().values()));
    for world_size in [2, 3, 4] {
        let own: Vec<Vec<f32>> = (0..world_size)
            .map(|rank| {
                let mut model = small.model();
                model.forward_backward(small.step(rank, world_size));
                model.gradients().values().to_vec()
            })
            .collect();
        let reduced = |divided: bool| {
            on_ranks(world_size, |rank| {
                let mut model = small.model();
                if divided {
                    model.shard(rank.rank(), world_size);
                }
                let reduction = Reduction { communicator: rank, precision: Precision::Bf16 };
                model.reduced_forward_backward(small.step(rank.rank(), world_size), reduction);
                (model.gradients().values().to_vec(), model.own(), model.gradient_norm())
            })
        };
        let (whole, divided) = (reduced(false), reduced(true));
        for (rank, (gradients, ..)) in whole.iter().enumerate() {
            assert_eq!(bits(gradients), bits(&whole[0].0), "{world_size} ranks: rank {rank}");
        }
        for (gradients, own, norm) in &divided {
            let places = || own.iter().cloned().flatten();
            assert!(places().all(|place| gradients[place].to_bits() == whole[0].0[place].to_bits()));
            assert_eq!(norm.to_bits(), whole[0].2.to_bits(), "{world_size} ranks");
        }
        for (index, &got) in whole[0].0.iter().enumerate() {
            let values = own.iter().map(|values| f64::from(values[index]));
            let (want, size): (f64, f64) =
                values.fold((0.0, 0.0), |(sum, size), value| (sum + value, size + value.abs()));
            let got = f64::from(got);
            // Each value rounds once, and so does the sum; the additions in f32 round 2^16 times less.
            let u = f64::from(Bf16::UNIT_ROUNDOFF);
            let tolerance = u * size + u * (want.abs() + u * size) + 4.0 * f64::from(f32::EPSILON) * size;
            let off = (got - want).abs();
            assert!(off <= tolerance, "{world_size} ranks: [{index}] is {got}, want {want} +- {tolerance:e}");
            assert!(Bf16::from_f32(got as f32).to_f32() == got as f32, "a bfloat16: {got}");
        }
    }
}
