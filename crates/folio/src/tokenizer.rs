//! Text to token ids and back: one token a character, or GPT-2's byte-level BPE.
//!
//! ```
//! use folio::tokenizer::{Tokenizer, TokenizerKind};
//! let chrs = Tokenizer::for_text(TokenizerKind::Chrs, "to be or not to be");
//! assert_eq!(chrs.vocab_size(), 7);
//! assert_eq!(chrs.encode("bent")?, [1, 2, 3, 6]);
//! assert_eq!(chrs.decode(&[1, 2, 3, 6]), "bent");
//!
//! let bpe = Tokenizer::for_text(TokenizerKind::Bpe, "");
//! assert_eq!(bpe.encode("Hello world")?, [15496, 995]);
//! # Ok::<(), folio::error::Error>(())
//! ```

use std::fmt::{self, Display};
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::write_json;

mod chars;
mod gpt2;
mod json;

use chars::CharVocabulary;

/// The file of a run that holds its tokenizer.
const TOKENIZER_FILE: &str = "tokenizer.json";

/// The file of a run that lists the characters of a `chrs` tokenizer.
const CHARACTERS_FILE: &str = "vocab.json";

/// Which tokenizer to make for a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenizerKind {
    /// One token a character; the vocabulary is the sorted distinct characters of the text.
    Chrs,
    /// GPT-2's byte-level BPE with its 50,257 tokens, whatever the text.
    Bpe,
}

impl TokenizerKind {
    /// Every kind, in the order in which messages list them.
    pub const ALL: [Self; 2] = [Self::Chrs, Self::Bpe];

    /// The name that users write.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chrs => "chrs",
            Self::Bpe => "bpe",
        }
    }
}

impl Display for TokenizerKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl FromStr for TokenizerKind {
    type Err = Error;

    fn from_str(given: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|kind| kind.name() == given);
        known.ok_or_else(|| Error::unknown_name("tokenizer", given, &Self::ALL.map(Self::name)))
    }
}

/// Turns text into token ids, which count from 0 to `vocab_size() - 1`, and back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokenizer {
    model: Model,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Model {
    Chars(CharVocabulary),
    Gpt2,
}

impl Tokenizer {
    /// The tokenizer of this kind for a text. Only [`TokenizerKind::Chrs`] looks at the text.
    pub fn for_text(kind: TokenizerKind, text: &str) -> Self {
        let model = match kind {
            TokenizerKind::Chrs => Model::Chars(CharVocabulary::of_text(text)),
            TokenizerKind::Bpe => Model::Gpt2,
        };
        Self { model }
    }

    /// The tokenizer that [`Tokenizer::save`] wrote to the folder of a run.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the folder has no `tokenizer.json`, or one that is broken or of a sort that
    /// this program does not run; [`Error::File`] if the system refuses to read it.
    pub fn load(run_dir: &Path) -> Result<Self> {
        Ok(Self { model: json::read(&run_dir.join(TOKENIZER_FILE))? })
    }

    /// Writes `tokenizer.json` in Hugging Face's format to the folder of a run and, for characters, `vocab.json`:
    /// the list of the characters in the order of their ids.
    ///
    /// # Errors
    /// [`Error::File`] if a file cannot be written.
    pub fn save(&self, run_dir: &Path) -> Result<()> {
        if let Model::Chars(vocabulary) = &self.model {
            write_json(&run_dir.join(CHARACTERS_FILE), &vocabulary.chars())?;
        }
        write_json(&run_dir.join(TOKENIZER_FILE), &json::of(&self.model))
    }

    /// Which kind this is.
    pub fn kind(&self) -> TokenizerKind {
        match self.model {
            Model::Chars(_) => TokenizerKind::Chrs,
            Model::Gpt2 => TokenizerKind::Bpe,
        }
    }

    /// The number of tokens, V.
    pub fn vocab_size(&self) -> usize {
        match &self.model {
            Model::Chars(vocabulary) => vocabulary.chars().len(),
            Model::Gpt2 => gpt2::VOCAB_SIZE,
        }
    }

