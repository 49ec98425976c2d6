//! The head and its loss. Panels cover 64 tokens of the vocabulary, segments 2,048.

use folio_kernels::columns::ColumnsMut;
use folio_kernels::dims::{HeadDims, LinearDims, RowDims};
use folio_kernels::element::{Bf16, Element};
use folio_kernels::head::{self, HeadScratch, Objective, SoftTargets, VOCAB_SEGMENT};
use folio_kernels::panels::{PanelDims, Panels, Reuse};
use folio_kernels::reference;

use crate::support::{
    EXP_ROUNDINGS, Expected, LN_ROUNDINGS, Random, TINY, U, aligned_nans, as_f32, assert_same_bits, check,
    format, from_panels, in_panels, nans, on_every_isa, rounded, roundings, sizes, stored, transposed, wide,
};

/// How far the maximum may exceed what is subtracted from the logits.
const HEADROOM: f64 = 4.0;

/// Rows, channels, vocabulary.
const SIZES: [(usize, usize, usize); 17] = [
    (1, 2, 1),
    (1, 1, 2),
    (2, 3, 31),
    (3, 8, 63),
    (5, 6, 64),
    (6, 16, 65),
    (7, 64, 100),
    (64, 10, 65),
    (65, 66, 128),
    (13, 130, 129),
    (12, 5, 200),
    (4, 12, 2047),
    (5, 4, 2048),
    (3, 18, 2049),
    (9, 70, 2113),
    (2, 2, 4161),
    (75, 256, 130),
];

fn compare_all<E: Element>() {
    for (rows, channels, vocab) in SIZES {
        let dims = HeadDims { rows, channels: channels.next_multiple_of(E::PER_UNIT), vocab };
        Head::<E>::random(dims, 1.0).compare();
    }
}

#[test]
fn the_head_equals_its_twin() {
    assert_eq!(VOCAB_SEGMENT, 2048);
    compare_all::<f32>();
    compare_all::<Bf16>();
}

fn compare_smoothed<E: Element>() {
    for (rows, channels, vocab) in SIZES {
        for label_smoothing in [0.1, 0.9] {
            let dims = HeadDims { rows, channels: channels.next_multiple_of(E::PER_UNIT), vocab };
            Head::<E> { label_smoothing, ..Head::random(dims, 1.0) }.compare();
        }
    }
}

#[test]
fn the_head_with_label_smoothing_equals_its_twin() {
    compare_smoothed::<f32>();
    compare_smoothed::<Bf16>();
}

fn compare_soft<E: Element>() {
    for (rows, channels, vocab) in SIZES {
        for (weight, label_smoothing) in [(0.9, 0.0), (1.0, 0.0), (0.3, 0.1)] {
            let dims = HeadDims { rows, channels: channels.next_multiple_of(E::PER_UNIT), vocab };
            let head = Head::<E> { label_smoothing, ..Head::random(dims, 1.0) }.with_soft_targets(weight);
            head.compare();
        }
    }
}

#[test]
fn the_head_with_soft_targets_equals_its_twin() {
    compare_soft::<f32>();
    compare_soft::<Bf16>();
}

#[test]
fn soft_targets_without_weight_change_no_bit() {
    for (rows, channels, vocab) in SIZES {
        let head =
            Head::<f32> { label_smoothing: 0.1, ..Head::random(HeadDims { rows, channels, vocab }, 1.0) };
        let soft = head.clone().with_soft_targets(0.0);
        on_every_isa(|isa| {
            let ([_, plain, _], [_, soft, _]) = (head.run(), soft.run());
            assert_same_bits(&format!("soft targets without weight on {}", isa.name()), &plain, &soft);
        });
    }
}

#[test]
fn every_f16_probability_is_read_exactly() {
    // One row whose vocabulary is all f16 numbers from 0 to 1. Without channels' difference, the softmax is even.
    let vocab = usize::from(F16_ONE) + 1;
    let dims = HeadDims { rows: 1, channels: 1, vocab };
    let mut head = Head::<f32>::random(dims, 1.0);
    (head.x, head.scale) = (vec![0.0], 1.0);
    head.soft_targets = Some(((0..=F16_ONE).collect(), 1.0));
    on_every_isa(|isa| {
        let [_, dlogits, _] = head.run();
        let even = dlogits[0];
        for (bits, &got) in (0..=F16_ONE).zip(&dlogits) {
            if usize::from(bits) != head.targets[0] as usize {
                assert_eq!(got, even - f16(bits) as f32, "{bits:#x} on {}", isa.name());
            }
        }
    });
}

/// The bits of 1.
const F16_ONE: u16 = 15 << 10;

