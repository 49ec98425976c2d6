//! The parameters of a GPT-2: their names, order and shapes, declared once.

use std::ops::Range;

use folio_kernels::buffer::Buffer;

use super::ModelConfig;
use crate::rng::Rng;

/// Standard deviation of the initial weights (Radford et al. 2018, "Improving Language Understanding by
/// Generative Pre-Training", section 4.1).
const INIT_STD: f64 = 0.02;

/// The tensors of one block.
const PER_BLOCK: usize = 12;

/// One parameter tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterSpec {
    /// Its name in Hugging Face's GPT-2.
    pub name: String,
    /// Its shape; linear weights are (inputs, outputs), Hugging Face's `Conv1D`.
    pub shape: Vec<usize>,
    /// Its place in the flat array of all parameters.
    pub range: Range<usize>,
    init: Init,
}

/// How a parameter is initialized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Init {
    Zeros,
    Ones,
    /// N(0, 0.02).
    Normal,
    /// N(0, 0.02 / sqrt(2 L)): the 2 L projections that add to the residual stream (Radford et al. 2019,
    /// section 2.3).
    Residual,
}

impl ParameterSpec {
    /// Whether weight decay applies to this parameter by default: matrices (embeddings and linear weights) decay, vectors
    /// (biases and LayerNorm) do not.
    pub fn is_matrix(&self) -> bool {
        self.shape.len() >= 2
    }

    /// Whether it is the token or the position embedding.
    pub fn is_embedding(&self) -> bool {
        self.name.starts_with("wte.") || self.name.starts_with("wpe.")
    }

    /// The number of its block; none if it is not in a block.
    pub fn block(&self) -> Option<usize> {
        self.name.strip_prefix("h.")?.split('.').next()?.parse().ok()
    }
}

/// Every parameter of a model, in order.
pub(super) fn specs(config: &ModelConfig) -> Vec<ParameterSpec> {
    let ModelConfig { vocab_size: v, n_blocks, n_emb: c, block_size, tie_word_embeddings, .. } = *config;
    let inner = config.inner();
    let mut list = SpecList::default();
    list.push("wte.weight", &[v, c], Init::Normal);
    list.push("wpe.weight", &[block_size, c], Init::Normal);
    for block in 0..n_blocks {
        let mut push =
            |name: &str, shape: &[usize], init| list.push(&format!("h.{block}.{name}"), shape, init);
        push("ln_1.weight", &[c], Init::Ones);
        push("ln_1.bias", &[c], Init::Zeros);
        push("attn.c_attn.weight", &[c, 3 * c], Init::Normal);
        push("attn.c_attn.bias", &[3 * c], Init::Zeros);
        push("attn.c_proj.weight", &[c, c], Init::Residual);
        push("attn.c_proj.bias", &[c], Init::Zeros);
        push("ln_2.weight", &[c], Init::Ones);
        push("ln_2.bias", &[c], Init::Zeros);
        push("mlp.c_fc.weight", &[c, inner], Init::Normal);
        push("mlp.c_fc.bias", &[inner], Init::Zeros);
        push("mlp.c_proj.weight", &[inner, c], Init::Residual);
        push("mlp.c_proj.bias", &[c], Init::Zeros);
    }
    list.push("ln_f.weight", &[c], Init::Ones);
    list.push("ln_f.bias", &[c], Init::Zeros);
    if !tie_word_embeddings {
        list.push("lm_head.weight", &[v, c], Init::Normal);
    }
    list.specs
}

#[derive(Default)]
struct SpecList {
    specs: Vec<ParameterSpec>,
}

impl SpecList {
    fn push(&mut self, name: &str, shape: &[usize], init: Init) {
        let start = self.specs.last().map_or(0, |spec| spec.range.end);
        let range = start..start + shape.iter().product::<usize>();
        self.specs.push(ParameterSpec { name: name.to_owned(), shape: shape.to_vec(), range, init });
    }
}

/// One value per parameter of a model: its weights, or their gradients.
#[derive(Clone, Debug)]
pub struct Parameters {
    specs: Vec<ParameterSpec>,
    values: Buffer<f32>,
}

/// The tensors of one block, in the order of [`specs`].
pub(super) struct Block<S> {
    /// (C)
    pub(super) ln_1_weight: S,
    /// (C)
    pub(super) ln_1_bias: S,
    /// (C, 3C)
    pub(super) c_attn_weight: S,
    /// (3C)
    pub(super) c_attn_bias: S,
    /// (C, C)
    pub(super) attn_proj_weight: S,
    /// (C)
    pub(super) attn_proj_bias: S,
    /// (C)
    pub(super) ln_2_weight: S,
    /// (C)
    pub(super) ln_2_bias: S,
    /// (C, I)
    pub(super) c_fc_weight: S,
    /// (I)
    pub(super) c_fc_bias: S,
    /// (I, C)
    pub(super) mlp_proj_weight: S,
    /// (C)
    pub(super) mlp_proj_bias: S,
}

