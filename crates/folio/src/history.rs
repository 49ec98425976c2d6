//! The history of a run: the losses and learning rates of its epochs.
//!
//! In memory a history is a list of [`EpochReport`]s. On disk (`losses.json`, `lrs.json`, `state.json`) it is one list
//! per number, under the names that the original project uses.

use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::text::Bits;

/// The epochs of a run so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(into = "StateLists", try_from = "StateLists")]
pub struct History {
    /// One report per epoch, in order.
    pub epochs: Vec<EpochReport>,
    /// The evaluations inside epochs, in order.
    pub evaluations: Vec<StepEvaluation>,
    /// The lowest evaluation loss and the step it was reached at, over the evaluations on the current text.
    pub best_eval_loss: Option<(f64, u64)>,
}

/// The report of one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochReport {
    /// Mean over the epoch's batches, nats per token.
    pub train_loss: f64,
    /// Mean over all evaluation batches, without dropout, nats per token.
    pub eval_loss: f64,
    /// The eval loss of the weights themselves, if `eval_loss` is that of their moving average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw_eval_loss: Option<f64>,
    /// The train loss in bits, comparable across tokenizers.
    #[serde(flatten, serialize_with = "train_names", deserialize_with = "from_train_names")]
    pub train_bits: Bits,
    /// The eval loss in bits, comparable across tokenizers.
    #[serde(flatten, serialize_with = "eval_names", deserialize_with = "from_eval_names")]
    pub eval_bits: Bits,
    /// The learning rate of the epoch's last step.
    #[serde(rename = "lr")]
    pub learning_rate: f64,
    /// Mean gradient norm, before clipping.
    pub gradient_norm: f64,
    /// Steps whose gradients were clipped.
    pub clipped_steps: u64,
    /// Steps that were skipped because the loss or the gradients were not finite.
    pub skipped_steps: u64,
    /// Steps taken by the end of the epoch.
    pub step: u64,
}

/// An evaluation inside an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepEvaluation {
    /// Steps taken by then.
    pub step: u64,
    /// Mean over all evaluation batches, without dropout, nats per token.
    pub eval_loss: f64,
    /// The eval loss of the weights themselves, if `eval_loss` is that of their moving average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw_eval_loss: Option<f64>,
    /// The eval loss in bits per character.
    pub eval_bits_per_character: f64,
    /// The eval loss in bits per byte of UTF-8.
    pub eval_bits_per_byte: f64,
}

impl StepEvaluation {
    /// The eval loss in bits.
    pub fn eval_bits(&self) -> Bits {
        Bits { per_character: self.eval_bits_per_character, per_byte: self.eval_bits_per_byte }
    }
}

fn train_names<S: Serializer>(bits: &Bits, serializer: S) -> Result<S::Ok, S::Error> {
    with_prefix("train", bits, serializer)
}

fn eval_names<S: Serializer>(bits: &Bits, serializer: S) -> Result<S::Ok, S::Error> {
    with_prefix("eval", bits, serializer)
}

/// Serializes bits under names such as `train_bits_per_character`.
fn with_prefix<S: Serializer>(prefix: &str, bits: &Bits, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(2))?;
    map.serialize_entry(&format!("{prefix}_bits_per_character"), &bits.per_character)?;
    map.serialize_entry(&format!("{prefix}_bits_per_byte"), &bits.per_byte)?;
    map.end()
}

fn from_train_names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bits, D::Error> {
    #[derive(Deserialize)]
    struct Named {
        train_bits_per_character: f64,
        train_bits_per_byte: f64,
    }
    let named = Named::deserialize(deserializer)?;
    Ok(Bits { per_character: named.train_bits_per_character, per_byte: named.train_bits_per_byte })
}

fn from_eval_names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bits, D::Error> {
    #[derive(Deserialize)]
    struct Named {
        eval_bits_per_character: f64,
        eval_bits_per_byte: f64,
    }
    let named = Named::deserialize(deserializer)?;
    Ok(Bits { per_character: named.eval_bits_per_character, per_byte: named.eval_bits_per_byte })
}

/// Running sums over the steps of the current epoch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EpochSums {
    /// Batches processed: the position in the epoch.
    pub batches: u64,
    /// Batches that were skipped.
    pub skipped: u64,
    /// Batches whose gradients were clipped.
    pub clipped: u64,
    /// Sum of the losses, without skipped batches, nats per token.
    pub loss: f64,
    /// Sum of the gradient norms, without skipped batches.
    pub gradient_norm: f64,
    /// The learning rate of the last step.
    pub learning_rate: f64,
}

impl EpochSums {
    /// Batches that updated the model.
    pub fn learned(&self) -> u64 {
        self.batches - self.skipped
    }
}

