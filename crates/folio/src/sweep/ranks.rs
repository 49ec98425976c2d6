//! A sweep on several ranks.
//!
//! [`Parallel::Runs`]: rank 0 hands out whole runs. A rank that has finished one gets the next. Each writes to the sweep's
//! directory, which therefore has to be on a file system that all ranks share. Rank 0 trains runs, too, and shows the events of all.
//!
//! [`Parallel::Batches`]: the runs train one after another, each with its batches divided over all ranks.

use std::cell::Cell;
use std::str::FromStr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Context, RunResult, Sweep, SweepEvent, run_one};
use crate::data::{StreamHeader, TokenStream};
use crate::distributed::{
    Communicator, SingleProcess, any, receive_from_first, receive_value, send_to_all, send_value,
};
use crate::error::{Error, Result};
use crate::files::check_writable;
use crate::run_dir::{RunDir, RunState};
use crate::tokenizer::{Tokenizer, TokenizerParts};
use crate::train::ranks::check_version;
use crate::train::{Event, Outcome, Requests, SharedTable, Start, Trainer, on_cpu};

/// How often a rank looks for messages while it has nothing else to do.
const POLL: Duration = Duration::from_millis(5);
/// The least time between two steps of a run that rank 0 hears of.
const STEP_INTERVAL: Duration = Duration::from_millis(100);

/// What the ranks of a sweep share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Parallel {
    /// Each rank trains runs of its own.
    #[default]
    Runs,
    /// All ranks train the same run.
    Batches,
}

impl Parallel {
    /// The names of all values.
    pub const NAMES: [&str; 2] = ["runs", "batches"];
}

impl FromStr for Parallel {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "runs" => Ok(Self::Runs),
            "batches" => Ok(Self::Batches),
            _ => Err("use runs or batches".to_owned()),
        }
    }
}

/// What the other ranks need to know of a sweep.
#[derive(Serialize, Deserialize)]
enum Invitation {
    /// To train runs that rank 0 will name.
    Runs(Box<Shared>),
    /// To join run after run.
    Batches,
}

/// A [`Context`] but for its tokens, and what each rank has of its own.
#[derive(Serialize, Deserialize)]
struct Shared {
    sweep: Sweep,
    stream: StreamHeader,
    tokenizer: TokenizerParts,
    start: Start,
    directory: Option<RunDir>,
    skip_damaged: bool,
}

/// Whether another rank can take part, and if not, why.
type Answer = std::result::Result<(), String>;

/// From rank 0 to another rank.
#[derive(Serialize, Deserialize)]
enum Order {
    /// Train this run up to a number of epochs.
    Train { run: usize, epochs: u64 },
    /// Save and stop the run.
    Stop,
    /// The sweep is over.
    End,
}

/// From another rank to rank 0.
#[derive(Serialize, Deserialize)]
enum Report {
    Started,
    Event(Box<Event>),
    Ended { result: RunResult, trained: bool },
}

/// Invites the other ranks to a sweep.
///
/// # Errors
/// If another rank has another version of folio, or does not see the sweep's directory.
pub(super) fn invite(sweep: &Sweep, context: &Context) -> Result<()> {
    let ranks = &*context.ranks;
    if ranks.world_size() == 1 {
        return Ok(());
    }
    let absolute = |run: &RunDir| {
        std::path::absolute(run.path()).map(RunDir::new).map_err(Error::file("find", run.path()))
    };
    let directory = context.directory.as_ref().map(absolute).transpose()?;
    check_version(ranks)?;
    if context.parallel == Parallel::Batches {
        send_value(ranks, &Invitation::Batches);
        return Ok(());
    }
    let shared = Shared {
        sweep: sweep.clone(),
        stream: context.stream.header(),
        tokenizer: context.tokenizer.parts(),
        start: context.start.clone(),
        directory,
        skip_damaged: context.skip_damaged,
    };
    send_value(ranks, &Invitation::Runs(Box::new(shared)));
    send_to_all(ranks, context.stream.bytes());
    let answers: Vec<Answer> = (1..ranks.world_size()).map(|rank| receive(ranks, rank)).collect();
    match answers.into_iter().find_map(std::result::Result::err) {
        Some(reason) => {
            dismiss(context);
            Err(Error::Ranks { reason })
        }
        None => Ok(()),
    }
}

/// Ends the sweep of the other ranks.
pub(super) fn dismiss(context: &Context) {
    let ranks = &*context.ranks;
    match context.parallel {
        _ if ranks.world_size() == 1 => {}
        Parallel::Runs => (1..ranks.world_size()).for_each(|rank| send(ranks, rank, &Order::End)),
        Parallel::Batches => {
            any(ranks, [false]);
        }
    }
}

/// Has another rank train a run, and reports its events. Returns the result, and whether the run was trained.
pub(super) fn train_on(
    rank: usize,
    context: &Context,
    run: usize,
    epochs: u64,
    report: &(dyn Fn(SweepEvent) + Sync),
) -> (RunResult, bool) {
    let ranks = &*context.ranks;
    send(ranks, rank, &Order::Train { run, epochs });
    let mut is_stopping = false;
    loop {
        match try_receive(ranks, rank) {
            Some(Report::Started) => report(SweepEvent::RunStarted { run }),
            Some(Report::Event(event)) => report(SweepEvent::Run { run, event: &event }),
            Some(Report::Ended { result, trained }) => {
                if result.state == Some(RunState::Stopped) {
                    // By a signal to that rank, unless it was rank 0 that stopped it.
                    context.requests.request_stop();
                }
                return (result, trained);
            }
            None => thread::sleep(POLL),
        }
        if context.requests.stop_requested() && !is_stopping {
            is_stopping = true;
            send(ranks, rank, &Order::Stop);
        }
    }
}

