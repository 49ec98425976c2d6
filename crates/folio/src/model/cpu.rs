//! A GPT-2 on the CPU.
//!
//! Threads take chunks of sequences: within one, every op is sequential code over slices that stay in the thread's second-level cache.
//! forward.rs and backward.rs are the two passes, op by op; activations.rs has their buffers, packed.rs the weights as
//! matmuls read them. micro_batches.rs sums over the micro-batches of a step; gradients.rs sends gradients to other ranks
//! during the backward pass, in the pieces of buckets.rs; sharded.rs divides AdamW over ranks.

use std::borrow::Cow;
use std::ops::Range;

use folio_kernels::adamw::{adamw, sum_of_squares};
use folio_kernels::element::{Bf16, Element};
use folio_kernels::head::SoftTargets;
use folio_kernels::moving_average::update_average;

use super::{
    Backend, Batch, Frozen, ModelConfig, Moments, MuonUpdate, Parameters, Precision, StepBatch, Update,
};
use crate::distributed::{Communicator, Reduction};
use crate::rng::Rng;

mod activations;
mod auto_precision;
mod backward;
mod buckets;
mod footprint;
mod forward;
mod gradients;
mod micro_batches;
mod muon;
mod packed;
mod pass;
mod sharded;

use activations::{Activations, Capacity, Purpose};
use buckets::{Bucket, buckets};
use gradients::Gradients;
use muon::Muon;
use packed::PackedWeights;
use pass::{Pass, PassWeights, best_chunk_size, may_share_chunks};
use sharded::{Shard, sum_over_regions};

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
    /// Which parameters go to other ranks at one time.
    buckets: Vec<Bucket>,
    /// What this rank owns if AdamW is divided over ranks.
    shard: Option<Shard>,
    /// `None` until the first update: zeros. With a shard only its own.
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
    /// Allocated by Muon's first update.
    muon: Option<Muon<E>>,
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
            buckets: buckets(&parameters, Frozen::NOTHING),
            shard: None,
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

    /// Approximate memory in bytes that training with Muon takes in addition.
    pub fn muon_bytes(config: &ModelConfig, precision: Precision) -> u64 {
        match precision {
            Precision::F32 => Muon::<f32>::bytes(config),
            Precision::Bf16 => Muon::<Bf16>::bytes(config),
        }
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

    /// A pass without dropout.
    fn evaluation_pass(&self, batch: Batch) -> Pass {
        check_batch(&self.config, batch);
        Pass {
            config: self.config,
            batch: batch.sequences(),
            time: batch.time,
            chunk_size: 1,
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
        self.forget_shared_squares();
        self.sum_micro_batches(&step, 0..step.division.micro_batches, 0, None)
    }

    fn reduced_forward_backward(&mut self, step: StepBatch<'_>, reduction: Reduction<'_>) -> f64 {
        self.forget_shared_squares();
        let loss = self.sum_micro_batches(&step, 0..step.division.micro_batches, 0, Some(reduction));
        self.share_squares(reduction.communicator);
        loss
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
        if let Some(squares) = self.shared_squares() {
            return sum_over_regions(trained, squares).sqrt();
        }
        trained.map(|range| sum_of_squares(&gradients.values()[range])).sum::<f64>().sqrt()
    }

    fn update(&mut self, update: &Update) {
        let gradients = self.gradients.as_ref().expect("a training step comes first");
        let all = 0..gradients.values().len();
        let own = self.shard.as_ref().map_or(std::slice::from_ref(&all), Shard::own);
        let count = own.iter().map(Range::len).sum();
        let Moments { exp_avg, exp_avg_sq } = self.moments.get_or_insert_with(|| Moments::zeros(count));
        let mut first = 0;
        for own in own {
            for spec in gradients.specs().iter().filter(|spec| !self.frozen.contains(spec)) {
                let Some(step) = update.adamw_of(spec) else { continue };
                let range = spec.range.start.max(own.start)..spec.range.end.min(own.end);
                if range.is_empty() {
                    continue;
                }
                let held = first + range.start - own.start..first + range.end - own.start;
                let moments = (&mut exp_avg[held.clone()], &mut exp_avg_sq[held]);
                let (p, g) = (&mut self.parameters.values_mut()[range.clone()], &gradients.values()[range]);
                adamw(p, g, moments.0, moments.1, step);
            }
            first += own.len();
        }
        if let Some(update) = &update.muon {
            let frozen = self.frozen;
            match &mut self.engine {
                Engine::F32(buffers) => {
                    buffers.muon(update, &mut self.parameters, gradients, exp_avg, frozen)
                }
                Engine::Bf16(buffers) => {
                    buffers.muon(update, &mut self.parameters, gradients, exp_avg, frozen)
                }
            }
        }
        self.invalidate();
    }

    fn shard(&mut self, rank: usize, world_size: usize) {
        self.divide(rank, world_size);
    }

    fn share_weights(&mut self, communicator: &dyn Communicator) {
        self.gather_weights(communicator);
    }

    fn own(&self) -> Vec<Range<usize>> {
        let all = || std::iter::once(0..self.parameters.values().len()).collect();
        self.shard.as_ref().map_or_else(all, |shard| shard.own().to_vec())
    }

    fn whole_moments(&self, communicator: &dyn Communicator) -> Option<Cow<'_, Moments>> {
        match &self.shard {
            None => Some(self.moments()),
            Some(_) => self.gather_moments(communicator).map(Cow::Owned),
        }
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
            None => Cow::Owned(Moments::zeros(self.own().iter().map(Range::len).sum())),
        }
    }

    fn freeze(&mut self, frozen: Frozen) {
        frozen.check(self.config.n_blocks).unwrap_or_else(|error| panic!("{error}"));
        assert!(self.shard.is_none(), "what is frozen is known before AdamW is divided");
        self.frozen = frozen;
        self.buckets = buckets(&self.parameters, frozen);
        // They may have gradients of what is frozen now.
        self.gradients = None;
        self.partial_sums.clear();
        match &mut self.engine {
            Engine::F32(buffers) => buffers.muon = None,
            Engine::Bf16(buffers) => buffers.muon = None,
        }
    }

    fn load_moments(&mut self, moments: Moments) {
        let count = self.own().iter().map(Range::len).sum();
        let lengths = (moments.exp_avg.len(), moments.exp_avg_sq.len());
        assert_eq!(lengths, (count, count), "moments of another model");
        self.moments = Some(moments);
    }
}

