//! Newton–Schulz iterations.

use super::numeric::{dot, expect_len, real};
use crate::newton_schulz::COEFFICIENTS;
use num_traits::{Float, NumAssign};

/// Brings the singular values of a matrix near 1: math.md (40) and (41).
///
/// Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
/// - `x` (rows, cols): replaced by the result.
///
/// ```
/// use folio_kernels::reference::newton_schulz;
/// // The singular value of a row is its length, which five iterations bring to 0.70 from every length.
/// let mut x = [3.0_f64, 4.0];
/// newton_schulz(1, 2, &mut x, 5);
/// assert!((x[0].hypot(x[1]) - 0.70).abs() < 0.02 && (x[0] / x[1] - 0.75).abs() < 1e-12);
/// ```
pub fn newton_schulz<F: Float + NumAssign>(rows: usize, cols: usize, x: &mut [F], iterations: usize) {
    expect_len("x", x, &[rows, cols]);
    let norm = dot(x, x).sqrt();
    if norm > F::zero() {
        x.iter_mut().for_each(|x| *x /= norm);
    }
    let [a, b, c] = COEFFICIENTS.map(real::<F>);
    for _ in 0..iterations {
        // With (X Xᵀ) X = X (Xᵀ X) a matrix with more rows than columns needs no transposition.
        let mut gram = vec![F::zero(); rows * rows];
        for i in 0..rows {
            for j in 0..rows {
                gram[i * rows + j] = dot(&x[i * cols..][..cols], &x[j * cols..][..cols]);
            }
        }
        let old = x.to_vec();
        let cubed = product(rows, cols, &gram, &old);
        let fifth = product(rows, cols, &gram, &cubed);
        for i in 0..x.len() {
            x[i] = a * old[i] + b * cubed[i] + c * fifth[i];
        }
    }
}

/// `gram x`, (rows, rows) times (rows, cols).
fn product<F: Float + NumAssign>(rows: usize, cols: usize, gram: &[F], x: &[F]) -> Vec<F> {
    let mut out = vec![F::zero(); rows * cols];
    for i in 0..rows {
        for k in 0..rows {
            for j in 0..cols {
                out[i * cols + j] += gram[i * rows + k] * x[k * cols + j];
            }
        }
    }
    out
}
