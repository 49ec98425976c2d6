//! The bounded queue between the HTTP handlers, which push tasks, and the engine, which pops them between two steps.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::errors::ApiError;
use crate::metrics::Metrics;
use crate::models::LoadedModel;
use folio::generate::{Finish, Request};

/// A unit of work for the engine.
pub(crate) enum Task {
    Generate(GenerationJob),
    Attention(AttentionJob),
}

/// A request for one or more sequences. The engine starts them one by one as slots become free.
pub(crate) struct GenerationJob {
    pub(crate) model: Arc<LoadedModel>,
    /// The sequences that have not started.
    pub(crate) pending: VecDeque<PendingSequence>,
    pub(crate) events: Arc<EventSender>,
}

/// A sequence that has not started.
pub(crate) struct PendingSequence {
    /// The index of its choice in the response.
    pub(crate) choice: usize,
    pub(crate) request: Request,
}

/// A request for attention weights.
pub(crate) struct AttentionJob {
    pub(crate) model: Arc<LoadedModel>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) block: usize,
    pub(crate) reply: oneshot::Sender<Vec<f32>>,
}

/// The channel from the engine to the client, shared by all sequences of one request. It closes when the last of them
/// drops it.
pub(crate) struct EventSender {
    events: mpsc::Sender<TokenEvent>,
    /// Why the sequences ended early, if they did.
    failure: Arc<OnceLock<Failure>>,
    pub(crate) deadline: Instant,
    started: Instant,
    /// How many sequences share this channel.
    sequences: usize,
}

/// The handler's end of an [`EventSender`].
pub(crate) struct EventReceiver {
    events: mpsc::Receiver<TokenEvent>,
    failure: Arc<OnceLock<Failure>>,
}

/// A sampled token of one of a request's sequences.
#[derive(Debug)]
pub(crate) struct TokenEvent {
    /// The index of the choice in the response.
    pub(crate) choice: usize,
    pub(crate) token: u32,
    pub(crate) logprob: Option<f32>,
    pub(crate) alternatives: Vec<(u32, f32)>,
    /// The text that became final with this token. Text that may still turn into a stop string is held back.
    pub(crate) text: String,
    pub(crate) finish: Option<Finish>,
}

/// Why a sequence ended early.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// The server is shutting down.
    ShuttingDown,
    /// The request exceeded its time limit.
    TimeLimit,
    /// The client did not read.
    Stalled,
    /// The library rejected the request.
    Rejected(ApiError),
    /// The engine panicked.
    Panicked,
}

impl EventSender {
    /// A channel for this many sequences that holds `unread` tokens the client has not read.
    pub(crate) fn new(sequences: usize, unread: usize, deadline: Instant) -> (Arc<Self>, EventReceiver) {
        let (sender, receiver) = mpsc::channel(unread + sequences);
        let failure = Arc::new(OnceLock::new());
        let events = EventReceiver { events: receiver, failure: Arc::clone(&failure) };
        (Arc::new(Self { events: sender, failure, deadline, started: Instant::now(), sequences }), events)
    }

    /// Whether the client has disconnected.
    pub(crate) fn is_canceled(&self) -> bool {
        self.events.is_closed()
    }

    /// Whether each sequence can send one more event.
    pub(crate) fn has_room(&self) -> bool {
        self.events.capacity() >= self.sequences
    }

    /// Sends an event, unless the client has disconnected. The caller has checked [`Self::has_room`].
    pub(crate) fn send(&self, event: TokenEvent) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.events.try_send(event) {
            unreachable!("room was checked before the step");
        }
    }

    /// Records why the sequences ended early. The first reason is kept.
    pub(crate) fn fail(&self, failure: Failure) {
        let _ = self.failure.set(failure);
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failure.get().is_some()
    }

    /// Time since the request arrived.
    pub(crate) fn age(&self) -> Duration {
        self.started.elapsed()
    }
}

impl EventReceiver {
    /// The next token of any of the sequences, or why they ended early.
    pub(crate) async fn next(&mut self) -> Result<TokenEvent, Failure> {
        match self.events.recv().await {
            Some(event) => Ok(event),
            None => Err(self.failure.get().cloned().unwrap_or(Failure::Panicked)),
        }
    }
}

