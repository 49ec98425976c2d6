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

use crate::buffer::Buffer;
use crate::columns::ColumnsMut;
use crate::dims::AttentionDims;
use crate::dropout::Dropout;
use crate::element::Element;
use crate::isa::Isa;
use crate::matmul::{At, Fetch, Lhs, Store, product, product_into};
use crate::panels::{PanelDims, Panels, pack_columns, pack_rows};
use crate::rounding::round;
use crate::vector::{LANES, exp, max, sum, sum_by};

mod cached;

pub use cached::{KeyValueCache, OnWeights, attention_cached};

/// Queries of one tile: enough rows for a product to run well, few enough that a tile of scores at T = 1,024
/// (256 KiB) stays in the second-level cache.
pub const TILE: usize = 64;

/// What the passes write on the side, for one thread.
#[derive(Debug)]
pub struct AttentionScratch<E> {
    dims: AttentionDims,
    /// (TILE, T): scores, then weights.
    scores: Buffer<f32>,
    /// (TILE, T): gradients of the weights, then of the scores.
    dscores: Buffer<f32>,
    /// (TILE, T): the weights, or the gradients of the scores, as a left operand.
    rows: Buffer<E>,
    /// Panels (depth TILE, T): the weights as a left operand of a sum over queries.
    weight_panels: Buffer<E>,
    /// Panels (depth TILE, T): the gradients of the scores as one.
    dscore_panels: Buffer<E>,
    /// Panels (depth D, T): Kᵀ.
    keys_t: Buffer<E>,
    /// Panels (depth D, T): Vᵀ.
    values_t: Buffer<E>,
    /// Panels (depth T, D): K going back, V going forward.
    rows_panels: Buffer<E>,
    /// Panels (depth TILE, D): a tile of dY, then of Q.
    tile_panels: Buffer<E>,
    /// (T, D): the gradients of one head's keys.
    dkeys: Buffer<f32>,
    /// (T, D): the gradients of one head's values.
    dvalues: Buffer<f32>,
    /// (TILE): what a tile's rows are divided by.
    totals: [f32; TILE],
}

impl<E: Element> AttentionScratch<E> {
    /// Scratch for sequences of up to `dims.time` tokens.
    pub fn new(dims: AttentionDims) -> Self {
        let AttentionDims { time, head_size, .. } = dims;
        let stride = score_stride(time);
        let panels = |depth, cols| Buffer::zeroed(PanelDims { depth, cols }.len::<E>());
        Self {
            dims,
            scores: Buffer::zeroed(TILE * stride),
            dscores: Buffer::zeroed(TILE * stride),
            rows: Buffer::zeroed(TILE * stride),
            weight_panels: panels(TILE, time),
            dscore_panels: panels(TILE, time),
            keys_t: panels(head_size, time),
            values_t: panels(head_size, time),
            rows_panels: panels(time, head_size),
            tile_panels: panels(TILE, head_size),
            dkeys: Buffer::zeroed(time * head_size),
            dvalues: Buffer::zeroed(time * head_size),
            totals: [0.0; TILE],
        }
    }
}

/// The length that a row's loops run to: what they compute too much is overwritten, and it costs less than the
/// elements that would not fill a register.
#[inline(always)]
fn whole_lanes(len: usize) -> usize {
    const { assert!(TILE.is_multiple_of(LANES)) };
    len.next_multiple_of(LANES)
}

/// From one row of a tile of scores to the next.
const fn score_stride(time: usize) -> usize {
    time.next_multiple_of(TILE)
}

