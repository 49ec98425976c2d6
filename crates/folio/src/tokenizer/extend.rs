//! What a vocabulary of characters lacks, and the vocabulary that has it.

use super::chars::CharVocabulary;
use super::{Tokenizer, TokenizerModel};
use crate::error::{Error, Result};

impl Tokenizer {
    /// The characters of a text that the vocabulary lacks with how often they occur, the most frequent first. A BPE lacks
    /// none.
    pub fn missing_characters(&self, text: &str) -> Vec<(char, u64)> {
        let TokenizerModel::Chars(vocabulary) = &self.model else { return Vec::new() };
        let mut missing: Vec<(char, u64)> = vocabulary.missing(text).into_iter().collect();
        missing.sort_by_key(|&(c, count)| (std::cmp::Reverse(count), c));
        missing
    }

    /// Checks that the vocabulary has every character of a text.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] that counts those that are missing and shows ten of them; it ends with `way_out`.
    pub fn check_covers(&self, name: &str, text: &str, way_out: &str) -> Result<()> {
        /// Characters that are shown.
        const SHOWN: usize = 10;
        let missing = self.missing_characters(text);
        if missing.is_empty() {
            return Ok(());
        }
        let total: u64 = missing.iter().map(|(_, count)| count).sum();
        let shown =
            missing.iter().take(SHOWN).map(|&(c, count)| format!("{c:?} (U+{:04X}) {count}", u32::from(c)));
        let mut shown: Vec<String> = shown.collect();
        if missing.len() > SHOWN {
            shown.push(format!("{} others", missing.len() - SHOWN));
        }
        let (count, shown) = (missing.len(), shown.join(", "));
        let reason = format!(
            "the model's vocabulary lacks {count} of the characters of {name}, {total} occurrences in all: {shown}; {way_out}"
        );
        Err(Error::Tokenizer { reason })
    }

    /// This vocabulary and the characters of a text that it lacks, in ascending order behind the others, which keep their
    /// ids. A BPE stays as it is.
    pub fn extended(&self, text: &str) -> Self {
        let TokenizerModel::Chars(vocabulary) = &self.model else { return self.clone() };
        let chars = vocabulary.chars().iter().copied().chain(vocabulary.missing(text).into_keys());
        let extended = CharVocabulary::new(chars.collect()).expect("what is missing is not there");
        Self::new(TokenizerModel::Chars(extended))
    }

    /// Whether this is the tokenizer of another's digest with further characters behind its first `vocab_size`.
    pub(crate) fn extends(&self, vocab_size: usize, digest: &str) -> bool {
        let TokenizerModel::Chars(vocabulary) = &self.model else { return false };
        let first = vocabulary.chars().get(..vocab_size).map(|chars| CharVocabulary::new(chars.to_vec()));
        let Some(Ok(first)) = first else { return false };
        Self::new(TokenizerModel::Chars(first)).digest() == digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_characters_are_counted_and_shown() {
        let chars = Tokenizer::chars("To be\n");
        assert_eq!(chars.missing_characters("To be ça ça à\n"), [('a', 2), ('ç', 2), ('à', 1)]);
        let error = chars.check_covers("other.txt", "ça à\n", "give --extend_vocab").unwrap_err();
        assert_eq!(
            error.to_string(),
            "the model's vocabulary lacks 3 of the characters of other.txt, 3 occurrences in all: 'a' (U+0061) 1, \
             'à' (U+00E0) 1, 'ç' (U+00E7) 1; give --extend_vocab"
        );
        let many: String = ('あ'..='ん').chain(['あ', 'い']).collect();
        let message = chars.check_covers("x", &many, "").unwrap_err().to_string();
        assert!(
            message.contains("82 of the characters of x, 84 occurrences in all: 'あ' (U+3042) 2, "),
            "{message}"
        );
        assert!(message.contains(", 72 others"), "{message}");
        chars.check_covers("x", "To be", "").unwrap();
        Tokenizer::gpt2().check_covers("x", &many, "").unwrap();
    }

    #[test]
    fn an_extended_vocabulary_keeps_the_old_ids() {
        let old = Tokenizer::chars("bad\n");
        let new = old.extended("cab é\n");
        assert_eq!(new.vocab_size(), 7);
        assert_eq!(new.encode("bad\n").unwrap(), old.encode("bad\n").unwrap());
        assert_eq!(new.encode(" cé").unwrap(), [4, 5, 6]);
        assert_eq!((old.extended("dab"), Tokenizer::gpt2().extended("é")), (old.clone(), Tokenizer::gpt2()));
        assert!(new.extends(old.vocab_size(), &old.digest()) && new.extends(7, &new.digest()));
        assert!(!new.extends(3, &old.digest()) && !old.extends(7, &new.digest()));
        // Saved and read, the ids are the same.
        let dir = tempfile::tempdir().unwrap();
        new.save(dir.path()).unwrap();
        assert_eq!(Tokenizer::load(dir.path()).unwrap(), new);
    }
}
