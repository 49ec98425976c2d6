//! Encodes text to ids, in parallel.

use rayon::prelude::*;

use super::bpe::{Bpe, Encoder};
use super::chars::CharVocabulary;
use super::{Tokenizer, TokenizerModel, words};
use crate::error::{Error, Result};

/// Bytes of text per piece of parallel work.
const PIECE: usize = 1 << 18;

/// The maximum number of units that are prepared before they are encoded.
const UNITS: usize = 1 << 16;

impl Tokenizer {
    /// Encodes a text. Special tokens are not recognized: `<|endoftext|>` is ordinary text.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the vocabulary lacks a character of the text; BPE can encode any text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        self.encode_pieces(text, |_, piece_ids| ids.extend_from_slice(piece_ids))?;
        Ok(ids)
    }

    /// Encodes a text, and recognizes special tokens.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_special(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        self.encode_pieces_special(text, |_, piece_ids| ids.extend_from_slice(piece_ids))?;
        Ok(ids)
    }

    /// Encodes a text piece by piece, in order: `on_piece` gets the text and the ids of each piece. Encoding is parallel, but
    /// only a few pieces are in memory at a time.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_pieces<'t>(&self, text: &'t str, on_piece: impl FnMut(&'t str, &[u32])) -> Result<()> {
        self.encode_with(text, false, on_piece)
    }

    /// As [`Tokenizer::encode_pieces`], but recognizes special tokens.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_pieces_special<'t>(
        &self,
        text: &'t str,
        on_piece: impl FnMut(&'t str, &[u32]),
    ) -> Result<()> {
        self.encode_with(text, true, on_piece)
    }

    fn encode_with<'t>(
        &self,
        text: &'t str,
        with_special: bool,
        mut on_piece: impl FnMut(&'t str, &[u32]),
    ) -> Result<()> {
        match &self.model {
            TokenizerModel::Chars(vocabulary) => return encode_chars(vocabulary, text, on_piece),
            TokenizerModel::Bpe(bpe) if bpe.recipe().is_plain(with_special) => {
                encode_plain(bpe, text, on_piece)
            }
            TokenizerModel::Bpe(bpe) => UnitEncoder::new(bpe, &mut on_piece).encode(text, with_special),
        }
        Ok(())
    }

    /// Encodes bytes that may not be UTF-8. Invalid bytes are not part of the words around them.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if tokens are characters and the bytes are not characters of the vocabulary. A BPE can
    /// encode any bytes.
    pub fn encode_bytes(&self, bytes: &[u8]) -> Result<Vec<u32>> {
        match &self.model {
            TokenizerModel::Bpe(bpe) => {
                let mut ids = Vec::with_capacity(bytes.len() / 3);
                for chunk in bytes.utf8_chunks() {
                    ids.extend(self.encode(chunk.valid())?);
                    Encoder::new(bpe).merge(chunk.invalid(), &mut ids);
                }
                Ok(ids)
            }
            TokenizerModel::Chars(vocabulary) => {
                let text = std::str::from_utf8(bytes).map_err(|error| Error::Tokenizer {
                    reason: format!(
                        "byte {} is not UTF-8, and the tokens are characters: use a BPE",
                        error.valid_up_to()
                    ),
                })?;
                vocabulary.encode(text)
            }
        }
    }
}

fn encode_chars<'t>(
    vocabulary: &CharVocabulary,
    text: &'t str,
    mut on_piece: impl FnMut(&'t str, &[u32]),
) -> Result<()> {
    let mut rest = text;
    while !rest.is_empty() {
        let piece;
        (piece, rest) = rest.split_at(rest.floor_char_boundary(PIECE));
        // Encode the whole text for the error, which has the position of the missing character.
        let ids = vocabulary.encode(piece).or_else(|_| vocabulary.encode(text))?;
        on_piece(piece, &ids);
    }
    Ok(())
}

/// Encodes a text with GPT-2's split alone.
fn encode_plain<'t>(bpe: &Bpe, text: &'t str, mut on_piece: impl FnMut(&'t str, &[u32])) {
    let threads = rayon::current_num_threads();
    let mut pieces = words::pieces(text, PIECE);
    if threads == 1 || text.len() <= PIECE {
        let mut encoder = Encoder::new(bpe);
        let mut ids = Vec::new();
        for piece in pieces {
            ids.clear();
            encoder.encode(piece, &mut ids);
            on_piece(piece, &ids);
        }
        return;
    }
    loop {
        let batch: Vec<&str> = pieces.by_ref().take(8 * threads).collect();
        if batch.is_empty() {
            return;
        }
        let encode = |encoder: &mut Encoder<'_, 't>, &piece: &&'t str| {
            let mut ids = Vec::new();
            encoder.encode(piece, &mut ids);
            ids
        };
        let ids: Vec<Vec<u32>> = batch.par_iter().map_init(|| Encoder::new(bpe), encode).collect();
        batch.iter().zip(&ids).for_each(|(piece, ids)| on_piece(piece, ids));
    }
}