/// `y = drop(softmax(q kᵀ / sqrt(D))) v` for every head, causally.
///
/// `y` (B, T, C) and `lse` (B, H, T), the log-sum-exp of the scaled scores, are overwritten; `qkv` (B, T, 3C)
/// holds q, k and v side by side, each with its heads side by side. The mask's row is `(b H + h) T + i` for query
/// i, its column is the key.
pub fn attention_forward<E: Element>(
    dims: AttentionDims,
    y: &mut [E],
    lse: &mut [f32],
    qkv: &[E],
    dropout: Dropout,
    scratch: &mut AttentionScratch<E>,
) {
    check(dims, y.len(), lse.len(), qkv.len(), scratch);
    let isa = Isa::detected();
    for (head, b) in heads(dims, dropout) {
        let y = &mut y[b * dims.time * dims.channels()..][..dims.time * dims.channels()];
        let qkv = &qkv[b * dims.time * 3 * dims.channels()..][..dims.time * 3 * dims.channels()];
        let lse = &mut lse[(b * dims.heads + head.h) * dims.time..][..dims.time];
        isa.run(
            #[inline(always)]
            || head.forward(isa, y, lse, qkv, scratch),
        );
    }
}

/// The backward pass, math.md (24) to (29), from `y = drop(p) v`, `p = softmax(s)`, `s = q kᵀ / sqrt(D)`.
///
/// `dqkv` (B, T, 3C) is overwritten; `dy` (B, T, C); `dropout` as in the forward pass.
pub fn attention_backward<E: Element>(
    dims: AttentionDims,
    dqkv: &mut [E],
    dy: &[E],
    forward: Forward<E>,
    dropout: Dropout,
    scratch: &mut AttentionScratch<E>,
) {
    check(dims, forward.y.len(), forward.lse.len(), forward.qkv.len(), scratch);
    assert_eq!((dqkv.len(), dy.len()), (forward.qkv.len(), forward.y.len()), "{dims:?}");
    let isa = Isa::detected();
    for (head, b) in heads(dims, dropout) {
        let (stream, wide) = (dims.time * dims.channels(), dims.time * 3 * dims.channels());
        let dqkv = &mut dqkv[b * wide..][..wide];
        let dy = &dy[b * stream..][..stream];
        let forward = Forward {
            y: &forward.y[b * stream..][..stream],
            qkv: &forward.qkv[b * wide..][..wide],
            lse: &forward.lse[(b * dims.heads + head.h) * dims.time..][..dims.time],
        };
        isa.run(
            #[inline(always)]
            || head.backward(isa, dqkv, dy, forward, scratch),
        );
    }
}

/// Every head of every sequence, with the sequence.
fn heads(dims: AttentionDims, dropout: Dropout) -> impl Iterator<Item = (Head, usize)> {
    (0..dims.batch * dims.heads).map(move |row| {
        let head = Head { dims, h: row % dims.heads, dropout: dropout.skip_rows(row * dims.time) };
        (head, row / dims.heads)
    })
}

/// What the forward pass read and wrote.
#[derive(Clone, Copy, Debug)]
pub struct Forward<'a, E> {
    /// (B, T, C): the output.
    pub y: &'a [E],
    /// (B, T, 3C): queries, keys and values.
    pub qkv: &'a [E],
    /// (B, H, T): the log-sum-exp of each row of scaled scores.
    pub lse: &'a [f32],
}

/// One head of one sequence; the arrays that its methods take are that sequence's, lse that head's.
#[derive(Clone, Copy)]
struct Head {
    dims: AttentionDims,
    h: usize,
    /// Its mask: row i is query i.
    dropout: Dropout,
}

/// The queries `start..end`, which see the keys `0..end`.
#[derive(Clone, Copy)]
struct Tile {
    /// The first query that is computed at all; queries and outputs before it are not in memory.
    past: usize,
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

    /// The sizes of keys or values as a right operand that sums over tokens.
    fn token_panels(self) -> PanelDims {
        PanelDims { depth: self.dims.time, cols: self.dims.head_size }
    }

    /// The sizes of keys or values, transposed.
    fn channel_panels(self) -> PanelDims {
        PanelDims { depth: self.dims.head_size, cols: self.dims.time }
    }

    /// The queries from `past` on, tile by tile.
    fn tiles(self, past: usize) -> impl Iterator<Item = Tile> {
        let time = self.dims.time;
        let tile = move |start| Tile { past, start, end: (start + TILE).min(time) };
        (past..time).step_by(TILE).map(tile)
    }

