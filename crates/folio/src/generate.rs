//! Writing text: the model's prediction, a draw from it, and again; many texts at a time.
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
//! let config = ModelConfig { vocab_size, n_blocks: 1, n_emb: 8, n_heads: 2, block_size: 4, dropout: 0.0 };
//! let parameters = Parameters::random(&config, &mut Rng::new(1, Stream::Init));
//! let predictor = Arc::new(InferenceModel::new(config, WeightFormat::F32, &parameters));
//!
//! let prompt = tokenizer.encode("to be")?;
//! let mut generator = Generator::new(predictor, tokenizer);
//! for seed in 0..2 {
//!     generator.begin(Request { prompt: prompt.clone(), max_new_tokens: 10, seed, ..Request::default() })?;
//! }
//! let mut texts = [String::new(), String::new()];
//! while generator.texts() > 0 {
//!     generator.step(|id, drawn| texts[id.number() as usize] += drawn.text);
//! }
//! assert_eq!(texts.map(|text| text.len()), [10, 10]);
//! # Ok::<(), folio::error::Error>(())
//! ```

use std::str::FromStr;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::model::{Cache, InferenceModel, ModelConfig, PASS_TOKENS, Workspace};
use crate::tokenizer::Tokenizer;

mod sampling;
mod stops;
mod writing;

pub use sampling::{Sampler, Sampling};
use writing::Writing;

/// What to write.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The tokens to go on from. If there are none the text starts from token 0, as in the ancestor.
    pub prompt: Vec<u32>,
    /// Tokens to draw at most.
    pub max_new_tokens: usize,
    /// How they are drawn.
    pub sampling: Sampling,
    /// The same seed gives the same text, on any number of threads and whatever else is written at the time.
    pub seed: u64,
    /// The text ends before the first of these.
    pub stop: Vec<String>,
    /// What to do when the context is full.
    pub past_context: PastContext,
    /// Whether to tell each token's probability, and those of so many of the likeliest.
    pub logprobs: Option<usize>,
    /// Tokens that are taken in their turn in place of drawn ones: how likely they were can be told, too.
    pub given: Vec<u32>,
}

impl Default for Request {
    /// A hundred tokens from nothing.
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

/// What to do when a text is longer than the model's context, `block_size` tokens. Positions count from the start of
/// the context, so that whenever it moves on, all that is kept of it has to be computed anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PastContext {
    /// The model sees the last `block_size` tokens, as in the ancestor, at the cost of a whole pass for each token.
    #[default]
    Exact,
    /// When the context is full its older half is given up: the model sees the last `block_size / 2` tokens, then more
    /// and more, until it is full again. Two tokens' work for each token.
    Rolling,
    /// The text ends.
    Stop,
}

impl PastContext {
    /// `exact`, `rolling` or `stop`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Rolling => "rolling",
            Self::Stop => "stop",
        }
    }
}

impl FromStr for PastContext {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "exact" => Ok(Self::Exact),
            "rolling" => Ok(Self::Rolling),
            "stop" => Ok(Self::Stop),
            _ => Err(Error::unknown_name("way past the context", name, &["exact", "rolling", "stop"])),
        }
    }
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// It has as many tokens as were asked for, or as the context holds.
    Length,
    /// A stop string came, or the token that ends a text.
    Stop,
}

/// A token that was drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawn<'a> {
    /// The token.
    pub token: u32,
    /// The natural logarithm of its probability in the model's softmax as it is, without temperature and filters; if it
    /// was asked for.
    pub logprob: Option<f32>,
    /// The likeliest tokens and theirs, the likeliest first.
    pub alternatives: &'a [(u32, f32)],
    /// What is certain now and was not before: whole characters, and nothing that may become a stop string. On a text's
    /// last token all that is left.
    pub text: &'a str,
    /// On a text's last token, why.
    pub finish: Option<Finish>,
}

/// What a text is called while it is written: they are numbered from 0 in the order of [`Generator::begin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TextId(u64);

impl TextId {
    /// The number.
    pub fn number(self) -> u64 {
        self.0
    }
}

/// Writes texts with one model, as many at a time as were begun: a pass reads the weights once for all of them. A text
/// ends where the model draws the tokenizer's [end token](Tokenizer::end_token), which is not part of it.
///
/// What is drawn for a text does not depend on the others.
pub struct Generator {
    predictor: Arc<InferenceModel>,
    tokenizer: Arc<Tokenizer>,
    workspace: Workspace,
    /// Texts that the workspace has room for.
    capacity: usize,
    texts: Vec<Writing>,
    paused: Vec<Writing>,
    begun: u64,
    /// Caches of texts that have ended.
    spare: Vec<Cache>,
    sampler: Sampler,
    alternatives: Vec<(u32, f32)>,
}

impl Generator {
    /// A generator with nothing to write yet.
    ///
    /// # Panics
    /// If the tokenizer has another vocabulary than the model.
    pub fn new(predictor: Arc<InferenceModel>, tokenizer: Arc<Tokenizer>) -> Self {
        let sizes = (predictor.config().vocab_size, tokenizer.vocab_size());
        assert_eq!(sizes.0, sizes.1, "tokens of the model and of the tokenizer");
        Self {
            workspace: predictor.workspace(1),
            predictor,
            tokenizer,
            capacity: 1,
            texts: Vec::new(),
            paused: Vec::new(),
            begun: 0,
            spare: Vec::new(),
            sampler: Sampler::default(),
            alternatives: Vec::new(),
        }
    }

