//! One text of an answer, as its tokens come.

use std::collections::VecDeque;

use folio::text::TextStream;
use folio::tokenizer::Tokenizer;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use serde_json::{Map, Number, Value, json};

use crate::queue::Told;
use folio::generate::Finish;

/// A piece of a text: all of it, or what is new of it.
#[derive(Debug, Default)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) index: usize,
    pub(crate) logprobs: Option<Logprobs>,
    pub(crate) finish_reason: Option<&'static str>,
}

/// How likely each token of a piece was. This is rendered as completions or chats have it when the answer is written:
/// JSON values of all tokens at once would take a hundred times the memory.
#[derive(Debug, Default)]
pub(crate) struct Logprobs(Vec<Scored>);

/// A token with its place and its score.
#[derive(Debug)]
struct Scored {
    /// Characters before it.
    start: usize,
    token: u32,
    logprob: Option<f32>,
    alternatives: Vec<(u32, f32)>,
}

impl Piece {
    /// Adds what comes after.
    pub(crate) fn append(&mut self, next: Piece) {
        self.text += &next.text;
        self.finish_reason = next.finish_reason;
        if let (Some(all), Some(new)) = (&mut self.logprobs, next.logprobs) {
            all.0.extend(new.0);
        }
    }

    /// Whether there is nothing in it to tell.
    pub(crate) fn is_empty(&self) -> bool {
        let tokens = self.logprobs.as_ref().is_some_and(|Logprobs(scored)| !scored.is_empty());
        self.text.is_empty() && self.finish_reason.is_none() && !tokens
    }
}

/// Turns the tokens of one text into pieces of an answer.
///
/// A token is told when the first character of it has become certain: what turns out to be a stop string is not part of
/// the text, and neither are its tokens.
pub(crate) struct Choice {
    index: usize,
    /// Whether tokens are told.
    logprobs: bool,
    places: Places,
    /// Characters that were told, without the echo.
    told: usize,
    /// Tokens that were not told yet.
    waiting: VecDeque<Scored>,
    /// Characters of the echo.
    echoed: usize,
}

/// How likely a token was, and which others were.
#[derive(Debug)]
pub(crate) struct Score {
    pub(crate) logprob: f32,
    pub(crate) alternatives: Vec<(u32, f32)>,
}

impl Choice {
    pub(crate) fn new(index: usize, logprobs: bool) -> Self {
        let (places, waiting) = (Places::default(), VecDeque::new());
        Self { index, logprobs, places, told: 0, waiting, echoed: 0 }
    }

    /// The prompt as the first piece of the text. Its first token has no probability: nothing comes before it.
    pub(crate) fn echo(
        &mut self,
        text: &str,
        tokens: &[u32],
        scores: &[Score],
        tokenizer: &Tokenizer,
    ) -> Piece {
        let mut piece = Piece { text: text.to_owned(), index: self.index, ..Piece::default() };
        self.echoed = text.chars().count();
        if self.logprobs {
            let mut places = Places::default();
            let scored = tokens.iter().enumerate().map(|(place, &token)| {
                let score = place.checked_sub(1).and_then(|place| scores.get(place));
                Scored {
                    start: places.next(token, tokenizer),
                    token,
                    logprob: score.map(|score| score.logprob),
                    alternatives: score.map_or_else(Vec::new, |score| score.alternatives.clone()),
                }
            });
            piece.logprobs = Some(Logprobs(scored.collect()));
        }
        piece
    }

    /// A token as it came from the engine. The piece may be empty.
    pub(crate) fn push(&mut self, token: Told, tokenizer: &Tokenizer) -> Piece {
        let Told { token, logprob, alternatives, text, finish, .. } = token;
        let mut piece = Piece { index: self.index, ..Piece::default() };
        self.told += text.chars().count();
        piece.text = text;
        piece.finish_reason = finish.map(|finish| match finish {
            Finish::Length => "length",
            Finish::Stop => "stop",
        });
        if !self.logprobs {
            return piece;
        }
        let start = self.places.next(token, tokenizer);
        self.waiting.push_back(Scored { start, token, logprob, alternatives });
        let is_told = |waiting: &Scored| waiting.start < self.told || finish == Some(Finish::Length);
        let mut scored = Vec::new();
        while let Some(next) = self.waiting.pop_front_if(|waiting| is_told(waiting)) {
            scored.push(Scored { start: self.echoed + next.start, ..next });
        }
        piece.logprobs = Some(Logprobs(scored));
        piece
    }
}

/// Finds where tokens begin in the text that they are, in characters.
#[derive(Default)]
struct Places {
    stream: TextStream,
    /// Characters so far that are whole, or that cannot become so.
    characters: usize,
}

