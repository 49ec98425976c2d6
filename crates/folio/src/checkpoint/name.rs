//! The names of checkpoints, and which of them is the best.

use std::fmt::{self, Display};

use crate::history::lowest_loss;

/// The name of a checkpoint in its run's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CheckpointName {
    /// `checkpoint_N`: after epoch N, with its evaluation.
    Epoch(u64),
    /// `step_N`: after step N, inside an epoch. A run keeps the newest, and the one whose evaluation is the best.
    Step(u64),
}

impl Display for CheckpointName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Epoch(epoch) => write!(formatter, "checkpoint_{epoch}"),
            Self::Step(step) => write!(formatter, "step_{step}"),
        }
    }
}

impl CheckpointName {
    /// Parses a directory's name.
    pub fn parse(name: &str) -> Option<Self> {
        let number = |prefix| name.strip_prefix(prefix)?.parse().ok();
        let found = number("checkpoint_").map(Self::Epoch).or_else(|| number("step_").map(Self::Step))?;
        // Rejects names such as `checkpoint_007`.
        (found.to_string() == name).then_some(found)
    }

    /// What it follows, for people: `epoch 3` or `step 120`.
    pub fn moment(self) -> String {
        match self {
            Self::Epoch(epoch) => format!("epoch {epoch}"),
            Self::Step(step) => format!("step {step}"),
        }
    }

    /// Its evaluation loss in nats per token, of the losses of a run: of each epoch, and of each step with an evaluation
    /// inside an epoch.
    pub fn eval_loss(self, epochs: &[f64], steps: &[(u64, f64)]) -> Option<f64> {
        match self {
            Self::Epoch(epoch) => epochs.get(usize::try_from(epoch).ok()?.checked_sub(1)?).copied(),
            Self::Step(step) => steps.iter().find(|(other, _)| *other == step).map(|(_, loss)| *loss),
        }
    }
}

/// The lowest of the losses of a run, as [`CheckpointName::eval_loss`] takes them, and where it was measured.
pub fn lowest_eval_loss(epochs: &[f64], steps: &[(u64, f64)]) -> Option<(f64, CheckpointName)> {
    let of_epochs = epochs.iter().zip(1..).map(|(&loss, epoch)| (loss, CheckpointName::Epoch(epoch)));
    let of_steps = steps.iter().map(|&(step, loss)| (loss, CheckpointName::Step(step)));
    lowest_loss(of_epochs.chain(of_steps))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoint_names_are_parsed_strictly() {
        for name in [CheckpointName::Epoch(1), CheckpointName::Epoch(u64::MAX), CheckpointName::Step(120)] {
            assert_eq!(CheckpointName::parse(&name.to_string()), Some(name));
        }
        for other in
            ["checkpoint_", "checkpoint_01", "checkpoint_-1", "checkpoint_+1", "step_x", "run_1", "step_1~"]
        {
            assert_eq!(CheckpointName::parse(other), None, "{other}");
        }
    }
}
