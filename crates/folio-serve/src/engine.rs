//! The thread that owns the generators of all models and generates all sequences.
//!
//! Between two steps it admits requests from the queue while slots are free (continuous batching), cancels sequences
//! whose client disconnected or whose time is up, and pauses those whose client is not reading. It never blocks on a
//! client.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::errors::ApiError;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::models::LoadedModel;
use crate::queue::{
    AttentionJob, EventSender, Failure, GenerationJob, PendingSequence, Queue, Task, TokenEvent,
};
use folio::generate::{Generator, SequenceId};

/// How often paused sequences are checked while no other sequence runs.
const PAUSED_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Sequences held in memory per slot. All beyond the first are paused, waiting for their clients. Fewer are held if
/// their caches are large ([`Limits::text_bytes`]).
const HELD_PER_SLOT: usize = 4;

/// The state of the engine thread.
pub(crate) struct Engine {
    queue: Arc<Queue>,
    limits: Limits,
    metrics: Arc<Metrics>,
    batches: Vec<ModelBatch>,
}

/// The active sequences of one model.
struct ModelBatch {
    model: Arc<LoadedModel>,
    generator: Generator,
    sequences: HashMap<SequenceId, ActiveSequence>,
}

/// A sequence that has started.
struct ActiveSequence {
    events: Arc<EventSender>,
    /// The index of its choice in the response.
    choice: usize,
    /// Since when it has been paused.
    paused: Option<Instant>,
}

/// How many sequences there are.
#[derive(Clone, Copy)]
struct Counts {
    /// Those that are not paused.
    running: usize,
    /// All that have a cache in memory.
    held: usize,
}

impl Engine {
    pub(crate) fn new(queue: Arc<Queue>, limits: Limits, metrics: Arc<Metrics>) -> Self {
        Self { queue, limits, metrics, batches: Vec::new() }
    }

    /// Runs until the queue is shut down and the active sequences have finished or the shutdown deadline has passed.
    pub(crate) fn run(mut self) {
        // Panics inside a step are caught in `ModelBatch::step`. After any other panic the active sequences end and the
        // engine continues with new ones.
        while catch_unwind(AssertUnwindSafe(|| self.run_loop())).is_err() {
            self.batches.clear();
        }
    }

    fn run_loop(&mut self) {
        loop {
            let now = Instant::now();
            let shutdown = self.queue.shutdown_deadline();
            if shutdown.is_some_and(|deadline| now >= deadline) {
                self.fail_all();
            }
            self.cancel_and_pause(now);
            self.admit();
            let Counts { running, held } = self.count();
            self.metrics.streams.set(held as i64);
            self.metrics.paused.set((held - running) as i64);
            if running > 0 {
                // One step of each model in turn.
                self.batches.iter_mut().for_each(|batch| batch.step(&self.metrics, &self.queue));
                continue;
            }
            match (held, shutdown) {
                (0, Some(_)) => return,
                (0, None) => self.queue.wait(None),
                _ => self.queue.wait(Some(PAUSED_POLL_INTERVAL)),
            }
        }
    }

    fn count(&self) -> Counts {
        let all = || self.batches.iter().flat_map(|batch| batch.sequences.values());
        Counts { running: all().filter(|sequence| sequence.paused.is_none()).count(), held: all().count() }
    }

    /// Bytes of the caches of all held sequences.
    fn cache_bytes(&self) -> u64 {
        let bytes = |batch: &ModelBatch| (batch.generator.sequence_bytes() * batch.sequences.len()) as u64;
        self.batches.iter().map(bytes).sum()
    }

    /// Cancels sequences that nobody reads or that ran out of time, and pauses and resumes the others as their clients
    /// read.
    fn cancel_and_pause(&mut self, now: Instant) {
        let Counts { mut running, .. } = self.count();
        for batch in &mut self.batches {
            let ModelBatch { generator, sequences, .. } = batch;
            sequences.retain(|&id, sequence| {
                let ActiveSequence { events, paused, .. } = sequence;
                if now >= events.deadline {
                    events.fail(Failure::TimeLimit);
                } else if paused.is_some_and(|since| now - since >= self.limits.stall_time) {
                    events.fail(Failure::Stalled);
                }
                let stays = !events.is_canceled() && !events.has_failed();
                if !stays {
                    generator.cancel(id);
                    running -= usize::from(paused.is_none());
                }
                stays
            });
            for (&id, sequence) in sequences.iter_mut() {
                match (sequence.paused, sequence.events.has_room()) {
                    (None, false) => {
                        sequence.paused = Some(now);
                        generator.pause(id);
                        running -= 1;
                    }
                    (Some(_), true) if running < self.limits.streams => {
                        sequence.paused = None;
                        generator.resume(id);
                        running += 1;
                    }
                    _ => {}
                }
            }
        }
        // Dropping an empty batch frees its buffers and caches.
        self.batches.retain(|batch| !batch.sequences.is_empty());
    }

