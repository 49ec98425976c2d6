//! A GPT-2 on the CPU.
//!
//! Threads take sequences: within one, every op is sequential code over slices that stay in the thread's second-level cache.
//! forward.rs and backward.rs are the two passes, op by op; activations.rs has their buffers, packed.rs the weights as
//! matmuls read them.

use std::borrow::Cow;
use std::ops::Range;

use folio_kernels::adamw::{adamw, sum_of_squares};
use folio_kernels::element::{Bf16, Element};
use folio_kernels::moving_average::update_average;
use rayon::prelude::*;

use super::{
    AdamWUpdate, Backend, Batch, Frozen, MicroBatch, ModelConfig, Moments, Parameters, Precision, StepBatch,
    tree_split,
};
use crate::distributed::Communicator;
use crate::rng::Rng;

mod activations;
mod auto_precision;
mod backward;
mod forward;
mod packed;
mod pass;

use activations::{Activations, Capacity, Purpose};
use packed::PackedWeights;
use pass::{Pass, PassWeights};

pub use auto_precision::{precision_reason, resolve_precision};

/// A GPT-2 with its weights, gradients and moments in main memory.
pub struct CpuBackend {
    config: ModelConfig,
    parameters: Parameters,
    frozen: Frozen,
    /// `None` until the first training step. Zero where parameters are frozen.
    gradients: Option<Parameters>,
    /// The gradients of left subtrees while the right ones are computed, one for each level of the tree of micro-batches.
    partial_sums: Vec<Parameters>,
    /// `None` until the first update: zeros.
    moments: Option<Moments>,
    /// The moving average of the weights, if there is one.
    average: Option<Parameters>,
    /// (V) or (T, V)
    logits: Vec<f32>,
    engine: Engine,
}

/// The buffers in one of the number formats.
enum Engine {
    F32(EngineBuffers<f32>),
    Bf16(EngineBuffers<Bf16>),
}

struct EngineBuffers<E> {
    packed: PackedWeights<E>,
    /// Allocated by the first pass, and again only for a larger one.
    activations: Option<Activations<E>>,
}

impl CpuBackend {
    /// A model with GPT-2's random initial weights.
    ///
    /// # Panics
    /// If the configuration is not valid ([`ModelConfig::validate`]).
    pub fn new(config: ModelConfig, precision: Precision, rng: &mut Rng) -> Self {
        let parameters = Parameters::random(&config, rng);
        Self::from_parameters(config, precision, parameters)
    }

    /// A model with given weights.
    ///
    /// # Panics
    /// If the configuration is not valid, or not for this precision ([`Precision::check`]).
    pub fn from_parameters(config: ModelConfig, precision: Precision, parameters: Parameters) -> Self {
        config.validate().and_then(|()| precision.check(&config)).unwrap_or_else(|error| panic!("{error}"));
        let engine = match precision {
            Precision::F32 => Engine::F32(EngineBuffers::new(&config)),
            Precision::Bf16 => Engine::Bf16(EngineBuffers::new(&config)),
        };
        Self {
            config,
            parameters,
            frozen: Frozen::NOTHING,
            gradients: None,
            partial_sums: Vec::new(),
            moments: None,
            average: None,
            logits: Vec::new(),
            engine,
        }
    }

