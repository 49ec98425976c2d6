//! A sweep on several ranks.
//!
//! [`Parallel::Runs`]: rank 0 hands out whole runs. A rank that has finished one gets the next. Each writes to the sweep's
//! directory, which therefore has to be on a file system that all ranks share. Rank 0 trains runs, too, and shows the events of all.
//!
//! [`Parallel::Batches`]: the runs train one after another, each with its batches divided over all ranks.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Context, RunResult, Sweep, SweepEvent, run_one};
use crate::data::{StreamHeader, TokenStream};
use crate::distributed::{
    Communicator, SingleProcess, any, encode, receive_from_first, receive_value, send_to_all, send_value,
};
use crate::error::{Error, Result};
use crate::files::check_writable;
use crate::run_dir::{RunDir, RunState};
use crate::tokenizer::{Tokenizer, TokenizerParts};
use crate::train::ranks::{all_succeed, check_version};
use crate::train::{Event, Outcome, Requests, SharedTable, Start, StepReport, Trainer, on_cpu};

/// How often a rank looks for messages while it has nothing else to do.
const POLL: Duration = Duration::from_millis(5);
/// The least time between two messages to rank 0 about the steps of a run.
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
    /// Save the run.
    Save,
    /// Save and stop the run.
    Stop,
    /// The sweep is over. Without an outcome it has failed.
    End { outcome: Option<Outcome> },
}

/// From another rank to rank 0.
#[derive(Serialize, Deserialize)]
enum Report {
    Started,
    /// Steps of the run, in order.
    Steps(Vec<StepReport>),
    /// Another event of the run.
    Event(Box<Event>),
    Ended {
        result: RunResult,
        trained: bool,
    },
    /// A stop was requested of this rank while it had no run.
    StopRequested,
    /// The last message, after [`Order::End`].
    Left,
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
    check_version(ranks)?;
    let invitation = invitation(sweep, context).and_then(|invitation| encode(&invitation));
    let invitation = all_succeed(ranks, invitation, "prepare the sweep")?;
    send_value(ranks, &invitation);
    if context.parallel == Parallel::Batches {
        return Ok(());
    }
    send_to_all(ranks, context.stream.bytes());
    let answers: Vec<Answer> = (1..ranks.world_size()).map(|rank| receive(ranks, rank)).collect();
    match answers.into_iter().find_map(std::result::Result::err) {
        Some(reason) => {
            dismiss(context, None);
            Err(Error::Ranks { reason })
        }
        None => Ok(()),
    }
}

fn invitation(sweep: &Sweep, context: &Context) -> Result<Invitation> {
    if context.parallel == Parallel::Batches {
        return Ok(Invitation::Batches);
    }
    let absolute = |run: &RunDir| {
        std::path::absolute(run.path()).map(RunDir::new).map_err(Error::file("find", run.path()))
    };
    let mut start = context.start.clone();
    if let Start::Checkpoint { run, .. } | Start::Resume { run, .. } = &mut start {
        *run = absolute(run)?;
    }
    Ok(Invitation::Runs(Box::new(Shared {
        sweep: sweep.clone(),
        stream: context.stream.header(),
        tokenizer: context.tokenizer.parts(),
        start,
        directory: context.directory.as_ref().map(absolute).transpose()?,
        skip_damaged: context.skip_damaged,
    })))
}

/// Whether several ranks train the same run.
pub(super) fn share_batches(context: &Context) -> bool {
    context.parallel == Parallel::Batches && context.ranks.world_size() > 1
}

/// The other ranks, if they train runs of their own.
pub(super) fn others(context: &Context) -> Range<usize> {
    1..if context.parallel == Parallel::Runs { context.ranks.world_size() } else { 1 }
}

/// Hands requests to save on to every rank.
pub(super) struct Saves<'a> {
    requests: &'a Requests,
    /// The requests of rank 0's own runs.
    own: Requests,
    /// Requests so far.
    count: AtomicUsize,
}

impl<'a> Saves<'a> {
    pub(super) fn of(context: &'a Context) -> Self {
        let requests = &context.requests;
        let own = if others(context).is_empty() {
            requests.clone()
        } else {
            Requests { stop: Arc::clone(&requests.stop), ..Requests::default() }
        };
        Self { requests, own, count: AtomicUsize::new(0) }
    }

    /// The requests of rank 0's own runs.
    pub(super) fn own(&self) -> &Requests {
        &self.own
    }

