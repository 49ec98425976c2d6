//! A request for completions: OpenAI's fields, and ours.

use std::fmt;

use serde::de::{self, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, de::DeserializeOwned};

use crate::errors::{ApiError, ApiResult};
use crate::limits::Limits;
use folio::generate::{PastContext, Sampling};

/// A request as it comes. Fields that are not here are passed over: clients send many.
#[derive(Debug, Deserialize)]
pub(crate) struct Raw {
    model: Option<String>,
    prompt: Option<Prompts>,
    max_tokens: Option<u64>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    n: Option<u64>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    logprobs: Option<u64>,
    echo: Option<bool>,
    stop: Option<Stop>,
    seed: Option<Seed>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    best_of: Option<u64>,
    suffix: Option<String>,
    logit_bias: Option<std::collections::BTreeMap<String, IgnoredAny>>,
    // Ours.
    top_k: Option<u64>,
    min_p: Option<f64>,
    repetition_penalty: Option<f64>,
    past_context: Option<String>,
    special_tokens: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

/// A text, tokens, or several of either.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Prompts {
    Texts(Vec<String>),
    Tokens(Vec<Vec<u32>>),
}

/// A string or several.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a string or a list of strings")]
enum Stop {
    One(String),
    Several(Vec<String>),
}

/// A whole number, negative ones too.
#[derive(Debug, Clone, Copy)]
struct Seed(u64);

/// A request that can be met, but for what only the model and its tokenizer can tell.
#[derive(Debug)]
pub(crate) struct Wanted {
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

/// Reads JSON into a type. The error names the field.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> ApiResult<T> {
    // A struct would be read from a list, too.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(ApiError::malformed("the body must be a JSON object"));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        if inner.is_data() && path != "." {
            let field: String = path.chars().take_while(|c| !matches!(c, '[' | '.')).collect();
            return ApiError::field(&field, inner.to_string());
        }
        ApiError::malformed(format!("the body is not the JSON that is wanted: {inner}"))
    })?;
    json.end().map_err(|error| ApiError::malformed(format!("the body goes on after its JSON: {error}")))?;
    Ok(value)
}

impl Raw {
    /// Checks all that can be checked without the model.
    pub(crate) fn check(self, limits: &Limits) -> ApiResult<Wanted> {
        let model =
            self.model.ok_or_else(|| ApiError::field("model", "say which; GET /v1/models lists them"))?;
        for (name, value) in
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)]
        {
            if value.is_some_and(|value| value != 0.0) {
                return Err(ApiError::field(name, "only 0 is known here; take repetition_penalty"));
            }
        }
        if self.suffix.is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::field("suffix", "these models write forwards alone"));
        }
        if self.logit_bias.is_some_and(|bias| !bias.is_empty()) {
            return Err(ApiError::field("logit_bias", "is not known here"));
        }
        let prompts = self.prompt.unwrap_or_else(|| Prompts::Texts(vec![String::new()]));
        let samples = self.n.unwrap_or(1);
        let texts = samples.saturating_mul(prompts.len() as u64);
        if samples == 0 || texts > limits.choices as u64 {
            let most = limits.choices;
            return Err(ApiError::field("n", format!("from 1 on, and at most {most} with all prompts")));
        }
        if self.best_of.is_some_and(|best_of| best_of != samples) {
            return Err(ApiError::field("best_of", "only the value of n is known here"));
        }
        let max_tokens = self.max_tokens.unwrap_or(16);
        if max_tokens > limits.tokens as u64 {
            return Err(ApiError::field("max_tokens", format!("at most {} are written", limits.tokens)));
        }
        let most = limits.request_tokens as u64;
        if max_tokens.saturating_mul(texts) > most {
            let message =
                format!("{texts} texts of {max_tokens} tokens are more than the {most} of a request");
            return Err(ApiError::field("max_tokens", message));
        }
        if self.logprobs.is_some_and(|logprobs| logprobs > LOGPROBS) {
            return Err(ApiError::field("logprobs", format!("from 0 to {LOGPROBS}")));
        }
        let top_k = self.top_k.filter(|&top_k| top_k != 0);
        let sampling = Sampling {
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            temperature: self.temperature.unwrap_or(1.0),
            top_k: top_k.map(|top_k| usize::try_from(top_k).unwrap_or(usize::MAX)),
            top_p: self.top_p,
            min_p: self.min_p,
        };
        sampling.validate().map_err(|error| ApiError::refused(&error))?;
        let past_context = self.past_context.as_deref().unwrap_or("rolling").parse();
        let past_context =
            past_context.map_err(|_| ApiError::field("past_context", "rolling, exact or stop"))?;
        Ok(Wanted {
            model,
            prompts,
            max_tokens: max_tokens as usize,
            sampling,
            samples: samples as usize,
            stream: self.stream.unwrap_or(false),
            include_usage: self.stream_options.and_then(|options| options.include_usage).unwrap_or(false),
            logprobs: self.logprobs.map(|logprobs| logprobs as usize),
            echo: self.echo.unwrap_or(false),
            stop: stop_strings(self.stop)?,
            seed: self.seed.map_or_else(any_seed, |Seed(seed)| seed),
            past_context,
            special_tokens: self.special_tokens.unwrap_or(false),
        })
    }
}

