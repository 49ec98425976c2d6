//! Event files for TensorBoard.
//!
//! They are in the run's directory, so that `tensorboard --logdir runs` names runs after their directories. A file is a
//! sequence of records, with all numbers little-endian:
//!
//! ```text
//! u64 length    u32 masked CRC of the length    the event    u32 masked CRC of the event
//! ```
//!
//! The format is TensorFlow's: core/lib/io/record_writer.h, and core/lib/hash/crc32c.h for the mask.
//!
//! Every start of a run begins a new file with a START at the current step. TensorBoard then discards earlier records
//! from that step on, such as those of steps that a killed run took after its last save. The records of the step itself
//! are repeated, except those of an epoch that has not ended.

use std::path::{Path, PathBuf};

use prost::Message;
use serde_json::Value;

use super::{append, since_1970};
use crate::error::Result;
use crate::run_dir::next_event_file;
use crate::settings::Settings;

mod proto;

use proto::{EventMessage, SessionLog, Summary, SummaryValue};

/// The format version of event files.
const VERSION: &str = "brain.Event:2";

/// Writes an event file.
pub(super) struct TensorBoard {
    run_dir: PathBuf,
    /// None until the first write succeeds.
    file: Option<PathBuf>,
    settings: Value,
    /// Buffered records. They stay here while the disk is full.
    buffer: Vec<u8>,
}

impl TensorBoard {
    pub(super) fn new(run_dir: &Path, settings: &Settings) -> Self {
        let settings = serde_json::to_value(settings).expect("settings are JSON");
        Self { run_dir: run_dir.to_path_buf(), file: None, settings, buffer: Vec::new() }
    }

    /// Begins a file at `step`. `records` are the earlier records of this step, if the run is resumed.
    pub(super) fn begin(&mut self, step: u64, records: impl Iterator<Item = Value>) {
        self.push_event(EventMessage { file_version: Some(VERSION.to_owned()), ..EventMessage::default() });
        let session_log = Some(SessionLog { status: SessionLog::START });
        self.push_event(EventMessage { step: step as i64, session_log, ..EventMessage::default() });
        let settings = self.settings.as_object().expect("a struct");
        let rows = settings.iter().map(|(key, value)| match value {
            Value::String(text) => format!("| {key} | {text} |\n"),
            value => format!("| {key} | {value} |\n"),
        });
        let table = "| setting | value |\n| --- | --- |\n".to_owned() + &rows.collect::<String>();
        let start = SummaryValue::session_start(settings, since_1970().as_secs_f64());
        self.push_values(step, vec![SummaryValue::text("hyperparameters", table), start]);
        records.for_each(|record| self.push(&record));
    }

    /// Adds one record of metrics.jsonl.
    pub(super) fn push(&mut self, record: &Value) {
        let (Some(kind @ ("step" | "evaluation" | "epoch")), Some(step)) =
            (record["event"].as_str(), record["step"].as_u64())
        else {
            return;
        };
        let record = record.as_object().expect("it has keys");
        let entries = record.iter().filter(|(key, _)| !matches!(key.as_str(), "step" | "epoch"));
        let values = entries.filter_map(|(key, value)| match value {
            // Non-finite numbers are null in JSON, and leave a gap in the curve.
            Value::Number(number) => {
                Some(SummaryValue::scalar(format!("{kind}/{key}"), number.as_f64()? as f32))
            }
            Value::String(text) if key == "sample" => Some(SummaryValue::text("sample", verbatim(text))),
            _ => None,
        });
        self.push_values(step, values.collect());
    }

    fn push_values(&mut self, step: u64, value: Vec<SummaryValue>) {
        self.push_event(EventMessage {
            step: step as i64,
            summary: Some(Summary { value }),
            ..EventMessage::default()
        });
    }

    fn push_event(&mut self, mut event: EventMessage) {
        event.wall_time = since_1970().as_secs_f64();
        let event = event.encode_to_vec();
        let length = (event.len() as u64).to_le_bytes();
        self.buffer.extend_from_slice(&length);
        self.buffer.extend_from_slice(&masked_crc(&length).to_le_bytes());
        self.buffer.extend_from_slice(&event);
        self.buffer.extend_from_slice(&masked_crc(&event).to_le_bytes());
    }

    /// Writes the buffered records.
    pub(super) fn flush(&mut self) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let path = match &self.file {
            Some(path) => path.clone(),
            None => next_event_file(&self.run_dir)?,
        };
        append(&path, &self.buffer)?;
        self.buffer.clear();
        self.file = Some(path);
        Ok(())
    }
}

/// A Markdown code block: every line indented by four spaces.
fn verbatim(text: &str) -> String {
    text.split('\n').map(|line| format!("    {line}\n")).collect()
}