impl History {
    /// Adds an epoch.
    pub fn push(&mut self, report: EpochReport) {
        self.epochs.push(report);
        self.note_loss(report.eval_loss, report.step);
    }

    /// Adds an evaluation inside an epoch.
    pub fn push_evaluation(&mut self, evaluation: StepEvaluation) {
        self.evaluations.push(evaluation);
        self.note_loss(evaluation.eval_loss, evaluation.step);
    }

    fn note_loss(&mut self, eval_loss: f64, step: u64) {
        if self.best_eval_loss.is_none_or(|(best, _)| eval_loss < best) {
            self.best_eval_loss = Some((eval_loss, step));
        }
    }

    /// Removes the last epoch. Losses up to `text_start_step` were measured on another text, and do not count when the best loss
    /// has to be found again.
    pub fn pop(&mut self, text_start_step: u64) {
        let Some(last) = self.epochs.pop() else { return };
        if self.best_eval_loss.is_some_and(|(_, step)| step == last.step) {
            self.best_eval_loss = self.best_after(text_start_step);
        }
    }

    /// The lowest evaluation loss after a step, and its step.
    pub fn best_after(&self, start: u64) -> Option<(f64, u64)> {
        let later = self.all_evaluations().into_iter().filter(|(step, _)| *step > start);
        lowest_loss(later.map(|(step, loss)| (loss, step)))
    }

    /// The epoch with the best evaluation loss, counting from 1; none if the best evaluation was inside an epoch.
    pub fn best_epoch(&self) -> Option<u64> {
        let (_, best_step) = self.best_eval_loss?;
        self.epochs.iter().position(|epoch| epoch.step == best_step).map(|index| index as u64 + 1)
    }

    /// Steps taken by the end of an epoch, counting from 1; 0 if it is not known.
    pub fn step_of_epoch(&self, epoch: u64) -> u64 {
        let index = usize::try_from(epoch).ok().and_then(|epoch| epoch.checked_sub(1));
        index.and_then(|index| self.epochs.get(index)).map_or(0, |epoch| epoch.step)
    }

    /// The step and the evaluation loss of every evaluation, in order.
    pub fn all_evaluations(&self) -> Vec<(u64, f64)> {
        let of_epochs = self.epochs.iter().map(|epoch| (epoch.step, epoch.eval_loss));
        let mut all: Vec<(u64, f64)> = of_epochs.chain(self.step_losses()).collect();
        all.sort_by_key(|(step, _)| *step);
        all
    }

    /// The number of evaluations since the one with the lowest loss, of those after step `start`.
    pub fn evaluations_without_improvement(&self, start: u64) -> u64 {
        let Some((_, best)) = self.best_after(start) else { return 0 };
        let steps = self.epochs.iter().map(|epoch| epoch.step);
        let steps = steps.chain(self.evaluations.iter().map(|evaluation| evaluation.step));
        steps.filter(|step| *step > best).count() as u64
    }

    /// The step and the evaluation loss of every evaluation inside an epoch.
    pub fn step_losses(&self) -> Vec<(u64, f64)> {
        self.evaluations.iter().map(|evaluation| (evaluation.step, evaluation.eval_loss)).collect()
    }

    /// The evaluation loss of every epoch, nats per token.
    pub fn eval_losses(&self) -> Vec<f64> {
        self.epochs.iter().map(|epoch| epoch.eval_loss).collect()
    }
}

/// The lowest loss, with its label; the first one if several are equal.
pub fn lowest_loss<T>(losses: impl IntoIterator<Item = (f64, T)>) -> Option<(f64, T)> {
    losses.into_iter().min_by(|a, b| a.0.total_cmp(&b.0))
}

/// The content of `losses.json`: one list per number, with one value per epoch, and the evaluations inside epochs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct LossLists {
    train_losses: Vec<f64>,
    eval_losses: Vec<f64>,
    /// One value per epoch of the weights themselves, or none at all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    raw_eval_losses: Vec<Option<f64>>,
    #[serde(default)]
    train_bits_per_character: Vec<f64>,
    #[serde(default)]
    eval_bits_per_character: Vec<f64>,
    #[serde(default)]
    train_bits_per_byte: Vec<f64>,
    #[serde(default)]
    eval_bits_per_byte: Vec<f64>,
    #[serde(default)]
    gradient_norms: Vec<f64>,
    #[serde(default)]
    clipped_steps: Vec<u64>,
    #[serde(default)]
    skipped_steps: Vec<u64>,
    steps: Vec<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    step_evaluations: Vec<StepEvaluation>,
    best_eval_loss: Option<(f64, u64)>,
}