/// Why a task was not queued.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PushError {
    /// The queue is full.
    Full {
        /// Seconds after which to retry.
        retry_after: u64,
    },
    /// The server is shutting down.
    ShuttingDown,
}

/// A bounded queue. Only the engine pops from it.
pub(crate) struct Queue {
    capacity: usize,
    streams: usize,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Task>,
    /// Set when the server is shutting down: when running sequences are cut off.
    shutdown_deadline: Option<Instant>,
    /// Moving average of the duration of a request, from its arrival to its last token.
    average_seconds: f64,
}

impl Task {
    fn is_canceled(&self) -> bool {
        match self {
            Self::Generate(job) => job.events.is_canceled() || job.events.has_failed(),
            Self::Attention(job) => job.reply.is_closed(),
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

    /// Appends a task.
    pub(crate) fn push(&self, task: Task) -> Result<(), PushError> {
        let mut state = self.lock();
        if state.shutdown_deadline.is_some() {
            return Err(PushError::ShuttingDown);
        }
        if state.waiting.len() >= self.capacity {
            state.waiting.retain(|task| !task.is_canceled());
        }
        if state.waiting.len() >= self.capacity {
            // An estimate of how long it takes to serve everything in the queue.
            let rounds = self.capacity.div_ceil(self.streams) as f64;
            let retry_after = (state.average_seconds * rounds).ceil().clamp(1.0, 60.0) as u64;
            return Err(PushError::Full { retry_after });
        }
        state.waiting.push_back(task);
        self.update_metrics(&state);
        self.wake.notify_one();
        Ok(())
    }

    /// Pops the next task whose client is still connected: one sequence of a generation job, or an attention job.
    /// `can_generate` says whether a sequence can be started now.
    pub(crate) fn pop(&self, can_generate: bool) -> Option<Task> {
        let mut state = self.lock();
        state.waiting.retain(|task| !task.is_canceled());
        let next = match state.waiting.front_mut() {
            Some(Task::Generate(_)) if !can_generate => None,
            Some(Task::Generate(job)) if job.pending.len() > 1 => {
                let pending = job.pending.pop_front().into_iter().collect();
                let (model, events) = (Arc::clone(&job.model), Arc::clone(&job.events));
                Some(Task::Generate(GenerationJob { model, pending, events }))
            }
            _ => state.waiting.pop_front(),
        };
        self.update_metrics(&state);
        next
    }

    /// Waits until a task is pushed, the server shuts down, or the timeout expires.
    pub(crate) fn wait(&self, timeout: Option<Duration>) {
        let state = self.lock();
        let idle = |state: &mut State| state.waiting.is_empty() && state.shutdown_deadline.is_none();
        // The result is ignored, a poisoned lock included: the caller checks the queue again.
        match timeout {
            Some(timeout) => drop(self.wake.wait_timeout(state, timeout)),
            None => drop(self.wake.wait_while(state, idle)),
        }
    }

    /// Rejects new tasks, drops waiting ones, and lets running sequences continue until the deadline.
    pub(crate) fn shut_down(&self, deadline: Instant) {
        let mut state = self.lock();
        state.shutdown_deadline = Some(deadline);
        for task in state.waiting.drain(..) {
            if let Task::Generate(job) = task {
                job.events.fail(Failure::ShuttingDown);
            }
        }
        self.update_metrics(&state);
        self.wake.notify_one();
    }

    /// When running sequences are cut off, if the server is shutting down.
    pub(crate) fn shutdown_deadline(&self) -> Option<Instant> {
        self.lock().shutdown_deadline
    }

    /// Adds the duration of a request to the moving average.
    pub(crate) fn record_duration(&self, duration: Duration) {
        let mut state = self.lock();
        state.average_seconds += (duration.as_secs_f64() - state.average_seconds) / 8.0;
    }

    fn update_metrics(&self, state: &State) {
        self.metrics.queue_length.set(state.waiting.len() as i64);
    }
}