    #[inline(always)]
    fn forward<E: Element>(
        self,
        isa: Isa,
        y: &mut [E],
        lse: &mut [f32],
        qkv: &[E],
        scratch: &mut AttentionScratch<E>,
    ) {
        let AttentionScratch { scores, rows, keys_t, rows_panels, totals, .. } = scratch;
        let channels = self.dims.channels();
        let [q, k, v] = self.columns();
        pack_columns(isa, self.channel_panels(), keys_t, &qkv[k..], 3 * channels);
        pack_rows(isa, self.token_panels(), rows_panels, &qkv[v..], 3 * channels);
        let keys_t = Panels::new(self.channel_panels(), keys_t);
        let values = Panels::new(self.token_panels(), rows_panels);
        let mut y = ColumnsMut::new(y, channels).split_at(q).1;
        for tile @ Tile { start, end, .. } in self.tiles(0) {
            self.scores(isa, tile, scores, qkv, keys_t);
            self.softmax(isa, tile, scores, rows, &mut lse[start..end], totals);
            self.mix(isa, tile, &mut y, rows, values, totals);
        }
    }

    /// The tile's rows of `y`: the values, mixed by weights that are not divided by their sums. The first of `y`'s columns
    /// are this head's.
    #[inline(always)]
    fn mix<E: Element>(
        self,
        isa: Isa,
        Tile { past, start, end }: Tile,
        y: &mut ColumnsMut<E>,
        rows: &[E],
        values: Panels<E>,
        totals: &[f32; TILE],
    ) {
        let lhs = Lhs::Rows { data: rows, stride: score_stride(self.dims.time) };
        product(
            isa,
            0..end - start,
            lhs,
            values.corner(end, self.dims.head_size),
            #[inline(always)]
            |at, tile| {
                for (r, sums) in (at.row..).zip(&mut tile[..at.rows]) {
                    let normaliser = 1.0 / totals[r];
                    let sums = &mut sums[..at.cols];
                    sums.iter_mut().for_each(|sum| *sum *= normaliser);
                    round(isa, &mut y.row(start - past + r)[at.col..][..at.cols], sums);
                }
            },
        );
    }

    /// Raw scores of a tile to `drop(exp(S - max))` in `rows`, with their sums (before dropout) and log-sum-exp.
    #[inline(always)]
    fn softmax<E: Element>(
        self,
        isa: Isa,
        tile: Tile,
        scores: &mut [f32],
        rows: &mut [E],
        lse: &mut [f32],
        totals: &mut [f32; TILE],
    ) {
        let stride = score_stride(self.dims.time);
        let scale = self.scale();
        let scores = scores.chunks_exact_mut(stride).zip(rows.chunks_exact_mut(stride));
        let outputs = lse.iter_mut().zip(totals);
        for (i, ((scores, weights), (lse, total))) in (tile.start..tile.end).zip(scores.zip(outputs)) {
            let width = whole_lanes(i + 1);
            let scores = &mut scores[..width];
            scores[i + 1..].fill(f32::NEG_INFINITY);
            let greatest = max(scores) * scale;
            for score in scores.iter_mut() {
                *score = exp(score.mul_add(scale, -greatest));
            }
            scores[i + 1..].fill(0.0);
            *total = sum(scores);
            *lse = greatest + total.ln();
            let (weights, future) = weights.split_at_mut(width);
            if !self.dropout.is_identity() {
                let mask = self.dropout.row(i);
                (0..).zip(scores.iter_mut()).for_each(|(j, score)| *score *= mask.factor(j));
            }
            round(isa, weights, scores);
            let read = tile.end.next_multiple_of(E::PAIR);
            future[..read.saturating_sub(width)].fill(E::default());
        }
    }

