//! Causal multi-head self-attention.
//!
//! ```text
//! S = Q Kᵀ / sqrt(D), causal;  P = softmax(S);  Y = drop(P) V
//! ```
//! Vaswani et al. 2017, "Attention Is All You Need", equation 1, with dropout on the weights as in GPT-2.
//!
//! Neither pass stores a (T, T) matrix. A tile of 64 queries is multiplied only with the keys up to its last query,
//! which saves almost half of the work. The forward pass keeps, besides Y, the log-sum-exp of every row of S; the
//! backward pass recomputes P from it (Dao et al. 2022, "FlashAttention", algorithm 4).

use crate::columns::ColumnsMut;
use crate::dims::AttentionDims;
use crate::dropout::Dropout;
use crate::element::Element;
use crate::isa::Isa;
use crate::matmul::{Lhs, Prefetch, Store, TileRange, matmul, matmul_into};
use crate::panels::{PanelDims, Panels, pack_columns, pack_rows, pack_unit};
use crate::rounding::round;
use crate::vector::{exp_of_negative, sum_by};

mod cached;
mod head;

pub use cached::{KeyValueCache, OnWeights, attention_cached};
pub use head::AttentionScratch;

use self::head::{Head, QueryTile, score_stride, whole_lanes};

/// `y = drop(softmax(q kᵀ / sqrt(D))) v` for every head, causally.
///
/// - `y` (B, T, C), `lse` (B, H, T), the log-sum-exp of the scaled scores: overwritten.
/// - `qkv` (B, T, 3C): q, k and v side by side, each with its heads side by side.
/// - `dropout`: query i of head h of sequence b uses row `(b H + h) T + i` of the mask, and key j its column j.
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

/// The backward pass: math.md (24) to (29). Differentiates `y = drop(p) v`, `p = softmax(s)`, `s = q kᵀ / sqrt(D)`.
///
/// - `dqkv` (B, T, 3C): overwritten.
/// - `dy` (B, T, C); `forward` from the forward pass; `dropout` as in the forward pass.
pub fn attention_backward<E: Element>(
    dims: AttentionDims,
    dqkv: &mut [E],
    dy: &[E],
    forward: Forward<E>,
    dropout: Dropout,
    scratch: &mut AttentionScratch<E>,
) {
    check(dims, forward.y.len(), forward.lse.len(), forward.qkv.len(), scratch);
    assert_eq!((dqkv.len(), dy.len()), (forward.qkv.len(), forward.y.len()), "argument lengths for {dims:?}");
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

/// Every head of every sequence, with the index of the sequence.
fn heads(dims: AttentionDims, dropout: Dropout) -> impl Iterator<Item = (Head, usize)> {
    (0..dims.batch * dims.heads).map(move |row| {
        let head = Head { dims, h: row % dims.heads, dropout: dropout.skip_rows(row * dims.time) };
        (head, row / dims.heads)
    })
}

/// The inputs and outputs of the forward pass.
#[derive(Clone, Copy, Debug)]
pub struct Forward<'a, E> {
    /// (B, T, C): the output.
    pub y: &'a [E],
    /// (B, T, 3C): queries, keys and values.
    pub qkv: &'a [E],
    /// (B, H, T): the log-sum-exp of each row of scaled scores.
    pub lse: &'a [f32],
}

