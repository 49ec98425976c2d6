//! One text while it is written.

use super::stops::Stops;
use super::{Drawn, Finish, PastContext, Request, Sampler, TextId};
use crate::model::{Cache, CachedSequence, ModelConfig};
use crate::rng::{Rng, Stream};
use crate::text::TextStream;
use crate::tokenizer::Tokenizer;

/// A text under way.
pub(super) struct Writing {
    id: TextId,
    request: Request,
    block_size: usize,
    /// The prompt, or token 0, and what was drawn.
    tokens: Vec<u32>,
    /// Where in `tokens` the context begins: the cache holds those from here on.
    start: usize,
    cache: Cache,
    /// Tokens of the context that passes have taken. The cache's own length changes during one.
    read: usize,
    /// Tokens that the next pass takes.
    planned: usize,
    /// Tokens drawn.
    drawn: usize,
    ended: bool,
    /// Whether a token is in the text, for each of the vocabulary; empty if it makes no difference.
    seen: Vec<bool>,
    rng: Rng,
    /// What the tokens spell.
    bytes: Vec<u8>,
    stream: TextStream,
    stops: Stops,
}

impl CachedSequence for Writing {
    fn cache(&self) -> &Cache {
        &self.cache
    }

    fn next_tokens(&self) -> &[u32] {
        &self.tokens[self.start + self.read..][..self.planned]
    }
}

impl Writing {
    pub(super) fn new(id: TextId, request: Request, cache: Cache, config: &ModelConfig) -> Self {
        /// Tokens for which memory is taken at once, however many are asked for.
        const ROOM: usize = 1 << 16;
        let first: &[u32] = if request.prompt.is_empty() { &[0] } else { &request.prompt };
        let mut tokens = Vec::with_capacity(first.len() + request.max_new_tokens.min(ROOM));
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
            cache,
            read: 0,
            planned: 0,
            drawn: 0,
            ended: false,
            seen,
            rng: Rng::new(request.seed, Stream::Sampling),
            bytes: Vec::new(),
            stream: TextStream::default(),
            stops: Stops::new(request.stop.clone()),
            request,
        }
    }

    pub(super) fn id(&self) -> TextId {
        self.id
    }

    pub(super) fn into_cache(self) -> Cache {
        self.cache
    }

    /// Whether the last token was drawn.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Decides which tokens the next pass takes, `most` at most. Returns how many.
    pub(super) fn plan(&mut self, most: usize) -> usize {
        let length = self.tokens.len();
        if length - self.start > self.block_size {
            let kept = match self.request.past_context {
                // What was not read yet is all taken that can be.
                PastContext::Rolling if self.drawn > 0 => (self.block_size / 2).max(1),
                PastContext::Exact | PastContext::Rolling | PastContext::Stop => self.block_size,
            };
            self.start = length - kept;
            self.cache.clear();
            self.read = 0;
        }
        self.planned = (length - self.start - self.read).min(most);
        self.planned
    }

    /// Takes note that the pass was made. Returns whether all tokens have been read, so that the next can be drawn.
    pub(super) fn has_read(&mut self) -> bool {
        self.read += std::mem::take(&mut self.planned);
        self.start + self.read == self.tokens.len()
    }

    /// Draws the next token from its logits.
    pub(super) fn draw<'a>(
        &'a mut self,
        logits: &[f32],
        tokenizer: &Tokenizer,
        sampler: &mut Sampler,
        alternatives: &'a mut Vec<(u32, f32)>,
    ) -> Drawn<'a> {
        let given = self.request.given.get(self.drawn).copied();
        let token =
            given.unwrap_or_else(|| sampler.draw(&self.request.sampling, logits, &self.seen, &mut self.rng));
        let is_end = given.is_none() && tokenizer.end_token() == Some(token);
        alternatives.clear();
        let tell = |count| sampler.log_probabilities(logits, token, count, alternatives);
        let logprob = self.request.logprobs.map(tell);
        self.tokens.push(token);
        self.drawn += 1;
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
        } else if self.drawn == self.request.max_new_tokens || is_full {
            self.stops.end(std::mem::take(&mut self.stream).finish());
            Some(Finish::Length)
        } else {
            None
        };
        self.ended = finish.is_some();
        Drawn { token, logprob, alternatives, text: self.stops.text(), finish }
    }
}
