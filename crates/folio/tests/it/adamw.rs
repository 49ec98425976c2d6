//! The optimizer against an AdamW in float64, over many steps.

use folio::model::{Backend, Batch, CpuBackend, ModelConfig, Precision};
use folio::optim::{AdamW, AdamWConfig};
use folio::rng::{Rng, Stream};

use crate::support::Replace;

/// The unit roundoff of f32.
const U: f64 = f32::EPSILON as f64 / 2.0;
/// For products of two roundings.
const SECOND_ORDER: f64 = 1.01;
const LEARNING_RATE: f64 = 1e-3;

/// One element in f64, and how far off f32 may be by now.
#[derive(Clone, Copy, Default)]
struct Element {
    parameter: f64,
    mean: f64,
    square: f64,
    parameter_off: f64,
    mean_off: f64,
    square_off: f64,
}

impl Element {
    /// Step `t` of Loshchilov and Hutter 2019, algorithm 2, in PyTorch's form.
    ///
    /// What it is off by afterwards, in the worst case: what it was off by before, and the roundings of this step. With
    /// g exact:
    ///
    /// - mean, `m + (1 - beta1) (g - m)`: the factor, the difference and the product round once each, on a size of
    ///   `(1 - beta1) (|g| + |m|)`; the sum once.
    /// - square, `v + (1 - beta2) (g^2 - v)`: g^2 once; factor, difference and product once each; the sum once.
    /// - denominator, relative: half of what the square is off; a root, the correction, a product, a sum.
    /// - step: the mean's error; the denominator's, the rate, a product and a quotient.
    /// - parameter, `p - (lr decay p + step)`: the factor and a product; their sum; the difference.
    fn step(&mut self, g: f64, t: i32, config: &AdamWConfig) {
        let AdamWConfig { beta1, beta2, eps, weight_decay, .. } = *config;
        // Below 1/2 the mean is `beta1 m + (1 - beta1) g`: two factors, two products.
        let own = if beta1 < 0.5 { beta1 } else { 1.0 - beta1 };
        let change = (1.0 - beta1) * g.abs() + own * self.mean.abs();
        let change_of_square = (1.0 - beta2) * (4.0 * g * g + 3.0 * self.square);
        self.mean = beta1 * self.mean + (1.0 - beta1) * g;
        self.square = beta2 * self.square + (1.0 - beta2) * g * g;
        self.mean_off = beta1 * self.mean_off + U * SECOND_ORDER * (3.0 * change + self.mean.abs());
        self.square_off = beta2 * self.square_off + U * SECOND_ORDER * (change_of_square + self.square);

        let denominator = (self.square / (1.0 - beta2.powi(t))).sqrt() + eps;
        let rate = LEARNING_RATE / (1.0 - beta1.powi(t)) / denominator;
        let step = rate * self.mean;
        let relative = self.square_off / (2.0 * self.square) + 4.0 * U;
        let step_off = rate * self.mean_off + step.abs() * (relative + 3.0 * U);
        let decayed = LEARNING_RATE * weight_decay * self.parameter;
        self.parameter -= decayed + step;
        let roundings = 3.0 * decayed.abs() + step.abs() + self.parameter.abs();
        self.parameter_off += SECOND_ORDER * (step_off + U * roundings);
    }
}

/// Gradients of all sizes, a few a thousand times as large as the rest.
fn gradient(rng: &mut Rng) -> f32 {
    let spike = if rng.below(100) == 0 { 1e3 } else { 1.0 };
    (spike * 1e-3 * rng.normal()) as f32
}

