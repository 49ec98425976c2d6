//! One text of an answer, as its tokens come.

use std::collections::VecDeque;

use folio::text::TextStream;
use folio::tokenizer::Tokenizer;
use serde::Serialize;
use serde_json::{Map, Number, Value, json};

use crate::queue::Told;
use folio::generate::Finish;

/// A piece of a text: all of it, or what is new of it.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) index: usize,
    pub(crate) logprobs: Option<Logprobs>,
    pub(crate) finish_reason: Option<&'static str>,
}

/// OpenAI's lists, one entry a token, and the tokens' ids.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f64>>,
    top_logprobs: Vec<Option<Map<String, Value>>>,
    text_offset: Vec<usize>,
    token_ids: Vec<u32>,
    /// Each token with its logarithm and its alternatives.
    #[serde(skip)]
    scores: Vec<(u32, Score)>,
}

impl Piece {
    /// Adds what comes after.
    pub(crate) fn append(&mut self, next: Piece) {
        self.text += &next.text;
        self.finish_reason = next.finish_reason;
        if let (Some(all), Some(new)) = (&mut self.logprobs, next.logprobs) {
            all.tokens.extend(new.tokens);
            all.token_logprobs.extend(new.token_logprobs);
            all.top_logprobs.extend(new.top_logprobs);
            all.text_offset.extend(new.text_offset);
            all.token_ids.extend(new.token_ids);
            all.scores.extend(new.scores);
        }
    }

    /// Whether there is nothing in it to tell.
    pub(crate) fn is_empty(&self) -> bool {
        let tokens = self.logprobs.as_ref().is_some_and(|logprobs| !logprobs.tokens.is_empty());
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
    waiting: VecDeque<Waiting>,
    /// Characters of the echo.
    echoed: usize,
}

/// How likely a token was, and which others were.
#[derive(Debug)]
pub(crate) struct Score {
    pub(crate) logprob: f32,
    pub(crate) alternatives: Vec<(u32, f32)>,
}

struct Waiting {
    /// Characters before it.
    start: usize,
    token: u32,
    logprob: Option<f32>,
    alternatives: Vec<(u32, f32)>,
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
            let mut logprobs = Logprobs::default();
            let mut places = Places::default();
            for (place, &token) in tokens.iter().enumerate() {
                let score = place.checked_sub(1).and_then(|place| scores.get(place));
                let alternatives = score.map_or(&[][..], |score| &score.alternatives);
                let start = places.next(token, tokenizer);
                logprobs.push(start, token, score.map(|score| score.logprob), alternatives, tokenizer);
            }
            piece.logprobs = Some(logprobs);
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
        self.waiting.push_back(Waiting { start, token, logprob, alternatives });
        let is_told = |waiting: &Waiting| waiting.start < self.told || finish == Some(Finish::Length);
        let mut logprobs = Logprobs::default();
        while let Some(next) = self.waiting.pop_front_if(|waiting| is_told(waiting)) {
            let Waiting { start, token, logprob, alternatives } = next;
            logprobs.push(self.echoed + start, token, logprob, &alternatives, tokenizer);
        }
        piece.logprobs = Some(logprobs);
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

impl Logprobs {
    /// The same as a chat has it.
    pub(crate) fn of_chat(&self, tokenizer: &Tokenizer) -> Value {
        let entry = |token, logprob| {
            let bytes = tokenizer.decode_bytes(&[token]);
            json!({ "token": spelling(token, tokenizer), "logprob": number(logprob), "bytes": bytes })
        };
        let of_token = |(token, Score { logprob, alternatives }): &(u32, Score)| {
            let mut told = entry(*token, *logprob);
            told["top_logprobs"] =
                alternatives.iter().map(|&(token, logprob)| entry(token, logprob)).collect();
            told
        };
        json!({ "content": self.scores.iter().map(of_token).collect::<Vec<Value>>(), "refusal": null })
    }

    fn push(
        &mut self,
        start: usize,
        token: u32,
        logprob: Option<f32>,
        alternatives: &[(u32, f32)],
        tokenizer: &Tokenizer,
    ) {
        let name = spelling(token, tokenizer);
        let top = logprob.map(|logprob| {
            let all =
                alternatives.iter().map(|&(token, logprob)| (spelling(token, tokenizer), number(logprob)));
            let mut all: Map<String, Value> = all.collect();
            // The token itself is told of, however unlikely it was.
            all.entry(name.clone()).or_insert_with(|| number(logprob));
            all
        });
        let score = Score { logprob: logprob.unwrap_or_default(), alternatives: alternatives.to_vec() };
        self.scores.push((token, score));
        self.tokens.push(name);
        self.token_logprobs.push(logprob.map(f64::from));
        self.top_logprobs.push(top);
        self.text_offset.push(start);
        self.token_ids.push(token);
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