/// An f16 number that is neither negative nor infinite, from its bits: 5 of the exponent, 10 of the fraction.
fn f16(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10), f64::from(bits & 0x3ff) / 1024.0);
    if exponent == 0 { fraction * 2f64.powi(-14) } else { (1.0 + fraction) * 2f64.powi(exponent - 15) }
}

fn compare_large<E: Element>() {
    for (rows, vocab) in [(1, 1), (3, 33), (7, 300), (2, 2100)] {
        for reach in [3.0, 20.0] {
            let dims = HeadDims { rows, channels: 8, vocab };
            // Logits from -8 reach^2 to 8 reach^2, in any order; then logits that are equal in all rows.
            let head = Head::<E>::random(dims, reach);
            head.compare();
            for sign in [1.0, -1.0] {
                let mut x = as_f32(&head.x);
                let mut wte = as_f32(&head.wte);
                x.iter_mut().step_by(8).for_each(|x| *x = sign * 30.0);
                wte.iter_mut().step_by(8).for_each(|w| *w = 20.0);
                Head { x: rounded::<E>(&x), wte: rounded(&wte), ..head.clone() }.compare();
            }
        }
    }
}

#[test]
fn logits_whose_exponentials_would_overflow_are_handled() {
    compare_large::<f32>();
    compare_large::<Bf16>();
}

fn compare_ordered<E: Element>() {
    for vocab in [64, 130, 1000, 2500] {
        for slope in [0.01, -0.01, 0.2, -0.2] {
            // Logits that rise from panel to panel, so that the maximum changes with each, or fall.
            let dims = HeadDims { rows: 5, channels: 2, vocab };
            let mut head = Head::<E>::random(dims, 1.0);
            let wte: Vec<f32> = (0..2 * vocab).map(|i| slope * (i / 2) as f32).collect();
            head.wte = rounded(&wte);
            head.x.iter_mut().for_each(|x| *x = E::from_f32(x.to_f32().abs()));
            head.compare();
        }
    }
}

#[test]
fn a_maximum_that_changes_with_every_panel_is_handled() {
    compare_ordered::<f32>();
    compare_ordered::<Bf16>();
}

fn compare_certain<E: Element>() {
    for (sharpness, vocab) in [(1.0, 70), (3.0, 70), (8.0, 70), (6.0, 2200)] {
        // One direction per token of the vocabulary, and rows that point towards their targets.
        let dims = HeadDims { rows: 40, channels: 64, vocab };
        let mut head = Head::<E>::random(dims, 0.05);
        for (row, x) in head.x.chunks_exact_mut(64).enumerate() {
            head.targets[row] = (row * vocab / 40) as u32;
            let certainty = sharpness * (row as f32 / 40.0);
            let target = &head.wte[head.targets[row] as usize * 64..][..64];
            for (x, w) in x.iter_mut().zip(target) {
                *x = E::from_f32(certainty * 20.0 * w.to_f32());
            }
        }
        head.wte.iter_mut().for_each(|w| *w = E::from_f32(20.0 * w.to_f32()));
        head.compare();
    }
}

#[test]
fn gradients_of_nearly_certain_predictions_are_accurate() {
    compare_certain::<f32>();
    compare_certain::<Bf16>();
}

fn losses_alone<E: Element>() {
    for (rows, channels, vocab) in SIZES {
        let dims = HeadDims { rows, channels: channels.next_multiple_of(E::PER_UNIT), vocab };
        let head = Head::<E>::random(dims, 1.0);
        on_every_isa(|isa| {
            let mut losses = vec![f32::NAN; rows];
            let mut scratch = HeadScratch::new(dims, false);
            let (panels, wte_t) = head.wte_t();
            let wte_t = Panels::new(panels, &wte_t);
            head::head_forward(dims, &mut losses, &head.x, wte_t, &head.targets, &mut scratch);
            assert_same_bits(isa.name(), &losses, &head.run()[0]);
        });
    }
}

#[test]
fn losses_are_the_same_without_scratch_for_gradients() {
    losses_alone::<f32>();
    losses_alone::<Bf16>();
}

fn logits<E: Element>() {
    for (rows, channels, vocab) in SIZES {
        let dims = HeadDims { rows, channels: channels.next_multiple_of(E::PER_UNIT), vocab };
        let head = Head::<E>::random(dims, 1.0);
        let [want, size] = head.twin_logits();
        let expected = Expected::from_sizes("logits", dims.channels, want, size);
        let (panels, wte_t) = head.wte_t();
        check("head_logits", &(format::<E>(), dims), &[expected], || {
            let mut logits = vec![f32::NAN; rows * vocab];
            head::head_logits(
                dims,
                ColumnsMut::new(&mut logits, dims.vocab),
                &head.x,
                Panels::new(panels, &wte_t),
            );
            vec![logits]
        });
    }
}

