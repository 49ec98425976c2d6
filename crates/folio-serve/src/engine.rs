//! The thread that owns the models' generators and writes all texts.
//!
//! Between two steps it takes requests from the queue as long as there are places (continuous batching), drops texts
//! whose client went away or whose time is over, and sets those aside whose client does not keep up. It never waits for
//! a client.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::errors::ApiError;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::models::Model;
use crate::queue::{Attend, Failure, Job, Queue, Ticket, Told, Work};
use folio::generate::{Generator, SequenceId};

/// How often a paused text is looked at when nothing else is to be done.
const GLANCE: Duration = Duration::from_millis(5);

/// Texts that may be held in memory for each that may run: the others wait for their clients. Fewer if they are large.
const HELD_PER_STREAM: usize = 4;

/// All that the thread works with.
pub(crate) struct Engine {
    queue: Arc<Queue>,
    limits: Limits,
    metrics: Arc<Metrics>,
    lanes: Vec<Lane>,
}

/// The texts of one model.
struct Lane {
    model: Arc<Model>,
    generator: Generator,
    texts: HashMap<SequenceId, Text>,
}

/// A text under way.
struct Text {
    ticket: Arc<Ticket>,
    /// Its place in the answer.
    choice: usize,
    /// Since when it waits for its client.
    paused: Option<Instant>,
}

impl Engine {
    pub(crate) fn new(queue: Arc<Queue>, limits: Limits, metrics: Arc<Metrics>) -> Self {
        Self { queue, limits, metrics, lanes: Vec::new() }
    }

    /// Works until the queue is closed and what was under way has ended, or may no longer go on.
    pub(crate) fn run(mut self) {
        // Should anything break but a step, which is looked after where it is taken, texts under way end and others
        // are served.
        while catch_unwind(AssertUnwindSafe(|| self.work())).is_err() {
            self.lanes.clear();
        }
    }

    fn work(&mut self) {
        loop {
            let now = Instant::now();
            let closing = self.queue.closing();
            if closing.is_some_and(|until| now >= until) {
                self.end_all();
            }
            self.sort_out(now);
            self.take_in();
            let (running, held) = self.count();
            self.metrics.streams.set(held as i64);
            self.metrics.paused.set((held - running) as i64);
            if running > 0 {
                // Each model in turn has one step.
                self.lanes.iter_mut().for_each(|lane| lane.step(&self.metrics, &self.queue));
                continue;
            }
            match (held, closing) {
                (0, Some(_)) => return,
                (0, None) => self.queue.wait(None),
                _ => self.queue.wait(Some(GLANCE)),
            }
        }
    }

    /// Texts that run, and texts that are held in memory.
    fn count(&self) -> (usize, usize) {
        let texts = || self.lanes.iter().flat_map(|lane| lane.texts.values());
        (texts().filter(|text| text.paused.is_none()).count(), texts().count())
    }

    /// Bytes of the texts that are held.
    fn text_bytes(&self) -> u64 {
        self.lanes.iter().map(|lane| (lane.generator.sequence_bytes() * lane.texts.len()) as u64).sum()
    }

    /// Drops what nobody wants or what may not go on, and pauses and resumes texts as their clients read.
    fn sort_out(&mut self, now: Instant) {
        let (mut running, _) = self.count();
        for lane in &mut self.lanes {
            let Lane { generator, texts, .. } = lane;
            texts.retain(|&id, text| {
                let Text { ticket, paused, .. } = text;
                if now >= ticket.deadline {
                    ticket.fail(Failure::TimeLimit);
                } else if paused.is_some_and(|since| now - since >= self.limits.stall_time) {
                    ticket.fail(Failure::Stalled);
                }
                let stays = !ticket.is_gone() && !ticket.has_failed();
                if !stays {
                    generator.cancel(id);
                    running -= usize::from(paused.is_none());
                }
                stays
            });
            for (&id, text) in texts.iter_mut() {
                match (text.paused, text.ticket.has_room()) {
                    (None, false) => {
                        text.paused = Some(now);
                        generator.pause(id);
                        running -= 1;
                    }
                    (Some(_), true) if running < self.limits.streams => {
                        text.paused = None;
                        generator.resume(id);
                        running += 1;
                    }
                    _ => {}
                }
            }
        }
        // With the last text go the buffers and the caches of those before.
        self.lanes.retain(|lane| !lane.texts.is_empty());
    }

