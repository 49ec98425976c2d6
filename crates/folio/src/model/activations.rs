//! The buffers of a forward and a backward pass, allocated once for the largest batch.

use folio_kernels::attention;
use folio_kernels::dims::AttentionDims;
use folio_kernels::layernorm::layernorm_scratch;
use folio_kernels::linear::column_sums_scratch;

use super::ModelConfig;

/// What a pass writes down. Inference keeps one block's activations at a time, training all of them.
pub(super) struct Activations {
    pub(super) capacity: Capacity,
    /// The residual stream, (B, T, C) each: after the embeddings, then after every block. Inference has two and
    /// takes turns.
    pub(super) residual: Vec<Vec<f32>>,
    /// One for each block, or one in all.
    pub(super) blocks: Vec<BlockActivations>,
    /// (B, T): of the final LayerNorm.
    pub(super) ln_f: LayerNormStatistics,
    pub(super) shared: Shared,
    /// (rows of [`Capacity::head_rows`], V): the logits of some tokens, then their gradients.
    pub(super) logits: Vec<f32>,
    /// (B, T): the loss of each token, in nats.
    pub(super) losses: Vec<f32>,
    /// (B, T, C): the gradient of the residual stream. Empty for inference.
    pub(super) dresidual: Vec<f32>,
}

/// What every block uses in turn and none keeps.
pub(super) struct Shared {
    /// (B, T, C): the output of the LayerNorm at hand; going back, also the gradient of the heads.
    pub(super) normed: Vec<f32>,
    /// (B, T, C): the output of the branch at hand, or its gradient.
    pub(super) branch: Vec<f32>,
    /// (B, T, 4C): GELU's output going forward; the gradient of GELU's input or of qkv going back.
    pub(super) wide: Vec<f32>,
    /// Tiles of attention scores, and partial sums over rows.
    pub(super) scratch: Vec<f32>,
}

/// What the backward pass of one block needs of its forward pass.
pub(super) struct BlockActivations {
    pub(super) ln_1: LayerNormStatistics,
    /// (B, T, 3C)
    pub(super) qkv: Vec<f32>,
    /// (B, H, T): log-sum-exp of the attention scores.
    pub(super) lse: Vec<f32>,
    /// (B, T, C): the heads' outputs side by side.
    pub(super) heads: Vec<f32>,
    /// (B, T, C): the residual stream between attention and feed-forward.
    pub(super) middle: Vec<f32>,
    pub(super) ln_2: LayerNormStatistics,
    /// (B, T, 4C): before GELU.
    pub(super) fc: Vec<f32>,
}

pub(super) struct LayerNormStatistics {
    /// (B, T)
    pub(super) mean: Vec<f32>,
    /// (B, T)
    pub(super) rstd: Vec<f32>,
}

/// The largest pass that the buffers hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capacity {
    pub(super) batch: usize,
    pub(super) time: usize,
    pub(super) purpose: Purpose,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Inference,
    Training,
}

impl Capacity {
    /// Rows of logits computed at once: with a large vocabulary the whole (B T, V) would dwarf all else, so
    /// that at most 2^25 of them (128 MiB) exist; fewer rows would pack the embedding too often.
    pub(super) fn head_rows(self, vocab_size: usize) -> usize {
        ((1usize << 25) / vocab_size).max(64).min(self.batch * self.time)
    }

    /// Whether a pass of this size fits.
    pub(super) fn holds(self, wanted: Capacity) -> bool {
        self.batch >= wanted.batch
            && self.time >= wanted.time
            && (self.purpose == Purpose::Training || wanted.purpose == Purpose::Inference)
    }
}

impl Activations {
    pub(super) fn new(config: &ModelConfig, capacity: Capacity) -> Self {
        let tokens = capacity.batch * capacity.time;
        let ModelConfig { vocab_size, n_blocks, n_emb: c, n_heads, .. } = *config;
        let training = capacity.purpose == Purpose::Training;
        let attention = AttentionDims {
            batch: capacity.batch,
            time: capacity.time,
            heads: n_heads,
            head_size: config.head_size(),
        };
        let scratch =
            attention::backward_scratch(attention).max(column_sums_scratch(4 * c)).max(layernorm_scratch(c));
        let block = |_| BlockActivations {
            ln_1: LayerNormStatistics::new(tokens),
            qkv: vec![0.0; tokens * 3 * c],
            lse: vec![0.0; tokens * n_heads],
            heads: vec![0.0; tokens * c],
            middle: vec![0.0; tokens * c],
            ln_2: LayerNormStatistics::new(tokens),
            fc: vec![0.0; tokens * 4 * c],
        };
        Self {
            capacity,
            residual: vec![vec![0.0; tokens * c]; if training { n_blocks + 1 } else { 2 }],
            blocks: (0..if training { n_blocks } else { 1 }).map(block).collect(),
            ln_f: LayerNormStatistics::new(tokens),
            shared: Shared {
                normed: vec![0.0; tokens * c],
                branch: vec![0.0; tokens * c],
                wide: vec![0.0; tokens * 4 * c],
                scratch: vec![0.0; scratch],
            },
            logits: vec![0.0; capacity.head_rows(vocab_size) * vocab_size],
            losses: vec![0.0; tokens],
            dresidual: vec![0.0; if training { tokens * c } else { 0 }],
        }
    }
}

impl LayerNormStatistics {
    fn new(tokens: usize) -> Self {
        Self { mean: vec![0.0; tokens], rstd: vec![0.0; tokens] }
    }
}
