//! One sequence during generation.

use super::stops::Stops;
use super::{Finish, PastContext, Request, SampledToken, Sampler, SequenceId};
use crate::model::{Cache, CachedSequence, ModelConfig};
use crate::rng::{Rng, Stream};
use crate::text::TextStream;
use crate::tokenizer::Tokenizer;

/// A sequence during generation.
pub(super) struct GeneratedSequence {
    id: SequenceId,
    request: Request,
    block_size: usize,
    /// The prompt (token 0 if it is empty), then the generated tokens.
    tokens: Vec<u32>,
    /// The index in `tokens` where the context begins. The cache holds tokens from here on.
    start: usize,
    /// One per model.
    caches: Vec<Cache>,
    /// The model that runs the next pass.
    model: usize,
    /// Tokens of the context that completed passes have processed. (The cache's length changes during a pass.)
    processed: usize,
    /// Tokens that the next pass processes.
    planned: usize,
    /// The number of generated tokens.
    generated: usize,
    ended: bool,
    /// For each token of the vocabulary, whether the sequence contains it (V); empty without a repetition penalty.
    seen: Vec<bool>,
    rng: Rng,
    /// The bytes of the last token.
    bytes: Vec<u8>,
    stream: TextStream,
    stops: Stops,
}

impl CachedSequence for GeneratedSequence {
    fn cache(&self) -> &Cache {
        &self.caches[self.model]
    }

    fn next_tokens(&self) -> &[u32] {
        &self.tokens[self.start + self.processed..][..self.planned]
    }
}

impl GeneratedSequence {
    pub(super) fn new(id: SequenceId, request: Request, caches: Vec<Cache>, config: &ModelConfig) -> Self {
        /// Upper limit of the memory reserved in advance, in tokens.
        const RESERVED_MAX: usize = 1 << 16;
        let first: &[u32] = if request.prompt.is_empty() { &[0] } else { &request.prompt };
        let mut tokens = Vec::with_capacity(first.len() + request.max_new_tokens.min(RESERVED_MAX));
        tokens.extend_from_slice(first);
        let mut seen = Vec::new();
        if request.sampling.repetition_penalty != 1.0 {
            seen.resize(config.vocab_size, false);
            request.prompt.iter().for_each(|&token| seen[token as usize] = true);
        }
        Self {
            id,
            block_size: config.block_size,
            tokens,
            start: 0,
            caches,
            model: 0,
            processed: 0,
            planned: 0,
            generated: 0,
            ended: false,
            seen,
            rng: Rng::new(request.seed, Stream::Sampling),
            bytes: Vec::new(),
            stream: TextStream::default(),
            stops: Stops::new(request.stop.clone()),
            request,
        }
    }

    pub(super) fn id(&self) -> SequenceId {
        self.id
    }

    pub(super) fn into_caches(self) -> Vec<Cache> {
        self.caches
    }

    /// Selects the model that runs the next pass.
    pub(super) fn select_model(&mut self, index: usize) {
        self.model = index;
    }

    /// Whether the last token has been generated.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Plans the next pass with up to `most` tokens. Returns their number.
    pub(super) fn plan(&mut self, most: usize) -> usize {
        let length = self.tokens.len();
        if length - self.start > self.block_size {
            let kept = match self.request.past_context {
                // A long prompt keeps all that fits.
                PastContext::Rolling if self.generated > 0 => (self.block_size / 2).max(1),
                PastContext::Exact | PastContext::Rolling | PastContext::Stop => self.block_size,
            };
            self.start = length - kept;
            self.caches.iter_mut().for_each(Cache::clear);
            self.processed = 0;
        }
        self.planned = (length - self.start - self.processed).min(most);
        self.planned
    }

    /// Records that the planned pass was run. Returns whether all tokens have been processed, so that the next one can be
    /// sampled.
    pub(super) fn finish_pass(&mut self) -> bool {
        self.processed += std::mem::take(&mut self.planned);
        self.start + self.processed == self.tokens.len()
    }

    /// Samples the next token from its logits (V).
    pub(super) fn sample<'a>(
        &'a mut self,
        logits: &[f32],
        tokenizer: &Tokenizer,
        sampler: &mut Sampler,
        alternatives: &'a mut Vec<(u32, f32)>,
    ) -> SampledToken<'a> {
        let given = self.request.given.get(self.generated).copied();
        let token = given
            .unwrap_or_else(|| sampler.sample(&self.request.sampling, logits, &self.seen, &mut self.rng));
        let is_end = given.is_none() && tokenizer.end_token() == Some(token);
        alternatives.clear();
        let logprob = |count| sampler.log_probabilities(logits, token, count, alternatives);
        let logprob = self.request.logprobs.map(logprob);
        self.tokens.push(token);
        self.generated += 1;
        if let Some(seen) = self.seen.get_mut(token as usize) {
            *seen = true;
        }
        self.bytes.clear();
        if !is_end {
            tokenizer.push_bytes(token, &mut self.bytes);
        }
        let stopped = self.stops.push(|text| self.stream.push_to(&self.bytes, text));
        let is_full = self.request.past_context == PastContext::Stop
            && self.tokens.len() - self.start > self.block_size;
        let finish = if stopped {
            Some(Finish::Stop)
        } else if is_end {
            self.stops.end(std::mem::take(&mut self.stream).finish());
            Some(Finish::Stop)
        } else if self.generated == self.request.max_new_tokens || is_full {
            self.stops.end(std::mem::take(&mut self.stream).finish());
            Some(Finish::Length)
        } else {
            None
        };
        self.ended = finish.is_some();
        SampledToken { token, logprob, alternatives, text: self.stops.text(), finish }
    }
}