fn stop_strings(stop: Option<Stop>) -> ApiResult<Vec<String>> {
    let stop = match stop {
        None => Vec::new(),
        Some(Stop::One(one)) => vec![one],
        Some(Stop::Several(several)) => several,
    };
    if stop.len() > STOPS || stop.iter().any(|stop| stop.is_empty() || stop.len() > STOP_BYTES) {
        let message = format!("at most {STOPS} strings of 1 to {STOP_BYTES} bytes");
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

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PromptsVisitor)
    }
}

/// Reads tokens as what they are: a list of a million numbers takes four million bytes, not a tree of them.
struct PromptsVisitor;

impl<'de> Visitor<'de> for PromptsVisitor {
    type Value = Prompts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a list of tokens, or a list of either")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Prompts, E> {
        Ok(Prompts::Texts(vec![text.to_owned()]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Prompts, A::Error> {
        let (mut texts, mut lists, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(item) = seq.next_element::<Item>()? {
            match item {
                Item::Text(text) => texts.push(text),
                Item::Tokens(list) => lists.push(list),
                Item::Token(token) => tokens.push(token),
            }
        }
        match (texts.is_empty(), lists.is_empty(), tokens.is_empty()) {
            (true, true, true) => Err(de::Error::custom("an empty list asks for nothing")),
            (false, true, true) => Ok(Prompts::Texts(texts)),
            (true, false, true) => Ok(Prompts::Tokens(lists)),
            (true, true, false) => Ok(Prompts::Tokens(vec![tokens])),
            _ => Err(de::Error::custom("the list mixes strings, tokens and lists of tokens")),
        }
    }
}

/// What a list of prompts may hold.
enum Item {
    Text(String),
    Token(u32),
    Tokens(Vec<u32>),
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ItemVisitor;
        impl<'de> Visitor<'de> for ItemVisitor {
            type Value = Item;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a token or a list of tokens")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Item, E> {
                Ok(Item::Text(text.to_owned()))
            }

            fn visit_u64<E: de::Error>(self, token: u64) -> Result<Item, E> {
                let token = u32::try_from(token);
                token.map(Item::Token).map_err(|_| de::Error::custom("a token is a number below 2^32"))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Item, A::Error> {
                let mut tokens = Vec::new();
                while let Some(token) = seq.next_element::<u32>()? {
                    tokens.push(token);
                }
                Ok(Item::Tokens(tokens))
            }
        }
        deserializer.deserialize_any(ItemVisitor)
    }
}

impl<'de> Deserialize<'de> for Seed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SeedVisitor;
        impl Visitor<'_> for SeedVisitor {
            type Value = Seed;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }

            fn visit_u64<E: de::Error>(self, seed: u64) -> Result<Seed, E> {
                Ok(Seed(seed))
            }

            fn visit_i64<E: de::Error>(self, seed: i64) -> Result<Seed, E> {
                Ok(Seed(seed as u64))
            }
        }
        deserializer.deserialize_any(SeedVisitor)
    }
}
