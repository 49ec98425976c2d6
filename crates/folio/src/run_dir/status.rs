//! `status.json`: the progress of a run. Nothing depends on it.

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The progress of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The state.
    pub state: RunState,
    /// Completed epochs.
    pub epoch: u64,
    /// Steps taken.
    pub step: u64,
    /// The evaluation loss of each epoch, nats per token.
    pub eval_losses: Vec<f64>,
    /// The step and the evaluation loss of each evaluation inside an epoch.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub step_losses: Vec<(u64, f64)>,
    /// The error message, if the run failed.
    pub error: Option<String>,
    /// The output that could not be printed, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_output: Option<String>,
}

impl Status {
    /// The status of a run with a model but without training.
    pub(crate) fn without_training(state: RunState) -> Self {
        let (eval_losses, step_losses) = (Vec::new(), Vec::new());
        Self { state, epoch: 0, step: 0, eval_losses, step_losses, error: None, lost_output: None }
    }
}

/// The state of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Training, or killed: see [`RunDir::state_name`](super::RunDir::state_name).
    Running,
    /// Stopped before its end; can be resumed.
    Stopped,
    /// Finished all epochs or steps.
    Finished,
    /// Imported from another program, and not trained since.
    Imported,
    /// The average of other checkpoints, and not trained since.
    Averaged,
    /// Failed because losses or gradients were not finite; resuming would fail again.
    Diverged,
    /// Failed for another reason.
    Failed,
}

impl RunState {
    /// The state of a run that ended with an error.
    pub fn of(error: &Error) -> Self {
        if matches!(error, Error::Diverged { .. }) { Self::Diverged } else { Self::Failed }
    }

    /// The name in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Finished => "finished",
            Self::Imported => "imported",
            Self::Averaged => "averaged",
            Self::Diverged => "diverged",
            Self::Failed => "failed",
        }
    }

    /// Whether the run ended with an error.
    pub fn has_failed(self) -> bool {
        matches!(self, Self::Diverged | Self::Failed)
    }
}
