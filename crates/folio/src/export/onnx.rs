//! ONNX, which onnxruntime and many other programs read: logits from ids.
//!
//! The input [`INPUT`] has ids (batch, time) as int64, the output [`OUTPUT`] logits (batch, time, vocabulary) as f32. Batch
//! and time are free, up to the model's context. There is no KV cache. The tokenizer is not part of the file: the format hf
//! has it as tokenizer.json.
//!
//! A protobuf message ends at 2 GiB. The weights of a larger model are in a second file, [`data_path`].

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use crate::error::{Error, Result};
use crate::export::{TrainedModel, WeightType, not_held};
use crate::files::stream_atomic;
use crate::model::ParameterSpec;

mod graph;
pub mod proto;

use proto::{
    EXTERNAL, FLOAT, GRAPH_FIELD, INITIALIZER_FIELD, ModelProto, OperatorSet, RAW_DATA_FIELD, StringEntry,
    TensorProto,
};

/// The name of the graph's input.
pub const INPUT: &str = "input_ids";
/// The name of the graph's output.
pub const OUTPUT: &str = "logits";

/// The first bytes of every file: the version of the format, and folio's name.
pub const BEGINNING: &[u8] = b"\x08\x08\x12\x05folio";

/// The version of the format, which goes with opset 17 (ONNX 1.12).
const IR_VERSION: i64 = 8;
const OPSET: i64 = 17;

/// Larger files have their weights in a second file. The limit of protobuf is 2^31 - 1 bytes.
const MOST_BYTES: u64 = 2_000_000_000;

/// The file of the weights of a model that is too large for one file.
pub fn data_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".data");
    path.with_file_name(name)
}

/// Writes a model.
///
/// # Errors
/// [`Error::Export`] if a weight is not finite; [`Error::File`] if the file cannot be written.
pub fn write(model: &TrainedModel<'_>, path: &Path) -> Result<()> {
    write_limited(model, path, MOST_BYTES)
}

/// [`write()`] with the weights in a second file if they have more bytes than this.
fn write_limited(model: &TrainedModel<'_>, path: &Path, most_bytes: u64) -> Result<()> {
    let parameters = model.parameters;
    for spec in parameters.specs() {
        if let Some(value) = parameters.tensor(spec).iter().find(|value| !value.is_finite()) {
            return Err(not_held(spec, *value, WeightType::F32));
        }
    }
    let is_divided = size_of_val(parameters.values()) as u64 > most_bytes;
    let data = is_divided.then(|| data_path(path));
    if let Some(data) = &data {
        stream_atomic(data, |file| {
            write_values(parameters.values(), file).map_err(Error::file("write", data))
        })?;
    }
    stream_atomic(path, |file| write_model(model, data.as_deref(), file).map_err(Error::file("write", path)))
}

/// Writes the message. Nested messages have their length before them, so that those of the weights are computed first.
fn write_model(model: &TrainedModel<'_>, data: Option<&Path>, file: &mut dyn Write) -> io::Result<()> {
    let head = ModelProto {
        ir_version: IR_VERSION,
        producer_name: "folio".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        graph: None,
        opset_import: vec![OperatorSet { domain: String::new(), version: OPSET }],
    };
    let graph = graph::graph(&model.config, model.name).encode_to_vec();
    let heads: Vec<TensorHead<'_>> =
        model.parameters.specs().iter().map(|spec| TensorHead::of(spec, data)).collect();
    let length = graph.len() as u64 + heads.iter().map(TensorHead::field_bytes).sum::<u64>();
    file.write_all(&head.encode_to_vec())?;
    file.write_all(&key(GRAPH_FIELD, length))?;
    file.write_all(&graph)?;
    for head in heads {
        file.write_all(&key(INITIALIZER_FIELD, head.bytes()))?;
        file.write_all(&head.encoded)?;
        if head.inline_bytes > 0 {
            file.write_all(&key(RAW_DATA_FIELD, head.inline_bytes))?;
            write_values(model.parameters.tensor(head.spec), file)?;
        }
    }
    Ok(())
}

