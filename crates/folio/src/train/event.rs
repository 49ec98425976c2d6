//! What a run says while it trains, and what may be asked of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::history::EpochReport;
use crate::model::Precision;

/// What happens while a run trains.
#[derive(Clone, Debug)]
pub enum Event {
    /// The run begins, or goes on.
    Started {
        /// Epochs of its history that have ended.
        epoch: u64,
        /// Steps of its history.
        step: u64,
        /// Steps that are left to take.
        steps: u64,
        /// Parameters of the model.
        parameters: u64,
        /// In what numbers it computes.
        precision: Precision,
    },
    /// An epoch begins, or goes on.
    EpochStarted {
        /// Counting from 1.
        epoch: u64,
        /// The last epoch of this run.
        last_epoch: u64,
        /// Steps that the epoch takes.
        steps: u64,
        /// Those that were taken before the run was stopped.
        taken: u64,
    },
    /// A step was taken.
    Step(StepReport),
    /// The state of the run is about to be saved: whoever keeps records of it writes them down first, so that a run that
    /// goes on from there has them.
    Saving,
    /// The state of the run was saved.
    Saved {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// Whether somebody asked for it.
        asked: bool,
    },
    /// Evaluation has begun.
    Evaluating,
    /// An epoch has ended; what it has to save is saved next.
    EpochEnded {
        /// Counting from 1.
        epoch: u64,
        /// The last epoch of this run.
        last_epoch: u64,
        /// What it has to tell.
        report: EpochReport,
        /// What the model writes now, if the run keeps records.
        sample: Option<String>,
    },
    /// Something did not go as it should have; training goes on.
    Warning {
        /// In one line.
        message: String,
    },
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// The epoch it belongs to, counting from 1.
    pub epoch: u64,
    /// Counting from 1 over the whole history.
    pub step: u64,
    /// Tokens of its batch.
    pub tokens: u64,
    /// The batch's loss, nats a token.
    pub loss: f32,
    /// The norm of its gradients before clipping.
    pub gradient_norm: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// Whether it was skipped, its loss or gradients not being finite: the weights are as before.
    pub skipped: bool,
}

/// What may be asked of a run while it trains, from another thread or from a signal's handler.
#[derive(Clone, Debug, Default)]
pub struct Requests {
    /// Finish the step, save, and return.
    pub stop: Arc<AtomicBool>,
    /// Save when the step is finished, and go on.
    pub save: Arc<AtomicBool>,
}

impl Requests {
    /// Whether to stop.
    pub fn stop_asked(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Whether to save; the request is then granted.
    pub(super) fn take_save(&self) -> bool {
        self.save.swap(false, Ordering::Relaxed)
    }
}

/// How training came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All epochs, or all steps, are done.
    Finished,
    /// It was asked to stop, and can go on from where it did if it had somewhere to save.
    Stopped,
}