    #[inline(always)]
    fn backward<E: Element>(
        self,
        isa: Isa,
        dqkv: &mut [E],
        dy: &[E],
        forward: Forward<E>,
        scratch: &mut AttentionScratch<E>,
    ) {
        let channels = self.dims.channels();
        let (head_size, stride) = (self.dims.head_size, 3 * channels);
        let [_, k, v] = self.columns();
        let qkv = forward.qkv;
        pack_columns(isa, self.channel_panels(), &mut scratch.keys_t, &qkv[k..], stride);
        pack_columns(isa, self.channel_panels(), &mut scratch.values_t, &qkv[v..], stride);
        pack_rows(isa, self.token_panels(), &mut scratch.rows_panels, &qkv[k..], stride);
        let gradient = self.dims.time * head_size;
        scratch.dkeys[..gradient].fill(0.0);
        scratch.dvalues[..gradient].fill(0.0);
        for tile in self.tiles(0) {
            self.backward_tile(isa, tile, dqkv, dy, forward, scratch);
        }
        let rows = dqkv.chunks_exact_mut(stride);
        let gradients = scratch.dkeys.chunks_exact(head_size).zip(scratch.dvalues.chunks_exact(head_size));
        for (row, (dkeys, dvalues)) in rows.zip(gradients) {
            round(isa, &mut row[k..][..head_size], dkeys);
            round(isa, &mut row[v..][..head_size], dvalues);
        }
    }

    /// Overwrites q's gradient in the tile's rows of `dqkv` and adds to the gradients of the keys and values that
    /// it saw.
    #[inline(always)]
    fn backward_tile<E: Element>(
        self,
        isa: Isa,
        tile: Tile,
        dqkv: &mut [E],
        dy: &[E],
        forward: Forward<E>,
        scratch: &mut AttentionScratch<E>,
    ) {
        let AttentionScratch { scores, dscores, rows, weight_panels, dscore_panels, .. } = scratch;
        let AttentionScratch { keys_t, values_t, rows_panels, tile_panels, dkeys, dvalues, .. } = scratch;
        let channels = self.dims.channels();
        let head_size = self.dims.head_size;
        let [q, _, _] = self.columns();
        let Forward { qkv, .. } = forward;
        let Tile { start, end, .. } = tile;
        let (queries, stride) = (end - start, score_stride(self.dims.time));

        // The next head's rows, which stand far apart in memory, come meanwhile.
        if self.h + 1 < self.dims.heads {
            let next = Fetch::to_read_later(qkv, 3 * channels);
            for col in self.columns() {
                next.tile(At { row: start, col: col + head_size, rows: queries, cols: head_size });
            }
        }

        // dP = dY Vᵀ
        self.scores(isa, tile, scores, qkv, Panels::new(self.channel_panels(), keys_t));
        let dy_tile = &dy[start * channels + q..];
        let values_t = Panels::new(self.channel_panels(), values_t).corner(head_size, end);
        let lhs = Lhs::Rows { data: dy_tile, stride: channels };
        product_into(isa, 0..queries, lhs, values_t, dscores, stride, Store::Over);
        self.backward_softmax(tile, (scores, dscores), dy, forward);

        // dV += drop(P)ᵀ dY;  dK += dSᵀ Q
        let (over_queries, tile_dims) =
            (PanelDims { depth: queries, cols: end }, PanelDims { depth: queries, cols: head_size });
        pack_rows(isa, over_queries, weight_panels, scores, stride);
        pack_rows(isa, over_queries, dscore_panels, dscores, stride);
        for (left, right, from, out) in [
            (&*weight_panels, dy_tile, channels, dvalues),
            (&*dscore_panels, &qkv[start * 3 * channels + q..], 3 * channels, dkeys),
        ] {
            pack_rows(isa, tile_dims, tile_panels, right, from);
            let lhs = Lhs::Columns(Panels::new(over_queries, left));
            product_into(isa, 0..end, lhs, Panels::new(tile_dims, tile_panels), out, head_size, Store::Add);
        }

        // dQ = dS K
        for (row, dscores) in rows.chunks_exact_mut(stride).zip(dscores.chunks_exact(stride)).take(queries) {
            let seen = end.next_multiple_of(E::PAIR);
            round(isa, &mut row[..seen], &dscores[..seen]);
        }
        let keys = Panels::new(self.token_panels(), rows_panels).corner(end, head_size);
        product(
            isa,
            0..queries,
            Lhs::Rows { data: rows, stride },
            keys,
            #[inline(always)]
            |at, tile| {
                for (r, sums) in tile[..at.rows].iter().enumerate() {
                    let place = (start + at.row + r) * 3 * channels + q + at.col;
                    round(isa, &mut dqkv[place..][..at.cols], &sums[..at.cols]);
                }
            },
        );
    }

