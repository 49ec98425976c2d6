//! The text that a model is trained on: the embedded tiny Shakespeare, or the user's files.
//!
//! ```
//! use folio::text::Corpus;
//! let corpus = Corpus::embedded();
//! assert_eq!(corpus.text.len(), 1_115_394);
//! assert!(corpus.sha256.starts_with("86c4e6aa"));
//! ```

use std::borrow::Cow;
use std::ops::AddAssign;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::digest;

mod plain;
mod sources;

use plain::{LineEndings, Plain, plain};
pub use sources::{STDIN, TextFiles, shell_quoted};

/// The size of some text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextSize {
    /// Characters that begin in the text.
    pub characters: u64,
    /// Bytes of UTF-8.
    pub bytes: u64,
}

impl TextSize {
    /// The size of UTF-8 text, which may begin or end inside a character.
    ///
    /// ```
    /// # use folio::text::TextSize;
    /// assert_eq!(TextSize::of("été".as_bytes()), TextSize { characters: 3, bytes: 5 });
    /// ```
    pub fn of(bytes: &[u8]) -> Self {
        // Every byte that is not a continuation byte begins a character.
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

/// Decodes UTF-8 that arrives in pieces, which may end inside characters.
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
    /// The beginning of an incomplete character.
    begun: Vec<u8>,
}

impl TextStream {
    /// Decodes all complete characters up to the end of `bytes`. Invalid bytes become U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        let mut text = String::new();
        self.push_to(bytes, &mut text);
        text
    }

    /// As [`TextStream::push`], but appends to `text`.
    pub fn push_to(&mut self, bytes: &[u8], text: &mut String) {
        self.begun.extend_from_slice(bytes);
        let mut begun = 0;
        let mut chunks = self.begun.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let broken = chunk.invalid();
            // Only the last character can still be completed, if it is valid so far.
            let is_incomplete = std::str::from_utf8(broken).is_err_and(|error| error.error_len().is_none());
            if is_incomplete && chunks.peek().is_none() {
                begun = broken.len();
            } else if !broken.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.begun.drain(..self.begun.len() - begun);
    }

    /// The rest: U+FFFD if the last character is incomplete.
    pub fn finish(self) -> &'static str {
        if self.begun.is_empty() { "" } else { "\u{fffd}" }
    }
}

/// The mean amount of text per token, which makes the losses of different tokenizers comparable.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextPerToken {
    characters: f64,
    bytes: f64,
}

impl TextPerToken {
    /// The mean for a text of this size and number of tokens.
    pub fn new(size: TextSize, tokens: u64) -> Self {
        Self { characters: size.characters as f64 / tokens as f64, bytes: size.bytes as f64 / tokens as f64 }
    }

    /// Converts a loss in nats per token to bits per character and per byte.
    pub fn bits(self, loss: f64) -> Bits {
        let bits = loss / std::f64::consts::LN_2;
        Bits { per_character: bits / self.characters, per_byte: bits / self.bytes }
    }
}

/// A loss in units that do not depend on the tokenizer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bits {
    /// Bits per character.
    pub per_character: f64,
    /// Bits per byte of UTF-8.
    pub per_byte: f64,
}

/// The name of the embedded text.
pub const EMBEDDED_NAME: &str = "tiny-shakespeare";

/// A text, its documents and its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corpus {
    /// [`EMBEDDED_NAME`], the name of the file without its folders, or the number of files.
    pub name: String,
    /// The concatenated documents, with LF line endings. Never empty.
    pub text: Cow<'static, str>,
    /// The documents of the text; at least one.
    pub documents: Vec<Document>,
    /// For one document, the SHA-256 of its text in lower-case hexadecimal. For several, the SHA-256 of the list of their
    /// hashes, one per line.
    pub sha256: String,
    /// The number of line endings (CRLF and lone CR) that were converted to LF.
    pub converted_endings: usize,
}

/// A document: the content of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The file: an absolute path, [`STDIN`] or [`EMBEDDED_NAME`].
    pub file: String,
    /// The byte offset of its end in the text of the corpus.
    pub end: usize,
    /// The SHA-256 of its text.
    pub sha256: String,
}

