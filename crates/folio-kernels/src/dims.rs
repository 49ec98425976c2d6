//! The sizes a kernel works on: one small struct for each family of operations, so that no call lists bare
//! numbers.
//!
//! The legend of the whole code: B batch, T time, C channels, H heads, D head size, V vocabulary, L layers.
//! Every array is row-major, its last dimension contiguous: element (b, t, c) of a (B, T, C) array stands at
//! `(b * T + t) * C + c`.
//!
//! ```
//! use folio_kernels::dims::AttentionDims;
//! let dims = AttentionDims { batch: 4, time: 64, heads: 6, head_size: 64 };
//! assert_eq!(dims.channels(), 384);
//! ```

/// A product of matrices `y (M, N) = x (M, K) w (K, N)`: a linear layer in the Conv1D layout of GPT-2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearDims {
    /// M, the rows of `x` and `y`: B * T, one for each token.
    pub rows: usize,
    /// K, the features that go in: columns of `x`, rows of `w`.
    pub inputs: usize,
    /// N, the features that come out: columns of `y` and `w`.
    pub outputs: usize,
}

/// An operation that treats the rows of a (rows, cols) matrix alike: LayerNorm, dropout, sums of columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowDims {
    /// The rows: B * T, one for each token.
    pub rows: usize,
    /// The length of a row: C for activations, V for logits.
    pub cols: usize,
}

/// Causal self-attention over B sequences of T tokens, with H heads of D channels each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionDims {
    /// B, the sequences, which do not see each other.
    pub batch: usize,
    /// T, the tokens of a sequence.
    pub time: usize,
    /// H, the heads.
    pub heads: usize,
    /// D, the channels of one head.
    pub head_size: usize,
}

impl AttentionDims {
    /// C = H * D, the width of the residual stream.
    pub fn channels(self) -> usize {
        self.heads * self.head_size
    }
}

/// The head: M tokens with C channels, each given one logit for each of V tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadDims {
    /// M, the tokens.
    pub rows: usize,
    /// C, the channels of a token.
    pub channels: usize,
    /// V, the vocabulary: targets are below this.
    pub vocab: usize,
}

/// The lookup of token and position embeddings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbeddingDims {
    /// B, the sequences.
    pub batch: usize,
    /// T, the tokens of a sequence.
    pub time: usize,
    /// C, the length of an embedding.
    pub channels: usize,
    /// V, the vocabulary: tokens are below this.
    pub vocab: usize,
}
