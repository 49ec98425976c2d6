//! What a run has to tell: the losses and rates of its epochs.

use serde::{Deserialize, Serialize};

use crate::text::Bits;

/// The losses of every epoch, under the ancestor's names: the content of `losses.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Losses {
    /// The mean over each epoch's batches, nats a token.
    pub train_losses: Vec<f64>,
    /// The mean over all evaluation batches after each epoch, nats a token, without dropout.
    pub eval_losses: Vec<f64>,
    /// The same losses in bits a character, and in bits a byte, which compare across tokenizers.
    #[serde(default)]
    pub train_bits_per_character: Vec<f64>,
    /// As above, of the evaluation.
    #[serde(default)]
    pub eval_bits_per_character: Vec<f64>,
    /// As above, a byte.
    #[serde(default)]
    pub train_bits_per_byte: Vec<f64>,
    /// As above, a byte of the evaluation.
    #[serde(default)]
    pub eval_bits_per_byte: Vec<f64>,
    /// The optimizer steps taken by each epoch's end.
    pub steps: Vec<u64>,
    /// The lowest evaluation loss and the step it was reached at.
    pub best_eval_loss: Option<(f64, u64)>,
}

/// All that a run has told so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// The losses of every epoch.
    pub losses: Losses,
    /// The learning rate of every epoch's last step: the content of `lrs.json`.
    pub learning_rates: Vec<f64>,
}

/// The report of one epoch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EpochReport {
    /// Mean over the epoch's batches, nats a token.
    pub train_loss: f64,
    /// Mean over all evaluation batches, nats a token.
    pub eval_loss: f64,
    /// The train loss, whatever the tokenizer.
    pub train_bits: Bits,
    /// The eval loss, whatever the tokenizer.
    pub eval_bits: Bits,
    /// The rate of the epoch's last step.
    pub learning_rate: f64,
    /// Optimizer steps taken by the epoch's end.
    pub step: u64,
}

impl History {
    /// Epochs told of.
    pub fn epochs(&self) -> u64 {
        self.losses.steps.len() as u64
    }

    /// Adds an epoch.
    pub fn push(&mut self, report: EpochReport) {
        let losses = &mut self.losses;
        losses.train_losses.push(report.train_loss);
        losses.eval_losses.push(report.eval_loss);
        losses.train_bits_per_character.push(report.train_bits.per_character);
        losses.eval_bits_per_character.push(report.eval_bits.per_character);
        losses.train_bits_per_byte.push(report.train_bits.per_byte);
        losses.eval_bits_per_byte.push(report.eval_bits.per_byte);
        losses.steps.push(report.step);
        self.learning_rates.push(report.learning_rate);
        if losses.best_eval_loss.is_none_or(|(best, _)| report.eval_loss < best) {
            losses.best_eval_loss = Some((report.eval_loss, report.step));
        }
    }
}

impl Losses {
    /// The epoch, counting from 1, whose evaluation loss is lowest.
    pub fn best_epoch(&self) -> Option<u64> {
        let (_, best_step) = self.best_eval_loss?;
        self.steps.iter().position(|&step| step == best_step).map(|index| index as u64 + 1)
    }
}
