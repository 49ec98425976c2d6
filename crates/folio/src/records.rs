//! `metrics.jsonl`: what a run told while it trained, one JSON object a line.
//!
//! ```text
//! {"event":"start","step":0,"epoch":0,"parameters":…,"precision":"bf16","threads":2,"unix_time":…,"machine":{…},"folio":"0.1.0"}
//! {"event":"step","step":1,"epoch":1,"loss":4.17,"lr":0.001,"gradient_norm":1.9,"tokens_per_s":70000,"skipped":false}
//! {"event":"epoch","epoch":1,"step":490,"train_loss":…,"eval_loss":…,"train_bits_per_character":…,…,"sample":"…"}
//! ```
//!
//! A run that goes on from a checkpoint drops the lines of what came after it, so that every step and epoch is told
//! once.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::machine::Machine;
use crate::run_dir::RunDir;
use crate::train::{Event, Outcome, Requests, StepReport, Trainer};

/// The file's name in a run's directory.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// How long lines wait to be written together.
const PATIENCE: Duration = Duration::from_secs(1);

/// Trains as [`Trainer::run`] does, and keeps the records of the run in its directory.
///
/// # Errors
/// As [`Trainer::run`]; and [`Error::Unsaved`] if the records could not be written.
pub fn run_recorded(
    trainer: &mut Trainer,
    run_dir: Option<&RunDir>,
    requests: &Requests,
    on_event: &mut dyn FnMut(&Event),
) -> Result<Outcome> {
    let Some(run_dir) = run_dir else { return trainer.run(None, requests, on_event) };
    let mut metrics = Metrics::new(run_dir.path());
    let outcome = trainer.run(Some(run_dir), requests, &mut |event| {
        metrics.on_event(event);
        on_event(event);
    });
    let written = metrics.flush();
    // What went wrong in training is told before what went wrong in telling of it.
    outcome.and_then(|outcome| {
        let unsaved = |error| Error::Unsaved { path: run_dir.path().to_path_buf(), source: Box::new(error) };
        written.map(|()| outcome).map_err(unsaved)
    })
}

/// Writes `metrics.jsonl`.
struct Metrics {
    path: PathBuf,
    /// Lines that are not written yet; they wait here while the disk is full.
    lines: Vec<u8>,
    written_at: Instant,
    /// When the last step ended, or its epoch began.
    last_step: Instant,
}

impl Metrics {
    fn new(run_dir: &Path) -> Self {
        let (path, now) = (run_dir.join(METRICS_FILE), Instant::now());
        Self { path, lines: Vec::new(), written_at: now, last_step: now }
    }

    fn on_event(&mut self, event: &Event) {
        match event {
            Event::Started { epoch, step, parameters, precision, .. } => {
                // If the old file cannot be read now, the failure is told by the first attempt to write.
                let kept = kept_lines(&self.path, *epoch, *step);
                if let Ok(Some(kept)) = kept
                    && write_atomic(&self.path, &kept).is_err()
                {
                    self.lines = kept;
                }
                let line = json!({
                    "event": "start", "step": step, "epoch": epoch, "parameters": parameters,
                    "precision": precision.name(), "threads": rayon::current_num_threads(),
                    "unix_time": SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
                    "machine": Machine::here(), "folio": env!("CARGO_PKG_VERSION"),
                });
                self.push(&line);
            }
            Event::EpochStarted { .. } => self.last_step = Instant::now(),
            Event::Step(report) => self.push_step(report),
            Event::EpochEnded { epoch, report, sample, .. } => {
                let mut line = json!({ "event": "epoch", "epoch": epoch });
                let told = serde_json::to_value(report).expect("numbers are JSON");
                line.as_object_mut().expect("an object").extend(told.as_object().expect("a struct").clone());
                line["sample"] = json!(sample);
                self.push(&line);
            }
            Event::Saving | Event::Saved { .. } | Event::Evaluating | Event::Warning { .. } => {}
        }
        if !matches!(event, Event::Step(_)) || self.written_at.elapsed() >= PATIENCE {
            // Lines that cannot be written stay, and are tried again.
            let _ = self.flush();
        }
    }

    fn push_step(&mut self, report: &StepReport) {
        let now = Instant::now();
        let seconds = (now - self.last_step).as_secs_f64().max(1e-9);
        self.last_step = now;
        let StepReport { epoch, step, tokens, loss, gradient_norm, learning_rate, skipped } = *report;
        self.push(&json!({
            "event": "step", "step": step, "epoch": epoch, "loss": loss, "lr": learning_rate,
            "gradient_norm": gradient_norm, "tokens_per_s": (tokens as f64 / seconds).round(), "skipped": skipped,
        }));
    }

    fn push(&mut self, line: &Value) {
        self.lines.extend_from_slice(format!("{line}\n").as_bytes());
    }

    /// Appends the lines that wait.
    fn flush(&mut self) -> Result<()> {
        self.written_at = Instant::now();
        if self.lines.is_empty() {
            return Ok(());
        }
        let write = |path: &Path, lines: &[u8]| {
            let mut file = OpenOptions::new().create(true).append(true).open(path)?;
            let length = file.metadata()?.len();
            // All or nothing, so that no line is written twice.
            file.write_all(lines).inspect_err(|_| _ = file.set_len(length))
        };
        write(&self.path, &self.lines).map_err(Error::file("write", &self.path))?;
        self.lines.clear();
        Ok(())
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

/// The records of a run, oldest first; none if it has none. A last line that is half-written is left out.
///
/// # Errors
/// If the file cannot be read.
pub fn read(run_dir: &RunDir) -> Result<Vec<Value>> {
    let path = run_dir.path().join(METRICS_FILE);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::file("read", &path)(error)),
    };
    let lines = BufReader::new(file).split(b'\n');
    let records = lines.map_while(std::result::Result::ok);
    Ok(records.filter_map(|line| serde_json::from_slice(&line).ok()).collect())
}
