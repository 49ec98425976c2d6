//! `POST /v1/completions` and `/v1/chat/completions`: OpenAI's, streamed or whole.

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

use crate::Shared;
use crate::errors::{ApiError, ApiResult};
use crate::guard::json_body;
use crate::json::parse;
use crate::limits::Limits;
use crate::models::Model;
use crate::queue::{Failure, Job, Listener, Ticket, Told, Work};
use folio::generate::{self, PastContext};

mod chat;
mod choice;
mod request;

pub use chat::ChatTemplate;
pub(crate) use choice::spelling;
use choice::{Choice, CompletionChoice, Piece, Score};
use request::{Kind, Prompts, Raw, Wanted, seed_of_sample};

/// `POST /v1/completions`
pub(crate) async fn post(State(shared): State<Arc<Shared>>, request: Request) -> ApiResult<Response> {
    let begun = Instant::now();
    let raw = read(&shared, request).await?;
    let wanted = raw.completion(&shared.limits)?;
    answer(shared, wanted, begun).await
}

/// `POST /v1/chat/completions`
pub(crate) async fn post_chat(State(shared): State<Arc<Shared>>, request: Request) -> ApiResult<Response> {
    let begun = Instant::now();
    let raw = read(&shared, request).await?;
    let wanted = raw.chat(&shared.limits, shared.chat_template.as_ref())?;
    answer(shared, wanted, begun).await
}

async fn read(shared: &Shared, request: Request) -> ApiResult<Raw> {
    parse(&json_body(request, &shared.limits).await?)
}

async fn answer(shared: Arc<Shared>, wanted: Wanted, begun: Instant) -> ApiResult<Response> {
    let name = wanted.model.clone();
    let (model, (wanted, prompts)) = {
        let shared = Arc::clone(&shared);
        // Files are read and texts cut into tokens on threads that may take their time.
        crate::apart(move || {
            let model = shared.model(&name)?;
            let prompts = prompts_of(&wanted, &model, &shared.limits)?;
            Ok((model, (wanted, prompts)))
        })
        .await?
    };
    let deadline = begun + shared.limits.request_time;
    let mut scores = Vec::new();
    if let (true, Some(alternatives)) = (wanted.echo, wanted.logprobs) {
        scores = scores_of(&shared, &model, &prompts, alternatives, deadline).await?;
    }
    Answer::begin(shared, model, wanted, &prompts, &scores, begun)?.respond().await
}

/// A prompt as text and as tokens.
struct Prompt {
    text: String,
    tokens: Vec<u32>,
}

/// The prompts in both forms.
fn prompts_of(wanted: &Wanted, model: &Model, limits: &Limits) -> ApiResult<Vec<Prompt>> {
    let tokenizer = &model.tokenizer;
    let field = match wanted.kind {
        Kind::Completion => "prompt",
        Kind::Chat => "messages",
    };
    let prompts: Vec<Prompt> = match &wanted.prompts {
        Prompts::Texts(texts) => {
            let prompt = |text: &String| {
                let tokens = match wanted.special_tokens {
                    true => tokenizer.encode_special(text),
                    false => tokenizer.encode(text),
                };
                let tokens = tokens.map_err(|error| ApiError::field(field, error.to_string()))?;
                Ok(Prompt { text: text.clone(), tokens })
            };
            texts.iter().map(prompt).collect::<ApiResult<_>>()?
        }
        Prompts::Tokens(lists) => {
            let vocab_size = tokenizer.vocab_size();
            let prompt = |tokens: &Vec<u32>| {
                if let Some(unknown) = tokens.iter().find(|&&token| token as usize >= vocab_size) {
                    let message = format!("token {unknown} is outside the vocabulary of {vocab_size}");
                    return Err(ApiError::field("prompt", message));
                }
                Ok(Prompt { text: tokenizer.decode(tokens), tokens: tokens.clone() })
            };
            lists.iter().map(prompt).collect::<ApiResult<_>>()?
        }
    };
    let tokens: usize = prompts.iter().map(|prompt| prompt.tokens.len()).sum();
    let most = limits.prompt_tokens;
    if tokens > most {
        let message = format!("{tokens} tokens are more than the {most} that a request may have");
        return Err(ApiError::field(field, message));
    }
    // Each text of the answer repeats its prompt.
    let (echoed, most) = (tokens.saturating_mul(wanted.samples), limits.request_tokens);
    if wanted.echo && echoed > most {
        let message = format!(
            "{echoed} tokens of prompts, n times each, are more than the {most} that a request may ask for; use a \
             smaller n or shorter prompts"
        );
        return Err(ApiError::field("echo", message));
    }
    Ok(prompts)
}

