//! The file `metrics.jsonl`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::append;
use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::run_dir::METRICS_FILE;

/// Writes `metrics.jsonl`.
pub(super) struct Metrics {
    path: PathBuf,
    /// Buffered lines. They stay here while the disk is full.
    lines: Vec<u8>,
    /// Whether the buffer replaces the content of the file, because an earlier rewrite failed.
    replace: bool,
}

impl Metrics {
    pub(super) fn new(run_dir: &Path) -> Self {
        Self { path: run_dir.join(METRICS_FILE), lines: Vec::new(), replace: false }
    }

    /// Removes the records after an epoch, a step, and the last evaluation inside an epoch. Returns the remaining lines.
    pub(super) fn go_back_to(&mut self, epoch: u64, step: u64, evaluated: u64) -> Vec<u8> {
        // If the file cannot be read, the first write will report it.
        let Ok((kept, all_stay)) = kept_lines(&self.path, epoch, step, evaluated) else { return Vec::new() };
        if !all_stay && write_atomic(&self.path, &kept).is_err() {
            self.lines.clone_from(&kept);
            self.replace = true;
        }
        kept
    }

    pub(super) fn push(&mut self, record: &Value) {
        self.lines.extend_from_slice(format!("{record}\n").as_bytes());
    }

    /// Writes the buffered lines.
    pub(super) fn flush(&mut self) -> Result<()> {
        if self.replace {
            write_atomic(&self.path, &self.lines)?;
            self.replace = false;
        } else {
            append(&self.path, &self.lines)?;
        }
        self.lines.clear();
        Ok(())
    }
}

/// The lines of a file up to an epoch, a step and an evaluation, and whether these are all of its lines.
fn kept_lines(path: &Path, epoch: u64, step: u64, evaluated: u64) -> Result<(Vec<u8>, bool)> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok((Vec::new(), true)),
        Err(error) => return Err(Error::file("read", path)(error)),
    };
    let stays = |line: &&[u8]| {
        let Ok(value) = serde_json::from_slice::<Value>(line) else { return false };
        let at_most = |key: &str, most: u64| value[key].as_u64().is_some_and(|number| number <= most);
        let in_time = match value["event"].as_str() {
            Some("epoch") => at_most("epoch", epoch),
            // Written again if the run stops here again.
            Some("early_stop") => value["step"].as_u64().is_some_and(|number| number < step),
            Some("evaluation") => at_most("step", evaluated),
            _ => at_most("step", step),
        };
        in_time && line.ends_with(b"\n") && (step, epoch) != (0, 0)
    };
    let kept: Vec<u8> =
        bytes.split_inclusive(|&byte| byte == b'\n').filter(stays).flatten().copied().collect();
    let all_stay = kept.len() == bytes.len();
    Ok((kept, all_stay))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_failed_rewrite_is_retried() {
        let directory = tempfile::tempdir().expect("room");
        let line = |step: u64| format!("{}\n", json!({ "event": "step", "step": step }));
        let path = directory.path().join(METRICS_FILE);
        fs::write(&path, [line(1), line(2)].concat()).expect("room");
        // The state after a rewrite to step 1 failed on a full disk.
        let mut metrics = Metrics { path, lines: line(1).into_bytes(), replace: true };
        for step in [2, 3] {
            metrics.push(&json!({ "event": "step", "step": step }));
            metrics.flush().expect("room");
        }
        let written = fs::read_to_string(&metrics.path).expect("a file");
        assert_eq!(written, [line(1), line(2), line(3)].concat());
    }

    #[test]
    fn an_early_stop_is_removed_when_training_goes_on_from_it() {
        let directory = tempfile::tempdir().expect("room");
        let line = |event: &str| format!("{}\n", json!({ "event": event, "step": 2, "epoch": 1 }));
        let path = directory.path().join(METRICS_FILE);
        for (step, kept) in [(2, line("step")), (3, line("step") + &line("early_stop"))] {
            fs::write(&path, line("step") + &line("early_stop")).expect("room");
            let found = Metrics::new(directory.path()).go_back_to(0, step, 0);
            assert_eq!(String::from_utf8(found).expect("UTF-8"), kept, "at step {step}");
        }
    }

    #[test]
    fn an_evaluation_that_the_state_lacks_is_removed() {
        let directory = tempfile::tempdir().expect("room");
        let line =
            |event: &str, step: u64| format!("{}\n", json!({ "event": event, "step": step, "epoch": 1 }));
        let all = [line("step", 1), line("step", 2), line("evaluation", 2), line("step", 3)].concat();
        for (evaluated, kept) in
            [(0, [line("step", 1), line("step", 2)].concat()), (2, all.replace(&line("step", 3), ""))]
        {
            fs::write(directory.path().join(METRICS_FILE), &all).expect("room");
            let mut metrics = Metrics::new(directory.path());
            assert_eq!(String::from_utf8(metrics.go_back_to(0, 2, evaluated)).expect("UTF-8"), kept);
            assert_eq!(
                fs::read_to_string(&metrics.path).expect("a file"),
                kept,
                "evaluated up to {evaluated}"
            );
        }
    }
}
