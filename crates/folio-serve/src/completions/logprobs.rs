//! Log probabilities of tokens, in the formats of completions and chats.

use folio::tokenizer::Tokenizer;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use serde_json::{Map, Number, Value, json};

/// The log probabilities of a piece of text. They become JSON only while the response is written: JSON values of all
/// tokens at once would take a hundred times the memory.
#[derive(Debug, Default)]
pub(crate) struct Logprobs(pub(crate) Vec<ScoredToken>);

/// A token with its offset and its log probability.
#[derive(Debug)]
pub(crate) struct ScoredToken {
    /// The number of characters before it.
    pub(crate) start: usize,
    pub(crate) token: u32,
    pub(crate) logprob: Option<f32>,
    pub(crate) alternatives: Vec<(u32, f32)>,
}

/// The format of completions: parallel lists with one entry per token. `token_ids` is our addition.
pub(crate) struct CompletionLogprobs<'a> {
    scored: &'a [ScoredToken],
    tokenizer: &'a Tokenizer,
}

impl<'a> CompletionLogprobs<'a> {
    pub(crate) fn new(logprobs: &'a Logprobs, tokenizer: &'a Tokenizer) -> Self {
        Self { scored: &logprobs.0, tokenizer }
    }
}

impl Serialize for CompletionLogprobs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (scored, tokenizer) = (self.scored.iter(), self.tokenizer);
        let top = |scored: &ScoredToken| {
            let logprob = scored.logprob?;
            let all = scored.alternatives.iter();
            let all = all.map(|&(token, logprob)| (token_text(token, tokenizer), number(logprob)));
            let mut all: Map<String, Value> = all.collect();
            // The sampled token is always included, however unlikely it was.
            all.entry(token_text(scored.token, tokenizer)).or_insert_with(|| number(logprob));
            Some(all)
        };
        let mut lists = serializer.serialize_struct("Logprobs", 5)?;
        let texts = scored.clone().map(|scored| token_text(scored.token, tokenizer));
        lists.serialize_field("tokens", &List(texts))?;
        let logprobs = scored.clone().map(|scored| scored.logprob.map(f64::from));
        lists.serialize_field("token_logprobs", &List(logprobs))?;
        lists.serialize_field("top_logprobs", &List(scored.clone().map(top)))?;
        lists.serialize_field("text_offset", &List(scored.clone().map(|scored| scored.start)))?;
        lists.serialize_field("token_ids", &List(scored.map(|scored| scored.token)))?;
        lists.end()
    }
}

/// The format of chats: a list of objects.
pub(crate) struct ChatLogprobs<'a> {
    scored: &'a [ScoredToken],
    tokenizer: &'a Tokenizer,
}

impl<'a> ChatLogprobs<'a> {
    pub(crate) fn new(logprobs: &'a Logprobs, tokenizer: &'a Tokenizer) -> Self {
        Self { scored: &logprobs.0, tokenizer }
    }
}

impl Serialize for ChatLogprobs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let entry = |token, logprob| {
            let bytes = self.tokenizer.decode_bytes(&[token]);
            json!({ "token": token_text(token, self.tokenizer), "logprob": number(logprob), "bytes": bytes })
        };
        let object = |scored: &ScoredToken| {
            let mut object = entry(scored.token, scored.logprob.unwrap_or_default());
            object["top_logprobs"] =
                scored.alternatives.iter().map(|&(token, logprob)| entry(token, logprob)).collect();
            object
        };
        let mut fields = serializer.serialize_struct("Logprobs", 2)?;
        fields.serialize_field("content", &List(self.scored.iter().map(object)))?;
        fields.serialize_field("refusal", &())?;
        fields.end()
    }
}

/// A list whose items are created while they are written.
struct List<I>(I);

impl<I: Iterator<Item: Serialize> + Clone> Serialize for List<I> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.clone())
    }
}

fn number(logprob: f32) -> Value {
    Number::from_f64(f64::from(logprob)).map_or(Value::Null, Value::Number)
}

/// A token as text. Like OpenAI, shows the bytes of a token that is not a sequence of whole characters.
pub(crate) fn token_text(token: u32, tokenizer: &Tokenizer) -> String {
    String::from_utf8(tokenizer.decode_bytes(&[token])).unwrap_or_else(|error| {
        let bytes = error.as_bytes().iter().map(|byte| format!("\\x{byte:02x}"));
        format!("bytes:{}", bytes.collect::<String>())
    })
}
