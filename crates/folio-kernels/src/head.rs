//! The language-model head and its loss: logits, softmax and cross-entropy, forward and backward. They are computed for
//! the tokens of one sequence at a time, so that no (B T, V) matrix exists.
//!
//! ```text
//! logits = x wteᵀ;  loss = -ln softmax(logits)[target] = m + ln(sum of exp(logits - m)) - logits[target]
//! ```
//! The head shares its weights with the token embedding (Press and Wolf 2017, "Using the Output Embedding"). The
//! maximum logit m and the sum are updated panel by panel of the vocabulary (Milakov and Gimelshein 2018, "Online
//! normalizer calculation for softmax"). Of each panel, exp(logits - maximum so far) is stored; in bfloat16 this loses
//! no accuracy, however large the logits are. Cf. PyTorch's `F.cross_entropy`.

use std::ops::Range;

use crate::buffer::Buffer;
use crate::columns::ColumnsMut;
use crate::dims::HeadDims;
use crate::element::Element;
use crate::isa::Isa;
use crate::linear::for_each_row;
use crate::matmul::{Cost, Lhs, Prefetch, Rhs, Store, TileRange, matmul_into};
use crate::panels::{PANEL_COLS, PanelDims, Panels, pack_rows_panel};
use crate::rounding::round;
use crate::vector::{exp, exp_of_negative, max, sum};

/// Rows of wte per matmul of the backward pass: whole panels, and few enough that the weights of one panel of channels
/// (256 KiB in bfloat16) fit into the second-level cache.
pub const VOCAB_SEGMENT: usize = 2048;

/// What the forward pass of the head stores for its backward pass, for one thread.
#[derive(Debug)]
pub struct HeadScratch<E> {
    /// (rows, V rounded up to panels): exp(logits - maximum up to and including their panel), then dlogits. Empty if
    /// only losses are computed.
    exps: Buffer<E>,
    /// (panels of V, rows): the maximum logit of a row up to and including a panel.
    panel_max: Vec<f32>,
    /// (rows): the maximum logit so far.
    row_max: Vec<f32>,
    /// (rows): the sum of exp(logits - maximum) so far.
    row_sum: Vec<f32>,
    /// (rows): the logit of the target.
    target_logit: Vec<f32>,
}

impl<E: Element> HeadScratch<E> {
    /// Scratch for up to `dims.rows` tokens, with room for the backward pass if `training`.
    pub fn new(dims: HeadDims, training: bool) -> Self {
        let HeadDims { rows, vocab, .. } = dims;
        Self {
            exps: Buffer::zeroed(if training { rows * stride(vocab) } else { 0 }),
            panel_max: vec![0.0; rows * vocab.div_ceil(PANEL_COLS)],
            row_max: vec![0.0; rows],
            row_sum: vec![0.0; rows],
            target_logit: vec![0.0; rows],
        }
    }
}

/// Elements from the logits of one row to those of the next.
const fn stride(vocab: usize) -> usize {
    vocab.next_multiple_of(PANEL_COLS)
}

/// The loss of every token, in nats. Stores in `scratch` what the backward pass needs, if the scratch is for training.
///
/// - `losses` (M): overwritten.
/// - `x` (M, C); `wte_t`: wteᵀ (C, V) in panels; `targets` (M).
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
    assert_eq!(
        (losses.len(), x.len(), targets.len()),
        (rows, rows * channels, rows),
        "argument lengths for {dims:?}"
    );
    if let Some(target) = targets.iter().find(|&&target| target as usize >= vocab) {
        panic!("target {target} is outside the vocabulary of {vocab}");
    }
    scratch.row_max.fill(f32::NEG_INFINITY);
    scratch.row_sum.fill(0.0);
    let isa = Isa::detected();
    isa.run(
        #[inline(always)]
        || {
            wte_t.matmul_with(
                isa,
                0..rows,
                Lhs::Rows { data: x, stride: channels },
                [],
                Cost::High,
                #[inline(always)]
                |at, tile| {
                    scratch.process_tile(isa, dims, at, tile, targets);
                },
            );
        },
    );
    for (row, loss) in losses.iter_mut().enumerate() {
        *loss = scratch.row_sum[row].ln() + (scratch.row_max[row] - scratch.target_logit[row]);
    }
}