#[track_caller]
fn check(config: AdamWConfig) {
    let model = ModelConfig {
        vocab_size: 5,
        n_blocks: 1,
        n_emb: 4,
        n_heads: 1,
        block_size: 3,
        dropout: 0.0,
        ..ModelConfig::GPT2
    };
    let mut backend = CpuBackend::new(model, Precision::F32, &mut Rng::new(1, Stream::Init));
    backend.loss_and_gradients(Batch { inputs: &[0, 1], targets: &[1, 2], time: 2 }, 0);
    let mut exact: Vec<Element> = backend
        .parameters()
        .values()
        .iter()
        .map(|&value| Element { parameter: f64::from(value), ..Element::default() })
        .collect();
    let mut optimizer = AdamW::new(config);
    let mut rng = Rng::new(2, Stream::Sampling);
    for t in 1..=300 {
        let gradients: Vec<f32> = exact.iter().map(|_| gradient(&mut rng)).collect();
        backend.reduce_gradients(&Replace(gradients.clone()));
        optimizer.step(&mut backend, LEARNING_RATE);
        for (element, &g) in exact.iter_mut().zip(&gradients) {
            element.step(f64::from(g), t, &config);
        }
        let (parameters, moments) = (backend.parameters(), backend.moments());
        let got = parameters.values().iter().zip(&moments.exp_avg).zip(&moments.exp_avg_sq);
        for (index, (((&parameter, &mean), &square), want)) in got.zip(&exact).enumerate() {
            for (what, got, want, off) in [
                ("parameter", parameter, want.parameter, want.parameter_off),
                ("mean", mean, want.mean, want.mean_off),
                ("square", square, want.square, want.square_off),
            ] {
                let error = (f64::from(got) - want).abs();
                assert!(
                    error <= off,
                    "step {t}, {what} {index}: got {got:e}, want {want:e}, off by {error:e} > {off:e}, {config:?}"
                );
            }
        }
    }
}

fn config() -> AdamWConfig {
    AdamWConfig {
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        weight_decay: 0.1,
        decay_all_parameters: true,
        grad_clip: 0.0,
    }
}

#[test]
fn adamw_equals_float64_s_within_its_roundings() {
    check(config());
    // `1 - beta` of a beta that is rounded to f32 first is off by 1.7e-4 here, and by more than all of it below.
    check(AdamWConfig { beta2: 0.9999, ..config() });
    check(AdamWConfig { beta1: 0.9999, beta2: 0.9999, ..config() });
    check(AdamWConfig { beta2: 1.0 - 1e-9, weight_decay: 0.0, ..config() });
    check(AdamWConfig { weight_decay: 1e-4, ..config() });
    // The gradient alone: nothing is left of a spike.
    check(AdamWConfig { beta1: 0.0, beta2: 0.0, ..config() });
    check(AdamWConfig { beta1: 0.3, beta2: 0.4, ..config() });
}

#[test]
fn gradients_that_are_not_finite_change_nothing() {
    let model = ModelConfig {
        vocab_size: 3,
        n_blocks: 1,
        n_emb: 2,
        n_heads: 1,
        block_size: 2,
        dropout: 0.0,
        ..ModelConfig::GPT2
    };
    for value in [f32::NAN, f32::INFINITY, 1e18] {
        let mut backend = CpuBackend::new(model, Precision::F32, &mut Rng::new(1, Stream::Init));
        backend.loss_and_gradients(Batch { inputs: &[0, 1], targets: &[1, 2], time: 2 }, 0);
        let before = backend.parameters().into_owned();
        let mut gradients = vec![1.0; before.values().len()];
        gradients[7] = value;
        backend.reduce_gradients(&Replace(gradients));
        let mut optimizer = AdamW::new(AdamWConfig { grad_clip: 1.0, ..config() });
        let norm = optimizer.step(&mut backend, 1e-3);
        // Large, but its square is finite: it is clipped.
        let updates = value == 1e18;
        assert_eq!((norm.is_finite(), optimizer.steps()), (updates, u64::from(updates)), "{value}");
        let (parameters, moments) = (backend.parameters(), backend.moments());
        let changed = |values: &[f32], from: &[f32]| values.iter().zip(from).any(|(a, b)| a != b);
        let zeros = vec![0.0; before.values().len()];
        let found = [
            changed(parameters.values(), before.values()),
            changed(&moments.exp_avg, &zeros),
            changed(&moments.exp_avg_sq, &zeros),
        ];
        assert_eq!(found, [updates; 3], "{value}");
        assert!(parameters.values().iter().all(|value| value.is_finite()), "{value}");
    }
}