#[test]
fn logits_equal_their_twin() {
    logits::<f32>();
    logits::<Bf16>();
}

#[test]
#[should_panic(expected = "target 4 is outside the vocabulary of 4")]
fn a_target_outside_the_vocabulary_panics() {
    let dims = HeadDims { rows: 2, channels: 2, vocab: 4 };
    let mut head = Head::<f32>::random(dims, 1.0);
    head.targets = vec![3, 4];
    head.run();
}

#[derive(Clone)]
struct Head<E> {
    dims: HeadDims,
    x: Vec<E>,
    /// (V, C)
    wte: Vec<E>,
    targets: Vec<u32>,
    scale: f32,
    label_smoothing: f32,
    /// (M, V) in f16, and their weight.
    soft_targets: Option<(Vec<u16>, f32)>,
}

impl<E: Element> Head<E> {
    /// Inputs and embeddings in [-reach, reach].
    fn random(dims: HeadDims, reach: f32) -> Self {
        let HeadDims { rows, channels, vocab } = dims;
        let mut random = Random(61);
        Self {
            dims,
            x: random.elements(rows * channels, reach),
            wte: random.elements(vocab * channels, reach),
            targets: random.tokens(rows, vocab),
            scale: 1.0 / (3 * rows) as f32,
            label_smoothing: 0.0,
            soft_targets: None,
        }
    }

    /// With soft targets of all sizes from 0 to 1, some of them subnormal. Their rows need not sum to 1 here.
    fn with_soft_targets(mut self, weight: f32) -> Self {
        let HeadDims { rows, vocab, .. } = self.dims;
        let bits = Random(67).tokens(rows * vocab, usize::from(F16_ONE) + 1);
        self.soft_targets = Some((bits.into_iter().map(|bits| bits as u16).collect(), weight));
        self
    }

    /// wteᵀ in panels.
    fn wte_t(&self) -> (PanelDims, Vec<E>) {
        let HeadDims { channels, vocab, .. } = self.dims;
        let dims = PanelDims { depth: channels, cols: vocab };
        (dims, in_panels(dims, &transposed(&self.wte, vocab, channels)))
    }

    /// wte in panels, one matrix per segment of the vocabulary.
    fn wte(&self) -> Vec<(PanelDims, Vec<E>)> {
        let channels = self.dims.channels;
        let segments = self.wte.chunks(2048 * channels).map(|segment| {
            let dims = PanelDims { depth: segment.len() / channels, cols: channels };
            (dims, in_panels(dims, segment))
        });
        segments.collect()
    }

    /// `losses`, `dlogits` and `dx`.
    fn run(&self) -> [Vec<f32>; 3] {
        self.run_with(Reuse::Temporal)
    }

    fn run_with(&self, reuse: Reuse) -> [Vec<f32>; 3] {
        let Self { dims, x, targets, scale, label_smoothing, soft_targets, .. } = self;
        let soft_targets = soft_targets.as_ref();
        let soft_targets =
            soft_targets.map(|(probabilities, weight)| SoftTargets { probabilities, weight: *weight });
        let (scale, label_smoothing) = (*scale, *label_smoothing);
        let objective = Objective { targets, scale, label_smoothing, soft_targets };
        let HeadDims { rows, channels, vocab } = *dims;
        let mut scratch = Self::used_scratch(*dims);
        let (wte_t_dims, wte_t) = self.wte_t();
        let mut losses = vec![f32::NAN; rows];
        let wte_t = Panels::new(wte_t_dims, &wte_t);
        head::head_forward(*dims, &mut losses, x, wte_t, targets, &mut scratch);

        let panels = PanelDims { depth: rows, cols: vocab };
        let (mut dx, mut dlogits) = (vec![f32::NAN; rows * channels], aligned_nans::<E>(panels.len::<E>()));
        let wte = self.wte();
        let wte = wte.iter().map(|(dims, wte)| Panels::new(*dims, wte));
        head::head_backward(*dims, &mut dx, &mut dlogits, wte, objective, &mut scratch, reuse);
        [losses, as_f32(&from_panels("dlogits", panels, &dlogits)), dx]
    }

