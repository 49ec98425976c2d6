//! From a text to batches: the token stream, its split, and the order of an epoch.
//!
//! The stream is cut into blocks of `block_size` tokens; the targets of a block are the same tokens one later.
//! A block belongs to one part for good: evaluation never sees a training block, not even after a resumption,
//! since the split is a function of the run's seed alone.

use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::rng::{Rng, Stream};
use crate::tokenizer::Tokenizer;

/// How a text is divided into training and evaluation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", try_from = "String")]
pub enum SplitKind {
    /// All blocks, shuffled once: 80 % train, 10 % eval, 10 % test. The ancestor's.
    #[default]
    Blocks,
    /// The first 90 % of the characters train, the last 10 % evaluate, as in nanoGPT and most published
    /// results. There is no test part.
    Contiguous,
}

impl TryFrom<String> for SplitKind {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

impl FromStr for SplitKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "blocks" => Ok(Self::Blocks),
            "contiguous" => Ok(Self::Contiguous),
            _ => Err(Error::unknown_name("split", name, &["blocks", "contiguous"])),
        }
    }
}

/// A part of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What the model learns from.
    Train,
    /// What its settings are chosen by.
    Eval,
    /// What is looked at last.
    Test,
}

impl FromStr for Part {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "train" => Ok(Self::Train),
            "eval" => Ok(Self::Eval),
            "test" => Ok(Self::Test),
            _ => Err(Error::unknown_name("part", name, &["train", "eval", "test"])),
        }
    }
}

/// A text in tokens, ready to be cut for a kind of split.
#[derive(Clone, Debug)]
pub struct TokenStream {
    tokens: Vec<u32>,
    split: SplitKind,
    /// Where the evaluation tokens begin; the stream's end if the split is by blocks.
    eval_start: usize,
}

impl TokenStream {
    /// Encodes a text. For a contiguous split the two parts are encoded apart, so that no token spans the
    /// border.
    pub fn encode(text: &str, tokenizer: &Tokenizer, split: SplitKind) -> Result<Self> {
        let border = match split {
            SplitKind::Blocks => text.len(),
            SplitKind::Contiguous => {
                let train_chars = text.chars().count() * 9 / 10;
                text.char_indices().nth(train_chars).map_or(text.len(), |(index, _)| index)
            }
        };
        let mut tokens = tokenizer.encode(&text[..border])?;
        let eval_start = tokens.len();
        tokens.extend(tokenizer.encode(&text[border..])?);
        Ok(Self { tokens, split, eval_start })
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}

/// A token stream cut into blocks, each in its part.
#[derive(Clone, Debug)]
pub struct Dataset {
    stream: Arc<TokenStream>,
    block_size: usize,
    /// Where each block starts in the stream, in the order of the stream or of the split.
    train: Vec<usize>,
    eval: Vec<usize>,
    test: Vec<usize>,
}

impl Dataset {
    /// Cuts a stream into blocks and splits them, by `seed` if the split is by blocks.
    ///
    /// # Errors
    /// If the text is too short for a training and an evaluation block.
    pub fn new(stream: Arc<TokenStream>, block_size: usize, seed: u64) -> Result<Self> {
        let cut = |start: usize, end: usize| -> Vec<usize> {
            let blocks = (end - start).saturating_sub(1) / block_size;
            (0..blocks).map(|block| start + block * block_size).collect()
        };
        let (train, eval, test) = match stream.split {
            SplitKind::Contiguous => {
                (cut(0, stream.eval_start), cut(stream.eval_start, stream.len()), Vec::new())
            }
            SplitKind::Blocks => {
                let mut blocks = cut(0, stream.len());
                Rng::new(seed, Stream::Split).shuffle(&mut blocks);
                let tenth = blocks.len() / 10;
                // A short text has one block to evaluate on before it has one to test on.
                let eval = tenth.max(1).min(blocks.len());
                let test = blocks.split_off(blocks.len() - tenth);
                let eval = blocks.split_off(blocks.len() - eval);
                (blocks, eval, test)
            }
        };
        if train.is_empty() || eval.is_empty() {
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

    /// Tokens of a block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Optimizer steps of an epoch: every training block once, the last batch may be short.
    pub fn steps_per_epoch(&self, batch_size: usize) -> u64 {
        self.train.len().div_ceil(batch_size) as u64
    }

    /// The evaluation tokens behind the last whole block of a contiguous split: start and number of targets.
    pub fn eval_tail(&self) -> Option<(usize, usize)> {
        if self.stream.split == SplitKind::Blocks {
            return None;
        }
        let start = self.eval.last()? + self.block_size;
        let targets = self.stream.len() - 1 - start;
        (targets > 0).then_some((start, targets))
    }
}

/// The inputs and targets of one batch; its buffers serve all batches of a run.
#[derive(Clone, Debug, Default)]
pub struct BatchBuffer {
    inputs: Vec<u32>,
    targets: Vec<u32>,
}

impl BatchBuffer {
    /// Copies `time` tokens from each start, and their targets.
    pub fn fill(&mut self, dataset: &Dataset, starts: &[usize], time: usize) -> crate::model::Batch<'_> {
        let tokens = &dataset.stream.tokens;
        self.inputs.clear();
        self.targets.clear();
        for &start in starts {
            self.inputs.extend_from_slice(&tokens[start..][..time]);
            self.targets.extend_from_slice(&tokens[start + 1..][..time]);
        }
        crate::model::Batch { inputs: &self.inputs, targets: &self.targets, time }
    }
}

/// Says how large a block may be: each part needs one, and one more token for the last target.
fn too_short(stream: &TokenStream, block_size: usize) -> Error {
    let largest = match stream.split {
        SplitKind::Blocks => stream.len().saturating_sub(1) / 2,
        SplitKind::Contiguous => stream.eval_start.min(stream.len() - stream.eval_start).saturating_sub(1),
    };
    let way_out = match largest {
        0 => "give a longer text".to_owned(),
        largest => format!("the largest that fits is --block_sizes {largest}"),
    };
    let reason = format!(
        "{block_size} tokens a block are too many for a text of {} tokens, of which a training and an evaluation \
         block must be cut: {way_out}",
        stream.len()
    );
    Error::setting("--block_sizes", reason)
}