impl Places {
    /// Where the next token begins.
    fn next(&mut self, token: u32, tokenizer: &Tokenizer) -> usize {
        let before = self.characters;
        let bytes = tokenizer.decode_bytes(&[token]);
        self.characters += self.stream.push(&bytes).chars().count();
        if bytes.first().is_some_and(|byte| byte & 0xC0 == 0x80) {
            // It goes on with a character that has begun.
            return before;
        }
        // A character that had begun and is not gone on with is one of its own.
        self.characters - TextStream::default().push(&bytes).chars().count()
    }
}

/// A piece as completions have it.
#[derive(Serialize)]
pub(crate) struct CompletionChoice<'a> {
    text: &'a str,
    index: usize,
    logprobs: Option<CompletionLogprobs<'a>>,
    finish_reason: Option<&'static str>,
}

impl<'a> CompletionChoice<'a> {
    pub(crate) fn new(piece: &'a Piece, tokenizer: &'a Tokenizer) -> Self {
        let Piece { text, index, logprobs, finish_reason } = piece;
        let logprobs = logprobs.as_ref().map(|Logprobs(scored)| CompletionLogprobs { scored, tokenizer });
        Self { text, index: *index, logprobs, finish_reason: *finish_reason }
    }
}

/// OpenAI's lists, one entry per token, and the tokens' ids.
struct CompletionLogprobs<'a> {
    scored: &'a [Scored],
    tokenizer: &'a Tokenizer,
}

impl Serialize for CompletionLogprobs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (scored, tokenizer) = (self.scored.iter(), self.tokenizer);
        let top = |scored: &Scored| {
            let logprob = scored.logprob?;
            let all = scored.alternatives.iter();
            let all = all.map(|&(token, logprob)| (spelling(token, tokenizer), number(logprob)));
            let mut all: Map<String, Value> = all.collect();
            // The token itself is told of, however unlikely it was.
            all.entry(spelling(scored.token, tokenizer)).or_insert_with(|| number(logprob));
            Some(all)
        };
        let mut lists = serializer.serialize_struct("Logprobs", 5)?;
        let names = scored.clone().map(|scored| spelling(scored.token, tokenizer));
        lists.serialize_field("tokens", &List(names))?;
        let logprobs = scored.clone().map(|scored| scored.logprob.map(f64::from));
        lists.serialize_field("token_logprobs", &List(logprobs))?;
        lists.serialize_field("top_logprobs", &List(scored.clone().map(top)))?;
        lists.serialize_field("text_offset", &List(scored.clone().map(|scored| scored.start)))?;
        lists.serialize_field("token_ids", &List(scored.map(|scored| scored.token)))?;
        lists.end()
    }
}

/// The same as chats have it.
pub(crate) struct ChatLogprobs<'a> {
    scored: &'a [Scored],
    tokenizer: &'a Tokenizer,
}

impl<'a> ChatLogprobs<'a> {
    /// Those of a piece, if it has any.
    pub(crate) fn of(piece: &'a Piece, tokenizer: &'a Tokenizer) -> Option<Self> {
        piece.logprobs.as_ref().map(|Logprobs(scored)| Self { scored, tokenizer })
    }
}

impl Serialize for ChatLogprobs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let entry = |token, logprob| {
            let bytes = self.tokenizer.decode_bytes(&[token]);
            json!({ "token": spelling(token, self.tokenizer), "logprob": number(logprob), "bytes": bytes })
        };
        let of_token = |scored: &Scored| {
            let mut told = entry(scored.token, scored.logprob.unwrap_or_default());
            told["top_logprobs"] =
                scored.alternatives.iter().map(|&(token, logprob)| entry(token, logprob)).collect();
            told
        };
        let mut object = serializer.serialize_struct("Logprobs", 2)?;
        object.serialize_field("content", &List(self.scored.iter().map(of_token)))?;
        object.serialize_field("refusal", &())?;
        object.end()
    }
}

/// A list whose items are made as they are written.
struct List<I>(I);

impl<I: Iterator<Item: Serialize> + Clone> Serialize for List<I> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.clone())
    }
}

fn number(logprob: f32) -> Value {
    Number::from_f64(f64::from(logprob)).map_or(Value::Null, Value::Number)
}

/// A token as text. One that is no whole characters is told by its bytes, as OpenAI has it.
pub(crate) fn spelling(token: u32, tokenizer: &Tokenizer) -> String {
    String::from_utf8(tokenizer.decode_bytes(&[token])).unwrap_or_else(|error| {
        let bytes = error.as_bytes().iter().map(|byte| format!("\\x{byte:02x}"));
        format!("bytes:{}", bytes.collect::<String>())
    })
}
