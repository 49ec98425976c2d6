//! The bodies of completion and chat requests: OpenAI's fields and our additions.

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, SeqAccess};

use crate::chat_template::{ChatTemplate, Message};
use crate::errors::{ApiError, ApiResult};
use crate::json::{Field, FromJson, Strings, Unsupported, elements};
use crate::limits::Limits;
use folio::generate::{PastContext, Sampling};

/// The body of a request, before validation. Unknown fields are ignored, because clients send many.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RequestBody {
    model: Field<String>,
    max_tokens: Field<u64>,
    temperature: Field<f64>,
    top_p: Field<f64>,
    n: Field<u64>,
    stream: Field<bool>,
    stream_options: Field<StreamOptions>,
    logprobs: Field<LogprobsField>,
    stop: Field<Strings>,
    seed: Field<Seed>,
    presence_penalty: Field<f64>,
    frequency_penalty: Field<f64>,
    logit_bias: Field<Unsupported>,
    // Only in completions.
    prompt: Field<Prompts>,
    echo: Field<bool>,
    best_of: Field<u64>,
    suffix: Field<String>,
    // Only in chats.
    messages: Field<Messages>,
    max_completion_tokens: Field<u64>,
    top_logprobs: Field<u64>,
    tools: Field<Unsupported>,
    functions: Field<Unsupported>,
    response_format: Field<ResponseFormat>,
    // Our additions.
    top_k: Field<u64>,
    min_p: Field<f64>,
    repetition_penalty: Field<f64>,
    past_context: Field<String>,
    special_tokens: Field<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StreamOptions {
    include_usage: Field<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ResponseFormat {
    r#type: Field<String>,
}

/// The field `logprobs`: a number in completions, a flag in chats.
#[derive(Clone, Copy, Debug)]
enum LogprobsField {
    Alternatives(u64),
    Flag(bool),
}

/// One or more prompts, as texts or as tokens.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Prompts {
    Texts(Vec<String>),
    Tokens(Vec<Vec<u32>>),
}

/// The messages of a chat.
#[derive(Debug)]
struct Messages(Vec<Message>);

/// Any integer; negative ones wrap.
#[derive(Debug, Clone, Copy)]
struct Seed(u64);

/// The route of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Completion,
    Chat,
}

/// The limit on the length of each choice, and the field that sets it.
#[derive(Clone, Copy)]
struct MaxTokens {
    field: &'static str,
    value: u64,
}

/// A validated request. Only what depends on the model and its tokenizer is not checked yet.
#[derive(Debug)]
pub(crate) struct CompletionParams {
    pub(crate) endpoint: Endpoint,
    pub(crate) model: String,
    pub(crate) prompts: Prompts,
    pub(crate) max_tokens: usize,
    pub(crate) sampling: Sampling,
    /// Choices per prompt.
    pub(crate) n: usize,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) logprobs: Option<usize>,
    pub(crate) echo: bool,
    pub(crate) stop: Vec<String>,
    pub(crate) seed: u64,
    pub(crate) past_context: PastContext,
    /// Whether special tokens that are written in prompts are encoded as special tokens.
    pub(crate) special_tokens: bool,
}

/// Maximum number of stop strings, as in OpenAI's API.
const MAX_STOPS: usize = 4;
/// Maximum bytes of a stop string.
const MAX_STOP_BYTES: usize = 256;
/// Maximum number of alternatives per token.
const MAX_LOGPROBS: u64 = 20;
/// Default of `max_tokens` for completions, as in OpenAI's API.
const DEFAULT_TOKENS: u64 = 16;
/// Default of `max_tokens` for chats. A base model never ends a reply, so the default must be small.
const DEFAULT_CHAT_TOKENS: u64 = 256;

