//! A request for completions or for a reply in a chat: OpenAI's fields, and ours.

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, SeqAccess};

use super::chat::{ChatTemplate, Message};
use crate::errors::{ApiError, ApiResult};
use crate::json::{Accepted, Field, Strings, Unsupported, elements};
use crate::limits::Limits;
use folio::generate::{PastContext, Sampling};

/// A request as it comes. Fields that are not here are ignored: clients send many.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Raw {
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
    // Completions' alone.
    prompt: Field<Prompts>,
    echo: Field<bool>,
    best_of: Field<u64>,
    suffix: Field<String>,
    // A chat's alone.
    messages: Field<Messages>,
    max_completion_tokens: Field<u64>,
    top_logprobs: Field<u64>,
    tools: Field<Unsupported>,
    functions: Field<Unsupported>,
    response_format: Field<ResponseFormat>,
    // Ours.
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

/// How many alternatives of each token, or whether any.
#[derive(Clone, Copy, Debug)]
enum LogprobsField {
    Alternatives(u64),
    Flag(bool),
}

/// A text, tokens, or several of either.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Prompts {
    Texts(Vec<String>),
    Tokens(Vec<Vec<u32>>),
}

/// The messages of a chat.
#[derive(Debug)]
struct Messages(Vec<Message>);

/// A whole number, negative ones too.
#[derive(Debug, Clone, Copy)]
struct Seed(u64);

/// What is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Completion,
    Chat,
}

/// A request that can be met, but for what only the model and its tokenizer can tell.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) kind: Kind,
    pub(crate) model: String,
    pub(crate) prompts: Prompts,
    pub(crate) max_tokens: usize,
    pub(crate) sampling: Sampling,
    /// Texts for each prompt.
    pub(crate) samples: usize,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) logprobs: Option<usize>,
    pub(crate) echo: bool,
    pub(crate) stop: Vec<String>,
    pub(crate) seed: u64,
    pub(crate) past_context: PastContext,
    /// Whether special tokens in texts count as such.
    pub(crate) special_tokens: bool,
}

/// Stop strings of a request, as OpenAI has it.
const STOPS: usize = 4;
/// Bytes of a stop string.
const STOP_BYTES: usize = 256;
/// Alternatives of a token.
const LOGPROBS: u64 = 20;
/// Tokens of a text if the request does not say: OpenAI's number for completions, and for a chat one that a model which
/// never ends a reply does not make long.
const DEFAULT_TOKENS: u64 = 16;
const DEFAULT_CHAT_TOKENS: u64 = 256;

