//! The loss: cross-entropy of the softmax of the logits against the next token, in nats.

use super::numeric::{expect_len, real};
use crate::dims::RowDims;
use num_traits::{Float, NumAssign};

/// `loss_m = log(sum_v exp(z_mv)) - z_mu` with `u = targets_m`. Overwrites the logits `z` with their gradient.
///
/// The gradient is `dz_mv = scale (softmax(z_m)_v - (1 - s) [v = u] - s / V)` with `s = label_smoothing`: math.md (31). It is the
/// gradient of the loss with smoothed targets (Szegedy et al. 2016, section 7), while `losses` are without smoothing.
///
/// Source: PyTorch, `torch.nn.CrossEntropyLoss` with `reduction="none"`; with `scale = 1 / M` the gradient is that of
/// the mean.
/// - `logits` (M, V): read, then overwritten with `dz`.
/// - `losses` (M): overwritten.
/// - `targets` (M), each below V.
pub fn cross_entropy<F: Float + NumAssign>(
    dims: RowDims,
    logits: &mut [F],
    losses: &mut [F],
    targets: &[u32],
    scale: F,
    label_smoothing: F,
) {
    let RowDims { rows, cols } = dims;
    cross_entropy_loss(dims, losses, logits, targets);
    for m in 0..rows {
        let row = &mut logits[m * cols..][..cols];
        let (max, sum) = max_and_sum(row);
        // Differentiates `losses[m] = sum.ln() - (row[target] - max)`, with the target smoothed.
        for z in row.iter_mut() {
            *z = scale * ((*z - max).exp() / sum - label_smoothing / real(cols as f64));
        }
        row[targets[m] as usize] -= scale * (F::one() - label_smoothing);
    }
}

/// `loss_m = -sum_v q_mv log softmax(z_m)_v`, the cross-entropy with any distributions q. Overwrites the logits `z` with their
/// gradient, `dz_mv = scale (softmax(z_m)_v - q_mv)`, which assumes that each row of q sums to 1.
///
/// Source: PyTorch, `torch.nn.CrossEntropyLoss` with class probabilities as targets and `reduction="none"`; Hinton et al. 2015,
/// "Distilling the Knowledge in a Neural Network".
/// - `logits` (M, V): read, then overwritten with `dz`.
/// - `losses` (M): overwritten.
/// - `distributions` (M, V): q.
pub fn soft_cross_entropy<F: Float + NumAssign>(
    dims: RowDims,
    logits: &mut [F],
    losses: &mut [F],
    distributions: &[F],
    scale: F,
) {
    let RowDims { rows, cols } = dims;
    expect_len("losses", losses, &[rows]);
    expect_len("logits", logits, &[rows, cols]);
    expect_len("distributions", distributions, &[rows, cols]);
    for m in 0..rows {
        let row = &mut logits[m * cols..][..cols];
        let (max, sum) = max_and_sum(row);
        losses[m] = F::zero();
        for (z, &q) in row.iter_mut().zip(&distributions[m * cols..]) {
            losses[m] += q * (sum.ln() - (*z - max));
            *z = scale * ((*z - max).exp() / sum - q);
        }
    }
}

/// `loss_m = log(sum_v exp(z_mv)) - z_mu` with `u = targets_m`: [`cross_entropy`] without the gradient.
///
/// - `losses` (M): overwritten.
/// - `logits` (M, V), `targets` (M), each below V.
pub fn cross_entropy_loss<F: Float + NumAssign>(
    dims: RowDims,
    losses: &mut [F],
    logits: &[F],
    targets: &[u32],
) {
    let RowDims { rows, cols } = dims;
    expect_len("losses", losses, &[rows]);
    expect_len("logits", logits, &[rows, cols]);
    expect_len("targets", targets, &[rows]);
    for m in 0..rows {
        let row = &logits[m * cols..][..cols];
        let target = targets[m] as usize;
        assert!(target < cols, "target {target} of row {m} is outside the vocabulary of {cols}");
        let (max, sum) = max_and_sum(row);
        losses[m] = sum.ln() - (row[target] - max);
    }
}

/// The maximum of a row, and `sum_v exp(z_v - max)`. Subtracting the maximum prevents overflow.
fn max_and_sum<F: Float + NumAssign>(row: &[F]) -> (F, F) {
    let max = row.iter().fold(F::neg_infinity(), |max, &z| max.max(z));
    let mut sum = F::zero();
    for &z in row {
        sum += (z - max).exp();
    }
    (max, sum)
}
