//! The data of one run that its report shows, read from the run's files.

use serde_json::Value;

use crate::checkpoint::{CheckpointName, lowest_eval_loss};
use crate::error::Result;
use crate::records;
use crate::run_dir::RunDir;

/// One run of a report.
pub(super) struct RunSummary {
    pub(super) name: String,
    /// The label in a sweep, made of the settings that vary; the name if none does.
    pub(super) label: String,
    /// Settings by name.
    pub(super) settings: Value,
    pub(super) state: &'static str,
    pub(super) error: Option<String>,
    /// The records of `metrics.jsonl`, by event.
    pub(super) starts: Vec<Value>,
    pub(super) steps: Vec<Value>,
    pub(super) epochs: Vec<Value>,
    /// The records with an evaluation loss: of epochs and of evaluations inside them.
    pub(super) evaluations: Vec<Value>,
    /// One per epoch, nats per token.
    pub(super) eval_losses: Vec<f64>,
    /// The lowest evaluation loss and when it was measured.
    pub(super) best: Option<(f64, CheckpointName)>,
}

impl RunSummary {
    pub(super) fn read(run: &RunDir) -> Result<Self> {
        let (mut starts, mut steps, mut epochs) = (Vec::new(), Vec::new(), Vec::new());
        let mut evaluations = Vec::new();
        for record in records::read(run)? {
            match record["event"].as_str() {
                Some("start") => starts.push(record),
                Some("step") => steps.push(record),
                Some("epoch") => {
                    evaluations.push(record.clone());
                    epochs.push(record);
                }
                Some("evaluation") => evaluations.push(record),
                _ => {}
            }
        }
        let status = run.status();
        // losses.json comes first: the records of a run that continues another begin where that one ended.
        let saved = run.history()?.map(|history| (history.eval_losses(), history.step_losses()));
        let from_status =
            || status.as_ref().map(|status| (status.eval_losses.clone(), status.step_losses.clone()));
        let (eval_losses, step_losses) = saved.or_else(from_status).unwrap_or_default();
        Ok(Self {
            label: run.name(),
            name: run.name(),
            settings: serde_json::to_value(run.settings()?).expect("settings are JSON"),
            state: status.as_ref().map_or("–", |status| run.state_name(status)),
            error: status.and_then(|status| status.error),
            starts,
            steps,
            epochs,
            evaluations,
            best: lowest_eval_loss(&eval_losses, &step_losses),
            eval_losses,
        })
    }

    /// The lowest evaluation loss; infinite before the first evaluation.
    pub(super) fn best_loss(&self) -> f64 {
        self.best.map_or(f64::INFINITY, |(loss, _)| loss)
    }

    /// The lowest evaluation loss in bits per character.
    pub(super) fn best_bits(&self) -> Option<f64> {
        let record = match self.best?.1 {
            CheckpointName::Epoch(epoch) => self.epochs.iter().find(|record| record["epoch"] == epoch)?,
            CheckpointName::Step(step) => self.evaluations.iter().find(|record| record["step"] == step)?,
        };
        record["eval_bits_per_character"].as_f64()
    }

    /// Optimizer steps taken.
    pub(super) fn step_count(&self) -> u64 {
        let last = self.steps.last().or(self.epochs.last());
        last.and_then(|record| record["step"].as_u64()).unwrap_or(0)
    }

    /// The median over the steps, in tokens per second.
    pub(super) fn median_speed(&self) -> Option<f64> {
        let mut speeds: Vec<f64> =
            self.steps.iter().filter_map(|record| record["tokens_per_s"].as_f64()).collect();
        speeds.sort_by(f64::total_cmp);
        speeds.get(speeds.len() / 2).copied()
    }

    /// The text generated after each epoch.
    pub(super) fn samples(&self) -> impl Iterator<Item = (u64, &str)> {
        self.epochs.iter().filter_map(|record| Some((record["epoch"].as_u64()?, record["sample"].as_str()?)))
    }
}
