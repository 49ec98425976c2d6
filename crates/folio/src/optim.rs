//! AdamW with gradient clipping, and Muon for the blocks' matrices: the scalars of each step. The backend holds the moments and
//! does the arithmetic.

use serde::{Deserialize, Serialize};

use crate::model::{AdamWUpdate, Backend, MuonUpdate, Update};
use crate::named_enum;

/// What updates the blocks' matrices. Embeddings, head and vectors are AdamW's in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OptimizerKind {
    /// AdamW, as all other parameters.
    #[default]
    AdamW,
    /// Muon, see [`MuonUpdate`].
    Muon,
}

named_enum!(OptimizerKind, "optimizer", { AdamW => "adamw", Muon => "muon" });

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

/// The hyperparameters of Muon. Weight decay and clipping are AdamW's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MuonConfig {
    /// Decay rate of the running mean of gradients.
    pub momentum: f64,
    /// Muon's learning rate as a multiple of AdamW's.
    pub relative_rate: f64,
}

/// AdamW, possibly with Muon for the blocks' matrices: their hyperparameters and the number of steps taken.
#[derive(Clone, Debug)]
pub struct AdamW {
    config: AdamWConfig,
    muon: Option<MuonConfig>,
    steps: u64,
}

impl AdamW {
    /// Before the first step.
    pub fn new(config: AdamWConfig) -> Self {
        Self::resume(config, 0)
    }

    /// After `steps` steps. The backend must hold the moments of that step ([`Backend::load_moments`]).
    pub fn resume(config: AdamWConfig, steps: u64) -> Self {
        Self { config, muon: None, steps }
    }

    /// Lets Muon update the blocks' matrices, if there is a configuration.
    #[must_use]
    pub fn with_muon(self, muon: Option<MuonConfig>) -> Self {
        Self { muon, ..self }
    }

    /// Changes the weight decay of the next steps.
    pub fn set_weight_decay(&mut self, weight_decay: f64) {
        self.config.weight_decay = weight_decay;
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
        let gradient_scale = if grad_clip > 0.0 { (grad_clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
        let adamw = AdamWUpdate {
            learning_rate,
            beta1,
            beta2,
            eps,
            weight_decay,
            decay_all_parameters,
            gradient_scale,
            bias_correction1: 1.0 - beta1.powi(t),
            bias_correction2: 1.0 - beta2.powi(t),
        };
        let muon = self.muon.map(|MuonConfig { momentum, relative_rate }| MuonUpdate {
            learning_rate: learning_rate * relative_rate,
            momentum,
            weight_decay,
            gradient_scale,
        });
        backend.update(&Update { adamw, muon });
        norm
    }
}
