//! Causal multi-head self-attention.
//!
//! ```text
//! S = Q Kᵀ / sqrt(D), causal;  P = softmax(S);  Y = drop(P) V
//! ```
//! Vaswani et al. 2017, "Attention Is All You Need", equation 1, with dropout on the weights as in GPT-2.
//!
//! Neither pass holds a (T, T) matrix: a tile of [`TILE`] queries meets the keys up to its last one, so that
//! half of the square is never computed. The forward pass keeps, besides Y, the log-sum-exp of every row of S;
//! the backward pass recomputes P from it (Dao et al. 2022, "FlashAttention", algorithm 4).

use gemm::Parallelism;
use rayon::prelude::*;

use crate::dims::AttentionDims;
use crate::dropout::Dropout;
use crate::isa::Isa;
use crate::linear::{Into, ProductDims, View, product, product_strided};
use crate::vector::{dot, exp, exp_minus_max};

/// Queries of one tile: enough rows for a product to run well, few enough that a tile of scores at T = 1,024
/// (256 KiB) stays in the second-level cache.
pub const TILE: usize = 64;

/// `y = drop(softmax(q kᵀ / sqrt(D))) v` for every head of every sequence, causally.
///
/// `y` (B, T, C) and `lse` (B, H, T), the log-sum-exp of the scaled scores, are overwritten; `qkv` (B, T, 3C)
/// holds q, k and v side by side, each with its heads side by side; `scratch` is at least
/// [`forward_scratch`]`(dims)` long. The mask's row is `(b H + h) T + i` for query i, its column is the key.
pub fn attention_forward(
    dims: AttentionDims,
    y: &mut [f32],
    lse: &mut [f32],
    qkv: &[f32],
    dropout: Dropout,
    scratch: &mut [f32],
) {
    check(dims, y.len(), lse.len(), qkv.len());
    let AttentionDims { time, heads, .. } = dims;
    let channels = dims.channels();
    let scratch = scratch.par_chunks_mut(TILE * time);
    let sequences = y.par_chunks_mut(time * channels).zip(lse.par_chunks_mut(heads * time));
    let inputs = qkv.par_chunks(time * 3 * channels).zip(scratch).enumerate();
    sequences.zip(inputs).for_each(|((y, lse), (b, (qkv, scores)))| {
        for (h, lse) in lse.chunks_exact_mut(time).enumerate() {
            let head = Head { dims, h, first_mask_row: (b * heads + h) * time };
            for start in (0..time).step_by(TILE) {
                let tile = Tile { start, end: (start + TILE).min(time) };
                head.forward_tile(tile, y, lse, qkv, dropout, scores);
            }
        }
    });
}

/// The backward pass, math.md (24) to (29), from `y = drop(p) v`, `p = softmax(s)`, `s = q kᵀ / sqrt(D)`.
///
/// `dqkv` (B, T, 3C) is overwritten; `dy`, `y` (B, T, C); `qkv` (B, T, 3C); `lse` (B, H, T); `dropout` as in
/// the forward pass; `scratch` is at least [`backward_scratch`]`(dims)` long.
pub fn attention_backward(
    dims: AttentionDims,
    dqkv: &mut [f32],
    dy: &[f32],
    forward: Forward,
    dropout: Dropout,
    scratch: &mut [f32],
) {
    let Forward { y, qkv, lse } = forward;
    check(dims, y.len(), lse.len(), qkv.len());
    assert_eq!((dqkv.len(), dy.len()), (qkv.len(), y.len()), "{dims:?}");
    let AttentionDims { time, heads, .. } = dims;
    let channels = dims.channels();
    let outputs = dqkv.par_chunks_mut(time * 3 * channels).zip(scratch.par_chunks_mut(2 * TILE * time));
    let activations = y.par_chunks(time * channels).zip(dy.par_chunks(time * channels));
    let inputs = qkv.par_chunks(time * 3 * channels).zip(lse.par_chunks(heads * time));
    outputs.zip(activations).zip(inputs).enumerate().for_each(
        |(b, (((dqkv, scratch), (y, dy)), (qkv, lse)))| {
            dqkv.fill(0.0);
            for (h, lse) in lse.chunks_exact(time).enumerate() {
                let head = Head { dims, h, first_mask_row: (b * heads + h) * time };
                for start in (0..time).step_by(TILE) {
                    let tile = Tile { start, end: (start + TILE).min(time) };
                    head.backward_tile(tile, dqkv, dy, Forward { y, qkv, lse }, dropout, scratch);
                }
            }
        },
    );
}

