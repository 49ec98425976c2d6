//! A GPT-2 that can be trained and asked.

use folio_kernels::element::{Bf16, Element};

use super::activations::{Activations, Capacity, Purpose};
use super::packed::PackedWeights;
use super::pass::{Pass, Weights};
use super::{ModelConfig, Parameters, Precision};
use crate::rng::Rng;

/// A GPT-2 with its weights, their gradients, and the buffers of a pass.
pub struct Gpt2 {
    config: ModelConfig,
    parameters: Parameters,
    /// Empty until the first training step.
    gradients: Option<Parameters>,
    logits: Vec<f32>,
    engine: Engine,
}

/// What depends on the number format.
enum Engine {
    F32(Buffers<f32>),
    Bf16(Buffers<Bf16>),
}

struct Buffers<E> {
    packed: PackedWeights<E>,
    /// Allocated by the first pass, and again only if a larger one comes.
    activations: Option<Activations<E>>,
}

/// Sequences of tokens and, one later, what follows each.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// (B, T)
    pub inputs: &'a [u32],
    /// (B, T)
    pub targets: &'a [u32],
    /// T, the tokens of each sequence.
    pub time: usize,
}

impl Gpt2 {
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
            Precision::F32 => Engine::F32(Buffers::new(&config)),
            Precision::Bf16 => Engine::Bf16(Buffers::new(&config)),
        };
        Self { config, parameters, gradients: None, logits: Vec::new(), engine }
    }

    /// About how many bytes of memory training takes on batches of so many sequences of `block_size` tokens: weights,
    /// gradients and AdamW's means, the packed weights, and the activations that the backward pass reads.
    pub fn training_bytes(config: &ModelConfig, precision: Precision, batch: usize) -> u64 {
        let ModelConfig { n_blocks: l, n_emb: c, block_size: t, .. } = *config;
        let [l, c, t, batch] = [l, c, t, batch].map(|size| size as u128);
        let element = if precision == Precision::F32 { 4 } else { 2 };
        let parameters = config.matrix_elements();
        // A token's qkv, heads and fc (8 C) in the format, its two residual streams in f32, in each block; operands of
        // one block's weight gradients (16 C) in the format; the gradient of the residual stream.
        let token = c * (l * (8 * element + 8) + 16 * element + 8);
        u64::try_from(parameters * (16 + 2 * element) + batch * t * token).unwrap_or(u64::MAX)
    }

    /// The model's sizes.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The weights.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The weights to be changed, and the gradients of the last training step.
    ///
    /// # Panics
    /// If there was no training step yet.
    pub fn parameters_and_gradients(&mut self) -> (&mut Parameters, &Parameters) {
        match &mut self.engine {
            Engine::F32(buffers) => buffers.packed.invalidate(),
            Engine::Bf16(buffers) => buffers.packed.invalidate(),
        }
        let gradients = self.gradients.as_ref().expect("a training step comes first");
        (&mut self.parameters, gradients)
    }

    /// The mean cross-entropy of a batch in nats a token, with dropout drawn from `dropout_key`; leaves its
    /// gradients by every parameter in [`Gpt2::parameters_and_gradients`].
    pub fn train_step(&mut self, batch: Batch, dropout_key: u64) -> f32 {
        let pass = self.pass(batch.inputs, batch.time, Some(dropout_key));
        check_targets(pass, batch.targets);
        let gradients = self.gradients.get_or_insert_with(|| Parameters::zeros(&self.config));
        let losses = match &mut self.engine {
            Engine::F32(buffers) => buffers.train(pass, &self.parameters, gradients, batch),
            Engine::Bf16(buffers) => buffers.train(pass, &self.parameters, gradients, batch),
        };
        mean(losses)
    }

    /// The cross-entropy of every token of a batch in nats, (B, T), without dropout.
    pub fn losses(&mut self, batch: Batch) -> &[f32] {
        let pass = self.pass(batch.inputs, batch.time, None);
        check_targets(pass, batch.targets);
        match &mut self.engine {
            Engine::F32(buffers) => buffers.losses(pass, &self.parameters, batch),
            Engine::Bf16(buffers) => buffers.losses(pass, &self.parameters, batch),
        }
    }

    /// The logits of what follows the last token of one sequence, (V).
    pub fn next_logits(&mut self, tokens: &[u32]) -> &[f32] {
        let pass = self.pass(tokens, tokens.len(), None);
        self.logits.resize(self.config.vocab_size, 0.0);
        match &mut self.engine {
            Engine::F32(buffers) => buffers.next_logits(pass, &self.parameters, &mut self.logits, tokens),
            Engine::Bf16(buffers) => buffers.next_logits(pass, &self.parameters, &mut self.logits, tokens),
        }
        &self.logits
    }

    /// Checks the sizes of a pass.
    fn pass(&self, inputs: &[u32], time: usize, dropout_key: Option<u64>) -> Pass {
        let longest = self.config.block_size;
        assert!((1..=longest).contains(&time), "{time} tokens a sequence, the model takes 1 to {longest}");
        assert!(
            !inputs.is_empty() && inputs.len().is_multiple_of(time),
            "{} tokens in rows of {time}",
            inputs.len()
        );
        Pass { config: self.config, batch: inputs.len() / time, time, dropout_key }
    }
}

impl<E: Element> Buffers<E> {
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
        on_a_worker(move || {
            let (weights, activations) = self.begin(pass, parameters, Purpose::Training);
            pass.train(weights, gradients, activations, (batch.inputs, batch.targets));
            &activations.losses[..pass.tokens()]
        })
    }

    fn losses<'a>(&'a mut self, pass: Pass, parameters: &'a Parameters, batch: Batch) -> &'a [f32] {
        on_a_worker(move || {
            let (weights, activations) = self.begin(pass, parameters, Purpose::Inference);
            pass.losses(weights, activations, (batch.inputs, batch.targets));
            &activations.losses[..pass.tokens()]
        })
    }

    fn next_logits(&mut self, pass: Pass, parameters: &Parameters, logits: &mut [f32], tokens: &[u32]) {
        on_a_worker(|| {
            let (weights, activations) = self.begin(pass, parameters, Purpose::Inference);
            pass.next_logits(weights, activations, logits, tokens);
        });
    }

    /// Sees that packed weights and buffers are there.
    fn begin<'a>(
        &'a mut self,
        pass: Pass,
        parameters: &'a Parameters,
        purpose: Purpose,
    ) -> (Weights<'a, E>, &'a mut Activations<E>) {
        self.packed.update(parameters, purpose == Purpose::Training);
        let Pass { config, batch, time, .. } = pass;
        let wanted = Capacity { batch, time, purpose, threads: rayon::current_num_threads() };
        if !self.activations.as_ref().is_some_and(|buffers| buffers.capacity.holds(wanted)) {
            self.activations = None; // The old buffers go before the new ones come.
            self.activations = Some(Activations::new(&config, wanted));
        }
        let activations = self.activations.as_mut().expect("allocated above");
        (Weights { parameters, packed: &self.packed }, activations)
    }
}

/// Runs `work` on a thread of the current pool, so that its many small parallel parts start and end cheaply.
fn on_a_worker<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::join(work, || ()).0
}

fn check_targets(pass: Pass, targets: &[u32]) {
    assert_eq!(targets.len(), pass.tokens(), "one target a token");
}

/// The mean of the tokens' losses, added up in f64.
fn mean(losses: &[f32]) -> f32 {
    (losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / losses.len() as f64) as f32
}
