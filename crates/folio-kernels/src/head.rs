//! The language-model head and its loss: logits, softmax and cross-entropy, forward and backward. They are computed for
//! a few sequences at a time, so that no (B T, V) matrix exists.
//!
//! ```text
//! logits = x wteᵀ;  loss = -ln softmax(logits)[target] = m + ln(sum of exp(logits - m)) - logits[target]
//! ```
//! The head shares its weights with the token embedding (Press and Wolf 2017, "Using the Output Embedding"). m is a
//! reference close to the maximum logit. If the maximum of a panel of the vocabulary exceeds it by more than 4, that becomes the reference,
//! and the sum so far is multiplied with exp(old - new) (after Milakov and Gimelshein 2018, "Online normalizer calculation for
//! softmax"). Of each panel, exp(logits - reference) is stored; in bfloat16 this loses no accuracy, however large the logits are. Cf. PyTorch's
//! `F.cross_entropy`.

use std::ops::Range;

use crate::buffer::{Buffer, CacheAligned};
use crate::columns::ColumnsMut;
use crate::dims::HeadDims;
use crate::element::Element;
use crate::isa::Isa;
use crate::linear::for_each_row;
use crate::matmul::{Cost, Lhs, Prefetch, Rhs, Store, TileRange, matmul_into};
use crate::non_temporal::store_fence;
use crate::panels::{PANEL_COLS, PanelDims, Panels, Reuse, pack_rows_panel};
use crate::rounding::round;
use crate::vector::{exp, exp_of_negative, max, sum};

/// Rows of wte per matmul of the backward pass: whole panels, and few enough that the weights of one panel of channels
/// (256 KiB in bfloat16) fit into the second-level cache.
pub const VOCAB_SEGMENT: usize = 2048;

/// Scratch of the head for one thread: what the forward pass stores for the backward pass, and the gradients of one segment.
#[derive(Debug)]
pub struct HeadScratch<E> {
    /// (panels of V, rows, 64): exp(logits - reference of the row and panel). Empty if only losses are computed.
    exps: Buffer<E>,
    /// (panels of V, rows): what was subtracted from the logits.
    panel_references: Vec<f32>,
    /// (rows): the reference so far. No logit so far exceeds it by more than [`HEADROOM`].
    references: Vec<f32>,
    /// (rows, 16): partial sums of exp(logits - reference) so far.
    sums: Vec<CacheAligned<[f32; SUMS]>>,
    /// (rows): the logit of the target.
    target_logits: Vec<f32>,
    /// (rows): the scale of the loss, divided by the sum of exp(logits - reference).
    normalizers: Vec<f32>,
    /// (rows, [`segment_stride`]): dlogits of one segment of the vocabulary. Empty if only losses are computed.
    dlogits: Buffer<E>,
}

/// How far a logit may exceed the reference before the reference changes, which is therefore rare after the first panels. The larger,
/// the more is rounded: an argument of exp may be as large.
const HEADROOM: f32 = 4.0;

/// Partial sums per row: as many as the widest register has.
const SUMS: usize = 16;

impl<E: Element> HeadScratch<E> {
    /// Scratch for up to `dims.rows` tokens, with room for the backward pass if `training`.
    pub fn new(dims: HeadDims, training: bool) -> Self {
        let HeadDims { rows, vocab, .. } = dims;
        let panels = vocab.div_ceil(PANEL_COLS);
        let if_training = |len| Buffer::zeroed(if training { len } else { 0 });
        Self {
            exps: if_training(panels * rows * PANEL_COLS),
            panel_references: vec![0.0; panels * rows],
            references: vec![0.0; rows],
            sums: vec![CacheAligned([0.0; SUMS]); rows],
            target_logits: vec![0.0; rows],
            normalizers: vec![0.0; rows],
            dlogits: if_training(rows * segment_stride(vocab)),
        }
    }
}

