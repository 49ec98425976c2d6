//! From text to batches: the token stream, the split, and the order of an epoch.
//!
//! The stream is cut into blocks of `block_size` tokens. The target of each token is the one that follows it.
//! The split depends only on the run's seed, so evaluation never sees a training block, not even after a resume.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::named_enum;
use crate::rng::{Rng, Stream};
use crate::text::{TextPerToken, TextSize};
use crate::tokenizer::Tokenizer;

mod encoding;

pub use encoding::{Encoding, Texts};

/// How a text is split into training and evaluation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SplitKind {
    /// Shuffled blocks: 80 % train, 10 % eval, 10 % test, as in the original project.
    #[default]
    Blocks,
    /// The first 90 % of the characters are for training, the last 10 % for evaluation, as in nanoGPT and most published
    /// results. There is no test part, unless [`Split::test_fraction`] asks for one.
    Contiguous,
}

named_enum!(SplitKind, "split", { Blocks => "blocks", Contiguous => "contiguous" });

impl SplitKind {
    /// Checks that the training text is known before the text is encoded, so that a tokenizer can be trained on it.
    pub(crate) fn check_cuts_text(self) -> Result<()> {
        if self == Self::Contiguous {
            return Ok(());
        }
        let reason = "`split blocks` cuts tokens, not text, so a tokenizer trained on the text would see evaluation \
                      text; use contiguous";
        Err(Error::setting("split", reason))
    }
}

/// How a text is divided into its parts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Split {
    /// What is for training, and what is not.
    pub kind: SplitKind,
    /// The share of the evaluation part that is held out as a test part, or is added to it: its last characters, or with a
    /// split by blocks some of its blocks. In [0, 1).
    pub test_fraction: f64,
}

impl From<SplitKind> for Split {
    /// Nothing more is held out.
    fn from(kind: SplitKind) -> Self {
        Self { kind, test_fraction: 0.0 }
    }
}

/// Where the training blocks of an epoch are cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BlockOffset {
    /// In the same places in every epoch, as in the original project.
    #[default]
    Fixed,
    /// Shifted by a new random number of tokens in every epoch, so that a token is not always predicted from the same context.
    Random,
}

named_enum!(BlockOffset, "block offset", { Fixed => "fixed", Random => "random" });

/// A part of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Text to train on.
    Train,
    /// Text to choose settings by.
    Eval,
    /// Text for the final result.
    Test,
}

named_enum!(Part, "part", { Train => "train", Eval => "eval", Test => "test" });

/// An encoded text.
#[derive(Clone, Debug)]
pub struct TokenStream {
    tokens: Tokens,
    split: Split,
    /// Where the evaluation tokens start; the end of the stream if the split is by blocks.
    eval_start: usize,
    /// Where the test tokens start, behind the evaluation tokens; the end of the stream if there are none, or if the split is
    /// by blocks.
    test_start: usize,
}

/// Token ids. They take two bytes each where possible, because those of a long text take most of the memory before training.
#[derive(Clone, Debug)]
enum Tokens {
    Narrow(Vec<u16>),
    Wide(Vec<u32>),
}

impl Tokens {
    fn new(vocab_size: usize) -> Self {
        if vocab_size <= 1 << 16 { Self::Narrow(Vec::new()) } else { Self::Wide(Vec::new()) }
    }

    fn len(&self) -> usize {
        match self {
            Self::Narrow(ids) => ids.len(),
            Self::Wide(ids) => ids.len(),
        }
    }

    /// Appends ids, which must be below the size of the vocabulary.
    fn extend(&mut self, new: &[u32]) {
        match self {
            Self::Narrow(ids) => ids.extend(new.iter().map(|&id| id as u16)),
            Self::Wide(ids) => ids.extend_from_slice(new),
        }
    }

    /// Appends the ids of a range to `out`.
    fn copy(&self, range: Range<usize>, out: &mut Vec<u32>) {
        match self {
            Self::Narrow(ids) => out.extend(ids[range].iter().map(|&id| u32::from(id))),
            Self::Wide(ids) => out.extend_from_slice(&ids[range]),
        }
    }
}

