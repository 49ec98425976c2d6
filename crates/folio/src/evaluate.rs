//! How good a model is on text that it never trained on.

use serde::Serialize;

use crate::data::{BatchBuffer, Dataset, Part};
use crate::error::{Error, Result};
use crate::model::Gpt2;
use crate::text::{Bits, TextPerToken, TextSize};
use crate::tokenizer::Tokenizer;

/// The mean loss over batches of `batch_size` blocks, nats a token, without dropout: the eval loss of the
/// training reports. As in the ancestor every batch counts alike, even a short last one. None if `goes_on`, which is
/// asked before each batch, says no.
pub fn mean_batch_loss(
    model: &mut Gpt2,
    dataset: &Dataset,
    blocks: &[usize],
    batch_size: usize,
    buffer: &mut BatchBuffer,
    goes_on: impl Fn() -> bool,
) -> Option<f64> {
    let mut sum = 0.0;
    for starts in blocks.chunks(batch_size) {
        if !goes_on() {
            return None;
        }
        let losses = model.losses(buffer.fill(dataset, starts, dataset.block_size()));
        sum += losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / losses.len() as f64;
    }
    Some(sum / blocks.len().div_ceil(batch_size) as f64)
}

/// The loss over a whole part of the data.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Tokens predicted.
    pub tokens: u64,
    /// Characters that they stand for.
    pub characters: u64,
    /// Bytes that they stand for.
    pub bytes: u64,
    /// Mean over all tokens, nats a token.
    pub loss: f64,
    /// exp(loss).
    pub perplexity: f64,
    /// Bits a character: comparable across tokenizers.
    pub bits_per_character: f64,
    /// Bits a byte of UTF-8: comparable across languages too.
    pub bits_per_byte: f64,
}

/// Evaluates a model on every token of a part, each counting alike, the tail behind the last whole block of a
/// contiguous split included. The same figures at every call.
///
/// # Errors
/// If the split has no such part.
pub fn evaluate(
    model: &mut Gpt2,
    dataset: &Dataset,
    tokenizer: &Tokenizer,
    part: Part,
) -> Result<Evaluation> {
    /// Blocks a pass: enough to fill the cores, few enough for a small machine.
    const BATCH: usize = 16;
    let blocks = dataset.blocks(part);
    let tail = dataset.eval_tail().filter(|_| part == Part::Eval);
    if blocks.is_empty() && tail.is_none() {
        let reason = "the run's split has no such part: choose eval, or train with `--split blocks`";
        return Err(Error::setting("split", reason));
    }
    let whole = blocks.chunks(BATCH).map(|starts| (starts, dataset.block_size()));
    let tail = tail.as_ref().map(|(start, time)| (std::slice::from_ref(start), *time));
    let mut buffer = BatchBuffer::default();
    let (mut nats, mut tokens, mut size) = (0.0, 0, TextSize::default());
    for (starts, time) in whole.chain(tail) {
        let batch = buffer.fill(dataset, starts, time);
        nats += model.losses(batch).iter().map(|&loss| f64::from(loss)).sum::<f64>();
        tokens += batch.targets.len() as u64;
        size += TextSize::of(&tokenizer.decode_bytes(batch.targets));
    }
    let loss = nats / tokens as f64;
    let Bits { per_character, per_byte } = TextPerToken::new(size, tokens).bits(loss);
    let TextSize { characters, bytes } = size;
    Ok(Evaluation {
        tokens,
        characters,
        bytes,
        loss,
        perplexity: loss.exp(),
        bits_per_character: per_character,
        bits_per_byte: per_byte,
    })
}
