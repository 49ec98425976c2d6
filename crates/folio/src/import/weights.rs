//! From the tensors of other programs to parameters: names, shapes and the orientation of matrices.

use std::path::Path;

use super::description::{Description, described_by};
use super::tensors::{Tensors, plain};
use super::{Origin, wrong};
use crate::error::{Error, Result};
use crate::model::{ModelConfig, ParameterSpec, Parameters};

/// What wrappers of PyTorch put before every name: torch.compile, DistributedDataParallel, and GPT-2 with a head.
const PREFIXES: [&str; 3] = ["_orig_mod.", "module.", "transformer."];
const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "wte.weight";

/// The name of a tensor without what wrappers put before it.
pub(super) fn bare(name: &str) -> &str {
    PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).map_or(name, bare)
}

/// The model and its parameters. Shapes are checked before values are read.
pub(super) fn read(
    description: &Description,
    tensors: &mut Tensors,
    config_path: &Path,
) -> Result<(ModelConfig, Parameters)> {
    let mut config = config(description, tensors)?;
    // A model larger than the files is refused before memory is allocated for it. No number has less than two bytes.
    if 2 * config.matrix_elements() > u128::from(tensors.bytes) {
        let elements = config.matrix_elements();
        let reason = format!(
            "is too small for the model of {elements} weights that {} describes",
            by(description, config_path)
        );
        return Err(wrong(tensors.path(), reason));
    }
    let head = read_separate_head(description, &config, tensors)?;
    config.tie_word_embeddings = head.is_none();
    config
        .validate()
        .map_err(|error| wrong(config_path, format!("describes a model that is not possible: {error}")))?;
    let mut parameters = Parameters::zeros(&config);
    let specs = parameters.specs().to_vec();
    check_names(&specs, tensors)?;
    let is_linear = description.origin != Origin::Transformers;
    let lacks_biases = description.biases != Some(true)
        && !tensors.names().any(|name| name.ends_with(".bias") && !is_buffer(name));
    for spec in specs.iter().filter(|spec| spec.name != HEAD) {
        if lacks_biases && spec.name.ends_with(".bias") {
            continue;
        }
        let is_transposed = is_linear && is_linear_weight(&spec.name);
        let mut shape = spec.shape.clone();
        if is_transposed {
            shape.reverse();
        }
        check_shape(&spec.name, &shape, tensors, || by(description, config_path))?;
        let values = tensors.read(&spec.name)?;
        let target = &mut parameters.values_mut()[spec.range.clone()];
        if is_transposed { transpose(&values, shape[1], target) } else { target.copy_from_slice(&values) }
    }
    if let (Some(head), Some(spec)) = (head, specs.iter().find(|spec| spec.name == HEAD)) {
        parameters.values_mut()[spec.range.clone()].copy_from_slice(&head);
    }
    Ok((config, parameters))
}

fn by(description: &Description, config_path: &Path) -> String {
    described_by(description.origin, config_path)
}

/// The configuration: what is described, and the sizes of the tensors where nothing is.
fn config(description: &Description, tensors: &Tensors) -> Result<ModelConfig> {
    let size = |name: &str, axis: usize| {
        let shape = tensors.get(name).map(|stored| stored.shape.as_slice());
        match shape {
            Some(shape) if shape.len() == 2 => Ok(shape[axis]),
            _ => {
                let reason =
                    format!("has no matrix {name}, which every GPT-2 has: it is another model, or damaged");
                Err(wrong(tensors.path(), reason))
            }
        }
    };
    let (rows, width, positions) = (size(EMBEDDING, 0)?, size(EMBEDDING, 1)?, size("wpe.weight", 0)?);
    let numbers =
        tensors.names().filter_map(|name| name.strip_prefix("h.")?.split_once('.')?.0.parse::<usize>().ok());
    let blocks = numbers.max().map_or(0, |last| last.saturating_add(1));
    let Some(n_heads) = description.n_heads else {
        let reason = "does not say how many attention heads the model has, and no config.json beside it does: give \
                      `n_heads`";
        return Err(Error::Import { path: tensors.path().to_path_buf(), reason: reason.to_owned() });
    };
    let n_emb = description.n_emb.unwrap_or(width);
    let config = ModelConfig {
        vocab_size: description.vocab_size.unwrap_or(rows),
        n_blocks: description.n_blocks.unwrap_or(blocks),
        n_emb,
        n_heads,
        block_size: description.block_size.unwrap_or(positions),
        dropout: description.dropout as f32,
        n_inner: description.n_inner.filter(|&inner| inner != n_emb.saturating_mul(4)),
        activation: description.activation,
        layer_norm_epsilon: description.layer_norm_epsilon as f32,
        tie_word_embeddings: true,
    };
    config
        .validate()
        .map_err(|error| wrong(tensors.path(), format!("is of a model that is not possible: {error}")))?;
    // Each block has more tensors than this; otherwise a small file could name millions of blocks.
    if config.n_blocks > tensors.names().count() {
        let reason = format!("has {blocks} blocks, but the model is described with {}", config.n_blocks);
        return Err(wrong(tensors.path(), reason));
    }
    Ok(config)
}

