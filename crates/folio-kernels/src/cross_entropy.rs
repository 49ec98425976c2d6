//! Cross-entropy of the next token, and its gradient in the place of the logits.
//!
//! ```text
//! loss = -ln softmax(logits)[target] = ln(sum of exp(logits - m)) + m - logits[target],  m = max(logits)
//! ```
//! The maximum is subtracted first, so that no exponential overflows. PyTorch's `F.cross_entropy`.

use rayon::prelude::*;

use crate::dims::RowDims;
use crate::isa::Isa;
use crate::vector::{exp, exp_minus_max, max, sum_by};

/// The loss of every row, and `dlogits = scale (softmax(logits) - onehot(target))` in place, math.md (31).
///
/// `logits` (rows, V) is overwritten by its gradient; `losses` (rows), in nats, is overwritten; `targets` (rows).
/// With `scale` = 1 / rows it is the gradient of the mean loss.
///
/// # Panics
/// If a target is not below V.
pub fn cross_entropy(dims: RowDims, logits: &mut [f32], losses: &mut [f32], targets: &[u32], scale: f32) {
    check(dims, logits.len(), losses.len(), targets);
    let isa = Isa::detected();
    let rows = logits.par_chunks_exact_mut(dims.cols).zip(losses).zip(targets);
    rows.with_min_len(min_rows(dims.cols)).for_each(|((row, loss), &target)| {
        isa.run(
            #[inline(always)]
            || {
                let at_target = row[target as usize];
                let (greatest, total) = exp_minus_max(row);
                *loss = total.ln() + (greatest - at_target);
                let factor = scale / total;
                row.iter_mut().for_each(|value| *value *= factor);
                row[target as usize] -= scale;
            },
        );
    });
}

/// The loss of every row; the logits stay as they are.
///
/// `losses` (rows), in nats, is overwritten; `logits` (rows, V); `targets` (rows).
///
/// # Panics
/// If a target is not below V.
pub fn cross_entropy_loss(dims: RowDims, losses: &mut [f32], logits: &[f32], targets: &[u32]) {
    check(dims, logits.len(), losses.len(), targets);
    let isa = Isa::detected();
    let rows = logits.par_chunks_exact(dims.cols).zip(losses).zip(targets);
    rows.with_min_len(min_rows(dims.cols)).for_each(|((row, loss), &target)| {
        isa.run(
            #[inline(always)]
            || {
                let greatest = max(row);
                let total = sum_by(row.len(), |i| exp(row[i] - greatest));
                *loss = total.ln() + (greatest - row[target as usize]);
            },
        );
    });
}

/// Rows that one thread takes at least: about 16,384 logits.
fn min_rows(cols: usize) -> usize {
    (16 * 1024 / cols).max(1)
}

fn check(dims: RowDims, logits_len: usize, losses_len: usize, targets: &[u32]) {
    let RowDims { rows, cols } = dims;
    assert_eq!((logits_len, losses_len, targets.len()), (rows * cols, rows, rows), "{dims:?}");
    if let Some(target) = targets.iter().find(|&&target| target as usize >= cols) {
        panic!("target {target} is outside the vocabulary of {cols}");
    }
}
