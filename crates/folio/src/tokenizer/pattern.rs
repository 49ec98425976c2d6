//! The patterns by which tokenizers of other programs split a text: a part of regular expressions, matched as every
//! backtracking engine does.
//!
//! What is understood: characters, `\r \n \t \v \f`, classes such as `[^\s\p{L}\p{N}]` of characters, ranges, `\s`, `\d` and
//! general categories, `?`, `*`, `+`, their possessive forms, `{n,m}` of a character or class, groups `(?:...)` and
//! `(?i:...)` with or without `?`, alternatives, and the look-aheads `(?=c)` and `(?!c)` of one character or class. That
//! covers the published patterns of GPT-2, GPT-4, GPT-4o, Llama, Qwen, DeepSeek and nanochat. Whatever else there is in a
//! pattern, and what engines disagree on, is refused by name.

mod class;
mod linear;
mod parse;

use std::cell::Cell;

use class::CharClass;

/// What matching costs at most per byte of a text before it goes on without backtracking. The published patterns need less
/// than 60.
const STEPS_PER_BYTE: usize = 256;

/// A pattern that matches at least one character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    source: String,
    rule: Rule,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    /// The source as it is.
    Literal,
    Alternatives(Vec<Vec<Item>>),
}

/// A part of an alternative.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Item {
    /// Characters of a class, as many as there are from `min` to `max`. A possessive item gives none of them back.
    Run { class: CharClass, min: usize, max: usize, possessive: bool },
    /// The first alternative that lets the rest match; none of them, if that is optional and nothing else does.
    Group { alternatives: Vec<Vec<Item>>, optional: bool },
    /// The next character is of the class, or, if `negative`, there is no next character of the class.
    Ahead { class: CharClass, negative: bool },
}

impl Pattern {
    /// Reads a pattern. The error completes "the pattern has ...".
    pub(super) fn new(source: &str) -> Result<Self, String> {
        let rule = Rule::Alternatives(parse::parse(source)?);
        Ok(Self { source: source.to_owned(), rule })
    }

    /// The pattern that matches a text and nothing else.
    pub(super) fn literal(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("nothing in it, so it would match everywhere".to_owned());
        }
        Ok(Self { source: text.to_owned(), rule: Rule::Literal })
    }

    /// The pattern as it was given.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// Cuts a text at its matches: the parts in order, each with whether it is a match.
    pub(super) fn parts<'t>(&self, text: &'t str) -> impl Iterator<Item = (&'t str, bool)> {
        let mut search = Search::new(self, text);
        let mut done = 0;
        // A match that has been found and waits until what is before it has been passed on.
        let mut found: Option<(usize, usize)> = None;
        std::iter::from_fn(move || {
            if done == text.len() {
                return None;
            }
            let next = found.take().or_else(|| search.next_match(done));
            let (start, end) = next.unwrap_or((text.len(), text.len()));
            let (part, is_match) = if start > done {
                found = next;
                (&text[done..start], false)
            } else {
                (&text[start..end], true)
            };
            done += part.len();
            Some((part, is_match))
        })
    }
}

/// A search for the matches in a text.
struct Search<'p, 't> {
    pattern: &'p Pattern,
    backtracking: Backtracking<'t>,
    /// Where matches end, from [`linear::match_ends`], once backtracking has taken too many steps.
    ends: Option<Vec<usize>>,
}

impl<'p, 't> Search<'p, 't> {
    fn new(pattern: &'p Pattern, text: &'t str) -> Self {
        let steps_left = Cell::new(STEPS_PER_BYTE.saturating_mul(text.len()));
        Self { pattern, backtracking: Backtracking { text, steps_left }, ends: None }
    }

    /// Start and end of the first match from `at` on.
    fn next_match(&mut self, at: usize) -> Option<(usize, usize)> {
        let text = self.backtracking.text;
        let alternatives = match &self.pattern.rule {
            Rule::Alternatives(alternatives) => alternatives,
            Rule::Literal => {
                let start = at + text[at..].find(&self.pattern.source)?;
                return Some((start, start + self.pattern.source.len()));
            }
        };
        if self.ends.is_none() {
            let starts = text[at..].char_indices().map(|(offset, _)| at + offset);
            let mut tried =
                starts.map(|start| (start, self.backtracking.first_match(alternatives, start, &Some)));
            let found = tried.find(|(_, end)| end.is_some() || self.backtracking.is_over());
            if !self.backtracking.is_over() {
                return found.and_then(|(start, end)| Some((start, end?)));
            }
        }
        let ends = self.ends.get_or_insert_with(|| linear::match_ends(alternatives, text));
        (at..text.len()).find_map(|start| (ends[start] > 0).then_some((start, ends[start])))
    }
}

/// Tries one way to match after the other, as long as there are steps left; from then on, what it returns means nothing.
struct Backtracking<'t> {
    text: &'t str,
    steps_left: Cell<usize>,
}

impl Backtracking<'_> {
    fn is_over(&self) -> bool {
        self.steps_left.get() == 0
    }

    fn spend(&self, steps: usize) {
        self.steps_left.set(self.steps_left.get().saturating_sub(steps));
    }

    /// Tries alternatives in turn. `then` matches what follows them.
    fn first_match(
        &self,
        alternatives: &[Vec<Item>],
        at: usize,
        then: &dyn Fn(usize) -> Option<usize>,
    ) -> Option<usize> {
        alternatives.iter().find_map(|items| self.match_items(items, at, then))
    }

    fn match_items(&self, items: &[Item], at: usize, then: &dyn Fn(usize) -> Option<usize>) -> Option<usize> {
        let Some((item, rest)) = items.split_first() else { return then(at) };
        if self.is_over() {
            return None;
        }
        match item {
            Item::Run { class, min, max, possessive } => {
                let (mut count, mut end) = (0, at);
                while count < *max
                    && let Some(len) = class.len_at(self.text, end)
                {
                    (count, end) = (count + 1, end + len);
                }
                self.spend(count + 1);
                loop {
                    if count < *min {
                        return None;
                    }
                    let found = self.match_items(rest, end, then);
                    if found.is_some() || *possessive || count == *min {
                        return found;
                    }
                    self.spend(1);
                    (count, end) = (count - 1, self.text.floor_char_boundary(end - 1));
                }
            }
            Item::Group { alternatives, optional } => {
                self.spend(1);
                let rest_from = |end| self.match_items(rest, end, then);
                let found = self.first_match(alternatives, at, &rest_from);
                if *optional { found.or_else(|| rest_from(at)) } else { found }
            }
            Item::Ahead { class, negative } => {
                self.spend(1);
                let holds = class.len_at(self.text, at).is_some() != *negative;
                if holds { self.match_items(rest, at, then) } else { None }
            }
        }
    }
}

#[cfg(test)]
mod tests;
