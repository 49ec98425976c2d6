//! Evaluation while a run trains, and stopping when it no longer improves.

use super::saver::Saver;
use super::{Event, Trainer};
use crate::data::Part;
use crate::error::Result;
use crate::evaluate::{EvaluationBatches, mean_batch_loss};
use crate::history::StepEvaluation;

/// The losses of an evaluation.
#[derive(Clone, Copy)]
pub(super) struct EvalLosses {
    /// The loss of the model that is saved: the average of the weights if there is one.
    pub(super) model: f64,
    /// The loss of the weights themselves if there is an average.
    pub(super) weights: Option<f64>,
}

impl Trainer {
    /// Whether the evaluation loss has not improved for `patience` evaluations. Evaluations of a run that this one continues
    /// do not count, neither as its best.
    pub fn is_out_of_patience(&self) -> bool {
        let Some(patience) = self.settings.patience else { return false };
        self.evaluations_without_improvement() >= patience
    }

    /// The evaluations in a row without improvement.
    fn evaluations_without_improvement(&self) -> u64 {
        self.state.history.evaluations_without_improvement(self.state.start_step)
    }

    /// The lowest evaluation loss of this run since it began, and its step.
    pub(super) fn own_best(&self) -> Option<(f64, u64)> {
        self.state.history.best_after(self.state.start_step)
    }

    /// Whether the model is to be evaluated now, inside an epoch. At the end of an epoch it always is.
    pub(super) fn is_evaluation_due(&self) -> bool {
        let (step, taken) = (self.state.global_step, self.state.epoch_progress.batches);
        let is_inside = taken > 0 && taken < self.steps_of_epoch();
        let is_new = self.state.history.evaluations.last().is_none_or(|last| last.step < step);
        is_inside && is_new && self.settings.eval_every.is_some_and(|every| step.is_multiple_of(every))
    }

    /// The losses of an evaluation; `None` if `should_continue` returns false first.
    pub(super) fn eval_losses(&mut self, should_continue: impl Fn() -> bool) -> Option<EvalLosses> {
        let weights = self.eval_loss(&should_continue)?;
        if !self.state.averaged {
            return Some(EvalLosses { model: weights, weights: None });
        }
        self.backend.swap_average();
        let average = self.eval_loss(&should_continue);
        self.backend.swap_average();
        Some(EvalLosses { model: average?, weights: Some(weights) })
    }

    /// The evaluation loss of the backend's weights; `None` if `should_continue` returns false first.
    fn eval_loss(&mut self, should_continue: impl Fn() -> bool) -> Option<f64> {
        let batches = EvaluationBatches {
            dataset: &self.dataset,
            blocks: self.dataset.blocks(Part::Eval),
            batch_size: self.settings.batch_size,
            micro_batches: self.settings.gradient_accumulation_steps,
        };
        mean_batch_loss(&mut *self.backend, &self.communicator, batches, &mut self.buffer, should_continue)
    }

    /// Adds an evaluation inside an epoch to the history.
    pub(super) fn note_evaluation(&mut self, losses: EvalLosses, saver: &Saver) -> Result<StepEvaluation> {
        let EvalLosses { model: eval_loss, weights: raw_eval_loss } = losses;
        if !eval_loss.is_finite() {
            return Err(self.diverged(format!("the evaluation loss is {eval_loss}"), saver));
        }
        let bits = self.eval_text.bits(eval_loss);
        let evaluation = StepEvaluation {
            step: self.state.global_step,
            eval_loss,
            raw_eval_loss,
            eval_bits_per_character: bits.per_character,
            eval_bits_per_byte: bits.per_byte,
        };
        self.state.history.push_evaluation(evaluation);
        Ok(evaluation)
    }

    /// Reports that training ends early, if it does.
    pub(super) fn report_early_stop(&self, on_event: &mut dyn FnMut(&Event)) {
        if let Some((best_loss, best_step)) = self.own_best()
            && self.is_out_of_patience()
            && self.steps_to_end() > 0
        {
            let evaluations = self.evaluations_without_improvement();
            let (epoch, step) = (self.state.epoch, self.state.global_step);
            on_event(&Event::StoppedEarly { epoch, step, evaluations, best_loss, best_step });
        }
    }
}