/// Where a text's evaluation part starts, in bytes; `None` if the split is by blocks.
fn border(text: &str, split: SplitKind) -> Option<usize> {
    match split {
        SplitKind::Blocks => None,
        SplitKind::Contiguous => {
            let train_chars = text.chars().count() * 9 / 10;
            Some(text.char_indices().nth(train_chars).map_or(text.len(), |(index, _)| index))
        }
    }
}

/// Where the test part of an evaluation text starts, in bytes.
fn test_border(eval: &str, test_fraction: f64) -> usize {
    if test_fraction == 0.0 {
        return eval.len();
    }
    let count = eval.chars().count();
    let kept = count - (count as f64 * test_fraction).round() as usize;
    eval.char_indices().nth(kept).map_or(eval.len(), |(index, _)| index)
}

/// The training part of a text, for a tokenizer that is trained on it.
///
/// # Errors
/// If the split is by blocks: blocks are cut from tokens, so the training text is not known before there is a tokenizer.
pub fn training_text(text: &str, split: SplitKind) -> Result<&str> {
    split.check_cuts_text()?;
    Ok(&text[..border(text, split).unwrap_or(text.len())])
}

impl TokenStream {
    /// Encodes a text. For a contiguous split the parts are encoded separately, so that no token spans a boundary.
    ///
    /// # Errors
    /// If the tokenizer lacks a character of the text.
    pub fn encode(text: &str, tokenizer: &Tokenizer, split: impl Into<Split>) -> Result<Self> {
        let split = split.into();
        let (train, rest) = text.split_at(border(text, split.kind).unwrap_or(text.len()));
        let (eval, test) = rest.split_at(test_border(rest, split.test_fraction));
        let mut tokens = Tokens::new(tokenizer.vocab_size());
        let mut ends = [0; 3];
        for (part, end) in [train, eval, test].into_iter().zip(&mut ends) {
            tokenizer.encode_pieces(part, |_, ids| tokens.extend(ids))?;
            *end = tokens.len();
        }
        // With a split by blocks the whole text is in the first part: any block may be for evaluation.
        let [eval_start, test_start, _] = ends;
        Ok(Self { tokens, split, eval_start, test_start })
    }

    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What [`TokenStream::bytes`] does not say.
    pub(crate) fn header(&self) -> StreamHeader {
        let (len, is_narrow) = (self.len(), matches!(self.tokens, Tokens::Narrow(_)));
        let Self { split: Split { kind, test_fraction }, eval_start, test_start, .. } = *self;
        StreamHeader { len, is_narrow, split: kind, test_fraction, eval_start, test_start }
    }

    /// A stream with this header, whose tokens are all 0.
    pub(crate) fn with_header(header: StreamHeader) -> Self {
        let StreamHeader { len, is_narrow, split: kind, test_fraction, eval_start, test_start } = header;
        let tokens = if is_narrow { Tokens::Narrow(vec![0; len]) } else { Tokens::Wide(vec![0; len]) };
        Self { tokens, split: Split { kind, test_fraction }, eval_start, test_start }
    }

    /// The ids as bytes, in the machine's order.
    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.tokens {
            Tokens::Narrow(ids) => bytemuck::cast_slice(ids),
            Tokens::Wide(ids) => bytemuck::cast_slice(ids),
        }
    }

    /// The ids as bytes, mutable.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.tokens {
            Tokens::Narrow(ids) => bytemuck::cast_slice_mut(ids),
            Tokens::Wide(ids) => bytemuck::cast_slice_mut(ids),
        }
    }
}

/// A [`TokenStream`] but for its ids.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct StreamHeader {
    len: usize,
    is_narrow: bool,
    split: SplitKind,
    test_fraction: f64,
    eval_start: usize,
    test_start: usize,
}

/// A token stream cut into blocks, each of which belongs to one part.
#[derive(Clone, Debug)]
pub struct Dataset {
    stream: Arc<TokenStream>,
    block_size: usize,
    /// The start of each block in the stream. Shuffled if the split is by blocks.
    train: Vec<usize>,
    eval: Vec<usize>,
    test: Vec<usize>,
}

