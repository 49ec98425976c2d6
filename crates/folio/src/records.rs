//! What a run tells while it trains, in files that others read: `metrics.jsonl`, and event files for TensorBoard.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::run_dir::{METRICS_FILE, RunDir};
use crate::train::{Event, Outcome, Requests, Trainer};

mod journal;
mod metrics;
mod tensorboard;

use metrics::Metrics;
use tensorboard::TensorBoard;

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
    let mut records = Records {
        metrics: Metrics::new(run_dir.path()),
        tensorboard: trainer
            .settings()
            .tensorboard
            .then(|| TensorBoard::new(run_dir.path(), trainer.settings())),
        last_step: Instant::now(),
    };
    let outcome = trainer.run(Some(run_dir), requests, &mut |event| {
        records.on_event(event);
        on_event(event);
    });
    let written = records.flush();
    // What went wrong in training is told before what went wrong in telling of it.
    outcome.and_then(|outcome| {
        let unsaved = |error| Error::Unsaved { path: run_dir.path().to_path_buf(), source: Box::new(error) };
        written.map(|()| outcome).map_err(unsaved)
    })
}

struct Records {
    metrics: Metrics,
    tensorboard: Option<TensorBoard>,
    /// When the last step ended, or its epoch began.
    last_step: Instant,
}

impl Records {
    fn on_event(&mut self, event: &Event) {
        let mut tokens_per_s = 0.0;
        if let Event::EpochStarted { .. } | Event::Step(_) = event {
            let now = Instant::now();
            let seconds = (now - self.last_step).as_secs_f64().max(1e-9);
            self.last_step = now;
            if let Event::Step(report) = event {
                tokens_per_s = report.tokens as f64 / seconds;
            }
        }
        self.metrics.on_event(event, tokens_per_s);
        if let Some(tensorboard) = &mut self.tensorboard {
            tensorboard.on_event(event, tokens_per_s);
        }
        if !matches!(event, Event::Step(_)) {
            // What cannot be written waits, and is tried again.
            let _ = self.flush();
        }
    }

    fn flush(&mut self) -> Result<()> {
        let metrics = self.metrics.flush();
        let tensorboard = self.tensorboard.as_mut().map_or(Ok(()), TensorBoard::flush);
        metrics.and(tensorboard)
    }
}

/// The time, in seconds since 1970.
fn unix_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// The lines of a run's `metrics.jsonl`, oldest first; none if it has none. A last line that is half-written is left
/// out.
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
