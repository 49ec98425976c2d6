//! The text that a model is trained on: the embedded tiny Shakespeare, or a file of the user's.
//!
//! ```
//! use folio::text::Corpus;
//! let corpus = Corpus::embedded();
//! assert_eq!(corpus.text.len(), 1_115_394);
//! assert!(corpus.sha256.starts_with("86c4e6aa"));
//! ```

use std::borrow::Cow;
use std::fs;
use std::io::ErrorKind;
use std::ops::AddAssign;
use std::path::Path;
use std::str::Utf8Error;

use crate::error::{Error, Result};
use crate::files::digest;

/// The size of some text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextSize {
    /// Characters. Of text that begins or ends inside one, those that begin in it.
    pub characters: u64,
    /// Bytes of UTF-8.
    pub bytes: u64,
}

impl TextSize {
    /// The size of bytes of UTF-8, which may begin or end inside a character.
    ///
    /// ```
    /// # use folio::text::TextSize;
    /// assert_eq!(TextSize::of("été".as_bytes()), TextSize { characters: 3, bytes: 5 });
    /// ```
    pub fn of(bytes: &[u8]) -> Self {
        // A character's first byte is the one that is not a continuation.
        let characters = bytes.iter().filter(|&&byte| byte & 0xC0 != 0x80).count() as u64;
        Self { characters, bytes: bytes.len() as u64 }
    }
}

impl AddAssign for TextSize {
    fn add_assign(&mut self, other: Self) {
        self.characters += other.characters;
        self.bytes += other.bytes;
    }
}

/// Makes text of bytes that come in pieces, in the midst of characters too.
///
/// ```
/// # use folio::text::TextStream;
/// let mut stream = TextStream::default();
/// let (girl, end) = "👧!".as_bytes().split_at(2);
/// assert_eq!(stream.push(girl), "");
/// assert_eq!(stream.push(end), "👧!");
/// assert_eq!(stream.push(b"\xff\xc3"), "\u{fffd}");
/// assert_eq!(stream.finish(), "\u{fffd}");
/// ```
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    /// The beginning of a character whose end has not come yet.
    begun: Vec<u8>,
}

impl TextStream {
    /// All whole characters up to the end of `bytes`. What cannot become one is U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        let mut text = String::new();
        self.push_to(bytes, &mut text);
        text
    }

    /// [`TextStream::push`] that appends to a text.
    pub fn push_to(&mut self, bytes: &[u8], text: &mut String) {
        self.begun.extend_from_slice(bytes);
        let mut begun = 0;
        let mut chunks = self.begun.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let broken = chunk.invalid();
            // The last character may still be completed if nothing in it is wrong so far; what others follow may not.
            let may_go_on = std::str::from_utf8(broken).is_err_and(|error| error.error_len().is_none());
            if may_go_on && chunks.peek().is_none() {
                begun = broken.len();
            } else if !broken.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.begun.drain(..self.begun.len() - begun);
    }

    /// What is left: U+FFFD if a character has begun and not ended.
    pub fn finish(self) -> &'static str {
        if self.begun.is_empty() { "" } else { "\u{fffd}" }
    }
}

/// How much text a token stands for, on average: what makes losses of different tokenizers comparable.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TextPerToken {
    characters: f64,
    bytes: f64,
}

impl TextPerToken {
    /// Of so many tokens that stand for text of this size.
    pub fn new(size: TextSize, tokens: u64) -> Self {
        Self { characters: size.characters as f64 / tokens as f64, bytes: size.bytes as f64 / tokens as f64 }
    }

    /// A loss in nats a token as bits a character and a byte.
    pub fn bits(self, loss: f64) -> Bits {
        let bits = loss / std::f64::consts::LN_2;
        Bits { per_character: bits / self.characters, per_byte: bits / self.bytes }
    }
}

/// A loss on a scale that does not depend on the tokenizer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bits {
    /// Bits a character.
    pub per_character: f64,
    /// Bits a byte of UTF-8.
    pub per_byte: f64,
}

/// The name of the embedded text.
pub const EMBEDDED_NAME: &str = "tiny-shakespeare";

/// A text, with what a report says of where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corpus {
    /// [`EMBEDDED_NAME`], or the name of the file without its folders.
    pub name: String,
    /// The text itself, line endings as they were. Never empty.
    pub text: Cow<'static, str>,
    /// The sha256 of `text` in lower-case hexadecimal.
    pub sha256: String,
}

impl Corpus {
    /// Tiny Shakespeare, which is part of the program.
    pub fn embedded() -> Self {
        Self {
            name: EMBEDDED_NAME.to_owned(),
            text: Cow::Borrowed(tiny_shakespeare::TEXT),
            sha256: tiny_shakespeare::SHA256.to_owned(),
        }
    }

    /// Reads a UTF-8 text. A byte-order mark at its start is dropped, every other byte is kept.
    ///
    /// # Errors
    /// [`Error::Corpus`] if there is no file at `path`, if it is a directory, if it is empty, or if it is not
    /// UTF-8; [`Error::File`] if the system refuses to read it.
    pub fn from_file(path: &Path) -> Result<Self> {
        Self::from_bytes(path, read(path)?)
    }

