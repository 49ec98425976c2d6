//! `POST /v1/completions` and `POST /v1/chat/completions`, as in OpenAI's API, streamed or not.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;

use crate::errors::{ApiError, ApiResult};
use crate::guard::json_body;
use crate::json::parse;
use crate::limits::Limits;
use crate::models::LoadedModel;
use crate::queue::{EventReceiver, EventSender, Failure, GenerationJob, PendingSequence, Task, TokenEvent};
use crate::responses::{blocking, json_text};
use crate::state::Shared;
use folio::generate::{self, PastContext};

mod chat;
mod choice;
mod logprobs;
mod request;

use chat::{ChatChoice, ChatDelta};
use choice::{ChoiceBuilder, ChoiceChunk, CompletionChoice, PromptScore};
use logprobs::Logprobs;
pub(crate) use logprobs::token_text;
use request::{CompletionParams, Endpoint, Prompts, RequestBody, seed_of_sample};

/// `POST /v1/completions`
pub(crate) async fn post(State(shared): State<Arc<Shared>>, request: Request) -> ApiResult<Response> {
    let start = Instant::now();
    let params = read(&shared, request).await?.into_completion(&shared.limits)?;
    respond(shared, params, start).await
}

/// `POST /v1/chat/completions`
pub(crate) async fn post_chat(State(shared): State<Arc<Shared>>, request: Request) -> ApiResult<Response> {
    let start = Instant::now();
    let body = read(&shared, request).await?;
    let params = body.into_chat(&shared.limits, shared.chat_template.as_ref())?;
    respond(shared, params, start).await
}

async fn read(shared: &Shared, request: Request) -> ApiResult<RequestBody> {
    parse(&json_body(request, &shared.limits).await?)
}

async fn respond(shared: Arc<Shared>, params: CompletionParams, start: Instant) -> ApiResult<Response> {
    let prepared = {
        let shared = Arc::clone(&shared);
        blocking(move || {
            let model = shared.model(&params.model)?;
            let prompts = encode_prompts(&params, &model, &shared.limits)?;
            Ok(PreparedRequest { params, model, prompts, start })
        })
        .await?
    };
    let mut scores = Vec::new();
    if let (true, Some(alternatives)) = (prepared.params.echo, prepared.params.logprobs) {
        scores = prompt_scores(&shared, &prepared, alternatives).await?;
    }
    RunningCompletion::start(shared, prepared, &scores)?.respond().await
}

/// A request with its model and its encoded prompts.
struct PreparedRequest {
    params: CompletionParams,
    model: Arc<LoadedModel>,
    prompts: Vec<Prompt>,
    /// When the request arrived.
    start: Instant,
}

/// A prompt, as text and as tokens.
struct Prompt {
    text: String,
    tokens: Vec<u32>,
}

/// Encodes prompts given as text and decodes prompts given as tokens, and checks their number of tokens.
fn encode_prompts(params: &CompletionParams, model: &LoadedModel, limits: &Limits) -> ApiResult<Vec<Prompt>> {
    let tokenizer = &model.tokenizer;
    let field = match params.endpoint {
        Endpoint::Completion => "prompt",
        Endpoint::Chat => "messages",
    };
    let prompts: Vec<Prompt> = match &params.prompts {
        Prompts::Texts(texts) => {
            let encode = |text: &String| {
                let tokens = match params.special_tokens {
                    true => tokenizer.encode_special(text),
                    false => tokenizer.encode(text),
                };
                let tokens = tokens.map_err(|error| ApiError::field(field, error.to_string()))?;
                Ok(Prompt { text: text.clone(), tokens })
            };
            texts.iter().map(encode).collect::<ApiResult<_>>()?
        }
        Prompts::Tokens(lists) => {
            let vocab_size = tokenizer.vocab_size();
            let decode = |tokens: &Vec<u32>| {
                if let Some(unknown) = tokens.iter().find(|&&token| token as usize >= vocab_size) {
                    let message = format!("token {unknown} is outside the vocabulary of {vocab_size}");
                    return Err(ApiError::field("prompt", message));
                }
                Ok(Prompt { text: tokenizer.decode(tokens), tokens: tokens.clone() })
            };
            lists.iter().map(decode).collect::<ApiResult<_>>()?
        }
    };
    let tokens: usize = prompts.iter().map(|prompt| prompt.tokens.len()).sum();
    let max = limits.prompt_tokens;
    if tokens > max {
        let message = format!("{tokens} tokens exceed the limit of {max} prompt tokens per request");
        return Err(ApiError::field(field, message));
    }
    // Each choice repeats its prompt.
    let (echoed, max) = (tokens.saturating_mul(params.n), limits.request_tokens);
    if params.echo && echoed > max {
        let message = format!(
            "{echoed} tokens (prompts times n) exceed the limit of {max} tokens per request; use a smaller n or shorter \
             prompts"
        );
        return Err(ApiError::field("echo", message));
    }
    Ok(prompts)
}

