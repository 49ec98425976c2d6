//! Builds one choice of a response from its tokens.

use std::collections::VecDeque;

use folio::text::TextStream;
use folio::tokenizer::Tokenizer;
use serde::Serialize;

use super::logprobs::{CompletionLogprobs, Logprobs, ScoredToken};
use crate::queue::TokenEvent;
use folio::generate::Finish;

/// A part of a choice: what is new of it or, in a response that is not streamed, all of it.
#[derive(Debug, Default)]
pub(crate) struct ChoiceChunk {
    pub(crate) text: String,
    pub(crate) index: usize,
    pub(crate) logprobs: Option<Logprobs>,
    pub(crate) finish_reason: Option<&'static str>,
}

impl ChoiceChunk {
    /// Appends the next chunk.
    pub(crate) fn append(&mut self, next: ChoiceChunk) {
        self.text += &next.text;
        self.finish_reason = next.finish_reason;
        if let (Some(all), Some(new)) = (&mut self.logprobs, next.logprobs) {
            all.0.extend(new.0);
        }
    }

    /// Whether there is nothing to send.
    pub(crate) fn is_empty(&self) -> bool {
        let has_tokens = self.logprobs.as_ref().is_some_and(|Logprobs(scored)| !scored.is_empty());
        self.text.is_empty() && self.finish_reason.is_none() && !has_tokens
    }
}

/// Turns the tokens of one sequence into chunks of a choice.
///
/// A token is sent once its first character is final: a stop string is not part of the text, and neither are its tokens.
pub(crate) struct ChoiceBuilder {
    index: usize,
    /// Whether the client requested log probabilities.
    logprobs: bool,
    offsets: TokenOffsets,
    /// Characters sent, without the echo.
    sent: usize,
    /// Tokens that were not sent yet.
    waiting: VecDeque<ScoredToken>,
    /// Characters of the echo.
    echoed: usize,
}

/// The log probability of a prompt token, and the most likely alternatives.
#[derive(Debug)]
pub(crate) struct PromptScore {
    pub(crate) logprob: f32,
    pub(crate) alternatives: Vec<(u32, f32)>,
}

impl ChoiceBuilder {
    pub(crate) fn new(index: usize, logprobs: bool) -> Self {
        let (offsets, waiting) = (TokenOffsets::default(), VecDeque::new());
        Self { index, logprobs, offsets, sent: 0, waiting, echoed: 0 }
    }

    /// The prompt as the first chunk. Its first token has no log probability, because nothing precedes it.
    pub(crate) fn echo(
        &mut self,
        text: &str,
        tokens: &[u32],
        scores: &[PromptScore],
        tokenizer: &Tokenizer,
    ) -> ChoiceChunk {
        let mut chunk = ChoiceChunk { text: text.to_owned(), index: self.index, ..ChoiceChunk::default() };
        self.echoed = text.chars().count();
        if self.logprobs {
            let mut offsets = TokenOffsets::default();
            let scored = tokens.iter().enumerate().map(|(index, &token)| {
                let score = index.checked_sub(1).and_then(|index| scores.get(index));
                ScoredToken {
                    start: offsets.next(token, tokenizer),
                    token,
                    logprob: score.map(|score| score.logprob),
                    alternatives: score.map_or_else(Vec::new, |score| score.alternatives.clone()),
                }
            });
            chunk.logprobs = Some(Logprobs(scored.collect()));
        }
        chunk
    }

    /// Adds a token. The chunk may be empty.
    pub(crate) fn push(&mut self, event: TokenEvent, tokenizer: &Tokenizer) -> ChoiceChunk {
        let TokenEvent { token, logprob, alternatives, text, finish, .. } = event;
        let mut chunk = ChoiceChunk { index: self.index, ..ChoiceChunk::default() };
        self.sent += text.chars().count();
        chunk.text = text;
        chunk.finish_reason = finish.map(|finish| match finish {
            Finish::Length => "length",
            Finish::Stop => "stop",
        });
        if !self.logprobs {
            return chunk;
        }
        let start = self.offsets.next(token, tokenizer);
        self.waiting.push_back(ScoredToken { start, token, logprob, alternatives });
        let is_final = |token: &ScoredToken| token.start < self.sent || finish == Some(Finish::Length);
        let mut scored = Vec::new();
        while let Some(next) = self.waiting.pop_front_if(|token| is_final(token)) {
            scored.push(ScoredToken { start: self.echoed + next.start, ..next });
        }
        chunk.logprobs = Some(Logprobs(scored));
        chunk
    }
}

/// Finds the offset of each token in the text, in characters.
#[derive(Default)]
struct TokenOffsets {
    stream: TextStream,
    /// Characters so far that are complete, or that cannot become complete.
    characters: usize,
}

impl TokenOffsets {
    /// The offset of the next token.
    fn next(&mut self, token: u32, tokenizer: &Tokenizer) -> usize {
        let before = self.characters;
        let bytes = tokenizer.decode_bytes(&[token]);
        self.characters += self.stream.push(&bytes).chars().count();
        if bytes.first().is_some_and(|byte| byte & 0xC0 == 0x80) {
            // The token continues a character that an earlier token began.
            return before;
        }
        // A character that was begun but not continued counts as one character.
        self.characters - TextStream::default().push(&bytes).chars().count()
    }
}

/// A choice of a completion as JSON.
#[derive(Serialize)]
pub(crate) struct CompletionChoice<'a> {
    text: &'a str,
    index: usize,
    logprobs: Option<CompletionLogprobs<'a>>,
    finish_reason: Option<&'static str>,
}

impl<'a> CompletionChoice<'a> {
    pub(crate) fn new(chunk: &'a ChoiceChunk, tokenizer: &'a Tokenizer) -> Self {
        let ChoiceChunk { text, index, logprobs, finish_reason } = chunk;
        let logprobs = logprobs.as_ref().map(|logprobs| CompletionLogprobs::new(logprobs, tokenizer));
        Self { text, index: *index, logprobs, finish_reason: *finish_reason }
    }
}
