//! GELU in its tanh form, the nonlinearity of GPT-2's feed-forward layers.
//!
//! ```text
//! gelu(x) = x / 2 (1 + tanh(u)),  u = sqrt(2 / pi) (x + 0.044715 x^3)
//!         = x s,                  s = 1 / (1 + exp(-2 u)),  since (1 + tanh(u)) / 2 is the logistic of 2 u
//! ```
//! Hendrycks and Gimpel 2016, "Gaussian Error Linear Units", section 2. Both functions are applied to the tiles of
//! a linear layer's result ([`crate::linear`]), so that they cost no pass over memory.

use crate::element::Element;
use crate::panels::PANEL_COLS;
use crate::vector::exp2;
use std::f32::consts::LOG2_E;

/// sqrt(2 / pi).
const SQRT_2_OVER_PI: f32 = 0.797_884_6;
/// The paper's fitted coefficient of the cube.
const CUBE: f32 = 0.044715;

/// Beyond this on either side nothing changes any more in f32: below, gelu(-10) = -1e-37 stands for zero; above,
/// gelu(x) = x. Powers of what lies further out would overflow.
const REACH: f32 = 10.0;

/// `gelu(x)`.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    let x = not_below(x);
    x * s(not_above(x))
}

/// `gelu(x)` and its derivative, math.md (16).
///
/// ```text
/// gelu'(x) = s + x s (1 - s) 2 u',  u' = sqrt(2 / pi) (1 + 3 * 0.044715 x^2)
/// ```
#[inline(always)]
pub fn gelu_and_slope(x: f32) -> (f32, f32) {
    let x = not_below(x);
    let near = not_above(x);
    let s = s(near);
    let twice_du = (near * near).mul_add(6.0 * SQRT_2_OVER_PI * CUBE, 2.0 * SQRT_2_OVER_PI);
    (x * s, (near * s * (1.0 - s)).mul_add(twice_du, s))
}

/// `y = gelu(x)` for a row of a tile, of which `y` is overwritten.
#[inline(always)]
pub(crate) fn gelu_of_row<E: Element>(y: &mut [f32], x: &[E]) {
    #[inline(always)]
    fn each<E: Element>(y: &mut [f32], x: &[E]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = gelu(x.to_f32()));
    }
    // The length as a constant lets the compiler unroll.
    if x.len() == PANEL_COLS { each(&mut y[..PANEL_COLS], &x[..PANEL_COLS]) } else { each(y, x) }
}

/// `y = gelu(x)` and `dx *= gelu'(x)` for a row of a tile, of which `dx` holds the gradient of `y`, then of `x`.
#[inline(always)]
pub(crate) fn gelu_backward_of_row<E: Element>(dx: &mut [f32], y: &mut [f32], x: &[E]) {
    #[inline(always)]
    fn each<E: Element>(dx: &mut [f32], y: &mut [f32], x: &[E]) {
        for ((dx, y), x) in dx.iter_mut().zip(y).zip(x) {
            let (value, slope) = gelu_and_slope(x.to_f32());
            *y = value;
            *dx *= slope;
        }
    }
    if x.len() == PANEL_COLS {
        each(&mut dx[..PANEL_COLS], &mut y[..PANEL_COLS], &x[..PANEL_COLS]);
    } else {
        each(dx, y, x);
    }
}

/// `x`, but not below minus [`REACH`]. A comparison rather than `max` lets NaN through.
#[inline(always)]
fn not_below(x: f32) -> f32 {
    if x < -REACH { -REACH } else { x }
}

/// `x`, but not above [`REACH`].
#[inline(always)]
fn not_above(x: f32) -> f32 {
    if x > REACH { REACH } else { x }
}

/// `s` for x within [`REACH`], where `exp(-2 u) = 2^y` for a y within 126: `y = x (LINEAR + CUBIC x^2)`.
#[inline(always)]
fn s(x: f32) -> f32 {
    const LINEAR: f32 = -2.0 * SQRT_2_OVER_PI * LOG2_E;
    const CUBIC: f32 = LINEAR * CUBE;
    1.0 / (1.0 + exp2(x * (x * x).mul_add(CUBIC, LINEAR)))
}
