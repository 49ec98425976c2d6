//! AdamW.

use super::numeric::expect_len;
use crate::adamw::AdamwStep;
use num_traits::{Float, NumAssign};

/// One AdamW step: math.md (36) to (38). With `g = gradient_scale * gradient`:
///
/// ```text
/// p <- p (1 - learning_rate weight_decay)
/// m <- beta1 m + (1 - beta1) g
/// v <- beta2 v + (1 - beta2) g^2
/// p <- p - learning_rate / bias_correction1 * m / (sqrt(v) / sqrt(bias_correction2) + eps)
/// ```
///
/// Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization"; PyTorch, `torch.optim.AdamW`, which
/// also decays the parameter first.
/// - `parameter` (p), `exp_avg` (m), `exp_avg_sq` (v), any shape: updated in place.
/// - `gradient` (the shape of `parameter`).
///
/// ```
/// use folio_kernels::adamw::AdamwStep;
/// use folio_kernels::reference::adamw;
/// let step = AdamwStep {
///     learning_rate: 0.1,
///     beta1: 0.9,
///     beta2: 0.99,
///     eps: 0.0,
///     weight_decay: 0.0,
///     gradient_scale: 0.5,
///     bias_correction1: 1.0 - 0.9,
///     bias_correction2: 1.0 - 0.99,
/// };
/// let (mut parameter, mut exp_avg, mut exp_avg_sq) = ([1.0_f64, 1.0], [0.0; 2], [0.0; 2]);
/// // Thanks to the bias correction, the length of the first step is the learning rate, whatever the gradient.
/// adamw(&mut parameter, &[4.0, -0.2], &mut exp_avg, &mut exp_avg_sq, step);
/// assert!((parameter[0] - 0.9).abs() < 1e-15 && (parameter[1] - 1.1).abs() < 1e-15);
/// ```
pub fn adamw<F: Float + NumAssign>(
    parameter: &mut [F],
    gradient: &[F],
    exp_avg: &mut [F],
    exp_avg_sq: &mut [F],
    step: AdamwStep,
) {
    let shape = [parameter.len()];
    expect_len("gradient", gradient, &shape);
    expect_len("exp_avg", exp_avg, &shape);
    expect_len("exp_avg_sq", exp_avg_sq, &shape);
    let factor = |value: f64| F::from(value).expect("any f64 can be rounded to F");
    let AdamwStep { learning_rate, beta1, beta2, weight_decay, .. } = step;
    let (new_avg, new_avg_sq, decay) = (1.0 - beta1, 1.0 - beta2, learning_rate * weight_decay);
    for i in 0..parameter.len() {
        let g = factor(step.gradient_scale) * gradient[i];
        parameter[i] *= factor(1.0 - decay);
        exp_avg[i] = factor(beta1) * exp_avg[i] + factor(new_avg) * g;
        exp_avg_sq[i] = factor(beta2) * exp_avg_sq[i] + factor(new_avg_sq) * g * g;
        let root = exp_avg_sq[i].sqrt() / factor(step.bias_correction2.sqrt()) + factor(step.eps);
        parameter[i] -= factor(learning_rate / step.bias_correction1) * exp_avg[i] / root;
    }
}
