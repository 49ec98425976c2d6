//! Added tokens: strings that are looked for in a text before it is split into words. Special ones count only where the
//! caller wants them to, the others always.
//!
//! The rules are those of Hugging Face's library: the leftmost of all occurrences counts, of several that begin at one
//! place the longest, and one that is found but does not count hides those that overlap it.

use aho_corasick::{AhoCorasick, MatchKind};
use unicode_general_category::{GeneralCategory, get_general_category};

use super::normal::nfc;

/// An added token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Added {
    pub(super) id: u32,
    pub(super) content: String,
    /// Whether it counts only where special tokens do.
    pub(super) special: bool,
    /// Whether it counts only between characters that are not part of a word.
    pub(super) single_word: bool,
    /// Whether white space before it belongs to it.
    pub(super) lstrip: bool,
    /// Whether white space after it belongs to it.
    pub(super) rstrip: bool,
    /// Whether it is looked for in the normalized text, rather than in the text as it is.
    pub(super) normalized: bool,
    /// Whether the model's own vocabulary lists it too.
    pub(super) in_vocab: bool,
}

impl Added {
    /// A special token without peculiarities.
    pub(super) fn special(id: u32, content: String) -> Self {
        Self {
            id,
            content,
            special: true,
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: true,
            in_vocab: true,
        }
    }
}

/// All added tokens of a vocabulary.
#[derive(Clone, Debug, Default)]
pub(super) struct AddedVocabulary {
    /// In the order of their ids.
    tokens: Vec<Added>,
    in_text: Finder,
    in_normalized: Finder,
}

impl PartialEq for AddedVocabulary {
    fn eq(&self, other: &Self) -> bool {
        self.tokens == other.tokens
    }
}

impl Eq for AddedVocabulary {}

/// Finds some of the tokens.
#[derive(Clone, Debug, Default)]
struct Finder {
    /// For each pattern the token's place in the list.
    places: Vec<usize>,
    automaton: Option<AhoCorasick>,
}

impl Finder {
    fn new(patterns: Vec<(usize, String)>) -> Result<Self, String> {
        if patterns.is_empty() {
            return Ok(Self::default());
        }
        let (places, texts): (Vec<usize>, Vec<String>) = patterns.into_iter().unzip();
        let built = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts);
        let automaton = built.map_err(|error| format!("has too many added tokens: {error}"))?;
        Ok(Self { places, automaton: Some(automaton) })
    }
}

/// A part of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment<'t> {
    pub(super) text: &'t str,
    /// The token that it is; none for ordinary text.
    pub(super) token: Option<u32>,
}

impl AddedVocabulary {
    /// These tokens, for texts that are normalized by NFC or not at all. The error completes "the tokenizer FILE ...".
    pub(super) fn new(mut tokens: Vec<Added>, is_nfc: bool) -> Result<Self, String> {
        tokens.sort_by_key(|token| token.id);
        let pattern = |token: &Added| match token.normalized && is_nfc {
            true => nfc(&token.content).into_owned(),
            false => token.content.clone(),
        };
        let patterns = |normalized: bool| -> Vec<(usize, String)> {
            let chosen = tokens.iter().enumerate().filter(|(_, token)| token.normalized == normalized);
            chosen.map(|(place, token)| (place, pattern(token))).collect()
        };
        let mut spellings: Vec<String> = patterns(true).into_iter().map(|(_, text)| text).collect();
        spellings.sort_unstable();
        if let Some(pair) = spellings.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("has two added tokens that normalize to {:?}", pair[0]));
        }
        let (in_text, in_normalized) = (Finder::new(patterns(false))?, Finder::new(patterns(true))?);
        Ok(Self { tokens, in_text, in_normalized })
    }

    /// The tokens in the order of their ids.
    pub(super) fn tokens(&self) -> &[Added] {
        &self.tokens
    }

    /// Whether there is something to look for.
    pub(super) fn any(&self, with_special: bool) -> bool {
        self.tokens.iter().any(|token| with_special || !token.special)
    }

    /// The parts of a text that is not normalized yet.
    pub(super) fn segments<'t>(&self, text: &'t str, with_special: bool) -> Vec<Segment<'t>> {
        self.find(&self.in_text, text, with_special)
    }

    /// The parts of a normalized text.
    pub(super) fn segments_of_normalized<'t>(&self, text: &'t str, with_special: bool) -> Vec<Segment<'t>> {
        self.find(&self.in_normalized, text, with_special)
    }

    fn find<'t>(&self, finder: &Finder, text: &'t str, with_special: bool) -> Vec<Segment<'t>> {
        let mut segments = Vec::new();
        // Where the last token ended; where the text ends that segments cover.
        let (mut done, mut covered) = (0, 0);
        let matches = finder.automaton.iter().flat_map(|automaton| automaton.find_iter(text));
        for found in matches {
            let token = &self.tokens[finder.places[found.pattern().as_usize()]];
            let (mut start, mut end) = (found.start(), found.end());
            let is_ordinary = token.special && !with_special;
            if is_ordinary || token.single_word && !stands_alone(&text[..start], &text[end..]) {
                continue;
            }
            if token.lstrip {
                start = text[..start].trim_end().len().max(done);
            }
            if token.rstrip {
                end = text.len() - text[end..].trim_start().len();
            }
            if done < start {
                segments.push(Segment { text: &text[done..start], token: None });
                covered = covered.max(start);
            }
            // White space that the token before has taken is not counted twice.
            segments.push(Segment { text: &text[covered.min(end)..end], token: Some(token.id) });
            (done, covered) = (end, covered.max(end));
        }
        if done < text.len() {
            segments.push(Segment { text: &text[done..], token: None });
        }
        segments
    }
}

/// Whether no part of a word is next to a place.
fn stands_alone(before: &str, after: &str) -> bool {
    !before.chars().next_back().is_some_and(is_of_word) && !after.chars().next().is_some_and(is_of_word)
}

/// Whether a character is `\w` (Unicode Technical Standard 18, annex C).
fn is_of_word(c: char) -> bool {
    use GeneralCategory as Is;
    match get_general_category(c) {
        Is::Unassigned => false,
        Is::NonspacingMark
        | Is::SpacingMark
        | Is::EnclosingMark
        | Is::DecimalNumber
        | Is::ConnectorPunctuation => true,
        _ => c.is_alphabetic() || matches!(c, '\u{200c}' | '\u{200d}'),
    }
}
