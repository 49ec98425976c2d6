//! AdamW over all parameters of a model, with clipping by the norm of all gradients.

use folio_kernels::adamw::{AdamwStep, adamw, sum_of_squares};
use serde::{Deserialize, Serialize};

use crate::model::Parameters;

/// The numbers of AdamW that stay the same through a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamWConfig {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled decay, per unit of learning rate.
    pub weight_decay: f64,
    /// Whether vectors (biases and LayerNorm) decay as well; matrices always do.
    pub decay_all_parameters: bool,
    /// The norm that gradients are clipped to; 0 clips nothing.
    pub grad_clip: f64,
}

/// The optimizer's state: two running means for every parameter.
#[derive(Clone, Debug)]
pub struct AdamW {
    config: AdamWConfig,
    /// Steps taken.
    steps: u64,
    /// The running mean of each gradient (m).
    mean: Vec<f32>,
    /// The running mean of each gradient's square (v).
    square: Vec<f32>,
}

impl AdamW {
    /// The state before the first step of a model with `count` parameters.
    pub fn new(config: AdamWConfig, count: usize) -> Self {
        Self { config, steps: 0, mean: vec![0.0; count], square: vec![0.0; count] }
    }

    /// A state that was saved: see [`AdamW::steps`], [`AdamW::mean`] and [`AdamW::square`].
    ///
    /// # Panics
    /// If the two means differ in length.
    pub fn from_state(config: AdamWConfig, steps: u64, mean: Vec<f32>, square: Vec<f32>) -> Self {
        assert_eq!(mean.len(), square.len(), "AdamW's two means");
        Self { config, steps, mean, square }
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The running mean of the gradients, in the order of the parameters.
    pub fn mean(&self) -> &[f32] {
        &self.mean
    }

    /// The running mean of the squared gradients, in the order of the parameters.
    pub fn square(&self) -> &[f32] {
        &self.square
    }

    /// One step. Returns the norm of all gradients before clipping; if that is not finite, no step is taken.
    ///
    /// Gradients whose norm exceeds `grad_clip` are scaled down to it (Pascanu, Mikolov and Bengio 2013), as by
    /// PyTorch's `clip_grad_norm_`.
    ///
    /// # Panics
    /// If the parameters are not as many as the state is for.
    pub fn step(&mut self, parameters: &mut Parameters, gradients: &Parameters, learning_rate: f64) -> f64 {
        let config = self.config;
        let norm = sum_of_squares(gradients.values()).sqrt();
        if !norm.is_finite() {
            return norm;
        }
        let clip = if config.grad_clip > 0.0 { (config.grad_clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
        self.steps += 1;
        let t = self.steps.min(i32::MAX as u64) as i32;
        for spec in gradients.specs() {
            let decays = config.decay_all_parameters || spec.is_matrix();
            let step = AdamwStep {
                learning_rate,
                beta1: config.beta1,
                beta2: config.beta2,
                eps: config.eps,
                weight_decay: if decays { config.weight_decay } else { 0.0 },
                gradient_scale: clip,
                bias_correction1: 1.0 - config.beta1.powi(t),
                bias_correction2: 1.0 - config.beta2.powi(t),
            };
            let range = spec.range.clone();
            let parameter = &mut parameters.values_mut()[range.clone()];
            let (mean, square) = (&mut self.mean[range.clone()], &mut self.square[range]);
            adamw(parameter, gradients.tensor(spec), mean, square, step);
        }
        norm
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelConfig;

    #[test]
    fn gradients_that_are_not_finite_move_nothing() {
        let config =
            ModelConfig { vocab_size: 3, n_blocks: 1, n_emb: 2, n_heads: 1, block_size: 2, dropout: 0.0 };
        let settings = crate::settings::Settings::default().adamw();
        for value in [f32::NAN, f32::INFINITY, 1e18] {
            let (mut parameters, mut gradients) = (Parameters::zeros(&config), Parameters::zeros(&config));
            let mut optimizer = AdamW::new(settings, parameters.values().len());
            gradients.values_mut().fill(1.0);
            gradients.values_mut()[7] = value;
            let norm = optimizer.step(&mut parameters, &gradients, 1e-3);
            // Large, but its square is finite: it is clipped.
            let moves = value == 1e18;
            assert_eq!((norm.is_finite(), optimizer.steps()), (moves, u64::from(moves)), "{value}");
            let changed = |values: &[f32]| values.iter().any(|&value| value != 0.0);
            let found = [parameters.values(), optimizer.mean(), optimizer.square()].map(changed);
            assert_eq!(found, [moves; 3], "{value}");
            assert!(parameters.values().iter().all(|value| value.is_finite()), "{value}");
        }
    }
}
