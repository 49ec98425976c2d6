//! Hyperparameter search: every combination of the values given, or random points; each run is trained in full, or poor
//! runs are stopped early.
//!
//! A sweep is a directory with a `sweep.json`, which lists its runs, and a directory for each run, which records its
//! progress. So a stopped sweep can be resumed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::thread;

use rayon::ThreadPoolBuilder;
use serde::{Deserialize, Serialize};

use crate::checkpoint::lowest_eval_loss;
use crate::data::TokenStream;
use crate::distributed::Communicator;
use crate::error::{Error, Result};
use crate::records::run_recorded;
use crate::run_dir::{RunDir, RunLock, RunState, Status};
use crate::settings::Settings;
use crate::tokenizer::Tokenizer;
use crate::train::{Event, Outcome, Requests, SharedTable, Start, Trainer, on_cpu};

mod label;
mod ranks;

pub use crate::run_dir::{Plan, Rung, Sweep};
pub use crate::settings::{Choice, Space};
pub use label::{differing, labels, short_name, short_number, shown};
use ranks::Saves;
pub use ranks::{Parallel, follow_sweep};

/// Everything that the runs of a sweep share.
pub struct Context {
    /// The encoded text.
    pub stream: Arc<TokenStream>,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Where new runs start.
    pub start: Start,
    /// The sweep's directory, if it is saved. It must exist.
    pub directory: Option<RunDir>,
    /// Whether to skip damaged checkpoints.
    pub skip_damaged: bool,
    /// Runs that this process trains at the same time; one if several ranks share batches.
    pub jobs: usize,
    /// Threads, divided among these runs.
    pub threads: usize,
    /// Requests to save or stop.
    pub requests: Requests,
    /// The ranks that train the sweep. Those other than 0 call [`follow_sweep`].
    pub ranks: Arc<dyn Communicator>,
    /// What they share.
    pub parallel: Parallel,
    /// The probabilities of the runs' teachers, which are computed once.
    pub table: SharedTable,
}

/// The progress of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// The run, counting from 0.
    pub run: usize,
    /// Its state; none before it starts.
    pub state: Option<RunState>,
    /// Epochs trained.
    pub epochs: u64,
    /// Its evaluation losses so far, in nats per token.
    pub eval_losses: Vec<f64>,
    /// The step and the loss of its evaluations inside epochs.
    pub step_losses: Vec<(u64, f64)>,
    /// Why it failed.
    pub error: Option<String>,
}

impl RunResult {
    /// The result of a run before it starts.
    pub fn before(run: usize) -> Self {
        let (eval_losses, step_losses) = (Vec::new(), Vec::new());
        Self { run, state: None, epochs: 0, eval_losses, step_losses, error: None }
    }

    /// The lowest evaluation loss so far; infinite before the first.
    pub fn best(&self) -> f64 {
        lowest_eval_loss(&self.eval_losses, &self.step_losses).map_or(f64::INFINITY, |(loss, _)| loss)
    }
}

/// An event in a sweep.
#[derive(Clone, Debug)]
pub enum SweepEvent<'a> {
    /// A run starts or resumes.
    RunStarted {
        /// The run, counting from 0.
        run: usize,
    },
    /// An event in a run.
    Run {
        /// The run, counting from 0.
        run: usize,
        /// The event.
        event: &'a Event,
    },
    /// A run has ended, or was skipped because it had ended before.
    RunEnded {
        /// Its result.
        result: &'a RunResult,
        /// All runs, the best first.
        ranked: &'a [RunResult],
        /// Whether it was trained just now.
        trained: bool,
    },
    /// A stage has ended, and another follows.
    RungEnded {
        /// The runs of the next stage, counting from 0.
        survivors: &'a [usize],
        /// Epochs that they will have trained for at its end.
        epochs: u64,
    },
}

/// Receives the events of a sweep.
pub type SweepListener<'a> = dyn FnMut(SweepEvent) + Send + 'a;

/// Trains a sweep, or the rest of it. If a run fails, its error is recorded and the other runs continue. Returns how the
/// sweep ended, and the runs, the best first.
///
/// # Errors
/// If threads cannot be started, or other ranks cannot take part. An error in a run is in its [`RunResult`].
pub fn run_sweep(
    sweep: &Sweep,
    context: &Context,
    listener: &Mutex<&mut SweepListener>,
) -> Result<(Outcome, Vec<RunResult>)> {
    ranks::invite(sweep, context)?;
    let ended = run_stages(sweep, context, listener);
    ranks::dismiss(context, ended.as_ref().ok().map(|(outcome, _)| *outcome));
    ended
}

