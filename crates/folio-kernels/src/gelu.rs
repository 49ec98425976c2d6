//! GELU, the activation function of GPT-2's MLP: in its tanh form, and exactly.
//!
//! ```text
//! gelu(x) = x / 2 (1 + tanh(u)),  u = sqrt(2 / pi) (x + 0.044715 x^3)
//!         = x s,                  s = 1 / (1 + exp(-2 u)),  since (1 + tanh(u)) / 2 is the logistic function of 2 u
//!
//! gelu(x) = x P(Z <= x) = x / 2 (1 + erf(x / sqrt(2)))
//! ```
//! Hendrycks and Gimpel 2016, "Gaussian Error Linear Units", section 2. The epilogues in [`crate::linear`] apply these
//! functions to the tiles of a matmul, so that GELU needs no pass over memory.

use crate::element::Element;
use crate::vector::{Lanes, exp2, map_lanes, scaled_normal_tail};
use std::f32::consts::LOG2_E;

/// Which form of GELU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gelu {
    /// The tanh form of the published GPT-2.
    Tanh,
    /// The exact form, with erf.
    Erf,
}

/// sqrt(2 / pi).
const SQRT_2_OVER_PI: f32 = 0.797_884_6;
/// The coefficient of the cube, fitted in the paper.
const CUBE: f32 = 0.044715;

/// Arguments are clamped to this range, beyond which gelu is constant or linear in f32: gelu(-10) = -1e-37, practically
/// zero, and gelu(x) = x for x > 10. Without clamping the exponential would overflow.
const REACH: f32 = 10.0;

/// `y = gelu(x)` for a row, in the tanh form; `y` is overwritten.
///
/// # Panics
/// If the rows differ in length.
#[inline(always)]
pub fn gelu_of_row<E: Element>(y: &mut [f32], x: &[E]) {
    map_lanes(
        [y],
        x,
        #[inline(always)]
        |_, x| {
            let Values { value, .. } = values(x);
            [value]
        },
    );
}

/// `y = gelu(x)` and `dx *= gelu'(x)` for a row, in the tanh form: math.md (16). `y` is overwritten. `dx` contains the gradient of `y` on
/// entry and the gradient of `x` on return.
///
/// ```text
/// gelu'(x) = s + x s (1 - s) 2 u',  u' = sqrt(2 / pi) (1 + 3 * 0.044715 x^2)
/// ```
///
/// # Panics
/// If the rows differ in length.
#[inline(always)]
pub fn gelu_backward_of_row<E: Element>(dx: &mut [f32], y: &mut [f32], x: &[E]) {
    map_lanes(
        [dx, y],
        x,
        #[inline(always)]
        |[dx, _], x| {
            let Values { value, near, square, s } = values(x);
            let twice_du = square.mul_add(6.0 * SQRT_2_OVER_PI * CUBE, 2.0 * SQRT_2_OVER_PI);
            let near_value = near * s;
            let slope = near_value.mul_add(-s, near_value).mul_add(twice_du, s);
            [dx * slope, value]
        },
    );
}

/// `y = gelu(x)` for a row, exactly; `y` is overwritten.
///
/// # Panics
/// If the rows differ in length.
#[inline(always)]
pub fn gelu_erf_of_row<E: Element>(y: &mut [f32], x: &[E]) {
    map_lanes(
        [y],
        x,
        #[inline(always)]
        |_, x| {
            let ErfValues { value, .. } = erf_values(x);
            [value]
        },
    );
}

/// `y = gelu(x)` and `dx *= gelu'(x)` for a row, exactly: math.md (16a). `y` is overwritten. `dx` contains the gradient of
/// `y` on entry and the gradient of `x` on return.
///
/// ```text
/// gelu'(x) = P(Z <= x) + x exp(-x^2 / 2) / sqrt(2 pi)
/// ```
///
/// # Panics
/// If the rows differ in length.
#[inline(always)]
pub fn gelu_erf_backward_of_row<E: Element>(dx: &mut [f32], y: &mut [f32], x: &[E]) {
    map_lanes(
        [dx, y],
        x,
        #[inline(always)]
        |[dx, _], x| {
            let ErfValues { value, near, cdf, exp } = erf_values(x);
            let slope = near.mul_add(exp * INV_SQRT_2PI, cdf);
            [dx * slope, value]
        },
    );
}

/// GELU, and the intermediate values that its derivative needs.
struct Values {
    /// gelu(x).
    value: Lanes,
    /// x clamped to at most [`REACH`].
    near: Lanes,
    /// The square of `near`.
    square: Lanes,
    s: Lanes,
}

/// `exp(-2 u) = 2^y` with `y = x (LINEAR + CUBIC x^2)`. |y| stays below 126 because x is within [`REACH`].
#[inline(always)]
fn values(x: Lanes) -> Values {
    const LINEAR: f32 = -2.0 * SQRT_2_OVER_PI * LOG2_E;
    const CUBIC: f32 = LINEAR * CUBE;
    let x = x.not_below(-REACH);
    let near = x.not_above(REACH);
    let square = near * near;
    let s = 1.0 / (exp2(near * square.mul_add(CUBIC, LINEAR)) + 1.0);
    Values { value: x * s, near, square, s }
}

/// 1 / sqrt(2 pi).
const INV_SQRT_2PI: f32 = 0.398_942_3;

/// The same as [`REACH`] for the exact form: gelu(-12.5) = -5e-35, and gelu(x) = x for x > 12.5. Beyond 13.2 the
/// exponential would be subnormal.
const ERF_REACH: f32 = 12.5;

/// The exact GELU, and the intermediate values that its derivative needs.
struct ErfValues {
    /// gelu(x).
    value: Lanes,
    /// x clamped to [`ERF_REACH`].
    near: Lanes,
    /// P(Z <= x).
    cdf: Lanes,
    /// exp(-x^2 / 2).
    exp: Lanes,
}

/// `P(Z <= x)` is the lower tail for negative x, and 1 minus the upper tail, which has the same size, for others. Neither
/// cancels.
#[inline(always)]
fn erf_values(x: Lanes) -> ErfValues {
    let x = x.not_below(-ERF_REACH);
    let near = x.not_above(ERF_REACH);
    let exp = exp2(near * near * (-0.5 * LOG2_E));
    let tail = exp * scaled_normal_tail(near.abs());
    let cdf = x.if_negative(tail, -tail + 1.0);
    ErfValues { value: x * cdf, near, cdf, exp }
}