impl Dataset {
    /// Cuts a stream into blocks and splits them, by `seed` if the split is by blocks.
    ///
    /// # Errors
    /// If the text is too short for a training and an evaluation block, or for a test block that is asked for.
    pub fn new(stream: Arc<TokenStream>, block_size: usize, seed: u64) -> Result<Self> {
        let cut = |start: usize, end: usize| -> Vec<usize> {
            let blocks = (end - start).saturating_sub(1) / block_size;
            (0..blocks).map(|block| start + block * block_size).collect()
        };
        let Split { kind, test_fraction } = stream.split;
        let (train, eval, test) = match kind {
            SplitKind::Contiguous => {
                let TokenStream { eval_start, test_start, .. } = *stream;
                let test = if test_fraction > 0.0 { cut(test_start, stream.len()) } else { Vec::new() };
                (cut(0, eval_start), cut(eval_start, test_start), test)
            }
            SplitKind::Blocks => {
                let mut blocks = cut(0, stream.len());
                Rng::new(seed, Stream::Split).shuffle(&mut blocks);
                let tenth = blocks.len() / 10;
                // A short text has an evaluation block but no test block.
                let eval = tenth.max(1).min(blocks.len());
                let mut test = blocks.split_off(blocks.len() - tenth);
                let mut eval = blocks.split_off(blocks.len() - eval);
                let held_out = (eval.len() as f64 * test_fraction).round() as usize;
                test.extend(eval.drain(eval.len() - held_out..));
                (blocks, eval, test)
            }
        };
        if train.is_empty() || eval.is_empty() || (test.is_empty() && test_fraction > 0.0) {
            return Err(too_short(&stream, block_size));
        }
        Ok(Self { stream, block_size, train, eval, test })
    }

    /// The starts of a part's blocks.
    pub fn blocks(&self, part: Part) -> &[usize] {
        match part {
            Part::Train => &self.train,
            Part::Eval => &self.eval,
            Part::Test => &self.test,
        }
    }

    /// The starts of an epoch's training blocks in random order. Their number is the same in every epoch.
    ///
    /// With a random offset, all blocks shift by the same number of tokens, less than a block, to either side. A block that
    /// would then reach beyond the training text is moved back to its border, so it overlaps its neighbor: training reads no
    /// evaluation text, and an epoch reads almost every token once.
    pub fn epoch_blocks(&self, offset: BlockOffset, rng: &mut Rng) -> Vec<usize> {
        let mut blocks = self.train.clone();
        if offset == BlockOffset::Random {
            let size = self.block_size;
            let shift = rng.below(2 * size as u64 - 1) as usize;
            blocks.sort_unstable();
            for neighbors in blocks.chunk_by_mut(|block, next| block + size == *next) {
                let first = neighbors[0];
                let last = match self.stream.split.kind {
                    SplitKind::Blocks => neighbors[neighbors.len() - 1],
                    // All training blocks are neighbors; behind the last one there may be a tail.
                    SplitKind::Contiguous => self.stream.eval_start - 1 - size,
                };
                // A shift of `size - 1` leaves the blocks where they are.
                for block in neighbors {
                    *block = (*block + shift).saturating_sub(size - 1).clamp(first, last);
                }
            }
        }
        rng.shuffle(&mut blocks);
        blocks
    }

    /// The tokens that training blocks may contain in any epoch, in order: one range of tokens, or one for each group of
    /// neighboring blocks. Not even their targets are evaluation text, unless the split is by blocks.
    pub fn training_ranges(&self) -> Vec<Range<usize>> {
        if self.stream.split.kind == SplitKind::Contiguous {
            return std::iter::once(0..self.stream.eval_start - 1).collect();
        }
        let mut blocks = self.train.clone();
        blocks.sort_unstable();
        let groups = blocks.chunk_by(|block, next| block + self.block_size == *next);
        groups.map(|group| group[0]..group[group.len() - 1] + self.block_size).collect()
    }