impl<E: Element> HeadScratch<E> {
    /// Processes one tile of logits.
    #[inline(always)]
    fn process_tile(
        &mut self,
        isa: Isa,
        dims: HeadDims,
        at: TileRange,
        tile: &mut [[f32; PANEL_COLS]],
        targets: &[u32],
    ) {
        for (row, logits) in (at.row..).zip(&mut tile[..at.rows]) {
            // Columns beyond the vocabulary get the weight exp(-inf) = 0.
            logits[at.cols..].fill(f32::NEG_INFINITY);
            let target = (targets[row] as usize).wrapping_sub(at.col);
            if target < at.cols {
                self.target_logit[row] = logits[target];
            }
            let before = self.row_max[row];
            let max_so_far = max(logits).max(before);
            for logit in logits.iter_mut() {
                *logit = exp_of_negative(*logit - max_so_far);
            }
            self.row_max[row] = max_so_far;
            self.row_sum[row] = self.row_sum[row] * exp(before - max_so_far) + sum(logits);
            if !self.exps.is_empty() {
                self.panel_max[at.col / PANEL_COLS * dims.rows + row] = max_so_far;
                let exps = &mut self.exps[row * stride(dims.vocab) + at.col..][..PANEL_COLS];
                round(isa, exps, logits);
            }
        }
    }
}

/// Distributions over the vocabulary for a model to learn, such as those of other models: Hinton et al. 2015, "Distilling the
/// Knowledge in a Neural Network", at temperature 1.
#[derive(Clone, Copy, Debug)]
pub struct SoftTargets<'a> {
    /// (M, V): the bits of f16 numbers from 0 to 1. Each row sums to 1, up to their rounding.
    pub probabilities: &'a [u16],
    /// The share of these probabilities in q, in [0, 1]. The rest is that of the tokens that follow.
    pub weight: f32,
}

impl<'a> SoftTargets<'a> {
    /// Those of some of `rows` tokens.
    #[must_use]
    pub fn select(self, part: Range<usize>, rows: usize) -> Self {
        let vocab = self.probabilities.len().checked_div(rows).unwrap_or(0);
        Self { probabilities: &self.probabilities[part.start * vocab..part.end * vocab], ..self }
    }
}

/// The value of an f16 number that is neither negative nor infinite, from its bits: exact, and without a branch.
#[inline(always)]
fn from_f16(bits: u16) -> f32 {
    /// The least normal number, 2^-14. Smaller ones are multiples of 2^-24.
    const NORMAL: u16 = 1 << 10;
    let subnormal = f32::from(bits) * (1.0 / (1 << 24) as f32);
    // The fraction has 13 bits more, and the exponent's bias is 127 instead of 15.
    let normal = f32::from_bits((u32::from(bits) << 13) + (112 << 23));
    if bits < NORMAL { subnormal } else { normal }
}

/// What the backward pass differentiates: `scale` times the sum over tokens of the cross-entropy with the targets q.
/// Sources: Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision", section 7; PyTorch,
/// `torch.nn.CrossEntropyLoss`, also with class probabilities as targets.
#[derive(Clone, Copy, Debug)]
pub struct Objective<'a> {
    /// (M)
    pub targets: &'a [u32],
    /// 1 / (B T) for the mean over tokens.
    pub scale: f32,
    /// The share of the targets' probability that is spread over all tokens, in [0, 1).
    pub label_smoothing: f32,
    /// What is mixed with the targets, if anything.
    pub soft_targets: Option<SoftTargets<'a>>,
}

/// The backward pass from the mean loss: math.md (31) and (33). `scratch` must come from [`head_forward`].
///
/// - `dx` (M, C), `dlogits` (M, V) in panels: overwritten.
/// - `wte` (V, C): one matrix in panels for every [`VOCAB_SEGMENT`] rows.
///
/// ```text
/// q = (1 - weight) ((1 - smoothing) onehot(target) + smoothing / V) + weight probabilities
/// dlogits = scale (softmax(logits) - q);  dx = dlogits wte
/// ```
pub fn head_backward<'a, E: Element>(
    dims: HeadDims,
    dx: &mut [f32],
    dlogits: &mut [E],
    wte: impl Iterator<Item = Panels<'a, E>>,
    objective: Objective,
    scratch: &mut HeadScratch<E>,
) {
    let HeadDims { rows, channels, vocab } = dims;
    let lengths = (dx.len(), objective.targets.len());
    assert_eq!(lengths, (rows * channels, rows), "argument lengths for {dims:?}");
    if let Some(soft) = objective.soft_targets {
        assert_eq!(soft.probabilities.len(), rows * vocab, "soft targets for {dims:?}");
    }
    let panel_dims = PanelDims { depth: rows, cols: vocab };
    let isa = Isa::detected();
    isa.run(
        #[inline(always)]
        || {
            for (first, wte) in (0..vocab).step_by(VOCAB_SEGMENT).zip(wte) {
                let segment = first..(first + VOCAB_SEGMENT).min(vocab);
                scratch.convert_to_gradients(isa, dims, segment.clone(), objective);
                let (data, stride) = (&scratch.exps[first..], stride(vocab));
                for panel in first / PANEL_COLS..segment.end.div_ceil(PANEL_COLS) {
                    let len = panel_dims.panel_len::<E>();
                    let out = &mut dlogits[panel * len..][..len];
                    pack_rows_panel(isa, panel_dims, panel, out, &scratch.exps, stride);
                }
                let store = if first > 0 { Store::Accumulate } else { Store::Overwrite };
                matmul_into(isa, 0..rows, Lhs::Rows { data, stride }, wte, dx, channels, store);
            }
        },
    );
}