impl Raw {
    /// The completions that are asked for. Checks all that can be checked without the model.
    pub(crate) fn completion(mut self, limits: &Limits) -> ApiResult<Wanted> {
        if self.suffix.0.take().is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::field("suffix", "is not supported: these models only continue a text"));
        }
        let prompts = self.prompt.0.take().unwrap_or_else(|| Prompts::Texts(vec![String::new()]));
        let samples = self.n.0.unwrap_or(1);
        if self.best_of.0.is_some_and(|best_of| best_of != samples) {
            return Err(ApiError::field("best_of", "must be equal to n, or left out"));
        }
        let logprobs = match self.logprobs.0 {
            None | Some(LogprobsField::Flag(false)) => None,
            Some(LogprobsField::Alternatives(alternatives)) => Some(alternatives),
            Some(LogprobsField::Flag(true)) => {
                return Err(ApiError::field(
                    "logprobs",
                    format!("must be a whole number from 0 to {LOGPROBS}, not true"),
                ));
            }
        };
        check_alternatives("logprobs", logprobs)?;
        let max_tokens = ("max_tokens", self.max_tokens.0.unwrap_or(DEFAULT_TOKENS));
        let echo = self.echo.0.unwrap_or(false);
        let wanted = self.check(limits, Kind::Completion, prompts, max_tokens, logprobs)?;
        Ok(Wanted { echo, ..wanted })
    }

    /// The reply that is asked for. Checks all that can be checked without the model.
    pub(crate) fn chat(mut self, limits: &Limits, template: Option<&ChatTemplate>) -> ApiResult<Wanted> {
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
            return Err(ApiError::field("messages", "must be a list of one message or more"));
        };
        let (prompt, end) = match template {
            Some(template) => (template.render(&messages), template.end()),
            None => (last.content.clone(), String::new()),
        };
        let alternatives = self.top_logprobs.0;
        check_alternatives("top_logprobs", alternatives)?;
        let logprobs = match self.logprobs.0 {
            Some(LogprobsField::Flag(true)) => Some(alternatives.unwrap_or(0)),
            None | Some(LogprobsField::Flag(false)) if alternatives.is_none_or(|most| most == 0) => None,
            None | Some(LogprobsField::Flag(false)) => {
                return Err(ApiError::field("top_logprobs", "needs \"logprobs\": true"));
            }
            Some(LogprobsField::Alternatives(number)) => {
                return Err(ApiError::field(
                    "logprobs",
                    format!("must be true or false, not {number}; the number is top_logprobs"),
                ));
            }
        };
        let max_tokens = match (self.max_completion_tokens.0, self.max_tokens.0) {
            (Some(tokens), _) => ("max_completion_tokens", tokens),
            (None, tokens) => ("max_tokens", tokens.unwrap_or(DEFAULT_CHAT_TOKENS)),
        };
        let prompts = Prompts::Texts(vec![prompt]);
        let mut wanted = self.check(limits, Kind::Chat, prompts, max_tokens, logprobs)?;
        // Where the template ends a message, a reply ends as well.
        wanted.stop.extend(Some(end).filter(|end| !end.is_empty()));
        Ok(wanted)
    }

    /// What both have in common.
    fn check(
        self,
        limits: &Limits,
        kind: Kind,
        prompts: Prompts,
        (tokens_field, max_tokens): (&'static str, u64),
        logprobs: Option<u64>,
    ) -> ApiResult<Wanted> {
        let missing = || ApiError::field("model", "is missing: GET /v1/models lists the models");
        let model = self.model.0.ok_or_else(missing)?;
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
        let samples = self.n.0.unwrap_or(1);
        let texts = samples.saturating_mul(prompts.len() as u64);
        if samples == 0 || texts > limits.choices as u64 {
            let message = format!("must be at least 1, and n times the prompts at most {}", limits.choices);
            return Err(ApiError::field("n", message));
        }
        if max_tokens > limits.tokens as u64 {
            return Err(ApiError::field(tokens_field, format!("must be at most {}", limits.tokens)));
        }
        let most = limits.request_tokens as u64;
        if max_tokens.saturating_mul(texts) > most {
            let message = format!(
                "{texts} texts of {max_tokens} tokens are more than the {most} that a request may ask for"
            );
            return Err(ApiError::field(tokens_field, message));
        }
        let sampling = Sampling {
            repetition_penalty: self.repetition_penalty.0.unwrap_or(1.0),
            temperature: self.temperature.0.unwrap_or(1.0),
            top_k: self
                .top_k
                .0
                .filter(|&top_k| top_k != 0)
                .map(|top_k| usize::try_from(top_k).unwrap_or(usize::MAX)),
            top_p: self.top_p.0,
            min_p: self.min_p.0,
        };
        // The smallest set of tokens is the most likely one alone.
        let sampling = if sampling.top_p == Some(0.0) {
            Sampling { top_k: Some(1), top_p: None, ..sampling }
        } else {
            sampling
        };
        sampling.validate().map_err(|error| ApiError::refused(&error))?;
        let past_context = self.past_context.0.as_deref().unwrap_or("rolling").parse();
        let past_context =
            past_context.map_err(|_| ApiError::field("past_context", "must be rolling, exact or stop"))?;
        Ok(Wanted {
            kind,
            model,
            prompts,
            max_tokens: max_tokens as usize,
            sampling,
            samples: samples as usize,
            stream: self.stream.0.unwrap_or(false),
            include_usage: self.stream_options.0.and_then(|options| options.include_usage.0).unwrap_or(false),
            logprobs: logprobs.map(|logprobs| logprobs as usize),
            echo: false,
            stop: stop_strings(self.stop.0)?,
            seed: self.seed.0.map_or_else(any_seed, |Seed(seed)| seed),
            past_context,
            special_tokens: self.special_tokens.0.unwrap_or(false),
        })
    }
}

