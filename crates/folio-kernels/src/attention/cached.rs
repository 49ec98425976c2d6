//! Attention of new tokens to all tokens so far, whose keys and values are kept.
//!
//! The cache has the layout in which products read keys and values, so that nothing is packed for a token but its own
//! key and value; and every sum runs in the order of [`super::attention_forward`], so that the bits are the same.

use super::{AttentionScratch, Head, TILE, Tile, score_stride};
use crate::buffer::Buffer;
use crate::columns::ColumnsMut;
use crate::dims::AttentionDims;
use crate::dropout::Dropout;
use crate::element::Element;
use crate::isa::Isa;
use crate::panels::{PANEL_COLS, PanelDims, Panels};

/// The keys and values of one head of one sequence, up to the token that came last.
#[derive(Debug)]
pub struct KeyValueCache<E> {
    /// The most tokens that there is room for.
    capacity: usize,
    head_size: usize,
    len: usize,
    /// Panels (depth D, T): Kᵀ.
    keys_t: Buffer<E>,
    /// Panels (depth T, D): V.
    values: Buffer<E>,
}

impl<E: Element> KeyValueCache<E> {
    /// A cache without tokens, with room for `dims.time`.
    pub fn new(dims: AttentionDims) -> Self {
        let AttentionDims { time: capacity, head_size, .. } = dims;
        let [keys_t, values] = panels(capacity, head_size).map(|panels| Buffer::zeroed(panels.len::<E>()));
        Self { capacity, head_size, len: 0, keys_t, values }
    }

    /// Bytes that a cache takes.
    pub fn bytes(dims: AttentionDims) -> usize {
        panels(dims.time, dims.head_size).map(|panels| panels.len::<E>() * size_of::<E>()).iter().sum()
    }

    /// The tokens in it.
    #[expect(clippy::len_without_is_empty, reason = "nobody asks whether it is empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Forgets all tokens.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Appends a token: its key and its value, (D) each.
    fn append(&mut self, key: &[E], value: &[E]) {
        let t = self.len;
        let [key_panels, value_panels] = panels(self.capacity, self.head_size);
        // Element by element: for two at a time a call of memcpy or memset would cost more than all else here.
        // A column of its panel.
        let panel = &mut self.keys_t[t / PANEL_COLS * key_panels.panel_len::<E>()..];
        for (unit, key) in panel.chunks_mut(PANEL_COLS * E::PAIR).zip(key.chunks(E::PAIR)) {
            let places = &mut unit[t % PANEL_COLS * E::PAIR..];
            places.iter_mut().zip(key).for_each(|(place, key)| *place = *key);
        }
        // A row of every panel; or half of one, the other half of which must not be an older text's.
        let half = t % E::PAIR;
        let panels = self.values.chunks_exact_mut(value_panels.panel_len::<E>());
        for (panel, value) in panels.zip(value.chunks(PANEL_COLS)) {
            let unit = &mut panel[t / E::PAIR * PANEL_COLS * E::PAIR..];
            for (pair, value) in unit.chunks_exact_mut(E::PAIR).zip(value) {
                pair[half] = *value;
                if half + 1 < E::PAIR {
                    pair[half + 1] = E::default();
                }
            }
        }
        self.len += 1;
    }
}

/// The sizes of a head's keys, transposed, and of its values.
fn panels(time: usize, head_size: usize) -> [PanelDims; 2] {
    [PanelDims { depth: head_size, cols: time }, PanelDims { depth: time, cols: head_size }]
}

/// Is told a token's place in its text, and what it attends to: softmax(...) over the keys up to there.
pub type OnWeights<'a> = &'a mut dyn FnMut(usize, &[f32]);

/// Appends the keys and values of some tokens to the cache of head `h`; then `y = softmax(q kᵀ / sqrt(D)) v`, where each
/// token sees those before it and itself.
///
/// `y` (tokens, C) is overwritten in the head's columns, which it holds and no others; `qkv` (tokens, 3C), their number
/// and the size of heads by `dims`; `on_weights`, if given, is called for each token.
///
/// # Panics
/// If the cache has no room for so many tokens, or one of the others is of another size.
pub fn attention_cached<E: Element>(
    (dims, h): (AttentionDims, usize),
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
    assert_eq!((y.rows(), y.range(), cache.head_size), (tokens, columns, head_size), "head {h} of {heads}");
    assert!(time <= cache.capacity, "{tokens} tokens after {past} in a cache for {}", cache.capacity);
    assert!(cache.capacity <= scratch.dims.time, "a cache for {} in {:?}", cache.capacity, scratch.dims);
    let head = Head { dims: AttentionDims { time, ..dims }, h, dropout: Dropout::none() };
    let [_, k, v] = head.columns();
    qkv.chunks_exact(width).for_each(|row| cache.append(&row[k..][..head_size], &row[v..][..head_size]));
    let [key_panels, value_panels] = panels(cache.capacity, head_size);
    let (keys_t, values) = (Panels::new(key_panels, &cache.keys_t), Panels::new(value_panels, &cache.values));
    let AttentionScratch { scores, rows, totals, .. } = scratch;
    let mut lse = [0.0; TILE];
    let isa = Isa::detected();
    isa.run(
        #[inline(always)]
        || {
            for tile @ Tile { start, end, .. } in head.tiles(past) {
                head.scores(isa, tile, scores, qkv, keys_t);
                head.softmax(isa, tile, scores, rows, &mut lse[..end - start], totals);
                head.mix(isa, tile, &mut y, rows, values, totals);
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