/// The log probabilities of the tokens of each prompt, except its first.
async fn prompt_scores(
    shared: &Shared,
    prepared: &PreparedRequest,
    alternatives: usize,
) -> ApiResult<Vec<Vec<PromptScore>>> {
    let PreparedRequest { model, prompts, start, .. } = prepared;
    let sequence = |(choice, prompt): (usize, &Prompt)| {
        let (first, rest) = prompt.tokens.split_first()?;
        let request = generate::Request {
            prompt: vec![*first],
            given: rest.to_vec(),
            max_new_tokens: rest.len(),
            past_context: PastContext::Rolling,
            logprobs: Some(alternatives),
            ..generate::Request::default()
        };
        (!rest.is_empty()).then_some(PendingSequence { choice, request })
    };
    let pending: VecDeque<_> = prompts.iter().enumerate().filter_map(sequence).collect();
    let mut remaining = pending.len();
    let deadline = *start + shared.limits.request_time;
    let (events, mut receiver) = EventSender::new(remaining, shared.limits.unread_tokens, deadline);
    let mut scores: Vec<Vec<PromptScore>> = prompts.iter().map(|_| Vec::new()).collect();
    if remaining > 0 {
        shared.push(Task::Generate(GenerationJob { model: Arc::clone(model), pending, events }))?;
    }
    while remaining > 0 {
        let event = receiver.next().await.map_err(|failure| error_of(&failure, shared))?;
        let TokenEvent { choice, logprob, alternatives, finish, .. } = event;
        scores[choice].push(PromptScore { logprob: logprob.unwrap_or_default(), alternatives });
        remaining -= usize::from(finish.is_some());
    }
    Ok(scores)
}

/// The error response for a request whose sequences ended early.
fn error_of(failure: &Failure, shared: &Shared) -> ApiError {
    match failure {
        Failure::ShuttingDown => ApiError::shutting_down(),
        Failure::TimeLimit => ApiError::time_limit(shared.limits.request_time.as_secs()),
        Failure::Stalled => ApiError::stalled(),
        Failure::Rejected(error) => error.clone(),
        Failure::Panicked => ApiError::internal("the model failed on this request"),
    }
}

/// A completion that is being generated.
struct RunningCompletion {
    shared: Arc<Shared>,
    model: Arc<LoadedModel>,
    params: CompletionParams,
    head: ResponseHead,
    events: EventReceiver,
    choices: Vec<ChoiceBuilder>,
    /// Per choice, whether a chunk was sent.
    has_sent: Vec<bool>,
    /// Choices that have not finished.
    remaining: usize,
    /// Chunks that do not need a token: echoes, and the ends of empty choices.
    ready: VecDeque<ChoiceChunk>,
    usage: Usage,
    start: Instant,
}

/// The fields that all chunks of a response share.
struct ResponseHead {
    id: String,
    created: u64,
}

#[derive(Clone, Copy, Default, Serialize)]
struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
}