impl Corpus {
    /// Tiny Shakespeare, which is embedded in the library.
    pub fn embedded() -> Self {
        Self::of_one(
            EMBEDDED_NAME.to_owned(),
            EMBEDDED_NAME.to_owned(),
            Cow::Borrowed(tiny_shakespeare::TEXT),
            tiny_shakespeare::SHA256.to_owned(),
        )
    }

    /// Reads UTF-8 text, optionally compressed with gzip. Removes a byte-order mark at the start, and converts CRLF and lone
    /// CR to LF, as Python's text mode does.
    ///
    /// # Errors
    /// [`Error::Corpus`] if the file does not exist, is a directory, is empty, or is not
    /// UTF-8; [`Error::File`] if the system refuses to read it.
    pub fn from_file(path: &Path) -> Result<Self> {
        Self::from_bytes(path, sources::read(path)?)
    }

    /// As [`Corpus::from_file`], for the content of a file. `path` is its name.
    ///
    /// # Errors
    /// [`Error::Corpus`] if the content is empty or not UTF-8.
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self> {
        let plain = plain(path, bytes, LineEndings::Lf)?;
        Self::of_documents(vec![(path.to_path_buf(), plain)])
    }

    /// Reads several files: paths, [`STDIN`], patterns such as `plays/*.txt`, and directories, which stand for the `.txt` and
    /// `.gz` files in them. Each file is read like [`Corpus::from_file`] and becomes a document. A newline is added between
    /// documents where it is missing. Empty files are skipped.
    ///
    /// # Errors
    /// As [`Corpus::from_file`], and if there is no file or a file is given twice.
    pub fn read(given: &[PathBuf]) -> Result<Self> {
        let files = sources::expand(given)?;
        let read = |path: PathBuf| {
            let plain = plain(&path, sources::read(&path)?, LineEndings::Lf)?;
            Ok((path, plain))
        };
        Self::of_documents(files.into_iter().map(read).collect::<Result<_>>()?)
    }

    /// Reads the text of an earlier run, given its hash.
    ///
    /// # Errors
    /// As [`Corpus::read`].
    pub fn read_known(given: &[PathBuf], sha256: &str) -> Result<Self> {
        let corpus = Self::read(given)?;
        if corpus.sha256 == sha256 || corpus.converted_endings == 0 || given.iter().any(|path| is_stdin(path))
        {
            return Ok(corpus);
        }
        // Older versions did not convert line endings.
        let read = |path: PathBuf| {
            let plain = plain(&path, sources::read(&path)?, LineEndings::Kept)?;
            Ok((path, plain))
        };
        let files = sources::expand(given)?;
        let kept = Self::of_documents(files.into_iter().map(read).collect::<Result<_>>()?)?;
        Ok(if kept.sha256 == sha256 { kept } else { corpus })
    }

    fn of_documents(mut plains: Vec<(PathBuf, Plain)>) -> Result<Self> {
        let Some((first, _)) = plains.first() else {
            return Err(Error::setting("data", "no file is given: give at least one"));
        };
        let (first, count) = (first.clone(), plains.len());
        let converted_endings = plains.iter().map(|(_, plain)| plain.converted_endings).sum();
        plains.retain(|(_, plain)| !plain.text.is_empty());
        let file = |path: &Path| match std::path::absolute(path) {
            Ok(absolute) if !is_stdin(path) => absolute.display().to_string(),
            _ => path.display().to_string(),
        };
        if let [(path, plain)] = &mut plains[..] {
            let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
            let name = if is_stdin(path) { "stdin".to_owned() } else { name };
            let text = std::mem::take(&mut plain.text);
            let sha256 = digest(text.as_bytes());
            return Ok(Self {
                converted_endings,
                ..Self::of_one(name, file(path), Cow::Owned(text), sha256)
            });
        }
        let last = plains.len().saturating_sub(1);
        let (mut text, mut documents) = (String::new(), Vec::new());
        for (index, (path, plain)) in plains.into_iter().enumerate() {
            let start = text.len();
            text.push_str(&plain.text);
            if index < last && !text.ends_with('\n') {
                text.push('\n');
            }
            let sha256 = digest(&text.as_bytes()[start..]);
            documents.push(Document { file: file(&path), end: text.len(), sha256 });
        }
        if documents.is_empty() {
            let reason = if count == 1 { "it is empty" } else { "it and the other files are empty" };
            return Err(unusable(&first, format!("{reason}; give a file with text in it")));
        }
        let hashes: String = documents.iter().map(|document| format!("{}\n", document.sha256)).collect();
        let sha256 = digest(hashes.as_bytes());
        let name = format!("{} files", documents.len());
        Ok(Self { name, text: Cow::Owned(text), documents, sha256, converted_endings })
    }

