//! The optimizer's step, and the norm of the gradient.

use folio_kernels::adamw::{self, AdamwStep};
use folio_kernels::reference;

use crate::support::{Expected, Random, U, check, wide};

/// Pieces are 16,384 long.
const SIZES: [usize; 9] = [0, 1, 7, 15, 16, 33, 1000, 16_384, 16_387];

/// Step 10, with decay and clipping.
pub(crate) const LATER_STEP: AdamwStep = AdamwStep {
    learning_rate: 1e-3,
    beta1: 0.9,
    beta2: 0.99,
    eps: 1e-8,
    weight_decay: 0.1,
    gradient_scale: 0.3,
    bias_correction1: 0.651_321_56,
    bias_correction2: 0.095_617_92,
};

#[test]
fn adamw_equals_its_twin() {
    for len in SIZES {
        compare(Tensor::random(len), LATER_STEP);
        compare(Tensor::random(len), AdamwStep { weight_decay: 0.0, gradient_scale: 1.0, ..LATER_STEP });
        compare(Tensor::random(len), AdamwStep { learning_rate: 0.5, eps: 0.1, beta1: 0.0, ..LATER_STEP });
        for beta2 in [0.0, 0.3, 0.5, 0.9999] {
            compare(Tensor::random(len), AdamwStep { beta2, ..LATER_STEP });
        }
    }
}

#[test]
fn the_first_step_starts_from_empty_means() {
    let step = AdamwStep { bias_correction1: 0.1, bias_correction2: 0.01, ..LATER_STEP };
    for len in [1, 37, 16_387] {
        let mut tensor = Tensor::random(len);
        tensor.mean.fill(0.0);
        tensor.square.fill(0.0);
        // A parameter without any gradient decays and no more.
        tensor.gradient[len / 2] = 0.0;
        compare(tensor, step);
    }
}

#[test]
fn the_sum_of_squares_is_that_of_f64() {
    // Chunks are 1,024 long, pieces 64 at most and a multiple of a chunk.
    for len in [0, 1, 2, 31, 33, 1023, 1024, 1025, 65_536, 65_537, 131_073, 200_001] {
        let x = Random(73).singles(len, 10.0);
        let want = wide(&x).iter().map(|x| x * x).sum::<f64>();
        // In f32 a square and the additions of 1,024 terms: 1024 / 32 + 5. The sums of f64 add nothing to
        // speak of.
        let tolerance = 1.01 * 38.0 * U * want;
        crate::support::on_every_isa(|isa| {
            let got = adamw::sum_of_squares(&x);
            let error = (got - want).abs();
            assert!(error <= tolerance, "{len} on {}: got {got}, want {want} +- {tolerance:e}", isa.name());
        });
    }
}

#[test]
fn chunks_are_added_up_in_f64() {
    // One square of 2^24, beyond which f32 has even numbers only, and one of 1 in every other chunk; in pieces of
    // one chunk and of several.
    for chunks in [2, 5, 64, 65, 200, 1000] {
        let mut x = vec![0.0; chunks * 1024];
        x.iter_mut().step_by(1024).for_each(|x| *x = 1.0);
        x[0] = 4096.0;
        let want = 16_777_216.0 + (chunks - 1) as f64;
        crate::support::on_every_isa(|isa| {
            assert_eq!(adamw::sum_of_squares(&x), want, "{chunks} on {}", isa.name());
        });
    }
}

fn compare(tensor: Tensor, step: AdamwStep) {
    let expected = tensor.expected(step);
    check("adamw", &(tensor.parameter.len(), step), &expected, || tensor.run(step));
}

pub(crate) struct Tensor {
    parameter: Vec<f32>,
    gradient: Vec<f32>,
    mean: Vec<f32>,
    square: Vec<f32>,
}

impl Tensor {
    pub(crate) fn random(len: usize) -> Self {
        let mut random = Random(71);
        Self {
            parameter: random.singles(len, 1.0),
            gradient: random.singles(len, 0.1),
            mean: random.singles(len, 0.05),
            square: random.singles(len, 0.01).iter().map(|square| square.abs()).collect(),
        }
    }

    /// `parameter`, `mean` and `square` after the step.
    pub(crate) fn run(&self, step: AdamwStep) -> Vec<Vec<f32>> {
        let (mut parameter, mut mean, mut square) =
            (self.parameter.clone(), self.mean.clone(), self.square.clone());
        adamw::adamw(&mut parameter, &self.gradient, &mut mean, &mut square, step);
        vec![parameter, mean, square]
    }

    /// In units of U, with g the scaled gradient, d the denominator and s the step `rate m / d`:
    ///
    /// - mean, `m + (1 - beta1) (g - m)`: g one, the difference, `1 - beta1`, the product one each, on a size
    ///   of `(1 - beta1) (|g| + |m|)`; the sum one of the result.
    /// - square, `v + (1 - beta2) (g^2 - v)`: g^2 three; the difference, `1 - beta2` and the product one each, on a
    ///   size of `(1 - beta2) (g^2 + v)`; the sum one of the result. For a beta2 below 1/2, `beta2 v + (1 - beta2) g^2`:
    ///   beta2 and its product one each; g^2 three, `1 - beta2` and its product; the sum.
    /// - d, relative: half of what the square is off; a root, the correction, a product and a sum: 4.
    /// - parameter, `p - (decay p + s)`: of s what the mean is off, and of its size what d is off, the rate, its product
    ///   and the quotient: 3; of `decay p` the factor and a product: 2; their sum one of both; one of the result.
    fn expected(&self, step: AdamwStep) -> [Expected; 3] {
        let of = |value: f32| f64::from(value);
        let gradient = wide(&self.gradient);
        let (mut parameter, mut mean, mut square) =
            (wide(&self.parameter), wide(&self.mean), wide(&self.square));
        reference::adamw(&mut parameter, &gradient, &mut mean, &mut square, step);
        let (mut parameter_off, mut mean_off, mut square_off) = (vec![], vec![], vec![]);
        for i in 0..gradient.len() {
            let g = step.gradient_scale * gradient[i].abs();
            let change = (1.0 - step.beta1) * (g + of(self.mean[i]).abs());
            mean_off.push(U * (4.0 * change + mean[i].abs()));
            let of_square = if step.beta2 < 0.5 { 2.0 * step.beta2 } else { 3.0 * (1.0 - step.beta2) };
            let old = of_square * of(self.square[i]);
            square_off.push(U * (6.0 * (1.0 - step.beta2) * g * g + old + square[i]));
            let denominator = (square[i] / step.bias_correction2).sqrt() + step.eps;
            // A square of 0 is exact.
            let relative = (square_off[i] / (2.0 * square[i])).max(0.0) + 4.0 * U;
            let rate = step.learning_rate / step.bias_correction1 / denominator;
            let size = rate * mean[i].abs();
            let decayed = step.learning_rate * step.weight_decay * of(self.parameter[i]).abs();
            let step_off = rate * mean_off[i] + size * (relative + 3.0 * U);
            let sum_off = U * (2.0 * decayed + (decayed + size) + parameter[i].abs());
            parameter_off.push(step_off + sum_off);
        }
        let expected = |name, want, tolerance| Expected { name, want, tolerance };
        [
            expected("parameter", parameter, parameter_off),
            expected("mean", mean, mean_off),
            expected("square", square, square_off),
        ]
    }
}