    /// Scratch for more rows and a larger vocabulary, filled with NaN.
    fn used_scratch(dims: HeadDims) -> HeadScratch<E> {
        let HeadDims { rows, channels, vocab } = dims;
        let larger = HeadDims { rows: rows + 3, channels, vocab: vocab + 70 };
        let mut scratch = HeadScratch::new(larger, true);
        let panels = PanelDims { depth: channels, cols: larger.vocab };
        let wte_t = nans::<E>(panels.len::<E>());
        let (x, targets) = (nans::<E>(larger.rows * channels), vec![0; larger.rows]);
        let mut losses = vec![0.0; larger.rows];
        head::head_forward(larger, &mut losses, &x, Panels::new(panels, &wte_t), &targets, &mut scratch);
        assert!(losses.iter().all(|loss| loss.is_nan()), "{losses:?}");
        let mut dx = vec![0.0; larger.rows * channels];
        let mut dlogits = nans::<E>(PanelDims { depth: larger.rows, cols: larger.vocab }.len::<E>());
        let segments = (0..larger.vocab).step_by(2048).map(|first| {
            let dims = PanelDims { depth: (larger.vocab - first).min(2048), cols: channels };
            (dims, nans::<E>(dims.len::<E>()))
        });
        let segments: Vec<_> = segments.collect();
        let wte = segments.iter().map(|(dims, wte)| Panels::new(*dims, wte));
        let objective = Objective { targets: &targets, scale: 1.0, label_smoothing: 0.0, soft_targets: None };
        head::head_backward(larger, &mut dx, &mut dlogits, wte, objective, &mut scratch, Reuse::Temporal);
        assert!(dx.iter().all(|dx| dx.is_nan()), "{dx:?}");
        scratch
    }

    /// The logits of the twin, and the sum of the sizes of their terms.
    fn twin_logits(&self) -> [Vec<f64>; 2] {
        let HeadDims { rows, channels, vocab } = self.dims;
        let dims = LinearDims { rows, inputs: channels, outputs: vocab };
        let run = |x: Vec<f64>, wte: Vec<f64>| {
            let mut logits = vec![f64::NAN; rows * vocab];
            reference::linear_forward(dims, &mut logits, &x, &transposed(&wte, vocab, channels), None);
            logits
        };
        [run(wide(&self.x), wide(&self.wte)), run(sizes(&self.x), sizes(&self.wte))]
    }

    /// Panics unless all outputs equal those of the twin.
    fn compare(&self) {
        let [losses, dlogits] = self.expected();
        on_every_isa(|isa| {
            let case = format!("head {} {:?} on {}", format::<E>(), self.dims, isa.name());
            let got = self.run();
            for (got, bypassed) in got.iter().zip(self.run_with(Reuse::NonTemporal)) {
                assert_same_bits(&format!("{case}, non-temporal"), &bypassed, got);
            }
            losses.compare(&case, &got[0]);
            dlogits.compare(&case, &got[1]);
            self.expected_dx(&got[1]).compare(&case, &got[2]);
        });
    }