/// The scratch, in elements, that [`attention_forward`] needs.
pub const fn forward_scratch(dims: AttentionDims) -> usize {
    dims.batch * TILE * dims.time
}

/// The scratch, in elements, that [`attention_backward`] needs.
pub const fn backward_scratch(dims: AttentionDims) -> usize {
    2 * forward_scratch(dims)
}

/// What the forward pass read and wrote.
#[derive(Clone, Copy, Debug)]
pub struct Forward<'a> {
    /// (B, T, C): the output.
    pub y: &'a [f32],
    /// (B, T, 3C): queries, keys and values.
    pub qkv: &'a [f32],
    /// (B, H, T): the log-sum-exp of each row of scaled scores.
    pub lse: &'a [f32],
}

/// One head of one sequence.
#[derive(Clone, Copy)]
struct Head {
    dims: AttentionDims,
    h: usize,
    /// The mask's row of query 0.
    first_mask_row: usize,
}

/// The queries `start..end`, which see the keys `0..end`.
#[derive(Clone, Copy)]
struct Tile {
    start: usize,
    end: usize,
}

impl Head {
    fn scale(self) -> f32 {
        1.0 / (self.dims.head_size as f32).sqrt()
    }

    /// Where q, k and v of this head start in a row of qkv.
    fn columns(self) -> [usize; 3] {
        let first = self.h * self.dims.head_size;
        [first, first + self.dims.channels(), first + 2 * self.dims.channels()]
    }

    /// Writes `y` (T, C) and `lse` (T) in the tile's rows; `qkv` (T, 3C); `scores` holds (tile, end).
    fn forward_tile(
        self,
        tile: Tile,
        y: &mut [f32],
        lse: &mut [f32],
        qkv: &[f32],
        dropout: Dropout,
        scores: &mut [f32],
    ) {
        let channels = self.dims.channels();
        let [_, _, v] = self.columns();
        let Tile { start, end } = tile;
        let scores = &mut scores[..(end - start) * end];
        self.scores(tile, scores, qkv);
        let scale = self.scale();
        Isa::detected().run(
            #[inline(always)]
            || {
                for (row, i) in scores.chunks_exact_mut(end).zip(start..end) {
                    let (row, future) = row.split_at_mut(i + 1);
                    future.fill(0.0);
                    row.iter_mut().for_each(|score| *score *= scale);
                    let (greatest, total) = exp_minus_max(row);
                    lse[i] = greatest + total.ln();
                    let normaliser = 1.0 / total;
                    row.iter_mut().for_each(|weight| *weight *= normaliser);
                    if !dropout.is_identity() {
                        let mask = dropout.row(self.first_mask_row + i);
                        for (j, weight) in row.iter_mut().enumerate() {
                            *weight *= mask.factor(j as u32);
                        }
                    }
                }
            },
        );
        let dims = ProductDims { rows: end - start, cols: self.dims.head_size, depth: end };
        let y = &mut y[start * channels + self.h * self.dims.head_size..];
        let (weights, v) = (View::rows(scores, end), View::rows(&qkv[v..], 3 * channels));
        product_strided(dims, y, channels, weights, v, Into::Overwrite, Parallelism::None);
    }

