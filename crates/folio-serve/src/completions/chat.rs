//! Chats: messages that become a prompt, and texts that become replies.

use std::str::FromStr;

use folio::tokenizer::Tokenizer;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, SeqAccess};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::choice::{ChatLogprobs, Piece};
use crate::errors::Error;
use crate::json::{Accepted, Field, elements};

/// How the messages of a chat become the text that a model continues: a text with `{role}` and `{content}`, which is
/// filled in for each message. The reply begins after what comes before the `{content}` of a message of the role
/// `assistant`, and ends at what comes after.
///
/// ```
/// use folio_serve::ChatTemplate;
///
/// assert!(r"{role}: {content}\n".parse::<ChatTemplate>().is_ok());
/// assert!("{role}: ".parse::<ChatTemplate>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatTemplate {
    before: String,
    after: String,
}

impl FromStr for ChatTemplate {
    type Err = Error;

    /// Reads a template; `\n` and `\t` in it are a line break and a tab, `\\` is a backslash.
    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |reason: String| Err(Error::ChatTemplate { reason });
        let mut rest = text;
        while let Some(open) = rest.find('{') {
            rest = &rest[open + 1..];
            let name = rest.find('}').map(|close| &rest[..close]);
            let is_name =
                |name: &&str| !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
            if let Some(name) = name.filter(is_name)
                && !matches!(name, "role" | "content")
            {
                return refuse(format!("{{{name}}} is not known: use {{role}} and {{content}}"));
            }
        }
        let Some((before, after)) =
            text.split_once("{content}").filter(|(_, after)| !after.contains("{content}"))
        else {
            return refuse("must contain {content} once, as in '{role}: {content}\\n'".to_owned());
        };
        Ok(Self { before: unescaped(before), after: unescaped(after) })
    }
}

fn unescaped(text: &str) -> String {
    let mut whole = String::new();
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => match characters.next() {
                Some('n') => whole.push('\n'),
                Some('t') => whole.push('\t'),
                Some('\\') | None => whole.push('\\'),
                Some(other) => whole.extend(['\\', other]),
            },
            c => whole.push(c),
        }
    }
    whole
}

impl ChatTemplate {
    /// The text of a chat up to where the reply begins.
    pub(crate) fn render(&self, messages: &[Message]) -> String {
        let mut text = String::new();
        for Message { role, content } in messages {
            text += &self.before.replace("{role}", role);
            text += content;
            text += &self.after.replace("{role}", role);
        }
        text + &self.before.replace("{role}", ASSISTANT)
    }

    /// What ends a reply; nothing if it is empty.
    pub(crate) fn end(&self) -> String {
        self.after.replace("{role}", ASSISTANT)
    }
}

const ASSISTANT: &str = "assistant";

/// A message of a chat.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    role: String,
    pub(crate) content: String,
}

impl Accepted for Message {
    const WHAT: &'static str = "a message, an object with role and content";

    fn from_object<'de, A: MapAccess<'de>>(object: A) -> Result<Self, A::Error> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Raw {
            role: Field<String>,
            content: Field<Content>,
        }
        let raw = Raw::deserialize(MapAccessDeserializer::new(object))?;
        let role = raw.role.0.ok_or_else(|| A::Error::custom("has no role, such as user"))?;
        // Assistants that called a tool have none.
        let Content(content) = raw.content.0.unwrap_or(Content(String::new()));
        Ok(Self { role, content })
    }
}

/// A text, or several that are one.
struct Content(String);

impl Accepted for Content {
    const WHAT: &'static str = "a string or a list of parts of the type text";

    fn from_text(text: &str) -> Option<Self> {
        Some(Self(text.to_owned()))
    }

    fn from_list<'de, A: SeqAccess<'de>>(list: A) -> Result<Self, A::Error> {
        let parts: Vec<Part> = elements(list)?;
        Ok(Self(parts.into_iter().map(|Part(text)| text).collect()))
    }
}

struct Part(String);

impl Accepted for Part {
    const WHAT: &'static str = "a part of the type text";

    fn from_object<'de, A: MapAccess<'de>>(object: A) -> Result<Self, A::Error> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Raw {
            r#type: Field<String>,
            text: Field<String>,
        }
        let raw = Raw::deserialize(MapAccessDeserializer::new(object))?;
        match (raw.r#type.0.as_deref(), raw.text.0) {
            (Some("text"), Some(text)) => Ok(Self(text)),
            _ => Err(A::Error::custom("only parts of the type text, with a text, are supported")),
        }
    }
}

/// A text as the reply of a whole answer.
#[derive(Serialize)]
pub(crate) struct Reply<'a> {
    index: usize,
    message: Value,
    logprobs: Option<ChatLogprobs<'a>>,
    finish_reason: Option<&'static str>,
}

impl<'a> Reply<'a> {
    pub(crate) fn new(piece: &'a Piece, tokenizer: &'a Tokenizer) -> Self {
        Self {
            index: piece.index,
            message: json!({ "role": ASSISTANT, "content": piece.text, "refusal": null }),
            logprobs: ChatLogprobs::of(piece, tokenizer),
            finish_reason: piece.finish_reason,
        }
    }
}

/// What is new of a reply.
#[derive(Serialize)]
pub(crate) struct Delta<'a> {
    index: usize,
    delta: Map<String, Value>,
    logprobs: Option<ChatLogprobs<'a>>,
    finish_reason: Option<&'static str>,
}

impl<'a> Delta<'a> {
    /// The first piece says whose it is.
    pub(crate) fn new(piece: &'a Piece, is_first: bool, tokenizer: &'a Tokenizer) -> Self {
        let mut delta = Map::new();
        if is_first {
            delta.insert("role".to_owned(), ASSISTANT.into());
        }
        if is_first || !piece.text.is_empty() {
            delta.insert("content".to_owned(), piece.text.as_str().into());
        }
        Self {
            index: piece.index,
            delta,
            logprobs: ChatLogprobs::of(piece, tokenizer),
            finish_reason: piece.finish_reason,
        }
    }
}