/// The history in a checkpoint's `state.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct StateLists {
    losses: LossLists,
    learning_rates: Vec<f64>,
}

impl LossLists {
    pub(crate) fn of(history: &History) -> Self {
        let epochs = &history.epochs;
        let numbers = |value: fn(&EpochReport) -> f64| epochs.iter().map(value).collect();
        let counts = |value: fn(&EpochReport) -> u64| epochs.iter().map(value).collect();
        let raw = epochs.iter().map(|epoch| epoch.raw_eval_loss);
        let has_raw = raw.clone().any(|loss| loss.is_some());
        Self {
            raw_eval_losses: if has_raw { raw.collect() } else { Vec::new() },
            train_losses: numbers(|epoch| epoch.train_loss),
            eval_losses: numbers(|epoch| epoch.eval_loss),
            train_bits_per_character: numbers(|epoch| epoch.train_bits.per_character),
            eval_bits_per_character: numbers(|epoch| epoch.eval_bits.per_character),
            train_bits_per_byte: numbers(|epoch| epoch.train_bits.per_byte),
            eval_bits_per_byte: numbers(|epoch| epoch.eval_bits.per_byte),
            gradient_norms: numbers(|epoch| epoch.gradient_norm),
            clipped_steps: counts(|epoch| epoch.clipped_steps),
            skipped_steps: counts(|epoch| epoch.skipped_steps),
            steps: counts(|epoch| epoch.step),
            step_evaluations: history.evaluations.clone(),
            best_eval_loss: history.best_eval_loss,
        }
    }

    /// The history, where values that a list lacks are NaN or 0: older versions did not write all lists, and a crash may
    /// leave `lrs.json` one epoch behind.
    pub(crate) fn into_history(self, learning_rates: &[f64]) -> History {
        let number = |list: &[f64], index: usize| list.get(index).copied().unwrap_or(f64::NAN);
        let count = |list: &[u64], index: usize| list.get(index).copied().unwrap_or(0);
        let report = |index: usize, step: u64| EpochReport {
            train_loss: number(&self.train_losses, index),
            eval_loss: number(&self.eval_losses, index),
            raw_eval_loss: self.raw_eval_losses.get(index).copied().flatten(),
            train_bits: Bits {
                per_character: number(&self.train_bits_per_character, index),
                per_byte: number(&self.train_bits_per_byte, index),
            },
            eval_bits: Bits {
                per_character: number(&self.eval_bits_per_character, index),
                per_byte: number(&self.eval_bits_per_byte, index),
            },
            learning_rate: number(learning_rates, index),
            gradient_norm: number(&self.gradient_norms, index),
            clipped_steps: count(&self.clipped_steps, index),
            skipped_steps: count(&self.skipped_steps, index),
            step,
        };
        let epochs = self.steps.iter().enumerate().map(|(index, &step)| report(index, step)).collect();
        History { epochs, evaluations: self.step_evaluations, best_eval_loss: self.best_eval_loss }
    }

    /// The length of every list.
    fn lengths(&self) -> [usize; 10] {
        let Self { train_losses, eval_losses, train_bits_per_character, eval_bits_per_character, .. } = self;
        let Self { train_bits_per_byte, eval_bits_per_byte, gradient_norms, .. } = self;
        let Self { clipped_steps, skipped_steps, steps, .. } = self;
        [
            train_losses.len(),
            eval_losses.len(),
            train_bits_per_character.len(),
            eval_bits_per_character.len(),
            train_bits_per_byte.len(),
            eval_bits_per_byte.len(),
            gradient_norms.len(),
            clipped_steps.len(),
            skipped_steps.len(),
            steps.len(),
        ]
    }
}

impl From<History> for StateLists {
    fn from(history: History) -> Self {
        let learning_rates = history.epochs.iter().map(|epoch| epoch.learning_rate).collect();
        Self { losses: LossLists::of(&history), learning_rates }
    }
}

impl TryFrom<StateLists> for History {
    type Error = String;

