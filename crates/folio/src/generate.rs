//! Text generation: predict, sample a token, repeat; many sequences at a time.
//!
//! ```
//! use std::sync::Arc;
//! use folio::generate::{Generator, Request};
//! use folio::model::{ModelConfig, Parameters, InferenceModel, WeightFormat};
//! use folio::rng::{Rng, Stream};
//! use folio::tokenizer::Tokenizer;
//!
//! let tokenizer = Arc::new(Tokenizer::chars("to be or not"));
//! let vocab_size = tokenizer.vocab_size();
//! let config =
//!     ModelConfig { vocab_size, n_blocks: 1, n_emb: 8, n_heads: 2, block_size: 4, dropout: 0.0, ..ModelConfig::GPT2 };
//! let parameters = Parameters::random(&config, &mut Rng::new(1, Stream::Init));
//! let model = Arc::new(InferenceModel::new(config, WeightFormat::F32, &parameters));
//!
//! let prompt = tokenizer.encode("to be")?;
//! let mut generator = Generator::new(model, tokenizer);
//! for seed in 0..2 {
//!     generator.begin(Request { prompt: prompt.clone(), max_new_tokens: 10, seed, ..Request::default() })?;
//! }
//! let mut texts = [String::new(), String::new()];
//! while generator.active() > 0 {
//!     generator.step(|id, token| texts[id.number() as usize] += token.text);
//! }
//! assert_eq!(texts.map(|text| text.len()), [10, 10]);
//! # Ok::<(), folio::error::Error>(())
//! ```

use std::sync::Arc;

use crate::ensemble::{Mixture, check_members};
use crate::error::{Error, Result};
use crate::model::{Cache, InferenceModel, ModelConfig, PASS_TOKENS, Workspace};
use crate::named_enum;
use crate::tokenizer::Tokenizer;

mod sampling;
mod sequence;
mod stops;

pub use sampling::{Sampler, Sampling};
use sequence::GeneratedSequence;

/// A request to generate text.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The tokens to continue. If there are none, generation starts from token 0, as in the original project.
    pub prompt: Vec<u32>,
    /// The maximum number of generated tokens.
    pub max_new_tokens: usize,
    /// How tokens are sampled.
    pub sampling: Sampling,
    /// The same seed gives the same text, on any number of threads and beside any other sequences.
    pub seed: u64,
    /// Stop strings: the text ends before the first one that occurs.
    pub stop: Vec<String>,
    /// What to do when the context is full.
    pub past_context: PastContext,
    /// If set, return the log probability of each token, and of this many of the most likely tokens.
    pub logprobs: Option<usize>,
    /// The first generated tokens, taken as given instead of sampled, for example to score them with `logprobs`.
    pub given: Vec<u32>,
}

impl Default for Request {
    /// 100 tokens, without a prompt.
    fn default() -> Self {
        Self {
            prompt: Vec::new(),
            max_new_tokens: 100,
            sampling: Sampling::default(),
            seed: 0,
            stop: Vec::new(),
            past_context: PastContext::default(),
            logprobs: None,
            given: Vec::new(),
        }
    }
}

/// What to do when a sequence is longer than the model's context of `block_size` tokens. Positions count from the start
/// of the context, so whenever the context moves, the keys and values of every remaining token are recomputed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PastContext {
    /// The model sees the last `block_size` tokens, as in the original project. Each token costs a full forward pass.
    #[default]
    Exact,
    /// A full context drops its older half: the model sees the last `block_size / 2` tokens, then more until the context
    /// is full again. Each token costs about as much as two.
    Rolling,
    /// Generation ends.
    Stop,
}

named_enum!(PastContext, "context mode", { Exact => "exact", Rolling => "rolling", Stop => "stop" });

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// It reached `max_new_tokens`, or filled the context.
    Length,
    /// A stop string or the end token was generated.
    Stop,
}

/// A generated token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampledToken<'a> {
    /// The token.
    pub token: u32,
    /// The natural logarithm of its probability, before temperature, penalty and filters; if requested.
    pub logprob: Option<f32>,
    /// The most likely tokens and their log probabilities, in descending order; if requested.
    pub alternatives: &'a [(u32, f32)],
    /// The text that this token completes: whole characters only, without an ending that may still become a stop string.
    /// The last token of a sequence returns all remaining text.
    pub text: &'a str,
    /// Why the sequence ended, if this is its last token.
    pub finish: Option<Finish>,
}

/// Identifies a sequence of a [`Generator`]. Sequences are numbered from 0 in the order of [`Generator::begin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(u64);

impl SequenceId {
    /// The number.
    pub fn number(self) -> u64 {
        self.0
    }
}

