//! The patterns by which tokenizers of other programs split a text: a part of regular expressions, matched as every
//! backtracking engine does.
//!
//! What is understood: characters, `\r \n \t \v \f`, classes such as `[^\s\p{L}\p{N}]` of characters, ranges, `\s`, `\d` and
//! general categories, `?`, `*`, `+`, their possessive forms, `{n,m}` of a character or class, groups `(?:...)` and
//! `(?i:...)` with or without `?`, alternatives, and the look-aheads `(?=c)` and `(?!c)` of one character or class. That
//! covers the published patterns of GPT-2, GPT-4, GPT-4o, Llama, Qwen, DeepSeek and nanochat. Whatever else there is in a
//! pattern, and what engines disagree on, is refused by name.

mod class;
mod parse;

use class::Class;

/// A pattern that matches at least one character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    source: String,
    alternatives: Vec<Vec<Item>>,
}

/// A part of an alternative.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Item {
    /// Characters of a class, as many as there are from `min` to `max`. A possessive item gives none of them back.
    Run { class: Class, min: usize, max: usize, possessive: bool },
    /// The first alternative that lets the rest match; none of them, if that is optional and nothing else does.
    Group { alternatives: Vec<Vec<Item>>, optional: bool },
    /// The next character is of the class, or, if `negative`, there is no next character of the class.
    Ahead { class: Class, negative: bool },
}

impl Pattern {
    /// Reads a pattern. The error completes "the pattern has ...".
    pub(super) fn new(source: &str) -> Result<Self, String> {
        let alternatives = parse::parse(source)?;
        Ok(Self { source: source.to_owned(), alternatives })
    }

    /// The pattern that matches a text and nothing else.
    pub(super) fn literal(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("nothing in it, so it would match everywhere".to_owned());
        }
        let item = |c| Item::Run { class: Class::one(c), min: 1, max: 1, possessive: false };
        Ok(Self { source: text.to_owned(), alternatives: vec![text.chars().map(item).collect()] })
    }

    /// The pattern as it was given.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// Where the match ends that begins at the head of a text, if there is one.
    fn match_at(&self, text: &str, at: usize) -> Option<usize> {
        first_match(&self.alternatives, text, at, &Some)
    }

    /// Cuts a text at its matches: the parts in order, each with whether it is a match.
    pub(super) fn parts<'t>(&self, text: &'t str) -> impl Iterator<Item = (&'t str, bool)> {
        let mut done = 0;
        // A match that has been found and waits until what is before it has been passed on.
        let mut found: Option<(usize, usize)> = None;
        std::iter::from_fn(move || {
            if done == text.len() {
                return None;
            }
            let (start, end) = found.take().unwrap_or_else(|| self.next_match(text, done));
            let (part, is_match) = if start > done {
                found = Some((start, end));
                (&text[done..start], false)
            } else {
                (&text[start..end], true)
            };
            done += part.len();
            Some((part, is_match))
        })
    }

    /// The first match from `at` on; beyond the last one, nothing at the text's end.
    fn next_match(&self, text: &str, at: usize) -> (usize, usize) {
        let starts = text[at..].char_indices().map(|(offset, _)| at + offset);
        let mut matches = starts.filter_map(|start| Some((start, self.match_at(text, start)?)));
        matches.next().unwrap_or((text.len(), text.len()))
    }
}

/// Tries alternatives in turn. `then` matches what follows them.
fn first_match(
    alternatives: &[Vec<Item>],
    text: &str,
    at: usize,
    then: &dyn Fn(usize) -> Option<usize>,
) -> Option<usize> {
    alternatives.iter().find_map(|items| match_items(items, text, at, then))
}

fn match_items(
    items: &[Item],
    text: &str,
    at: usize,
    then: &dyn Fn(usize) -> Option<usize>,
) -> Option<usize> {
    let Some((item, rest)) = items.split_first() else { return then(at) };
    match item {
        Item::Run { class, min, max, possessive } => {
            let (mut count, mut end) = (0, at);
            while count < *max
                && let Some(len) = class.len_at(text, end)
            {
                (count, end) = (count + 1, end + len);
            }
            loop {
                if count < *min {
                    return None;
                }
                let found = match_items(rest, text, end, then);
                if found.is_some() || *possessive || count == *min {
                    return found;
                }
                (count, end) = (count - 1, text.floor_char_boundary(end - 1));
            }
        }
        Item::Group { alternatives, optional } => {
            let rest_from = |end| match_items(rest, text, end, then);
            let found = first_match(alternatives, text, at, &rest_from);
            if *optional { found.or_else(|| rest_from(at)) } else { found }
        }
        Item::Ahead { class, negative } => {
            let holds = class.len_at(text, at).is_some() != *negative;
            if holds { match_items(rest, text, at, then) } else { None }
        }
    }
}

#[cfg(test)]
mod tests;