/// The head, if it has weights of its own.
fn read_separate_head(
    description: &Description,
    config: &ModelConfig,
    tensors: &mut Tensors,
) -> Result<Option<Vec<f32>>> {
    if tensors.get(HEAD).is_none() {
        if description.tied == Some(true)
            || description.origin == Origin::Transformers && description.tied.is_none()
        {
            return Ok(None);
        }
        let reason = format!("lacks the tensor {HEAD}, the weights of the separate head");
        return Err(wrong(tensors.path(), reason));
    }
    let shape = [config.vocab_size, config.n_emb];
    for name in [HEAD, EMBEDDING] {
        check_shape(name, &shape, tensors, || "the model".to_owned())?;
    }
    let head = tensors.read(HEAD)?;
    if head == tensors.read(EMBEDDING)? {
        return Ok(None);
    }
    if description.tied == Some(true) {
        let reason = format!(
            "has a {HEAD} that differs from {EMBEDDING}, but is described as tied (tie_word_embeddings true): set it to \
             false, or save the model without {HEAD}"
        );
        return Err(wrong(tensors.path_of(HEAD), reason));
    }
    Ok(Some(head))
}

/// Refuses tensors that a GPT-2 does not have; other architectures have them.
fn check_names(specs: &[ParameterSpec], tensors: &Tensors) -> Result<()> {
    let known: std::collections::HashSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
    let unknown = tensors.names().find(|name| !known.contains(name) && !is_buffer(name) && *name != HEAD);
    match unknown {
        None => Ok(()),
        Some(name) => {
            let reason = format!("has the tensor {}, which a GPT-2 of this size does not have", plain(name));
            Err(wrong(tensors.path_of(name), reason))
        }
    }
}

/// Whether a tensor is a mask of attention, which is a constant.
fn is_buffer(name: &str) -> bool {
    name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias")
}

/// Whether a tensor is the matrix of a linear layer, which nanoGPT and minGPT store as (outputs, inputs).
fn is_linear_weight(name: &str) -> bool {
    name.starts_with("h.")
        && [".c_attn.weight", ".c_proj.weight", ".c_fc.weight"].iter().any(|end| name.ends_with(end))
}

fn check_shape(
    name: &str,
    want: &[usize],
    tensors: &Tensors,
    described_by: impl Fn() -> String,
) -> Result<()> {
    match tensors.get(name) {
        Some(stored) if stored.shape == want => Ok(()),
        Some(stored) => {
            let (shape, by) = (&stored.shape, described_by());
            let reason = format!("has {name} with the shape {shape:?}, but according to {by} it is {want:?}");
            Err(wrong(tensors.path_of(name), reason))
        }
        None => Err(wrong(tensors.path(), format!("lacks the tensor {name}: it is incomplete"))),
    }
}

/// Transposes a matrix of rows of `columns` elements.
fn transpose(values: &[f32], columns: usize, target: &mut [f32]) {
    let rows = values.len() / columns;
    for (row, values) in values.chunks_exact(columns).enumerate() {
        values.iter().enumerate().for_each(|(column, value)| target[column * rows + row] = *value);
    }
}
