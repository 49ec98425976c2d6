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

/// `gelu(x)`.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    x * sigmoid(2.0 * inner(x))
}

/// `gelu(x)` and its derivative, math.md (16).
///
/// ```text
/// gelu'(x) = s + x s (1 - s) 2 u',  u' = sqrt(2 / pi) (1 + 3 * 0.044715 x^2)
/// ```
#[inline(always)]
pub fn gelu_and_slope(x: f32) -> (f32, f32) {
    let s = sigmoid(2.0 * inner(x));
    let du = SQRT_2_OVER_PI * (3.0 * CUBE * x).mul_add(x, 1.0);
    (x * s, (x * s * (1.0 - s)).mul_add(2.0 * du, s))
}

/// `u = sqrt(2 / pi) (x + 0.044715 x^3)`.
#[inline(always)]
fn inner(x: f32) -> f32 {
    SQRT_2_OVER_PI * (CUBE * x * x).mul_add(x, x)
}
