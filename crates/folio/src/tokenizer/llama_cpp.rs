//! The vocabulary as llama.cpp's tokenizer `gpt2` reads it: tokens and merges in GPT-2's byte alphabet.
//!
//! llama.cpp spells a text in that alphabet, splits it as GPT-2 does, merges each word from single bytes, and drops bytes in
//! silence that are no token in the end. So a character of several bytes needs merges that join its bytes.

use rustc_hash::FxHashSet;

use super::gpt2::{byte_alphabet, spell};
use super::json::spelling;
use super::{Bpe, CharVocabulary, Tokenizer, TokenizerModel};

/// A vocabulary in GPT-2's byte alphabet.
pub(crate) struct SpelledVocabulary {
    /// The spellings in the order of their ids, all different.
    pub(crate) tokens: Vec<String>,
    /// What kind of token each is.
    pub(crate) kinds: Vec<TokenKind>,
    /// Two parts separated by a space, in the order of their ranks.
    pub(crate) merges: Vec<String>,
}

/// How llama.cpp treats a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenKind {
    /// Made by merges; spelled in the byte alphabet.
    Normal,
    /// A special token; spelled as it is.
    Control,
    /// An added token that is matched in every text; spelled as it is.
    UserDefined,
}

impl Tokenizer {
    /// The vocabulary for llama.cpp. The error names what llama.cpp would tokenize differently.
    pub(crate) fn spelled(&self) -> Result<SpelledVocabulary, String> {
        let vocabulary = match &self.model {
            TokenizerModel::Chars(vocabulary) => of_chars(vocabulary),
            TokenizerModel::Bpe(bpe) => {
                check(bpe)?;
                of_bpe(&self.model, bpe)
            }
        };
        let mut seen = FxHashSet::default();
        match vocabulary.tokens.iter().find(|token| !seen.insert(token.as_str())) {
            Some(twice) => Err(format!("has two tokens that are spelled {twice:?}")),
            None => Ok(vocabulary),
        }
    }
}

/// Refuses what llama.cpp's tokenizer `gpt2` does not do.
fn check(bpe: &Bpe) -> Result<(), String> {
    let recipe = bpe.recipe();
    if !recipe.splits_as_gpt2() {
        return Err("splits a text into words in another way than GPT-2".to_owned());
    }
    if recipe.is_nfc {
        return Err("normalizes a text to NFC".to_owned());
    }
    if recipe.whole_words.is_some() {
        return Err("takes whole words from the vocabulary before it merges (ignore_merges)".to_owned());
    }
    let stripped = |token: &&super::added::Added| token.lstrip || token.rstrip || token.single_word;
    match recipe.added.tokens().iter().find(stripped) {
        Some(token) => {
            Err(format!("has the added token {:?} with lstrip, rstrip or single_word", token.content))
        }
        None => Ok(()),
    }
}

fn of_bpe(model: &TokenizerModel, bpe: &Bpe) -> SpelledVocabulary {
    let (alphabet, added) = (byte_alphabet(), bpe.recipe().added.tokens());
    let spelled = |id: u32| match added.binary_search_by_key(&id, |token| token.id) {
        Ok(_) => spelling(model, id),
        Err(_) => spell(&alphabet, bpe.token(id)),
    };
    let kind = |id: u32| match added.binary_search_by_key(&id, |token| token.id) {
        Ok(at) if added[at].special => TokenKind::Control,
        Ok(_) => TokenKind::UserDefined,
        Err(_) => TokenKind::Normal,
    };
    let ids = 0..bpe.vocab_size() as u32;
    let part = |id: u32| spell(&alphabet, bpe.token(id));
    let merges = bpe.merges().iter().map(|&(left, right)| format!("{} {}", part(left), part(right)));
    SpelledVocabulary {
        tokens: ids.clone().map(spelled).collect(),
        kinds: ids.map(kind).collect(),
        merges: merges.collect(),
    }
}

/// Each character is one token, which merges join from left to right.
///
/// The order of the merges does not matter: the left part begins with the first byte of a character and the right part is one
/// of its other bytes, so that no two of them compete for a byte.
fn of_chars(vocabulary: &CharVocabulary) -> SpelledVocabulary {
    let alphabet = byte_alphabet();
    let spelled = |c: char| spell(&alphabet, c.encode_utf8(&mut [0; 4]).as_bytes());
    let tokens: Vec<String> = vocabulary.chars().iter().copied().map(spelled).collect();
    let (mut merges, mut seen) = (Vec::new(), FxHashSet::default());
    for token in &tokens {
        for (at, byte) in token.char_indices().skip(1) {
            let merge = format!("{} {byte}", &token[..at]);
            if seen.insert(merge.clone()) {
                merges.push(merge);
            }
        }
    }
    SpelledVocabulary { kinds: vec![TokenKind::Normal; tokens.len()], tokens, merges }
}