    /// Looks for a request. Returns how many there have been.
    fn count(&self) -> usize {
        if self.requests.take_save() {
            self.own.save.store(true, Ordering::Relaxed);
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        self.count.load(Ordering::Relaxed)
    }
}

/// Ends the sweep of the other ranks, with its outcome; without one it has failed.
pub(super) fn dismiss(context: &Context, outcome: Option<Outcome>) {
    let ranks = &*context.ranks;
    if share_batches(context) {
        any(ranks, [false, outcome == Some(Outcome::Stopped), outcome.is_none()]);
    }
    others(context).for_each(|rank| send(ranks, rank, &Order::End { outcome }));
    for rank in others(context) {
        // MPI must not end before all messages are received.
        while !matches!(receive(ranks, rank), Report::Left) {}
    }
}

/// Has another rank train a run, and reports its events. Returns the result, and whether the run was trained.
pub(super) fn train_on(
    rank: usize,
    context: &Context,
    saves: &Saves,
    run: usize,
    epochs: u64,
    report: &(dyn Fn(SweepEvent) + Sync),
) -> (RunResult, bool) {
    let ranks = &*context.ranks;
    send(ranks, rank, &Order::Train { run, epochs });
    let (mut saved, mut is_stopping) = (saves.count(), false);
    loop {
        match try_receive(ranks, rank) {
            Some(Report::Started) => report(SweepEvent::RunStarted { run }),
            Some(Report::Steps(steps)) => {
                for step in steps {
                    report(SweepEvent::Run { run, event: &Event::Step(step) });
                }
            }
            Some(Report::Event(event)) => report(SweepEvent::Run { run, event: &event }),
            Some(Report::Ended { result, trained }) => {
                if trained && result.state == Some(RunState::Stopped) {
                    // By a signal to that rank, unless it was rank 0 that stopped it.
                    context.requests.request_stop();
                }
                return (result, trained);
            }
            Some(Report::StopRequested) => context.requests.request_stop(),
            Some(Report::Left) => unreachable!("the sweep has not ended"),
            None => thread::sleep(POLL),
        }
        let count = saves.count();
        if count > saved {
            saved = count;
            send(ranks, rank, &Order::Save);
        }
        if context.requests.stop_requested() && !is_stopping {
            is_stopping = true;
            send(ranks, rank, &Order::Stop);
        }
    }
}

/// Looks for requests to another rank that has no run, for as long as others train.
pub(super) fn watch(rank: usize, context: &Context, saves: &Saves, others_train: &dyn Fn() -> bool) {
    while others_train() {
        if let Some(Report::StopRequested) = try_receive(&*context.ranks, rank) {
            context.requests.request_stop();
        }
        saves.count();
        thread::sleep(POLL);
    }
}

/// Trains the runs of a sweep that rank 0 hands out, as one of the other ranks. Returns when the sweep ends, and how.
///
/// # Errors
/// [`Error::Ranks`] if the ranks differ in their version, or rank 0 could not train the sweep.
pub fn follow_sweep(ranks: Arc<dyn Communicator>, requests: &Requests) -> Result<Outcome> {
    check_version(&*ranks)?;
    all_succeed(&*ranks, Ok(()), "prepare the sweep")?;
    match receive_value(&*ranks) {
        Invitation::Runs(shared) => follow_runs(&*ranks, *shared, requests),
        Invitation::Batches => follow_batches(ranks, requests),
    }
}

fn follow_runs(ranks: &dyn Communicator, shared: Shared, requests: &Requests) -> Result<Outcome> {
    let answer = check_seen(&shared, ranks.rank());
    let Shared { sweep, stream, tokenizer, start, directory, skip_damaged } = shared;
    let mut stream = TokenStream::with_header(stream);
    receive_from_first(ranks, stream.bytes_mut());
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
    let mut has_told = false;
    loop {
        match try_receive(ranks, 0) {
            Some(Order::Train { run, epochs }) => train_for_first(ranks, &sweep, &context, run, epochs),
            // The run that it was meant for has just ended.
            Some(Order::Stop) => requests.request_stop(),
            Some(Order::Save) => {}
            Some(Order::End { outcome }) => {
                send(ranks, 0, &Report::Left);
                return outcome.ok_or_else(sweep_failed);
            }
            None => {
                if requests.stop_requested() && !has_told {
                    has_told = true;
                    send(ranks, 0, &Report::StopRequested);
                }
                thread::sleep(POLL);
            }
        }
    }
}

fn sweep_failed() -> Error {
    Error::Ranks { reason: "rank 0 failed to train the sweep; see its error".to_owned() }
}

/// Trains one run, and sends its events and its result to rank 0.
fn train_for_first(ranks: &dyn Communicator, sweep: &Sweep, context: &Context, run: usize, epochs: u64) {
    let requests = &context.requests;
    let reporter = Reporter { ranks, steps: RefCell::default(), sent: Cell::new(Instant::now()) };
    let (result, trained) = thread::scope(|scope| {
        let (trains, has_ended) = channel::<()>();
        scope.spawn(move || {
            // Dropping `trains` ends the wait.
            while has_ended.recv_timeout(POLL) == Err(RecvTimeoutError::Timeout) {
                match try_receive(ranks, 0) {
                    Some(Order::Save) => requests.save.store(true, Ordering::Relaxed),
                    Some(Order::Stop) => requests.request_stop(),
                    Some(Order::Train { .. } | Order::End { .. }) => unreachable!("the run has not ended"),
                    None => {}
                }
            }
        });
        let trained = run_one(sweep, context, requests, run, epochs, &|event| match event {
            SweepEvent::RunStarted { .. } => send(ranks, 0, &Report::Started),
            SweepEvent::Run { event, .. } => reporter.report(event),
            SweepEvent::RunEnded { .. } | SweepEvent::RungEnded { .. } => {}
        });
        drop(trains);
        trained
    });
    reporter.send_steps();
    send(ranks, 0, &Report::Ended { result, trained });
}

/// Sends the events of a run to rank 0. Steps wait until there are some to send together.
struct Reporter<'a> {
    ranks: &'a dyn Communicator,
    /// Steps that were not sent.
    steps: RefCell<Vec<StepReport>>,
    /// When steps were sent.
    sent: Cell<Instant>,
}

