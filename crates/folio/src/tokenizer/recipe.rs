//! What a byte-level BPE does to a text before its bytes are merged: added tokens, normalization, the split into words.

use std::borrow::Cow;

use rustc_hash::FxHashMap;

use super::added::{Added, AddedVocabulary};
use super::normal::nfc;
use super::pattern::Pattern;
use super::words::words;

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Recipe {
    /// Whether a text is normalized by NFC.
    pub(super) is_nfc: bool,
    /// How words are found; the last step is the only [`Step::ByteLevel`].
    pub(super) steps: Vec<Step>,
    pub(super) added: AddedVocabulary,
    /// Words that are a token whatever the merges make of them, by their bytes: `ignore_merges`.
    pub(super) whole_words: Option<FxHashMap<Vec<u8>, u32>>,
}

/// A step of a split into words, taken within each part that the step before has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Split {
        pattern: Pattern,
        is_regex: bool,
        behavior: Behavior,
        invert: bool,
    },
    /// Digits apart from all else, one by one or together. Digits are all numbers of the standard library's Unicode, as in
    /// Hugging Face's: `½` and `Ⅻ` too.
    Digits {
        individual: bool,
    },
    /// With a space before what has none, and GPT-2's split or none.
    ByteLevel {
        add_prefix_space: bool,
        use_regex: bool,
    },
}

/// What becomes of the matches of a split.
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
    /// GPT-2's, with these special tokens.
    pub(super) fn gpt2(specials: Vec<Added>) -> Result<Self, String> {
        let added = AddedVocabulary::new(specials, false)?;
        let steps = vec![Step::ByteLevel { add_prefix_space: false, use_regex: true }];
        Ok(Self { is_nfc: false, steps, added, whole_words: None })
    }

    /// Whether GPT-2's split of the text as it is gives all its words.
    pub(super) fn is_plain(&self, with_special: bool) -> bool {
        self.splits_as_gpt2() && !self.is_nfc && !self.added.any(with_special)
    }

    /// Whether the words of what is between added tokens are those of GPT-2's split.
    pub(super) fn splits_as_gpt2(&self) -> bool {
        matches!(self.steps[..], [Step::ByteLevel { add_prefix_space: false, use_regex: true }])
    }

    /// A text in its normal form.
    pub(super) fn normalized<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if self.is_nfc { nfc(text) } else { Cow::Borrowed(text) }
    }

    /// The words of a text in which no token is to be looked for, in order.
    pub(super) fn for_each_word(&self, text: &str, on_word: &mut dyn FnMut(&str)) {
        if !text.is_empty() {
            apply(&self.steps, text, on_word);
        }
    }
}

/// Takes the steps one within the other. No part is empty.
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

/// Passes on what a split makes of neighbouring parts that make up a text, of which some are matches.
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
        // Of matches in a row the first alone goes with what is before it, or the last with what comes after.
        Behavior::MergedWithPrevious => join(text, parts, |before, now| now && !before, on_part),
        Behavior::MergedWithNext => join(text, parts, |before, now| before && !now, on_part),
    }
}

/// Passes on the parts of a text, those as one that `joins` says belong together: it is given of a part and of the one
/// after it whether they are matches.
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