    /// The mean length of a token of a part, over all targets of its blocks.
    pub fn text_per_token(&self, part: Part, tokenizer: &Tokenizer) -> TextPerToken {
        let mut sizes = TextSize::default();
        let (lengths, mut targets) = (tokenizer.text_sizes(), Vec::new());
        for &start in self.blocks(part) {
            targets.clear();
            self.stream.tokens.copy(start + 1..start + 1 + self.block_size, &mut targets);
            targets.iter().for_each(|&id| sizes += lengths[id as usize]);
        }
        TextPerToken::new(sizes, (self.blocks(part).len() * self.block_size) as u64)
    }

    /// The stream that the blocks are cut from.
    pub(crate) fn stream(&self) -> &TokenStream {
        &self.stream
    }

    /// Tokens per block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Optimizer steps per epoch. An epoch uses every training block once; its last batch may be short.
    pub fn steps_per_epoch(&self, batch_size: usize) -> u64 {
        self.train.len().div_ceil(batch_size) as u64
    }

    /// A text for evaluation only; see [`TokenStream::for_evaluation`].
    ///
    /// # Errors
    /// If it has fewer than two tokens.
    pub fn for_evaluation(stream: Arc<TokenStream>, block_size: usize) -> Result<Self> {
        if stream.len() < 2 {
            let reason = "the text has fewer than two tokens; evaluation needs at least two";
            return Err(Error::setting("data", reason));
        }
        let blocks = (stream.len() - 1) / block_size;
        let eval = (0..blocks).map(|block| block * block_size).collect();
        Ok(Self { stream, block_size, train: Vec::new(), eval, test: Vec::new() })
    }

    /// The tokens of the evaluation or test part of a contiguous split after its last whole block: start and number of
    /// targets.
    pub fn tail(&self, part: Part) -> Option<(usize, usize)> {
        let TokenStream { split, eval_start, test_start, .. } = *self.stream;
        let (start, end) = match (split.kind, part) {
            (SplitKind::Blocks, _) | (_, Part::Train) => return None,
            (SplitKind::Contiguous, Part::Eval) => (eval_start, test_start),
            (SplitKind::Contiguous, Part::Test) => (test_start, self.stream.len()),
        };
        let start = self.blocks(part).last().map_or(start, |block| block + self.block_size);
        let targets = end.saturating_sub(1 + start);
        (targets > 0).then_some((start, targets))
    }
}

/// The inputs and targets of a batch, in buffers that are reused.
#[derive(Clone, Debug, Default)]
pub struct BatchBuffer {
    inputs: Vec<u32>,
    targets: Vec<u32>,
}

impl BatchBuffer {
    /// Copies `time` tokens and their targets from each start.
    pub fn fill(&mut self, dataset: &Dataset, starts: &[usize], time: usize) -> crate::model::Batch<'_> {
        let tokens = &dataset.stream.tokens;
        self.inputs.clear();
        self.targets.clear();
        for &start in starts {
            tokens.copy(start..start + time, &mut self.inputs);
            tokens.copy(start + 1..start + 1 + time, &mut self.targets);
        }
        crate::model::Batch { inputs: &self.inputs, targets: &self.targets, time }
    }
}

/// The error for a text that is too short. Each part needs one block, and one more token for the last target.
fn too_short(stream: &TokenStream, block_size: usize) -> Error {
    let TokenStream { split: Split { kind, test_fraction }, eval_start, test_start, .. } = *stream;
    let has_test = test_fraction > 0.0;
    let len = stream.len();
    let largest = match kind {
        // Depends on how the blocks are rounded.
        SplitKind::Blocks if has_test => 0,
        SplitKind::Blocks => len.saturating_sub(1) / 2,
        SplitKind::Contiguous => {
            let test = if has_test { len - test_start } else { usize::MAX };
            eval_start.min(test_start - eval_start).min(test).saturating_sub(1)
        }
    };
    let way_out = match largest {
        0 if has_test => "use a longer text, a smaller `block_size` or a smaller `test_fraction`".to_owned(),
        0 => "use a longer text".to_owned(),
        largest => format!("the largest that fits is `block_size {largest}`"),
    };
    let needed = if has_test {
        "a training, an evaluation and a test block"
    } else {
        "a training and an evaluation block"
    };
    let reason =
        format!("{block_size} is too large for a text of {len} tokens, which needs {needed}; {way_out}");
    Error::setting("block_size", reason)
}
