//! One token per character.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// Code points on one page of the lookup table.
const PAGE_LEN: usize = 256;
/// Pages that hold all code points of Unicode, which end at U+10FFFF.
const PAGE_COUNT: usize = 0x11_0000 / PAGE_LEN;
/// The entry of a character that is not in the vocabulary.
const ABSENT: u32 = u32::MAX;

/// A list of distinct characters. The id of a character is its index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CharVocabulary {
    chars: Vec<char>,
    /// For each page of Unicode, its index in `pages`. Most share page 0, which is empty.
    page_of: Vec<u16>,
    pages: Vec<[u32; PAGE_LEN]>,
}

impl CharVocabulary {
    /// The distinct characters of a text in ascending order.
    pub(super) fn of_text(text: &str) -> Self {
        let mut is_used = vec![false; PAGE_COUNT * PAGE_LEN];
        for c in text.chars() {
            is_used[c as usize] = true;
        }
        let chars = ('\0'..=char::MAX).filter(|&c| is_used[c as usize]).collect();
        Self::new(chars).expect("the characters are distinct")
    }

    /// The vocabulary of these characters in this order. The error is a character that occurs twice.
    pub(super) fn new(chars: Vec<char>) -> std::result::Result<Self, char> {
        let mut page_of = vec![0_u16; PAGE_COUNT];
        let mut pages = vec![[ABSENT; PAGE_LEN]];
        for (id, &c) in chars.iter().enumerate() {
            let (page_idx, entry_idx) = position(c);
            if page_of[page_idx] == 0 {
                page_of[page_idx] = pages.len() as u16;
                pages.push([ABSENT; PAGE_LEN]);
            }
            let entry = &mut pages[usize::from(page_of[page_idx])][entry_idx];
            if *entry != ABSENT {
                return Err(c);
            }
            *entry = id as u32;
        }
        Ok(Self { chars, page_of, pages })
    }

    /// The characters in the order of their ids.
    pub(super) fn chars(&self) -> &[char] {
        &self.chars
    }

    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.chars().count());
        for (offset, c) in text.char_indices() {
            let id = self.id(c);
            if id == ABSENT {
                return Err(self.unknown_char(c, &text[..offset]));
            }
            ids.push(id);
        }
        Ok(ids)
    }

    pub(super) fn decode(&self, ids: &[u32]) -> String {
        ids.iter().map(|&id| self.char(id)).collect()
    }

    /// The character of an id.
    pub(super) fn char(&self, id: u32) -> char {
        let vocab_size = self.chars.len();
        let Some(&char) = self.chars.get(id as usize) else {
            panic!("token id {id} is outside the vocabulary of {vocab_size}")
        };
        char
    }

    /// The characters of a text that the vocabulary lacks, with their counts.
    pub(super) fn missing(&self, text: &str) -> BTreeMap<char, u64> {
        let mut missing = BTreeMap::new();
        text.chars().filter(|&c| self.id(c) == ABSENT).for_each(|c| *missing.entry(c).or_default() += 1);
        missing
    }

    #[inline]
    fn id(&self, c: char) -> u32 {
        let (page_idx, entry_idx) = position(c);
        self.pages[usize::from(self.page_of[page_idx])][entry_idx]
    }

    #[cold]
    fn unknown_char(&self, c: char, before: &str) -> Error {
        let line = before.matches('\n').count() + 1;
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let column = before[line_start..].chars().count() + 1;
        let reason = format!(
            "the character {c:?} (U+{code:04X}) at line {line}, column {column} is not among the {vocab_size} \
             characters of the vocabulary; leave it out, or train with a text that has it or with the tokenizer bpe",
            code = u32::from(c),
            vocab_size = self.chars.len(),
        );
        Error::Tokenizer { reason }
    }
}

/// The page of a character, and its index on that page.
#[inline]
fn position(c: char) -> (usize, usize) {
    (c as usize / PAGE_LEN, c as usize % PAGE_LEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_round_trip(text: &str, expected_ids: &[u32]) {
        let vocabulary = CharVocabulary::of_text(text);
        let ids = vocabulary.encode(text).unwrap();
        assert_eq!(ids, expected_ids);
        assert_eq!(vocabulary.decode(&ids), text);
    }

    #[test]
    fn texts_of_all_scripts_round_trip() {
        check_round_trip("", &[]);
        check_round_trip("cab\n", &[3, 1, 2, 0]);
        check_round_trip("ÿĀ\0\u{7f}\u{80}", &[3, 4, 0, 1, 2]);
        check_round_trip("日本の日👨‍👩‍👧e\u{301}\u{10ffff}", &[4, 5, 3, 4, 7, 2, 8, 2, 6, 0, 1, 9]);
    }

    #[test]
    fn tiny_shakespeare_has_65_sorted_characters() {
        let text = tiny_shakespeare::TEXT;
        let vocabulary = CharVocabulary::of_text(text);
        assert_eq!(vocabulary.chars().len(), 65);
        assert!(vocabulary.chars().is_sorted());
        let ids = vocabulary.encode(text).unwrap();
        assert_eq!(ids[..5], [18, 47, 56, 57, 58]);
        assert_eq!(vocabulary.decode(&ids), text);
    }

    #[test]
    fn all_other_characters_are_absent() {
        let vocabulary = CharVocabulary::of_text("aš日👧\u{10ffff}");
        let known: Vec<char> = ('\0'..=char::MAX).filter(|&c| vocabulary.id(c) != ABSENT).collect();
        assert_eq!(known, vocabulary.chars());
    }

    #[test]
    fn order_is_kept_and_duplicates_are_refused() {
        let vocabulary = CharVocabulary::new(vec!['b', 'é', 'a']).unwrap();
        assert_eq!(vocabulary.encode("aéb").unwrap(), [2, 1, 0]);
        assert_eq!(CharVocabulary::new(vec!['b', 'é', 'a', 'é']), Err('é'));
    }

    #[test]
    fn unknown_character_is_reported_with_its_position() {
        let vocabulary = CharVocabulary::of_text("To be,é\n");
        let message = vocabulary.encode("To be\nTéo€").unwrap_err().to_string();
        assert_eq!(
            message,
            "the character '€' (U+20AC) at line 2, column 4 is not among the 8 characters of the vocabulary; \
             leave it out, or train with a text that has it or with the tokenizer bpe"
        );
    }

    #[test]
    #[should_panic(expected = "token id 2 is outside the vocabulary of 2")]
    fn decoding_an_unknown_id_panics() {
        CharVocabulary::of_text("ab").decode(&[0, 2]);
    }
}