/// Generates sequences with one model, or with the mean of the probabilities of several. All active sequences advance together: a
/// pass reads the weights once for all of them. A sequence ends at the tokenizer's [end token](Tokenizer::end_token), which is not part of its text.
///
/// The tokens of a sequence do not depend on the other sequences.
pub struct Generator {
    /// At least one.
    models: Vec<Arc<InferenceModel>>,
    tokenizer: Arc<Tokenizer>,
    /// One per model.
    workspaces: Vec<Workspace>,
    mixture: Mixture,
    /// The number of sequences that the workspaces have room for.
    capacity: usize,
    active: Vec<GeneratedSequence>,
    paused: Vec<GeneratedSequence>,
    next_id: u64,
    /// The caches of sequences that have ended, one per model.
    spare: Vec<Vec<Cache>>,
    sampler: Sampler,
    alternatives: Vec<(u32, f32)>,
}

impl Generator {
    /// A generator without sequences.
    ///
    /// # Panics
    /// If the tokenizer has more tokens than the model.
    pub fn new(model: Arc<InferenceModel>, tokenizer: Arc<Tokenizer>) -> Self {
        Self::ensemble(vec![model], tokenizer).expect("one model agrees with itself")
    }

    /// A generator that samples from the mean of the probabilities of several models.
    ///
    /// # Errors
    /// [`Error::Setting`] if there are no models, or they differ in their vocabulary or context length.
    ///
    /// # Panics
    /// If the tokenizer has more tokens than the models.
    pub fn ensemble(models: Vec<Arc<InferenceModel>>, tokenizer: Arc<Tokenizer>) -> Result<Self> {
        check_members(models.iter().map(|model| model.config()))?;
        let (model_size, tokenizer_size) = (models[0].config().vocab_size, tokenizer.vocab_size());
        assert!(
            model_size >= tokenizer_size,
            "a model of {model_size} tokens, a tokenizer of {tokenizer_size}"
        );
        Ok(Self {
            workspaces: models.iter().map(|model| model.workspace(1)).collect(),
            models,
            tokenizer,
            mixture: Mixture::default(),
            capacity: 1,
            active: Vec::new(),
            paused: Vec::new(),
            next_id: 0,
            spare: Vec::new(),
            sampler: Sampler::default(),
            alternatives: Vec::new(),
        })
    }

    /// Adds a sequence.
    ///
    /// # Errors
    /// [`Error::Setting`] if a number is out of range, a token is outside the vocabulary, or the prompt is longer than the
    /// context and `past_context` is [`PastContext::Stop`].
    pub fn begin(&mut self, request: Request) -> Result<SequenceId> {
        let (config, vocab_size) = (self.config(), self.tokenizer.vocab_size());
        request.sampling.validate()?;
        let mut tokens = request.prompt.iter().chain(&request.given);
        if let Some(token) = tokens.find(|&&token| token as usize >= vocab_size) {
            let reason = format!("token {token} is outside the vocabulary of {vocab_size}");
            return Err(Error::setting("prompt", reason));
        }
        if request.max_new_tokens == 0 {
            return Err(Error::setting("max_new_tokens", "must be at least 1, not 0"));
        }
        if request.stop.iter().any(String::is_empty) {
            return Err(Error::setting("stop", "a stop string must not be empty"));
        }
        let (tokens, room) = (request.prompt.len(), config.block_size);
        if request.past_context == PastContext::Stop && tokens > room {
            let reason = format!(
                "has {tokens} tokens, but the context holds {room}: shorten it, or choose another context mode"
            );
            return Err(Error::setting("prompt", reason));
        }
        let caches = self.empty_caches();
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        self.active.push(GeneratedSequence::new(id, request, caches, self.models[0].config()));
        Ok(id)
    }

    /// The caches of a new sequence, one per model.
    fn empty_caches(&mut self) -> Vec<Cache> {
        let new = || self.models.iter().map(|model| model.cache()).collect();
        let mut caches = self.spare.pop().unwrap_or_else(new);
        caches.iter_mut().for_each(Cache::clear);
        caches
    }

    /// Cancels a sequence, if it is active or paused.
    pub fn cancel(&mut self, id: SequenceId) {
        for sequences in [&mut self.active, &mut self.paused] {
            if let Some(sequence) = take_out(sequences, id) {
                self.spare.push(sequence.into_caches());
            }
        }
    }

    /// Pauses an active sequence: [`Generator::step`] skips it until it is resumed.
    pub fn pause(&mut self, id: SequenceId) {
        self.paused.extend(take_out(&mut self.active, id));
    }

    /// Resumes a paused sequence.
    pub fn resume(&mut self, id: SequenceId) {
        self.active.extend(take_out(&mut self.paused, id));
    }