/// A response, or a chunk of one.
#[derive(Serialize)]
struct CompletionBody<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a [C],
    /// Left out, null, or a value.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

impl RunningCompletion {
    /// Queues the request.
    fn start(shared: Arc<Shared>, prepared: PreparedRequest, scores: &[Vec<PromptScore>]) -> ApiResult<Self> {
        let PreparedRequest { params, model, prompts, start } = prepared;
        let CompletionParams { n, echo, logprobs, max_tokens, .. } = params;
        let count = prompts.len() * n;
        let Limits { unread_tokens, request_time, .. } = shared.limits;
        let (sender, events) = EventSender::new(count, unread_tokens, start + request_time);
        let mut choices: Vec<ChoiceBuilder> =
            (0..count).map(|index| ChoiceBuilder::new(index, logprobs.is_some())).collect();
        let mut ready = VecDeque::new();
        if echo {
            for (choice, index) in choices.iter_mut().zip(0..) {
                let Prompt { text, tokens } = &prompts[index / n];
                let scores = scores.get(index / n).map_or(&[][..], Vec::as_slice);
                ready.push_back(choice.echo(text, tokens, scores, &model.tokenizer));
            }
        }
        let prompt_tokens: usize = prompts.iter().map(|prompt| prompt.tokens.len()).sum();
        let mut remaining = count;
        if max_tokens == 0 {
            remaining = 0;
            let end = |index| ChoiceChunk { index, finish_reason: Some("length"), ..ChoiceChunk::default() };
            ready.extend((0..count).map(end));
        } else {
            let pending = pending_sequences(&params, &prompts);
            let job = GenerationJob { model: Arc::clone(&model), pending, events: sender };
            shared.push(Task::Generate(job))?;
            shared.metrics.prompt_tokens.inc_by(prompt_tokens as u64);
        }
        let usage = Usage { prompt_tokens, completion_tokens: 0, total_tokens: prompt_tokens };
        let created = seconds_since_1970(SystemTime::now());
        let head = ResponseHead { id: new_id(params.endpoint), created };
        let has_sent = vec![false; count];
        Ok(Self { shared, model, params, head, events, choices, has_sent, remaining, ready, usage, start })
    }

    /// The response. A stream starts with its first chunk, so that an error before it has a status of its own.
    async fn respond(mut self) -> ApiResult<Response> {
        if self.params.stream {
            if let Some(first) = self.next().await? {
                self.ready.push_front(first);
            }
            return Ok(self.into_stream());
        }
        let empty = |index| ChoiceChunk { index, ..ChoiceChunk::default() };
        let mut choices: Vec<ChoiceChunk> = (0..self.choices.len()).map(empty).collect();
        while let Some(chunk) = self.next().await? {
            let choice = &mut choices[chunk.index];
            if choice.logprobs.is_none() && self.params.logprobs.is_some() {
                choice.logprobs = Some(Logprobs::default());
            }
            choice.append(chunk);
        }
        Ok(json_text(self.whole_body(&choices)))
    }

