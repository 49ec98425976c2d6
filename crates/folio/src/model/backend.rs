//! The seam between training and a device: what a [`Backend`] does in one optimizer step.
//!
//! The trait works at the granularity of a training step, not of an op, so that a backend may fuse what it likes.
//! Weights, gradients and AdamW's moments stay where the backend keeps them.

use std::borrow::Cow;
use std::ops::Range;

use folio_kernels::adamw::AdamwStep;
use folio_kernels::head::SoftTargets;

use super::{Frozen, ModelConfig, MuonUpdate, ParameterSpec, Parameters};
use crate::distributed::{Communicator, Division, Reduction};

/// Sequences of tokens, and the token that follows each.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// (B, T)
    pub inputs: &'a [u32],
    /// (B, T)
    pub targets: &'a [u32],
    /// T, the tokens of each sequence.
    pub time: usize,
}

impl<'a> Batch<'a> {
    /// B, the number of sequences.
    pub fn sequences(&self) -> usize {
        self.inputs.len() / self.time
    }

    /// Some of the sequences.
    ///
    /// # Panics
    /// If the range extends past the last sequence.
    pub fn select(&self, sequences: Range<usize>) -> Batch<'a> {
        let tokens = sequences.start * self.time..sequences.end * self.time;
        Batch { inputs: &self.inputs[tokens.clone()], targets: &self.targets[tokens], time: self.time }
    }
}

/// One rank's part of the global batch of an optimizer step.
#[derive(Clone, Copy, Debug)]
pub struct StepBatch<'a> {
    /// The sequences of this rank, `division.own()` of the global batch.
    pub batch: Batch<'a>,
    /// How the global batch is divided into micro-batches.
    pub division: Division,
    /// Selects the dropout masks of the step.
    pub dropout_key: u64,
    /// The dropout rate of the step; `None`: the model's.
    pub dropout: Option<f32>,
    /// The share of the probability that smoothed targets spread over all tokens, in [0, 1).
    pub label_smoothing: f32,
    /// (B, T, V): distributions to learn besides the targets, if there are any.
    pub soft_targets: Option<SoftTargets<'a>>,
}

/// The sequences that are computed in one forward and backward pass.
#[derive(Clone, Copy, Debug)]
pub struct MicroBatch<'a> {
    /// The sequences.
    pub batch: Batch<'a>,
    /// The index of the first of them in the global batch: dropout masks depend on it.
    pub first_sequence: usize,
    /// Tokens of the global batch. The loss is the mean over them, so each gradient is divided by this number.
    pub total_tokens: usize,
    /// Selects the dropout masks of the step.
    pub dropout_key: u64,
    /// See [`StepBatch::dropout`].
    pub dropout: Option<f32>,
    /// See [`StepBatch::label_smoothing`].
    pub label_smoothing: f32,
    /// See [`StepBatch::soft_targets`].
    pub soft_targets: Option<SoftTargets<'a>>,
}

impl<'a> StepBatch<'a> {
    /// A whole batch in a single micro-batch, without label smoothing and soft targets.
    pub fn whole(batch: Batch<'a>, dropout_key: u64) -> Self {
        let division = Division::whole(batch.sequences());
        Self { batch, division, dropout_key, dropout: None, label_smoothing: 0.0, soft_targets: None }
    }

    /// Tokens of the global batch.
    pub fn total_tokens(&self) -> usize {
        self.division.sequences * self.batch.time
    }

    /// This rank's micro-batch `index`, of `division.micro_batches`. It may be empty.
    pub fn micro_batch(&self, index: usize) -> MicroBatch<'a> {
        let own = self.division.own();
        let sequences = self.division.micro_batch(index);
        let part = sequences.start - own.start..sequences.end - own.start;
        let tokens = part.start * self.batch.time..part.end * self.batch.time;
        MicroBatch {
            soft_targets: self.soft_targets.map(|soft| soft.select(tokens, self.batch.inputs.len())),
            batch: self.batch.select(part),
            first_sequence: sequences.start,
            total_tokens: self.total_tokens(),
            dropout_key: self.dropout_key,
            dropout: self.dropout,
            label_smoothing: self.label_smoothing,
        }
    }
}

