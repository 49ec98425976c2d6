//! What one forward or backward pass computes on: sizes, dropout masks and weights.

use folio_kernels::dims::{AttentionDims, EmbeddingDims, HeadDims, LinearDims, RowDims};
use folio_kernels::dropout::Dropout;

use super::packed::{PackedBlock, PackedLinear, PackedWeights};
use crate::model::parameters::Block;
use crate::model::{Frozen, ModelConfig, Parameters};

/// The sizes and the randomness of a pass over a micro-batch. B and T are its sequences and their tokens.
#[derive(Clone, Copy)]
pub(super) struct Pass {
    pub(super) config: ModelConfig,
    /// B
    pub(super) batch: usize,
    /// T
    pub(super) time: usize,
    /// The index of the first sequence in the global batch.
    pub(super) first_sequence: usize,
    /// Tokens of the global batch: the loss is the mean over them.
    pub(super) total_tokens: usize,
    /// The share of the probability that smoothed targets spread over all tokens.
    pub(super) label_smoothing: f32,
    /// What has no gradient.
    pub(super) frozen: Frozen,
    /// `None`: no dropout.
    pub(super) dropout_key: Option<u64>,
}

/// The weights of a pass: the trained f32 values, and the matrices packed for matmuls.
#[derive(Clone, Copy)]
pub(super) struct PassWeights<'a, E> {
    pub(super) parameters: &'a Parameters,
    pub(super) packed: &'a PackedWeights<E>,
}

/// The weights of one block.
pub(super) struct PassBlock<'a, E> {
    pub(super) vectors: Block<&'a [f32]>,
    pub(super) packed: &'a PackedBlock<E>,
}

impl<'a, E> PassWeights<'a, E> {
    pub(super) fn block(self, idx: usize) -> PassBlock<'a, E> {
        PassBlock { vectors: self.parameters.block(idx), packed: &self.packed.blocks[idx] }
    }
}

/// The places where dropout is applied. Each has its own mask.
#[derive(Clone, Copy)]
pub(super) enum Site {
    Embedding,
    AttentionWeights { block: usize },
    AttentionBranch { block: usize },
    MlpBranch { block: usize },
}

impl Pass {
    /// The mask at `site` for sequence `b` of this pass.
    pub(super) fn dropout(self, site: Site, b: usize) -> Dropout {
        let Some(key) = self.dropout_key else { return Dropout::none() };
        let (number, rows) = match site {
            Site::Embedding => (0, self.time),
            Site::AttentionWeights { block } => (1 + 3 * block as u64, self.time * self.config.n_heads),
            Site::AttentionBranch { block } => (2 + 3 * block as u64, self.time),
            Site::MlpBranch { block } => (3 + 3 * block as u64, self.time),
        };
        let key = key.wrapping_add(number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        Dropout::new(self.config.dropout, key).skip_rows((self.first_sequence + b) * rows)
    }

    /// B T.
    pub(super) fn tokens(self) -> usize {
        self.batch * self.time
    }

    /// The embedding of one sequence.
    pub(super) fn embedding_dims(self) -> EmbeddingDims {
        let ModelConfig { vocab_size: vocab, n_emb: channels, .. } = self.config;
        EmbeddingDims { batch: 1, time: self.time, channels, vocab }
    }

    /// The attention of one sequence.
    pub(super) fn attention_dims(self) -> AttentionDims {
        let (heads, head_size) = (self.config.n_heads, self.config.head_size());
        AttentionDims { batch: 1, time: self.time, heads, head_size }
    }

    /// A linear layer on one sequence.
    pub(super) fn linear_dims<E>(self, layer: &PackedLinear<E>) -> LinearDims {
        LinearDims { rows: self.time, inputs: layer.inputs, outputs: layer.outputs }
    }

    /// The head on one sequence.
    pub(super) fn head_dims(self) -> HeadDims {
        let ModelConfig { vocab_size: vocab, n_emb: channels, .. } = self.config;
        HeadDims { rows: self.time, channels, vocab }
    }

    /// (T, C), the residual stream of one sequence.
    pub(super) fn row_dims(self) -> RowDims {
        RowDims { rows: self.time, cols: self.config.n_emb }
    }
}