fn check_alternatives(field: &'static str, alternatives: Option<u64>) -> ApiResult<()> {
    match alternatives {
        Some(alternatives) if alternatives > LOGPROBS => {
            Err(ApiError::field(field, format!("must be from 0 to {LOGPROBS}")))
        }
        _ => Ok(()),
    }
}

/// An empty string stops nothing, as OpenAI has it.
fn stop_strings(stop: Option<Strings>) -> ApiResult<Vec<String>> {
    let Strings(mut stop) = stop.unwrap_or(Strings(Vec::new()));
    stop.retain(|stop| !stop.is_empty());
    if stop.len() > STOPS || stop.iter().any(|stop| stop.len() > STOP_BYTES) {
        let message = format!("must be at most {STOPS} strings of at most {STOP_BYTES} bytes");
        return Err(ApiError::field("stop", message));
    }
    Ok(stop)
}

/// A seed that differs from call to call.
fn any_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}

/// The seed of one of the texts for a prompt: the first has the request's own, each other the one after, as samples of
/// `folio generate` have.
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

/// Tokens are read as what they are: a list of a million numbers takes four million bytes, not a tree of them.
impl Accepted for Prompts {
    const WHAT: &'static str = "a string, a list of tokens, or a list of strings or of lists of tokens";

    fn from_text(text: &str) -> Option<Self> {
        Some(Self::Texts(vec![text.to_owned()]))
    }

    fn from_list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Self, A::Error> {
        let (mut texts, mut lists, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(Field(item)) = list.next_element()? {
            match item {
                Some(Item::Text(text)) => texts.push(text),
                Some(Item::Tokens(list)) => lists.push(list),
                Some(Item::Token(token)) => tokens.push(token),
                None => return Err(A::Error::custom(format!("must be {}, not null", Item::WHAT))),
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

/// What a list of prompts may hold.
enum Item {
    Text(String),
    Token(u32),
    Tokens(Vec<u32>),
}

impl Accepted for Item {
    const WHAT: &'static str = "a string, a token (a whole number below 2^32) or a list of tokens";

    fn from_text(text: &str) -> Option<Self> {
        Some(Self::Text(text.to_owned()))
    }

    fn from_whole(value: i128) -> Option<Self> {
        value.try_into().ok().map(Self::Token)
    }

    fn from_list<'de, A: SeqAccess<'de>>(list: A) -> Result<Self, A::Error> {
        elements(list).map(Self::Tokens)
    }
}

impl Accepted for Seed {
    const WHAT: &'static str = "a whole number";

    fn from_whole(value: i128) -> Option<Self> {
        // Negative ones are seeds as well.
        i64::try_from(value).map(|seed| seed as u64).or(u64::try_from(value)).ok().map(Self)
    }
}

impl Accepted for LogprobsField {
    const WHAT: &'static str = "a whole number, 0 or more; in a chat true or false";

    fn from_whole(value: i128) -> Option<Self> {
        value.try_into().ok().map(Self::Alternatives)
    }

    fn from_bool(value: bool) -> Option<Self> {
        Some(Self::Flag(value))
    }
}

impl Accepted for StreamOptions {
    const WHAT: &'static str = "an object";

    fn from_object<'de, A: MapAccess<'de>>(object: A) -> Result<Self, A::Error> {
        Self::deserialize(MapAccessDeserializer::new(object))
    }
}

impl Accepted for ResponseFormat {
    const WHAT: &'static str = "an object";

    fn from_object<'de, A: MapAccess<'de>>(object: A) -> Result<Self, A::Error> {
        Self::deserialize(MapAccessDeserializer::new(object))
    }
}

impl Accepted for Messages {
    const WHAT: &'static str = "a list of messages";

    fn from_list<'de, A: SeqAccess<'de>>(list: A) -> Result<Self, A::Error> {
        elements(list).map(Self)
    }
}