/// One update of all parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Of every parameter or, if there is a `muon`, of those that are not Muon's.
    pub adamw: AdamWUpdate,
    /// Of the blocks' matrices; `None`: AdamW updates them too.
    pub muon: Option<MuonUpdate>,
}

impl Update {
    /// AdamW's step of a parameter; `None` if it is Muon's.
    pub fn adamw_of(&self, spec: &ParameterSpec) -> Option<AdamwStep> {
        let is_muon_s = self.muon.is_some() && MuonUpdate::updates(spec);
        (!is_muon_s).then(|| self.adamw.of_parameter(spec))
    }
}

/// One update of AdamW: what is the same for all parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWUpdate {
    /// lr.
    pub learning_rate: f64,
    /// Decay rate of `exp_avg`.
    pub beta1: f64,
    /// Decay rate of `exp_avg_sq`.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled weight decay, per unit of learning rate.
    pub weight_decay: f64,
    /// Whether vectors (biases and LayerNorm) decay as well; matrices always do.
    pub decay_all_parameters: bool,
    /// Multiplies the gradients first: below 1 when they are clipped.
    pub gradient_scale: f64,
    /// `1 - beta1^t`, t counting from 1.
    pub bias_correction1: f64,
    /// `1 - beta2^t`.
    pub bias_correction2: f64,
}

impl AdamWUpdate {
    /// The step of one parameter: it decays if it is a matrix, or if all parameters do.
    pub fn of_parameter(&self, spec: &ParameterSpec) -> AdamwStep {
        let decays = self.decay_all_parameters || spec.is_matrix();
        AdamwStep {
            learning_rate: self.learning_rate,
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            weight_decay: if decays { self.weight_decay } else { 0.0 },
            gradient_scale: self.gradient_scale,
            bias_correction1: self.bias_correction1,
            bias_correction2: self.bias_correction2,
        }
    }
}

/// The optimizer's moments, each in the order of the parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// The running mean of each gradient: AdamW's first moment, or Muon's momentum.
    pub exp_avg: Vec<f32>,
    /// The running mean of each squared gradient; zero for Muon's parameters.
    pub exp_avg_sq: Vec<f32>,
}

impl Moments {
    /// The moments of `parameters` parameters before the first update: zeros.
    pub fn zeros(parameters: usize) -> Self {
        Self { exp_avg: vec![0.0; parameters], exp_avg_sq: vec![0.0; parameters] }
    }

    /// Those at some places.
    #[must_use]
    pub fn select(&self, places: &[Range<usize>]) -> Self {
        let select =
            |values: &[f32]| places.iter().flat_map(|range| &values[range.clone()]).copied().collect();
        Self { exp_avg: select(&self.exp_avg), exp_avg_sq: select(&self.exp_avg_sq) }
    }
}

/// A GPT-2 on some device: its weights, gradients and moments, and the arithmetic of a training step.
///
/// Every backend passes the same tests: PyTorch's golden files, 200 training steps, resuming bit for bit, and equal bits for
/// equal [`Division`]s of a batch over ranks and micro-batches.
pub trait Backend: Send {
    /// The model's sizes.
    fn config(&self) -> &ModelConfig;