    /// Approximate memory of training in bytes, with batches of `batch_size` sequences of `block_size` tokens in
    /// `micro_batches` micro-batches: weights, gradients, moments, packed weights, and the activations that the backward
    /// pass reads. What is frozen has no gradients and no moments.
    pub fn training_bytes(
        config: &ModelConfig,
        precision: Precision,
        batch_size: usize,
        micro_batches: usize,
        frozen: Frozen,
    ) -> u64 {
        let ModelConfig { n_blocks: l, n_emb: c, block_size: t, .. } = *config;
        let sequences = batch_size.div_ceil(micro_batches.max(1));
        let levels = micro_batches.max(1).next_power_of_two().ilog2() as u128;
        let [l, c, t, i, sequences] = [l, c, t, config.inner(), sequences].map(|size| size as u128);
        let element = if precision == Precision::F32 { 4 } else { 2 };
        let parameters = config.matrix_elements();
        let trained = parameters - frozen.matrix_elements(config);
        // Per token: qkv, heads (4 C) and fc (I) in the format and two residual streams in f32, for each block; operands of
        // one block's weight gradients (8 C + 2 I) in the format; the gradient of the residual stream.
        let token = l * ((4 * c + i) * element + 8 * c) + (8 * c + 2 * i) * element + 8 * c;
        // The gradients of the logits of a group of sequences, and each thread's exponentials of one.
        let v = config.vocab_size as u128;
        let logits = (sequences * t * v).min(1 << 26) + rayon::current_num_threads() as u128 * t * v;
        // Both orders of every matrix that is multiplied with; of the embeddings only a tied head is.
        let packed = parameters - if config.tie_word_embeddings { 0 } else { v * c };
        let bytes = parameters * 4
            + trained * (12 + 4 * levels)
            + 2 * packed * element
            + sequences * t * token
            + logits * element;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// The logits of the token that follows the last one of a sequence, (V), without dropout.
    pub fn next_logits(&mut self, tokens: &[u32]) -> &[f32] {
        self.last_logits(tokens, 1)
    }

    /// The logits of the token that follows each token of a sequence, (T, V), without dropout.
    pub fn logits(&mut self, tokens: &[u32]) -> &[f32] {
        self.last_logits(tokens, tokens.len())
    }

    /// The logits of the token that follows each token of a batch, (B, T, V), without dropout: overwritten.
    ///
    /// # Panics
    /// If `logits` has another length.
    pub fn batch_logits(&mut self, batch: Batch<'_>, logits: &mut [f32]) {
        let pass = self.evaluation_pass(batch);
        assert_eq!(logits.len(), batch.inputs.len() * self.config.vocab_size, "one row per token");
        match &mut self.engine {
            Engine::F32(buffers) => buffers.batch_logits(pass, &self.parameters, logits, batch),
            Engine::Bf16(buffers) => buffers.batch_logits(pass, &self.parameters, logits, batch),
        }
    }

    /// The logits of the token that follows each of the last `rows` tokens of a sequence: (rows, V).
    fn last_logits(&mut self, tokens: &[u32], rows: usize) -> &[f32] {
        let batch = Batch { inputs: tokens, targets: tokens, time: tokens.len() };
        let pass = self.evaluation_pass(batch);
        self.logits.resize(rows * self.config.vocab_size, 0.0);
        match &mut self.engine {
            Engine::F32(buffers) => buffers.last_logits(pass, &self.parameters, &mut self.logits, tokens),
            Engine::Bf16(buffers) => buffers.last_logits(pass, &self.parameters, &mut self.logits, tokens),
        }
        &self.logits
    }

    /// Sums the gradients of some micro-batches of a step into `self.gradients`, and their losses.
    fn sum_micro_batches(&mut self, step: &StepBatch, micro_batches: Range<usize>, level: usize) -> f64 {
        let Range { start, end } = micro_batches;
        if end - start == 1 {
            return self.micro_batch(&step.micro_batch(start));
        }
        let middle = start + tree_split(end - start);
        let left = self.sum_micro_batches(step, start..middle, level + 1);
        while self.partial_sums.len() <= level {
            self.partial_sums.push(Parameters::zeros(&self.config));
        }
        let gradients = self.gradients.as_mut().expect("computed above");
        std::mem::swap(gradients, &mut self.partial_sums[level]);
        let right = self.sum_micro_batches(step, middle..end, level + 1);
        let gradients = self.gradients.as_mut().expect("computed above");
        for range in self.frozen.trained(gradients) {
            add(&mut gradients.values_mut()[range.clone()], &self.partial_sums[level].values()[range]);
        }
        left + right
    }

    /// Overwrites the gradients by those of one micro-batch. Returns the sum of its losses.
    fn micro_batch(&mut self, micro_batch: &MicroBatch) -> f64 {
        let gradients = self.gradients.get_or_insert_with(|| Parameters::zeros(&self.config));
        let MicroBatch { batch, first_sequence, total_tokens, dropout_key, label_smoothing } = *micro_batch;
        if batch.inputs.is_empty() {
            gradients.values_mut().fill(0.0);
            return 0.0;
        }
        check_batch(&self.config, batch);
        let pass = Pass {
            config: self.config,
            batch: batch.sequences(),
            time: batch.time,
            first_sequence,
            total_tokens,
            label_smoothing,
            frozen: self.frozen,
            dropout_key: Some(dropout_key),
        };
        let losses = match &mut self.engine {
            Engine::F32(buffers) => buffers.train(pass, &self.parameters, gradients, batch),
            Engine::Bf16(buffers) => buffers.train(pass, &self.parameters, gradients, batch),
        };
        losses.iter().map(|&loss| f64::from(loss)).sum()
    }

    /// A pass without dropout.
    fn evaluation_pass(&self, batch: Batch) -> Pass {
        check_batch(&self.config, batch);
        Pass {
            config: self.config,
            batch: batch.sequences(),
            time: batch.time,
            first_sequence: 0,
            total_tokens: batch.inputs.len(),
            label_smoothing: 0.0,
            frozen: self.frozen,
            dropout_key: None,
        }
    }

    /// The weights have changed.
    fn invalidate(&mut self) {
        match &mut self.engine {
            Engine::F32(buffers) => buffers.packed.invalidate(),
            Engine::Bf16(buffers) => buffers.packed.invalidate(),
        }
    }
}

impl Backend for CpuBackend {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn forward_backward(&mut self, step: StepBatch<'_>) -> f64 {
        self.sum_micro_batches(&step, 0..step.division.micro_batches, 0)
    }

