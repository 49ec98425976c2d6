//! The text that a model is trained on: the embedded tiny Shakespeare, or files of the user's.
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

use crate::error::{Error, Result};
use crate::files::digest;

mod plain;
mod sources;

use plain::{LineEndings, Plain, plain};
pub use sources::{STDIN, TextFiles, shell_quoted};

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
    /// [`EMBEDDED_NAME`], the name of the file without its folders, or the number of files.
    pub name: String,
    /// The documents one after the other, lines ending in LF. Never empty.
    pub text: Cow<'static, str>,
    /// What the text is made of; one at least.
    pub documents: Vec<Document>,
    /// Of one document the sha256 of its text in lower-case hexadecimal; of several, that of theirs, one a line.
    pub sha256: String,
    /// Line endings (CRLF and lone CR) that became LF.
    pub converted_endings: usize,
}

/// A document: what one file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The file: an absolute path, [`STDIN`] or [`EMBEDDED_NAME`].
    pub file: String,
    /// Where it ends in the text of its corpus, in bytes.
    pub end: usize,
    /// The sha256 of its text.
    pub sha256: String,
}

impl Corpus {
    /// Tiny Shakespeare, which is part of the program.
    pub fn embedded() -> Self {
        Self::of_one(
            EMBEDDED_NAME.to_owned(),
            EMBEDDED_NAME.to_owned(),
            Cow::Borrowed(tiny_shakespeare::TEXT),
            tiny_shakespeare::SHA256.to_owned(),
        )
    }

    /// Reads a UTF-8 text, packed with gzip or not. A byte-order mark at its start is dropped; CRLF and a lone CR become LF,
    /// as in Python's text mode; every other byte is kept.
    ///
    /// # Errors
    /// [`Error::Corpus`] if there is no file at `path`, if it is a directory, if it is empty, or if it is not
    /// UTF-8; [`Error::File`] if the system refuses to read it.
    pub fn from_file(path: &Path) -> Result<Self> {
        Self::from_bytes(path, sources::read(path)?)
    }

    /// The text in these bytes, of which `path` says where they are from; as [`Corpus::from_file`].
    ///
    /// # Errors
    /// [`Error::Corpus`] if they are none or not UTF-8.
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self> {
        let plain = plain(path, bytes, LineEndings::Lf)?;
        Self::of_documents(vec![(path.to_path_buf(), plain)])
    }

    /// Reads the files that are meant by `given`: paths, [`STDIN`], patterns such as `plays/*.txt`, and directories, which
    /// stand for the files in them that end in `.txt` or `.gz`. Each is read as by [`Corpus::from_file`] and is a
    /// document; one that does not end a line is followed by LF, and an empty one is left out.
    ///
    /// # Errors
    /// As [`Corpus::from_file`], and if there is no file, or one is given twice.
    pub fn read(given: &[PathBuf]) -> Result<Self> {
        let files = sources::expand(given)?;
        let read = |path: PathBuf| {
            let plain = plain(&path, sources::read(&path)?, LineEndings::Lf)?;
            Ok((path, plain))
        };
        Self::of_documents(files.into_iter().map(read).collect::<Result<_>>()?)
    }

