//! Event files for TensorBoard.
//!
//! A file is a row of records (TensorFlow's `record_writer`): the length of what follows as u64, the masked CRC-32C of
//! these eight bytes, a message, and its masked CRC-32C, all little-endian. The messages are those of TensorFlow's
//! `event.proto`, `summary.proto` and `tensor.proto`, with the fields used here.

use std::path::Path;

use prost::{Message, Oneof};

use super::journal::Journal;
use super::unix_time;
use crate::error::Result;
use crate::run_dir::EVENT_FILES;
use crate::settings::Settings;
use crate::train::Event;

/// Writes an event file; every start of a run has its own.
pub(super) struct TensorBoard {
    journal: Journal,
    /// The settings as they are shown.
    settings: String,
}

impl TensorBoard {
    pub(super) fn new(run_dir: &Path, settings: &Settings) -> Self {
        // TensorBoard reads files in the order of their names; a run may start twice in a second.
        let name = format!("{EVENT_FILES}{:.6}.folio.{}", unix_time(), std::process::id());
        let shown = serde_json::to_string_pretty(settings).expect("settings are JSON");
        Self { journal: Journal::new(run_dir.join(name)), settings: shown }
    }

    pub(super) fn flush(&mut self) -> Result<()> {
        self.journal.flush()
    }

    pub(super) fn on_event(&mut self, event: &Event, tokens_per_s: f64) {
        match event {
            Event::Started { step, .. } => {
                self.push(0, What::FileVersion("brain.Event:2".to_owned()));
                // TensorBoard drops what an earlier file has of this step and later ones.
                let next = *step as i64 + 1;
                self.push(next, What::SessionLog(SessionLog { status: SessionLog::START }));
                let settings = text("settings", &self.settings);
                self.push(next, What::Summary(Summary { value: vec![settings] }));
            }
            Event::Step(report) => {
                let value = vec![
                    scalar("loss/step", f64::from(report.loss)),
                    scalar("learning_rate", report.learning_rate),
                    scalar("gradient_norm", report.gradient_norm),
                    scalar("tokens_per_s", tokens_per_s),
                ];
                self.push(report.step as i64, What::Summary(Summary { value }));
            }
            Event::EpochEnded { report, sample, .. } => {
                let mut value = vec![
                    scalar("loss/train", report.train_loss),
                    scalar("loss/eval", report.eval_loss),
                    scalar("bits_per_character/train", report.train_bits.per_character),
                    scalar("bits_per_character/eval", report.eval_bits.per_character),
                    scalar("bits_per_byte/train", report.train_bits.per_byte),
                    scalar("bits_per_byte/eval", report.eval_bits.per_byte),
                ];
                value.extend(sample.as_ref().map(|sample| text("sample", sample)));
                self.push(report.step as i64, What::Summary(Summary { value }));
            }
            Event::EpochStarted { .. }
            | Event::Saving
            | Event::Saved { .. }
            | Event::Evaluating
            | Event::Warning { .. } => {}
        }
    }

    fn push(&mut self, step: i64, what: What) {
        let message = EventMessage { wall_time: unix_time(), step, what: Some(what) };
        self.journal.push(&record(&message.encode_to_vec()));
    }
}

fn scalar(tag: &str, value: f64) -> Value {
    Value { tag: tag.to_owned(), content: Some(Content::SimpleValue(value as f32)), metadata: None }
}

/// Text, which TensorBoard takes for Markdown: indented, so that it is shown as it is.
fn text(tag: &str, content: &str) -> Value {
    let indented: String = content.lines().map(|line| format!("    {line}\n")).collect();
    let plugin_data = Some(PluginData { plugin_name: "text".to_owned() });
    let tensor =
        Tensor { dtype: Tensor::STRING, shape: Some(TensorShape {}), string_val: vec![indented.into()] };
    Value {
        tag: tag.to_owned(),
        content: Some(Content::Tensor(tensor)),
        metadata: Some(SummaryMetadata { plugin_data }),
    }
}

/// A message in its frame.
fn record(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let [length_crc, message_crc] = [&length, message].map(|bytes| masked_crc(bytes).to_le_bytes());
    [&length[..], &length_crc, message, &message_crc].concat()
}

/// The CRC-32C, masked so that the CRC of something that holds CRCs is sound (TensorFlow's `crc32c.h`).
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xA282_EAD8)
}

/// `Event`
#[derive(Message)]
struct EventMessage {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

impl SessionLog {
    /// `SessionStatus.START`
    const START: i32 = 1;
}

#[derive(Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

/// `Summary.Value`
#[derive(Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(message, optional, tag = "9")]
    metadata: Option<SummaryMetadata>,
    #[prost(oneof = "Content", tags = "2, 8")]
    content: Option<Content>,
}

#[derive(Oneof)]
enum Content {
    #[prost(float, tag = "2")]
    SimpleValue(f32),
    #[prost(message, tag = "8")]
    Tensor(Tensor),
}

#[derive(Message)]
struct SummaryMetadata {
    #[prost(message, optional, tag = "1")]
    plugin_data: Option<PluginData>,
}

#[derive(Message)]
struct PluginData {
    #[prost(string, tag = "1")]
    plugin_name: String,
}

/// `TensorProto`
#[derive(Message)]
struct Tensor {
    #[prost(int32, tag = "1")]
    dtype: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<TensorShape>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    string_val: Vec<Vec<u8>>,
}

impl Tensor {
    /// `DT_STRING`
    const STRING: i32 = 7;
}

/// `TensorShapeProto`, that of a scalar.
#[derive(Message)]
struct TensorShape {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_standard() {
        // RFC 3720, B.4: 32 bytes of zeros.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8A91_36AA);
        // Turned right by 15 bits, and 0xA282EAD8 added.
        assert_eq!(masked_crc(&[0; 32]), 0x0FD7_FFFA);
    }

    #[test]
    fn a_record_can_be_read_back() {
        let value = vec![scalar("loss", 1.5), text("sample", "two\nlines")];
        let message = EventMessage { wall_time: 2.0, step: 7, what: Some(What::Summary(Summary { value })) };
        let bytes = record(&message.encode_to_vec());
        let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
        assert_eq!(u64::from_le_bytes(*length) as usize, bytes.len() - 16);
        assert_eq!(rest[..4], masked_crc(length).to_le_bytes());
        let body = &rest[4..rest.len() - 4];
        assert_eq!(rest[rest.len() - 4..], masked_crc(body).to_le_bytes());
        let read = EventMessage::decode(body).unwrap();
        assert_eq!((read.wall_time, read.step), (2.0, 7));
        let Some(What::Summary(summary)) = read.what else { panic!("a summary") };
        assert!(matches!(summary.value[0].content, Some(Content::SimpleValue(1.5))));
        let Some(Content::Tensor(tensor)) = &summary.value[1].content else { panic!("a text") };
        assert_eq!(tensor.string_val, [b"    two\n    lines\n"]);
    }
}