    fn losses(&mut self, batch: Batch<'_>) -> &[f32] {
        let pass = self.evaluation_pass(batch);
        match &mut self.engine {
            Engine::F32(buffers) => buffers.losses(pass, &self.parameters, batch),
            Engine::Bf16(buffers) => buffers.losses(pass, &self.parameters, batch),
        }
    }

    fn reduce_gradients(&mut self, communicator: &dyn Communicator) {
        let gradients = self.gradients.as_mut().expect("a training step comes first");
        for range in self.frozen.trained(gradients) {
            communicator.all_reduce(&mut gradients.values_mut()[range]);
        }
    }

    fn gradient_norm(&mut self) -> f64 {
        let gradients = self.gradients.as_ref().expect("a training step comes first");
        let trained = self.frozen.trained(gradients);
        trained.map(|range| sum_of_squares(&gradients.values()[range])).sum::<f64>().sqrt()
    }

    fn update(&mut self, update: &AdamWUpdate) {
        let gradients = self.gradients.as_ref().expect("a training step comes first");
        let parameters = self.parameters.values_mut();
        let Moments { exp_avg, exp_avg_sq } =
            self.moments.get_or_insert_with(|| Moments::zeros(parameters.len()));
        for spec in gradients.specs().iter().filter(|spec| !self.frozen.contains(spec)) {
            let step = update.of_parameter(spec);
            let range = || spec.range.clone();
            let moments = (&mut exp_avg[range()], &mut exp_avg_sq[range()]);
            adamw(&mut parameters[range()], gradients.tensor(spec), moments.0, moments.1, step);
        }
        self.invalidate();
    }

    fn update_average(&mut self, decay: f64) {
        let average = self.average.as_mut().expect("an average was loaded");
        for range in self.frozen.trained(&self.parameters) {
            let weights = &self.parameters.values()[range.clone()];
            update_average(&mut average.values_mut()[range], weights, decay);
        }
    }

    fn average(&self) -> Option<Cow<'_, Parameters>> {
        self.average.as_ref().map(Cow::Borrowed)
    }

    fn load_average(&mut self, average: Parameters) {
        assert_eq!(average.specs(), self.parameters.specs(), "an average of another model");
        self.average = Some(average);
    }

    fn swap_average(&mut self) {
        if let Some(average) = &mut self.average {
            std::mem::swap(average, &mut self.parameters);
            self.invalidate();
        }
    }

