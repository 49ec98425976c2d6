//! `metrics.jsonl`: the records of every start, step and epoch of a run, one JSON object per line.
//!
//! ```text
//! {"event":"start","step":0,"epoch":0,"parameters":…,"precision":"bf16","threads":2,"unix_time":…,"machine":{…},"folio":"0.1.0"}
//! {"event":"step","step":1,"epoch":1,"loss":4.17,"lr":0.001,"gradient_norm":1.9,"tokens_per_s":70000,"skipped":false}
//! {"event":"evaluation","epoch":1,"step":100,"eval_loss":…,"raw_eval_loss":…,"eval_bits_per_character":…,"eval_bits_per_byte":…}
//! {"event":"epoch","epoch":1,"step":490,"train_loss":…,"eval_loss":…,"train_bits_per_character":…,…,"sample":"…"}
//! {"event":"early_stop","step":900,"epoch":1,"evaluations":5,"best_loss":1.54,"best_step":400}
//! {"event":"ranks","step":4900,"epoch":10,"ranks":[{"peak_memory":…,"tokens_per_s":…,"seconds":…,"communication_seconds":…},…]}
//! ```
//!
//! A resumed run first removes the records of steps and epochs after its checkpoint, so that each appears once. With the
//! setting `tensorboard` the same numbers are also written as TensorBoard event files.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::machine::Machine;
use crate::run_dir::{METRICS_FILE, RunDir};
use crate::settings::Settings;
use crate::train::{Event, Outcome, Requests, StepReport, Trainer};

mod metrics;
#[cfg(feature = "tensorboard")]
mod tensorboard;
#[cfg(not(feature = "tensorboard"))]
#[path = "records/no_tensorboard.rs"]
mod tensorboard;

use metrics::Metrics;
use tensorboard::TensorBoard;

/// How long the records of steps are buffered.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);

/// Runs [`Trainer::run`], and writes the records of the run to its directory.
///
/// # Errors
/// As [`Trainer::run`]; [`Error::Unsaved`] if the records could not be written.
pub fn run_recorded(
    trainer: &mut Trainer,
    run_dir: Option<&RunDir>,
    requests: &Requests,
    on_event: &mut dyn FnMut(&Event),
) -> Result<Outcome> {
    let Some(run_dir) = run_dir else { return trainer.run(None, requests, on_event) };
    if !trainer.is_primary() {
        return trainer.run(Some(run_dir), requests, on_event);
    }
    let mut recorder = Recorder::new(run_dir.path(), trainer.settings());
    let outcome = trainer.run(Some(run_dir), requests, &mut |event| {
        recorder.on_event(event);
        on_event(event);
    });
    let written = recorder.flush();
    // An error of training takes precedence.
    outcome.and_then(|outcome| {
        let unsaved = |error| Error::Unsaved { path: run_dir.path().to_path_buf(), source: Box::new(error) };
        written.map(|()| outcome).map_err(unsaved)
    })
}

/// Fails if TensorBoard files are requested in a build without the cargo feature `tensorboard`.
pub(crate) fn check(settings: &Settings) -> Result<()> {
    if settings.tensorboard && cfg!(not(feature = "tensorboard")) {
        let reason = "TensorBoard is not part of this build: enable folio's cargo feature tensorboard";
        return Err(Error::setting("tensorboard", reason));
    }
    Ok(())
}

/// Turns events into records.
struct Recorder {
    metrics: Metrics,
    board: Option<TensorBoard>,
    written_at: Instant,
    /// When the last step ended or the epoch began.
    last_step: Instant,
}

impl Recorder {
    fn new(run_dir: &Path, settings: &Settings) -> Self {
        let board = settings.tensorboard.then(|| TensorBoard::new(run_dir, settings));
        let now = Instant::now();
        Self { metrics: Metrics::new(run_dir), board, written_at: now, last_step: now }
    }

