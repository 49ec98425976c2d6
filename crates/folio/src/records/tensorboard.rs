//! EventMessage files, by which TensorBoard shows a run.
//!
//! They lie in the run's directory itself, so that `tensorboard --logdir runs` calls runs what their directories are
//! called. A file is a row of records, all numbers little-endian:
//!
//! ```text
//! u64 length    u32 masked CRC of the length    an event of so many bytes    u32 masked CRC of the event
//! ```
//!
//! The format is TensorFlow's: core/lib/io/record_writer.h, and core/lib/hash/crc32c.h for the mask.
//!
//! Every start of a run begins a file of its own with a START at the step it goes on from, upon which TensorBoard
//! forgets what it was told from that step on: the steps of a run that was killed after its last save. The records of
//! that step itself are told again, but for those of an epoch that has still to end.

use std::path::{Path, PathBuf};

use prost::Message;
use serde_json::Value;

use super::{append, since_1970};
use crate::error::Result;
use crate::run_dir::next_event_file;
use crate::settings::Settings;

mod proto;

use proto::{EventMessage, SessionLog, Summary, SummaryValue};

/// What TensorBoard knows the format of the events by.
const VERSION: &str = "brain.Event:2";

/// Writes an event file.
pub(super) struct TensorBoard {
    run_dir: PathBuf,
    /// None before there was room for it.
    file: Option<PathBuf>,
    settings: Value,
    /// Records that are not written yet; they wait here while the disk is full.
    waiting: Vec<u8>,
}

impl TensorBoard {
    pub(super) fn new(run_dir: &Path, settings: &Settings) -> Self {
        let settings = serde_json::to_value(settings).expect("settings are JSON");
        Self { run_dir: run_dir.to_path_buf(), file: None, settings, waiting: Vec::new() }
    }

    /// Begins at `step`, whose records were written before if the run goes on.
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

    /// Takes one record of metrics.jsonl.
    pub(super) fn push(&mut self, record: &Value) {
        let (Some(kind @ ("step" | "epoch")), Some(step)) =
            (record["event"].as_str(), record["step"].as_u64())
        else {
            return;
        };
        let record = record.as_object().expect("it has keys");
        let told = record.iter().filter(|(key, _)| !matches!(key.as_str(), "step" | "epoch"));
        let values = told.filter_map(|(key, value)| match value {
            // Numbers that are not finite have no form in JSON: there is a gap in the curve.
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
        self.waiting.extend_from_slice(&length);
        self.waiting.extend_from_slice(&masked_crc(&length).to_le_bytes());
        self.waiting.extend_from_slice(&event);
        self.waiting.extend_from_slice(&masked_crc(&event).to_le_bytes());
    }

    /// Appends the records that wait.
    pub(super) fn flush(&mut self) -> Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let path = match &self.file {
            Some(path) => path.clone(),
            None => next_event_file(&self.run_dir)?,
        };
        append(&path, &self.waiting)?;
        self.waiting.clear();
        self.file = Some(path);
        Ok(())
    }
}

/// A text as Markdown shows it unchanged: indented by four spaces.
fn verbatim(text: &str) -> String {
    text.split('\n').map(|line| format!("    {line}\n")).collect()
}

/// A CRC in disguise, since the CRC of bytes that hold a CRC is a weak one.
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

    /// The events of a file, every length and CRC of which is checked.
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

    /// The curves as TensorBoard shows them: what follows a START makes it forget what came before, from that step on.
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
    fn the_first_bytes_are_those_of_every_event_file() {
        let mut board = TensorBoard::new(Path::new(""), &Settings::default());
        board.begin(0, std::iter::empty());
        // An event of 24 bytes, a length whose CRC TensorFlow writes so.
        assert_eq!(board.waiting[..12], *b"\x18\0\0\0\0\0\0\0\xa3\x7f\x4b\x22");
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
        let told = |event: EventMessage| {
            let values = event.summary.expect("a summary").value.into_iter();
            let value = |value: SummaryValue| {
                let text = value.tensor.map(|tensor| tensor.string_val[0].clone());
                let text = text.map(|text| String::from_utf8(text).expect("UTF-8"));
                (value.tag, text.unwrap_or_else(|| value.simple_value.expect("a number").to_string()))
            };
            (event.step, values.map(value).collect::<Vec<_>>())
        };
        let told: Vec<_> = read_events(&board.waiting).into_iter().map(told).collect();
        let named = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(tag, value)| ((*tag).to_owned(), (*value).to_owned())).collect::<Vec<_>>()
        };
        let expected = [
            (7, named(&[("step/loss", "1.5"), ("step/lr", "0.1")])),
            (8, named(&[("step/lr", "0.1")])),
            (8, named(&[("epoch/eval_loss", "2.5"), ("sample", "    a\n    ```\n    b\n")])),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn what_cannot_be_written_is_written_once_when_it_can() {
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