impl Head {
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
        for tile @ QueryTile { start, end, .. } in self.tiles(0) {
            self.scores(isa, tile, scores, qkv, keys_t);
            self.softmax(isa, tile, scores, rows, &mut lse[start..end], totals);
            self.apply_weights(isa, tile, &mut y, rows, values, totals);
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

    /// Overwrites the gradient of q in the tile's rows of `dqkv`. Adds to the gradients of the keys and values that the
    /// tile attended to.
    #[inline(always)]
    fn backward_tile<E: Element>(
        self,
        isa: Isa,
        tile: QueryTile,
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
        let QueryTile { start, end, .. } = tile;
        let (queries, stride) = (end - start, score_stride(self.dims.time));

        self.prefetch_next_head(tile, forward);

        // dP = dY Vᵀ
        self.scores(isa, tile, scores, qkv, Panels::new(self.channel_panels(), keys_t));
        let dy_tile = &dy[start * channels + q..];
        let values_t = Panels::new(self.channel_panels(), values_t).corner(head_size, end);
        let lhs = Lhs::Rows { data: dy_tile, stride: channels };
        matmul_into(isa, 0..queries, lhs, values_t, dscores, stride, Store::Overwrite);
        let outputs = SoftmaxGradients { weight_panels, dscore_panels, dscores: rows };
        self.backward_softmax(isa, tile, outputs, (scores, dscores), dy, forward);

        // dV += drop(P)ᵀ dY;  dK += dSᵀ Q
        let (over_queries, tile_dims) =
            (PanelDims { depth: queries, cols: end }, PanelDims { depth: queries, cols: head_size });
        for (left, right, from, out) in [
            (&*weight_panels, dy_tile, channels, dvalues),
            (&*dscore_panels, &qkv[start * 3 * channels + q..], 3 * channels, dkeys),
        ] {
            pack_rows(isa, tile_dims, tile_panels, right, from);
            let lhs = Lhs::Columns(Panels::new(over_queries, left));
            matmul_into(
                isa,
                0..end,
                lhs,
                Panels::new(tile_dims, tile_panels),
                out,
                head_size,
                Store::Accumulate,
            );
        }

        // dQ = dS K
        let keys = Panels::new(self.token_panels(), rows_panels).corner(end, head_size);
        matmul(
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

    /// Prefetches the tile's queries, keys, values and outputs of the next head, which are far apart in memory.
    #[inline(always)]
    fn prefetch_next_head<E: Element>(self, tile: QueryTile, forward: Forward<E>) {
        let QueryTile { start, end, .. } = tile;
        let AttentionDims { heads, head_size, .. } = self.dims;
        if self.h + 1 == heads {
            return;
        }
        let channels = self.dims.channels();
        let columns = self.columns();
        let qkv = columns.map(|col| (Prefetch::read_later(forward.qkv, 3 * channels), col));
        let y = (Prefetch::read_later(forward.y, channels), columns[0]);
        for (next, col) in qkv.into_iter().chain([y]) {
            next.tile(TileRange { row: start, col: col + head_size, rows: end - start, cols: head_size });
        }
    }

    /// Turns scores, and the gradient of `drop(P)`, into the operands of the matmuls that follow. Both are overwritten.
    #[inline(always)]
    fn backward_softmax<E: Element>(
        self,
        isa: Isa,
        tile: QueryTile,
        outputs: SoftmaxGradients<E>,
        (scores, dweights): (&mut [f32], &mut [f32]),
        dy: &[E],
        forward: Forward<E>,
    ) {
        let QueryTile { start, end, .. } = tile;
        let (dims, stride) = (PanelDims { depth: end - start, cols: end }, score_stride(self.dims.time));
        let SoftmaxGradients { weight_panels, dscore_panels, dscores } = outputs;
        // A unit of the panels at a time, one query or two, so that its rows are packed while they are in the first-level cache.
        for unit in 0..dims.units::<E>() {
            let queries = unit * E::PER_UNIT..((unit + 1) * E::PER_UNIT).min(dims.depth);
            for query in queries.clone() {
                let row = query * stride..(query + 1) * stride;
                let (scores, dweights) = (&mut scores[row.clone()], &mut dweights[row.clone()]);
                self.backward_softmax_row(start + query, end, (scores, dweights), dy, forward);
                let read = end.next_multiple_of(E::PER_UNIT);
                round(isa, &mut dscores[row][..read], &dweights[..read]);
            }
            for (panels, rows) in [(&mut *weight_panels, &*scores), (&mut *dscore_panels, &*dweights)] {
                let rows = &rows[queries.start * stride..queries.end * stride];
                pack_unit(isa, dims, unit, panels, rows, stride);
            }
        }
    }

    /// In place: turns the scores of query `i` into `drop(P)`, and the gradient of `drop(P)` into that of the scores. Those of the keys
    /// up to `end` that follow the query, whose weights are meaningless, become 0.
    ///
    /// ```text
    /// P = exp(S - lse);  dS = P (mask dP - dot(dy_i, y_i)) / sqrt(D)
    /// ```
    #[inline(always)]
    fn backward_softmax_row<E: Element>(
        self,
        i: usize,
        end: usize,
        (weights, dscores): (&mut [f32], &mut [f32]),
        dy: &[E],
        forward: Forward<E>,
    ) {
        let (scale, lse) = (self.scale(), forward.lse[i]);
        let width = whole_lanes(i + 1);
        let row = weights[..width].iter_mut().zip(&mut dscores[..width]);
        let first = i * self.dims.channels() + self.h * self.dims.head_size;
        let dy = &dy[first..][..self.dims.head_size];
        let y = &forward.y[first..][..self.dims.head_size];
        let mean = sum_by([dy, y], |[dy, y]| dy.to_f32() * y.to_f32());
        if self.dropout.is_identity() {
            for (weight, dscore) in row {
                *weight = exp_of_negative(weight.mul_add(scale, -lse));
                *dscore = *weight * (*dscore - mean) * scale;
            }
        } else {
            let mask = self.dropout.row(i);
            for (j, (weight, dscore)) in (0..).zip(row) {
                let factor = mask.factor(j);
                let p = exp_of_negative(weight.mul_add(scale, -lse));
                *dscore = p * (factor * *dscore - mean) * scale;
                *weight = p * factor;
            }
        }
        let read = end.next_multiple_of(E::PER_UNIT).max(width);
        weights[i + 1..read].fill(0.0);
        dscores[i + 1..read].fill(0.0);
    }
}

/// What [`Head::backward_softmax`] writes for a tile of queries.
struct SoftmaxGradients<'a, E> {
    /// Panels (depth TILE_QUERIES, T): `drop(P)`.
    weight_panels: &'a mut [E],
    /// Panels (depth TILE_QUERIES, T): the gradients of the scores.
    dscore_panels: &'a mut [E],
    /// (TILE_QUERIES, T): the same.
    dscores: &'a mut [E],
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
    assert_eq!((y_len, lse_len, qkv_len), expected, "argument lengths for {dims:?}");
    let AttentionDims { time: longest, head_size: widest, .. } = scratch.dims;
    assert!(
        time <= longest && head_size <= widest,
        "{dims:?} does not fit into scratch for {:?}",
        scratch.dims
    );
}
