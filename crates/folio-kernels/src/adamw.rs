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

/// The numbers of one step of AdamW. What the kernel multiplies by is computed from them in f64 and rounded once:
/// `1 - beta2` of a rounded beta2 of 0.9999 would be off by 1.7e-4.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamwStep {
    /// lr.
    pub learning_rate: f64,
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// The decoupled decay, per unit of learning rate.
    pub weight_decay: f64,
    /// What the gradient is multiplied by first: below 1 when it is clipped.
    pub gradient_scale: f64,
    /// `1 - beta1^t`, t counting from 1.
    pub bias_correction1: f64,
    /// `1 - beta2^t`.
    pub bias_correction2: f64,
}

/// The factors of one step as the kernel's loop uses them.
#[derive(Clone, Copy)]
struct Factors {
    /// What the gradient is multiplied by.
    scale: f32,
    mean: Moment,
    square: Moment,
    /// `lr decay`
    decay: f32,
    /// `lr / (1 - beta1^t)`
    rate: f32,
    /// `1 / sqrt(1 - beta2^t)`
    root: f32,
    eps: f32,
}

/// How a moment m follows x with the decay beta: `keep m + (1 - beta) (x - part m)`. With keep and part 1 only `1 - beta` is
/// rounded, to its own relative precision. A beta below 1/2 takes the other form of the same, keep = beta and part = 0,
/// because there m may be much larger than the result.
#[derive(Clone, Copy)]
struct Moment {
    keep: f32,
    part: f32,
    /// `1 - beta`
    new: f32,
}

impl Moment {
    fn of(beta: f64) -> Self {
        let (keep, part) = if beta < 0.5 { (beta as f32, 0.0) } else { (1.0, 1.0) };
        Self { keep, part, new: (1.0 - beta) as f32 }
    }

    #[inline(always)]
    fn next(self, m: f32, x: f32) -> f32 {
        self.keep * m + self.new * (x - self.part * m)
    }
}

impl Factors {
    fn of(step: AdamwStep) -> Self {
        Self {
            scale: step.gradient_scale as f32,
            mean: Moment::of(step.beta1),
            square: Moment::of(step.beta2),
            decay: (step.learning_rate * step.weight_decay) as f32,
            rate: (step.learning_rate / step.bias_correction1) as f32,
            root: (1.0 / step.bias_correction2.sqrt()) as f32,
            eps: step.eps as f32,
        }
    }
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
    let Factors { scale, mean: first, square: second, decay, rate, root, eps } = Factors::of(step);
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
                        let g = g * scale;
                        *m = first.next(*m, g);
                        *v = second.next(*v, g * g);
                        *p -= decay * *p + rate * *m / (v.sqrt() * root + eps);
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
