//! The preprocessing of a byte-level BPE: added tokens, normalization, and the split into words.

use std::borrow::Cow;

use rustc_hash::FxHashMap;

use super::added::{Added, AddedVocabulary};
use super::normal::nfc;
use super::pattern::Pattern;
use super::words::words;

/// All preprocessing steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Recipe {
    /// Whether text is normalized to NFC.
    pub(super) is_nfc: bool,
    /// The steps of the split. Only the last one is [`Step::ByteLevel`].
    pub(super) steps: Vec<Step>,
    pub(super) added: AddedVocabulary,
    /// Words that are always a single token, by their bytes (`ignore_merges`).
    pub(super) whole_words: Option<FxHashMap<Vec<u8>, u32>>,
}

/// A step of the split into words, applied to each part that the previous step produced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Split {
        pattern: Pattern,
        is_regex: bool,
        behavior: Behavior,
        invert: bool,
    },
    /// Separates digits from other characters, individually or as runs. As in Hugging Face's library, these are all
    /// characters for which `char::is_numeric` holds, such as `½` and `Ⅻ`.
    Digits {
        individual: bool,
    },
    /// Optionally adds a space in front, and optionally applies GPT-2's split.
    ByteLevel {
        add_prefix_space: bool,
        use_regex: bool,
    },
}

/// The treatment of matches in a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behavior {
    Removed,
    Isolated,
    MergedWithPrevious,
    MergedWithNext,
    Contiguous,
}

impl Behavior {
    pub(super) const ALL: [(&str, Self); 5] = [
        ("Removed", Self::Removed),
        ("Isolated", Self::Isolated),
        ("MergedWithPrevious", Self::MergedWithPrevious),
        ("MergedWithNext", Self::MergedWithNext),
        ("Contiguous", Self::Contiguous),
    ];

    pub(super) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, behavior)| *behavior == self).expect("all are listed").0
    }
}

impl Recipe {
    /// The preprocessing of GPT-2, with these special tokens.
    pub(super) fn gpt2(specials: Vec<Added>) -> Result<Self, String> {
        let added = AddedVocabulary::new(specials, false)?;
        let steps = vec![Step::ByteLevel { add_prefix_space: false, use_regex: true }];
        Ok(Self { is_nfc: false, steps, added, whole_words: None })
    }

    /// Whether GPT-2's split of the unchanged text gives all words.
    pub(super) fn is_plain(&self, with_special: bool) -> bool {
        self.splits_as_gpt2() && !self.is_nfc && !self.added.any(with_special)
    }

    /// Whether the split is GPT-2's.
    pub(super) fn splits_as_gpt2(&self) -> bool {
        matches!(self.steps[..], [Step::ByteLevel { add_prefix_space: false, use_regex: true }])
    }

    /// Normalizes a text, if the recipe says so.
    pub(super) fn normalized<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if self.is_nfc { nfc(text) } else { Cow::Borrowed(text) }
    }

    /// Splits a text without added tokens into words.
    pub(super) fn for_each_word(&self, text: &str, on_word: &mut dyn FnMut(&str)) {
        if !text.is_empty() {
            apply(&self.steps, text, on_word);
        }
    }
}

/// Applies the steps recursively. No part is empty.
fn apply(steps: &[Step], text: &str, on_word: &mut dyn FnMut(&str)) {
    let Some((step, rest)) = steps.split_first() else { return on_word(text) };
    match step {
        Step::Split { pattern, behavior, invert, .. } => {
            let parts = pattern.parts(text).map(|(part, is_match)| (part, is_match != *invert));
            split(text, parts, *behavior, &mut |part| apply(rest, part, on_word));
        }
        Step::Digits { individual } => {
            let behavior = if *individual { Behavior::Isolated } else { Behavior::Contiguous };
            let mut left = text;
            let parts = std::iter::from_fn(|| {
                let first = left.chars().next()?;
                let end = match first.is_numeric() {
                    true => first.len_utf8(),
                    false => left.find(char::is_numeric).unwrap_or(left.len()),
                };
                let (part, others) = left.split_at(end);
                left = others;
                Some((part, first.is_numeric()))
            });
            split(text, parts, behavior, &mut |part| apply(rest, part, on_word));
        }
        Step::ByteLevel { add_prefix_space, use_regex } => {
            let prefixed = match *add_prefix_space && !text.starts_with(' ') {
                true => Cow::Owned(format!(" {text}")),
                false => Cow::Borrowed(text),
            };
            match use_regex {
                true => words(&prefixed).for_each(|word| apply(rest, word, on_word)),
                false => apply(rest, &prefixed, on_word),
            }
        }
    }
}

/// Applies a behavior to the parts of a text, in order, each with whether it is a match.
fn split<'t>(
    text: &'t str,
    parts: impl Iterator<Item = (&'t str, bool)>,
    behavior: Behavior,
    on_part: &mut dyn FnMut(&'t str),
) {
    match behavior {
        Behavior::Isolated => parts.for_each(|(part, _)| on_part(part)),
        Behavior::Removed => parts.filter(|(_, is_match)| !is_match).for_each(|(part, _)| on_part(part)),
        Behavior::Contiguous => join(text, parts, |before, now| before == now, on_part),
        // Of consecutive matches, only the first is merged with the part before, or the last with the part after.
        Behavior::MergedWithPrevious => join(text, parts, |before, now| now && !before, on_part),
        Behavior::MergedWithNext => join(text, parts, |before, now| before && !now, on_part),
    }
}

/// Joins adjacent parts for which `joins` holds. Its arguments are whether the first and the second part are matches.
fn join<'t>(
    text: &'t str,
    parts: impl Iterator<Item = (&'t str, bool)>,
    joins: impl Fn(bool, bool) -> bool,
    on_part: &mut dyn FnMut(&'t str),
) {
    let (mut start, mut end, mut before) = (0, 0, false);
    for (part, is_match) in parts {
        if end > start && !joins(before, is_match) {
            on_part(&text[start..end]);
            start = end;
        }
        (end, before) = (end + part.len(), is_match);
    }
    if end > start {
        on_part(&text[start..end]);
    }
}
