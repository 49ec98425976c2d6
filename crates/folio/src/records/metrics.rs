//! `metrics.jsonl`: one JSON object a line.
//!
//! ```text
//! {"event":"start","step":0,"epoch":0,"parameters":…,"precision":"bf16","threads":2,"unix_time":…,"machine":{…},"folio":"0.1.0"}
//! {"event":"step","step":1,"epoch":1,"loss":4.17,"lr":0.001,"gradient_norm":1.9,"tokens_per_s":70000,"skipped":false}
//! {"event":"epoch","epoch":1,"step":490,"train_loss":…,"eval_loss":…,"train_bits_per_character":…,…,"sample":"…"}
//! ```
//!
//! A run that goes on from a checkpoint drops the lines of what came after it, so that every step and epoch is told
//! once.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde_json::{Value, json};

use super::journal::Journal;
use super::unix_time;
use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::machine::Machine;
use crate::run_dir::METRICS_FILE;
use crate::train::{Event, StepReport};

/// Writes `metrics.jsonl`.
pub(super) struct Metrics {
    journal: Journal,
}

impl Metrics {
    pub(super) fn new(run_dir: &Path) -> Self {
        Self { journal: Journal::new(run_dir.join(METRICS_FILE)) }
    }

    pub(super) fn flush(&mut self) -> Result<()> {
        self.journal.flush()
    }

    pub(super) fn on_event(&mut self, event: &Event, tokens_per_s: f64) {
        match event {
            Event::Started { epoch, step, parameters, precision, .. } => {
                self.drop_later(*epoch, *step);
                self.push(&json!({
                    "event": "start", "step": step, "epoch": epoch, "parameters": parameters,
                    "precision": precision.name(), "threads": rayon::current_num_threads(),
                    "unix_time": unix_time() as u64, "machine": Machine::here(), "folio": env!("CARGO_PKG_VERSION"),
                }));
            }
            Event::Step(report) => {
                let StepReport { epoch, step, loss, gradient_norm, learning_rate, skipped, .. } = *report;
                self.push(&json!({
                    "event": "step", "step": step, "epoch": epoch, "loss": loss, "lr": learning_rate,
                    "gradient_norm": gradient_norm, "tokens_per_s": tokens_per_s.round(), "skipped": skipped,
                }));
            }
            Event::EpochEnded { epoch, report, sample, .. } => {
                let mut line = json!({ "event": "epoch", "epoch": epoch });
                let told = serde_json::to_value(report).expect("numbers are JSON");
                line.as_object_mut().expect("an object").extend(told.as_object().expect("a struct").clone());
                line["sample"] = json!(sample);
                self.push(&line);
            }
            Event::EpochStarted { .. }
            | Event::Saving
            | Event::Saved { .. }
            | Event::Evaluating
            | Event::Warning { .. } => {}
        }
    }

    fn push(&mut self, line: &Value) {
        self.journal.push(format!("{line}\n").as_bytes());
    }

    /// Drops the lines of what came after an epoch and a step. If the file can be neither read nor written now, the
    /// first attempt to append to it tells.
    fn drop_later(&mut self, epoch: u64, step: u64) {
        if let Ok(Some(kept)) = kept_lines(self.journal.path(), epoch, step) {
            let _ = write_atomic(self.journal.path(), &kept);
        }
    }
}

/// The lines of a file up to an epoch and a step, if there are others that have to go.
fn kept_lines(path: &Path, epoch: u64, step: u64) -> Result<Option<Vec<u8>>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::file("read", path)(error)),
    };
    let stays = |line: &&[u8]| {
        let Ok(value) = serde_json::from_slice::<Value>(line) else { return false };
        let at_most = |key: &str, most: u64| value[key].as_u64().is_some_and(|number| number <= most);
        let in_time = match value["event"].as_str() {
            Some("epoch") => at_most("epoch", epoch),
            _ => at_most("step", step),
        };
        in_time && line.ends_with(b"\n") && (step, epoch) != (0, 0)
    };
    let kept: Vec<u8> =
        bytes.split_inclusive(|&byte| byte == b'\n').filter(stays).flatten().copied().collect();
    Ok((kept.len() < bytes.len()).then_some(kept))
}
