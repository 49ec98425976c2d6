//! What a run's files tell, put together.

use serde_json::Value;

use crate::error::Result;
use crate::records;
use crate::run_dir::{RunDir, RunLock, RunState};

/// A run.
pub(super) struct Story {
    pub(super) name: String,
    /// What it is called beside others; its name if it differs from them in nothing.
    pub(super) label: String,
    /// Its settings, by name.
    pub(super) settings: Value,
    /// How it fares, in a word.
    pub(super) state: &'static str,
    pub(super) error: Option<String>,
    /// Its starts, steps and epochs, as `metrics.jsonl` has them.
    pub(super) starts: Vec<Value>,
    pub(super) step_lines: Vec<Value>,
    pub(super) epoch_lines: Vec<Value>,
    /// Of each epoch, nats a token.
    pub(super) eval_losses: Vec<f64>,
    /// The lowest, and the epoch it was reached in.
    pub(super) best: Option<(f64, u64)>,
}

impl Story {
    pub(super) fn read(run: &RunDir) -> Result<Self> {
        let (mut starts, mut step_lines, mut epoch_lines) = (Vec::new(), Vec::new(), Vec::new());
        for line in records::read(run)? {
            match line["event"].as_str() {
                Some("start") => starts.push(line),
                Some("step") => step_lines.push(line),
                Some("epoch") => epoch_lines.push(line),
                _ => {}
            }
        }
        let status = run.status();
        let state = match status.as_ref().map(|status| status.state) {
            Some(RunState::Running) if !RunLock::is_held(run) => "killed",
            Some(state) => state.name(),
            None => "–",
        };
        // The history of a run that goes on from another begins before its own records.
        let saved = run.losses()?.map(|losses| losses.eval_losses);
        let told = status.as_ref().map(|status| status.eval_losses.clone());
        let eval_losses = saved.or(told).unwrap_or_default();
        let best = eval_losses
            .iter()
            .copied()
            .zip(1..)
            .reduce(|best, next| if next.0 < best.0 { next } else { best });
        let name = run.path().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self {
            label: name.clone(),
            name,
            settings: serde_json::to_value(run.settings()?).expect("settings are JSON"),
            state,
            error: status.and_then(|status| status.error),
            starts,
            step_lines,
            epoch_lines,
            eval_losses,
            best,
        })
    }

    /// The lowest evaluation loss; infinite before there is one.
    pub(super) fn best_loss(&self) -> f64 {
        self.best.map_or(f64::INFINITY, |(loss, _)| loss)
    }

    /// The lowest evaluation loss in bits a character.
    pub(super) fn best_bits(&self) -> Option<f64> {
        let (_, epoch) = self.best?;
        let line = self.epoch_lines.iter().find(|line| line["epoch"] == epoch)?;
        line["eval_bits_per_character"].as_f64()
    }

    /// Steps taken in all.
    pub(super) fn steps(&self) -> u64 {
        let last = self.step_lines.last().or(self.epoch_lines.last());
        last.and_then(|line| line["step"].as_u64()).unwrap_or(0)
    }

    /// The median of its steps' tokens a second.
    pub(super) fn median_speed(&self) -> Option<f64> {
        let mut speeds: Vec<f64> =
            self.step_lines.iter().filter_map(|line| line["tokens_per_s"].as_f64()).collect();
        speeds.sort_by(f64::total_cmp);
        speeds.get(speeds.len() / 2).copied()
    }

    /// What it wrote after each epoch.
    pub(super) fn samples(&self) -> impl Iterator<Item = (u64, &str)> {
        self.epoch_lines.iter().filter_map(|line| Some((line["epoch"].as_u64()?, line["sample"].as_str()?)))
    }
}