/// The lengths of a block's vectors, in the order of [`BlockVectors`].
pub(super) fn vector_lengths(config: &ModelConfig) -> [usize; 8] {
    let (c, inner) = (config.n_emb, config.inner());
    [c, c, 3 * c, c, c, c, inner, c]
}

/// The vectors of one block: its biases and LayerNorms, in the order of [`specs`].
pub(super) struct BlockVectors<'a> {
    /// (C)
    pub(super) ln_1_weight: &'a mut [f32],
    /// (C)
    pub(super) ln_1_bias: &'a mut [f32],
    /// (3C)
    pub(super) c_attn_bias: &'a mut [f32],
    /// (C)
    pub(super) attn_proj_bias: &'a mut [f32],
    /// (C)
    pub(super) ln_2_weight: &'a mut [f32],
    /// (C)
    pub(super) ln_2_bias: &'a mut [f32],
    /// (I)
    pub(super) c_fc_bias: &'a mut [f32],
    /// (C)
    pub(super) mlp_proj_bias: &'a mut [f32],
}

impl<'a> BlockVectors<'a> {
    /// Divides an array that holds the vectors one after the other.
    pub(super) fn split(mut values: &'a mut [f32], config: &ModelConfig) -> Self {
        let [
            ln_1_weight,
            ln_1_bias,
            c_attn_bias,
            attn_proj_bias,
            ln_2_weight,
            ln_2_bias,
            c_fc_bias,
            mlp_proj_bias,
        ] = vector_lengths(config).map(|len| values.split_off_mut(..len).expect("as long as its parts"));
        Self {
            ln_1_weight,
            ln_1_bias,
            c_attn_bias,
            attn_proj_bias,
            ln_2_weight,
            ln_2_bias,
            c_fc_bias,
            mlp_proj_bias,
        }
    }
}

impl Parameters {
    /// All zeros.
    pub fn zeros(config: &ModelConfig) -> Self {
        let specs = specs(config);
        let count = specs.last().map_or(0, |spec| spec.range.end);
        Self { specs, values: Buffer::zeroed(count) }
    }

    /// GPT-2's initial weights: N(0, 0.02), the residual projections scaled by 1 / sqrt(2 L), biases 0 and
    /// LayerNorm weights 1.
    pub fn random(config: &ModelConfig, rng: &mut Rng) -> Self {
        let mut parameters = Self::zeros(config);
        let residual_std = INIT_STD / (2.0 * config.n_blocks as f64).sqrt();
        for spec in &parameters.specs {
            let values = &mut parameters.values[spec.range.clone()];
            match spec.init {
                Init::Zeros => values.fill(0.0),
                Init::Ones => values.fill(1.0),
                Init::Normal => values.fill_with(|| (INIT_STD * rng.normal()) as f32),
                Init::Residual => values.fill_with(|| (residual_std * rng.normal()) as f32),
            }
        }
        parameters
    }

    /// The parameters of a smaller model: of each tensor the first rows. The models differ in `vocab_size` or `block_size` alone.
    ///
    /// # Panics
    /// If the other model is larger, or of another width.
    pub fn first_rows(&self, config: &ModelConfig) -> Self {
        let mut smaller = Self::zeros(config);
        let Self { specs, values } = &mut smaller;
        assert_eq!(specs.len(), self.specs.len(), "as many tensors");
        for (spec, own) in specs.iter().zip(&self.specs) {
            assert_eq!(spec.shape[1..], own.shape[1..], "rows of {}", spec.name);
            values[spec.range.clone()].copy_from_slice(&self.tensor(own)[..spec.range.len()]);
        }
        smaller
    }

    /// Names, shapes and ranges, in order.
    pub fn specs(&self) -> &[ParameterSpec] {
        &self.specs
    }

    /// All values, tensor after tensor.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// All values, mutable.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// The values of one tensor.
    pub fn tensor(&self, spec: &ParameterSpec) -> &[f32] {
        &self.values[spec.range.clone()]
    }

    /// The token embedding (V, C).
    pub(super) fn wte(&self) -> &[f32] {
        self.tensor(&self.specs[0])
    }

    /// The position embedding (block_size, C).
    pub(super) fn wpe(&self) -> &[f32] {
        self.tensor(&self.specs[1])
    }

