//! GPT-2's split of a text into words. Byte pairs merge within words only.
//!
//! Radford et al. 2019, section 2.2, by the published pattern
//!
//! ```text
//! '(?:[sdmt]|ll|ve|re) | ?\p{L}+ | ?\p{N}+ | ?[^\s\p{L}\p{N}]+ | \s+(?!\S) | \s+
//! ```
//! The first alternative that matches wins: the end of a contraction; letters, digits or other characters, with an optional
//! space in front; white space without its last character, which may belong to the next word.

use unicode_general_category::{GeneralCategory, get_general_category};

/// The kinds of characters in the pattern.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CharKind {
    Letter,
    Number,
    Space,
    Other,
}

/// The words of a text, in order. Their concatenation is the text.
#[derive(Clone, Debug)]
pub(super) struct Words<'t> {
    rest: &'t str,
}

/// Splits a text into words.
pub(super) fn words(text: &str) -> Words<'_> {
    Words { rest: text }
}

impl<'t> Iterator for Words<'t> {
    type Item = &'t str;

    #[inline]
    fn next(&mut self) -> Option<&'t str> {
        if self.rest.is_empty() {
            return None;
        }
        let (word, rest) = self.rest.split_at(word_len(self.rest));
        self.rest = rest;
        Some(word)
    }
}

/// The length of the first word of a non-empty text, in bytes.
#[inline]
fn word_len(text: &str) -> usize {
    let bytes = text.as_bytes();
    if let Some(len) = contraction_len(bytes) {
        return len;
    }
    let start = usize::from(bytes[0] == b' ');
    match kind_at(text, start) {
        Some((kind, len)) if kind != CharKind::Space => run_end(text, start + len, kind),
        _ => white_space_len(text),
    }
}

/// The length of the end of a contraction, such as `'ll`, at the start of the text.
#[inline]
fn contraction_len(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [b'\'', b's' | b'd' | b'm' | b't', ..] => Some(2),
        [b'\'', b'l', b'l', ..] | [b'\'', b'v', b'e', ..] | [b'\'', b'r', b'e', ..] => Some(3),
        _ => None,
    }
}

/// The end of the run of characters of this kind that begins at `start`.
#[inline]
fn run_end(text: &str, start: usize, kind: CharKind) -> usize {
    let mut end = start;
    while let Some((found, len)) = kind_at(text, end)
        && found == kind
    {
        end += len;
    }
    end
}

/// The length of the white space at the start of the text, without its last character if it is longer than one character
/// and text follows.
fn white_space_len(text: &str) -> usize {
    let run = run_end(text, 0, CharKind::Space);
    let last = text[..run].chars().next_back().map_or(0, char::len_utf8);
    if run == text.len() || run == last { run } else { run - last }
}

/// The kind and the length in bytes of the character at an offset; none at the end.
#[inline]
fn kind_at(text: &str, offset: usize) -> Option<(CharKind, usize)> {
    let &byte = text.as_bytes().get(offset)?;
    if byte.is_ascii() {
        return Some((ASCII[usize::from(byte)], 1));
    }
    let c = text[offset..].chars().next()?;
    Some((kind(c), c.len_utf8()))
}

const ASCII: [CharKind; 128] = {
    let mut kinds = [CharKind::Other; 128];
    let mut byte = 0;
    while byte < 128 {
        kinds[byte as usize] = match byte {
            b'a'..=b'z' | b'A'..=b'Z' => CharKind::Letter,
            b'0'..=b'9' => CharKind::Number,
            b'\t'..=b'\r' | b' ' => CharKind::Space,
            _ => CharKind::Other,
        };
        byte += 1;
    }
    kinds
};

fn kind(c: char) -> CharKind {
    use GeneralCategory as Is;
    if c.is_whitespace() {
        return CharKind::Space;
    }
    match get_general_category(c) {
        Is::UppercaseLetter
        | Is::LowercaseLetter
        | Is::TitlecaseLetter
        | Is::ModifierLetter
        | Is::OtherLetter => CharKind::Letter,
        Is::DecimalNumber | Is::LetterNumber | Is::OtherNumber => CharKind::Number,
        _ => CharKind::Other,
    }
}

