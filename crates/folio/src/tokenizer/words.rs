//! GPT-2's split of a text into words, within which byte pairs merge and between which they never do.
//!
//! Radford et al. 2019, section 2.2, by the published pattern
//!
//! ```text
//! '(?:[sdmt]|ll|ve|re) | ?\p{L}+ | ?\p{N}+ | ?[^\s\p{L}\p{N}]+ | \s+(?!\S) | \s+
//! ```
//! of which the first alternative that matches wins: a contraction's end; letters, digits or other characters, each with
//! a space before them if there is one; white space but for its last character, which the next word may take.

use unicode_general_category::{GeneralCategory, get_general_category};

/// What the pattern tells apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CharKind {
    Letter,
    Number,
    Space,
    Other,
}

/// The words of a text, in order; together they are the text.
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

/// Bytes of the first word of a text that is not empty.
#[inline]
fn word_len(text: &str) -> usize {
    let bytes = text.as_bytes();
    if let Some(len) = contraction_len(bytes) {
        return len;
    }
    let start = usize::from(bytes[0] == b' ');
    match class_at(text, start) {
        Some((class, len)) if class != CharKind::Space => run_end(text, start + len, class),
        _ => white_space_len(text),
    }
}

/// Bytes of the apostrophe and the letters after it that the text begins with, if they end a contraction.
#[inline]
fn contraction_len(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [b'\'', b's' | b'd' | b'm' | b't', ..] => Some(2),
        [b'\'', b'l', b'l', ..] | [b'\'', b'v', b'e', ..] | [b'\'', b'r', b'e', ..] => Some(3),
        _ => None,
    }
}

/// Where the characters of one class end that stand at `start`.
#[inline]
fn run_end(text: &str, start: usize, class: CharKind) -> usize {
    let mut end = start;
    while let Some((found, len)) = class_at(text, end)
        && found == class
    {
        end += len;
    }
    end
}

/// Bytes of the white space that the text begins with, without its last character if something follows and it is not
/// the only one.
fn white_space_len(text: &str) -> usize {
    let run = run_end(text, 0, CharKind::Space);
    let last = text[..run].chars().next_back().map_or(0, char::len_utf8);
    if run == text.len() || run == last { run } else { run - last }
}

/// The class and the length in bytes of the character at an offset; `None` at the end.
#[inline]
fn class_at(text: &str, offset: usize) -> Option<(CharKind, usize)> {
    let &byte = text.as_bytes().get(offset)?;
    if byte.is_ascii() {
        return Some((ASCII[usize::from(byte)], 1));
    }
    let c = text[offset..].chars().next()?;
    Some((class(c), c.len_utf8()))
}

const ASCII: [CharKind; 128] = {
    let mut classes = [CharKind::Other; 128];
    let mut byte = 0;
    while byte < 128 {
        classes[byte as usize] = match byte {
            b'a'..=b'z' | b'A'..=b'Z' => CharKind::Letter,
            b'0'..=b'9' => CharKind::Number,
            b'\t'..=b'\r' | b' ' => CharKind::Space,
            _ => CharKind::Other,
        };
        byte += 1;
    }
    classes
};

fn class(c: char) -> CharKind {
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

/// Cuts a text into pieces of about `len` bytes such that the words of the pieces are the words of the text: between a
/// character that is not white space and a white-space character, which no word spans.
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

/// The first place from `len` on where a text may be cut; its end if there is none.
fn cut(text: &str, len: usize) -> usize {
    let bytes = text.as_bytes();
    // ASCII alone is looked at: every byte below 128 is a character.
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
    fn words_are_those_of_the_pattern() {
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
        // Spaces of other scripts do not join the word.
        check("a\u{a0}b\u{3000}\u{3000}c", &["a", "\u{a0}", "b", "\u{3000}", "\u{3000}", "c"]);
    }

    #[test]
    fn every_script_has_letters_numbers_and_others() {
        check("été Straße", &["été", " Straße"]);
        check("日本語。3つ", &["日本語", "。", "3", "つ"]);
        check("٣٤ Ⅻ ½", &["٣٤", " Ⅻ", " ½"]);
        // Of every kind of letter and of number in a row.
        check("aAǅʰª日1٣Ⅻ½", &["aAǅʰª日", "1٣Ⅻ½"]);
        // A combining mark is no letter.
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
