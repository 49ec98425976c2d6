//! The loss of a model on text that it was not trained on.

use serde::Serialize;

use crate::data::{BatchBuffer, Dataset, Part};
use crate::distributed::{Communicator, Division, any};
use crate::ensemble::Ensemble;
use crate::error::{Error, Result};
use crate::model::{Backend, Batch};
use crate::text::{Bits, TextPerToken, TextSize};
use crate::tokenizer::Tokenizer;

/// The batches of an evaluation.
#[derive(Clone, Copy, Debug)]
pub struct EvaluationBatches<'a> {
    /// The text.
    pub dataset: &'a Dataset,
    /// The starts of the blocks to evaluate on.
    pub blocks: &'a [usize],
    /// Blocks per batch.
    pub batch_size: usize,
    /// Micro-batches per batch and rank: they bound the memory.
    pub micro_batches: usize,
}

/// The mean loss over batches in nats per token, without dropout: the eval loss of the training reports. As in the original
/// project, every batch has equal weight, even a short last one. `None` if `should_continue`, which is called before each batch,
/// returns false on any rank.
pub fn mean_batch_loss(
    backend: &mut dyn Backend,
    communicator: &dyn Communicator,
    batches: EvaluationBatches<'_>,
    buffer: &mut BatchBuffer,
    should_continue: impl Fn() -> bool,
) -> Option<f64> {
    let EvaluationBatches { dataset, blocks, batch_size, micro_batches } = batches;
    let time = dataset.block_size();
    let mut sum = 0.0;
    let mut losses = Vec::new();
    for starts in blocks.chunks(batch_size) {
        let [stop] = any(communicator, [!should_continue()]);
        if stop {
            return None;
        }
        // Each rank fills in the losses of its sequences, so that the sum over ranks is exact.
        losses.clear();
        losses.resize(starts.len() * time, 0.0);
        let division = Division::of(communicator, starts.len(), micro_batches);
        for sequences in (0..micro_batches).map(|index| division.micro_batch(index)) {
            if !sequences.is_empty() {
                let own = &mut losses[sequences.start * time..sequences.end * time];
                own.copy_from_slice(backend.losses(buffer.fill(dataset, &starts[sequences], time)));
            }
        }
        communicator.all_reduce(&mut losses);
        sum += losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / losses.len() as f64;
    }
    Some(sum / blocks.len().div_ceil(batch_size) as f64)
}

/// The loss over a whole part of the data.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Number of predicted tokens.
    pub tokens: u64,
    /// Their length in characters.
    pub characters: u64,
    /// Their length in bytes.
    pub bytes: u64,
    /// Mean over all tokens, in nats per token.
    pub loss: f64,
    /// exp(loss).
    pub perplexity: f64,
    /// Bits per character: comparable across tokenizers.
    pub bits_per_character: f64,
    /// Bits per byte of UTF-8: comparable across languages too.
    pub bits_per_byte: f64,
}

/// Evaluates a model on every token of a part with equal weight, including the tail after the last whole block of a contiguous
/// split. Deterministic.
///
/// # Errors
/// If the split has no such part.
pub fn evaluate(
    model: &mut dyn Backend,
    dataset: &Dataset,
    tokenizer: &Tokenizer,
    part: Part,
) -> Result<Evaluation> {
    let nats = |batch: Batch<'_>| model.losses(batch).iter().map(|&loss| f64::from(loss)).sum();
    evaluate_with(nats, dataset, tokenizer, part)
}

/// [`evaluate`] of the mean of several models.
///
/// # Errors
/// If the split has no such part.
pub fn evaluate_ensemble(
    ensemble: &mut Ensemble,
    dataset: &Dataset,
    tokenizer: &Tokenizer,
    part: Part,
) -> Result<Evaluation> {
    evaluate_with(|batch| ensemble.losses(batch).iter().sum(), dataset, tokenizer, part)
}

/// Evaluates whatever computes the sum of a batch's losses in nats.
fn evaluate_with(
    mut nats_of: impl FnMut(Batch<'_>) -> f64,
    dataset: &Dataset,
    tokenizer: &Tokenizer,
    part: Part,
) -> Result<Evaluation> {
    /// Blocks per pass: enough to occupy all cores, few enough for a machine with little memory.
    const BATCH: usize = 16;
    let blocks = dataset.blocks(part);
    let tail = dataset.tail(part);
    if blocks.is_empty() && tail.is_none() {
        let reason = "the run's split has no such part: choose eval, or train with `--test_fraction 0.5`";
        return Err(Error::setting("part", reason));
    }
    let whole = blocks.chunks(BATCH).map(|starts| (starts, dataset.block_size()));
    let tail = tail.as_ref().map(|(start, time)| (std::slice::from_ref(start), *time));
    let mut buffer = BatchBuffer::default();
    let (mut nats, mut tokens, mut size) = (0.0, 0, TextSize::default());
    for (starts, time) in whole.chain(tail) {
        let batch = buffer.fill(dataset, starts, time);
        nats += nats_of(batch);
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