    /// # Errors
    /// If the lists differ in length. Training would write a partial history back, so it is refused here.
    fn try_from(lists: StateLists) -> Result<Self, String> {
        let epochs = lists.learning_rates.len();
        let raw = lists.losses.raw_eval_losses.len();
        if lists.losses.lengths().iter().any(|&length| length != epochs) || ![0, epochs].contains(&raw) {
            return Err("the lists of the history differ in length".to_owned());
        }
        Ok(lists.losses.into_history(&lists.learning_rates))
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
            raw_eval_loss: (step > 15).then_some(eval_loss + 0.5),
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
    fn pop_undoes_push() {
        // The last loss is the lowest, equal to the lowest, or higher.
        for last in [1.0, 2.0, 9.0] {
            let mut history = History::default();
            for (step, eval_loss) in [(10, 3.0), (20, 2.0), (30, 4.0)] {
                history.push(report(step, eval_loss));
            }
            let before = history.clone();
            history.push(report(35, last));
            assert_eq!(history.epochs.len(), 4);
            history.pop(0);
            assert_eq!(history, before, "after {last}");
        }
    }

    fn evaluation(step: u64, eval_loss: f64) -> StepEvaluation {
        let Bits { per_character, per_byte } = report(step, eval_loss).eval_bits;
        StepEvaluation {
            step,
            eval_loss,
            raw_eval_loss: None,
            eval_bits_per_character: per_character,
            eval_bits_per_byte: per_byte,
        }
    }

    #[test]
    fn evaluations_inside_epochs_count_like_those_at_their_end() {
        let mut history = History::default();
        history.push_evaluation(evaluation(5, 3.0));
        history.push(report(10, 4.0));
        assert_eq!((history.best_eval_loss, history.best_epoch()), (Some((3.0, 5)), None));
        assert_eq!(history.evaluations_without_improvement(0), 1);
        history.push_evaluation(evaluation(15, 2.0));
        assert_eq!(history.evaluations_without_improvement(0), 0);
        // An equal loss is no improvement.
        history.push_evaluation(evaluation(18, 2.0));
        history.push(report(20, 1.0));
        history.pop(0);
        assert_eq!(history.best_eval_loss, Some((2.0, 15)), "found again");
        history.push(report(20, 2.5));
        assert_eq!(history.all_evaluations(), [(5, 3.0), (10, 4.0), (15, 2.0), (18, 2.0), (20, 2.5)]);
        // From step 15 on, the loss of step 18 is the lowest.
        assert_eq!([0, 15, 18, 20].map(|start| history.evaluations_without_improvement(start)), [2, 1, 0, 0]);
        // Evaluations on another text do not count.
        history.best_eval_loss = None;
        history.push(report(30, 9.0));
        history.push_evaluation(evaluation(35, 9.5));
        history.pop(20);
        assert_eq!(history.best_eval_loss, Some((9.5, 35)));
        let state = serde_json::to_value(&history).unwrap();
        assert_eq!(state["losses"]["step_evaluations"][1]["step"], 15);
        assert_eq!(serde_json::from_value::<History>(state).unwrap(), history);
    }

    #[test]
    fn losses_of_another_text_do_not_count_as_best() {
        let mut history = History::default();
        [(10, 1.0), (20, 3.0), (30, 2.0)]
            .into_iter()
            .for_each(|(step, loss)| history.push(report(step, loss)));
        history.pop(10);
        assert_eq!(history.best_eval_loss, Some((1.0, 10)), "the removed epoch was not the best");
        history.best_eval_loss = None;
        history.push(report(30, 2.0));
        history.pop(10);
        assert_eq!(history.best_eval_loss, Some((3.0, 20)));
    }

    #[test]
    fn files_hold_one_list_per_number() {
        let mut history = History::default();
        history.push(report(10, 3.0));
        history.push(report(20, 2.0));
        let state = serde_json::to_value(&history).unwrap();
        assert_eq!(state["learning_rates"], serde_json::json!([0.1, 0.05]));
        assert_eq!(state["losses"], serde_json::to_value(LossLists::of(&history)).unwrap());
        assert_eq!(state["losses"]["eval_losses"], serde_json::json!([3.0, 2.0]));
        assert_eq!(state["losses"]["steps"], serde_json::json!([10, 20]));
        assert_eq!(state["losses"]["best_eval_loss"], serde_json::json!([2.0, 20]));
        assert!(state["losses"].get("step_evaluations").is_none(), "there are none");
        assert_eq!(serde_json::from_value::<History>(state.clone()).unwrap(), history);
        // A checkpoint needs every list in full.
        for list in ["train_losses", "raw_eval_losses", "gradient_norms", "steps"] {
            let mut short = state.clone();
            short["losses"][list] = serde_json::json!([1]);
            let error = serde_json::from_value::<History>(short).unwrap_err().to_string();
            assert!(error.contains("differ in length"), "{list}: {error}");
        }
        // losses.json of older versions has fewer lists.
        let old = serde_json::json!({ "train_losses": [4.0], "eval_losses": [3.0], "steps": [10], "best_eval_loss": null });
        let old = serde_json::from_value::<LossLists>(old).unwrap().into_history(&[]);
        assert_eq!((old.epochs[0].eval_loss, old.epochs[0].step), (3.0, 10));
        assert!(old.epochs[0].eval_bits.per_byte.is_nan() && old.epochs[0].learning_rate.is_nan());
    }
}