fn run_stages(
    sweep: &Sweep,
    context: &Context,
    listener: &Mutex<&mut SweepListener>,
) -> Result<(Outcome, Vec<RunResult>)> {
    let results: Mutex<Vec<RunResult>> = Mutex::new((0..sweep.runs.len()).map(RunResult::before).collect());
    let mut survivors: Vec<usize> = (0..sweep.runs.len()).collect();
    let rungs = sweep.rungs();
    for (stage, rung) in rungs.iter().enumerate() {
        let rung_runs = Stage { runs: &survivors, epochs: rung.epochs };
        run_stage(sweep, context, listener, &results, rung_runs)?;
        let ranked = ranked(&results.lock().expect("no holder panics"));
        let stopped = ranked.iter().any(|result| result.state == Some(RunState::Stopped));
        if stopped || context.requests.stop_requested() {
            return Ok((Outcome::Stopped, ranked));
        }
        if let Some(next) = rungs.get(stage + 1) {
            let sound = ranked.iter().filter(|result| !result.state.is_some_and(RunState::has_failed));
            let taking_part = sound.map(|result| result.run).filter(|run| survivors.contains(run));
            let mut best: Vec<usize> = taking_part.take(next.runs).collect();
            best.sort_unstable();
            survivors = best;
            let event = SweepEvent::RungEnded { survivors: &survivors, epochs: next.epochs };
            (listener.lock().expect("no holder panics"))(event);
        }
    }
    Ok((Outcome::Finished, ranked(&results.lock().expect("no holder panics"))))
}

/// The runs, the best first. Equally good runs keep their order.
fn ranked(results: &[RunResult]) -> Vec<RunResult> {
    let mut ranked = results.to_vec();
    ranked.sort_by(|a, b| a.best().total_cmp(&b.best()).then(a.run.cmp(&b.run)));
    ranked
}

/// The runs to train before the next selection.
#[derive(Clone, Copy)]
struct Stage<'a> {
    runs: &'a [usize],
    epochs: u64,
}

/// Trains runs up to a number of epochs: `jobs` at a time here, and one on each other rank that trains runs of its own.
fn run_stage(
    sweep: &Sweep,
    context: &Context,
    listener: &Mutex<&mut SweepListener>,
    results: &Mutex<Vec<RunResult>>,
    stage: Stage,
) -> Result<()> {
    let queue: Mutex<VecDeque<usize>> = Mutex::new(stage.runs.iter().copied().collect());
    let report = |event: SweepEvent| (listener.lock().expect("no holder panics"))(event);
    let next =
        || queue.lock().expect("no holder panics").pop_front().filter(|_| !context.requests.stop_requested());
    let work = |train: &dyn Fn(usize) -> (RunResult, bool)| {
        while let Some(run) = next() {
            let (result, trained) = train(run);
            let mut results = results.lock().expect("no holder panics");
            results[run] = result.clone();
            report(SweepEvent::RunEnded { result: &result, ranked: &ranked(&results), trained });
        }
    };
    let jobs = if ranks::share_batches(context) { 1 } else { context.jobs };
    let jobs = jobs.clamp(1, stage.runs.len().max(1));
    let pools = (0..jobs).map(|job| {
        // The first jobs get the remaining threads.
        let threads = context.threads / jobs + usize::from(job < context.threads % jobs);
        ThreadPoolBuilder::new().num_threads(threads.max(1)).build()
    });
    let pools = pools.collect::<std::result::Result<Vec<_>, _>>().map_err(|error| {
        Error::setting("threads", format!("the system cannot start that many ({error}); use fewer"))
    })?;
    let saves = Saves::of(context);
    // Every worker has a clone until its last run has ended.
    let working = Arc::new(());
    thread::scope(|scope| {
        for pool in &pools {
            let here = || work(&|run| run_one(sweep, context, saves.own(), run, stage.epochs, &report));
            let works = Arc::clone(&working);
            scope.spawn(move || {
                pool.install(here);
                drop(works);
            });
        }
        for rank in ranks::others(context) {
            let (work, report, saves, working) = (&work, &report, &saves, &working);
            let works = Arc::clone(working);
            scope.spawn(move || {
                work(&|run| ranks::train_on(rank, context, saves, run, stage.epochs, report));
                drop(works);
                ranks::watch(rank, context, saves, &|| Arc::strong_count(working) > 1);
            });
        }
    });
    Ok(())
}