    fn on_event(&mut self, event: &Event) {
        match event {
            Event::Started { epoch, step, parameters, precision, evaluated, .. } => {
                let kept = self.metrics.go_back_to(*epoch, *step, *evaluated);
                if let Some(board) = &mut self.board {
                    let kept = kept.split(|&byte| byte == b'\n');
                    let kept = kept.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
                    board.begin(*step, kept.filter(|record| record["step"] == *step));
                }
                self.push(&json!({
                    "event": "start", "step": step, "epoch": epoch, "parameters": parameters,
                    "precision": precision.name(), "threads": rayon::current_num_threads(),
                    "unix_time": since_1970().as_secs(),
                    "machine": Machine::here(), "folio": env!("CARGO_PKG_VERSION"),
                }));
            }
            Event::EpochStarted { .. } => self.last_step = Instant::now(),
            Event::Step(report) => self.push_step(report),
            Event::Evaluated { epoch, evaluation } => {
                self.push(&with_numbers(json!({ "event": "evaluation", "epoch": epoch }), evaluation));
                // The time of evaluation does not count in the next step's speed.
                self.last_step = Instant::now();
            }
            Event::EpochEnded { epoch, report, sample, .. } => {
                let mut record = with_numbers(json!({ "event": "epoch", "epoch": epoch }), report);
                record["sample"] = json!(sample);
                self.push(&record);
            }
            Event::Ranks { epoch, step, ranks } => {
                self.push(&json!({ "event": "ranks", "step": step, "epoch": epoch, "ranks": ranks }));
            }
            Event::StoppedEarly { epoch, step, evaluations, best_loss, best_step } => {
                self.metrics.push(&json!({
                    "event": "early_stop", "step": step, "epoch": epoch, "evaluations": evaluations, "best_loss": best_loss,
                    "best_step": best_step,
                }));
            }
            Event::Saving
            | Event::Saved { .. }
            | Event::Evaluating
            | Event::Teachers { .. }
            | Event::Warning { .. } => {}
        }
        if !matches!(event, Event::Step(_)) || self.written_at.elapsed() >= FLUSH_INTERVAL {
            // After an error the records stay buffered, and the next flush retries.
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

    fn push(&mut self, record: &Value) {
        self.metrics.push(record);
        if let Some(board) = &mut self.board {
            board.push(record);
        }
    }

    /// Writes the buffered records.
    fn flush(&mut self) -> Result<()> {
        self.written_at = Instant::now();
        let written = self.metrics.flush();
        // Try both, even if the first fails.
        let board = self.board.as_mut().map_or(Ok(()), TensorBoard::flush);
        written.and(board)
    }
}

/// A record with the fields of a struct added to it.
fn with_numbers(mut record: Value, numbers: &impl Serialize) -> Value {
    let numbers = serde_json::to_value(numbers).expect("numbers are JSON");
    let fields = numbers.as_object().expect("a struct").clone();
    record.as_object_mut().expect("an object").extend(fields);
    record
}

/// Appends to a file. A failed write is undone, so that it can be retried.
fn append(path: &Path, bytes: &[u8]) -> Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    let write = || {
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        let length = file.metadata()?.len();
        file.write_all(bytes).inspect_err(|_| _ = file.set_len(length))
    };
    write().map_err(Error::file("write", path))
}

/// The time since 1970; 0 if the clock is set to an earlier time.
fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The file with the records of a run.
pub fn records_path(run_dir: &RunDir) -> PathBuf {
    run_dir.path().join(METRICS_FILE)
}

/// The records of a run, oldest first; empty if the file does not exist. An incomplete last line is skipped.
///
/// # Errors
/// If the file cannot be read.
pub fn read(run_dir: &RunDir) -> Result<Vec<Value>> {
    let path = records_path(run_dir);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::file("read", &path)(error)),
    };
    let lines = BufReader::new(file).split(b'\n');
    let records = lines.map_while(std::result::Result::ok);
    Ok(records.filter_map(|line| serde_json::from_slice(&line).ok()).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::tensorboard::tests::shown;
    use super::*;
    use crate::history::EpochReport;
    use crate::model::Precision;
    use crate::text::Bits;

    /// Records epochs of 3 steps from an epoch and step until `last_step`, and with `ends` the end of its epoch. Losses
    /// depend on `session`.
    fn record(run_dir: &Path, (epoch, step): (u64, u64), last_step: u64, ends: bool, session: u64) {
        let settings = Settings { tensorboard: true, ..Settings::default() };
        let mut recorder = Recorder::new(run_dir, &settings);
        let precision = Precision::F32;
        let (steps, parameters, trained, evaluated) = (99, 5, 5, 0);
        recorder.on_event(&Event::Started { epoch, step, steps, parameters, trained, precision, evaluated });
        let end = |recorder: &mut Recorder, step: u64| {
            let bits = Bits { per_character: 1.0, per_byte: 2.0 };
            let report = EpochReport {
                train_loss: session as f64,
                eval_loss: step as f64 + session as f64,
                raw_eval_loss: None,
                train_bits: bits,
                eval_bits: bits,
                learning_rate: 0.1,
                gradient_norm: 1.0,
                clipped_steps: 0,
                skipped_steps: 0,
                step,
            };
            let sample = Some(format!("session {session}"));
            recorder.on_event(&Event::EpochEnded { epoch: step / 3, last_epoch: 9, report, sample });
        };
        if step > epoch * 3 && step % 3 == 0 {
            // The last step of the epoch was taken, but the epoch has not ended.
            end(&mut recorder, step);
        }
        for step in step + 1..=last_step {
            let loss = step as f32 + session as f32 / 8.0;
            recorder.on_event(&Event::Step(StepReport {
                epoch: step.div_ceil(3),
                step,
                tokens: 4,
                loss,
                gradient_norm: 1.0,
                learning_rate: 0.1,
                skipped: false,
            }));
            if step % 3 == 0 && (step < last_step || ends) {
                end(&mut recorder, step);
            }
        }
        recorder.flush().expect("room");
    }

    /// The curves in metrics.jsonl.
    fn recorded(run_dir: &Path) -> BTreeMap<(String, i64), Vec<f32>> {
        let records = read(&RunDir::new(run_dir)).expect("readable");
        let points = records.iter().filter(|record| record["event"] != "start").flat_map(|record| {
            let (kind, step) = (record["event"].as_str().expect("a name"), record["step"].as_i64());
            let numbers = record.as_object().expect("an object").iter();
            let numbers = numbers.filter(|(key, _)| !matches!(key.as_str(), "step" | "epoch"));
            numbers.filter_map(move |(key, value)| {
                Some(((format!("{kind}/{key}"), step?), vec![value.as_f64()? as f32]))
            })
        });
        points.collect()
    }

    #[test]
    fn tensorboard_shows_the_metrics_after_resuming() {
        // The last step of a first session, whether the epoch ended with it, and the saved epoch and step.
        for (last_step, ends, saved) in [
            (5, true, (0, 0)),
            (5, true, (1, 3)),
            (5, true, (1, 4)),
            (5, true, (1, 5)),
            (6, false, (1, 6)),
            // The epoch has ended, but was saved before its end, or is reopened to continue.
            (6, true, (1, 6)),
            (6, true, (2, 6)),
        ] {
            let directory = tempfile::tempdir().expect("room");
            let run_dir = directory.path();
            record(run_dir, (0, 0), last_step, ends, 0);
            assert_eq!(shown(run_dir), recorded(run_dir));
            record(run_dir, saved, 8, true, 1);
            record(run_dir, (2, 7), 9, true, 2);
            let (shown, recorded) = (shown(run_dir), recorded(run_dir));
            assert_eq!(shown, recorded, "{last_step} steps, saved at {saved:?}");
            let losses = (1..=9).map(|step| shown[&("step/loss".to_owned(), step)][0]);
            let session = |step: u64| [0.0, 0.125, 0.25][usize::from(step > saved.1) + usize::from(step > 7)];
            let expected: Vec<f32> = (1..=9).map(|step| step as f32 + session(step)).collect();
            assert_eq!(losses.collect::<Vec<f32>>(), expected);
        }
    }
}