/// A masked CRC. The CRC of data that itself contains a CRC is weak.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use serde_json::json;

    use super::*;
    use crate::run_dir::event_files;

    /// Reads the events of a file, and checks every length and CRC.
    fn read_events(mut bytes: &[u8]) -> Vec<EventMessage> {
        let mut events = Vec::new();
        while !bytes.is_empty() {
            let (header, rest) = bytes.split_at(12);
            let length = u64::from_le_bytes(header[..8].try_into().expect("8 bytes")) as usize;
            assert_eq!(header[8..], masked_crc(&header[..8]).to_le_bytes());
            let (event, rest) = rest.split_at(length);
            assert_eq!(rest[..4], masked_crc(event).to_le_bytes());
            events.push(EventMessage::decode(event).expect("an event"));
            bytes = &rest[4..];
        }
        events
    }

    /// The curves that TensorBoard shows. A START discards earlier events from its step on.
    pub(in crate::records) fn shown(run_dir: &Path) -> BTreeMap<(String, i64), Vec<f32>> {
        let mut shown: BTreeMap<(String, i64), Vec<f32>> = BTreeMap::new();
        for file in event_files(run_dir).expect("readable") {
            for event in read_events(&fs::read(file).expect("a file")) {
                if event.session_log.is_some() {
                    shown.retain(|(_, step), _| *step < event.step);
                }
                for value in event.summary.into_iter().flat_map(|summary| summary.value) {
                    if let Some(number) = value.simple_value {
                        shown.entry((value.tag, event.step)).or_default().push(number);
                    }
                }
            }
        }
        shown
    }

    #[test]
    fn first_bytes_match_the_format() {
        let mut board = TensorBoard::new(Path::new(""), &Settings::default());
        board.begin(0, std::iter::empty());
        // The length of a 24-byte event, with the CRC that TensorFlow writes for it.
        assert_eq!(board.buffer[..12], *b"\x18\0\0\0\0\0\0\0\xa3\x7f\x4b\x22");
        // RFC 3720, appendix B.4: the CRC of 32 bytes of zeros is 8a9136aa.
        assert_eq!(masked_crc(&[0; 32]), 0x8a91_36aa_u32.rotate_right(15).wrapping_add(0xa282_ead8));
    }

    #[test]
    fn numbers_become_curves_and_samples_text() {
        let mut board = TensorBoard::new(Path::new(""), &Settings::default());
        board.push(&json!({ "event": "start", "step": 0, "epoch": 0, "parameters": 3 }));
        board.push(
            &json!({ "event": "step", "step": 7, "epoch": 1, "loss": 1.5, "lr": 0.1, "skipped": false }),
        );
        board.push(&json!({ "event": "step", "step": 8, "epoch": 1, "loss": f32::NAN, "lr": 0.1 }));
        board.push(
            &json!({ "event": "epoch", "step": 8, "epoch": 1, "eval_loss": 2.5, "sample": "a\n```\nb" }),
        );
        let entries = |event: EventMessage| {
            let values = event.summary.expect("a summary").value.into_iter();
            let value = |value: SummaryValue| {
                let text = value.tensor.map(|tensor| tensor.string_val[0].clone());
                let text = text.map(|text| String::from_utf8(text).expect("UTF-8"));
                (value.tag, text.unwrap_or_else(|| value.simple_value.expect("a number").to_string()))
            };
            (event.step, values.map(value).collect::<Vec<_>>())
        };
        let got: Vec<_> = read_events(&board.buffer).into_iter().map(entries).collect();
        let named = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(tag, value)| ((*tag).to_owned(), (*value).to_owned())).collect::<Vec<_>>()
        };
        let expected = [
            (7, named(&[("step/loss", "1.5"), ("step/lr", "0.1")])),
            (8, named(&[("step/lr", "0.1")])),
            (8, named(&[("epoch/eval_loss", "2.5"), ("sample", "    a\n    ```\n    b\n")])),
        ];
        assert_eq!(got, expected);
    }

    #[test]
    fn failed_writes_are_retried_without_duplicates() {
        let directory = tempfile::tempdir().expect("room");
        let run_dir = directory.path().join("run");
        let mut board = TensorBoard::new(&run_dir, &Settings::default());
        board.begin(0, std::iter::empty());
        let step = |step: u64| json!({ "event": "step", "step": step, "loss": 1.0 });
        board.push(&step(1));
        assert!(board.flush().is_err(), "there is no directory");
        fs::create_dir(&run_dir).expect("room");
        board.push(&step(2));
        board.flush().expect("room");
        board.push(&step(3));
        board.flush().expect("room");
        let files = event_files(&run_dir).expect("readable");
        assert_eq!(files, [run_dir.join("events.out.tfevents.0000000001.folio")]);
        let steps: Vec<i64> =
            read_events(&fs::read(&files[0]).expect("a file")).iter().map(|event| event.step).collect();
        // The version, the start, the settings, and three steps.
        assert_eq!(steps, [0, 0, 0, 1, 2, 3]);
    }
}