/// Trains the runs of a sweep that rank 0 hands out, as one of the other ranks. Returns when the sweep ends.
///
/// # Errors
/// If the ranks differ in their version, or this one does not see the sweep's directory.
pub fn follow_sweep(ranks: Arc<dyn Communicator>, requests: &Requests) -> Result<Outcome> {
    check_version(&*ranks)?;
    match receive_value(&*ranks) {
        Invitation::Runs(shared) => follow_runs(&*ranks, *shared, requests),
        Invitation::Batches => follow_batches(ranks, requests),
    }
}

fn follow_runs(ranks: &dyn Communicator, shared: Shared, requests: &Requests) -> Result<Outcome> {
    let Shared { sweep, stream, tokenizer, start, directory, skip_damaged } = shared;
    let mut stream = TokenStream::with_header(stream);
    receive_from_first(ranks, stream.bytes_mut());
    let answer = directory.as_ref().map_or(Ok(()), |directory| check_seen(directory, &sweep, ranks.rank()));
    send(ranks, 0, &answer);
    let context = Context {
        stream: Arc::new(stream),
        tokenizer: Arc::new(Tokenizer::of_parts(&tokenizer)),
        start,
        directory,
        skip_damaged,
        jobs: 1,
        threads: rayon::current_num_threads(),
        requests: requests.clone(),
        ranks: Arc::new(SingleProcess),
        parallel: Parallel::Runs,
        table: SharedTable::default(),
    };
    loop {
        match receive(ranks, 0) {
            Order::Train { run, epochs } => train_for_first(ranks, &sweep, &context, run, epochs),
            // The run that it was meant for has just ended.
            Order::Stop => requests.request_stop(),
            Order::End => break,
        }
    }
    Ok(if requests.stop_requested() { Outcome::Stopped } else { Outcome::Finished })
}

/// Trains one run, and sends its events and its result to rank 0.
fn train_for_first(ranks: &dyn Communicator, sweep: &Sweep, context: &Context, run: usize, epochs: u64) {
    let is_shown = StepFilter::default();
    let (result, trained) = run_one(sweep, context, run, epochs, &|event| {
        match event {
            SweepEvent::RunStarted { .. } => send(ranks, 0, &Report::Started),
            SweepEvent::Run { event, .. } if is_shown.passes(event) => {
                send(ranks, 0, &Report::Event(Box::new(event.clone())));
            }
            _ => {}
        }
        if let Some(Order::Stop) = try_receive(ranks, 0) {
            context.requests.request_stop();
        }
    });
    send(ranks, 0, &Report::Ended { result, trained });
}

/// Chooses the events that rank 0 hears of: of steps only some.
#[derive(Default)]
struct StepFilter {
    last: Cell<Option<Instant>>,
}

impl StepFilter {
    fn passes(&self, event: &Event) -> bool {
        let Event::Step(step) = event else { return true };
        // JSON has no number for the norm of a skipped step.
        if step.skipped {
            return false;
        }
        let is_due = self.last.get().is_none_or(|time| time.elapsed() >= STEP_INTERVAL);
        if is_due {
            self.last.set(Some(Instant::now()));
        }
        is_due
    }
}

/// Fails unless the sweep's directory is the one that rank 0 has written to, and this rank can write there.
fn check_seen(directory: &RunDir, sweep: &Sweep, rank: usize) -> Answer {
    let path = directory.path();
    if !Sweep::read(path).is_ok_and(|found| found.as_ref() == Some(sweep)) {
        return Err(format!(
            "rank {rank} does not see the sweep's directory {}: put it on a file system that all ranks share, or use --no_save",
            path.display()
        ));
    }
    check_writable(path).map_err(|error| format!("rank {rank}: {error}"))
}

/// Joins run after run.
fn follow_batches(ranks: Arc<dyn Communicator>, requests: &Requests) -> Result<Outcome> {
    while let [true] = any(&*ranks, [false]) {
        let trained = Trainer::follow(&on_cpu, Box::new(Arc::clone(&ranks)))
            .and_then(|mut trainer| trainer.run(None, requests, &mut |_| {}));
        match trained {
            Ok(Outcome::Stopped) => requests.request_stop(),
            // Rank 0 records the error of a run, and goes on with the next.
            Ok(Outcome::Finished) | Err(_) => {}
        }
    }
    Ok(if requests.stop_requested() { Outcome::Stopped } else { Outcome::Finished })
}

/// The communicator of one of rank 0's runs, and the announcement of the run to the other ranks.
pub(super) fn for_run(context: &Context) -> Box<dyn Communicator> {
    if context.parallel == Parallel::Runs || context.ranks.world_size() == 1 {
        return Box::new(SingleProcess);
    }
    any(&*context.ranks, [true]);
    Box::new(Arc::clone(&context.ranks))
}

fn send<T: Serialize>(ranks: &dyn Communicator, to: usize, message: &T) {
    ranks.send(to, &serde_json::to_vec(message).expect("it is JSON"));
}

fn receive<T: for<'de> Deserialize<'de>>(ranks: &dyn Communicator, from: usize) -> T {
    loop {
        match try_receive(ranks, from) {
            Some(message) => return message,
            None => thread::sleep(POLL),
        }
    }
}

fn try_receive<T: for<'de> Deserialize<'de>>(ranks: &dyn Communicator, from: usize) -> Option<T> {
    let message = ranks.try_receive(from)?;
    Some(serde_json::from_slice(&message).expect("all ranks have the same version"))
}