/// How likely the tokens of each prompt were, but for its first.
async fn scores_of(
    shared: &Shared,
    model: &Arc<Model>,
    prompts: &[Prompt],
    alternatives: usize,
    deadline: Instant,
) -> ApiResult<Vec<Vec<Score>>> {
    let request = |(place, prompt): (usize, &Prompt)| {
        let (first, rest) = prompt.tokens.split_first()?;
        let request = generate::Request {
            prompt: vec![*first],
            given: rest.to_vec(),
            max_new_tokens: rest.len(),
            past_context: PastContext::Rolling,
            logprobs: Some(alternatives),
            ..generate::Request::default()
        };
        (!rest.is_empty()).then_some((place, request))
    };
    let texts: VecDeque<_> = prompts.iter().enumerate().filter_map(request).collect();
    let mut left = texts.len();
    let (ticket, mut listener) = Ticket::new(left, shared.limits.unread_tokens, deadline);
    let mut scores: Vec<Vec<Score>> = prompts.iter().map(|_| Vec::new()).collect();
    if left > 0 {
        shared.put(Work::Write(Job { model: Arc::clone(model), texts, ticket }))?;
    }
    while left > 0 {
        let told = listener.next().await.map_err(|failure| error_of(&failure, shared))?;
        let Told { choice, logprob, alternatives, finish, .. } = told;
        scores[choice].push(Score { logprob: logprob.unwrap_or_default(), alternatives });
        left -= usize::from(finish.is_some());
    }
    Ok(scores)
}

/// The answer to a request whose texts ended before their time.
fn error_of(failure: &Failure, shared: &Shared) -> ApiError {
    match failure {
        Failure::Closing => ApiError::closing(),
        Failure::TimeLimit => ApiError::time_limit(shared.limits.request_time.as_secs()),
        Failure::Stalled => ApiError::stalled(),
        Failure::Refused(error) => error.clone(),
        Failure::Broken => ApiError::internal("the model failed at this request"),
    }
}

/// An answer under way.
struct Answer {
    shared: Arc<Shared>,
    model: Arc<Model>,
    wanted: Wanted,
    head: Head,
    listener: Listener,
    choices: Vec<Choice>,
    /// Whether a piece of each text was sent.
    begun_choices: Vec<bool>,
    /// Texts that have not ended.
    left: usize,
    /// Pieces that are there before any token.
    ready: VecDeque<Piece>,
    usage: Usage,
    begun: Instant,
}

/// What is the same in all chunks of an answer.
struct Head {
    id: String,
    created: u64,
}

#[derive(Clone, Copy, Default, Serialize)]
struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
}

/// A whole answer, or a chunk of one.
#[derive(Serialize)]
struct Completion<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a [C],
    /// Left out, null, or there.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

impl Answer {
    /// Puts the request in the queue.
    fn begin(
        shared: Arc<Shared>,
        model: Arc<Model>,
        wanted: Wanted,
        prompts: &[Prompt],
        scores: &[Vec<Score>],
        begun: Instant,
    ) -> ApiResult<Self> {
        let Wanted { samples, echo, logprobs, max_tokens, .. } = wanted;
        let count = prompts.len() * samples;
        let Limits { unread_tokens, request_time, .. } = shared.limits;
        let (ticket, listener) = Ticket::new(count, unread_tokens, begun + request_time);
        let mut choices: Vec<Choice> =
            (0..count).map(|index| Choice::new(index, logprobs.is_some())).collect();
        let mut ready = VecDeque::new();
        if echo {
            for (choice, place) in choices.iter_mut().zip(0..) {
                let Prompt { text, tokens } = &prompts[place / samples];
                let scores = scores.get(place / samples).map_or(&[][..], Vec::as_slice);
                ready.push_back(choice.echo(text, tokens, scores, &model.tokenizer));
            }
        }
        let prompt_tokens: usize = prompts.iter().map(|prompt| prompt.tokens.len()).sum();
        let mut left = count;
        if max_tokens == 0 {
            left = 0;
            let end = |index| Piece { index, finish_reason: Some("length"), ..Piece::default() };
            ready.extend((0..count).map(end));
        } else {
            let texts = prompts.iter().flat_map(|prompt| (0..samples).map(move |sample| (prompt, sample)));
            let request = |(prompt, sample): (&Prompt, usize)| generate::Request {
                prompt: prompt.tokens.clone(),
                max_new_tokens: max_tokens,
                sampling: wanted.sampling,
                seed: seed_of_sample(wanted.seed, sample),
                stop: wanted.stop.clone(),
                past_context: wanted.past_context,
                logprobs,
                given: Vec::new(),
            };
            let texts = texts.map(request).enumerate().collect();
            let job = Job { model: Arc::clone(&model), texts, ticket };
            shared.put(Work::Write(job))?;
            shared.metrics.prompt.inc_by(prompt_tokens as u64);
        }
        let usage = Usage { prompt_tokens, completion_tokens: 0, total_tokens: prompt_tokens };
        let head = Head { id: new_id(wanted.kind), created: seconds_since_1970(SystemTime::now()) };
        let begun_choices = vec![false; count];
        Ok(Self { shared, model, wanted, head, listener, choices, begun_choices, left, ready, usage, begun })
    }

