//! Chat templates: how the messages of a chat become a prompt.

use std::str::FromStr;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, SeqAccess};

use crate::errors::Error;
use crate::json::{Field, FromJson, elements};

/// How the messages of a chat become a prompt: a text with `{role}` and `{content}` that is filled in for each message.
/// The prompt ends with the part before the `{content}` of a message with the role `assistant`. The part after it ends
/// the reply.
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

    /// Parses a template. `\n`, `\t` and `\\` are a newline, a tab and a backslash.
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
                return refuse(format!("{{{name}}} is not a placeholder: use {{role}} and {{content}}"));
            }
        }
        let Some((before, after)) =
            text.split_once("{content}").filter(|(_, after)| !after.contains("{content}"))
        else {
            return refuse("must contain {content} exactly once, as in '{role}: {content}\\n'".to_owned());
        };
        Ok(Self { before: unescape(before), after: unescape(after) })
    }
}

fn unescape(text: &str) -> String {
    let mut unescaped = String::new();
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => match characters.next() {
                Some('n') => unescaped.push('\n'),
                Some('t') => unescaped.push('\t'),
                Some('\\') | None => unescaped.push('\\'),
                Some(other) => unescaped.extend(['\\', other]),
            },
            c => unescaped.push(c),
        }
    }
    unescaped
}

impl ChatTemplate {
    /// The prompt, which ends where the reply begins.
    pub(crate) fn render(&self, messages: &[Message]) -> String {
        let mut text = String::new();
        for Message { role, content } in messages {
            text += &self.before.replace("{role}", role);
            text += content;
            text += &self.after.replace("{role}", role);
        }
        text + &self.before.replace("{role}", ASSISTANT)
    }

    /// The stop string that ends a reply; empty if there is none.
    pub(crate) fn stop_string(&self) -> String {
        self.after.replace("{role}", ASSISTANT)
    }
}

/// The role of the model.
pub(crate) const ASSISTANT: &str = "assistant";

/// A message of a chat.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    role: String,
    pub(crate) content: String,
}

impl FromJson for Message {
    const EXPECTED: &'static str = "a message, an object with role and content";

    fn from_object<'de, A: MapAccess<'de>>(object: A) -> Result<Self, A::Error> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct MessageFields {
            role: Field<String>,
            content: Field<Content>,
        }
        let raw = MessageFields::deserialize(MapAccessDeserializer::new(object))?;
        let role = raw.role.0.ok_or_else(|| A::Error::custom("has no role, such as user"))?;
        // Messages of an assistant that called a tool have no content.
        let Content(content) = raw.content.0.unwrap_or(Content(String::new()));
        Ok(Self { role, content })
    }
}

/// The content of a message: a string, or a list of parts that are concatenated.
struct Content(String);

impl FromJson for Content {
    const EXPECTED: &'static str = "a string or a list of parts of the type text";

    fn from_string(text: &str) -> Option<Self> {
        Some(Self(text.to_owned()))
    }

    fn from_list<'de, A: SeqAccess<'de>>(list: A) -> Result<Self, A::Error> {
        let parts: Vec<Part> = elements(list)?;
        Ok(Self(parts.into_iter().map(|Part(text)| text).collect()))
    }
}

struct Part(String);

impl FromJson for Part {
    const EXPECTED: &'static str = "a part of the type text";

    fn from_object<'de, A: MapAccess<'de>>(object: A) -> Result<Self, A::Error> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct PartFields {
            r#type: Field<String>,
            text: Field<String>,
        }
        let raw = PartFields::deserialize(MapAccessDeserializer::new(object))?;
        match (raw.r#type.0.as_deref(), raw.text.0) {
            (Some("text"), Some(text)) => Ok(Self(text)),
            _ => Err(A::Error::custom("only parts of the type text, with a text, are supported")),
        }
    }
}
