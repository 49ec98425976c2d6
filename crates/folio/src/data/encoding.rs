//! From texts to a token stream.

use std::ops::Range;

use super::{Split, SplitKind, TokenStream, Tokens, border, test_border};
use crate::error::{Error, Result};
use crate::text::Corpus;
use crate::tokenizer::Tokenizer;

/// What a run reads.
#[derive(Clone, Debug)]
pub struct Texts {
    /// The text that it trains on; a part of it evaluates, if there is no other text for that.
    pub data: Corpus,
    /// The text that it is evaluated on, if that is one of its own.
    pub eval: Option<Corpus>,
}

impl Texts {
    /// The part that a run trains on, for whatever is learned of it before training.
    ///
    /// # Errors
    /// As [`super::training_text`].
    pub fn training_text(&self, split: SplitKind) -> Result<&str> {
        match self.eval {
            Some(_) => Ok(&self.data.text),
            None => super::training_text(&self.data.text, split),
        }
    }

    /// The bytes of all texts.
    pub fn len(&self) -> usize {
        self.data.text.len() + self.eval.as_ref().map_or(0, |eval| eval.text.len())
    }

    /// Whether there is no text.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How texts become tokens.
#[derive(Clone, Copy, Debug)]
pub struct Encoding<'a> {
    /// By which tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Whether special tokens that are written in a text count as such.
    pub special_tokens: bool,
}

impl Encoding<'_> {
    /// Checks that the tokenizer has special tokens if they are to be read.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn check(&self) -> Result<()> {
        let tokenizer = self.tokenizer;
        if !self.special_tokens || (0..tokenizer.vocab_size() as u32).any(|id| tokenizer.is_special(id)) {
            return Ok(());
        }
        let reason = "the tokenizer has no special tokens: leave the flag out, or take bpe, corpus_bpe or a \
                      tokenizer.json that has some";
        Err(Error::setting("special_tokens", reason))
    }

    /// Appends the tokens of a range of a text, document by document. Between two documents stands the separator.
    fn push(
        &self,
        corpus: &Corpus,
        range: Range<usize>,
        tokens: &mut Tokens,
        on_piece: &mut impl FnMut(u64),
    ) -> Result<()> {
        let separator = if corpus.documents.len() > 1 { self.tokenizer.end_token() } else { None };
        let mut start = range.start;
        for document in &corpus.documents {
            let end = document.end.min(range.end);
            if end <= start {
                continue;
            }
            let text = &corpus.text[start..end];
            if self.special_tokens {
                tokens.extend(&self.tokenizer.encode_special(text)?);
                on_piece(text.len() as u64);
            } else {
                self.tokenizer.encode_pieces(text, |piece, ids| {
                    tokens.extend(ids);
                    on_piece(piece.len() as u64);
                })?;
            }
            let is_last = document.end == corpus.text.len();
            if let Some(separator) = separator.filter(|_| end == document.end && !is_last) {
                tokens.extend(&[separator]);
            }
            start = end;
        }
        Ok(())
    }
}

impl TokenStream {
    /// Encodes what a run reads, telling `on_piece` of every piece of text that is done by its bytes. With an evaluation
    /// text of its own the whole of the other trains; else `split` divides it, and for a contiguous split the parts
    /// are encoded apart, so that no token spans a border.
    ///
    /// # Errors
    /// If the tokenizer lacks a character of a text, or the evaluation text is training text.
    pub fn of_texts(
        texts: &Texts,
        encoding: Encoding,
        split: impl Into<Split>,
        mut on_piece: impl FnMut(u64),
    ) -> Result<Self> {
        let split = split.into();
        encoding.check()?;
        let mut tokens = Tokens::new(encoding.tokenizer.vocab_size());
        let data = &texts.data;
        let mut push = |corpus: &Corpus, range, tokens: &mut Tokens| {
            encoding.push(corpus, range, tokens, &mut on_piece)?;
            Ok::<_, Error>(tokens.len())
        };
        if let Some(eval) = &texts.eval {
            eval.check_apart_from(data)?;
            let eval_start = push(data, 0..data.text.len(), &mut tokens)?;
            let border = test_border(&eval.text, split.test_fraction);
            let test_start = push(eval, 0..border, &mut tokens)?;
            push(eval, border..eval.text.len(), &mut tokens)?;
            let split = Split { kind: SplitKind::Contiguous, ..split };
            return Ok(Self { tokens, split, eval_start, test_start });
        }
        let end = data.text.len();
        let border = border(&data.text, split.kind).unwrap_or(end);
        let test_border = border + test_border(&data.text[border..], split.test_fraction);
        let eval_start = push(data, 0..border, &mut tokens)?;
        let test_start = push(data, border..test_border, &mut tokens)?;
        push(data, test_border..end, &mut tokens)?;
        Ok(Self { tokens, split, eval_start, test_start })
    }

