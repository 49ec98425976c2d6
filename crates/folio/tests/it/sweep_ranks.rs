//! Sweeps over ranks: every run is trained once, and as on one rank.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::Ordering;
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

/// What a sweep did: how it ended on each rank, its results by run, and what was reported of each run.
struct Trained {
    outcomes: Vec<Result<Outcome>>,
    results: BTreeMap<usize, RunResult>,
    /// How many epochs.
    epochs: BTreeMap<usize, usize>,
    /// The number of each step, and whether it was skipped.
    steps: BTreeMap<usize, Vec<(u64, bool)>>,
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
    let steps = Mutex::new(BTreeMap::<_, Vec<_>>::new());
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
            if let SweepEvent::Run { run, event: Event::Step(step) } = event {
                steps.lock().expect("no panic").entry(run).or_default().push((step.step, step.skipped));
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
    Trained { outcomes, results, epochs, steps: steps.into_inner().expect("no panic") }
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
            assert_eq!(got.steps, want.steps, "{plan:?}, {ranks} ranks, {parallel:?}");
            assert!(got.steps[&1].iter().any(|&(_, skipped)| skipped), "{:?}", got.steps[&1]);
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
        let last = format!("run_{RUNS}");
        assert!(
            !directory.path().join(last).exists(),
            "rank {stopped}, {parallel:?}: no run begins after a stop"
        );
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

#[test]
fn a_stop_on_a_rank_without_a_run_stops_the_sweep() {
    let run = Settings { num_epochs: 100_000, ..settings() };
    let sweep = Sweep::new(Plan::Full, vec![run]);
    // The only run is hardly ever that of the last rank.
    let stop = |requests: &[Requests], event: &SweepEvent| {
        if matches!(event, SweepEvent::Run { event: Event::EpochEnded { epoch: 1, .. }, .. }) {
            requests[3].request_stop();
        }
    };
    let trained = train(4, Parallel::Runs, &sweep, None, stop);
    for outcome in trained.outcomes {
        assert_eq!(outcome.expect("it stops"), Outcome::Stopped);
    }
}

#[test]
fn a_halving_sweep_that_was_stopped_in_a_later_stage_resumes() {
    let mut sweep = sweep(Plan::Halving { factor: 2 });
    sweep.runs.iter_mut().for_each(|run| run.num_epochs = 8);
    let epochs: Vec<u64> = sweep.rungs().iter().map(|rung| rung.epochs).collect();
    assert!(epochs.len() > 2 && epochs[1] + 1 < epochs[2], "{epochs:?}");
    let alone = place(&sweep);
    let want = train(1, Parallel::Runs, &sweep, Some(alone.path()), |_, _| {});
    for ranks in [1, 2] {
        let directory = place(&sweep);
        let stop = |requests: &[Requests], event: &SweepEvent| {
            if matches!(event, SweepEvent::Run { event: Event::EpochEnded { epoch, .. }, .. } if *epoch == epochs[1] + 1)
            {
                requests[0].request_stop();
            }
        };
        let first = train(ranks, Parallel::Runs, &sweep, Some(directory.path()), stop);
        assert_eq!(first.outcomes[0].as_ref().ok(), Some(&Outcome::Stopped));
        let second = train(ranks, Parallel::Runs, &sweep, Some(directory.path()), |_, _| {});
        assert_eq!(second.outcomes[0].as_ref().ok(), Some(&Outcome::Finished), "{ranks} ranks");
        let losses = |trained: &Trained| -> Vec<_> {
            trained.results.values().map(|result| (result.state, result.eval_losses.clone())).collect()
        };
        assert_eq!(losses(&second), losses(&want), "{ranks} ranks");
    }
}

#[test]
fn a_request_to_save_reaches_the_runs_of_all_ranks() {
    let run = Settings { num_epochs: 100_000, ..settings() };
    let sweep = Sweep::new(Plan::Full, vec![run; 2]);
    let directory = place(&sweep);
    let saved = Mutex::new(BTreeSet::new());
    let ask = |requests: &[Requests], event: &SweepEvent| match event {
        // Asked for again and again, as the runs do not start at one time.
        SweepEvent::Run { event: Event::EpochEnded { .. }, .. } => {
            requests[0].save.store(true, Ordering::Relaxed);
        }
        SweepEvent::Run { run, event: Event::Saved { requested: true, .. } } => {
            let mut saved = saved.lock().expect("no panic");
            saved.insert(*run);
            if saved.len() == 2 {
                requests[0].request_stop();
            }
        }
        _ => {}
    };
    let trained = train(2, Parallel::Runs, &sweep, Some(directory.path()), ask);
    assert_eq!(trained.outcomes[0].as_ref().ok(), Some(&Outcome::Stopped));
}

#[test]
fn a_model_that_a_rank_does_not_see_is_refused() {
    let mut sweep = sweep(Plan::Full);
    sweep.runs[0].init_from = Some("no/such/model".to_owned());
    let trained = train(3, Parallel::Runs, &sweep, None, |_, _| {});
    let Err(Error::Ranks { reason }) = &trained.outcomes[0] else { panic!("{:?}", trained.outcomes) };
    let want = "rank 1 does not see the model to begin with, no/such/model: put it on a file system that all ranks share";
    assert_eq!(reason, want);
    assert!(matches!(trained.outcomes[1], Err(Error::Ranks { .. })), "{:?}", trained.outcomes);
}

#[test]
#[cfg(target_os = "linux")]
fn a_directory_whose_name_is_not_utf_8_is_refused_on_all_ranks() {
    use std::os::unix::ffi::OsStrExt;

    let sweep = sweep(Plan::Full);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join(std::ffi::OsStr::from_bytes(b"\xff"));
    let trained = train(2, Parallel::Runs, &sweep, Some(&path), |_, _| {});
    let reasons: Vec<String> =
        trained.outcomes.into_iter().map(|outcome| outcome.expect_err("a mistake").to_string()).collect();
    assert!(reasons[0].ends_with("use paths in UTF-8"), "{reasons:?}");
    assert_eq!(reasons[1], "rank 0 failed to prepare the sweep; see its error");
}