impl RequestBody {
    /// Validates a completion request, without the model.
    pub(crate) fn into_completion(mut self, limits: &Limits) -> ApiResult<CompletionParams> {
        if self.suffix.0.take().is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::field("suffix", "is not supported: these models only continue a text"));
        }
        let prompts = self.prompt.0.take().unwrap_or_else(|| Prompts::Texts(vec![String::new()]));
        if self.best_of.0.is_some_and(|best_of| best_of != self.n.0.unwrap_or(1)) {
            return Err(ApiError::field("best_of", "must be equal to n, or left out"));
        }
        let logprobs = match self.logprobs.0 {
            None | Some(LogprobsField::Flag(false)) => None,
            Some(LogprobsField::Alternatives(alternatives)) => Some(alternatives),
            Some(LogprobsField::Flag(true)) => {
                return Err(ApiError::field(
                    "logprobs",
                    format!("must be a whole number from 0 to {MAX_LOGPROBS}, not true"),
                ));
            }
        };
        check_alternatives("logprobs", logprobs)?;
        let value = self.max_tokens.0.unwrap_or(DEFAULT_TOKENS);
        let max_tokens = MaxTokens { field: "max_tokens", value };
        let echo = self.echo.0.unwrap_or(false);
        let params = self.validate(limits, Endpoint::Completion, prompts, max_tokens, logprobs)?;
        Ok(CompletionParams { echo, ..params })
    }

    /// Validates a chat request, without the model.
    pub(crate) fn into_chat(
        mut self,
        limits: &Limits,
        template: Option<&ChatTemplate>,
    ) -> ApiResult<CompletionParams> {
        for (name, field) in [("tools", self.tools.0), ("functions", self.functions.0)] {
            if field.is_some_and(|field| !field.is_empty) {
                return Err(ApiError::field(name, "is not supported: these models only write text"));
            }
        }
        let format = self.response_format.0.take().and_then(|format| format.r#type.0);
        if format.is_some_and(|format| format != "text") {
            return Err(ApiError::field("response_format", "only the type text is supported"));
        }
        let Messages(messages) = self.messages.0.take().unwrap_or(Messages(Vec::new()));
        let Some(last) = messages.last() else {
            return Err(ApiError::field("messages", "must be a list of one or more messages"));
        };
        let (prompt, stop) = match template {
            Some(template) => (template.render(&messages), template.stop_string()),
            None => (last.content.clone(), String::new()),
        };
        let logprobs = self.chat_logprobs()?;
        let max_tokens = match (self.max_completion_tokens.0, self.max_tokens.0) {
            (Some(value), _) => MaxTokens { field: "max_completion_tokens", value },
            (None, value) => MaxTokens { field: "max_tokens", value: value.unwrap_or(DEFAULT_CHAT_TOKENS) },
        };
        let prompts = Prompts::Texts(vec![prompt]);
        let mut params = self.validate(limits, Endpoint::Chat, prompts, max_tokens, logprobs)?;
        params.stop.extend(Some(stop).filter(|stop| !stop.is_empty()));
        Ok(params)
    }

    /// The number of alternatives per token that a chat request asks for; none without log probabilities.
    fn chat_logprobs(&self) -> ApiResult<Option<u64>> {
        let alternatives = self.top_logprobs.0;
        check_alternatives("top_logprobs", alternatives)?;
        match self.logprobs.0 {
            Some(LogprobsField::Flag(true)) => Ok(Some(alternatives.unwrap_or(0))),
            None | Some(LogprobsField::Flag(false)) if alternatives.is_none_or(|number| number == 0) => {
                Ok(None)
            }
            None | Some(LogprobsField::Flag(false)) => {
                Err(ApiError::field("top_logprobs", "needs \"logprobs\": true"))
            }
            Some(LogprobsField::Alternatives(number)) => Err(ApiError::field(
                "logprobs",
                format!("must be true or false, not {number}; give the number as top_logprobs"),
            )),
        }
    }

    /// Validates the fields that completions and chats have in common.
    fn validate(
        self,
        limits: &Limits,
        endpoint: Endpoint,
        prompts: Prompts,
        max_tokens: MaxTokens,
        logprobs: Option<u64>,
    ) -> ApiResult<CompletionParams> {
        let missing = || ApiError::field("model", "is missing: GET /v1/models lists the models");
        let model = self.model.0.clone().ok_or_else(missing)?;
        self.check_unsupported()?;
        let n = self.n.0.unwrap_or(1);
        check_size(limits, n.saturating_mul(prompts.len() as u64), max_tokens)?;
        let sampling = self.sampling()?;
        let past_context = self.past_context.0.as_deref().unwrap_or("rolling").parse();
        let past_context =
            past_context.map_err(|_| ApiError::field("past_context", "must be rolling, exact or stop"))?;
        Ok(CompletionParams {
            endpoint,
            model,
            prompts,
            max_tokens: max_tokens.value as usize,
            sampling,
            n: n as usize,
            stream: self.stream.0.unwrap_or(false),
            include_usage: self.stream_options.0.and_then(|options| options.include_usage.0).unwrap_or(false),
            logprobs: logprobs.map(|logprobs| logprobs as usize),
            echo: false,
            stop: stop_strings(self.stop.0)?,
            seed: self.seed.0.map_or_else(random_seed, |Seed(seed)| seed),
            past_context,
            special_tokens: self.special_tokens.0.unwrap_or(false),
        })
    }

    /// Rejects OpenAI's fields that are not supported, unless they have no effect.
    fn check_unsupported(&self) -> ApiResult<()> {
        for (name, value) in
            [("presence_penalty", self.presence_penalty.0), ("frequency_penalty", self.frequency_penalty.0)]
        {
            if value.is_some_and(|value| value != 0.0) {
                return Err(ApiError::field(name, "must be 0 or left out; repetition_penalty is supported"));
            }
        }
        if self.logit_bias.0.is_some_and(|bias| !bias.is_empty) {
            return Err(ApiError::field("logit_bias", "is not supported"));
        }
        Ok(())
    }

    fn sampling(&self) -> ApiResult<Sampling> {
        let top_k = self.top_k.0.filter(|&top_k| top_k != 0);
        let mut sampling = Sampling {
            repetition_penalty: self.repetition_penalty.0.unwrap_or(1.0),
            temperature: self.temperature.0.unwrap_or(1.0),
            top_k: top_k.map(|top_k| usize::try_from(top_k).unwrap_or(usize::MAX)),
            top_p: self.top_p.0,
            min_p: self.min_p.0,
        };
        // As in OpenAI's API, 0 keeps only the most likely token.
        if sampling.top_p == Some(0.0) {
            sampling = Sampling { top_k: Some(1), top_p: None, ..sampling };
        }
        sampling.validate().map_err(|error| ApiError::rejected(&error))?;
        Ok(sampling)
    }
}

