//! The limits on memory and time.

use std::time::Duration;

/// The limits on memory and time. Everything that a client can make the server hold is bounded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sequences generated at the same time. Each has a KV cache.
    pub streams: usize,
    /// Requests in the queue; more are rejected with 429.
    pub queue: usize,
    /// `max_tokens` of one choice.
    pub tokens: usize,
    /// `max_tokens` of all choices of one request together.
    pub request_tokens: usize,
    /// Unread tokens of one request, beside the system's socket buffers. Beyond it its sequences pause and give up their
    /// slots.
    pub unread_tokens: usize,
    /// Tokens of all prompts of one request together.
    pub prompt_tokens: usize,
    /// Tokens of one request to `/tokenize` or `/detokenize`.
    pub tokenized_tokens: usize,
    /// Choices of one request: its prompts times `n`.
    pub choices: usize,
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Open connections; more wait to be accepted.
    pub connections: usize,
    /// Models kept in memory.
    pub models: usize,
    /// Bytes of weights kept in memory. The model in use may take more.
    pub model_bytes: u64,
    /// Bytes of KV caches. Beyond it no sequence starts in the slot of a paused one.
    pub text_bytes: u64,
    /// From the arrival of a request to its last token, including its time in the queue.
    pub request_time: Duration,
    /// Until the head of a request has arrived, and between requests.
    pub head_time: Duration,
    /// Until the body of a request has arrived.
    pub body_time: Duration,
    /// How long the unread rest of a body is drained.
    pub drain_time: Duration,
    /// How long a sequence stays paused, and how long a connection waits for a client that reads nothing.
    pub stall_time: Duration,
    /// The age at which a connection stops accepting requests.
    pub connection_time: Duration,
    /// How long running sequences may continue after shutdown begins.
    pub grace_time: Duration,
    /// The maximum age of the list of runs.
    pub refresh_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let free = folio::machine::available_memory().unwrap_or(4 << 30);
        Self {
            streams: 16,
            queue: 64,
            tokens: 4096,
            request_tokens: 4 * 4096,
            unread_tokens: 64,
            prompt_tokens: 1 << 15,
            tokenized_tokens: 1 << 18,
            choices: 32,
            body_bytes: 1 << 20,
            connections: 512,
            models: 4,
            model_bytes: free / 2,
            text_bytes: free / 8,
            request_time: Duration::from_secs(120),
            head_time: Duration::from_secs(20),
            body_time: Duration::from_secs(20),
            drain_time: Duration::from_secs(1),
            stall_time: Duration::from_secs(10),
            connection_time: Duration::from_secs(600),
            grace_time: Duration::from_secs(3),
            refresh_time: Duration::from_secs(1),
        }
    }
}
