//! The optimizer's step.

use super::expect_len;
use crate::adamw::AdamwStep;
use num_traits::{Float, NumAssign};

/// One step of AdamW, math.md (36) to (38), with `g = gradient_scale * gradient`: `p <- p (1 - learning_rate
/// weight_decay)`, `m <- beta1 m + (1 - beta1) g`, `v <- beta2 v + (1 - beta2) g^2`, `p <- p - learning_rate
/// / bias_correction1 * m / (sqrt(v) / sqrt(bias_correction2) + eps)`.
///
/// Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization"; PyTorch, `torch.optim.AdamW`,
/// which decays the parameter first too.
/// - `parameter` (p), `first` (m), `second` (v), of one and any shape: updated in place.
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
/// let (mut parameter, mut first, mut second) = ([1.0_f64, 1.0], [0.0; 2], [0.0; 2]);
/// // Corrected for their start at zero, the moments make the first step as long as the learning rate,
/// // however long the gradient.
/// adamw(&mut parameter, &[4.0, -0.2], &mut first, &mut second, step);
/// assert!((parameter[0] - 0.9).abs() < 1e-15 && (parameter[1] - 1.1).abs() < 1e-15);
/// ```
pub fn adamw<F: Float + NumAssign>(
    parameter: &mut [F],
    gradient: &[F],
    first: &mut [F],
    second: &mut [F],
    step: AdamwStep,
) {
    let shape = [parameter.len()];
    expect_len("gradient", gradient, &shape);
    expect_len("first", first, &shape);
    expect_len("second", second, &shape);
    let factor = |value: f64| F::from(value).expect("a float holds any f64, rounded");
    let AdamwStep { learning_rate, beta1, beta2, weight_decay, .. } = step;
    let (new_mean, new_square, decay) = (1.0 - beta1, 1.0 - beta2, learning_rate * weight_decay);
    for i in 0..parameter.len() {
        let g = factor(step.gradient_scale) * gradient[i];
        parameter[i] *= factor(1.0 - decay);
        first[i] = factor(beta1) * first[i] + factor(new_mean) * g;
        second[i] = factor(beta2) * second[i] + factor(new_square) * g * g;
        let root = second[i].sqrt() / factor(step.bias_correction2.sqrt()) + factor(step.eps);
        parameter[i] -= factor(learning_rate / step.bias_correction1) * first[i] / root;
    }
}