    /// The next chunk that is not empty; none after the last.
    async fn next(&mut self) -> ApiResult<Option<ChoiceChunk>> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Ok(Some(chunk));
            }
            if self.remaining == 0 {
                return Ok(None);
            }
            let event = self.events.next().await.map_err(|failure| error_of(&failure, &self.shared))?;
            let chunk = self.add(event);
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
        }
    }

    fn add(&mut self, event: TokenEvent) -> ChoiceChunk {
        if self.usage.completion_tokens == 0 {
            self.shared.metrics.first_token.observe(self.start.elapsed().as_secs_f64());
        }
        self.usage.completion_tokens += 1;
        self.usage.total_tokens += 1;
        self.remaining -= usize::from(event.finish.is_some());
        self.choices[event.choice].push(event, &self.model.tokenizer)
    }

    /// The body of a response that is not streamed.
    fn whole_body(&self, choices: &[ChoiceChunk]) -> String {
        let usage = Some(Some(self.usage));
        let tokenizer = &*self.model.tokenizer;
        match self.params.endpoint {
            Endpoint::Completion => {
                let choices = choices.iter().map(|choice| CompletionChoice::new(choice, tokenizer));
                self.body("text_completion", &choices.collect::<Vec<_>>(), usage)
            }
            Endpoint::Chat => {
                let choices = choices.iter().map(|choice| ChatChoice::new(choice, tokenizer));
                self.body("chat.completion", &choices.collect::<Vec<_>>(), usage)
            }
        }
    }

    /// The body of an event of a stream. The last event has only the usage and no chunk.
    fn event_body(&mut self, chunk: Option<&ChoiceChunk>, usage: Option<Option<Usage>>) -> String {
        match self.params.endpoint {
            Endpoint::Completion => {
                let choice = chunk.map(|chunk| CompletionChoice::new(chunk, &self.model.tokenizer));
                self.body("text_completion", choice.as_slice(), usage)
            }
            Endpoint::Chat => {
                let delta = chunk.map(|chunk| {
                    let has_sent = std::mem::replace(&mut self.has_sent[chunk.index], true);
                    ChatDelta::new(chunk, !has_sent, &self.model.tokenizer)
                });
                self.body("chat.completion.chunk", delta.as_slice(), usage)
            }
        }
    }

    fn body<C: Serialize>(
        &self,
        object: &'static str,
        choices: &[C],
        usage: Option<Option<Usage>>,
    ) -> String {
        let ResponseHead { id, created } = &self.head;
        let model = &self.params.model;
        let body = CompletionBody { id, object, created: *created, model, choices, usage };
        serde_json::to_string(&body).expect("strings and finite numbers are valid JSON")
    }

    /// A stream of events. When the client disconnects the stream is dropped, which cancels the sequences.
    fn into_stream(self) -> Response {
        let events = stream::unfold(Some(self), |completion| async {
            let mut completion = completion?;
            let with_usage = completion.params.include_usage;
            match completion.next().await {
                Ok(Some(chunk)) => {
                    let event = event(&completion.event_body(Some(&chunk), with_usage.then_some(None)));
                    Some((event, Some(completion)))
                }
                Ok(None) => {
                    let usage = completion.event_body(None, Some(Some(completion.usage)));
                    let usage = if with_usage { event(&usage) } else { String::new() };
                    Some((usage + &event("[DONE]"), None))
                }
                Err(error) => Some((event(&error.body().to_string()), None)),
            }
        });
        let events = futures_util::StreamExt::map(events, |event| {
            Ok::<_, std::convert::Infallible>(Bytes::from(event))
        });
        let kind = (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        ([kind], Body::from_stream(events)).into_response()
    }
}

/// One sequence per choice.
fn pending_sequences(params: &CompletionParams, prompts: &[Prompt]) -> VecDeque<PendingSequence> {
    let samples = prompts.iter().flat_map(|prompt| (0..params.n).map(move |sample| (prompt, sample)));
    let sequence = |(choice, (prompt, sample)): (usize, (&Prompt, usize))| PendingSequence {
        choice,
        request: generate::Request {
            prompt: prompt.tokens.clone(),
            max_new_tokens: params.max_tokens,
            sampling: params.sampling,
            seed: seed_of_sample(params.seed, sample),
            stop: params.stop.clone(),
            past_context: params.past_context,
            logprobs: params.logprobs,
            given: Vec::new(),
        },
    };
    samples.enumerate().map(sequence).collect()
}

/// An event of a stream. serde_json writes no line breaks.
fn event(data: &str) -> String {
    format!("data: {data}\n\n")
}

/// A unique id.
fn new_id(endpoint: Endpoint) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    let prefix = match endpoint {
        Endpoint::Completion => "cmpl",
        Endpoint::Chat => "chatcmpl",
    };
    format!("{prefix}-{time:x}-{number:x}")
}

/// Seconds since 1970; 0 if the clock is set to an earlier time.
pub(crate) fn seconds_since_1970(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