    /// Begins what waits as long as there are places.
    fn take_in(&mut self) {
        let (mut running, mut held) = self.count();
        let streams = self.limits.streams;
        // Of attention one at a time, so that no text waits long.
        let mut attended = false;
        while !attended
            && let Some(work) = {
                let fits = held < streams || self.text_bytes() < self.limits.text_bytes;
                self.queue.next(running < streams && held < streams * HELD_PER_STREAM && fits)
            }
        {
            match work {
                Work::Write(job) => {
                    let begun = self.begin(job);
                    running += begun;
                    held += begun;
                }
                Work::Attend(attend) => {
                    self.attend(attend);
                    attended = true;
                }
            }
        }
    }

    /// Begins the texts of a job. Returns how many.
    fn begin(&mut self, job: Job) -> usize {
        let Job { model, texts, ticket } = job;
        let lane = self.lane(&model);
        let mut begun = 0;
        for (choice, request) in texts {
            match lane.generator.begin(request) {
                Ok(id) => {
                    lane.texts.insert(id, Text { ticket: Arc::clone(&ticket), choice, paused: None });
                    begun += 1;
                }
                Err(error) => ticket.fail(Failure::Refused(ApiError::refused(&error))),
            }
        }
        begun
    }

    fn attend(&mut self, attend: Attend) {
        let Attend { model, tokens, block, answer } = attend;
        let lane = self.lane(&model);
        let look = AssertUnwindSafe(|| lane.generator.attention(&tokens, block));
        // Without an answer the handler says that something broke; a client that went away does not hear it.
        if let Ok(weights) = catch_unwind(look) {
            let _ = answer.send(weights);
        }
    }

    /// The lane of a model, a new one if it has none.
    fn lane(&mut self, model: &Arc<Model>) -> &mut Lane {
        let place = self.lanes.iter().position(|lane| Arc::ptr_eq(&lane.model, model));
        let place = place.unwrap_or_else(|| {
            self.lanes.push(Lane::new(Arc::clone(model)));
            self.lanes.len() - 1
        });
        &mut self.lanes[place]
    }

    fn end_all(&mut self) {
        for lane in &mut self.lanes {
            lane.fail(&Failure::Closing);
        }
    }
}

impl Lane {
    fn new(model: Arc<Model>) -> Self {
        let generator = Generator::new(Arc::clone(&model.predictor), Arc::clone(&model.tokenizer));
        Self { model, generator, texts: HashMap::new() }
    }

    /// One token more for each text that runs.
    fn step(&mut self, metrics: &Metrics, queue: &Queue) {
        let Self { generator, texts, .. } = self;
        let step = AssertUnwindSafe(|| {
            generator.step(|id, drawn| {
                let Some(text) = texts.get(&id) else { return };
                metrics.drawn.inc();
                text.ticket.tell(Told {
                    choice: text.choice,
                    token: drawn.token,
                    logprob: drawn.logprob,
                    alternatives: drawn.alternatives.to_vec(),
                    text: drawn.text.to_owned(),
                    finish: drawn.finish,
                });
                if drawn.finish.is_some() {
                    queue.learn(text.ticket.age());
                    texts.remove(&id);
                }
            });
        });
        if catch_unwind(step).is_err() {
            // What it left behind cannot be trusted; the weights, which nothing changes, can.
            self.fail(&Failure::Broken);
            *self = Self::new(Arc::clone(&self.model));
        }
    }

    fn fail(&mut self, failure: &Failure) {
        for (id, text) in self.texts.drain() {
            text.ticket.fail(failure.clone());
            self.generator.cancel(id);
        }
    }
}
