//! The choices of chat completions as JSON.

use folio::tokenizer::Tokenizer;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::choice::ChoiceChunk;
use super::logprobs::ChatLogprobs;
use crate::chat_template::ASSISTANT;

/// A choice of a chat completion.
#[derive(Serialize)]
pub(crate) struct ChatChoice<'a> {
    index: usize,
    message: Value,
    logprobs: Option<ChatLogprobs<'a>>,
    finish_reason: Option<&'static str>,
}

impl<'a> ChatChoice<'a> {
    pub(crate) fn new(chunk: &'a ChoiceChunk, tokenizer: &'a Tokenizer) -> Self {
        Self {
            index: chunk.index,
            message: json!({ "role": ASSISTANT, "content": chunk.text, "refusal": null }),
            logprobs: chunk.logprobs.as_ref().map(|logprobs| ChatLogprobs::new(logprobs, tokenizer)),
            finish_reason: chunk.finish_reason,
        }
    }
}

/// A choice of a chunk of a chat completion.
#[derive(Serialize)]
pub(crate) struct ChatDelta<'a> {
    index: usize,
    delta: Map<String, Value>,
    logprobs: Option<ChatLogprobs<'a>>,
    finish_reason: Option<&'static str>,
}

impl<'a> ChatDelta<'a> {
    /// The first chunk of each choice has the role.
    pub(crate) fn new(chunk: &'a ChoiceChunk, is_first: bool, tokenizer: &'a Tokenizer) -> Self {
        let mut delta = Map::new();
        if is_first {
            delta.insert("role".to_owned(), ASSISTANT.into());
        }
        if is_first || !chunk.text.is_empty() {
            delta.insert("content".to_owned(), chunk.text.as_str().into());
        }
        Self {
            index: chunk.index,
            delta,
            logprobs: chunk.logprobs.as_ref().map(|logprobs| ChatLogprobs::new(logprobs, tokenizer)),
            finish_reason: chunk.finish_reason,
        }
    }
}