    fn of_one(name: String, file: String, text: Cow<'static, str>, sha256: String) -> Self {
        let documents = vec![Document { file, end: text.len(), sha256: sha256.clone() }];
        Self { name, text, documents, sha256, converted_endings: 0 }
    }

    /// The files, in the form of the setting `data`.
    pub fn files(&self) -> TextFiles {
        TextFiles::new(self.documents.iter().map(|document| document.file.clone()).collect())
    }

    /// Checks that this evaluation text and the training text share no document: none of one contains or is part of a
    /// document of the other.
    ///
    /// # Errors
    /// [`Error::Corpus`] if they do.
    pub fn check_apart_from(&self, training: &Corpus) -> Result<()> {
        let mut texts = self.documents_with_text();
        let Some((document, _)) = texts.find(|(_, text)| training.shares(text)) else { return Ok(()) };
        let reason = "it has text in common with the training text, so it cannot be used for evaluation; give another file";
        Err(unusable(Path::new(&document.file), reason))
    }

    /// Whether a document of one text contains a document of the other, ignoring white space at their ends.
    pub fn shares_text_with(&self, other: &Corpus) -> bool {
        self.documents_with_text().any(|(_, text)| other.shares(text))
    }

    /// Whether a document contains `text` or is contained in it.
    fn shares(&self, text: &str) -> bool {
        self.documents_with_text().any(|(_, own)| own.contains(text) || text.contains(own))
    }

    /// The documents with their trimmed text, without those that are only white space.
    fn documents_with_text(&self) -> impl Iterator<Item = (&Document, &str)> {
        let starts = std::iter::once(0).chain(self.documents.iter().map(|document| document.end));
        let texts = self.documents.iter().zip(starts);
        let texts = texts.map(|(document, start)| (document, self.text[start..document.end].trim()));
        texts.filter(|(_, text)| !text.is_empty())
    }
}

/// Decodes UTF-8 without any changes. `path` is for error messages.
///
/// # Errors
/// [`Error::Corpus`] if they are not UTF-8.
pub fn utf8(path: &Path, bytes: Vec<u8>) -> Result<String> {
    plain::utf8(path, bytes)
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == STDIN
}

