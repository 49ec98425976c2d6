//! `status.json`: how a run fares. Nothing depends on it.

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// How a run fares.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// In a word.
    pub state: RunState,
    /// Epochs ended.
    pub epoch: u64,
    /// Steps taken.
    pub step: u64,
    /// The evaluation loss of each epoch, nats a token.
    pub eval_losses: Vec<f64>,
    /// What made it fail.
    pub error: Option<String>,
    /// What the program that trained it could not print, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_output: Option<String>,
}

/// How a run fares, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// It trains, or was killed.
    Running,
    /// It was stopped before its end, and can go on.
    Stopped,
    /// It has done all it was asked to.
    Finished,
    /// Its losses or gradients ceased to be finite, and would again.
    Diverged,
    /// Something outside of it failed.
    Failed,
}

impl RunState {
    /// How a run fares that ended with an error.
    pub fn of(error: &Error) -> Self {
        if matches!(error, Error::Diverged { .. }) { Self::Diverged } else { Self::Failed }
    }

    /// The word itself.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Finished => "finished",
            Self::Diverged => "diverged",
            Self::Failed => "failed",
        }
    }

    /// Whether it has ended with an error.
    pub fn has_failed(self) -> bool {
        matches!(self, Self::Diverged | Self::Failed)
    }
}
