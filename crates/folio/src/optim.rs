//! AdamW with gradient clipping: the scalars of each step. The backend holds the moments and does the arithmetic.

use serde::{Deserialize, Serialize};

use crate::model::{AdamWUpdate, Backend};

/// The hyperparameters of AdamW.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamWConfig {
    /// Decay rate of the running mean of gradients.
    pub beta1: f64,
    /// Decay rate of the running mean of squared gradients.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled weight decay, per unit of learning rate.
    pub weight_decay: f64,
    /// Whether vectors (biases and LayerNorm) decay as well; matrices always do.
    pub decay_all_parameters: bool,
    /// The norm that gradients are clipped to; 0 for no clipping.
    pub grad_clip: f64,
}

/// nanoGPT's values for its character-level model.
impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.1,
            decay_all_parameters: false,
            grad_clip: 1.0,
        }
    }
}

/// AdamW: its hyperparameters and the number of steps taken.
#[derive(Clone, Debug)]
pub struct AdamW {
    config: AdamWConfig,
    steps: u64,
}

impl AdamW {
    /// Before the first step.
    pub fn new(config: AdamWConfig) -> Self {
        Self::resume(config, 0)
    }

    /// After `steps` steps. The backend must hold the moments of that step ([`Backend::load_moments`]).
    pub fn resume(config: AdamWConfig, steps: u64) -> Self {
        Self { config, steps }
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// One step with the backend's gradients. Returns the norm of all gradients before clipping. If it is not finite, no step
    /// is taken.
    ///
    /// Gradients whose norm exceeds `grad_clip` are scaled down to it (Pascanu, Mikolov and Bengio 2013), as by PyTorch's
    /// `clip_grad_norm_`.
    pub fn step(&mut self, backend: &mut (impl Backend + ?Sized), learning_rate: f64) -> f64 {
        let norm = backend.gradient_norm();
        if !norm.is_finite() {
            return norm;
        }
        let AdamWConfig { beta1, beta2, eps, weight_decay, decay_all_parameters, grad_clip } = self.config;
        self.steps += 1;
        let t = self.steps.min(i32::MAX as u64) as i32;
        backend.update(&AdamWUpdate {
            learning_rate,
            beta1,
            beta2,
            eps,
            weight_decay,
            decay_all_parameters,
            gradient_scale: if grad_clip > 0.0 { (grad_clip / (norm + 1e-6)).min(1.0) } else { 1.0 },
            bias_correction1: 1.0 - beta1.powi(t),
            bias_correction2: 1.0 - beta2.powi(t),
        });
        norm
    }
}
