//! Tokenizers: one token per character, GPT-2's byte-level BPE, or a byte-level BPE trained on your text.
//!
//! ```
//! use folio::tokenizer::Tokenizer;
//! let chrs = Tokenizer::chars("to be or not to be");
//! assert_eq!(chrs.vocab_size(), 7);
//! assert_eq!(chrs.encode("bent")?, [1, 2, 3, 6]);
//! assert_eq!(chrs.decode(&[1, 2, 3, 6]), "bent");
//!
//! assert_eq!(Tokenizer::gpt2().encode("Hello world")?, [15496, 995]);
//!
//! let own = Tokenizer::train_bpe("low lower lowest slow", 259, &["<|endoftext|>"])?;
//! assert_eq!(own.encode("slow")?.len(), 2);
//! assert_eq!(own.encode_special("low<|endoftext|>low")?, [257, 258, 257]);
//! # Ok::<(), folio::error::Error>(())
//! ```

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::{digest, write_json};
use crate::text::TextSize;

mod added;
mod bpe;
mod chars;
mod config;
mod encoding;
mod extend;
mod gpt2;
mod json;
mod kind;
pub(crate) mod llama_cpp;
mod normal;
mod pattern;
mod recipe;
mod words;

use bpe::Bpe;
use chars::CharVocabulary;
use config::Borders;
pub(crate) use config::CONFIG_FILE;
pub use kind::TokenizerKind;

/// The tokenizer file of a run or a checkpoint.
pub(crate) const TOKENIZER_FILE: &str = "tokenizer.json";

/// The file with the characters of a `chrs` tokenizer.
const CHARACTERS_FILE: &str = "vocab.json";

/// The special token that separates documents in GPT-2's vocabulary.
pub const END_OF_TEXT: &str = gpt2::END_OF_TEXT.0;

/// Converts text to token ids from 0 to `vocab_size() - 1`, and back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokenizer {
    model: TokenizerModel,
    borders: Borders,
}

/// A tokenizer on its way to another process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TokenizerParts {
    json: String,
    borders: Borders,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum TokenizerModel {
    Chars(CharVocabulary),
    Bpe(Arc<Bpe>),
}

impl TokenizerModel {
    /// The id of a special token.
    fn special(&self, name: &str) -> Option<u32> {
        match self {
            Self::Chars(_) => None,
            Self::Bpe(bpe) => bpe.specials().iter().copied().find(|&id| bpe.token(id) == name.as_bytes()),
        }
    }
}

impl Tokenizer {
    /// One token per distinct character of a text, in ascending order.
    pub fn chars(text: &str) -> Self {
        Self::new(TokenizerModel::Chars(CharVocabulary::of_text(text)))
    }

    /// GPT-2's byte-level BPE. Needs the cargo feature `gpt2-vocabulary`.
    #[cfg(feature = "gpt2-vocabulary")]
    pub fn gpt2() -> Self {
        Self::new(TokenizerModel::Bpe(gpt2::gpt2()))
    }

    /// As `Tokenizer::gpt2`.
    ///
    /// # Errors
    /// [`Error::Setting`] if this build lacks the cargo feature `gpt2-vocabulary`.
    pub fn try_gpt2() -> Result<Self> {
        #[cfg(feature = "gpt2-vocabulary")]
        return Ok(Self::gpt2());
        #[cfg(not(feature = "gpt2-vocabulary"))]
        Err(Error::setting(
            "tokenizer_type",
            "GPT-2's vocabulary is not part of this build: enable folio's cargo feature gpt2-vocabulary",
        ))
    }

    fn new(model: TokenizerModel) -> Self {
        let borders = Borders::of_names(|name| model.special(name));
        Self { model, borders }
    }

