//! One head of one sequence: what attention over a whole sequence and cached attention share.

use crate::buffer::Buffer;
use crate::columns::ColumnsMut;
use crate::dims::AttentionDims;
use crate::dropout::Dropout;
use crate::element::Element;
use crate::isa::Isa;
use crate::matmul::{Lhs, Store, matmul, matmul_into};
use crate::panels::{PanelDims, Panels};
use crate::rounding::round;
use crate::vector::{LANES, exp_of_negative, folded, max};

/// Queries per tile: enough rows for an efficient matmul, few enough that a tile of scores at T = 1,024 (256 KiB) fits
/// into the second-level cache.
pub(super) const TILE_QUERIES: usize = 64;

/// The intermediate results of attention, for one thread.
#[derive(Debug)]
pub struct AttentionScratch<E> {
    pub(super) dims: AttentionDims,
    /// (TILE_QUERIES, T): scores, then weights.
    pub(super) scores: Buffer<f32>,
    /// (TILE_QUERIES, T): gradients of the weights, then of the scores.
    pub(super) dscores: Buffer<f32>,
    /// (TILE_QUERIES, T): the weights, or the gradients of the scores, as a left operand.
    pub(super) rows: Buffer<E>,
    /// Panels (depth TILE_QUERIES, T): the weights as a left operand, to sum over queries.
    pub(super) weight_panels: Buffer<E>,
    /// Panels (depth TILE_QUERIES, T): the gradients of the scores, likewise.
    pub(super) dscore_panels: Buffer<E>,
    /// Panels (depth D, T): Kᵀ.
    pub(super) keys_t: Buffer<E>,
    /// Panels (depth D, T): Vᵀ.
    pub(super) values_t: Buffer<E>,
    /// Panels (depth T, D): V in the forward pass, K in the backward pass.
    pub(super) rows_panels: Buffer<E>,
    /// Panels (depth TILE_QUERIES, D): a tile of dY, then of Q.
    pub(super) tile_panels: Buffer<E>,
    /// (T, D): the gradients of one head's keys.
    pub(super) dkeys: Buffer<f32>,
    /// (T, D): the gradients of one head's values.
    pub(super) dvalues: Buffer<f32>,
    /// (TILE_QUERIES): the sum of each row's weights.
    pub(super) totals: [f32; TILE_QUERIES],
}

impl<E: Element> AttentionScratch<E> {
    /// Scratch for sequences of up to `dims.time` tokens.
    pub fn new(dims: AttentionDims) -> Self {
        let AttentionDims { time, head_size, .. } = dims;
        let stride = score_stride(time);
        let panels = |depth, cols| Buffer::zeroed(PanelDims { depth, cols }.len::<E>());
        Self {
            dims,
            scores: Buffer::zeroed(TILE_QUERIES * stride),
            dscores: Buffer::zeroed(TILE_QUERIES * stride),
            rows: Buffer::zeroed(TILE_QUERIES * stride),
            weight_panels: panels(TILE_QUERIES, time),
            dscore_panels: panels(TILE_QUERIES, time),
            keys_t: panels(head_size, time),
            values_t: panels(head_size, time),
            rows_panels: panels(time, head_size),
            tile_panels: panels(TILE_QUERIES, head_size),
            dkeys: Buffer::zeroed(time * head_size),
            dvalues: Buffer::zeroed(time * head_size),
            totals: [0.0; TILE_QUERIES],
        }
    }
}

/// `len` rounded up to whole registers. The elements computed in excess are overwritten later, which costs less than a
/// remainder loop.
#[inline(always)]
pub(super) fn whole_lanes(len: usize) -> usize {
    const { assert!(TILE_QUERIES.is_multiple_of(LANES)) };
    len.next_multiple_of(LANES)
}

/// Elements from one row of a tile of scores to the next.
pub(super) const fn score_stride(time: usize) -> usize {
    time.next_multiple_of(TILE_QUERIES)
}

/// One head of one sequence. Its methods take the arrays of that sequence, and the `lse` of that head.
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub(super) dims: AttentionDims,
    pub(super) h: usize,
    /// The dropout mask of this head: row i is query i.
    pub(super) dropout: Dropout,
}

