//! How much is served at once, and for how long.

use std::time::Duration;

/// How much is served at once, and for how long. All of it is bounded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Texts that are written at once. Each has a key-value cache.
    pub streams: usize,
    /// Requests that wait for their turn; more are refused with 429.
    pub queue: usize,
    /// Tokens that one text may be asked to have.
    pub tokens: usize,
    /// Tokens that all texts of one request may be asked to have together.
    pub request_tokens: usize,
    /// Tokens of a request that wait for a client to read them, beside what the system holds; then its texts pause, and their
    /// places are others'.
    pub unread_tokens: usize,
    /// Tokens that all prompts of one request have together.
    pub prompt_tokens: usize,
    /// Tokens of one request to `/tokenize` or `/detokenize`.
    pub tokenized_tokens: usize,
    /// Texts that one request may ask for.
    pub choices: usize,
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Connections at once; more wait to be accepted.
    pub connections: usize,
    /// Models that are kept in memory.
    pub models: usize,
    /// Bytes of weights that are kept in memory; the model in use may take more.
    pub model_bytes: u64,
    /// Bytes of key-value caches from which on no text is begun beyond `streams`, in the place of those that wait for
    /// their clients.
    pub text_bytes: u64,
    /// From the request to its last token, waiting included.
    pub request_time: Duration,
    /// Until the head of a request is there, and between requests.
    pub head_time: Duration,
    /// Until the body of a request is there.
    pub body_time: Duration,
    /// How long the rest of a body is read and discarded that the answer did not need.
    pub drain_time: Duration,
    /// How long a text waits for a client that does not read it, and a connection for one that takes no bytes.
    pub stall_time: Duration,
    /// The age from which a connection gets no further request.
    pub connection_time: Duration,
    /// How long texts that are being written may go on when the server is asked to end.
    pub grace_time: Duration,
    /// How old the list of runs may be.
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
