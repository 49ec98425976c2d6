//! AdamW, and the gradient norm for clipping.
//!
//! ```text
//! p <- p - lr decay p
//! m <- beta1 m + (1 - beta1) g,  v <- beta2 v + (1 - beta2) g^2
//! p <- p - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
//! ```
//! m is `exp_avg` and v is `exp_avg_sq`. Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm
//! 2, in the form of PyTorch's `AdamW`: the decay is multiplied by the learning rate.

use rayon::prelude::*;

use crate::isa::Isa;
use crate::moving_average::MovingAverage;
use crate::prefetch::{CACHE_LINE, PrefetchHint, prefetch};
use crate::vector::sum_by;

/// Elements per parallel task: four arrays of 64 KiB fit into the second-level cache.
const PIECE: usize = 16 * 1024;

/// Elements per inner loop. A loop over a single cache line of each array would be too short.
const CHUNK: usize = 64;
/// How far ahead the arrays are prefetched, in elements: 2 KiB each. Measurements: docs/experiments.md.
const AHEAD: usize = 512;

/// The parameters of one AdamW step. The kernel's factors are computed from them in f64 and rounded once: with beta2 =
/// 0.9999 rounded to f32, `1 - beta2` would be off by 1.7e-4.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamwStep {
    /// lr, the learning rate.
    pub learning_rate: f64,
    /// Decay rate of `exp_avg`, the moving average of gradients.
    pub beta1: f64,
    /// Decay rate of `exp_avg_sq`, the moving average of squared gradients.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// The decoupled weight decay, multiplied by the learning rate.
    pub weight_decay: f64,
    /// The factor on the gradient; below 1 when the gradient is clipped.
    pub gradient_scale: f64,
    /// `1 - beta1^t`, with t counted from 1.
    pub bias_correction1: f64,
    /// `1 - beta2^t`.
    pub bias_correction2: f64,
}

/// The factors of one step, as the inner loop uses them.
#[derive(Clone, Copy)]
struct Factors {
    /// The factor on the gradient.
    scale: f32,
    exp_avg: MovingAverage,
    exp_avg_sq: MovingAverage,
    /// `lr decay`
    decay: f32,
    /// `lr / (1 - beta1^t)`
    rate: f32,
    /// `1 / sqrt(1 - beta2^t)`
    root: f32,
    eps: f32,
}

impl Factors {
    fn of(step: AdamwStep) -> Self {
        Self {
            scale: step.gradient_scale as f32,
            exp_avg: MovingAverage::of(step.beta1),
            exp_avg_sq: MovingAverage::of(step.beta2),
            decay: (step.learning_rate * step.weight_decay) as f32,
            rate: (step.learning_rate / step.bias_correction1) as f32,
            root: (1.0 / step.bias_correction2.sqrt()) as f32,
            eps: step.eps as f32,
        }
    }
}