    /// The text in these bytes, of which `path` says where they are from; as [`Corpus::from_file`].
    ///
    /// # Errors
    /// [`Error::Corpus`] if they are none or not UTF-8.
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self> {
        let mut text = utf8(path, bytes)?;
        if text.starts_with('\u{feff}') {
            text.drain(..'\u{feff}'.len_utf8());
        }
        if text.is_empty() {
            return Err(unusable(path, "it is empty; give a file with some text in it"));
        }
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let sha256 = digest(text.as_bytes());
        Ok(Self { name, text: Cow::Owned(text), sha256 })
    }
}

/// Bytes as text, every one kept; `path` says where they are from.
///
/// # Errors
/// [`Error::Corpus`] if they are not UTF-8.
pub fn utf8(path: &Path, bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes)
        .map_err(|error| unusable(path, not_utf8(path, error.as_bytes(), error.utf8_error())))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|source| match source.kind() {
        ErrorKind::NotFound => unusable(path, "it does not exist; check the spelling of its path"),
        ErrorKind::IsADirectory => unusable(path, "it is a directory; give the path of a text file"),
        _ => Error::file("read", path)(source),
    })
}

fn unusable(path: &Path, reason: impl Into<String>) -> Error {
    Error::Corpus { path: path.display().to_string(), reason: reason.into() }
}

/// Says where `bytes` stop being UTF-8, and which command makes them so.
fn not_utf8(path: &Path, bytes: &[u8], error: Utf8Error) -> String {
    let offset = error.valid_up_to();
    let advice = match error.error_len() {
        Some(_) => "convert it",
        None => "its last character is incomplete, so fetch it again if it was cut off, or convert it",
    };
    // A UTF-16 file opens with a byte-order mark, of which no byte is ever valid in UTF-8.
    let encoding = match bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "UTF-16",
        _ => "WINDOWS-1252",
    };
    let (byte, path) = (bytes[offset], path.display());
    format!(
        "it is not UTF-8 at byte offset {offset} (0x{byte:02x}); {advice}, for example with \
         iconv -f {encoding} -t UTF-8 '{path}' > '{path}.utf8'"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_in_pieces_become_the_text_of_the_whole() {
        let mixed =
            [b"a\xc3", "été 日本 👧".as_bytes(), b"\xf0\x9f\x91", b"x\xe6\x97", b"\xff\x80", b"\xd0\xcd{8"]
                .concat();
        for len in 1..=mixed.len() {
            let mut stream = TextStream::default();
            let pieces: String = mixed.chunks(len).map(|piece| stream.push(piece)).collect();
            assert_eq!(pieces + stream.finish(), String::from_utf8_lossy(&mixed), "pieces of {len}");
        }
    }

    /// The corpus made from a file of these bytes.
    fn corpus(bytes: &[u8]) -> Result<Corpus> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plays.txt");
        fs::write(&path, bytes).unwrap();
        Corpus::from_file(&path)
    }

    #[track_caller]
    fn check_refused(bytes: &[u8], expected: &[&str]) {
        let message = corpus(bytes).unwrap_err().to_string();
        for part in expected {
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
        assert!(message.contains("plays.txt") && !message.contains('\n'), "{message:?}");
    }

    #[test]
    fn embedded_text_equals_the_same_text_in_a_file() {
        let mut from_file = corpus(tiny_shakespeare::TEXT.as_bytes()).unwrap();
        assert_eq!(from_file.name, "plays.txt");
        from_file.name = "tiny-shakespeare".to_owned();
        assert_eq!(from_file, Corpus::embedded());
    }

    #[test]
    fn line_endings_and_inner_marks_are_kept() {
        let text = "Exit.\r\n\tÉxit\u{feff}\r\n\n";
        assert_eq!(corpus(text.as_bytes()).unwrap().text, text);
    }

    #[test]
    fn leading_byte_order_mark_is_dropped() {
        let marked = corpus("\u{feff}\u{feff}Exit.".as_bytes()).unwrap();
        assert_eq!(marked.text, "\u{feff}Exit.");
        assert_eq!(corpus("\u{feff}Exit.".as_bytes()).unwrap(), corpus(b"Exit.").unwrap());
    }

    #[test]
    fn unusable_texts_are_refused() {
        check_refused(b"", &["it is empty"]);
        check_refused("\u{feff}".as_bytes(), &["is empty"]);
        check_refused(
            b"caf\xe9 noir",
            &["offset 3 (0xe9); convert it, for", "iconv -f WINDOWS-1252 -t UTF-8 '"],
        );
        check_refused(b"\xff\xfeE\0x\0", &["offset 0 (0xff)", "iconv -f UTF-16 -t UTF-8 '"]);
        check_refused(b"caf\xc3", &["offset 3 (0xc3)", "cut off", "iconv"]);
    }

    #[test]
    fn missing_file_and_directory_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = Corpus::from_file(&dir.path().join("none.txt")).unwrap_err().to_string();
        assert!(missing.contains("none.txt: it does not exist"), "{missing:?}");
        let directory = Corpus::from_file(dir.path()).unwrap_err().to_string();
        assert!(directory.ends_with(": it is a directory; give the path of a text file"), "{directory:?}");
    }
}