    /// Encodes a text all of which is to be evaluated on.
    ///
    /// # Errors
    /// If the tokenizer lacks a character of it.
    pub fn for_evaluation(corpus: &Corpus, encoding: Encoding) -> Result<Self> {
        let mut tokens = Tokens::new(encoding.tokenizer.vocab_size());
        encoding.push(corpus, 0..corpus.text.len(), &mut tokens, &mut |_| ())?;
        let test_start = tokens.len();
        Ok(Self { tokens, split: SplitKind::Contiguous.into(), eval_start: 0, test_start })
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::tokenizer::END_OF_TEXT;

    /// A corpus of files with these contents.
    fn corpus(contents: &[&str]) -> Corpus {
        let dir = tempfile::tempdir().unwrap();
        let write = |(index, content): (usize, &&str)| {
            let path = dir.path().join(format!("{index}.txt"));
            std::fs::write(&path, content).unwrap();
            path
        };
        Corpus::read(&contents.iter().enumerate().map(write).collect::<Vec<PathBuf>>()).unwrap()
    }

    /// The tokens of a stream, with a bar before its evaluation part.
    fn shown(stream: &TokenStream, tokenizer: &Tokenizer) -> String {
        let mut ids = Vec::new();
        stream.tokens.copy(0..stream.len(), &mut ids);
        let text = |ids: &[u32]| ids.iter().map(|&id| tokenizer.decode(&[id]) + "·").collect::<String>();
        let (train, eval) = ids.split_at(stream.eval_start);
        format!("{}|{}", text(train), text(eval))
    }

    #[track_caller]
    fn check(texts: &Texts, tokenizer: &Tokenizer, special_tokens: bool, split: SplitKind, want: &str) {
        let encoding = Encoding { tokenizer, special_tokens };
        let mut bytes = 0;
        let stream = TokenStream::of_texts(texts, encoding, split, |piece| bytes += piece).unwrap();
        assert_eq!(shown(&stream, tokenizer), want);
        assert_eq!(bytes, texts.len() as u64);
    }

    #[test]
    fn a_separator_stands_between_documents_and_nowhere_else() {
        let bpe = Tokenizer::gpt2();
        let texts = Texts { data: corpus(&["To be\n", "or not", "to be"]), eval: None };
        let (blocks, contiguous) = (SplitKind::Blocks, SplitKind::Contiguous);
        let end = END_OF_TEXT;
        check(&texts, &bpe, false, blocks, &format!("To· be·\n·{end}·or· not·\n·{end}·to· be·|"));
        // The border is behind 16 of 18 characters.
        check(
            &texts,
            &bpe,
            false,
            contiguous,
            &format!("To· be·\n·{end}·or· not·\n·{end}·to· ·|b·e·").replace(" ·|b·e·", " ·|be·"),
        );
        // One file is a text as it always was, and characters have no separator.
        let one = Texts { data: corpus(&["To be\nor"]), eval: None };
        check(&one, &bpe, true, blocks, "To· be·\n·or·|");
        let chars = Tokenizer::chars("To be\nrnt");
        let two = Texts { data: corpus(&["To", "be"]), eval: None };
        check(&two, &chars, false, blocks, "T·o·\n·b·e·|");
    }

    #[test]
    fn special_tokens_in_a_text_are_single_tokens_if_they_are_asked_for() {
        let bpe = Tokenizer::gpt2();
        let texts = Texts { data: corpus(&["be<|endoftext|>or"]), eval: None };
        check(&texts, &bpe, true, SplitKind::Blocks, "be·<|endoftext|>·or·|");
        check(&texts, &bpe, false, SplitKind::Blocks, "be·<·|·end·of·text·|·>·or·|");
        let chars = Tokenizer::chars("abc");
        let encoding = Encoding { tokenizer: &chars, special_tokens: true };
        let message = encoding.check().unwrap_err().to_string();
        assert!(message.starts_with("special_tokens: the tokenizer has no special tokens"), "{message}");
    }

    #[test]
    fn with_a_text_to_evaluate_on_the_whole_of_the_other_trains() {
        let chars = Tokenizer::chars("abcdefxyz\n");
        let texts = Texts { data: corpus(&["abc", "def"]), eval: Some(corpus(&["xy", "z"])) };
        for split in [SplitKind::Blocks, SplitKind::Contiguous] {
            check(&texts, &chars, false, split, "a·b·c·\n·d·e·f·|x·y·\n·z·");
            assert_eq!(texts.training_text(split).unwrap(), "abc\ndef");
        }
        let same = Texts { data: corpus(&["abc", "def"]), eval: Some(corpus(&["def"])) };
        let encoding = Encoding { tokenizer: &chars, special_tokens: false };
        assert!(TokenStream::of_texts(&same, encoding, SplitKind::Blocks, |_| ()).is_err());
    }
}