fn write_values(values: &[f32], file: &mut dyn Write) -> io::Result<()> {
    let mut bytes = Vec::new();
    for part in values.chunks(1 << 16) {
        bytes.clear();
        WeightType::F32.encode(part, &mut bytes).expect("checked before");
        file.write_all(&bytes)?;
    }
    Ok(())
}

/// The key and the length of a field that has bytes or a message.
fn key(field: u32, length: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_key(field, WireType::LengthDelimited, &mut bytes);
    encode_varint(length, &mut bytes);
    bytes
}

/// The message of a parameter, without its values.
struct TensorHead<'a> {
    spec: &'a ParameterSpec,
    encoded: Vec<u8>,
    /// The bytes of the values, 0 if they are in another file.
    inline_bytes: u64,
}

impl<'a> TensorHead<'a> {
    fn of(spec: &'a ParameterSpec, data: Option<&Path>) -> Self {
        let [start, length] = [spec.range.start, spec.range.len()].map(|count| 4 * count as u64);
        let mut tensor = TensorProto {
            dims: spec.shape.iter().map(|&size| size as i64).collect(),
            data_type: FLOAT,
            name: spec.name.clone(),
            ..TensorProto::default()
        };
        if let Some(data) = data {
            let location = data.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let entries =
                [("location", location), ("offset", start.to_string()), ("length", length.to_string())];
            tensor.external_data =
                entries.map(|(key, value)| StringEntry { key: key.to_owned(), value }).to_vec();
            tensor.data_location = EXTERNAL;
        }
        let inline_bytes = if data.is_some() { 0 } else { length };
        Self { spec, encoded: tensor.encode_to_vec(), inline_bytes }
    }

    /// The length of the message with its values.
    fn bytes(&self) -> u64 {
        let values = if self.inline_bytes == 0 { 0 } else { field_bytes(self.inline_bytes) };
        self.encoded.len() as u64 + values
    }

    /// The length of the field of the message in its graph.
    fn field_bytes(&self) -> u64 {
        field_bytes(self.bytes())
    }
}

/// The length of a field with its key, which has one byte, and its own length.
fn field_bytes(length: u64) -> u64 {
    1 + encoded_len_varint(length) as u64 + length
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ModelConfig, Parameters};
    use crate::rng::{Rng, Stream};
    use crate::tokenizer::Tokenizer;

    #[test]
    fn weights_of_large_models_are_in_a_second_file() {
        let tokenizer = Tokenizer::chars("abcde");
        let sizes = ModelConfig {
            vocab_size: 5,
            n_blocks: 1,
            n_emb: 4,
            n_heads: 2,
            block_size: 3,
            ..ModelConfig::GPT2
        };
        let parameters = Parameters::random(&sizes, &mut Rng::new(1, Stream::Init));
        let model =
            TrainedModel { name: "large", config: sizes, parameters: &parameters, tokenizer: &tokenizer };
        let place = tempfile::tempdir().expect("a temporary directory");
        let (path, data) = (place.path().join("large.onnx"), place.path().join("large.onnx.data"));
        let weight_bytes = size_of_val(parameters.values()) as u64;
        write_limited(&model, &path, weight_bytes).expect("it fits");
        assert!(!data.exists());

        write_limited(&model, &path, weight_bytes - 1).expect("it fits");
        let bytes = std::fs::read(&data).expect("there");
        let file = ModelProto::decode(std::fs::read(&path).expect("there").as_slice()).expect("valid");
        let tensors = file.graph.expect("a graph").initializer;
        for spec in parameters.specs() {
            let tensor = tensors.iter().find(|tensor| tensor.name == spec.name).expect("there");
            assert_eq!((tensor.data_location, tensor.raw_data.len()), (EXTERNAL, 0), "{}", spec.name);
            let entry = |key: &str| {
                let found = tensor.external_data.iter().find(|entry| entry.key == key);
                found.unwrap_or_else(|| panic!("{} has no {key}", spec.name)).value.as_str()
            };
            assert_eq!(entry("location"), "large.onnx.data");
            let [offset, length] =
                ["offset", "length"].map(|key| entry(key).parse::<usize>().expect("a number"));
            let values = WeightType::F32.decode(&bytes[offset..][..length]);
            assert_eq!(values, parameters.tensor(spec), "{}", spec.name);
        }
    }
}