    fn parameters(&self) -> Cow<'_, Parameters> {
        Cow::Borrowed(&self.parameters)
    }

    fn load_parameters(&mut self, parameters: Parameters) {
        assert_eq!(parameters.specs(), self.parameters.specs(), "parameters of another model");
        self.parameters = parameters;
        self.invalidate();
    }

    fn gradients(&self) -> Cow<'_, Parameters> {
        Cow::Borrowed(self.gradients.as_ref().expect("a training step comes first"))
    }

    fn moments(&self) -> Cow<'_, Moments> {
        match &self.moments {
            Some(moments) => Cow::Borrowed(moments),
            None => Cow::Owned(Moments::zeros(self.parameters.values().len())),
        }
    }

    fn freeze(&mut self, frozen: Frozen) {
        frozen.check(self.config.n_blocks).unwrap_or_else(|error| panic!("{error}"));
        self.frozen = frozen;
        // They may have gradients of what is frozen now.
        self.gradients = None;
        self.partial_sums.clear();
    }

    fn load_moments(&mut self, moments: Moments) {
        let count = self.parameters.values().len();
        let lengths = (moments.exp_avg.len(), moments.exp_avg_sq.len());
        assert_eq!(lengths, (count, count), "moments of another model");
        self.moments = Some(moments);
    }
}

impl<E: Element> EngineBuffers<E> {
    fn new(config: &ModelConfig) -> Self {
        Self { packed: PackedWeights::new(config), activations: None }
    }

    fn train<'a>(
        &'a mut self,
        pass: Pass,
        parameters: &'a Parameters,
        gradients: &mut Parameters,
        batch: Batch,
    ) -> &'a [f32] {
        on_worker(move || {
            let (weights, activations) = self.prepare(pass, parameters, Purpose::Training);
            pass.forward_backward(weights, gradients, activations, batch);
            &activations.losses[..pass.tokens()]
        })
    }

    fn losses<'a>(&'a mut self, pass: Pass, parameters: &'a Parameters, batch: Batch) -> &'a [f32] {
        on_worker(move || {
            let (weights, activations) = self.prepare(pass, parameters, Purpose::Inference);
            pass.losses(weights, activations, batch);
            &activations.losses[..pass.tokens()]
        })
    }

    fn last_logits(&mut self, pass: Pass, parameters: &Parameters, logits: &mut [f32], tokens: &[u32]) {
        on_worker(|| {
            let (weights, activations) = self.prepare(pass, parameters, Purpose::Inference);
            pass.last_logits(weights, activations, logits, tokens);
        });
    }

    fn batch_logits(&mut self, pass: Pass, parameters: &Parameters, logits: &mut [f32], batch: Batch) {
        on_worker(|| {
            let (weights, activations) = self.prepare(pass, parameters, Purpose::Inference);
            pass.batch_logits(weights, activations, logits, batch);
        });
    }

    /// Packs the weights and allocates the buffers, as far as a pass needs it.
    fn prepare<'a>(
        &'a mut self,
        pass: Pass,
        parameters: &'a Parameters,
        purpose: Purpose,
    ) -> (PassWeights<'a, E>, &'a mut Activations<E>) {
        self.packed.update(parameters, purpose == Purpose::Training);
        let Pass { config, batch, time, .. } = pass;
        let needed = Capacity { batch, time, purpose, threads: rayon::current_num_threads() };
        if !self.activations.as_ref().is_some_and(|buffers| buffers.capacity.holds(needed)) {
            self.activations = None; // Frees the old buffers before the new ones are allocated.
            self.activations = Some(Activations::new(&config, needed));
        }
        let activations = self.activations.as_mut().expect("allocated above");
        (PassWeights { parameters, packed: &self.packed }, activations)
    }
}

/// Runs `work` on a thread of the current pool, so that its many small parallel parts start and end cheaply.
fn on_worker<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::join(work, || ()).0
}

fn check_batch(config: &ModelConfig, batch: Batch) {
    let Batch { inputs, targets, time } = batch;
    let longest = config.block_size;
    assert!((1..=longest).contains(&time), "{time} tokens per sequence, the model takes 1 to {longest}");
    let is_whole = !inputs.is_empty() && inputs.len().is_multiple_of(time);
    assert!(is_whole, "{} tokens in rows of {time}", inputs.len());
    assert_eq!(targets.len(), inputs.len(), "one target per token");
}

/// `sum += values`
fn add(sum: &mut [f32], values: &[f32]) {
    /// Elements per thread at a time: two arrays of 64 KiB.
    const PIECE: usize = 16 * 1024;
    sum.par_chunks_mut(PIECE).zip(values.par_chunks(PIECE)).for_each(|(sum, values)| {
        sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    });
}
