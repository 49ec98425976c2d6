//! How good a model is on text that it never trained on.

use serde::Serialize;

use crate::data::{BatchBuffer, Dataset, Part};
use crate::error::{Error, Result};
use crate::model::Gpt2;
use crate::tokenizer::Tokenizer;

/// The mean loss over batches of `batch_size` blocks, nats a token, without dropout: the eval loss of the
/// training reports. As in the ancestor every batch counts alike, even a short last one.
pub fn mean_batch_loss(
    model: &mut Gpt2,
    dataset: &Dataset,
    blocks: &[usize],
    batch_size: usize,
    buffer: &mut BatchBuffer,
) -> f64 {
    let mut sum = 0.0;
    for starts in blocks.chunks(batch_size) {
        let losses = model.losses(buffer.fill(dataset, starts, dataset.block_size()));
        sum += losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / losses.len() as f64;
    }
    sum / blocks.len().div_ceil(batch_size) as f64
}

/// The loss over a whole part of the data.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Tokens predicted.
    pub tokens: u64,
    /// Characters that they stand for.
    pub characters: u64,
    /// Mean over all tokens, nats a token.
    pub loss: f64,
    /// exp(loss).
    pub perplexity: f64,
    /// Bits a character: comparable across tokenizers.
    pub bits_per_character: f64,
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
    if blocks.is_empty() {
        let reason = "the run's split has no such part: choose eval, or train with `--split blocks`";
        return Err(Error::setting("--split", reason));
    }
    let tail = dataset.eval_tail().filter(|_| part == Part::Eval);
    let whole = blocks.chunks(BATCH).map(|starts| (starts, dataset.block_size()));
    let tail = tail.as_ref().map(|(start, time)| (std::slice::from_ref(start), *time));
    let mut buffer = BatchBuffer::default();
    let (mut nats, mut tokens, mut characters) = (0.0, 0, 0);
    for (starts, time) in whole.chain(tail) {
        let batch = buffer.fill(dataset, starts, time);
        nats += model.losses(batch).iter().map(|&loss| f64::from(loss)).sum::<f64>();
        tokens += batch.targets.len() as u64;
        // A character's first byte is the one that is not a continuation: tokens may end inside a character.
        let bytes = tokenizer.decode_bytes(batch.targets);
        characters += bytes.iter().filter(|&&byte| byte & 0xC0 != 0x80).count() as u64;
    }
    let loss = nats / tokens as f64;
    let bits_per_character = nats / std::f64::consts::LN_2 / characters as f64;
    Ok(Evaluation { tokens, characters, loss, perplexity: loss.exp(), bits_per_character })
}