/// One AdamW step on one tensor: math.md (36) to (38).
///
/// - `parameter`, `exp_avg` (m), `exp_avg_sq` (v): updated in place.
/// - `gradient`: read. All four have the same length.
pub fn adamw(
    parameter: &mut [f32],
    gradient: &[f32],
    exp_avg: &mut [f32],
    exp_avg_sq: &mut [f32],
    step: AdamwStep,
) {
    let len = parameter.len();
    assert_eq!(
        (gradient.len(), exp_avg.len(), exp_avg_sq.len()),
        (len, len, len),
        "lengths of gradient, exp_avg and exp_avg_sq"
    );
    let isa = Isa::detected();
    let Factors { scale, exp_avg: first_moment, exp_avg_sq: second_moment, decay, rate, root, eps } =
        Factors::of(step);
    let moments = exp_avg.par_chunks_mut(PIECE).zip(exp_avg_sq.par_chunks_mut(PIECE));
    let tensors = parameter.par_chunks_mut(PIECE).zip(gradient.par_chunks(PIECE));
    tensors.zip(moments).for_each(|((parameter, gradient), (exp_avg, exp_avg_sq))| {
        isa.run(
            #[inline(always)]
            || {
                let moments = exp_avg.chunks_mut(CHUNK).zip(exp_avg_sq.chunks_mut(CHUNK));
                let tensors = parameter.chunks_mut(CHUNK).zip(gradient.chunks(CHUNK));
                for ((parameter, gradient), (exp_avg, exp_avg_sq)) in tensors.zip(moments) {
                    for (array, hint) in [
                        (parameter.as_ptr(), PrefetchHint::Write),
                        (gradient.as_ptr(), PrefetchHint::Read),
                        (exp_avg.as_ptr(), PrefetchHint::Write),
                        (exp_avg_sq.as_ptr(), PrefetchHint::Write),
                    ] {
                        let ahead = array.wrapping_add(AHEAD).cast::<u8>();
                        for line in (0..CHUNK * size_of::<f32>()).step_by(CACHE_LINE) {
                            prefetch(ahead.wrapping_add(line), hint);
                        }
                    }
                    let moments = exp_avg.iter_mut().zip(exp_avg_sq);
                    for ((p, &g), (m, v)) in parameter.iter_mut().zip(gradient).zip(moments) {
                        let g = g * scale;
                        *m = first_moment.next(*m, g);
                        *v = second_moment.next(*v, g * g);
                        *p -= decay * *p + rate * *m / (v.sqrt() * root + eps);
                    }
                }
            },
        );
    });
}

/// Elements whose squares [`sum_of_squares`] adds in f32 before it goes on in f64.
pub const SQUARES: usize = 1024;
/// The sums of squares are added in this many pieces at most.
const PIECES: usize = 64;

/// The elements of one piece of an array of `len`.
fn piece_of_squares(len: usize) -> usize {
    len.div_ceil(PIECES).max(1).next_multiple_of(SQUARES)
}

/// Prefetches the elements that follow `x`, as many as `x` has.
#[inline(always)]
fn prefetch_next(x: &[f32]) {
    let next = x.as_ptr().wrapping_add(x.len()).cast::<u8>();
    for line in (0..size_of_val(x)).step_by(CACHE_LINE) {
        prefetch(next.wrapping_add(line), PrefetchHint::Read);
    }
}

/// The sum of squares of `x`, in f64. The order of summation is fixed: blocks whose size depends only on the length.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    let isa = Isa::detected();
    let mut sums = [0.0f64; PIECES];
    sums.par_iter_mut().zip(x.par_chunks(piece_of_squares(x.len()))).for_each(|(sum, x)| {
        *sum = isa.run(
            #[inline(always)]
            || {
                let mut sum = 0.0;
                for x in x.chunks(SQUARES) {
                    prefetch_next(x);
                    sum += f64::from(sum_by([x], |[x]| x * x));
                }
                sum
            },
        );
    });
    sums.iter().sum()
}

/// The sums of squares of every [`SQUARES`] elements of `x`, for [`sum_of_partial_squares`].
pub fn partial_squares(x: &[f32], sums: &mut [f32]) {
    assert_eq!(sums.len(), x.len().div_ceil(SQUARES), "one sum for every {SQUARES} elements");
    let isa = Isa::detected();
    sums.par_chunks_mut(PIECE / SQUARES).zip(x.par_chunks(PIECE)).for_each(|(sums, x)| {
        isa.run(
            #[inline(always)]
            || {
                for (sum, x) in sums.iter_mut().zip(x.chunks(SQUARES)) {
                    prefetch_next(x);
                    *sum = sum_by([x], |[x]| x * x);
                }
            },
        );
    });
}

/// [`sum_of_squares`] of an array of `len` elements, with the same bits, from its [`partial_squares`].
pub fn sum_of_partial_squares(partial: &[f32], len: usize) -> f64 {
    assert_eq!(partial.len(), len.div_ceil(SQUARES), "one sum for every {SQUARES} elements");
    let mut sums = [0.0f64; PIECES];
    for (sum, partial) in sums.iter_mut().zip(partial.chunks(piece_of_squares(len) / SQUARES)) {
        for &value in partial {
            *sum += f64::from(value);
        }
    }
    sums.iter().sum()
}