    /// In units of U:
    ///
    /// - A logit: one rounding per term of the sum over channels.
    /// - An exponential: the error of its logit; its argument, in parts x - r and r - r' if the reference changes from r to r', whose sizes
    ///   add up to `reach`: max - x, and twice 4 if there are several panels; of every part one rounding of the difference and two of
    ///   `exp_of_negative`; the roundings of `exp` at every change.
    /// - The sum of the exponentials: their errors, each weighted with its share p; four additions in its panel and four of the 16 partial
    ///   sums, an addition for every panel, and a product for every change.
    /// - The loss: the errors of the sum, because the logarithm turns relative errors into absolute ones; the error of
    ///   the logarithm, up to 4 larger than that of a sum relative to the maximum; the error of the target's logit; the roundings of
    ///   reference - x at the target and of the last sum.
    /// - The gradient: the errors of the logit, of two exponentials and of the sum, a division and two
    ///   products. The intermediate value and the gradient are stored.
    /// - The gradient at the target does not use the stored intermediate value.
    /// - The targets' smoothed probability is rounded, and so is the difference to it.
    /// - So is each product of a soft target with its scale, which is rounded itself, and its difference; at the target, the sum of
    ///   both.
    ///
    /// `exp` is constant below e^-87 = 1.6e-38, and an exponential is at most e^4: a gradient may be off by twice e^4 of the smallest
    /// normal number.
    fn expected(&self) -> [Expected; 2] {
        let HeadDims { rows, channels, vocab } = self.dims;
        let [logits, logit_sizes] = self.twin_logits();
        let scale = f64::from(self.scale);
        let (mut dlogits, mut losses) = (logits.clone(), vec![f64::NAN; rows]);
        let dims = RowDims { rows, cols: vocab };
        let label_smoothing = f64::from(self.label_smoothing);
        let weight = self.soft_targets.as_ref().map_or(0.0, |(_, weight)| f64::from(*weight));
        let soft = |i: usize| self.soft_targets.as_ref().map_or(0.0, |(bits, _)| weight * f16(bits[i]));
        reference::cross_entropy_loss(dims, &mut losses, &logits, &self.targets);
        let per_token = (1.0 - weight) * label_smoothing / vocab as f64;
        let mut q: Vec<f64> = (0..rows * vocab).map(|i| per_token + soft(i)).collect();
        for (row, &target) in self.targets.iter().enumerate() {
            q[row * vocab + target as usize] += (1.0 - weight) * (1.0 - label_smoothing);
        }
        reference::soft_cross_entropy(dims, &mut dlogits, &mut vec![f64::NAN; rows], &q, scale);
        let per_token = scale * per_token;
        let (mut dlogits_off, mut losses_off) = (vec![], vec![]);
        let rows = logits.chunks_exact(vocab).zip(logit_sizes.chunks_exact(vocab));
        for (m, (logits, logit_sizes)) in rows.enumerate() {
            let target = self.targets[m] as usize;
            let off = |v: usize| channels as f64 * U * logit_sizes[v];
            let greatest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = logits.iter().map(|logit| (logit - greatest).exp()).sum();
            let share = |v: usize| (logits[v] - greatest).exp() / total;
            let reach = |v: usize| greatest - logits[v] + if vocab > 64 { 2.0 * HEADROOM } else { 0.0 };
            // At most, because every change but the first raises the reference by more than 4.
            let (mut changes, mut so_far) = (0.0, f64::NEG_INFINITY);
            for panel in logits.chunks(64) {
                let peak = panel.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                changes += f64::from(u8::from(peak > so_far - 1e-3));
                so_far = so_far.max(peak);
            }
            let first_peak = logits[..vocab.min(64)].iter().copied().fold(f64::NEG_INFINITY, f64::max);
            changes = changes.min(1.0 + (greatest - first_peak) / HEADROOM + 1e-3);
            let panels = vocab.div_ceil(64) as f64;
            let mean_off: f64 = (0..vocab).map(|v| share(v) * (off(v) + 3.0 * U * reach(v))).sum();
            let total_off = mean_off + U * (EXP_ROUNDINGS * (1.0 + changes) + 8.0 + panels + changes);
            let loss = losses[m];
            losses_off.push(
                total_off
                    + off(target)
                    + U * (LN_ROUNDINGS * (total.ln() + HEADROOM) + reach(target) + loss.abs()),
            );
            for v in 0..vocab {
                let p = scale * share(v);
                let roundings = 3.0 * reach(v) + 2.0 * EXP_ROUNDINGS + 4.0;
                let p_off = p * (off(v) + total_off + U * roundings);
                let gradient = dlogits[m * vocab + v];
                let soft = scale * soft(m * vocab + v);
                let mut difference = U * (gradient.abs() + per_token);
                let mut at_target = U * scale;
                if weight > 0.0 {
                    difference += U * (gradient.abs() + 4.0 * soft);
                    at_target *= 2.0;
                }
                let error = if v == target {
                    p_off + difference + at_target
                } else {
                    stored::<E>(p, p_off) + difference
                };
                dlogits_off.push(stored::<E>(gradient, error) + 2.0 * HEADROOM.exp() * TINY);
            }
        }
        [
            Expected { name: "losses", want: losses, tolerance: losses_off },
            Expected { name: "dlogits", want: dlogits, tolerance: dlogits_off },
        ]
    }

    /// The matmul of the stored gradients of the logits with `wte`. Where the dot product of bfloat16 flushes a value
    /// to zero, the error is at most the smallest normal number.
    fn expected_dx(&self, dlogits: &[f32]) -> Expected {
        let HeadDims { rows, channels, vocab } = self.dims;
        let dims = LinearDims { rows, inputs: channels, outputs: vocab };
        let run = |dlogits: Vec<f64>, wte: Vec<f64>| {
            let mut dx = vec![f64::NAN; rows * channels];
            reference::linear_backward_input(dims, &mut dx, &dlogits, &transposed(&wte, vocab, channels));
            dx
        };
        let (want, size) = (run(wide(dlogits), wide(&self.wte)), run(sizes(dlogits), sizes(&self.wte)));
        let mut expected = Expected::from_sizes("dx", roundings::<E>(vocab, vocab, 1), want, size);
        let reach = sizes(&self.wte).into_iter().fold(1.0, f64::max);
        let lost = vocab as f64 * TINY * reach;
        expected.tolerance.iter_mut().for_each(|tolerance| *tolerance += lost);
        expected
    }
}
