//! Sweeps over ranks: every run is trained once, and as on one rank.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use folio::distributed::Communicator;
use folio::error::{Error, Result};
use folio::run_dir::{Plan, RunDir, RunState};
use folio::settings::Settings;
use folio::sweep::{Context, Parallel, RunResult, Sweep, SweepEvent, follow_sweep, run_sweep};
use folio::train::{Event, Outcome, Requests, SharedTable, Start};
use rayon::ThreadPoolBuilder;

use crate::ranks::{data, settings};
use crate::support::ThreadRank;

const RUNS: usize = 5;

/// Runs that differ in their learning rates. The second has one that diverges.
fn sweep(plan: Plan) -> Sweep {
    let rates = [3e-3, 1e30, 2e-3, 1e-3, 5e-4];
    let runs = rates.map(|learning_rate| Settings { learning_rate, max_skipped_steps: 1, ..settings() });
    Sweep::new(plan, runs.to_vec())
}

/// What a sweep did: how it ended on each rank, its results by run, and how many epochs were reported of each run.
struct Trained {
    outcomes: Vec<Result<Outcome>>,
    results: BTreeMap<usize, RunResult>,
    epochs: BTreeMap<usize, usize>,
}

/// Trains a sweep. `on_event` is called on rank 0, with the requests of all ranks.
fn train(
    ranks: usize,
    parallel: Parallel,
    sweep: &Sweep,
    directory: Option<&Path>,
    on_event: impl Fn(&[Requests], &SweepEvent) + Sync,
) -> Trained {
    let requests: Vec<Requests> = (0..ranks).map(|_| Requests::default()).collect();
    let epochs = Mutex::new(BTreeMap::new());
    let results = Mutex::new(BTreeMap::new());
    let rank = |communicator: ThreadRank| {
        let own = requests[communicator.rank()].clone();
        if communicator.rank() > 0 {
            // Exchanges block a thread of the pool.
            let pool = ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
            return pool.install(|| follow_sweep(Arc::new(communicator), &own));
        }
        let (stream, tokenizer) = data();
        let context = Context {
            stream,
            tokenizer,
            start: Start::Fresh,
            directory: directory.map(RunDir::new),
            skip_damaged: false,
            jobs: 1,
            threads: 1,
            requests: own,
            ranks: Arc::new(communicator),
            parallel,
            table: SharedTable::default(),
        };
        let mut listener = |event: SweepEvent| {
            on_event(&requests, &event);
            if let SweepEvent::Run { run, event: Event::EpochEnded { .. } } = event {
                *epochs.lock().expect("no panic").entry(run).or_default() += 1;
            }
        };
        let (outcome, ranked) = run_sweep(sweep, &context, &Mutex::new(&mut listener))?;
        *results.lock().expect("no panic") = ranked.into_iter().map(|result| (result.run, result)).collect();
        Ok(outcome)
    };
    let outcomes = std::thread::scope(|scope| {
        let rank = &rank;
        let start = |communicator| scope.spawn(move || rank(communicator));
        let threads: Vec<_> = ThreadRank::world(ranks).into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("no rank panics")).collect()
    });
    let (results, epochs) = (results.into_inner().expect("no panic"), epochs.into_inner().expect("no panic"));
    Trained { outcomes, results, epochs }
}

fn place(sweep: &Sweep) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    sweep.write(directory.path()).expect("it can be written");
    directory
}

#[test]
fn ranks_train_every_run_once_and_as_one_rank_does() {
    for plan in [Plan::Full, Plan::Halving { factor: 2 }] {
        let sweep = sweep(plan);
        let alone = place(&sweep);
        let want = train(1, Parallel::Runs, &sweep, Some(alone.path()), |_, _| {});
        assert_eq!(want.results.len(), RUNS);
        assert_eq!(want.results[&1].state, Some(RunState::Diverged));
        for (ranks, parallel) in [(2, Parallel::Runs), (3, Parallel::Runs), (3, Parallel::Batches)] {
            let directory = place(&sweep);
            let got = train(ranks, parallel, &sweep, Some(directory.path()), |_, _| {});
            for outcome in got.outcomes {
                assert_eq!(outcome.expect("it trains"), Outcome::Finished);
            }
            assert_eq!(got.epochs, want.epochs, "{plan:?}, {ranks} ranks, {parallel:?}");
            if parallel == Parallel::Batches {
                // Three ranks add gradients in another order.
                continue;
            }
            assert_eq!(got.results, want.results, "{plan:?}, {ranks} ranks");
            for run in ["run_1", "run_3", "run_5"] {
                let losses = |place: &Path| std::fs::read(place.join(run).join("losses.json")).expect(run);
                assert!(losses(directory.path()) == losses(alone.path()), "{run}, {ranks} ranks");
            }
        }
    }
}

#[test]
fn a_sweep_over_batches_has_the_bits_of_micro_batches() {
    let mut sweep = sweep(Plan::Full);
    let micro_batches = |sweep: &mut Sweep, count: usize| {
        sweep.runs.iter_mut().for_each(|run| run.gradient_accumulation_steps = count);
    };
    micro_batches(&mut sweep, 2);
    let want = train(1, Parallel::Runs, &sweep, None, |_, _| {});
    micro_batches(&mut sweep, 1);
    let got = train(2, Parallel::Batches, &sweep, None, |_, _| {});
    assert_eq!(got.results, want.results);
}

#[test]
fn a_stop_on_any_rank_stops_all_and_the_sweep_resumes() {
    let sweep = sweep(Plan::Full);
    let alone = place(&sweep);
    let want = train(1, Parallel::Runs, &sweep, Some(alone.path()), |_, _| {});
    for (stopped, parallel) in
        [(0, Parallel::Runs), (1, Parallel::Runs), (1, Parallel::Batches), (0, Parallel::Batches)]
    {
        let directory = place(&sweep);
        let stop = |requests: &[Requests], event: &SweepEvent| {
            if matches!(event, SweepEvent::Run { event: Event::EpochEnded { epoch: 1, .. }, .. }) {
                requests[stopped].request_stop();
            }
        };
        let first = train(2, parallel, &sweep, Some(directory.path()), stop);
        for outcome in first.outcomes {
            assert_eq!(outcome.expect("it stops"), Outcome::Stopped, "rank {stopped}, {parallel:?}");
        }
        assert!(first.results.values().any(|result| result.state == Some(RunState::Stopped)));
        if parallel == Parallel::Runs {
            let second = train(3, parallel, &sweep, Some(directory.path()), |_, _| {});
            // A recorded error has the path of its run.
            let losses = |trained: &Trained| -> Vec<_> {
                trained.results.values().map(|result| (result.state, result.eval_losses.clone())).collect()
            };
            assert_eq!(losses(&second), losses(&want), "rank {stopped}");
        }
    }
}

#[test]
fn a_directory_that_a_rank_does_not_see_is_refused() {
    let sweep = sweep(Plan::Full);
    // Without its sweep.json, as on a file system of rank 0's own.
    let directory = tempfile::tempdir().expect("a temporary directory");
    let trained = train(2, Parallel::Runs, &sweep, Some(directory.path()), |_, _| {});
    let Err(Error::Ranks { reason }) = &trained.outcomes[0] else { panic!("{:?}", trained.outcomes) };
    assert!(reason.starts_with("rank 1 does not see the sweep's directory"), "{reason}");
    assert!(trained.epochs.is_empty());
}
