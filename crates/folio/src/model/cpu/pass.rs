//! What one forward or backward pass computes on: sizes, dropout masks and weights.

use std::ops::Range;

use folio_kernels::dims::{AttentionDims, EmbeddingDims, HeadDims, LinearDims, RowDims};
use folio_kernels::dropout::Dropout;
use folio_kernels::linear::DEPTH_STEP;

use super::packed::{PackedBlock, PackedLinear, PackedWeights};
use crate::model::parameters::Block;
use crate::model::{Frozen, ModelConfig, Parameters};

/// The sizes and the randomness of a pass over a micro-batch, or over some of its sequences. B and T are the sequences and their tokens.
#[derive(Clone, Copy)]
pub(super) struct Pass {
    pub(super) config: ModelConfig,
    /// B
    pub(super) batch: usize,
    /// T
    pub(super) time: usize,
    /// The sequences of a chunk ([`best_chunk_size`]): 1 until `prepare` decides.
    pub(super) chunk_size: usize,
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

/// The most tokens of a chunk of several sequences. 256 were slower with a large vocabulary: docs/experiments.md.
pub(super) const CHUNK_TOKENS: usize = 128;

/// Whether several sequences of `time` tokens may be one chunk: sums over tokens must not depend on it.
pub(super) fn may_share_chunks(time: usize) -> bool {
    time.is_multiple_of(DEPTH_STEP)
}

/// The number of sequences that a thread takes through a pass together, so that it reads the weights once for all of them.
pub(super) fn best_chunk_size(batch: usize, time: usize, threads: usize) -> usize {
    if !may_share_chunks(time) {
        return 1;
    }
    // All chunks are whole, and no thread gets more sequences than in chunks of one.
    let most = batch.div_ceil(threads);
    let fits = |&size: &usize| batch.is_multiple_of(size) && (batch / size).div_ceil(threads) * size == most;
    (1..=CHUNK_TOKENS / time).rev().find(fits).unwrap_or(1)
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
    /// The pass over some of the sequences.
    pub(super) fn part(self, sequences: Range<usize>) -> Self {
        let first_sequence = self.first_sequence + sequences.start;
        Self { batch: sequences.len(), first_sequence, ..self }
    }

    /// The pass over chunk `index`.
    pub(super) fn nth_chunk(self, index: usize) -> Self {
        let first = index * self.chunk_size;
        self.part(first..(first + self.chunk_size).min(self.batch))
    }

    /// The tokens of a whole chunk.
    pub(super) fn chunk_tokens(self) -> usize {
        self.chunk_size * self.time
    }

    /// The chunks by their size: the whole ones and their tokens, then what remains and its tokens.
    pub(super) fn equal_chunks(self) -> impl Iterator<Item = (Range<usize>, usize)> {
        let (whole, rest) = (self.batch / self.chunk_size, self.batch % self.chunk_size);
        let sizes = [(0..whole, self.chunk_size), (whole..whole + rest.min(1), rest)];
        let tokens = move |(chunks, sequences)| (chunks, sequences * self.time);
        sizes.into_iter().filter(|(chunks, _)| !chunks.is_empty()).map(tokens)
    }

    /// The mask at `site`.
    pub(super) fn dropout(self, site: Site) -> Dropout {
        let Some(key) = self.dropout_key else { return Dropout::none() };
        let (number, rows) = match site {
            Site::Embedding => (0, self.time),
            Site::AttentionWeights { block } => (1 + 3 * block as u64, self.time * self.config.n_heads),
            Site::AttentionBranch { block } => (2 + 3 * block as u64, self.time),
            Site::MlpBranch { block } => (3 + 3 * block as u64, self.time),
        };
        let key = key.wrapping_add(number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        Dropout::new(self.config.dropout, key).skip_rows(self.first_sequence * rows)
    }

    /// B T.
    pub(super) fn tokens(self) -> usize {
        self.batch * self.time
    }

    pub(super) fn embedding_dims(self) -> EmbeddingDims {
        let ModelConfig { vocab_size: vocab, n_emb: channels, .. } = self.config;
        EmbeddingDims { batch: self.batch, time: self.time, channels, vocab }
    }

    pub(super) fn attention_dims(self) -> AttentionDims {
        let (heads, head_size) = (self.config.n_heads, self.config.head_size());
        AttentionDims { batch: self.batch, time: self.time, heads, head_size }
    }

    pub(super) fn linear_dims<E>(self, layer: &PackedLinear<E>) -> LinearDims {
        LinearDims { rows: self.tokens(), inputs: layer.inputs, outputs: layer.outputs }
    }

    pub(super) fn head_dims(self) -> HeadDims {
        let ModelConfig { vocab_size: vocab, n_emb: channels, .. } = self.config;
        HeadDims { rows: self.tokens(), channels, vocab }
    }

    /// (B T, C), the residual stream.
    pub(super) fn row_dims(self) -> RowDims {
        RowDims { rows: self.tokens(), cols: self.config.n_emb }
    }
}