impl Reporter<'_> {
    fn report(&self, event: &Event) {
        if let Event::Step(step) = event {
            self.steps.borrow_mut().push(*step);
            if self.sent.get().elapsed() >= STEP_INTERVAL {
                self.send_steps();
            }
            return;
        }
        self.send_steps();
        send(self.ranks, 0, &Report::Event(Box::new(event.clone())));
    }

    fn send_steps(&self) {
        let steps = self.steps.take();
        if !steps.is_empty() {
            send(self.ranks, 0, &Report::Steps(steps));
        }
        self.sent.set(Instant::now());
    }
}

/// Fails unless this rank sees the files where the runs start, and the directory that rank 0 has written to, and can write
/// there.
fn check_seen(shared: &Shared, rank: usize) -> Answer {
    let unseen = |what: &str, path: &Path, otherwise: &str| {
        let path = path.display();
        Err(format!(
            "rank {rank} does not see {what} {path}: put it on a file system that all ranks share{otherwise}"
        ))
    };
    if let Start::Checkpoint { run, .. } | Start::Resume { run, .. } = &shared.start
        && !run.is_run()
    {
        return unseen("the run to continue from,", run.path(), "");
    }
    let mut models = shared.sweep.runs.iter().filter_map(|run| run.init_from.as_ref().map(Path::new));
    if let Some(model) = models.find(|model| !model.exists()) {
        return unseen("the model to begin with,", model, "");
    }
    let Some(directory) = &shared.directory else { return Ok(()) };
    let path = directory.path();
    if !Sweep::read(path).is_ok_and(|found| found.as_ref() == Some(&shared.sweep)) {
        return unseen("the sweep's directory", path, ", or use --no_save");
    }
    check_writable(path).map_err(|error| format!("rank {rank}: {error}"))
}

/// Joins run after run.
fn follow_batches(ranks: Arc<dyn Communicator>, requests: &Requests) -> Result<Outcome> {
    loop {
        match any(&*ranks, [false; 3]) {
            // Rank 0 records an error of the run, and begins the next.
            [true, ..] => drop(
                Trainer::follow(&on_cpu, Box::new(Arc::clone(&ranks)))
                    .and_then(|mut trainer| trainer.run(None, requests, &mut |_| {})),
            ),
            [_, _, true] => return Err(sweep_failed()),
            [_, true, _] => return Ok(Outcome::Stopped),
            [false, false, false] => return Ok(Outcome::Finished),
        }
    }
}

/// The communicator of one of rank 0's runs, and the announcement of the run to the other ranks.
pub(super) fn for_run(context: &Context) -> Box<dyn Communicator> {
    if !share_batches(context) {
        return Box::new(SingleProcess);
    }
    any(&*context.ranks, [true, false, false]);
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