    /// Starts waiting tasks while slots are free.
    fn admit(&mut self) {
        let Counts { mut running, mut held } = self.count();
        let slots = self.limits.streams;
        // At most one attention job per step, so that sequences are not delayed for long.
        let mut did_attention = false;
        while !did_attention {
            let fits = held < slots || self.cache_bytes() < self.limits.text_bytes;
            let can_generate = running < slots && held < slots * HELD_PER_SLOT && fits;
            match self.queue.pop(can_generate) {
                Some(Task::Generate(job)) => {
                    let started = self.start(job);
                    running += started;
                    held += started;
                }
                Some(Task::Attention(job)) => {
                    self.attend(job);
                    did_attention = true;
                }
                None => break,
            }
        }
    }

    /// Starts the sequences of a job and returns how many were started.
    fn start(&mut self, job: GenerationJob) -> usize {
        let GenerationJob { model, pending, events } = job;
        let batch = self.batch(&model);
        let mut started = 0;
        for PendingSequence { choice, request } in pending {
            match batch.generator.begin(request) {
                Ok(id) => {
                    let sequence = ActiveSequence { events: Arc::clone(&events), choice, paused: None };
                    batch.sequences.insert(id, sequence);
                    started += 1;
                }
                Err(error) => events.fail(Failure::Rejected(ApiError::rejected(&error))),
            }
        }
        started
    }

    fn attend(&mut self, job: AttentionJob) {
        let AttentionJob { model, tokens, block, reply } = job;
        let batch = self.batch(&model);
        let attention = AssertUnwindSafe(|| batch.generator.attention(&tokens, block));
        // After a panic the reply is dropped, and the handler reports an internal error.
        if let Ok(weights) = catch_unwind(attention) {
            let _ = reply.send(weights);
        }
    }

    /// The batch of a model; created if the model has none.
    fn batch(&mut self, model: &Arc<LoadedModel>) -> &mut ModelBatch {
        let index = self.batches.iter().position(|batch| Arc::ptr_eq(&batch.model, model));
        let index = index.unwrap_or_else(|| {
            self.batches.push(ModelBatch::new(Arc::clone(model)));
            self.batches.len() - 1
        });
        &mut self.batches[index]
    }

    fn fail_all(&mut self) {
        for batch in &mut self.batches {
            batch.fail(&Failure::ShuttingDown);
        }
    }
}

impl ModelBatch {
    fn new(model: Arc<LoadedModel>) -> Self {
        let generator = Generator::new(Arc::clone(&model.model), Arc::clone(&model.tokenizer));
        Self { model, generator, sequences: HashMap::new() }
    }

    /// Samples one token for each running sequence.
    fn step(&mut self, metrics: &Metrics, queue: &Queue) {
        let Self { generator, sequences, .. } = self;
        let step = AssertUnwindSafe(|| {
            generator.step(|id, sampled| {
                let Some(sequence) = sequences.get(&id) else { return };
                metrics.generated_tokens.inc();
                sequence.events.send(TokenEvent {
                    choice: sequence.choice,
                    token: sampled.token,
                    logprob: sampled.logprob,
                    alternatives: sampled.alternatives.to_vec(),
                    text: sampled.text.to_owned(),
                    finish: sampled.finish,
                });
                if sampled.finish.is_some() {
                    queue.record_duration(sequence.events.age());
                    sequences.remove(&id);
                }
            });
        });
        if catch_unwind(step).is_err() {
            // The generator may be in an inconsistent state, so it is replaced. The weights are never written to.
            self.fail(&Failure::Panicked);
            *self = Self::new(Arc::clone(&self.model));
        }
    }

    fn fail(&mut self, failure: &Failure) {
        for (id, sequence) in self.sequences.drain() {
            sequence.events.fail(failure.clone());
            self.generator.cancel(id);
        }
    }
}
