//! The activation function of the MLP: GELU in its tanh form, as in GPT-2, and exactly.

use super::numeric::{expect_len, real};
use crate::gelu::Gelu;
use num_traits::{Float, NumAssign};
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

/// `sqrt(2 / pi)`.
const SQRT_2_OVER_PI: f64 = FRAC_2_SQRT_PI * FRAC_1_SQRT_2;
/// The coefficient of the cube, fitted in the paper.
const CUBIC: f64 = 0.044715;

/// `y = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`, or exactly `y = x P(Z <= x)` for a standard normal Z.
///
/// Source: Hendrycks and Gimpel 2016, "Gaussian Error Linear Units"; PyTorch, `torch.nn.GELU` with
/// `approximate="tanh"` and without.
/// - `y` (any shape): overwritten.
/// - `x` (the shape of `y`).
pub fn gelu_forward<F: Float + NumAssign>(gelu: Gelu, y: &mut [F], x: &[F]) {
    expect_len("y", y, &[x.len()]);
    let half = real::<F>(0.5);
    for i in 0..x.len() {
        y[i] = match gelu {
            Gelu::Tanh => half * x[i] * (F::one() + inner(x[i]).tanh()),
            Gelu::Erf => x[i] * normal_cdf(x[i]),
        };
    }
}

/// With `u = sqrt(2/pi) (x + 0.044715 x^3)` and `t = tanh(u)`:
/// `dx = dy ((1 + t)/2 + x/2 (1 - t^2) sqrt(2/pi) (1 + 3 * 0.044715 x^2))`: math.md (16). Exactly:
/// `dx = dy (P(Z <= x) + x exp(-x^2/2) / sqrt(2 pi))`: math.md (16a).
///
/// Differentiates `y[i] = half * x[i] * (1 + inner(x[i]).tanh())` or `y[i] = x[i] * normal_cdf(x[i])`.
/// - `dx` (any shape): overwritten.
/// - `dy`, `x` (the shape of `dx`).
pub fn gelu_backward<F: Float + NumAssign>(gelu: Gelu, dx: &mut [F], dy: &[F], x: &[F]) {
    expect_len("dx", dx, &[x.len()]);
    expect_len("dy", dy, &[x.len()]);
    let half = real::<F>(0.5);
    for i in 0..x.len() {
        let slope = match gelu {
            Gelu::Tanh => {
                let tanh = inner(x[i]).tanh();
                let inner_slope =
                    real::<F>(SQRT_2_OVER_PI) * (F::one() + real::<F>(3.0 * CUBIC) * x[i] * x[i]);
                half * (F::one() + tanh) + half * x[i] * (F::one() - tanh * tanh) * inner_slope
            }
            Gelu::Erf => normal_cdf(x[i]) + x[i] * normal_density(x[i]),
        };
        dx[i] = dy[i] * slope;
    }
}

/// The argument of the tanh.
fn inner<F: Float>(x: F) -> F {
    real::<F>(SQRT_2_OVER_PI) * (x + real::<F>(CUBIC) * x * x * x)
}

/// `exp(-x^2/2) / sqrt(2 pi)`.
fn normal_density<F: Float>(x: F) -> F {
    (-(x * x) / real(2.0)).exp() * real::<F>(0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2)
}

/// `P(Z <= x) = (1 + erf(x / sqrt(2))) / 2` for a standard normal Z.
///
/// Up to 3 from zero, the series `1/2 + density(x) (x + x^3/3 + x^5/(3 5) + x^7/(3 5 7) + ...)`; beyond, the continued
/// fraction of a tail `density(x) / (x + 1/(x + 2/(x + 3/(x + ...))))`, so that small probabilities do not cancel. Both to
/// more terms than f64 can tell apart.
///
/// Source: Abramowitz and Stegun 1964, "Handbook of Mathematical Functions", 26.2.11 and 26.2.14.
fn normal_cdf<F: Float + NumAssign>(x: F) -> F {
    if x.abs() < real(3.0) {
        let (mut sum, mut term) = (F::zero(), x);
        for n in 1..60 {
            sum += term;
            term *= x * x / real(f64::from(2 * n + 1));
        }
        return real::<F>(0.5) + normal_density(x) * sum;
    }
    let z = x.abs();
    let mut fraction = z;
    for n in (1..=200).rev() {
        fraction = z + real::<F>(f64::from(n)) / fraction;
    }
    let tail = normal_density(z) / fraction;
    if x < F::zero() { tail } else { F::one() - tail }
}