/// Elements from the gradients of one row to those of the next: an odd number of panels, so that the rows of a panel do not compete for the
/// same places of the first-level cache.
fn segment_stride(vocab: usize) -> usize {
    (vocab.div_ceil(PANEL_COLS).min(VOCAB_SEGMENT / PANEL_COLS) | 1) * PANEL_COLS
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
    scratch.references.fill(f32::NEG_INFINITY);
    scratch.sums.fill(CacheAligned([0.0; SUMS]));
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
        *loss = sum(&scratch.sums[row].0).ln() + (scratch.references[row] - scratch.target_logits[row]);
    }
}

impl<E: Element> HeadScratch<E> {
    /// Processes some rows of a tile of logits.
    #[inline(always)]
    fn process_tile(
        &mut self,
        isa: Isa,
        dims: HeadDims,
        at: TileRange,
        tile: &mut [[f32; PANEL_COLS]],
        targets: &[u32],
    ) {
        let rows = at.row..at.row + at.rows;
        let place = at.col / PANEL_COLS * dims.rows + at.row;
        let targets = &targets[rows.clone()];
        let target_logits = &mut self.target_logits[rows.clone()];
        let references = &mut self.references[rows.clone()];
        let sums = &mut self.sums[rows];
        for (r, logits) in tile[..at.rows].iter_mut().enumerate() {
            if at.cols < PANEL_COLS {
                // Columns beyond the vocabulary get the weight exp(-inf) = 0.
                logits[at.cols..].fill(f32::NEG_INFINITY);
            }
            let target = (targets[r] as usize).wrapping_sub(at.col);
            if target < at.cols {
                target_logits[r] = logits[target];
            }
            let (reference, sums) = (&mut references[r], &mut sums[r].0);
            if exceeds(logits, *reference + HEADROOM) {
                let before = std::mem::replace(reference, max(logits));
                let factor = exp(before - *reference);
                sums.iter_mut().for_each(|sum| *sum *= factor);
            }
            let reference = *reference;
            // A copy, so that the compiler knows that the sums are not among the logits.
            let mut totals = *sums;
            for lane in 0..SUMS {
                let mut total = 0.0;
                for part in 0..PANEL_COLS / SUMS {
                    let logit = &mut logits[lane + part * SUMS];
                    *logit = exp_of_negative(*logit - reference);
                    total += *logit;
                }
                totals[lane] += total;
            }
            *sums = totals;
        }
        if !self.exps.is_empty() {
            let exps = &mut self.exps[place * PANEL_COLS..][..at.rows * PANEL_COLS];
            round(isa, exps, tile[..at.rows].as_flattened());
            self.panel_references[place..][..at.rows].copy_from_slice(references);
        }
    }
}

/// Whether an element is greater than `limit`.
#[inline(always)]
fn exceeds(row: &[f32; PANEL_COLS], limit: f32) -> bool {
    let mut greatest = [f32::NEG_INFINITY; SUMS];
    for lane in 0..SUMS {
        let greater = |a: f32, b: f32| if a > b { a } else { b };
        let (low, high) =
            (greater(row[lane], row[lane + SUMS]), greater(row[lane + 2 * SUMS], row[lane + 3 * SUMS]));
        greatest[lane] = greater(low, high);
    }
    greatest.iter().fold(false, |exceeds, &x| exceeds | (x > limit))
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
/// - `dx` (M, C), `dlogits` (M, V) in panels: overwritten. `reuse`: how `dlogits` is stored.
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
    reuse: Reuse,
) {
    let HeadDims { rows, channels, vocab } = dims;
    let lengths = (dx.len(), objective.targets.len());
    assert_eq!(lengths, (rows * channels, rows), "argument lengths for {dims:?}");
    if let Some(soft) = objective.soft_targets {
        assert_eq!(soft.probabilities.len(), rows * vocab, "soft targets for {dims:?}");
    }
    let panel_len = PanelDims { depth: rows, cols: vocab }.panel_len::<E>();
    for (normalizer, sums) in scratch.normalizers.iter_mut().zip(&scratch.sums) {
        *normalizer = objective.scale / sum(&sums.0);
    }
    let isa = Isa::detected();
    isa.run(
        #[inline(always)]
        || {
            for (first, wte) in (0..vocab).step_by(VOCAB_SEGMENT).zip(wte) {
                let segment = PanelDims { depth: rows, cols: (vocab - first).min(VOCAB_SEGMENT) };
                for panel in 0..segment.panels() {
                    scratch.panel_gradients(isa, dims, first, panel, objective);
                    let out = &mut dlogits[(first / PANEL_COLS + panel) * panel_len..][..panel_len];
                    pack_rows_panel(isa, segment, panel, out, &scratch.dlogits, segment_stride(vocab), reuse);
                }
                let lhs = Lhs::Rows { data: &scratch.dlogits, stride: segment_stride(vocab) };
                let store = if first > 0 { Store::Accumulate } else { Store::Overwrite };
                matmul_into(isa, 0..rows, lhs, wte, dx, channels, store);
            }
            if reuse == Reuse::NonTemporal {
                store_fence();
            }
        },
    );
}