    /// Trains a byte-level BPE of `vocab_size` tokens: 256 bytes in GPT-2's order, the merged tokens in the order of their
    /// merges, then the special tokens. The result does not depend on the number of threads.
    ///
    /// # Errors
    /// [`Error::Setting`] if `vocab_size` is too small for the bytes and special tokens or larger than the text allows, or
    /// if a special token is empty, given twice, or spelled like an ordinary one.
    pub fn train_bpe(text: &str, vocab_size: usize, specials: &[&str]) -> Result<Self> {
        let least = bpe::BYTES + specials.len();
        if vocab_size < least {
            let reason = match specials.len() {
                0 => format!("{vocab_size} is too small: 256 tokens are single bytes"),
                count => {
                    format!("{vocab_size} is too small: 256 tokens are single bytes, and {count} are special")
                }
            };
            return Err(Error::setting("vocab_size", format!("{reason}, so give at least {least}")));
        }
        if let Some(special) = specials.iter().enumerate().find_map(|(index, special)| {
            (special.is_empty() || specials[..index].contains(special)).then_some(special)
        }) {
            return Err(Error::setting("special", format!("{special:?} is empty or given twice")));
        }
        let trained = bpe::train::train(text, vocab_size, specials);
        let bpe = trained.map_err(|bpe::train::TooSmall { reached }| {
            let reason = format!(
                "{vocab_size} is too large for this text: with {reached} tokens every word is one token; give at most \
                 {reached}, or a longer text"
            );
            Error::setting("vocab_size", reason)
        })?;
        // Spellings in the file must be unique.
        let alphabet = gpt2::byte_alphabet();
        let ordinary = (0..bpe.vocab_size() as u32).filter(|&id| !bpe.is_special(id));
        let mut spellings = ordinary.map(|id| gpt2::spell(&alphabet, bpe.token(id)));
        if let Some(taken) = spellings.find(|spelling| specials.contains(&spelling.as_str())) {
            let reason = format!("{taken:?} is an ordinary token: give a name like \"<|{taken}|>\"");
            return Err(Error::setting("special", reason));
        }
        Ok(Self::new(TokenizerModel::Bpe(Arc::new(bpe))))
    }

    /// Reads a `tokenizer.json` in Hugging Face's format. A `tokenizer_config.json` next to it defines the tokens that begin
    /// and end a text; without one they are recognized by their names.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the file is missing, invalid, or uses a feature that is not supported;
    /// [`Error::File`] if the system refuses to read it.
    pub fn read(path: &Path) -> Result<Self> {
        let mut tokenizer = Self::new(json::read(path)?);
        let Self { model, borders } = &mut tokenizer;
        *borders = borders.read_beside(path, |name| json::id_of(model, name))?;
        Ok(tokenizer)
    }

    /// Reads a byte-level BPE as GPT-2 was published: a `vocab.json` that maps tokens to ids, and a `merges.txt` with one
    /// merge per line.
    ///
    /// # Errors
    /// As [`Tokenizer::read`].
    pub(crate) fn read_merges(vocab: &Path, merges: &Path) -> Result<Self> {
        let mut tokenizer = Self::new(json::read_merges(vocab, merges)?);
        let Self { model, borders } = &mut tokenizer;
        let path = vocab.with_file_name(TOKENIZER_FILE);
        *borders = borders.read_beside(&path, |name| json::id_of(model, name))?;
        Ok(tokenizer)
    }

    /// One token per character, in this order. The error is a character that occurs twice.
    pub(crate) fn of_characters(chars: Vec<char>) -> std::result::Result<Self, char> {
        Ok(Self::new(TokenizerModel::Chars(CharVocabulary::new(chars)?)))
    }

    /// Whether tokens are characters.
    pub(crate) fn is_characters(&self) -> bool {
        matches!(self.model, TokenizerModel::Chars(_))
    }

