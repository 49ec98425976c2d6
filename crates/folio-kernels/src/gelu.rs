//! GELU in its tanh form, the nonlinearity of GPT-2's feed-forward layers.
//!
//! ```text
//! gelu(x) = x / 2 (1 + tanh(u)),  u = sqrt(2 / pi) (x + 0.044715 x^3)
//!         = x s,                  s = 1 / (1 + exp(-2 u)),  since (1 + tanh(u)) / 2 is the logistic of 2 u
//! ```
//! Hendrycks and Gimpel 2016, "Gaussian Error Linear Units", section 2. Both functions are applied to the tiles of
//! a linear layer's result ([`crate::linear`]), so that they cost no pass over memory.

use crate::element::Element;
use crate::vector::{Lanes, exp2, map_lanes};
use std::f32::consts::LOG2_E;

/// sqrt(2 / pi).
const SQRT_2_OVER_PI: f32 = 0.797_884_6;
/// The paper's fitted coefficient of the cube.
const CUBE: f32 = 0.044715;

/// Beyond this on either side nothing changes any more in f32: below, gelu(-10) = -1e-37 stands for zero; above,
/// gelu(x) = x. Powers of what lies further out would overflow.
const REACH: f32 = 10.0;

/// `y = gelu(x)` for a row, of which `y` is overwritten.
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

/// `y = gelu(x)` and `dx *= gelu'(x)` for a row, math.md (16): `y` is overwritten, `dx` holds the gradient of `y`, then
/// that of `x`.
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

/// GELU, and what its slope shares with it.
struct Values {
    /// gelu(x).
    value: Lanes,
    /// x within [`REACH`].
    near: Lanes,
    /// Its square.
    square: Lanes,
    s: Lanes,
}

/// `exp(-2 u) = 2^y` for a y within 126, since x is within [`REACH`]: `y = x (LINEAR + CUBIC x^2)`.
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