    /// The answer, once its first piece is there: until then an error is an answer of its own.
    async fn respond(mut self) -> ApiResult<Response> {
        if self.wanted.stream {
            if let Some(first) = self.next().await? {
                self.ready.push_front(first);
            }
            return Ok(self.into_stream());
        }
        let empty = |index| Piece { index, ..Piece::default() };
        let mut pieces: Vec<Piece> = (0..self.choices.len()).map(empty).collect();
        while let Some(piece) = self.next().await? {
            let whole = &mut pieces[piece.index];
            if whole.logprobs.is_none() && self.wanted.logprobs.is_some() {
                whole.logprobs = Some(choice::Logprobs::default());
            }
            whole.append(piece);
        }
        let json = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(([json], self.whole(&pieces)).into_response())
    }

    /// The next piece that has something to tell; none after the last.
    async fn next(&mut self) -> ApiResult<Option<Piece>> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Ok(Some(piece));
            }
            if self.left == 0 {
                return Ok(None);
            }
            let told = self.listener.next().await.map_err(|failure| error_of(&failure, &self.shared))?;
            let piece = self.take(told);
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
    }

    fn take(&mut self, told: Told) -> Piece {
        if self.usage.completion_tokens == 0 {
            self.shared.metrics.first_token.observe(self.begun.elapsed().as_secs_f64());
        }
        self.usage.completion_tokens += 1;
        self.usage.total_tokens += 1;
        self.left -= usize::from(told.finish.is_some());
        self.choices[told.choice].push(told, &self.model.tokenizer)
    }

    /// The whole answer.
    fn whole(&self, pieces: &[Piece]) -> String {
        let usage = Some(Some(self.usage));
        let tokenizer = &*self.model.tokenizer;
        match self.wanted.kind {
            Kind::Completion => {
                let choices = pieces.iter().map(|piece| CompletionChoice::new(piece, tokenizer));
                self.json("text_completion", &choices.collect::<Vec<_>>(), usage)
            }
            Kind::Chat => {
                let replies = pieces.iter().map(|piece| chat::Reply::new(piece, tokenizer));
                self.json("chat.completion", &replies.collect::<Vec<_>>(), usage)
            }
        }
    }

    /// A chunk of a stream, without a piece where only the usage is left to tell.
    fn chunk(&mut self, piece: Option<&Piece>, usage: Option<Option<Usage>>) -> String {
        match self.wanted.kind {
            Kind::Completion => {
                let choice = piece.map(|piece| CompletionChoice::new(piece, &self.model.tokenizer));
                self.json("text_completion", choice.as_slice(), usage)
            }
            Kind::Chat => {
                let delta = piece.map(|piece| {
                    let begun = std::mem::replace(&mut self.begun_choices[piece.index], true);
                    chat::Delta::new(piece, !begun, &self.model.tokenizer)
                });
                self.json("chat.completion.chunk", delta.as_slice(), usage)
            }
        }
    }

    fn json<C: Serialize>(
        &self,
        object: &'static str,
        choices: &[C],
        usage: Option<Option<Usage>>,
    ) -> String {
        let Head { id, created } = &self.head;
        let model = &self.wanted.model;
        let body = Completion { id, object, created: *created, model, choices, usage };
        serde_json::to_string(&body).expect("texts and finite numbers are JSON")
    }

    /// Events as they come. Dropping the stream, as happens when its client goes away, drops the work.
    fn into_stream(self) -> Response {
        let events = stream::unfold(Some(self), |answer| async {
            let mut answer = answer?;
            let with_usage = answer.wanted.include_usage;
            match answer.next().await {
                Ok(Some(piece)) => {
                    let event = event(&answer.chunk(Some(&piece), with_usage.then_some(None)));
                    Some((event, Some(answer)))
                }
                Ok(None) => {
                    let usage = answer.chunk(None, Some(Some(answer.usage)));
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

/// An event of a stream. JSON has no line breaks of its own.
fn event(data: &str) -> String {
    format!("data: {data}\n\n")
}

/// A name that no other answer of this server has.
fn new_id(kind: Kind) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    let kind = match kind {
        Kind::Completion => "cmpl",
        Kind::Chat => "chatcmpl",
    };
    format!("{kind}-{begun:x}-{number:x}")
}

/// Seconds since 1970, of which clocks before it know nothing.
pub(crate) fn seconds_since_1970(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