/// Checks the number of choices and their total length.
fn check_size(limits: &Limits, choices: u64, max_tokens: MaxTokens) -> ApiResult<()> {
    if choices == 0 || choices > limits.choices as u64 {
        let message = format!("must be at least 1, and n times the prompts at most {}", limits.choices);
        return Err(ApiError::field("n", message));
    }
    let MaxTokens { field, value } = max_tokens;
    if value > limits.tokens as u64 {
        return Err(ApiError::field(field, format!("must be at most {}", limits.tokens)));
    }
    let max = limits.request_tokens as u64;
    if value.saturating_mul(choices) > max {
        let message =
            format!("{choices} choices of {value} tokens exceed the limit of {max} tokens per request");
        return Err(ApiError::field(field, message));
    }
    Ok(())
}

fn check_alternatives(field: &'static str, alternatives: Option<u64>) -> ApiResult<()> {
    match alternatives {
        Some(alternatives) if alternatives > MAX_LOGPROBS => {
            Err(ApiError::field(field, format!("must be from 0 to {MAX_LOGPROBS}")))
        }
        _ => Ok(()),
    }
}

/// Empty strings are ignored, as in OpenAI's API.
fn stop_strings(stop: Option<Strings>) -> ApiResult<Vec<String>> {
    let Strings(mut stop) = stop.unwrap_or(Strings(Vec::new()));
    stop.retain(|stop| !stop.is_empty());
    if stop.len() > MAX_STOPS || stop.iter().any(|stop| stop.len() > MAX_STOP_BYTES) {
        let message = format!("must be at most {MAX_STOPS} strings of at most {MAX_STOP_BYTES} bytes");
        return Err(ApiError::field("stop", message));
    }
    Ok(stop)
}

