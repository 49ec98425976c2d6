//! A directory for Hugging Face's transformers: `from_pretrained` and `pipeline` load it as it is.
//!
//! These are the files of a checkpoint without the state of the run, so that the directory can be published.

use std::borrow::Cow;
use std::path::Path;

use safetensors::tensor::{Dtype, View};
use serde_json::Value;

use crate::checkpoint::MODEL_FILE;
use crate::checkpoint::tensors;
use crate::checkpoint::transformers::{self, CONFIG_FILE};
use crate::error::Result;
use crate::export::{TrainedModel, WeightType, check_sizes, not_held, refused};
use crate::files::{read_json, write_directory_atomic, write_json};

/// The names of the files that [`write()`] writes.
pub fn file_names() -> impl Iterator<Item = &'static str> {
    transformers::FILES.into_iter().chain([MODEL_FILE])
}

/// A tensor that is converted when it is written.
struct Tensor<'a> {
    shape: &'a [usize],
    values: &'a [f32],
    weight_type: WeightType,
}

impl View for Tensor<'_> {
    fn dtype(&self) -> Dtype {
        dtype(self.weight_type).0
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = Vec::with_capacity(self.data_len());
        self.weight_type.encode(self.values, &mut bytes).expect("checked before");
        bytes.into()
    }

    fn data_len(&self) -> usize {
        self.weight_type.bytes(self.values.len() as u64) as usize
    }
}

/// The names of a type in safetensors and in PyTorch.
fn dtype(weight_type: WeightType) -> (Dtype, &'static str) {
    match weight_type {
        WeightType::F32 => (Dtype::F32, "float32"),
        WeightType::F16 => (Dtype::F16, "float16"),
        WeightType::Bf16 => (Dtype::BF16, "bfloat16"),
        WeightType::Q8_0 => unreachable!("refused before"),
    }
}

/// Writes a directory, replacing what was there.
///
/// # Errors
/// [`Error::Export`](crate::error::Error::Export) if the type is q8_0, or cannot hold a weight;
/// [`Error::File`](crate::error::Error::File) if something cannot be written.
pub fn write(model: &TrainedModel<'_>, weight_type: WeightType, directory: &Path) -> Result<()> {
    check_sizes(model)?;
    if weight_type == WeightType::Q8_0 {
        return Err(refused("q8_0 is a type of GGUF only; use f32, f16 or bf16".to_owned()));
    }
    for spec in model.parameters.specs() {
        let is_held = |value: f32| weight_type.holds(value);
        if let Some(value) = model.parameters.tensor(spec).iter().copied().find(|value| !is_held(*value)) {
            return Err(not_held(spec, value, weight_type));
        }
    }
    write_directory_atomic(directory, |inside| {
        transformers::write(inside, &model.config, model.tokenizer)?;
        let config_path = inside.join(CONFIG_FILE);
        let mut config: Value = read_json(&config_path)?;
        config["torch_dtype"] = dtype(weight_type).1.into();
        write_json(&config_path, &config)?;
        write_tensors(model, weight_type, &inside.join(MODEL_FILE))
    })
}

fn write_tensors(model: &TrainedModel<'_>, weight_type: WeightType, path: &Path) -> Result<()> {
    let converted = model.parameters.specs().iter().map(|spec| {
        let values = model.parameters.tensor(spec);
        (&spec.name, Tensor { shape: &spec.shape, values, weight_type })
    });
    tensors::serialize(path, converted)
}
