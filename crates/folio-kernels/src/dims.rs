//! The shapes that kernels work on: one small struct per family of operations instead of lists of bare numbers.
//!
//! Legend, used throughout the code: B batch, T time, C channels, H heads, D head size, V vocabulary, L layers. Every
//! array is row-major: element (b, t, c) of a (B, T, C) array has the index `(b * T + t) * C + c`.
//!
//! ```
//! use folio_kernels::dims::AttentionDims;
//! let dims = AttentionDims { batch: 4, time: 64, heads: 6, head_size: 64 };
//! assert_eq!(dims.channels(), 384);
//! ```

/// A matmul `y (M, N) = x (M, K) w (K, N)`: a linear layer in the Conv1D layout of GPT-2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearDims {
    /// M, the rows of `x` and `y`: B * T, one per token.
    pub rows: usize,
    /// K, the input features: columns of `x`, rows of `w`.
    pub inputs: usize,
    /// N, the output features: columns of `y` and `w`.
    pub outputs: usize,
}

/// An operation on each row of a (rows, cols) matrix: LayerNorm, dropout, column sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowDims {
    /// The rows: B * T, one per token.
    pub rows: usize,
    /// The length of a row: C for activations, V for logits.
    pub cols: usize,
}

/// Causal self-attention over B sequences of T tokens, with H heads of D channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionDims {
    /// B, the number of sequences, which are independent of each other.
    pub batch: usize,
    /// T, the tokens per sequence.
    pub time: usize,
    /// H, the number of heads.
    pub heads: usize,
    /// D, the channels per head.
    pub head_size: usize,
}

impl AttentionDims {
    /// C = H * D, the width of the residual stream.
    pub fn channels(self) -> usize {
        self.heads * self.head_size
    }
}

/// The language-model head: C channels to V logits for each of M tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadDims {
    /// M, the number of tokens.
    pub rows: usize,
    /// C, the channels per token.
    pub channels: usize,
    /// V, the size of the vocabulary; targets are below it.
    pub vocab: usize,
}

/// The lookup of token and position embeddings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbeddingDims {
    /// B, the number of sequences.
    pub batch: usize,
    /// T, the tokens per sequence.
    pub time: usize,
    /// C, the length of an embedding.
    pub channels: usize,
    /// V, the size of the vocabulary; tokens are below it.
    pub vocab: usize,
}