    /// Turns raw scores into `drop(P)` and the gradient of `drop(P)` into that of the raw scores, in place.
    ///
    /// ```text
    /// P = exp(S - lse);  dS = P (mask dP - dot(dy_i, y_i)) / sqrt(D)
    /// ```
    #[inline(always)]
    fn backward_softmax<E: Element>(
        self,
        tile: Tile,
        (scores, dscores): (&mut [f32], &mut [f32]),
        dy: &[E],
        forward: Forward<E>,
    ) {
        let stride = score_stride(self.dims.time);
        let scale = self.scale();
        let rows = scores.chunks_exact_mut(stride).zip(dscores.chunks_exact_mut(stride));
        for (i, (weights, dscores)) in (tile.start..tile.end).zip(rows) {
            let width = whole_lanes(i + 1);
            let row = weights[..width].iter_mut().zip(&mut dscores[..width]);
            let first = i * self.dims.channels() + self.h * self.dims.head_size;
            let dy = &dy[first..][..self.dims.head_size];
            let y = &forward.y[first..][..self.dims.head_size];
            let mean = sum_by([dy, y], |[dy, y]| dy.to_f32() * y.to_f32());
            let lse = forward.lse[i];
            if self.dropout.is_identity() {
                for (weight, dscore) in row {
                    *weight = exp(weight.mul_add(scale, -lse));
                    *dscore = *weight * (*dscore - mean) * scale;
                }
            } else {
                let mask = self.dropout.row(i);
                for (j, (weight, dscore)) in (0..).zip(row) {
                    let factor = mask.factor(j);
                    let p = exp(weight.mul_add(scale, -lse));
                    *dscore = p * (factor * *dscore - mean) * scale;
                    *weight = p * factor;
                }
            }
            let read = tile.end.next_multiple_of(E::PAIR).max(width);
            weights[i + 1..read].fill(0.0);
            dscores[i + 1..read].fill(0.0);
        }
    }

    /// `scores = q kᵀ` for the tile's queries and the keys up to its end: (TILE, T), overwritten.
    #[inline(always)]
    fn scores<E: Element>(
        self,
        isa: Isa,
        Tile { past, start, end }: Tile,
        scores: &mut [f32],
        qkv: &[E],
        keys_t: Panels<E>,
    ) {
        let [q, _, _] = self.columns();
        let lhs = Lhs::Rows { data: &qkv[q..], stride: 3 * self.dims.channels() };
        let keys_t = keys_t.corner(self.dims.head_size, end);
        let queries = start - past..end - past;
        product_into(isa, queries, lhs, keys_t, scores, score_stride(self.dims.time), Store::Over);
    }
}

fn check<E>(
    dims: AttentionDims,
    y_len: usize,
    lse_len: usize,
    qkv_len: usize,
    scratch: &AttentionScratch<E>,
) {
    let AttentionDims { batch, time, heads, head_size } = dims;
    let tokens = batch * time;
    let expected = (tokens * dims.channels(), tokens * heads, tokens * 3 * dims.channels());
    assert_eq!((y_len, lse_len, qkv_len), expected, "{dims:?}");
    let AttentionDims { time: longest, head_size: widest, .. } = scratch.dims;
    assert!(time <= longest && head_size <= widest, "{dims:?} in scratch for {:?}", scratch.dims);
}