/// Encodes a text with any recipe. One thread matches added tokens and splits, all threads encode words.
struct UnitEncoder<'b, 't, F> {
    bpe: &'b Bpe,
    on_piece: F,
    /// Units that are not encoded yet.
    units: Vec<EncodingUnit<'t>>,
    /// Bytes of words in these units.
    bytes: usize,
    /// Encode after this many bytes of words.
    most: usize,
}

/// Some words, or an added token.
#[derive(Default)]
struct EncodingUnit<'t> {
    /// Roughly the text of the unit. The concatenation over all units is exactly the whole text.
    source: &'t str,
    token: Option<u32>,
    /// Concatenated words and their ends; without ends, text that still needs GPT-2's split.
    words: String,
    ends: Vec<usize>,
}

impl<'b, 't, F: FnMut(&'t str, &[u32])> UnitEncoder<'b, 't, F> {
    fn new(bpe: &'b Bpe, on_piece: F) -> Self {
        let most = 8 * PIECE * rayon::current_num_threads();
        Self { bpe, on_piece, units: Vec::new(), bytes: 0, most }
    }

    fn encode(mut self, text: &'t str, with_special: bool) {
        let recipe = self.bpe.recipe();
        for segment in recipe.added.segments(text, with_special) {
            if segment.token.is_some() {
                self.push(EncodingUnit {
                    source: segment.text,
                    token: segment.token,
                    ..EncodingUnit::default()
                });
                continue;
            }
            // Normalization may change lengths. Units take from the source while it lasts; the rest comes at the end.
            let mut source = segment.text;
            let normalized = recipe.normalized(segment.text);
            for part in recipe.added.segments_of_normalized(&normalized, with_special) {
                match part.token {
                    Some(token) => {
                        let source = cut(&mut source, part.text.len());
                        self.push(EncodingUnit { source, token: Some(token), ..EncodingUnit::default() });
                    }
                    None => self.split(part.text, &mut source),
                }
            }
            if !source.is_empty() {
                self.push(EncodingUnit { source, ..EncodingUnit::default() });
            }
        }
        self.flush();
    }

    /// Splits a text without added tokens.
    fn split(&mut self, text: &str, source: &mut &'t str) {
        if self.bpe.recipe().splits_as_gpt2() {
            for piece in words::pieces(text, PIECE) {
                let source = cut(source, piece.len());
                self.push(EncodingUnit { source, words: piece.to_owned(), ..EncodingUnit::default() });
            }
            return;
        }
        let mut unit = EncodingUnit::default();
        self.bpe.recipe().for_each_word(text, &mut |word| {
            unit.words.push_str(word);
            unit.ends.push(unit.words.len());
            if unit.words.len() >= PIECE {
                unit.source = cut(source, unit.words.len());
                self.push(std::mem::take(&mut unit));
            }
        });
        unit.source = cut(source, unit.words.len());
        self.push(unit);
    }

    fn push(&mut self, unit: EncodingUnit<'t>) {
        self.bytes += unit.words.len();
        self.units.push(unit);
        if self.bytes >= self.most || self.units.len() == UNITS {
            self.flush();
        }
    }

    /// Encodes all prepared units.
    fn flush(&mut self) {
        fn encode<'u>(encoder: &mut Encoder<'_, 'u>, unit: &'u EncodingUnit<'_>) -> Vec<u32> {
            let mut ids = Vec::from_iter(unit.token);
            if unit.ends.is_empty() {
                encoder.encode(&unit.words, &mut ids);
            }
            let mut start = 0;
            for &end in &unit.ends {
                encoder.encode_word(&unit.words[start..end], &mut ids);
                start = end;
            }
            ids
        }
        let bpe = self.bpe;
        let ids: Vec<Vec<u32>> = match self.bytes > PIECE {
            true => self.units.par_iter().map_init(|| Encoder::new(bpe), encode).collect(),
            false => {
                let mut encoder = Encoder::new(bpe);
                self.units.iter().map(|unit| encode(&mut encoder, unit)).collect()
            }
        };
        self.units.iter().zip(&ids).for_each(|(unit, ids)| (self.on_piece)(unit.source, ids));
        self.units.clear();
        self.bytes = 0;
    }
}

/// Removes up to `len` bytes from the start of a text and returns them.
fn cut<'t>(text: &mut &'t str, len: usize) -> &'t str {
    let head;
    (head, *text) = text.split_at(text.floor_char_boundary(len));
    head
}