    /// The ids of a text. GPT-2's special token is not looked for: `<|endoftext|>` in a text is ordinary text.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the vocabulary lacks a character of the text; BPE can encode any text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.model {
            Model::Chars(vocabulary) => vocabulary.encode(text),
            Model::Gpt2 => Ok(gpt2::encode(text)),
        }
    }

    /// The text that these ids stand for. BPE ids may begin or end inside a character: each broken part becomes
    /// U+FFFD.
    ///
    /// # Panics
    /// If an id is not below [`Tokenizer::vocab_size`].
    pub fn decode(&self, ids: &[u32]) -> String {
        match &self.model {
            Model::Chars(vocabulary) => vocabulary.decode(ids),
            Model::Gpt2 => String::from_utf8_lossy(&gpt2::decode_bytes(ids)).into_owned(),
        }
    }

    /// The bytes that these ids stand for, which for BPE need not be whole characters.
    ///
    /// # Panics
    /// If an id is not below [`Tokenizer::vocab_size`].
    pub fn decode_bytes(&self, ids: &[u32]) -> Vec<u8> {
        match &self.model {
            Model::Chars(vocabulary) => vocabulary.decode(ids).into_bytes(),
            Model::Gpt2 => gpt2::decode_bytes(ids),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const MIXED_TEXT: &str =
        "To be, or not to be:\r\n\tété 日本 👨‍👩‍👧 e\u{301} I'll  don't   1234\u{a0}x   \n\n<|endoftext|>\0";

    #[track_caller]
    fn check_saved(kind: TokenizerKind, files: &[&str]) {
        let dir = tempfile::tempdir().unwrap();
        let saved = Tokenizer::for_text(kind, MIXED_TEXT);
        saved.save(dir.path()).unwrap();
        let mut written: Vec<String> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        written.sort();
        assert_eq!(written, files);

        let loaded = Tokenizer::load(dir.path()).unwrap();
        assert_eq!(loaded, saved);
        assert_eq!((loaded.kind(), loaded.vocab_size()), (kind, saved.vocab_size()));
        let ids = loaded.encode(MIXED_TEXT).unwrap();
        assert_eq!(ids, saved.encode(MIXED_TEXT).unwrap());
        assert_eq!(loaded.decode(&ids), MIXED_TEXT);
        assert_eq!(loaded.decode_bytes(&ids), MIXED_TEXT.as_bytes());
    }

    #[test]
    fn saved_tokenizers_load_and_round_trip() {
        check_saved(TokenizerKind::Chrs, &["tokenizer.json", "vocab.json"]);
        check_saved(TokenizerKind::Bpe, &["tokenizer.json"]);
    }

    #[test]
    fn vocab_json_is_the_sorted_list_of_characters() {
        let dir = tempfile::tempdir().unwrap();
        Tokenizer::for_text(TokenizerKind::Chrs, "é\"b\na").save(dir.path()).unwrap();
        let text = fs::read_to_string(dir.path().join("vocab.json")).unwrap();
        assert_eq!(serde_json::from_str::<Vec<String>>(&text).unwrap(), ["\n", "\"", "a", "b", "é"]);
    }

    #[test]
    fn bpe_decodes_parts_of_characters() {
        let bpe = Tokenizer::for_text(TokenizerKind::Bpe, "");
        let ids = bpe.encode("e👧").unwrap();
        let (cut_ids, _) = ids.split_at(ids.len() - 1);
        assert_eq!(bpe.decode(cut_ids), "e\u{fffd}");
        assert_eq!(bpe.decode_bytes(cut_ids), &"e👧".as_bytes()[..4]);
        assert_eq!(bpe.decode(&[50_256]), "<|endoftext|>");
        assert_eq!(bpe.vocab_size(), 50_257);
    }

    #[test]
    fn names_parse_print_and_serialize_alike() {
        for kind in TokenizerKind::ALL {
            assert_eq!(kind.to_string().parse::<TokenizerKind>().unwrap(), kind);
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{kind}\""));
            assert_eq!(serde_json::from_str::<TokenizerKind>(&format!("\"{kind}\"")).unwrap(), kind);
        }
        assert_eq!(TokenizerKind::ALL.map(TokenizerKind::name), ["chrs", "bpe"]);
    }

    #[track_caller]
    fn check_unknown(given: &str, nearest: Option<&str>) {
        let error = given.parse::<TokenizerKind>().unwrap_err();
        match &error {
            Error::UnknownName { nearest: found, names, .. } => {
                assert_eq!((found.as_deref(), names.as_str()), (nearest, "chrs, bpe"));
            }
            other => panic!("{other:?}"),
        }
        assert!(error.to_string().contains(given), "{error}");
    }

    #[test]
    fn unknown_names_suggest_the_nearest() {
        check_unknown("chars", Some("chrs"));
        check_unknown("BPE", Some("bpe"));
        check_unknown("bep", Some("bpe"));
        check_unknown("sentencepiece", None);
        check_unknown("", None);
    }
}