/// The queries `start..end`, which attend to the keys `0..end`.
#[derive(Clone, Copy)]
pub(super) struct QueryTile {
    /// The first query to compute. Earlier queries and outputs are not in memory.
    pub(super) past: usize,
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Head {
    pub(super) fn scale(self) -> f32 {
        1.0 / (self.dims.head_size as f32).sqrt()
    }

    /// The first columns of this head's q, k and v in a row of `qkv`.
    pub(super) fn columns(self) -> [usize; 3] {
        let first = self.h * self.dims.head_size;
        [first, first + self.dims.channels(), first + 2 * self.dims.channels()]
    }

    /// The shape of the keys or values as a right operand, to sum over tokens.
    pub(super) fn token_panels(self) -> PanelDims {
        PanelDims { depth: self.dims.time, cols: self.dims.head_size }
    }

    /// The shape of the keys or values, transposed.
    pub(super) fn channel_panels(self) -> PanelDims {
        PanelDims { depth: self.dims.head_size, cols: self.dims.time }
    }

    /// The queries from `past` on, in tiles.
    pub(super) fn tiles(self, past: usize) -> impl Iterator<Item = QueryTile> {
        let time = self.dims.time;
        let tile = move |start| QueryTile { past, start, end: (start + TILE_QUERIES).min(time) };
        (past..time).step_by(TILE_QUERIES).map(tile)
    }

    /// The tile's rows of `y`: the values weighted by `rows`, divided by `totals`. The first columns of `y` must be
    /// those of this head.
    #[inline(always)]
    pub(super) fn apply_weights<E: Element>(
        self,
        isa: Isa,
        QueryTile { past, start, end }: QueryTile,
        y: &mut ColumnsMut<E>,
        rows: &[E],
        values: Panels<E>,
        totals: &[f32; TILE_QUERIES],
    ) {
        let lhs = Lhs::Rows { data: rows, stride: score_stride(self.dims.time) };
        matmul(
            isa,
            0..end - start,
            lhs,
            values.corner(end, self.dims.head_size),
            #[inline(always)]
            |at, tile| {
                for (r, sums) in (at.row..).zip(&mut tile[..at.rows]) {
                    let normalizer = 1.0 / totals[r];
                    let sums = &mut sums[..at.cols];
                    sums.iter_mut().for_each(|sum| *sum *= normalizer);
                    round(isa, &mut y.row(start - past + r)[at.col..][..at.cols], sums);
                }
            },
        );
    }

    /// Turns the scores of a tile into `drop(exp(S - max))` in `rows`, with their sums before dropout in `totals` and
    /// the log-sum-exp in `lse`.
    #[inline(always)]
    pub(super) fn softmax<E: Element>(
        self,
        isa: Isa,
        tile: QueryTile,
        scores: &mut [f32],
        rows: &mut [E],
        lse: &mut [f32],
        totals: &mut [f32; TILE_QUERIES],
    ) {
        let stride = score_stride(self.dims.time);
        let scale = self.scale();
        let read = tile.end.next_multiple_of(E::PER_UNIT);
        let scores = scores.chunks_exact_mut(stride).zip(rows.chunks_exact_mut(stride));
        let outputs = lse.iter_mut().zip(totals);
        for (i, ((scores, weights), (lse, total))) in (tile.start..tile.end).zip(scores.zip(outputs)) {
            let width = whole_lanes(i + 1);
            let (scores, _) = scores[..width].as_chunks_mut::<LANES>();
            scores.as_flattened_mut()[i + 1..].fill(f32::NEG_INFINITY);
            let greatest = max(scores.as_flattened());
            let mask = self.dropout.row(i);
            let mut sums = [0.0; LANES];
            let (weights, future) = weights.split_at_mut(width);
            for (piece, (scores, out)) in
                scores.iter_mut().zip(weights.as_chunks_mut::<LANES>().0).enumerate()
            {
                let first = (piece * LANES) as u32;
                for lane in 0..LANES {
                    let weight = exp_of_negative((scores[lane] - greatest) * scale);
                    sums[lane] += weight;
                    scores[lane] = weight;
                }
                if !self.dropout.is_identity() {
                    for (key, score) in (first..).zip(&mut *scores) {
                        *score *= mask.factor(key);
                    }
                }
                round(isa, out, scores);
            }
            *total = folded(sums, |a, b| a + b);
            *lse = greatest * scale + total.ln();
            future[..read.saturating_sub(width)].fill(E::default());
        }
    }

    /// `scores = q kᵀ` for the queries of the tile and the keys `0..end`: (TILE_QUERIES, T), overwritten.
    #[inline(always)]
    pub(super) fn scores<E: Element>(
        self,
        isa: Isa,
        QueryTile { past, start, end }: QueryTile,
        scores: &mut [f32],
        qkv: &[E],
        keys_t: Panels<E>,
    ) {
        let [q, _, _] = self.columns();
        let lhs = Lhs::Rows { data: &qkv[q..], stride: 3 * self.dims.channels() };
        let keys_t = keys_t.corner(self.dims.head_size, end);
        let queries = start - past..end - past;
        matmul_into(isa, queries, lhs, keys_t, scores, score_stride(self.dims.time), Store::Overwrite);
    }
}