    /// Writes a `tokenizer.json` in Hugging Face's format.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_json(path, &json::of(&self.model))
    }

    /// Writes the `tokenizer_config.json` that transformers needs to load a `tokenizer.json`. `context` is the model's
    /// context length, if there is a model.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be written.
    pub fn write_config(&self, path: &Path, context: Option<usize>) -> Result<()> {
        write_json(path, &config::of(self, context))
    }

    /// What [`Tokenizer::of_parts`] makes the same tokenizer from.
    pub(crate) fn parts(&self) -> TokenizerParts {
        TokenizerParts { json: json::text(&self.model), borders: self.borders }
    }

    /// The tokenizer that [`Tokenizer::parts`] was called on.
    pub(crate) fn of_parts(parts: &TokenizerParts) -> Self {
        Self { model: json::from_text(&parts.json), borders: parts.borders }
    }

    /// The SHA-256 of the file that [`Tokenizer::write`] writes. Checkpoints identify their tokenizer by it.
    pub fn digest(&self) -> String {
        digest(json::text(&self.model).as_bytes())
    }

    /// Loads the tokenizer of a run, written by [`Tokenizer::save`].
    ///
    /// # Errors
    /// As [`Tokenizer::read`].
    pub fn load(run_dir: &Path) -> Result<Self> {
        Self::read(&run_dir.join(TOKENIZER_FILE))
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json` and, for characters, `vocab.json` to a run's directory. The latter
    /// lists the characters in the order of their ids.
    ///
    /// # Errors
    /// [`Error::File`] if a file cannot be written.
    pub fn save(&self, run_dir: &Path) -> Result<()> {
        if let TokenizerModel::Chars(vocabulary) = &self.model {
            write_json(&run_dir.join(CHARACTERS_FILE), &vocabulary.chars())?;
        }
        self.write_config(&run_dir.join(CONFIG_FILE), None)?;
        self.write(&run_dir.join(TOKENIZER_FILE))
    }

    /// V, the number of tokens, including special ones.
    pub fn vocab_size(&self) -> usize {
        match &self.model {
            TokenizerModel::Chars(vocabulary) => vocabulary.chars().len(),
            TokenizerModel::Bpe(bpe) => bpe.vocab_size(),
        }
    }

    /// The number of merges; 0 if tokens are characters.
    pub fn merges(&self) -> usize {
        match &self.model {
            TokenizerModel::Chars(_) => 0,
            TokenizerModel::Bpe(bpe) => bpe.merges().len(),
        }
    }

    /// Whether a token is special: ordinary text is never encoded as it.
    pub fn is_special(&self, id: u32) -> bool {
        match &self.model {
            TokenizerModel::Chars(_) => false,
            TokenizerModel::Bpe(bpe) => bpe.is_special(id),
        }
    }

    /// The token that begins a text, if the tokenizer has one.
    pub fn begin_token(&self) -> Option<u32> {
        self.borders.begin
    }

    /// The token that ends a text, if the tokenizer has one, such as GPT-2's `<|endoftext|>`. It also separates documents.
    pub fn end_token(&self) -> Option<u32> {
        self.borders.end
    }

    /// The size of the text of every token, in the order of their ids.
    pub fn text_sizes(&self) -> Vec<TextSize> {
        (0..self.vocab_size() as u32).map(|id| TextSize::of(&self.decode_bytes(&[id]))).collect()
    }

    /// Decodes ids. BPE tokens may begin or end inside a character; incomplete characters become U+FFFD.
    ///
    /// # Panics
    /// If an id is not below [`Tokenizer::vocab_size`].
    pub fn decode(&self, ids: &[u32]) -> String {
        match &self.model {
            TokenizerModel::Chars(vocabulary) => vocabulary.decode(ids),
            TokenizerModel::Bpe(bpe) => String::from_utf8_lossy(&bpe.decode(ids)).into_owned(),
        }
    }

    /// Appends the bytes of a token.
    ///
    /// # Panics
    /// If the id is not below [`Tokenizer::vocab_size`].
    pub fn push_bytes(&self, id: u32, bytes: &mut Vec<u8>) {
        match &self.model {
            TokenizerModel::Chars(vocabulary) => {
                bytes.extend_from_slice(vocabulary.char(id).encode_utf8(&mut [0; 4]).as_bytes())
            }
            TokenizerModel::Bpe(bpe) => bytes.extend_from_slice(bpe.token(id)),
        }
    }

    /// Decodes ids to bytes, which for BPE may contain incomplete characters.
    ///
    /// # Panics
    /// If an id is not below [`Tokenizer::vocab_size`].
    pub fn decode_bytes(&self, ids: &[u32]) -> Vec<u8> {
        match &self.model {
            TokenizerModel::Chars(vocabulary) => vocabulary.decode(ids).into_bytes(),
            TokenizerModel::Bpe(bpe) => bpe.decode(ids),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const MIXED_TEXT: &str =
        "To be, or not to be:\r\n\tété 日本 👨‍👩‍👧 e\u{301} I'll  don't   1234\u{a0}x   \n\n<|endoftext|>\0";

    fn own() -> Tokenizer {
        Tokenizer::train_bpe(MIXED_TEXT, 270, &[END_OF_TEXT, "<|x|>"]).unwrap()
    }

    #[track_caller]
    fn check_saved(saved: &Tokenizer, files: &[&str]) {
        let dir = tempfile::tempdir().unwrap();
        saved.save(dir.path()).unwrap();
        let mut written: Vec<String> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        written.sort();
        assert_eq!(written, files);

        let loaded = Tokenizer::load(dir.path()).unwrap();
        assert_eq!(&loaded, saved);
        assert_eq!(loaded.vocab_size(), saved.vocab_size());
        let ids = loaded.encode(MIXED_TEXT).unwrap();
        assert_eq!(ids, saved.encode(MIXED_TEXT).unwrap());
        assert_eq!(loaded.decode(&ids), MIXED_TEXT);
        assert_eq!(loaded.decode_bytes(&ids), MIXED_TEXT.as_bytes());
    }

    #[test]
    fn saved_tokenizers_load_and_round_trip() {
        let both = ["tokenizer.json", "tokenizer_config.json"];
        check_saved(&Tokenizer::chars(MIXED_TEXT), &[&both[..], &["vocab.json"]].concat());
        check_saved(&Tokenizer::gpt2(), &both);
        check_saved(&own(), &both);
    }

    #[test]
    fn vocab_json_is_the_sorted_list_of_characters() {
        let dir = tempfile::tempdir().unwrap();
        Tokenizer::chars("é\"b\na").save(dir.path()).unwrap();
        let text = fs::read_to_string(dir.path().join("vocab.json")).unwrap();
        assert_eq!(serde_json::from_str::<Vec<String>>(&text).unwrap(), ["\n", "\"", "a", "b", "é"]);
    }

    #[test]
    fn bpe_decodes_parts_of_characters() {
        let bpe = Tokenizer::gpt2();
        let ids = bpe.encode("e👧").unwrap();
        let (cut_ids, _) = ids.split_at(ids.len() - 1);
        assert_eq!(bpe.decode(cut_ids), "e\u{fffd}");
        assert_eq!(bpe.decode_bytes(cut_ids), &"e👧".as_bytes()[..4]);
        assert_eq!(bpe.decode(&[50_256]), "<|endoftext|>");
        assert_eq!(bpe.vocab_size(), 50_257);
    }

    #[test]
    fn special_tokens_are_recognized_only_on_request() {
        let own = own();
        let (end, x) = (268, 269);
        assert!(own.is_special(end) && own.is_special(x) && !own.is_special(267));
        assert_eq!(own.decode(&[end]), END_OF_TEXT);
        let text = "a<|endoftext|><|x|>b<|x|";
        assert!(own.encode(text).unwrap().iter().all(|&id| id < end));
        let [head, tail] = ["a", "b<|x|"].map(|text| own.encode(text).unwrap());
        assert_eq!(own.encode_special(text).unwrap(), [head, vec![end, x], tail].concat());
        assert!(own.encode_special("").unwrap().is_empty());
        // Of two that begin at one place the longer counts.
        let nested = Tokenizer::train_bpe("ab", 258, &["<|x", "<|x|>"]).unwrap();
        assert_eq!(nested.encode_special("<|x|><|x").unwrap(), [257, 256]);
        let repeated = "<|x|>a<|x<|x|>".repeat(3);
        let one = [vec![257], nested.encode("a").unwrap(), vec![256, 257]].concat();
        assert_eq!(nested.encode_special(&repeated).unwrap(), one.repeat(3));
        let chars = Tokenizer::chars("<|x>");
        assert_eq!(chars.encode_special("<|x|>").unwrap(), chars.encode("<|x|>").unwrap());
    }

    #[test]
    fn pieces_give_the_ids_of_the_whole() {
        let text = tiny_shakespeare::TEXT;
        for tokenizer in [Tokenizer::chars(text), Tokenizer::gpt2()] {
            let (mut pieces, mut seen) = (0, String::new());
            let mut ids = Vec::new();
            let mut encode = || {
                tokenizer.encode_pieces(text, |piece, piece_ids| {
                    assert_eq!(tokenizer.decode(piece_ids), piece);
                    (pieces, seen) = (pieces + 1, std::mem::take(&mut seen) + piece);
                    ids.extend_from_slice(piece_ids);
                })
            };
            encode().unwrap();
            assert!(pieces > 3, "{pieces} pieces");
            assert_eq!(seen, text);
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                assert_eq!(pool.install(|| tokenizer.encode(text)).unwrap(), ids, "{threads} threads");
            }
        }
        let error = Tokenizer::chars("a\n").encode_pieces(&("a\n".repeat(200_000) + "ab"), |_, _| ());
        let message = error.unwrap_err().to_string();
        assert!(message.contains("'b' (U+0062) at line 200001, column 2"), "{message}");
    }

    #[test]
    fn invalid_vocabularies_are_refused() {
        let refused = |text: &str, size: usize, specials: &[&str]| {
            Tokenizer::train_bpe(text, size, specials).unwrap_err().to_string()
        };
        assert_eq!(
            refused("ab", 255, &[]),
            "vocab_size: 255 is too small: 256 tokens are single bytes, so give at least 256"
        );
        assert_eq!(
            refused("ab", 257, &["<a>", "<b>"]),
            "vocab_size: 257 is too small: 256 tokens are single bytes, and 2 are special, so give at least 258"
        );
        assert_eq!(
            refused("abc abc", 300, &["<a>"]),
            "vocab_size: 300 is too large for this text: with 260 tokens every word is one token; give at most \
             260, or a longer text"
        );
        assert_eq!(refused("ab", 300, &["<a>", "<a>"]), "special: \"<a>\" is empty or given twice");
        assert_eq!(refused("ab", 300, &[""]), "special: \"\" is empty or given twice");
        let taken = |special: &str| refused("the the", 260, &[special]);
        assert_eq!(taken("a"), "special: \"a\" is an ordinary token: give a name like \"<|a|>\"");
        assert!(taken("Ġthe").contains("is an ordinary token"), "{}", taken("Ġthe"));
        assert_eq!(Tokenizer::train_bpe("abc abc", 260, &["<a>"]).unwrap().vocab_size(), 260);
        assert_eq!(Tokenizer::train_bpe("", 256, &[]).unwrap().merges(), 0);
    }

    #[test]
    fn sizes_of_tokens_add_up_to_that_of_the_text() {
        for tokenizer in [own(), Tokenizer::gpt2(), Tokenizer::chars(MIXED_TEXT)] {
            let sizes = tokenizer.text_sizes();
            let mut sum = TextSize::default();
            tokenizer.encode(MIXED_TEXT).unwrap().iter().for_each(|&id| sum += sizes[id as usize]);
            let (characters, bytes) = (MIXED_TEXT.chars().count() as u64, MIXED_TEXT.len() as u64);
            assert_eq!(sum, TextSize { characters, bytes });
        }
    }
}
