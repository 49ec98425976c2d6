//! The loss and its gradient.

use folio_kernels::dims::RowDims;
use folio_kernels::{cross_entropy, reference};

use crate::support::{EXP_ROUNDINGS, Expected, LN_ROUNDINGS, Random, U, check, sum_depth, wide};

/// A thread takes at least 16,384 logits.
const SIZES: [(usize, usize); 11] = [
    (1, 1),
    (1, 2),
    (2, 31),
    (3, 32),
    (5, 33),
    (17, 63),
    (4, 64),
    (9, 65),
    (300, 129),
    (1, 16_385),
    (2, 50_257),
];

#[test]
fn cross_entropy_equals_its_twin() {
    for (rows, cols) in SIZES {
        compare(Logits::random(RowDims { rows, cols }, 0.0, 3.0));
    }
}

#[test]
fn logits_whose_exponentials_overflow_do_no_harm() {
    for (rows, cols) in [(1, 1), (3, 33), (5, 100)] {
        for center in [300.0, -300.0] {
            compare(Logits::random(RowDims { rows, cols }, center, 3.0));
        }
        compare(Logits::random(RowDims { rows, cols }, 0.0, 2000.0));
    }
}

#[test]
#[should_panic(expected = "target 4 is outside the vocabulary of 4")]
fn a_target_outside_the_vocabulary_is_refused() {
    let dims = RowDims { rows: 2, cols: 4 };
    cross_entropy::cross_entropy(dims, &mut [0.0; 8], &mut [0.0; 2], &[3, 4], 1.0);
}

#[test]
#[should_panic(expected = "target 4 is outside the vocabulary of 4")]
fn a_target_outside_the_vocabulary_is_refused_without_gradient() {
    let dims = RowDims { rows: 2, cols: 4 };
    cross_entropy::cross_entropy_loss(dims, &mut [0.0; 2], &[0.0; 8], &[3, 4]);
}

fn compare(logits: Logits) {
    let expected = logits.expected();
    check("cross_entropy", &logits.dims, &expected, || logits.run());
}

pub(crate) struct Logits {
    dims: RowDims,
    logits: Vec<f32>,
    targets: Vec<u32>,
    scale: f32,
}

impl Logits {
    /// Logits within `reach` of `center`.
    pub(crate) fn random(dims: RowDims, center: f32, reach: f32) -> Self {
        let RowDims { rows, cols } = dims;
        let mut random = Random(61);
        let logits = random.singles(rows * cols, reach).iter().map(|logit| center + logit).collect();
        Self { dims, logits, targets: random.tokens(rows, cols), scale: 1.0 / rows as f32 }
    }

    /// `dlogits`, `losses`, and `losses` without the gradient.
    pub(crate) fn run(&self) -> Vec<Vec<f32>> {
        let Self { dims, logits, targets, scale } = self;
        let mut dlogits = logits.clone();
        let (mut losses, mut losses_alone) = (vec![f32::NAN; dims.rows], vec![f32::NAN; dims.rows]);
        cross_entropy::cross_entropy(*dims, &mut dlogits, &mut losses, targets, *scale);
        cross_entropy::cross_entropy_loss(*dims, &mut losses_alone, logits, targets);
        vec![dlogits, losses, losses_alone]
    }

    /// With S the additions of a sum, in units of U:
    ///
    /// - An exponential has the rounding of its argument, `gap = max - x`, and its own.
    /// - The sum of the exponentials has their errors, each weighted with its share p, and S.
    /// - The loss has those, as the logarithm turns relative errors to absolute ones, the logarithm's own,
    ///   and the roundings of `max - x` at the target and of the last sum.
    /// - The gradient has the errors of the exponential and of the sum, a division and a product, and at the
    ///   target the rounding of a difference.
    ///
    /// `exp` ends at e^-87 = 1.6e-38: where the gap is greater a gradient may be off by two of the least
    /// normal numbers.
    fn expected(&self) -> [Expected; 3] {
        let Self { dims, targets, .. } = self;
        let logits = wide(&self.logits);
        let scale = f64::from(self.scale);
        let (mut dlogits, mut losses) = (logits.clone(), vec![f64::NAN; dims.rows]);
        reference::cross_entropy(*dims, &mut dlogits, &mut losses, targets, scale);
        let (mut dlogits_off, mut losses_off) = (vec![], vec![]);
        for ((logits, &target), loss) in logits.chunks_exact(dims.cols).zip(targets).zip(&losses) {
            let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = logits.iter().map(|logit| (logit - max).exp()).sum();
            let share = |logit: f64| (logit - max).exp() / total;
            let mean_gap: f64 = logits.iter().map(|&logit| share(logit) * (max - logit)).sum();
            let total_off = mean_gap + EXP_ROUNDINGS + sum_depth(dims.cols);
            let at_target = max - logits[target as usize];
            losses_off.push(U * (total_off + LN_ROUNDINGS * total.ln() + at_target + loss.abs()));
            for (v, &logit) in logits.iter().enumerate() {
                let off = share(logit) * (max - logit + EXP_ROUNDINGS + total_off + 2.0);
                let difference = if v == target as usize { 1.0 - share(logit) } else { 0.0 };
                let floor = if max - logit > 87.0 { 2.0 * f64::from(f32::MIN_POSITIVE) } else { 0.0 };
                dlogits_off.push(U * scale * (off + difference) + floor);
            }
        }
        let alone = Expected { name: "losses alone", want: losses.clone(), tolerance: losses_off.clone() };
        let dlogits = Expected { name: "dlogits", want: dlogits, tolerance: dlogits_off };
        [dlogits, Expected { name: "losses", want: losses, tolerance: losses_off }, alone]
    }
}
