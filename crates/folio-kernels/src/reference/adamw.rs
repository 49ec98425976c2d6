//! The optimizer's step.

use super::expect_len;
use num_traits::{Float, NumAssign};

/// The numbers of one step of AdamW, alike for all the elements of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep<F> {
    /// The step length, after warm-up and decay.
    pub learning_rate: F,
    /// How much of the first moment is kept.
    pub beta1: F,
    /// How much of the second moment is kept.
    pub beta2: F,
    /// What is added to the root of the second moment, so that nothing is divided by zero.
    pub eps: F,
    /// The decoupled weight decay; zero for parameters that do not decay.
    pub weight_decay: F,
    /// The factor on the gradient: clipping's, or one.
    pub gradient_scale: F,
    /// `1 - beta1^t` at step t, counted from 1.
    pub bias_correction1: F,
    /// `1 - beta2^t` at step t, counted from 1.
    pub bias_correction2: F,
}

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
/// use folio_kernels::reference::{AdamWStep, adamw};
/// let step = AdamWStep {
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
    step: AdamWStep<F>,
) {
    let shape = [parameter.len()];
    expect_len("gradient", gradient, &shape);
    expect_len("first", first, &shape);
    expect_len("second", second, &shape);
    let AdamWStep { learning_rate, beta1, beta2, eps, weight_decay, .. } = step;
    for i in 0..parameter.len() {
        let g = step.gradient_scale * gradient[i];
        parameter[i] *= F::one() - learning_rate * weight_decay;
        first[i] = beta1 * first[i] + (F::one() - beta1) * g;
        second[i] = beta2 * second[i] + (F::one() - beta2) * g * g;
        let root = second[i].sqrt() / step.bias_correction2.sqrt() + eps;
        parameter[i] -= learning_rate / step.bias_correction1 * first[i] / root;
    }
}