impl<E: Element> HeadScratch<E> {
    /// Turns the exponentials of a range of the vocabulary into gradients. The range must start with a panel.
    #[inline(always)]
    fn convert_to_gradients(&mut self, isa: Isa, dims: HeadDims, part: Range<usize>, objective: Objective) {
        let Objective { targets, scale, label_smoothing, soft_targets } = objective;
        let weight = soft_targets.map_or(0.0, |soft| f64::from(soft.weight));
        let per_token = f64::from(label_smoothing) / dims.vocab as f64;
        let hard_scale = f64::from(scale) * (1.0 - weight);
        // scale q without the soft targets, at the target and elsewhere.
        let at_target = (hard_scale * (1.0 - f64::from(label_smoothing) + per_token)) as f32;
        let elsewhere = (hard_scale * per_token) as f32;
        let soft_scale = (f64::from(scale) * weight) as f32;
        for (row, &target) in targets.iter().enumerate() {
            let soft = soft_targets.map(|soft| &soft.probabilities[row * dims.vocab..][..dims.vocab]);
            let exps = &mut self.exps[row * stride(dims.vocab)..][part.start..stride(part.end)];
            let row_max = self.row_max[row];
            let normalizer = scale / self.row_sum[row];
            for (exps, panel) in exps.chunks_exact_mut(PANEL_COLS).zip(part.start / PANEL_COLS..) {
                let factor = normalizer * exp(self.panel_max[panel * dims.rows + row] - row_max);
                let mut values = [0.0; PANEL_COLS];
                values
                    .iter_mut()
                    .zip(&*exps)
                    .for_each(|(value, exp)| *value = exp.to_f32() * factor - elsewhere);
                if let Some(soft) = soft {
                    let soft = values.iter_mut().zip(&soft[panel * PANEL_COLS..]);
                    soft.for_each(|(value, &bits)| *value -= soft_scale * from_f16(bits));
                }
                // Columns beyond the vocabulary have no gradient.
                values[(dims.vocab - panel * PANEL_COLS).min(PANEL_COLS)..].fill(0.0);
                round(isa, exps, &values);
            }
            let target = target as usize;
            if part.contains(&target) {
                // Recomputed in f32: for a probability near 1, the rounding of the stored value would be larger than
                // the difference.
                let kept = normalizer * exp(self.target_logit[row] - row_max);
                let soft = soft.map_or(0.0, |soft| soft_scale * from_f16(soft[target]));
                exps[target - part.start] = E::from_f32(kept - (at_target + soft));
            }
        }
    }
}

/// `logits = x wteᵀ`, for the columns that `logits` contains.
///
/// - `logits` (M, V), or a range of its columns: overwritten.
/// - `x` (M, C); `wte_t`: all of wteᵀ (C, V), in panels.
pub fn head_logits<E: Element>(dims: HeadDims, mut logits: ColumnsMut<f32>, x: &[E], wte_t: impl Rhs<E>) {
    let HeadDims { rows, channels, vocab } = dims;
    assert_eq!(
        (logits.rows(), logits.stride(), x.len()),
        (rows, vocab, rows * channels),
        "argument lengths for {dims:?}"
    );
    let lhs = Lhs::Rows { data: x, stride: channels };
    for_each_row(
        Isa::detected(),
        rows,
        lhs,
        wte_t.columns(logits.range()),
        [Prefetch::columns(&logits)],
        Cost::Low,
        #[inline(always)]
        |row, col, sums| logits.row(row)[col..][..sums.len()].copy_from_slice(sums),
    );
}