impl<E: Element> EngineBuffers<E> {
    fn new(config: &ModelConfig) -> Self {
        Self { packed: PackedWeights::new(config), activations: None, muon: None }
    }

    fn train<'a>(
        &'a mut self,
        pass: Pass,
        parameters: &'a Parameters,
        mut gradients: Gradients,
        batch: Batch,
        soft_targets: Option<SoftTargets>,
    ) -> &'a [f32] {
        on_worker(move || {
            let (pass, weights, activations) = self.prepare(pass, parameters, Purpose::Training);
            pass.forward_backward(weights, &mut gradients, activations, batch, soft_targets);
            &activations.losses[..pass.tokens()]
        })
    }

    fn losses<'a>(&'a mut self, pass: Pass, parameters: &'a Parameters, batch: Batch) -> &'a [f32] {
        on_worker(move || {
            let (pass, weights, activations) = self.prepare(pass, parameters, Purpose::Inference);
            pass.losses(weights, activations, batch);
            &activations.losses[..pass.tokens()]
        })
    }

    fn muon(
        &mut self,
        update: &MuonUpdate,
        parameters: &mut Parameters,
        gradients: &Parameters,
        exp_avg: &mut [f32],
        frozen: Frozen,
    ) {
        let muon = self.muon.get_or_insert_with(|| Muon::new(gradients, frozen));
        on_worker(|| muon.update(update, parameters.values_mut(), gradients.values(), exp_avg));
    }

    fn last_logits(&mut self, pass: Pass, parameters: &Parameters, logits: &mut [f32], tokens: &[u32]) {
        on_worker(|| {
            let (pass, weights, activations) = self.prepare(pass, parameters, Purpose::Inference);
            pass.last_logits(weights, activations, logits, tokens);
        });
    }

    fn batch_logits(&mut self, pass: Pass, parameters: &Parameters, logits: &mut [f32], batch: Batch) {
        on_worker(|| {
            let (pass, weights, activations) = self.prepare(pass, parameters, Purpose::Inference);
            pass.batch_logits(weights, activations, logits, batch);
        });
    }

    /// Packs the weights, decides on the size of chunks and allocates the buffers, as far as a pass needs it.
    fn prepare<'a>(
        &'a mut self,
        pass: Pass,
        parameters: &'a Parameters,
        purpose: Purpose,
    ) -> (Pass, PassWeights<'a, E>, &'a mut Activations<E>) {
        self.packed.update(parameters, purpose == Purpose::Training);
        let Pass { config, batch, time, .. } = pass;
        let best = best_chunk_size(batch, time, rayon::current_num_threads());
        let needed = |size| Capacity::needed(batch, size, time, purpose);
        let fitting = self.activations.as_ref().and_then(|buffers| {
            let held = buffers.capacity;
            // A smaller pass may need more chunks of the best size than there are.
            let may_share = purpose == Purpose::Inference || may_share_chunks(time);
            let other = if may_share { held.chunk_size } else { best };
            [best, other].into_iter().find(|&size| held.holds(needed(size)))
        });
        if fitting.is_none() {
            self.activations = None; // Frees the old buffers before the new ones are allocated.
            self.activations = Some(Activations::new(&config, needed(best)));
        }
        let pass = Pass { chunk_size: fitting.unwrap_or(best), ..pass };
        let activations = self.activations.as_mut().expect("allocated above");
        (pass, PassWeights { parameters, packed: &self.packed }, activations)
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