/// Trains one run, unless it has ended before. Returns its result, and whether it was trained.
fn run_one(
    sweep: &Sweep,
    context: &Context,
    requests: &Requests,
    run: usize,
    epochs: u64,
    report: &dyn Fn(SweepEvent),
) -> (RunResult, bool) {
    let mut settings = sweep.runs[run].clone();
    settings.num_epochs = epochs;
    let directory = context.directory_of(run);
    if let Some(directory) = &directory
        && let Some(result) = ended_before(directory, &settings, run)
    {
        return (result, false);
    }
    report(SweepEvent::RunStarted { run });
    let mut result = RunResult::before(run);
    match train(context, requests, run, settings, &mut result, report) {
        Ok(Outcome::Finished) => result.state = Some(RunState::Finished),
        Ok(Outcome::Stopped) => {
            result.state = Some(RunState::Stopped);
            // The signal may have been to another rank.
            requests.request_stop();
        }
        Err(error) => {
            result.state = Some(RunState::of(&error));
            result.error = Some(error.to_string());
        }
    }
    (result, true)
}

fn train(
    context: &Context,
    requests: &Requests,
    run: usize,
    settings: Settings,
    result: &mut RunResult,
    report: &dyn Fn(SweepEvent),
) -> Result<Outcome> {
    let directory = context.directory_of(run);
    let lock = |directory: &RunDir| {
        directory.create()?;
        RunLock::take(directory)
    };
    let _lock = directory.as_ref().map(lock).transpose()?;
    let start = match &directory {
        Some(run) if run.is_run() => Start::Resume { run: run.clone(), skip_damaged: context.skip_damaged },
        _ => context.start.clone(),
    };
    let (stream, tokenizer) = (Arc::clone(&context.stream), Arc::clone(&context.tokenizer));
    let communicator = ranks::for_run(context);
    let mut trainer = Trainer::on(&on_cpu, communicator, settings, stream, tokenizer, &start)?;
    trainer.share_table(&context.table);
    let outcome = run_recorded(&mut trainer, directory.as_ref(), requests, &mut |event| {
        report(SweepEvent::Run { run, event });
    });
    result.epochs = trainer.state().epoch;
    result.eval_losses = trainer.history().eval_losses();
    result.step_losses = trainer.history().step_losses();
    outcome
}

/// The result of a run that needs no training in this stage, because it has ended, diverged or trained beyond it before.
fn ended_before(directory: &RunDir, settings: &Settings, run: usize) -> Option<RunResult> {
    let Status { state, epoch, error, eval_losses, mut step_losses, .. } = directory.status()?;
    let last_epoch = settings.last_epoch();
    // A later stage may have been stopped; this one is finished.
    let is_beyond = matches!(state, RunState::Running | RunState::Stopped) && epoch > last_epoch;
    let state = if is_beyond { RunState::Finished } else { state };
    let done = match state {
        RunState::Finished => epoch >= last_epoch || settings.max_steps.is_some(),
        RunState::Diverged => true,
        // At exactly the end of the stage it still has to be marked as finished.
        RunState::Running | RunState::Stopped => false,
        RunState::Failed | RunState::Imported | RunState::Averaged => false,
    };
    let epochs = epoch.min(last_epoch);
    // Later epochs do not count in this stage.
    let eval_losses = eval_losses.into_iter().take(epochs as usize).collect();
    if epochs < epoch {
        let last = directory.history().ok().flatten().map_or(0, |history| history.step_of_epoch(epochs));
        step_losses.retain(|(step, _)| *step <= last);
    }
    done.then_some(RunResult { run, state: Some(state), epochs, eval_losses, step_losses, error })
}

impl Context {
    /// The directory of a run, counting from 0.
    fn directory_of(&self, run: usize) -> Option<RunDir> {
        self.directory.as_ref().map(|sweep| sweep.sub_run(run))
    }
}