    /// Overwrites q's gradient in the tile's rows and adds to the gradients of the keys and values it saw.
    /// `dqkv` (T, 3C); `dy`, `y` (T, C); `qkv` (T, 3C); `lse` (T); `scratch` holds two of (tile, end).
    fn backward_tile(
        self,
        tile: Tile,
        dqkv: &mut [f32],
        dy: &[f32],
        forward: Forward,
        dropout: Dropout,
        scratch: &mut [f32],
    ) {
        let channels = self.dims.channels();
        let head_size = self.dims.head_size;
        let [q, k, v] = self.columns();
        let Forward { qkv, .. } = forward;
        let Tile { start, end } = tile;
        let (weights, dscores) = scratch.split_at_mut((end - start) * end);
        let dscores = &mut dscores[..weights.len()];
        self.scores(tile, weights, qkv);
        let dy_tile = View::rows(&dy[start * channels + q..], channels);
        let v_all = View::transposed(&qkv[v..], 3 * channels);
        let dims = ProductDims { rows: end - start, cols: end, depth: head_size };
        product(dims, dscores, dy_tile, v_all, Into::Overwrite, Parallelism::None);
        self.backward_softmax(tile, weights, dscores, dy, forward, dropout);

        // dV += drop(P)ᵀ dY;  dQ = dS K;  dK += dSᵀ Q
        let stride = 3 * channels;
        let dims = ProductDims { rows: end, cols: head_size, depth: end - start };
        let weights = View::transposed(weights, end);
        product_strided(dims, &mut dqkv[v..], stride, weights, dy_tile, Into::Add, Parallelism::None);
        let q_tile = View::rows(&qkv[start * stride + q..], stride);
        let dscores_t = View::transposed(dscores, end);
        product_strided(dims, &mut dqkv[k..], stride, dscores_t, q_tile, Into::Add, Parallelism::None);
        let dims = ProductDims { rows: end - start, cols: head_size, depth: end };
        let dq = &mut dqkv[start * stride + q..];
        let (dscores, k_all) = (View::rows(dscores, end), View::rows(&qkv[k..], stride));
        product_strided(dims, dq, stride, dscores, k_all, Into::Overwrite, Parallelism::None);
    }

    /// Turns raw scores into `drop(P)` and the gradient of `drop(P)` into that of the raw scores, in place.
    ///
    /// ```text
    /// P = exp(S - lse);  dS = P (mask dP - dot(dy_i, y_i)) / sqrt(D)
    /// ```
    fn backward_softmax(
        self,
        tile: Tile,
        weights: &mut [f32],
        dscores: &mut [f32],
        dy: &[f32],
        forward: Forward,
        dropout: Dropout,
    ) {
        let Tile { start, end } = tile;
        let scale = self.scale();
        let columns = |i: usize| {
            let first = i * self.dims.channels() + self.h * self.dims.head_size;
            first..first + self.dims.head_size
        };
        Isa::detected().run(
            #[inline(always)]
            || {
                let rows = weights.chunks_exact_mut(end).zip(dscores.chunks_exact_mut(end));
                for ((weights, dscores), i) in rows.zip(start..end) {
                    let (weights, future) = weights.split_at_mut(i + 1);
                    future.fill(0.0);
                    let (dscores, future) = dscores.split_at_mut(i + 1);
                    future.fill(0.0);
                    let mean = dot(&dy[columns(i)], &forward.y[columns(i)]);
                    let lse = forward.lse[i];
                    let row = weights.iter_mut().zip(dscores);
                    if dropout.is_identity() {
                        for (weight, dscore) in row {
                            *weight = exp(weight.mul_add(scale, -lse));
                            *dscore = *weight * (*dscore - mean) * scale;
                        }
                    } else {
                        let mask = dropout.row(self.first_mask_row + i);
                        for (j, (weight, dscore)) in row.enumerate() {
                            let factor = mask.factor(j as u32);
                            let p = exp(weight.mul_add(scale, -lse));
                            *dscore = p * (factor * *dscore - mean) * scale;
                            *weight = p * factor;
                        }
                    }
                }
            },
        );
    }

    /// `scores = q kᵀ` for the tile's queries and the keys up to its end: (tile, end), overwritten.
    fn scores(self, tile: Tile, scores: &mut [f32], qkv: &[f32]) {
        let stride = 3 * self.dims.channels();
        let [q, k, _] = self.columns();
        let Tile { start, end } = tile;
        let dims = ProductDims { rows: end - start, cols: end, depth: self.dims.head_size };
        let queries = View::rows(&qkv[start * stride + q..], stride);
        let keys = View::transposed(&qkv[k..], stride);
        product(dims, scores, queries, keys, Into::Overwrite, Parallelism::None);
    }
}

fn check(dims: AttentionDims, y_len: usize, lse_len: usize, qkv_len: usize) {
    let AttentionDims { batch, time, heads, .. } = dims;
    let tokens = batch * time;
    let expected = (tokens * dims.channels(), tokens * heads, tokens * 3 * dims.channels());
    assert_eq!((y_len, lse_len, qkv_len), expected, "{dims:?}");
}