    /// Reads a text again that is known by its hash.
    ///
    /// # Errors
    /// As [`Corpus::read`].
    pub fn read_known(given: &[PathBuf], sha256: &str) -> Result<Self> {
        let corpus = Self::read(given)?;
        if corpus.sha256 == sha256 || corpus.converted_endings == 0 || given.iter().any(|path| is_stdin(path))
        {
            return Ok(corpus);
        }
        // It may be of a run that was begun when line endings were kept.
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
            return Err(Error::setting("data", "no file is given: give one at least"));
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
            return Err(unusable(&first, format!("{reason}; give a file with some text in it")));
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

    /// The files, as settings name them.
    pub fn files(&self) -> TextFiles {
        TextFiles::new(self.documents.iter().map(|document| document.file.clone()).collect())
    }

    /// Checks that this text, which a model is to be evaluated on, has no document in common with its training text and
    /// is no part of it.
    ///
    /// # Errors
    /// [`Error::Corpus`].
    pub fn check_apart_from(&self, training: &Corpus) -> Result<()> {
        let mut texts = self.documents_with_text();
        let Some((document, _)) = texts.find(|(_, text)| training.shares(text)) else { return Ok(()) };
        let reason =
            "it has text in common with the training text, and must not be evaluated on; give another";
        Err(unusable(Path::new(&document.file), reason))
    }

    /// Whether a document of one of two texts contains a document of the other. White space at their ends does not count.
    pub fn shares_text_with(&self, other: &Corpus) -> bool {
        self.documents_with_text().any(|(_, text)| other.shares(text))
    }

    /// Whether a document contains `text`, or is contained in it.
    fn shares(&self, text: &str) -> bool {
        self.documents_with_text().any(|(_, own)| own.contains(text) || text.contains(own))
    }

    /// The documents that are more than white space, with their text, trimmed.
    fn documents_with_text(&self) -> impl Iterator<Item = (&Document, &str)> {
        let starts = std::iter::once(0).chain(self.documents.iter().map(|document| document.end));
        let texts = self.documents.iter().zip(starts);
        let texts = texts.map(|(document, start)| (document, self.text[start..document.end].trim()));
        texts.filter(|(_, text)| !text.is_empty())
    }
}

/// Bytes as text, every one kept; `path` says where they are from.
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

    /// The corpus of files with these contents, in this order.
    fn files(dir: &Path, contents: &[&str]) -> Result<Corpus> {
        let write = |(index, content): (usize, &&str)| {
            let path = dir.join(format!("{index}.txt"));
            fs::write(&path, content).unwrap();
            path
        };
        Corpus::read(&contents.iter().enumerate().map(write).collect::<Vec<_>>())
    }

    #[test]
    fn several_files_are_documents_that_end_their_lines() {
        let dir = tempfile::tempdir().unwrap();
        let corpus = files(dir.path(), &["one", "", "two\r\n", "three"]).unwrap();
        assert_eq!((&*corpus.text, corpus.name.as_str()), ("one\ntwo\nthree", "3 files"));
        assert_eq!(corpus.documents.iter().map(|document| document.end).collect::<Vec<_>>(), [4, 8, 13]);
        assert_eq!(corpus.converted_endings, 1);
        assert!(corpus.files().names()[2].ends_with("3.txt"), "{}", corpus.files());
        // The order counts, and where documents end.
        let other = |contents: &[&str]| files(dir.path(), contents).unwrap().sha256;
        assert_eq!(other(&["one\n", "two\n", "three"]), corpus.sha256);
        assert_ne!(other(&["two\n", "one\n", "three"]), corpus.sha256);
        assert_ne!(other(&["one\ntwo\n", "three"]), corpus.sha256);
        // Files that are empty make no documents, and one that is left is a text like any.
        assert_eq!(other(&["", "one"]), digest(b"one"));
        let message = files(dir.path(), &["", "\u{feff}"]).unwrap_err().to_string();
        assert!(message.contains("0.txt: it and the other files are empty"), "{message}");
    }

    #[test]
    fn a_text_of_a_run_that_kept_line_endings_is_known_again() {
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
        // The same, a part of it, and all of it with more, whatever white space is at the ends.
        for content in ["one\n", "three\n\n", "  two", "zero\none\ntwo\nthree\nfour"] {
            let message =
                corpus(content.as_bytes()).unwrap().check_apart_from(&training).unwrap_err().to_string();
            assert!(message.contains("plays.txt") && message.contains("in common"), "{message}");
        }
        // One of several, although together they are no part of the training text.
        let several = files(dir.path(), &["five", "two\nthree"]).unwrap();
        assert!(several.check_apart_from(&training).is_err());
        // White space is in every text.
        files(dir.path(), &["five", " \n"]).unwrap().check_apart_from(&training).unwrap();
        corpus(b"four").unwrap().check_apart_from(&training).unwrap();
    }
}
