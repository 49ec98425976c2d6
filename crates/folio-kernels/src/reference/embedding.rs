//! Token and position embeddings.

use super::numeric::expect_len;
use crate::dims::EmbeddingDims;
use num_traits::{Float, NumAssign};

/// `y_btc = wte_uc + wpe_tc` with `u = tokens_bt`.
///
/// Source: PyTorch, `torch.nn.Embedding`; Radford et al. 2019, "Language Models are Unsupervised Multitask
/// Learners", for the learned positions.
/// - `y` (B, T, C): overwritten.
/// - `wte` (V, C), `wpe` (at least T, C), `tokens` (B, T), each below V.
pub fn embedding_forward<F: Float + NumAssign>(
    dims: EmbeddingDims,
    y: &mut [F],
    wte: &[F],
    wpe: &[F],
    tokens: &[u32],
) {
    let EmbeddingDims { batch, time, channels, .. } = dims;
    expect_embedding_shapes(dims, y, wte, wpe, tokens);
    for b in 0..batch {
        for t in 0..time {
            let token = token_at(dims, tokens, b, t);
            for c in 0..channels {
                y[(b * time + t) * channels + c] = wte[token * channels + c] + wpe[t * channels + c];
            }
        }
    }
}

/// `dwte_uc += dy_btc` wherever `tokens_bt = u`, and `dwpe_tc += sum_b dy_btc`: math.md (8) and (9).
///
/// Differentiates `y[..] = wte[token * channels + c] + wpe[t * channels + c]`.
/// - `dwte` (V, C), `dwpe` (at least T, C): accumulated into.
/// - `dy` (B, T, C), `tokens` (B, T), each below V.
pub fn embedding_backward<F: Float + NumAssign>(
    dims: EmbeddingDims,
    dwte: &mut [F],
    dwpe: &mut [F],
    dy: &[F],
    tokens: &[u32],
) {
    let EmbeddingDims { batch, time, channels, .. } = dims;
    expect_embedding_shapes(dims, dy, dwte, dwpe, tokens);
    for b in 0..batch {
        for t in 0..time {
            let token = token_at(dims, tokens, b, t);
            for c in 0..channels {
                dwte[token * channels + c] += dy[(b * time + t) * channels + c];
                dwpe[t * channels + c] += dy[(b * time + t) * channels + c];
            }
        }
    }
}

/// The token at (b, t). Panics if it is outside the vocabulary.
fn token_at(dims: EmbeddingDims, tokens: &[u32], b: usize, t: usize) -> usize {
    let token = tokens[b * dims.time + t] as usize;
    assert!(token < dims.vocab, "token {token} at ({b}, {t}) is outside the vocabulary of {}", dims.vocab);
    token
}

fn expect_embedding_shapes<F>(dims: EmbeddingDims, y: &[F], wte: &[F], wpe: &[F], tokens: &[u32]) {
    let EmbeddingDims { batch, time, channels, vocab } = dims;
    expect_len("y", y, &[batch, time, channels]);
    expect_len("wte", wte, &[vocab, channels]);
    expect_len("tokens", tokens, &[batch, time]);
    let (got, least) = (wpe.len(), time * channels);
    assert!(
        got >= least,
        "`wpe` has {got} elements, but {time} positions of {channels} channels need {least}"
    );
}