/// Cuts a text into pieces of about `len` bytes without cutting words: only between a visible character and white space,
/// which are never in that order within a word.
pub(super) fn pieces(text: &str, len: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (piece, others) = rest.split_at(cut(rest, len));
        rest = others;
        Some(piece)
    })
}

/// The first offset from `len` on where a text may be cut; its end if there is none.
fn cut(text: &str, len: usize) -> usize {
    let bytes = text.as_bytes();
    // Considers only ASCII, where every byte is a character.
    let visible = |byte: u8| byte.is_ascii() && ASCII[usize::from(byte)] != CharKind::Space;
    let space = |byte: u8| byte == b' ' || byte == b'\n';
    (len.max(1)..bytes.len()).find(|&at| visible(bytes[at - 1]) && space(bytes[at])).unwrap_or(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, want: &[&str]) {
        assert_eq!(words(text).collect::<Vec<_>>(), want, "{text:?}");
    }

    #[test]
    fn words_match_the_pattern() {
        check("", &[]);
        check("Hello world", &["Hello", " world"]);
        check(
            "I'll we've you're he'd I'm it's don't",
            &["I", "'ll", " we", "'ve", " you", "'re", " he", "'d", " I", "'m", " it", "'s", " don", "'t"],
        );
        check("'LL 'x ''s", &["'", "LL", " '", "x", " ''", "s"]);
        check("a1b22 c3", &["a", "1", "b", "22", " c", "3"]);
        check("a.b, c!?", &["a", ".", "b", ",", " c", "!?"]);
    }

    #[test]
    fn white_space_leaves_its_last_character_to_the_next_word() {
        check("a  b", &["a", " ", " b"]);
        check("a   ", &["a", "   "]);
        check("a\nb", &["a", "\n", "b"]);
        check("a\n\nb", &["a", "\n", "\n", "b"]);
        check("a \nb", &["a", " ", "\n", "b"]);
        check("a\n b", &["a", "\n", " b"]);
        check("\t\t\r\n", &["\t\t\r\n"]);
        check(" ", &[" "]);
        // Only an ASCII space joins the next word.
        check("a\u{a0}b\u{3000}\u{3000}c", &["a", "\u{a0}", "b", "\u{3000}", "\u{3000}", "c"]);
    }

    #[test]
    fn every_script_has_letters_numbers_and_others() {
        check("été Straße", &["été", " Straße"]);
        check("日本語。3つ", &["日本語", "。", "3", "つ"]);
        check("٣٤ Ⅻ ½", &["٣٤", " Ⅻ", " ½"]);
        // All general categories of letters, then of numbers.
        check("aAǅʰª日1٣Ⅻ½", &["aAǅʰª日", "1٣Ⅻ½"]);
        // A combining mark is not a letter.
        check("e\u{301}a", &["e", "\u{301}", "a"]);
        check("👨‍👩‍👧!", &["👨‍👩‍👧!"]);
        // The feminine ordinal is a letter; circled letters are symbols.
        check("ªⓐ", &["ª", "ⓐ"]);
    }

    #[test]
    fn pieces_have_the_words_of_the_whole() {
        let text = "To be, or  not\n\n to\u{a0}be:\tthat is 日本 the 'question'. ".repeat(20);
        for len in 1..60 {
            let cut: Vec<&str> = pieces(&text, len).collect();
            assert_eq!(cut.concat(), text);
            let in_pieces: Vec<&str> = cut.iter().flat_map(|piece| words(piece)).collect();
            assert_eq!(in_pieces, words(&text).collect::<Vec<_>>(), "pieces of {len}");
            assert!(cut.len() > 60 / len, "{} pieces of {len}", cut.len());
        }
        assert_eq!(pieces("", 5).count(), 0);
        assert_eq!(pieces("unbroken", 1).collect::<Vec<_>>(), ["unbroken"]);
    }
}