    /// Takes up a text; it will be told under this name.
    ///
    /// # Errors
    /// [`Error::Setting`] if the request cannot be met: a number out of range, a token that the model does not know, a
    /// prompt that is longer than the context although the text is to end there.
    pub fn begin(&mut self, request: Request) -> Result<TextId> {
        let config = self.predictor.config();
        request.sampling.validate()?;
        let mut tokens = request.prompt.iter().chain(&request.given);
        if let Some(token) = tokens.find(|&&token| token as usize >= config.vocab_size) {
            let reason = format!("token {token} is outside the vocabulary of {}", config.vocab_size);
            return Err(Error::setting("--prompt", reason));
        }
        if request.max_new_tokens == 0 {
            return Err(Error::setting("--max_new_tokens", "0 writes nothing: give at least 1"));
        }
        if request.stop.iter().any(String::is_empty) {
            return Err(Error::setting("--stop", "an empty string would stop every text before it begins"));
        }
        let (tokens, room) = (request.prompt.len(), config.block_size);
        if request.past_context == PastContext::Stop && tokens > room {
            let reason = format!(
                "{tokens} tokens are more than the context of {room}: shorten it, or let it go past the context"
            );
            return Err(Error::setting("--prompt", reason));
        }
        let mut cache = self.spare.pop().unwrap_or_else(|| self.predictor.cache());
        cache.clear();
        let id = TextId(self.begun);
        self.begun += 1;
        self.texts.push(Writing::new(id, request, cache, self.predictor.config()));
        Ok(id)
    }

    /// Gives a text up, if it is under way or paused.
    pub fn cancel(&mut self, id: TextId) {
        for texts in [&mut self.texts, &mut self.paused] {
            if let Some(text) = take_out(texts, id) {
                self.spare.push(text.into_cache());
            }
        }
    }

    /// Sets a text aside that is under way: steps pass it over until it is resumed.
    pub fn pause(&mut self, id: TextId) {
        self.paused.extend(take_out(&mut self.texts, id));
    }

    /// Goes on with a text that was paused.
    pub fn resume(&mut self, id: TextId) {
        self.texts.extend(take_out(&mut self.paused, id));
    }

    /// The number of texts under way, without those that are paused.
    pub fn texts(&self) -> usize {
        self.texts.len()
    }

    /// The model's sizes.
    pub fn config(&self) -> &ModelConfig {
        self.predictor.config()
    }

    /// Bytes of memory that a text takes while it is written.
    pub fn text_bytes(&self) -> usize {
        self.predictor.cache_bytes()
    }

    /// Draws a token for each text whose tokens have all been read, and tells of it. A long prompt is read in several
    /// steps, so that the other texts go on meanwhile. A text that has ended is no longer under way.
    pub fn step(&mut self, mut on_token: impl FnMut(TextId, Drawn)) {
        if self.texts.is_empty() {
            return;
        }
        if self.texts.len() > self.capacity {
            self.capacity = self.texts.len().next_power_of_two();
            self.workspace = self.predictor.workspace(self.capacity);
        }
        // Each has one token at least; what is left of a pass goes to those that came first.
        let mut left = PASS_TOKENS.saturating_sub(self.texts.len());
        for text in &mut self.texts {
            left -= text.plan(1 + left).saturating_sub(1);
        }
        let logits = self.predictor.advance(&mut self.workspace, &self.texts);
        for (text, logits) in
            self.texts.iter_mut().zip(logits.chunks_exact(self.predictor.config().vocab_size))
        {
            if text.has_read() {
                let (sampler, alternatives) = (&mut self.sampler, &mut self.alternatives);
                let (id, drawn) = (text.id(), text.draw(logits, &self.tokenizer, sampler, alternatives));
                on_token(id, drawn);
            }
        }
        while let Some(place) = self.texts.iter().position(Writing::has_ended) {
            self.spare.push(self.texts.remove(place).into_cache());
        }
    }

    /// Writes one text alone, to its end.
    ///
    /// # Errors
    /// As [`Generator::begin`].
    pub fn write(&mut self, request: Request, mut on_token: impl FnMut(Drawn)) -> Result<()> {
        let wanted = self.begin(request)?;
        let mut ended = false;
        while !ended {
            self.step(|id, drawn| {
                if id == wanted {
                    ended = drawn.finish.is_some();
                    on_token(drawn);
                }
            });
        }
        Ok(())
    }

    /// What the heads of a block attend to in a text: softmax(...) of each head, query and key, (H, T, T), 0 for keys after
    /// the query.
    ///
    /// # Panics
    /// If there are no tokens, more than `block_size`, one outside the vocabulary, or no such block.
    pub fn attention(&mut self, tokens: &[u32], block: usize) -> Vec<f32> {
        let config = *self.predictor.config();
        let time = tokens.len();
        assert!(
            (1..=config.block_size).contains(&time),
            "{time} tokens for a context of {}",
            config.block_size
        );
        assert!(block < config.n_blocks, "block {block} of {}", config.n_blocks);
        let mut weights = vec![0.0; config.n_heads * time * time];
        let request = Request { prompt: tokens.to_vec(), ..Request::default() };
        let mut cache = self.spare.pop().unwrap_or_else(|| self.predictor.cache());
        cache.clear();
        let mut text = Writing::new(TextId(u64::MAX), request, cache, &config);
        let mut is_read = false;
        while !is_read {
            text.plan(PASS_TOKENS);
            self.predictor.advance_with_weights(
                &mut self.workspace,
                &text,
                block,
                &mut |head, query, row| {
                    weights[(head * time + query) * time..][..row.len()].copy_from_slice(row);
                },
            );
            is_read = text.has_read();
        }
        self.spare.push(text.into_cache());
        weights
    }
}

fn take_out(texts: &mut Vec<Writing>, id: TextId) -> Option<Writing> {
    let place = texts.iter().position(|text| text.id() == id)?;
    Some(texts.remove(place))
}
