//! GELU in its tanh form, the nonlinearity of GPT-2's feed-forward layers.
//!
//! ```text
//! gelu(x) = x / 2 (1 + tanh(u)),  u = sqrt(2 / pi) (x + 0.044715 x^3)
//!         = x s,                  s = 1 / (1 + exp(-2 u)),  since (1 + tanh(u)) / 2 is the logistic of 2 u
//! ```
//! Hendrycks and Gimpel 2016, "Gaussian Error Linear Units", section 2.

use rayon::prelude::*;

use crate::isa::Isa;
use crate::vector::sigmoid;

/// sqrt(2 / pi).
const SQRT_2_OVER_PI: f32 = 0.797_884_6;
/// The paper's fitted coefficient of the cube.
const CUBE: f32 = 0.044715;
/// Elements of one parallel piece: 64 KiB an array, which stays in the second-level cache.
const PIECE: usize = 16 * 1024;

/// `y = gelu(x)`: `y` is overwritten; both of any one length.
pub fn gelu_forward(y: &mut [f32], x: &[f32]) {
    assert_eq!(y.len(), x.len(), "GELU of {} elements into {}", x.len(), y.len());
    let isa = Isa::detected();
    y.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).for_each(|(y, x)| {
        isa.run(
            #[inline(always)]
            || {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = x * sigmoid(2.0 * inner(x));
                }
            },
        );
    });
}

/// The backward pass, math.md (16), from `y = gelu(x)`, in place on both of its arrays.
///
/// `grad` holds dy and is overwritten by dx; `activation` holds x and is overwritten by y, which the layer
/// behind needs for its weight gradient. So y need not be kept from the forward pass.
///
/// ```text
/// dx = dy (s + x s (1 - s) 2 u'),  u' = sqrt(2 / pi) (1 + 3 * 0.044715 x^2)
/// ```
pub fn gelu_backward(grad: &mut [f32], activation: &mut [f32]) {
    assert_eq!(grad.len(), activation.len(), "GELU backward of two lengths");
    let isa = Isa::detected();
    grad.par_chunks_mut(PIECE).zip(activation.par_chunks_mut(PIECE)).for_each(|(grad, activation)| {
        isa.run(
            #[inline(always)]
            || {
                for (grad, activation) in grad.iter_mut().zip(activation) {
                    let x = *activation;
                    let s = sigmoid(2.0 * inner(x));
                    let du = SQRT_2_OVER_PI * (3.0 * CUBE * x).mul_add(x, 1.0);
                    *activation = x * s;
                    *grad *= (x * s * (1.0 - s)).mul_add(2.0 * du, s);
                }
            },
        );
    });
}

/// `u = sqrt(2 / pi) (x + 0.044715 x^3)`.
#[inline(always)]
fn inner(x: f32) -> f32 {
    SQRT_2_OVER_PI * (CUBE * x * x).mul_add(x, x)
}
