//! What a run has to tell: the losses and rates of its epochs.

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

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
    /// The mean norm of each epoch's gradients, before clipping.
    #[serde(default)]
    pub gradient_norms: Vec<f64>,
    /// The steps of each epoch whose gradients were clipped.
    #[serde(default)]
    pub clipped_steps: Vec<u64>,
    /// The steps of each epoch that were skipped, their loss or gradients not being finite.
    #[serde(default)]
    pub skipped_steps: Vec<u64>,
    /// The steps taken by each epoch's end.
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
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct EpochReport {
    /// Mean over the epoch's batches, nats a token.
    pub train_loss: f64,
    /// Mean over all evaluation batches, nats a token.
    pub eval_loss: f64,
    /// The train loss, whatever the tokenizer.
    #[serde(flatten, serialize_with = "train_names")]
    pub train_bits: Bits,
    /// The eval loss, whatever the tokenizer.
    #[serde(flatten, serialize_with = "eval_names")]
    pub eval_bits: Bits,
    /// The rate of the epoch's last step.
    #[serde(rename = "lr")]
    pub learning_rate: f64,
    /// The mean norm of its gradients before clipping.
    pub gradient_norm: f64,
    /// Steps whose gradients were clipped.
    pub clipped_steps: u64,
    /// Steps that were skipped.
    pub skipped_steps: u64,
    /// Steps taken by the epoch's end.
    pub step: u64,
}

fn train_names<S: Serializer>(bits: &Bits, serializer: S) -> Result<S::Ok, S::Error> {
    named("train", bits, serializer)
}

fn eval_names<S: Serializer>(bits: &Bits, serializer: S) -> Result<S::Ok, S::Error> {
    named("eval", bits, serializer)
}

/// Bits under names such as `train_bits_per_character`.
fn named<S: Serializer>(part: &str, bits: &Bits, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(2))?;
    map.serialize_entry(&format!("{part}_bits_per_character"), &bits.per_character)?;
    map.serialize_entry(&format!("{part}_bits_per_byte"), &bits.per_byte)?;
    map.end()
}

/// What the steps of an epoch that is under way have told so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EpochSums {
    /// Batches drawn: the place in the epoch.
    pub batches: u64,
    /// Of these, the ones that were skipped.
    pub skipped: u64,
    /// Of these, the ones whose gradients were clipped.
    pub clipped: u64,
    /// The sum of their losses, nats a token, but for those skipped.
    pub loss: f64,
    /// The sum of their gradients' norms, but for those skipped.
    pub gradient_norm: f64,
    /// The rate of the last.
    pub learning_rate: f64,
}

impl EpochSums {
    /// Batches that the model has learned from.
    pub fn learned(&self) -> u64 {
        self.batches - self.skipped
    }
}

impl History {
    /// Epochs told of.
    pub fn epochs(&self) -> u64 {
        self.losses.steps.len() as u64
    }

    /// Whether it tells of so many epochs, in every list.
    pub fn is_of(&self, epochs: u64) -> bool {
        let Losses { train_losses, eval_losses, train_bits_per_character, eval_bits_per_character, .. } =
            &self.losses;
        let Losses { train_bits_per_byte, eval_bits_per_byte, gradient_norms, .. } = &self.losses;
        let Losses { clipped_steps, skipped_steps, steps, .. } = &self.losses;
        let numbers = [
            train_losses,
            eval_losses,
            train_bits_per_character,
            eval_bits_per_character,
            train_bits_per_byte,
            eval_bits_per_byte,
            gradient_norms,
            &self.learning_rates,
        ];
        let counts = [clipped_steps, skipped_steps, steps];
        numbers.map(Vec::len).into_iter().chain(counts.map(Vec::len)).all(|length| length as u64 == epochs)
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
        losses.gradient_norms.push(report.gradient_norm);
        losses.clipped_steps.push(report.clipped_steps);
        losses.skipped_steps.push(report.skipped_steps);
        losses.steps.push(report.step);
        self.learning_rates.push(report.learning_rate);
        if losses.best_eval_loss.is_none_or(|(best, _)| report.eval_loss < best) {
            losses.best_eval_loss = Some((report.eval_loss, report.step));
        }
    }

    /// Takes the last epoch back. The evaluation losses of the `others` first epochs, those of another text, do not compare
    /// with the rest.
    pub fn pop(&mut self, others: u64) {
        let Losses {
            train_losses,
            eval_losses,
            train_bits_per_character,
            eval_bits_per_character,
            train_bits_per_byte,
            eval_bits_per_byte,
            gradient_norms,
            clipped_steps,
            skipped_steps,
            steps,
            best_eval_loss,
        } = &mut self.losses;
        let numbers = [
            train_losses,
            eval_losses,
            train_bits_per_character,
            eval_bits_per_character,
            train_bits_per_byte,
            eval_bits_per_byte,
            gradient_norms,
            &mut self.learning_rates,
        ];
        numbers.into_iter().for_each(|list| _ = list.pop());
        [clipped_steps, skipped_steps].into_iter().for_each(|list| _ = list.pop());
        let last = steps.pop();
        if best_eval_loss.map(|(_, step)| step) == last {
            // The first of the lowest, as it was found on the way.
            let all = self.losses.eval_losses.iter().copied().zip(self.losses.steps.iter().copied());
            let all = all.skip(others as usize);
            self.losses.best_eval_loss = all.reduce(|best, next| if next.0 < best.0 { next } else { best });
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::TextPerToken;
    use crate::text::TextSize;

    fn report(step: u64, eval_loss: f64) -> EpochReport {
        let bits = TextPerToken::new(TextSize { characters: 3, bytes: 4 }, 2).bits(eval_loss);
        EpochReport {
            train_loss: eval_loss + 1.0,
            eval_loss,
            train_bits: bits,
            eval_bits: bits,
            learning_rate: 1.0 / step as f64,
            gradient_norm: 0.5,
            clipped_steps: step,
            skipped_steps: 1,
            step,
        }
    }

    #[test]
    fn an_epoch_that_is_taken_back_leaves_nothing_behind() {
        // Whatever the last is: the lowest, equal to the lowest, or neither.
        for last in [1.0, 2.0, 9.0] {
            let mut history = History::default();
            for (step, eval_loss) in [(10, 3.0), (20, 2.0), (30, 4.0)] {
                history.push(report(step, eval_loss));
            }
            let before = history.clone();
            history.push(report(35, last));
            assert_eq!(history.epochs(), 4);
            history.pop(0);
            assert_eq!(history, before, "after {last}");
        }
    }

    #[test]
    fn the_losses_of_another_text_are_not_the_best_of_this_one() {
        let mut history = History::default();
        [(10, 1.0), (20, 3.0), (30, 2.0)]
            .into_iter()
            .for_each(|(step, loss)| history.push(report(step, loss)));
        history.pop(1);
        assert_eq!(history.losses.best_eval_loss, Some((1.0, 10)), "it was not the one that is taken back");
        history.losses.best_eval_loss = None;
        history.push(report(30, 2.0));
        history.pop(1);
        assert_eq!(history.losses.best_eval_loss, Some((3.0, 20)));
    }
}
