//! The head and its loss: logits of the next token, softmax, cross-entropy, forward and backward over the tokens
//! of one sequence, so that no (B T, V) matrix exists.
//!
//! ```text
//! logits = x wteᵀ;  loss = -ln softmax(logits)[target] = m + ln(sum of exp(logits - m)) - logits[target]
//! ```
//! The head shares the token embedding (Press and Wolf 2017, "Using the Output Embedding"). The greatest logit m
//! and the sum are carried along from panel to panel of the vocabulary (Milakov and Gimelshein 2018, "Online
//! normalizer calculation for softmax"): what is kept of a panel is exp(logits - the greatest so far), which loses
//! nothing in bfloat16 however large the logits are. PyTorch's `F.cross_entropy`.

use crate::buffer::Buffer;
use crate::columns::ColumnsMut;
use crate::dims::HeadDims;
use crate::element::Element;
use crate::isa::Isa;
use crate::linear::for_each_row;
use crate::matmul::{At, Fetch, Lhs, Rhs, Store, product, product_into};
use crate::panels::{PANEL_COLS, PanelDims, Panels, pack_rows_panel};
use crate::rounding::round;
use crate::vector::{exp, max, sum};

/// Rows of wte that the backward pass takes at once: whole panels, and few enough that the weights of one panel
/// of channels (256 KiB in bfloat16) stay in the second-level cache.
pub const VOCAB_SEGMENT: usize = 2048;

/// What the head keeps between its forward and its backward pass, for one thread.
#[derive(Debug)]
pub struct HeadScratch<E> {
    /// (rows, V rounded up to panels): exp(logits - the greatest up to their panel), then dlogits. Empty if only
    /// losses are wanted.
    exps: Buffer<E>,
    /// (panels of V, rows): the greatest logit of a row up to a panel.
    peaks: Vec<f32>,
    /// (rows): the greatest logit so far.
    greatest: Vec<f32>,
    /// (rows): the sum of exp(logits - greatest) so far.
    totals: Vec<f32>,
    /// (rows): the target's logit.
    at_target: Vec<f32>,
}

impl<E: Element> HeadScratch<E> {
    /// Scratch for up to `dims.rows` tokens; with room for gradients if `training`.
    pub fn new(dims: HeadDims, training: bool) -> Self {
        let HeadDims { rows, vocab, .. } = dims;
        Self {
            exps: Buffer::zeroed(if training { rows * stride(vocab) } else { 0 }),
            peaks: vec![0.0; rows * vocab.div_ceil(PANEL_COLS)],
            greatest: vec![0.0; rows],
            totals: vec![0.0; rows],
            at_target: vec![0.0; rows],
        }
    }
}

/// From the logits of one row to those of the next.
const fn stride(vocab: usize) -> usize {
    vocab.next_multiple_of(PANEL_COLS)
}

/// The loss of every token, in nats; keeps in `scratch` what the backward pass needs, if it has room for it.
///
/// `losses` (M) is overwritten; `x` (M, C); `wte_t` is wteᵀ (C, V) in panels; `targets` (M).
///
/// # Panics
/// If a target is not below V.
pub fn head_forward<E: Element>(
    dims: HeadDims,
    losses: &mut [f32],
    x: &[E],
    wte_t: Panels<E>,
    targets: &[u32],
    scratch: &mut HeadScratch<E>,
) {
    let HeadDims { rows, channels, vocab } = dims;
    assert_eq!((losses.len(), x.len(), targets.len()), (rows, rows * channels, rows), "{dims:?}");
    if let Some(target) = targets.iter().find(|&&target| target as usize >= vocab) {
        panic!("target {target} is outside the vocabulary of {vocab}");
    }
    scratch.greatest.fill(f32::NEG_INFINITY);
    scratch.totals.fill(0.0);
    let isa = Isa::detected();
    isa.run(
        #[inline(always)]
        || {
            product(
                isa,
                0..rows,
                Lhs::Rows { data: x, stride: channels },
                wte_t,
                #[inline(always)]
                |at, tile| {
                    scratch.take(isa, dims, at, tile, targets);
                },
            );
        },
    );
    for (row, loss) in losses.iter_mut().enumerate() {
        *loss = scratch.totals[row].ln() + (scratch.greatest[row] - scratch.at_target[row]);
    }
}