    /// The head's weights (V, C): those of the token embedding, unless there is a separate head.
    pub(super) fn head(&self) -> &[f32] {
        self.tensor(&self.specs[self.head_index()])
    }

    /// The head's place among the specs: after `ln_f`, or the token embedding's.
    fn head_index(&self) -> usize {
        head_index(&self.specs)
    }

    /// Weight and bias of the final LayerNorm, (C) each.
    pub(super) fn ln_f(&self) -> (&[f32], &[f32]) {
        let first = ln_f_index(&self.specs);
        (self.tensor(&self.specs[first]), self.tensor(&self.specs[first + 1]))
    }

    /// The tensors of a block.
    pub(super) fn block(&self, idx: usize) -> Block<&[f32]> {
        let mut specs = self.block_specs(idx).iter();
        Block::gather(|| self.tensor(specs.next().expect("as many specs as fields")))
    }

    fn block_specs(&self, idx: usize) -> &[ParameterSpec] {
        &self.specs[block_range(idx)]
    }

    /// All values, to be written from the last to the first.
    pub(super) fn split_mut(&mut self) -> ParametersMut<'_> {
        ParametersMut { specs: &self.specs, values: &mut self.values }
    }
}

/// Some of the values, from the first on, mutable.
pub(super) struct ParametersMut<'a> {
    specs: &'a [ParameterSpec],
    values: &'a mut [f32],
}

impl<'a> ParametersMut<'a> {
    /// Takes the values from `start` on.
    pub(super) fn split_off(&mut self, start: usize) -> &'a mut [f32] {
        self.values.split_off_mut(start..).expect("it is not behind the end")
    }

    /// The head's weights (V, C): those of the token embedding, unless there is a separate head.
    pub(super) fn head_mut(&mut self) -> &mut [f32] {
        let range = self.specs[head_index(self.specs)].range.clone();
        &mut self.values[range]
    }

    /// Whether the head has weights of its own.
    pub(super) fn has_separate_head(&self) -> bool {
        head_index(self.specs) > 0
    }

    /// The token and the position embedding.
    pub(super) fn embeddings_mut(&mut self) -> (&mut [f32], &mut [f32]) {
        self.values[..self.specs[1].range.end].split_at_mut(self.specs[0].range.len())
    }

    /// Weight and bias of the final LayerNorm.
    pub(super) fn ln_f_mut(&mut self) -> (&mut [f32], &mut [f32]) {
        let first = ln_f_index(self.specs);
        let range = self.specs[first].range.start..self.specs[first + 1].range.end;
        self.values[range].split_at_mut(self.specs[first].range.len())
    }

    /// The first value of the final LayerNorm. Only a separate head comes after it.
    pub(super) fn ln_f_start(&self) -> usize {
        self.specs[ln_f_index(self.specs)].range.start
    }

    /// The tensors of a block.
    pub(super) fn block_mut(&mut self, idx: usize) -> Block<&mut [f32]> {
        let specs = &self.specs[block_range(idx)];
        let mut rest = &mut self.values[specs[0].range.start..];
        let mut specs = specs.iter();
        Block::gather(|| {
            let length = specs.next().expect("as many specs as fields").range.len();
            rest.split_off_mut(..length).expect("the specs end inside the values")
        })
    }

    /// The first value of a block.
    pub(super) fn block_start(&self, idx: usize) -> usize {
        self.specs[block_range(idx).start].range.start
    }
}

/// The specs of a block's tensors. The two embeddings come before the first block.
fn block_range(idx: usize) -> Range<usize> {
    let first = 2 + idx * PER_BLOCK;
    first..first + PER_BLOCK
}

/// The place of `ln_f`'s weight among the specs: after the two embeddings and all blocks.
fn ln_f_index(specs: &[ParameterSpec]) -> usize {
    2 + (specs.len() - 4) / PER_BLOCK * PER_BLOCK
}

/// The head's place among the specs: after `ln_f`, or the token embedding's.
fn head_index(specs: &[ParameterSpec]) -> usize {
    let after = ln_f_index(specs) + 2;
    if after < specs.len() { after } else { 0 }
}

impl<S> Block<S> {
    /// Collects the slices, which `next` returns in the order of [`specs`].
    fn gather(mut next: impl FnMut() -> S) -> Self {
        Self {
            ln_1_weight: next(),
            ln_1_bias: next(),
            c_attn_weight: next(),
            c_attn_bias: next(),
            attn_proj_weight: next(),
            attn_proj_bias: next(),
            ln_2_weight: next(),
            ln_2_bias: next(),
            c_fc_weight: next(),
            c_fc_bias: next(),
            mlp_proj_weight: next(),
            mlp_proj_bias: next(),
        }
    }
}
