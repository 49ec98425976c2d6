//! Attention of new tokens to all tokens so far, with cached keys and values (a KV cache).
//!
//! The cache stores keys and values in the layout that a matmul reads, so only the new token's key and value are
//! packed. Every sum runs in the same order as in [`super::attention_forward`], so that the results are bitwise equal.

use super::head::{AttentionScratch, Head, QueryTile, TILE_QUERIES, score_stride};
use crate::buffer::Buffer;
use crate::columns::ColumnsMut;
use crate::dims::AttentionDims;
use crate::dropout::Dropout;
use crate::element::Element;
use crate::isa::Isa;
use crate::panels::{PANEL_COLS, PanelDims, Panels};

/// The keys and values of one head of one sequence, for all tokens so far.
#[derive(Debug)]
pub struct KeyValueCache<E> {
    /// The maximum number of tokens.
    capacity: usize,
    head_size: usize,
    len: usize,
    /// Panels (depth D, T): Kᵀ.
    keys_t: Buffer<E>,
    /// Panels (depth T, D): V.
    values: Buffer<E>,
}

impl<E: Element> KeyValueCache<E> {
    /// An empty cache with room for `dims.time` tokens.
    pub fn new(dims: AttentionDims) -> Self {
        let AttentionDims { time: capacity, head_size, .. } = dims;
        let [keys_t, values] = panels(capacity, head_size).map(|panels| Buffer::zeroed(panels.len::<E>()));
        Self { capacity, head_size, len: 0, keys_t, values }
    }

    /// The size of a cache in bytes.
    pub fn bytes(dims: AttentionDims) -> usize {
        panels(dims.time, dims.head_size).map(|panels| panels.len::<E>() * size_of::<E>()).iter().sum()
    }

    /// The number of cached tokens.
    #[expect(clippy::len_without_is_empty, reason = "no caller needs it")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Removes all tokens.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Appends the key and the value of a token, (D) each.
    fn append(&mut self, key: &[E], value: &[E]) {
        let t = self.len;
        let [key_panels, value_panels] = panels(self.capacity, self.head_size);
        // Elements are copied one at a time: for one or two of them, a call of memcpy or memset would dominate the
        // cost. The key is a column of one panel.
        let panel = &mut self.keys_t[t / PANEL_COLS * key_panels.panel_len::<E>()..];
        for (unit, key) in panel.chunks_mut(PANEL_COLS * E::PER_UNIT).zip(key.chunks(E::PER_UNIT)) {
            let places = &mut unit[t % PANEL_COLS * E::PER_UNIT..];
            places.iter_mut().zip(key).for_each(|(place, key)| *place = *key);
        }
        // The value is a row of every panel. In bfloat16 it is half a unit; an even token clears the other half, which
        // may contain a value of an earlier sequence.
        let half = t % E::PER_UNIT;
        let panels = self.values.chunks_exact_mut(value_panels.panel_len::<E>());
        for (panel, value) in panels.zip(value.chunks(PANEL_COLS)) {
            let unit = &mut panel[t / E::PER_UNIT * PANEL_COLS * E::PER_UNIT..];
            for (pair, value) in unit.chunks_exact_mut(E::PER_UNIT).zip(value) {
                pair[half] = *value;
                if half + 1 < E::PER_UNIT {
                    pair[half + 1] = E::default();
                }
            }
        }
        self.len += 1;
    }
}

/// The shapes of a head's transposed keys and of its values.
fn panels(time: usize, head_size: usize) -> [PanelDims; 2] {
    [PanelDims { depth: head_size, cols: time }, PanelDims { depth: time, cols: head_size }]
}

/// Called with the position of a token and its attention weights: softmax(...) over the keys up to that position.
pub type OnWeights<'a> = &'a mut dyn FnMut(usize, &[f32]);

/// Appends the keys and values of new tokens to the cache of head `h`, then computes `y = softmax(q kᵀ / sqrt(D)) v`,
/// causally.
///
/// - `dims`: the number and size of the heads; `h`: the index of this head.
/// - `y` (tokens, C): overwritten in the columns of the head; it must consist of exactly these columns.
/// - `qkv` (tokens, 3C).
/// - `on_weights`: called for every token, if given.
///
/// # Panics
/// If the cache does not have room for the tokens, or if a size does not match.
pub fn attention_cached<E: Element>(
    dims: AttentionDims,
    h: usize,
    mut y: ColumnsMut<E>,
    qkv: &[E],
    cache: &mut KeyValueCache<E>,
    scratch: &mut AttentionScratch<E>,
    mut on_weights: Option<OnWeights>,
) {
    let AttentionDims { heads, head_size, .. } = dims;
    let width = 3 * dims.channels();
    let (tokens, past, columns) = (qkv.len() / width, cache.len, h * head_size..(h + 1) * head_size);
    let time = past + tokens;
    assert_eq!(
        (y.rows(), y.range(), cache.head_size),
        (tokens, columns, head_size),
        "rows and columns of the output, and head size of the cache, for head {h} of {heads}"
    );
    assert!(
        time <= cache.capacity,
        "{tokens} tokens after {past} do not fit into a cache of {}",
        cache.capacity
    );
    assert!(
        cache.capacity <= scratch.dims.time,
        "scratch for {:?} is too small for a cache of {} tokens",
        scratch.dims,
        cache.capacity
    );
    let head = Head { dims: AttentionDims { time, ..dims }, h, dropout: Dropout::none() };
    let [_, k, v] = head.columns();
    qkv.chunks_exact(width).for_each(|row| cache.append(&row[k..][..head_size], &row[v..][..head_size]));
    let [key_panels, value_panels] = panels(cache.capacity, head_size);
    let (keys_t, values) = (Panels::new(key_panels, &cache.keys_t), Panels::new(value_panels, &cache.values));
    let AttentionScratch { scores, rows, totals, .. } = scratch;
    let mut lse = [0.0; TILE_QUERIES];
    let isa = Isa::detected();
    isa.run(
        #[inline(always)]
        || {
            for tile @ QueryTile { start, end, .. } in head.tiles(past) {
                head.scores(isa, tile, scores, qkv, keys_t);
                head.softmax(isa, tile, scores, rows, &mut lse[..end - start], totals);
                head.apply_weights(isa, tile, &mut y, rows, values, totals);
                let Some(on_weights) = &mut on_weights else { continue };
                let rows = scores.chunks_exact_mut(score_stride(time)).zip(&*totals);
                for (i, (row, total)) in (start..end).zip(rows) {
                    row[..=i].iter_mut().for_each(|weight| *weight /= total);
                    on_weights(i, &row[..=i]);
                }
            }
        },
    );
}
