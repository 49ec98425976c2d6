//! From a text to ids, on all threads.

use rayon::prelude::*;

use super::bpe::{Bpe, Encoder};
use super::chars::CharVocabulary;
use super::{Tokenizer, TokenizerModel, words};
use crate::error::{Error, Result};

/// Bytes of text that a thread encodes at once.
const PIECE: usize = 1 << 18;

/// UnitEncoder that are prepared before they are encoded, at most.
const UNITS: usize = 1 << 16;

impl Tokenizer {
    /// The ids of a text. Special tokens are not looked for: `<|endoftext|>` in a text is ordinary text.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the vocabulary lacks a character of the text; BPE can encode any text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        self.encode_pieces(text, |_, piece_ids| ids.extend_from_slice(piece_ids))?;
        Ok(ids)
    }

    /// The ids of a text in which special tokens count as such.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_special(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        self.encode_pieces_special(text, |_, piece_ids| ids.extend_from_slice(piece_ids))?;
        Ok(ids)
    }

    /// The ids of a text piece by piece, in order: `on_piece` is given some text and its ids. All threads encode; what
    /// is held at a time is a few pieces, whatever the length of the text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_pieces<'t>(&self, text: &'t str, on_piece: impl FnMut(&'t str, &[u32])) -> Result<()> {
        self.encode_with(text, false, on_piece)
    }

    /// [`Tokenizer::encode_pieces`] for a text in which special tokens count as such.
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

    /// The ids of bytes that need not be UTF-8. What is not text stands apart from the words around it.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if tokens are characters and these bytes are not characters of the vocabulary; a BPE can
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
        // The error gives a missing character's place in the whole text.
        let ids = vocabulary.encode(piece).or_else(|_| vocabulary.encode(text))?;
        on_piece(piece, &ids);
    }
    Ok(())
}

/// Encodes a text that GPT-2's split cuts into words.
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
        let turn: Vec<&str> = pieces.by_ref().take(8 * threads).collect();
        if turn.is_empty() {
            return;
        }
        let encode = |encoder: &mut Encoder<'_, 't>, &piece: &&'t str| {
            let mut ids = Vec::new();
            encoder.encode(piece, &mut ids);
            ids
        };
        let ids: Vec<Vec<u32>> = turn.par_iter().map_init(|| Encoder::new(bpe), encode).collect();
        turn.iter().zip(&ids).for_each(|(piece, ids)| on_piece(piece, ids));
    }
}

/// Encodes a text by any recipe: one thread finds added tokens and splits, all of them encode words.
struct UnitEncoder<'b, 't, F> {
    bpe: &'b Bpe,
    on_piece: F,
    /// What has been split and not encoded.
    units: Vec<EncodingUnit<'t>>,
    /// Bytes of words in them.
    bytes: usize,
    /// Bytes of words after which they are encoded.
    most: usize,
}

/// Some words, or a token that was found in the text.
#[derive(Default)]
struct EncodingUnit<'t> {
    /// About the text that it comes from: all units' texts together are the whole.
    source: &'t str,
    token: Option<u32>,
    /// The words, end to end, and where each ends; without ends it is a text that GPT-2's split cuts into words.
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
            // Normalization may change lengths: progress counts up to the source's length, the rest at the end.
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

    /// Encodes what there is, and passes it on.
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

/// Takes up to `len` bytes off the head of a text.
fn cut<'t>(text: &mut &'t str, len: usize) -> &'t str {
    let head;
    (head, *text) = text.split_at(text.floor_char_boundary(len));
    head
}
