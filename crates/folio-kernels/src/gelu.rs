//! GELU in its tanh form, the nonlinearity of GPT-2's feed-forward layers.
//!
//! ```text
//! gelu(x) = x / 2 (1 + tanh(u)),  u = sqrt(2 / pi) (x + 0.044715 x^3)
//!         = x s,                  s = 1 / (1 + exp(-2 u)),  since (1 + tanh(u)) / 2 is the logistic of 2 u
//! ```
//! Hendrycks and Gimpel 2016, "Gaussian Error Linear Units", section 2. Both functions are applied to the tiles of
//! a linear layer's result ([`crate::linear`]), so that they cost no pass over memory.

use crate::vector::sigmoid;

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
    x * sigmoid(2.0 * inner(x))
}

/// `gelu(x)` and its derivative, math.md (16).
///
/// ```text
/// gelu'(x) = s + x s (1 - s) 2 u',  u' = sqrt(2 / pi) (1 + 3 * 0.044715 x^2)
/// ```
#[inline(always)]
pub fn gelu_and_slope(x: f32) -> (f32, f32) {
    let x = not_below(x);
    let near = if x > REACH { REACH } else { x };
    let s = sigmoid(2.0 * inner(near));
    let du = SQRT_2_OVER_PI * (3.0 * CUBE * near).mul_add(near, 1.0);
    (x * s, (near * s * (1.0 - s)).mul_add(2.0 * du, s))
}

/// `x`, but not below minus [`REACH`]. A comparison rather than `max` lets NaN through.
#[inline(always)]
fn not_below(x: f32) -> f32 {
    if x < -REACH { -REACH } else { x }
}

/// `u = sqrt(2 / pi) (x + 0.044715 x^3)`.
#[inline(always)]
fn inner(x: f32) -> f32 {
    SQRT_2_OVER_PI * (CUBE * x * x).mul_add(x, x)
}
