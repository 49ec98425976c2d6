//! AdamW and the gradient norm.

use folio_kernels::adamw::{self, AdamwStep};
use folio_kernels::reference;

use crate::support::{Expected, Random, U, check, wide};

/// Parallel tasks process 16,384 elements each.
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
fn the_first_step_starts_with_zero_moments() {
    let step = AdamwStep { bias_correction1: 0.1, bias_correction2: 0.01, ..LATER_STEP };
    for len in [1, 37, 16_387] {
        let mut tensor = Tensor::random(len);
        tensor.exp_avg.fill(0.0);
        tensor.exp_avg_sq.fill(0.0);
        // A parameter with a gradient of zero only decays.
        tensor.gradient[len / 2] = 0.0;
        compare(tensor, step);
    }
}

#[test]
fn the_sum_of_squares_equals_that_of_f64() {
    // Chunks have 1,024 elements. There are at most 64 blocks, each a whole number of chunks.
    for len in [0, 1, 2, 31, 33, 1023, 1024, 1025, 65_536, 65_537, 131_073, 200_001] {
        let x = Random(73).as_f32(len, 10.0);
        let want = wide(&x).iter().map(|x| x * x).sum::<f64>();
        // In f32: one square and the additions of 1,024 terms, 1024 / 32 + 5. The error of the f64 sums is negligible.
        let tolerance = 1.01 * 38.0 * U * want;
        crate::support::on_every_isa(|isa| {
            let got = adamw::sum_of_squares(&x);
            let error = (got - want).abs();
            assert!(error <= tolerance, "{len} on {}: got {got}, want {want} +- {tolerance:e}", isa.name());
        });
    }
}

#[test]
fn partial_sums_of_squares_add_up_to_the_same_bits() {
    for len in [0, 1, 1023, 1024, 1025, 65_537, 131_073, 200_001] {
        let x = Random(74).as_f32(len, 10.0);
        crate::support::on_every_isa(|isa| {
            // In two parts, as two ranks compute them.
            let mut partial = vec![0.0; len.div_ceil(adamw::SQUARES)];
            let (first, second) = partial.split_at_mut(len / adamw::SQUARES / 2);
            let (a, b) = x.split_at(first.len() * adamw::SQUARES);
            adamw::partial_squares(a, first);
            adamw::partial_squares(b, second);
            let got = adamw::sum_of_partial_squares(&partial, len);
            assert_eq!(got.to_bits(), adamw::sum_of_squares(&x).to_bits(), "{len} on {}", isa.name());
        });
    }
}

#[test]
fn chunks_are_added_in_f64() {
    // One square of 2^24, above which f32 represents only even numbers, and a 1 in each of the other chunks; with one
    // and with several chunks per block.
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
    exp_avg: Vec<f32>,
    exp_avg_sq: Vec<f32>,
}

impl Tensor {
    pub(crate) fn random(len: usize) -> Self {
        let mut random = Random(71);
        Self {
            parameter: random.as_f32(len, 1.0),
            gradient: random.as_f32(len, 0.1),
            exp_avg: random.as_f32(len, 0.05),
            exp_avg_sq: random.as_f32(len, 0.01).iter().map(|square| square.abs()).collect(),
        }
    }

    /// `parameter`, `exp_avg` and `exp_avg_sq` after the step.
    pub(crate) fn run(&self, step: AdamwStep) -> Vec<Vec<f32>> {
        let (mut parameter, mut exp_avg, mut exp_avg_sq) =
            (self.parameter.clone(), self.exp_avg.clone(), self.exp_avg_sq.clone());
        adamw::adamw(&mut parameter, &self.gradient, &mut exp_avg, &mut exp_avg_sq, step);
        vec![parameter, exp_avg, exp_avg_sq]
    }

    /// In units of U, with g the scaled gradient, d the denominator and s the step `rate m / d`:
    ///
    /// - exp_avg, `m + (1 - beta1) (g - m)`: one for g, one each for the difference, `1 - beta1` and the product,
    ///   relative to `(1 - beta1) (|g| + |m|)`; one for the sum.
    /// - exp_avg_sq, `v + (1 - beta2) (g^2 - v)`: three for g^2, one each for the difference, `1 - beta2` and the
    ///   product, relative to `(1 - beta2) (g^2 + v)`; one for the sum. If beta2 < 1/2, `beta2 v + (1 - beta2) g^2`:
    ///   one each for beta2 and its product; three for g^2, one each for `1 - beta2` and its product; one for the sum.
    /// - d, relative: half the error of exp_avg_sq; 4 for the root, the correction, a product and a sum.
    /// - parameter, `p - (decay p + s)`: for s the errors of exp_avg and of d, and 3 for the rate, its product and the
    ///   quotient; for `decay p` 2 for the factor and a product; one for their sum; one for the result.
    fn expected(&self, step: AdamwStep) -> [Expected; 3] {
        let of = |value: f32| f64::from(value);
        let gradient = wide(&self.gradient);
        let (mut parameter, mut exp_avg, mut exp_avg_sq) =
            (wide(&self.parameter), wide(&self.exp_avg), wide(&self.exp_avg_sq));
        reference::adamw(&mut parameter, &gradient, &mut exp_avg, &mut exp_avg_sq, step);
        let (mut parameter_off, mut exp_avg_off, mut exp_avg_sq_off) = (vec![], vec![], vec![]);
        for i in 0..gradient.len() {
            let g = step.gradient_scale * gradient[i].abs();
            let change = (1.0 - step.beta1) * (g + of(self.exp_avg[i]).abs());
            exp_avg_off.push(U * (4.0 * change + exp_avg[i].abs()));
            let of_square = if step.beta2 < 0.5 { 2.0 * step.beta2 } else { 3.0 * (1.0 - step.beta2) };
            let old = of_square * of(self.exp_avg_sq[i]);
            exp_avg_sq_off.push(U * (6.0 * (1.0 - step.beta2) * g * g + old + exp_avg_sq[i]));
            let denominator = (exp_avg_sq[i] / step.bias_correction2).sqrt() + step.eps;
            // A square of 0 is exact.
            let relative = (exp_avg_sq_off[i] / (2.0 * exp_avg_sq[i])).max(0.0) + 4.0 * U;
            let rate = step.learning_rate / step.bias_correction1 / denominator;
            let size = rate * exp_avg[i].abs();
            let decayed = step.learning_rate * step.weight_decay * of(self.parameter[i]).abs();
            let step_off = rate * exp_avg_off[i] + size * (relative + 3.0 * U);
            let sum_off = U * (2.0 * decayed + (decayed + size) + parameter[i].abs());
            parameter_off.push(step_off + sum_off);
        }
        let expected = |name, want, tolerance| Expected { name, want, tolerance };
        [
            expected("parameter", parameter, parameter_off),
            expected("exp_avg", exp_avg, exp_avg_off),
            expected("exp_avg_sq", exp_avg_sq, exp_avg_sq_off),
        ]
    }
}
