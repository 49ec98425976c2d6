//! What waits for the engine: handlers put requests in, the engine takes them out between two steps.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::errors::ApiError;
use crate::metrics::Metrics;
use crate::models::Model;
use folio::generate::{Finish, Request};

/// What the engine does.
pub(crate) enum Work {
    /// It writes texts.
    Write(Job),
    /// It looks at what heads attend to.
    Attend(Attend),
}

/// A request for texts. They are begun one by one, as places come free.
pub(crate) struct Job {
    pub(crate) model: Arc<Model>,
    /// Those that have not begun, each with its place in the answer.
    pub(crate) texts: VecDeque<(usize, Request)>,
    pub(crate) ticket: Arc<Ticket>,
}

/// A request for attention weights.
pub(crate) struct Attend {
    pub(crate) model: Arc<Model>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) block: usize,
    pub(crate) answer: oneshot::Sender<Vec<f32>>,
}

/// What the texts of one request share: the way back to its client. When the last of them is dropped the client's end
/// closes.
pub(crate) struct Ticket {
    events: mpsc::Sender<Told>,
    /// Why there are no more events, if texts did not end by themselves.
    failure: Arc<OnceLock<Failure>>,
    pub(crate) deadline: Instant,
    begun: Instant,
    /// How many texts send here.
    texts: usize,
}

/// The client's end of a [`Ticket`].
pub(crate) struct Listener {
    events: mpsc::Receiver<Told>,
    failure: Arc<OnceLock<Failure>>,
}

/// A token of one of a request's texts.
#[derive(Debug)]
pub(crate) struct Told {
    /// The place of the text in the answer.
    pub(crate) choice: usize,
    pub(crate) token: u32,
    pub(crate) logprob: Option<f32>,
    pub(crate) alternatives: Vec<(u32, f32)>,
    /// What became certain of the text.
    pub(crate) text: String,
    pub(crate) finish: Option<Finish>,
}

/// Why texts end that were not finished.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// The server is about to end.
    Closing,
    /// The request took longer than it may.
    TimeLimit,
    /// The client did not read.
    Stalled,
    /// The library refused the request, with its reason.
    Refused(ApiError),
    /// Something broke.
    Broken,
}

impl Ticket {
    /// A ticket for so many texts, of which so many tokens may wait for the client, and the end that listens.
    pub(crate) fn new(texts: usize, unread: usize, deadline: Instant) -> (Arc<Self>, Listener) {
        let (sender, receiver) = mpsc::channel(unread + texts);
        let failure = Arc::new(OnceLock::new());
        let listener = Listener { events: receiver, failure: Arc::clone(&failure) };
        (Arc::new(Self { events: sender, failure, deadline, begun: Instant::now(), texts }), listener)
    }

    /// Whether nobody listens any more.
    pub(crate) fn is_gone(&self) -> bool {
        self.events.is_closed()
    }

    /// Whether each text may send once more.
    pub(crate) fn has_room(&self) -> bool {
        self.events.capacity() >= self.texts
    }

    /// Tells of a token, which nobody may want any more.
    pub(crate) fn tell(&self, told: Told) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.events.try_send(told) {
            unreachable!("room was looked for before the step");
        }
    }

    /// Notes why the texts end; the first reason counts.
    pub(crate) fn fail(&self, failure: Failure) {
        let _ = self.failure.set(failure);
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failure.get().is_some()
    }

    /// How long ago the request came.
    pub(crate) fn age(&self) -> Duration {
        self.begun.elapsed()
    }
}

impl Listener {
    /// The next token of any of the texts; an error if they ended before their time.
    pub(crate) async fn next(&mut self) -> Result<Told, Failure> {
        match self.events.recv().await {
            Some(told) => Ok(told),
            None => Err(self.failure.get().cloned().unwrap_or(Failure::Broken)),
        }
    }
}

/// Why something cannot be put in the queue.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// As much waits as may: try again in so many seconds.
    Full(u64),
    /// The server is about to end.
    Closing,
}

/// A bounded queue. The engine alone takes out of it.
pub(crate) struct Queue {
    capacity: usize,
    streams: usize,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Work>,
    /// Until when texts under way may go on, once the server is asked to end.
    closing: Option<Instant>,
    /// How long a request took of late, from its arrival to its end.
    seconds: f64,
}

impl Work {
    fn is_gone(&self) -> bool {
        match self {
            Self::Write(job) => job.ticket.is_gone() || job.ticket.has_failed(),
            Self::Attend(attend) => attend.answer.is_closed(),
        }
    }
}

impl Queue {
    pub(crate) fn new(capacity: usize, streams: usize, metrics: Arc<Metrics>) -> Self {
        let (state, wake) = (Mutex::default(), Condvar::new());
        Self { capacity: capacity.max(1), streams: streams.max(1), metrics, state, wake }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts work at the end.
    pub(crate) fn push(&self, work: Work) -> Result<(), Refused> {
        let mut state = self.lock();
        if state.closing.is_some() {
            return Err(Refused::Closing);
        }
        if state.waiting.len() >= self.capacity {
            state.waiting.retain(|work| !work.is_gone());
        }
        if state.waiting.len() >= self.capacity {
            // As long as it takes until those that wait have had their turn.
            let turns = self.capacity.div_ceil(self.streams) as f64;
            return Err(Refused::Full((state.seconds * turns).ceil().clamp(1.0, 60.0) as u64));
        }
        state.waiting.push_back(work);
        self.note(&state);
        self.wake.notify_one();
        Ok(())
    }

    /// The next that somebody still wants: one text of a job, or a whole other work. `writes` says whether a text could be
    /// begun now.
    pub(crate) fn next(&self, writes: bool) -> Option<Work> {
        let mut state = self.lock();
        state.waiting.retain(|work| !work.is_gone());
        let next = match state.waiting.front_mut() {
            Some(Work::Write(_)) if !writes => None,
            Some(Work::Write(job)) if job.texts.len() > 1 => {
                let texts = job.texts.pop_front().into_iter().collect();
                let (model, ticket) = (Arc::clone(&job.model), Arc::clone(&job.ticket));
                Some(Work::Write(Job { model, texts, ticket }))
            }
            _ => state.waiting.pop_front(),
        };
        self.note(&state);
        next
    }

    /// Waits until something is put in, the server is asked to end, or `time` is over.
    pub(crate) fn wait(&self, time: Option<Duration>) {
        let state = self.lock();
        let idle = |state: &mut State| state.waiting.is_empty() && state.closing.is_none();
        // A poisoned lock is as good as another, and whoever waits looks for themselves.
        match time {
            Some(time) => drop(self.wake.wait_timeout(state, time)),
            None => drop(self.wake.wait_while(state, idle)),
        }
    }

    /// Takes in nothing more, drops what waits, and lets texts under way go on until a moment.
    pub(crate) fn close(&self, until: Instant) {
        let mut state = self.lock();
        state.closing = Some(until);
        for work in state.waiting.drain(..) {
            if let Work::Write(job) = work {
                job.ticket.fail(Failure::Closing);
            }
        }
        self.note(&state);
        self.wake.notify_one();
    }

    /// Until when texts may go on, if the server is asked to end.
    pub(crate) fn closing(&self) -> Option<Instant> {
        self.lock().closing
    }

    /// Takes note of how long a request took.
    pub(crate) fn learn(&self, time: Duration) {
        let mut state = self.lock();
        state.seconds += (time.as_secs_f64() - state.seconds) / 8.0;
    }

    fn note(&self, state: &State) {
        self.metrics.waiting.set(state.waiting.len() as i64);
    }
}
