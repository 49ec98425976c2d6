//! Token and position embeddings: `y[b, t] = wte[token[b, t]] + wpe[t]`.
//!
//! GPT-2 learns the positions (Radford et al. 2019), instead of using the sinusoids of Vaswani et al. 2017.

use rayon::prelude::*;

use crate::dims::EmbeddingDims;

/// Parts of the vocabulary that the backward pass processes in parallel: enough for the threads of a large machine.
const VOCAB_PIECES: usize = 32;

/// `y[b, t] = wte[token[b, t]] + wpe[t]`.
///
/// - `y` (B, T, C): overwritten.
/// - `wte` (V, C); `wpe` (at least T, C); `tokens` (B, T).
///
/// # Panics
/// If a token is not below V.
pub fn embedding_forward(dims: EmbeddingDims, y: &mut [f32], wte: &[f32], wpe: &[f32], tokens: &[u32]) {
    let EmbeddingDims { time, channels, vocab, .. } = dims;
    check(dims, y.len(), wte.len(), wpe.len(), tokens.len());
    for (position, (y, &token)) in y.chunks_exact_mut(channels).zip(tokens).enumerate() {
        let token = token as usize;
        assert!(token < vocab, "token {token} is outside the vocabulary of {vocab}");
        let embedding = &wte[token * channels..][..channels];
        let position = &wpe[position % time * channels..][..channels];
        for ((y, &embedding), &position) in y.iter_mut().zip(embedding).zip(position) {
            *y = embedding + position;
        }
    }
}

/// The backward pass: math.md (8) and (9). Differentiates `y[b, t] = wte[token[b, t]] + wpe[t]`.
///
/// - `dwte` (V, C), `dwpe` (at least T, C): accumulated into.
/// - `dy` (B, T, C); `tokens` (B, T).
pub fn embedding_backward(
    dims: EmbeddingDims,
    dwte: &mut [f32],
    dwpe: &mut [f32],
    dy: &[f32],
    tokens: &[u32],
) {
    let EmbeddingDims { time, channels, vocab, .. } = dims;
    check(dims, dy.len(), dwte.len(), dwpe.len(), tokens.len());
    // Each part of the vocabulary processes its tokens in batch order, so that the order of every sum is fixed.
    let piece = vocab.div_ceil(VOCAB_PIECES);
    dwte.par_chunks_mut(piece * channels).enumerate().for_each(|(index, dwte)| {
        let first = index * piece;
        let count = dwte.len() / channels;
        for (dy, &token) in dy.chunks_exact(channels).zip(tokens) {
            let row = (token as usize).wrapping_sub(first);
            if row < count {
                add_row(&mut dwte[row * channels..][..channels], dy);
            }
        }
    });
    dwpe.par_chunks_exact_mut(channels).take(time).enumerate().for_each(|(t, dwpe)| {
        for dy in dy.chunks_exact(time * channels) {
            add_row(dwpe, &dy[t * channels..][..channels]);
        }
    });
}

fn add_row(sum: &mut [f32], row: &[f32]) {
    sum.iter_mut().zip(row).for_each(|(sum, &value)| *sum += value);
}

fn check(dims: EmbeddingDims, y_len: usize, wte_len: usize, wpe_len: usize, tokens_len: usize) {
    let EmbeddingDims { batch, time, channels, vocab } = dims;
    assert_eq!((y_len, tokens_len), (batch * time * channels, batch * time), "argument lengths for {dims:?}");
    assert_eq!(wte_len, vocab * channels, "argument lengths for {dims:?}");
    assert!(
        wpe_len >= time * channels,
        "{time} positions do not fit into the {} position embeddings",
        wpe_len / channels
    );
}