    /// Computes this rank's contribution to the gradients of the mean loss over the global batch, with dropout, and returns the
    /// sum of its sequences' token losses in nats. Label smoothing and soft targets affect the gradients only,
    /// so that losses remain comparable.
    ///
    /// The gradients of micro-batches are summed in the binary tree of [`tree_split`], and so are their losses.
    /// Gradients of an earlier step are overwritten. Without sequences they are zero.
    fn forward_backward(&mut self, step: StepBatch<'_>) -> f64;

    /// The cross-entropy of each token of a batch in nats, (B, T), without dropout.
    fn losses(&mut self, batch: Batch<'_>) -> &[f32];

    /// Replaces the gradients by their sum over all ranks, without rounding them.
    fn reduce_gradients(&mut self, communicator: &dyn Communicator);

    /// [`Backend::forward_backward`] with the gradients summed over all ranks: those that [`Backend::update`] needs on this rank.
    /// A backend may sum the first of them while it computes the others. Returns this rank's sum of losses.
    fn reduced_forward_backward(&mut self, step: StepBatch<'_>, reduction: Reduction<'_>) -> f64 {
        let loss = self.forward_backward(step);
        self.reduce_gradients(reduction.communicator);
        loss
    }

    /// From now on keeps only this rank's part of the moments, and updates only this rank's part of the weights (ZeRO stage 1:
    /// Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models"). Every update is followed
    /// by [`Backend::share_weights`]. A backend that does nothing here keeps and updates everything on each rank.
    fn shard(&mut self, _rank: usize, _world_size: usize) {}

    /// Receives the weights that other ranks have updated.
    fn share_weights(&mut self, _communicator: &dyn Communicator) {}

    /// The places of the parameters whose moments this rank keeps, in order.
    fn own(&self) -> Vec<Range<usize>> {
        std::iter::once(0..self.parameters().values().len()).collect()
    }

    /// The moments of all parameters, on rank 0. All ranks call this at once.
    fn whole_moments(&self, _communicator: &dyn Communicator) -> Option<Cow<'_, Moments>> {
        Some(self.moments())
    }

    /// The L2 norm of all gradients together, of all ranks; those of frozen parameters are zero.
    fn gradient_norm(&mut self) -> f64;

    /// Updates weights and moments from the gradients.
    fn update(&mut self, update: &Update);

    /// Updates the moving average of the weights: `average <- decay average + (1 - decay) weights`. That of
    /// frozen parameters stays as it is.
    ///
    /// # Panics
    /// If no average was loaded.
    fn update_average(&mut self, decay: f64);

    /// The moving average of the weights, if one was loaded.
    fn average(&self) -> Option<Cow<'_, Parameters>>;

    /// Replaces the average.
    ///
    /// # Panics
    /// If it is of another model.
    fn load_average(&mut self, average: Parameters);

    /// Exchanges weights and average, to compute with the average. Does nothing if there is none.
    fn swap_average(&mut self);

    /// The weights.
    fn parameters(&self) -> Cow<'_, Parameters>;

    /// Replaces the weights.
    ///
    /// # Panics
    /// If they are of another model.
    fn load_parameters(&mut self, parameters: Parameters);

    /// The gradients of the last step.
    ///
    /// # Panics
    /// If there was none.
    fn gradients(&self) -> Cow<'_, Parameters>;

    /// AdamW's moments of [`Backend::own`].
    fn moments(&self) -> Cow<'_, Moments>;

    /// From now on leaves these parameters as they are: [`Backend::forward_backward`] need not compute their gradients, which
    /// are zero, and [`Backend::update`] changes neither them nor their moments. At first nothing is frozen.
    fn freeze(&mut self, frozen: Frozen);

    /// Replaces AdamW's moments of [`Backend::own`].
    ///
    /// # Panics
    /// If they are of another model.
    fn load_moments(&mut self, moments: Moments);

    /// The mean loss of a batch in nats per token, in a single micro-batch on a single rank; the gradients are left in
    /// [`Backend::gradients`].
    fn loss_and_gradients(&mut self, batch: Batch<'_>, dropout_key: u64) -> f32 {
        let step = StepBatch::whole(batch, dropout_key);
        (self.forward_backward(step) / step.total_tokens() as f64) as f32
    }
}

/// The leaves of the left subtree of a binary tree over `count` leaves (at least 2): the largest power of two below `count`. A
/// rank with a power of two of micro-batches thus sums a complete subtree of the tree over all ranks.
///
/// ```
/// use folio::model::tree_split;
/// assert_eq!([2, 3, 4, 5, 8].map(tree_split), [1, 2, 2, 4, 4]);
/// ```
pub fn tree_split(count: usize) -> usize {
    count.next_power_of_two() / 2
}