    /// The number of active sequences; paused ones are not counted.
    pub fn active(&self) -> usize {
        self.active.len()
    }

    /// The dimensions of the model, of several the first.
    pub fn config(&self) -> &ModelConfig {
        self.models[0].config()
    }

    /// Bytes of memory that a sequence occupies: its caches of keys and values.
    pub fn sequence_bytes(&self) -> usize {
        self.models.iter().map(|model| model.cache_bytes()).sum()
    }

    /// Runs one pass and samples one token for each active sequence whose prompt has been processed. A long prompt is
    /// processed in several steps, so that it does not hold up the other sequences. Removes the sequences that end.
    pub fn step(&mut self, mut on_token: impl FnMut(SequenceId, SampledToken)) {
        if self.active.is_empty() {
            return;
        }
        if self.active.len() > self.capacity {
            self.capacity = self.active.len().next_power_of_two();
            self.workspaces = self.models.iter().map(|model| model.workspace(self.capacity)).collect();
        }
        // Each sequence gets at least one token; the remaining capacity goes to the oldest ones.
        let mut left = PASS_TOKENS.saturating_sub(self.active.len());
        for sequence in &mut self.active {
            left -= sequence.plan(1 + left).saturating_sub(1);
        }
        // An imported model may have more rows in its embedding than there are tokens; those are never sampled.
        let vocab_size = self.tokenizer.vocab_size();
        let rows = self.models[0].config().vocab_size;
        let (logits, stride) = match &self.models[..] {
            [model] => (model.advance(&mut self.workspaces[0], &self.active), rows),
            models => {
                self.mixture.begin(self.active.len(), vocab_size);
                for (index, (model, workspace)) in models.iter().zip(&mut self.workspaces).enumerate() {
                    self.active.iter_mut().for_each(|sequence| sequence.select_model(index));
                    self.mixture.add(model.advance(workspace, &self.active), rows);
                }
                (self.mixture.finish(models.len()), vocab_size)
            }
        };
        let logits = logits.chunks_exact(stride).map(|logits| &logits[..vocab_size]);
        for (sequence, logits) in self.active.iter_mut().zip(logits) {
            if sequence.finish_pass() {
                let (sampler, alternatives) = (&mut self.sampler, &mut self.alternatives);
                let id = sequence.id();
                on_token(id, sequence.sample(logits, &self.tokenizer, sampler, alternatives));
            }
        }
        while let Some(index) = self.active.iter().position(GeneratedSequence::has_ended) {
            self.spare.push(self.active.remove(index).into_caches());
        }
    }

    /// Generates one sequence to its end.
    ///
    /// # Errors
    /// As [`Generator::begin`].
    pub fn generate(&mut self, request: Request, mut on_token: impl FnMut(SampledToken)) -> Result<()> {
        let wanted = self.begin(request)?;
        let mut ended = false;
        while !ended {
            self.step(|id, token| {
                if id == wanted {
                    ended = token.finish.is_some();
                    on_token(token);
                }
            });
        }
        Ok(())
    }

    /// The attention weights of a block of the model, of several the first: softmax(q k^T / sqrt(D)) for each head, query and
    /// key: (H, T, T), 0 for keys after the query.
    ///
    /// # Panics
    /// If `tokens` is empty or longer than `block_size`, a token is outside the vocabulary, or the block does not exist.
    pub fn attention(&mut self, tokens: &[u32], block: usize) -> Vec<f32> {
        let config = *self.config();
        let time = tokens.len();
        assert!(
            (1..=config.block_size).contains(&time),
            "{time} tokens for a context of {}",
            config.block_size
        );
        assert!(block < config.n_blocks, "block {block} of {}", config.n_blocks);
        let mut weights = vec![0.0; config.n_heads * time * time];
        let request = Request { prompt: tokens.to_vec(), ..Request::default() };
        let caches = self.empty_caches();
        let mut sequence = GeneratedSequence::new(SequenceId(u64::MAX), request, caches, &config);
        let mut is_processed = false;
        while !is_processed {
            sequence.plan(PASS_TOKENS);
            self.models[0].advance_with_weights(
                &mut self.workspaces[0],
                &sequence,
                block,
                &mut |head, query, row| {
                    weights[(head * time + query) * time..][..row.len()].copy_from_slice(row);
                },
            );
            is_processed = sequence.finish_pass();
        }
        self.spare.push(sequence.into_caches());
        weights
    }
}

fn take_out(sequences: &mut Vec<GeneratedSequence>, id: SequenceId) -> Option<GeneratedSequence> {
    let index = sequences.iter().position(|sequence| sequence.id() == id)?;
    Some(sequences.remove(index))
}
