//! The activation function of the MLP: GELU in its tanh form, as in GPT-2.

use super::numeric::{expect_len, real};
use num_traits::{Float, NumAssign};
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

/// `sqrt(2 / pi)`.
const SQRT_2_OVER_PI: f64 = FRAC_2_SQRT_PI * FRAC_1_SQRT_2;
/// The coefficient of the cube, fitted in the paper.
const CUBIC: f64 = 0.044715;

/// `y = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
///
/// Source: Hendrycks and Gimpel 2016, "Gaussian Error Linear Units"; PyTorch, `torch.nn.GELU` with
/// `approximate="tanh"`.
/// - `y` (any shape): overwritten.
/// - `x` (the shape of `y`).
pub fn gelu_forward<F: Float + NumAssign>(y: &mut [F], x: &[F]) {
    expect_len("y", y, &[x.len()]);
    let half = real::<F>(0.5);
    for i in 0..x.len() {
        y[i] = half * x[i] * (F::one() + inner(x[i]).tanh());
    }
}

/// With `u = sqrt(2/pi) (x + 0.044715 x^3)` and `t = tanh(u)`:
/// `dx = dy ((1 + t)/2 + x/2 (1 - t^2) sqrt(2/pi) (1 + 3 * 0.044715 x^2))`: math.md (16).
///
/// Differentiates `y[i] = half * x[i] * (1 + inner(x[i]).tanh())`.
/// - `dx` (any shape): overwritten.
/// - `dy`, `x` (the shape of `dx`).
pub fn gelu_backward<F: Float + NumAssign>(dx: &mut [F], dy: &[F], x: &[F]) {
    expect_len("dx", dx, &[x.len()]);
    expect_len("dy", dy, &[x.len()]);
    let half = real::<F>(0.5);
    for i in 0..x.len() {
        let tanh = inner(x[i]).tanh();
        let inner_slope = real::<F>(SQRT_2_OVER_PI) * (F::one() + real::<F>(3.0 * CUBIC) * x[i] * x[i]);
        let slope = half * (F::one() + tanh) + half * x[i] * (F::one() - tanh * tanh) * inner_slope;
        dx[i] = dy[i] * slope;
    }
}

/// The argument of the tanh.
fn inner<F: Float>(x: F) -> F {
    real::<F>(SQRT_2_OVER_PI) * (x + real::<F>(CUBIC) * x * x * x)
}
