//! AdamW, and the norm by which gradients are clipped.
//!
//! ```text
//! p <- p - lr decay p
//! m <- beta1 m + (1 - beta1) g,  v <- beta2 v + (1 - beta2) g^2
//! p <- p - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
//! ```
//! Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2, in the form of PyTorch's
//! `AdamW`: the decay is multiplied by the learning rate.

use rayon::prelude::*;

use crate::isa::Isa;
use crate::tile::{Intent, LINE, prefetch};
use crate::vector::sum_by;

/// Elements of one parallel piece: four arrays of 64 KiB stay in the second-level cache.
const PIECE: usize = 16 * 1024;

/// Elements that are computed together: one cache line of each array to prefetch at a time would be too short a loop.
const CHUNK: usize = 64;
/// How far ahead the arrays are prefetched, in elements: 2 KiB each. Measured: docs/log.md.
const AHEAD: usize = 512;

/// The numbers of one step of AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamwStep {
    /// lr.
    pub learning_rate: f32,
    /// Decay of the mean of gradients.
    pub beta1: f32,
    /// Decay of the mean of squared gradients.
    pub beta2: f32,
    /// Added to the denominator.
    pub eps: f32,
    /// The decoupled decay, per unit of learning rate.
    pub weight_decay: f32,
    /// What the gradient is multiplied by first: below 1 when it is clipped.
    pub gradient_scale: f32,
    /// `1 - beta1^t`, t counting from 1.
    pub bias_correction1: f32,
    /// `1 - beta2^t`.
    pub bias_correction2: f32,
}

/// One step of AdamW on one tensor, math.md (36) to (38).
///
/// `parameter`, `mean` (m) and `square` (v) are updated in place; `gradient` is read. All of one length.
pub fn adamw(parameter: &mut [f32], gradient: &[f32], mean: &mut [f32], square: &mut [f32], step: AdamwStep) {
    let len = parameter.len();
    assert_eq!(
        (gradient.len(), mean.len(), square.len()),
        (len, len, len),
        "AdamW on arrays of unlike length"
    );
    let isa = Isa::detected();
    let keep = 1.0 - step.learning_rate * step.weight_decay;
    let rate = step.learning_rate / step.bias_correction1;
    let root = 1.0 / step.bias_correction2.sqrt();
    let moments = mean.par_chunks_mut(PIECE).zip(square.par_chunks_mut(PIECE));
    let tensors = parameter.par_chunks_mut(PIECE).zip(gradient.par_chunks(PIECE));
    tensors.zip(moments).for_each(|((parameter, gradient), (mean, square))| {
        isa.run(
            #[inline(always)]
            || {
                let moments = mean.chunks_mut(CHUNK).zip(square.chunks_mut(CHUNK));
                let tensors = parameter.chunks_mut(CHUNK).zip(gradient.chunks(CHUNK));
                for ((parameter, gradient), (mean, square)) in tensors.zip(moments) {
                    for (array, intent) in [
                        (parameter.as_ptr(), Intent::Write),
                        (gradient.as_ptr(), Intent::Read),
                        (mean.as_ptr(), Intent::Write),
                        (square.as_ptr(), Intent::Write),
                    ] {
                        let ahead = array.wrapping_add(AHEAD).cast::<u8>();
                        for line in (0..CHUNK * size_of::<f32>()).step_by(LINE) {
                            prefetch(ahead.wrapping_add(line), intent);
                        }
                    }
                    let moments = mean.iter_mut().zip(square);
                    for ((p, &g), (m, v)) in parameter.iter_mut().zip(gradient).zip(moments) {
                        let g = g * step.gradient_scale;
                        *m += (1.0 - step.beta1) * (g - *m);
                        *v = step.beta2 * *v + (1.0 - step.beta2) * g * g;
                        *p = keep * *p - rate * *m / (v.sqrt() * root + step.eps);
                    }
                }
            },
        );
    });
}

/// The sum of squares of `x`, added up in f64 over pieces of fixed size in a fixed order.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    const PIECES: usize = 64;
    let isa = Isa::detected();
    let piece = x.len().div_ceil(PIECES).max(1).next_multiple_of(1024);
    let mut sums = [0.0f64; PIECES];
    sums.par_iter_mut().zip(x.par_chunks(piece)).for_each(|(sum, x)| {
        *sum = isa.run(
            #[inline(always)]
            || {
                let mut sum = 0.0;
                for x in x.chunks(1024) {
                    sum += f64::from(sum_by([x], |[x]| x * x));
                }
                sum
            },
        );
    });
    sums.iter().sum()
}
