//! Checkpoints: `checkpoint_N/`, what a run is after epoch N.
//!
//! - `model.safetensors`: the weights under Hugging Face's GPT-2 names, `config.json` beside them, so that
//!   `GPT2LMHeadModel.from_pretrained` reads the directory as it is;
//! - `optimizer.safetensors`: AdamW's two means, as `mean.NAME` and `square.NAME`;
//! - `state.json`: steps, random streams and histories.
//!
//! A checkpoint is filled under a temporary name and renamed, so that one that exists is whole.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::{read_json, write_atomic, write_directory_atomic, write_json};
use crate::history::History;
use crate::model::{ModelConfig, ParameterSpec, Parameters};
use crate::optim::{AdamW, AdamWConfig};
use crate::rng::Rng;

/// The version of [`TrainingState`]; a reader refuses others.
pub const FORMAT: u32 = 1;

const MODEL_FILE: &str = "model.safetensors";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const STATE_FILE: &str = "state.json";

/// What a run is made of besides weights and optimizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingState {
    /// [`FORMAT`].
    pub format: u32,
    /// Epochs ended.
    pub epoch: u64,
    /// Optimizer steps taken.
    pub global_step: u64,
    /// The epoch and the step at which the schedule began to count: 0 unless it was restarted.
    pub schedule_start: ScheduleStart,
    /// The stream that orders the blocks of the next epoch.
    pub order: Rng,
    /// The stream that keys the dropout of the next step.
    pub dropout: Rng,
    /// The losses and rates so far.
    pub history: History,
}

/// Where a schedule begins to count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleStart {
    /// Epochs ended by then.
    pub epoch: u64,
    /// Steps taken by then.
    pub step: u64,
}

/// Writes the checkpoint `directory`, in place of one that stood there.
pub fn save(
    directory: &Path,
    config: &ModelConfig,
    parameters: &Parameters,
    optimizer: &AdamW,
    state: &TrainingState,
) -> Result<()> {
    write_directory_atomic(directory, |inside| {
        let specs = parameters.specs();
        let weights = tensors(specs, "", parameters.values());
        write_tensors(&inside.join(MODEL_FILE), weights)?;
        let mean = tensors(specs, "mean.", optimizer.mean());
        let square = tensors(specs, "square.", optimizer.square());
        write_tensors(&inside.join(OPTIMIZER_FILE), mean.chain(square))?;
        write_json(&inside.join("config.json"), &hugging_face_config(config))?;
        write_json(&inside.join(STATE_FILE), state)
    })
}

/// Reads the weights of a checkpoint.
///
/// # Errors
/// If a tensor is missing, of another shape than `config` asks for, or not finite in number.
pub fn load_parameters(directory: &Path, config: &ModelConfig) -> Result<Parameters> {
    let mut parameters = Parameters::zeros(config);
    let path = directory.join(MODEL_FILE);
    let bytes = fs::read(&path).map_err(Error::file("read", &path))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| damaged(&path, &error))?;
    for spec in parameters.specs().to_vec() {
        let values = &mut parameters.values_mut()[spec.range.clone()];
        read_tensor(&path, &tensors, &spec.name, &spec, values)?;
    }
    Ok(parameters)
}

/// Reads the optimizer and the state of a checkpoint.
pub fn load_training(
    directory: &Path,
    specs: &[ParameterSpec],
    config: AdamWConfig,
) -> Result<(AdamW, TrainingState)> {
    let state: TrainingState = read_json(&directory.join(STATE_FILE))?;
    if state.format != FORMAT {
        let reason =
            format!("has format {}, this folio reads {FORMAT}: use the folio that wrote it", state.format);
        return Err(Error::Checkpoint { path: directory.join(STATE_FILE), reason });
    }
    let path = directory.join(OPTIMIZER_FILE);
    let bytes = fs::read(&path).map_err(Error::file("read", &path))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| damaged(&path, &error))?;
    let count = specs.last().map_or(0, |spec| spec.range.end);
    let (mut mean, mut square) = (vec![0.0; count], vec![0.0; count]);
    for spec in specs {
        read_tensor(&path, &tensors, &format!("mean.{}", spec.name), spec, &mut mean[spec.range.clone()])?;
        read_tensor(
            &path,
            &tensors,
            &format!("square.{}", spec.name),
            spec,
            &mut square[spec.range.clone()],
        )?;
    }
    Ok((AdamW::from_state(config, state.global_step, mean, square), state))
}

/// The tensors of `values` as the safetensors library takes them, each under a prefix.
fn tensors<'a>(
    specs: &'a [ParameterSpec],
    prefix: &'a str,
    values: &'a [f32],
) -> impl Iterator<Item = (String, &'a [usize], Vec<u8>)> {
    specs.iter().map(move |spec| {
        let bytes = values[spec.range.clone()].iter().flat_map(|value| value.to_le_bytes()).collect();
        (format!("{prefix}{}", spec.name), spec.shape.as_slice(), bytes)
    })
}

fn write_tensors<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (String, &'a [usize], Vec<u8>)>,
) -> Result<()> {
    let tensors: Vec<_> = tensors.collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view =
            TensorView::new(Dtype::F32, shape.to_vec(), bytes).expect("as many bytes as the shape says");
        (name.as_str(), view)
    });
    // The one metadata entry that transformers asks for.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(views, Some(metadata)).expect("every name once");
    write_atomic(path, &bytes)
}

fn read_tensor(
    path: &Path,
    tensors: &SafeTensors,
    name: &str,
    spec: &ParameterSpec,
    values: &mut [f32],
) -> Result<()> {
    let wrong = |reason: String| Error::Checkpoint { path: path.to_path_buf(), reason };
    let tensor = tensors
        .tensor(name)
        .map_err(|_| wrong(format!("lacks the tensor {name}: it is of another model")))?;
    if tensor.dtype() != Dtype::F32 || tensor.shape() != spec.shape {
        let (kind, shape, want) = (tensor.dtype(), tensor.shape(), &spec.shape);
        return Err(wrong(format!(
            "{name} is {kind:?} {shape:?}, the model needs F32 {want:?}: give the sizes that the run was trained with"
        )));
    }
    for (value, bytes) in values.iter_mut().zip(tensor.data().chunks_exact(4)) {
        *value = f32::from_le_bytes(bytes.try_into().expect("four bytes"));
    }
    Ok(())
}

fn damaged(path: &Path, error: &dyn std::fmt::Display) -> Error {
    let reason = format!("is damaged ({error}): take another checkpoint of the run");
    Error::Checkpoint { path: PathBuf::from(path), reason }
}

/// The `config.json` by which transformers builds the same model.
fn hugging_face_config(config: &ModelConfig) -> serde_json::Value {
    serde_json::json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_embd": config.n_emb,
        "n_layer": config.n_blocks,
        "n_head": config.n_heads,
        "n_inner": null,
        "layer_norm_epsilon": 1e-5,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "tie_word_embeddings": true,
        "bos_token_id": null,
        "eos_token_id": null,
        "torch_dtype": "float32",
    })
}
