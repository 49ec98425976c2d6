//! The events of training on their way to Python: the name of a class in `folio.events`, and its fields.

use folio::history::EpochReport;
use folio::run_dir::RunState;
use folio::sweep::{RunResult, SweepEvent};
use folio::train::{Event, StepReport};
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// What the training thread reports. Runs count from 0.
pub(crate) enum Report {
    RunStarted { run: usize },
    Event { run: usize, event: Event },
    RunEnded { result: RunResult },
    StageEnded { survivors: Vec<usize>, epochs: u64 },
}

impl From<SweepEvent<'_>> for Report {
    fn from(event: SweepEvent<'_>) -> Self {
        match event {
            SweepEvent::RunStarted { run } => Self::RunStarted { run },
            SweepEvent::Run { run, event } => Self::Event { run, event: event.clone() },
            SweepEvent::RunEnded { result, .. } => Self::RunEnded { result: result.clone() },
            SweepEvent::RungEnded { survivors, epochs } => {
                Self::StageEnded { survivors: survivors.to_vec(), epochs }
            }
        }
    }
}

impl Report {
    /// The name of the event's class, and its fields. None for events that are of no use in Python.
    pub(crate) fn into_fields(self, py: Python<'_>) -> PyResult<Option<(&'static str, Bound<'_, PyDict>)>> {
        let fields = PyDict::new(py);
        let name = match self {
            Self::RunStarted { run } => {
                fields.set_item("run", run)?;
                "RunStarted"
            }
            Self::Event { run, event } => {
                fields.set_item("run", run)?;
                match set_event(&fields, event)? {
                    Some(name) => name,
                    None => return Ok(None),
                }
            }
            Self::RunEnded { result: RunResult { run, state, epochs, eval_losses, error, .. } } => {
                fields.set_item("run", run)?;
                fields.set_item("state", state.map_or("waiting", RunState::name))?;
                fields.set_item("epochs", epochs)?;
                fields.set_item("eval_losses", eval_losses)?;
                fields.set_item("error", error)?;
                "RunEnded"
            }
            Self::StageEnded { survivors, epochs } => {
                fields.set_item("survivors", survivors)?;
                fields.set_item("epochs", epochs)?;
                "StageEnded"
            }
        };
        Ok(Some((name, fields)))
    }
}

/// Sets the fields of a run's event. Returns the name of its class.
fn set_event(fields: &Bound<'_, PyDict>, event: Event) -> PyResult<Option<&'static str>> {
    Ok(Some(match event {
        Event::Started { epoch, step, steps, parameters, trained, precision, .. } => {
            fields.set_item("epoch", epoch)?;
            fields.set_item("step", step)?;
            fields.set_item("steps", steps)?;
            fields.set_item("parameters", parameters)?;
            fields.set_item("trained", trained)?;
            fields.set_item("precision", precision.name())?;
            "Started"
        }
        Event::EpochStarted { epoch, last_epoch, steps, taken } => {
            fields.set_item("epoch", epoch)?;
            fields.set_item("last_epoch", last_epoch)?;
            fields.set_item("steps", steps)?;
            fields.set_item("taken", taken)?;
            "EpochStarted"
        }
        Event::Step(StepReport { epoch, step, tokens, loss, gradient_norm, learning_rate, skipped }) => {
            fields.set_item("epoch", epoch)?;
            fields.set_item("step", step)?;
            fields.set_item("tokens", tokens)?;
            fields.set_item("loss", loss)?;
            fields.set_item("gradient_norm", gradient_norm)?;
            fields.set_item("learning_rate", learning_rate)?;
            fields.set_item("skipped", skipped)?;
            "Step"
        }
        Event::Evaluated { epoch, evaluation } => {
            fields.set_item("epoch", epoch)?;
            fields.set_item("step", evaluation.step)?;
            fields.set_item("eval_loss", evaluation.eval_loss)?;
            fields.set_item("raw_eval_loss", evaluation.raw_eval_loss)?;
            fields.set_item("eval_bits_per_character", evaluation.eval_bits_per_character)?;
            "Evaluated"
        }
        Event::StoppedEarly { evaluations, best_loss, best_step, .. } => {
            fields.set_item("evaluations", evaluations)?;
            fields.set_item("best_loss", best_loss)?;
            fields.set_item("best_step", best_step)?;
            "StoppedEarly"
        }
        Event::EpochEnded { epoch, last_epoch, report, sample } => {
            fields.set_item("epoch", epoch)?;
            fields.set_item("last_epoch", last_epoch)?;
            set_epoch(fields, &report)?;
            fields.set_item("sample", sample)?;
            "EpochEnded"
        }
        Event::Saved { checkpoint, requested } => {
            fields.set_item("checkpoint", checkpoint)?;
            fields.set_item("requested", requested)?;
            "Saved"
        }
        Event::Evaluating => "Evaluating",
        Event::Warning { message } => {
            fields.set_item("message", message)?;
            "Problem"
        }
        // Python trains in one process.
        Event::Saving | Event::Ranks { .. } | Event::Teachers { .. } => return Ok(None),
    }))
}

fn set_epoch(fields: &Bound<'_, PyDict>, report: &EpochReport) -> PyResult<()> {
    fields.set_item("step", report.step)?;
    fields.set_item("train_loss", report.train_loss)?;
    fields.set_item("eval_loss", report.eval_loss)?;
    fields.set_item("raw_eval_loss", report.raw_eval_loss)?;
    fields.set_item("train_bits_per_character", report.train_bits.per_character)?;
    fields.set_item("eval_bits_per_character", report.eval_bits.per_character)?;
    fields.set_item("learning_rate", report.learning_rate)?;
    fields.set_item("gradient_norm", report.gradient_norm)?;
    fields.set_item("clipped_steps", report.clipped_steps)?;
    fields.set_item("skipped_steps", report.skipped_steps)
}