impl<E: Element> HeadScratch<E> {
    /// The gradients of one panel of the segment of the vocabulary that starts with `first`, from the exponentials.
    #[inline(always)]
    fn panel_gradients(
        &mut self,
        isa: Isa,
        dims: HeadDims,
        first: usize,
        panel: usize,
        objective: Objective,
    ) {
        let HeadDims { rows, vocab, .. } = dims;
        let Objective { targets, scale, label_smoothing, soft_targets } = objective;
        let weight = soft_targets.map_or(0.0, |soft| f64::from(soft.weight));
        let per_token = f64::from(label_smoothing) / vocab as f64;
        let hard_scale = f64::from(scale) * (1.0 - weight);
        // scale q without the soft targets, at the target and elsewhere.
        let at_target = (hard_scale * (1.0 - f64::from(label_smoothing) + per_token)) as f32;
        let elsewhere = (hard_scale * per_token) as f32;
        let soft_scale = (f64::from(scale) * weight) as f32;
        let col = first + panel * PANEL_COLS;
        let cols = (vocab - col).min(PANEL_COLS);
        let place = col / PANEL_COLS * rows;
        let exps = self.exps[place * PANEL_COLS..][..rows * PANEL_COLS].as_chunks::<PANEL_COLS>().0;
        let panel_references = &self.panel_references[place..][..rows];
        let out = self.dlogits.chunks_exact_mut(segment_stride(vocab));
        for (row, (exps, out)) in exps.iter().zip(out).enumerate() {
            let out = &mut out[panel * PANEL_COLS..][..PANEL_COLS];
            let reference = self.references[row];
            let mut factor = self.normalizers[row];
            if panel_references[row] != reference {
                factor *= exp(panel_references[row] - reference);
            }
            let mut values = [0.0; PANEL_COLS];
            for lane in 0..PANEL_COLS {
                values[lane] = exps[lane].to_f32() * factor - elsewhere;
            }
            if let Some(soft) = soft_targets {
                let soft = &soft.probabilities[row * vocab + col..][..cols];
                values.iter_mut().zip(soft).for_each(|(value, &bits)| *value -= soft_scale * from_f16(bits));
            }
            if cols < PANEL_COLS {
                // Columns beyond the vocabulary have no gradient.
                values[cols..].fill(0.0);
            }
            round(isa, out, &values);
            let target = (targets[row] as usize).wrapping_sub(col);
            if target < cols {
                // Recomputed in f32: for a probability near 1, the rounding of the stored value would be larger than
                // the difference.
                let kept = self.normalizers[row] * exp(self.target_logits[row] - reference);
                let soft = soft_targets.map_or(0.0, |soft| {
                    soft_scale * from_f16(soft.probabilities[row * vocab + col + target])
                });
                out[target] = E::from_f32(kept - (at_target + soft));
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