fn unusable(path: &Path, reason: impl Into<String>) -> Error {
    let path = if is_stdin(path) { "on stdin".to_owned() } else { path.display().to_string() };
    Error::Corpus { path, reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn pieces_decode_like_the_whole() {
        let mixed =
            [b"a\xc3", "été 日本 👧".as_bytes(), b"\xf0\x9f\x91", b"x\xe6\x97", b"\xff\x80", b"\xd0\xcd{8"]
                .concat();
        for len in 1..=mixed.len() {
            let mut stream = TextStream::default();
            let pieces: String = mixed.chunks(len).map(|piece| stream.push(piece)).collect();
            assert_eq!(pieces + stream.finish(), String::from_utf8_lossy(&mixed), "pieces of {len}");
        }
    }

    /// The corpus of a file with this content.
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
        assert!(from_file.documents[0].file.ends_with("plays.txt"));
        from_file.name = "tiny-shakespeare".to_owned();
        from_file.documents[0].file = "tiny-shakespeare".to_owned();
        assert_eq!(from_file, Corpus::embedded());
    }

    #[test]
    fn leading_byte_order_mark_is_dropped() {
        let marked = corpus("\u{feff}\u{feff}Exit.".as_bytes()).unwrap();
        assert_eq!(marked.text, "\u{feff}Exit.");
        let (marked, plain) = (corpus("\u{feff}Exit.".as_bytes()).unwrap(), corpus(b"Exit.").unwrap());
        assert_eq!((marked.text, marked.sha256), (plain.text, plain.sha256));
    }

    #[test]
    fn empty_texts_are_refused() {
        check_refused(b"", &["it is empty"]);
        check_refused("\u{feff}".as_bytes(), &["is empty"]);
    }

    #[test]
    fn missing_file_and_directory_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = Corpus::from_file(&dir.path().join("none.txt")).unwrap_err().to_string();
        assert!(missing.contains("none.txt: it does not exist"), "{missing:?}");
        let directory = Corpus::from_file(dir.path()).unwrap_err().to_string();
        assert!(directory.ends_with(": it is a directory; give the path of a text file"), "{directory:?}");
    }

    /// The corpus of files with these contents.
    fn files(dir: &Path, contents: &[&str]) -> Result<Corpus> {
        let write = |(index, content): (usize, &&str)| {
            let path = dir.join(format!("{index}.txt"));
            fs::write(&path, content).unwrap();
            path
        };
        Corpus::read(&contents.iter().enumerate().map(write).collect::<Vec<_>>())
    }

    #[test]
    fn several_files_become_documents() {
        let dir = tempfile::tempdir().unwrap();
        let corpus = files(dir.path(), &["one", "", "two\r\n", "three"]).unwrap();
        assert_eq!((&*corpus.text, corpus.name.as_str()), ("one\ntwo\nthree", "3 files"));
        assert_eq!(corpus.documents.iter().map(|document| document.end).collect::<Vec<_>>(), [4, 8, 13]);
        assert_eq!(corpus.converted_endings, 1);
        assert!(corpus.files().names()[2].ends_with("3.txt"), "{}", corpus.files());
        // The hash depends on the order and on the ends of documents.
        let other = |contents: &[&str]| files(dir.path(), contents).unwrap().sha256;
        assert_eq!(other(&["one\n", "two\n", "three"]), corpus.sha256);
        assert_ne!(other(&["two\n", "one\n", "three"]), corpus.sha256);
        assert_ne!(other(&["one\ntwo\n", "three"]), corpus.sha256);
        // Empty files are skipped. A single remaining file has the plain hash of its text.
        assert_eq!(other(&["", "one"]), digest(b"one"));
        let message = files(dir.path(), &["", "\u{feff}"]).unwrap_err().to_string();
        assert!(message.contains("0.txt: it and the other files are empty"), "{message}");
    }

    #[test]
    fn old_hashes_with_kept_line_endings_are_recognized() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("old.txt");
        fs::write(&path, "a\r\nb").unwrap();
        let read = |sha256: &str| Corpus::read_known(std::slice::from_ref(&path), sha256).unwrap();
        assert_eq!(read(&digest(b"a\r\nb")).text, "a\r\nb");
        assert_eq!(read(&digest(b"a\nb")).text, "a\nb");
        assert_eq!(read("another").text, "a\nb");
    }

    #[test]
    fn evaluation_text_that_is_training_text_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let training = files(dir.path(), &["one\n", "two\nthree\n"]).unwrap();
        // The same text, a part of it, and a text that contains it, with various white space at the ends.
        for content in ["one\n", "three\n\n", "  two", "zero\none\ntwo\nthree\nfour"] {
            let message =
                corpus(content.as_bytes()).unwrap().check_apart_from(&training).unwrap_err().to_string();
            assert!(message.contains("plays.txt") && message.contains("in common"), "{message}");
        }
        // One of several documents is shared.
        let several = files(dir.path(), &["five", "two\nthree"]).unwrap();
        assert!(several.check_apart_from(&training).is_err());
        // White space alone is not shared text.
        files(dir.path(), &["five", " \n"]).unwrap().check_apart_from(&training).unwrap();
        corpus(b"four").unwrap().check_apart_from(&training).unwrap();
    }
}