/// A random seed.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}

/// The seed of the sample with this index: the request's seed plus the index, as in `folio generate`.
pub(crate) fn seed_of_sample(seed: u64, sample: usize) -> u64 {
    seed.wrapping_add(sample as u64)
}

impl Prompts {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Texts(texts) => texts.len(),
            Self::Tokens(tokens) => tokens.len(),
        }
    }
}

/// Parsed directly into integers: as a tree of JSON values a list of a million tokens would take far more memory.
impl FromJson for Prompts {
    const EXPECTED: &'static str = "a string, a list of tokens, or a list of strings or of lists of tokens";

    fn from_string(text: &str) -> Option<Self> {
        Some(Self::Texts(vec![text.to_owned()]))
    }

    fn from_list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Self, A::Error> {
        let (mut texts, mut lists, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(Field(item)) = list.next_element()? {
            match item {
                Some(PromptItem::Text(text)) => texts.push(text),
                Some(PromptItem::Tokens(list)) => lists.push(list),
                Some(PromptItem::Token(token)) => tokens.push(token),
                None => return Err(A::Error::custom(format!("must be {}, not null", PromptItem::EXPECTED))),
            }
        }
        match (texts.is_empty(), lists.is_empty(), tokens.is_empty()) {
            (true, true, true) => Err(A::Error::custom("must not be an empty list")),
            (false, true, true) => Ok(Self::Texts(texts)),
            (true, false, true) => Ok(Self::Tokens(lists)),
            (true, true, false) => Ok(Self::Tokens(vec![tokens])),
            _ => Err(A::Error::custom("must not mix strings, tokens and lists of tokens in one list")),
        }
    }
}

/// An element of a list of prompts.
enum PromptItem {
    Text(String),
    Token(u32),
    Tokens(Vec<u32>),
}

impl FromJson for PromptItem {
    const EXPECTED: &'static str = "a string, a token (a whole number below 2^32) or a list of tokens";

    fn from_string(text: &str) -> Option<Self> {
        Some(Self::Text(text.to_owned()))
    }

    fn from_integer(value: i128) -> Option<Self> {
        value.try_into().ok().map(Self::Token)
    }

    fn from_list<'de, A: SeqAccess<'de>>(list: A) -> Result<Self, A::Error> {
        elements(list).map(Self::Tokens)
    }
}

impl FromJson for Seed {
    const EXPECTED: &'static str = "a whole number";

    fn from_integer(value: i128) -> Option<Self> {
        i64::try_from(value).map(|seed| seed as u64).or(u64::try_from(value)).ok().map(Self)
    }
}

impl FromJson for LogprobsField {
    const EXPECTED: &'static str = "a whole number, 0 or more; in a chat true or false";

    fn from_integer(value: i128) -> Option<Self> {
        value.try_into().ok().map(Self::Alternatives)
    }

    fn from_bool(value: bool) -> Option<Self> {
        Some(Self::Flag(value))
    }
}

impl FromJson for StreamOptions {
    const EXPECTED: &'static str = "an object";

    fn from_object<'de, A: MapAccess<'de>>(object: A) -> Result<Self, A::Error> {
        Self::deserialize(MapAccessDeserializer::new(object))
    }
}

impl FromJson for ResponseFormat {
    const EXPECTED: &'static str = "an object";

    fn from_object<'de, A: MapAccess<'de>>(object: A) -> Result<Self, A::Error> {
        Self::deserialize(MapAccessDeserializer::new(object))
    }
}

impl FromJson for Messages {
    const EXPECTED: &'static str = "a list of messages";

    fn from_list<'de, A: SeqAccess<'de>>(list: A) -> Result<Self, A::Error> {
        elements(list).map(Self)
    }
}
