//! The part of TensorFlow's messages that folio writes, with their numbers from core/util/event.proto,
//! core/framework/{summary,tensor,tensor_shape}.proto, TensorBoard's plugins/hparams/plugin_data.proto and Google's
//! struct.proto. Where those have a `oneof`, one of several optional fields is set here, which is the same in bytes.

use std::collections::BTreeMap;

use prost::Message;
use serde_json::{Map, Value};

#[derive(Clone, PartialEq, Message)]
pub(super) struct EventMessage {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    pub(super) wall_time: f64,
    #[prost(int64, tag = "2")]
    pub(super) step: i64,
    #[prost(string, optional, tag = "3")]
    pub(super) file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    pub(super) summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    pub(super) session_log: Option<SessionLog>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SessionLog {
    #[prost(int32, tag = "1")]
    pub(super) status: i32,
}

impl SessionLog {
    /// The status of a session that begins.
    pub(super) const START: i32 = 1;
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Summary {
    #[prost(message, repeated, tag = "1")]
    pub(super) value: Vec<SummaryValue>,
}

/// `Summary.Value`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SummaryValue {
    #[prost(string, tag = "1")]
    pub(super) tag: String,
    #[prost(float, optional, tag = "2")]
    pub(super) simple_value: Option<f32>,
    #[prost(message, optional, tag = "8")]
    pub(super) tensor: Option<TensorProto>,
    #[prost(message, optional, tag = "9")]
    pub(super) metadata: Option<Metadata>,
}

/// `TensorProto`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TensorProto {
    #[prost(int32, tag = "1")]
    dtype: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
    #[prost(float, repeated, tag = "5")]
    float_val: Vec<f32>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    pub(super) string_val: Vec<Vec<u8>>,
}

/// `TensorShapeProto`; without dimensions it is the shape of a single value.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Shape {
    #[prost(message, repeated, tag = "2")]
    dim: Vec<Dimension>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Dimension {
    #[prost(int64, tag = "1")]
    size: i64,
}

/// `SummaryMetadata`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Metadata {
    #[prost(message, optional, tag = "1")]
    plugin_data: Option<PluginData>,
    #[prost(int32, tag = "4")]
    data_class: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PluginData {
    #[prost(string, tag = "1")]
    plugin_name: String,
    #[prost(bytes = "vec", tag = "2")]
    content: Vec<u8>,
}

/// `HParamsPluginData`, of version 0.
#[derive(Clone, PartialEq, Message)]
struct HyperparametersData {
    #[prost(message, optional, tag = "3")]
    session_start_info: Option<SessionStart>,
}

/// `SessionStartInfo`.
#[derive(Clone, PartialEq, Message)]
struct SessionStart {
    #[prost(btree_map = "string, message", tag = "1")]
    hyperparameters: BTreeMap<String, ProtoValue>,
    #[prost(double, tag = "5")]
    start_time_secs: f64,
}

/// `google.protobuf.Value`.
#[derive(Clone, PartialEq, Message)]
struct ProtoValue {
    #[prost(double, optional, tag = "2")]
    number: Option<f64>,
    #[prost(string, optional, tag = "3")]
    text: Option<String>,
    #[prost(bool, optional, tag = "4")]
    switch: Option<bool>,
}

/// `DataType`.
const DT_FLOAT: i32 = 1;
const DT_STRING: i32 = 7;
/// `DataClass`.
const DATA_CLASS_TENSOR: i32 = 2;

impl SummaryValue {
    /// A point of a curve.
    pub(super) fn scalar(tag: String, value: f32) -> Self {
        Self { tag, simple_value: Some(value), ..Self::default() }
    }

    /// A text in Markdown.
    pub(super) fn text(tag: &str, text: String) -> Self {
        let tensor = TensorProto {
            dtype: DT_STRING,
            shape: Some(Shape::default()),
            string_val: vec![text.into_bytes()],
            ..TensorProto::default()
        };
        let metadata = Metadata::of("text", Vec::new());
        Self { tag: tag.to_owned(), tensor: Some(tensor), metadata: Some(metadata), ..Self::default() }
    }

    /// The settings, for the table in which TensorBoard compares runs by them. Those that are unset are left out.
    pub(super) fn session_start(settings: &Map<String, Value>, start_time_secs: f64) -> Self {
        let setting = |value: &Value| ProtoValue {
            number: value.as_f64(),
            text: value.as_str().map(str::to_owned),
            switch: value.as_bool(),
        };
        let set = settings.iter().filter(|(_, value)| !value.is_null());
        let hyperparameters = set.map(|(key, value)| (key.clone(), setting(value))).collect();
        let session_start_info = Some(SessionStart { hyperparameters, start_time_secs });
        let content = HyperparametersData { session_start_info }.encode_to_vec();
        // All is in the metadata, but something has to stand in for a value.
        let shape = Shape { dim: vec![Dimension { size: 1 }] };
        let tensor = TensorProto {
            dtype: DT_FLOAT,
            shape: Some(shape),
            float_val: vec![0.0],
            ..TensorProto::default()
        };
        Self {
            tag: "_hparams_/session_start_info".to_owned(),
            tensor: Some(tensor),
            metadata: Some(Metadata::of("hparams", content)),
            ..Self::default()
        }
    }
}

impl Metadata {
    fn of(plugin: &str, content: Vec<u8>) -> Self {
        let plugin_data = Some(PluginData { plugin_name: plugin.to_owned(), content });
        Self { plugin_data, data_class: DATA_CLASS_TENSOR }
    }
}