impl<E: Element> HeadScratch<E> {
    /// Takes in one tile of logits.
    #[inline(always)]
    fn take(&mut self, isa: Isa, dims: HeadDims, at: At, tile: &mut [[f32; PANEL_COLS]], targets: &[u32]) {
        for (row, logits) in (at.row..).zip(&mut tile[..at.rows]) {
            // Columns beyond the vocabulary get a weight of exp(-inf) = 0.
            logits[at.cols..].fill(f32::NEG_INFINITY);
            let target = (targets[row] as usize).wrapping_sub(at.col);
            if target < at.cols {
                self.at_target[row] = logits[target];
            }
            let before = self.greatest[row];
            let peak = max(logits).max(before);
            for logit in logits.iter_mut() {
                *logit = exp(*logit - peak);
            }
            logits[at.cols..].fill(0.0);
            self.greatest[row] = peak;
            self.totals[row] = self.totals[row] * exp(before - peak) + sum(logits);
            if !self.exps.is_empty() {
                self.peaks[at.col / PANEL_COLS * dims.rows + row] = peak;
                let exps = &mut self.exps[row * stride(dims.vocab) + at.col..][..PANEL_COLS];
                round(isa, exps, logits);
            }
        }
    }
}

/// The backward pass from the mean loss, math.md (31) and (33); `scratch` as [`head_forward`] left it.
///
/// `dx` (M, C) and `dlogits` (M, V), in panels of the vocabulary, are overwritten; `wte` (V, C) in panels, one for
/// every [`VOCAB_SEGMENT`] tokens; `targets` (M); `scale` is what the gradient of every token's loss is multiplied
/// by, 1 / (B T) for the mean.
///
/// ```text
/// dlogits = scale (softmax(logits) - onehot(target));  dx = dlogits wte
/// ```
pub fn head_backward<'a, E: Element>(
    dims: HeadDims,
    dx: &mut [f32],
    dlogits: &mut [E],
    wte: impl Iterator<Item = Panels<'a, E>>,
    targets: &[u32],
    scale: f32,
    scratch: &mut HeadScratch<E>,
) {
    let HeadDims { rows, channels, vocab } = dims;
    assert_eq!((dx.len(), targets.len()), (rows * channels, rows), "{dims:?}");
    let panel_dims = PanelDims { depth: rows, cols: vocab };
    let isa = Isa::detected();
    isa.run(
        #[inline(always)]
        || {
            for (first, wte) in (0..vocab).step_by(VOCAB_SEGMENT).zip(wte) {
                let segment = first..(first + VOCAB_SEGMENT).min(vocab);
                scratch.scale(isa, dims, segment.clone(), targets, scale);
                let (data, stride) = (&scratch.exps[first..], stride(vocab));
                for panel in first / PANEL_COLS..segment.end.div_ceil(PANEL_COLS) {
                    let len = panel_dims.panel_len::<E>();
                    let out = &mut dlogits[panel * len..][..len];
                    pack_rows_panel(isa, panel_dims, panel, out, &scratch.exps, stride);
                }
                let store = if first > 0 { Store::Add } else { Store::Over };
                product_into(isa, 0..rows, Lhs::Rows { data, stride }, wte, dx, channels, store);
            }
        },
    );
}

impl<E: Element> HeadScratch<E> {
    /// Turns the exponentials of a part of the vocabulary, which starts with a panel, into gradients.
    #[inline(always)]
    fn scale(&mut self, isa: Isa, dims: HeadDims, part: std::ops::Range<usize>, targets: &[u32], scale: f32) {
        for (row, &target) in targets.iter().enumerate() {
            let exps = &mut self.exps[row * stride(dims.vocab)..][part.start..stride(part.end)];
            let greatest = self.greatest[row];
            let normaliser = scale / self.totals[row];
            for (exps, panel) in exps.chunks_exact_mut(PANEL_COLS).zip(part.start / PANEL_COLS..) {
                let factor = normaliser * exp(self.peaks[panel * dims.rows + row] - greatest);
                let mut values = [0.0; PANEL_COLS];
                values.iter_mut().zip(&*exps).for_each(|(value, exp)| *value = exp.to_f32() * factor);
                round(isa, exps, &values);
            }
            let target = target as usize;
            if part.contains(&target) {
                // Anew and in f32: next to a probability of one, the rounding of what was kept would drown the
                // difference.
                let kept = normaliser * exp(self.at_target[row] - greatest);
                exps[target - part.start] = E::from_f32(kept - scale);
            }
        }
    }
}

/// `logits = x wteᵀ`, or some columns of it.
///
/// `logits` (M, V) is overwritten; `x` (M, C); `wte_t` is wteᵀ (C, V) in panels, whole; `logits` says which columns are
/// wanted.
pub fn head_logits<E: Element>(dims: HeadDims, mut logits: ColumnsMut<f32>, x: &[E], wte_t: impl Rhs<E>) {
    let HeadDims { rows, channels, vocab } = dims;
    assert_eq!((logits.rows(), logits.stride(), x.len()), (rows, vocab, rows * channels), "{dims:?}");
    let lhs = Lhs::Rows { data: x, stride: channels };
    for_each_row(
        Isa::detected(),
        rows,
        lhs,
        wte_t.columns(logits.range()),
        [Fetch::columns(&logits)],
        #[inline(always)]
        |row, col, sums| logits.row(row)[col..][..sums.len()].copy_from_slice(sums),
    );
}
