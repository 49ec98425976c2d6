//! Several models as one: the mean of their probabilities.
//!
//! Source: Hansen and Salamon 1990, "Neural Network Ensembles"; Lakshminarayanan et al. 2017, "Simple and Scalable Predictive
//! Uncertainty Estimation using Deep Ensembles", section 2.4. The loss of the mean is never above the mean of the losses,
//! because -ln is convex.

use rayon::prelude::*;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::model::{Backend, Batch, CpuBackend, ModelConfig};

/// Models of one vocabulary and one context length, whose probabilities are averaged.
pub struct Ensemble {
    members: Vec<CpuBackend>,
    /// (B, T)
    losses: Vec<f64>,
    /// (B, T, V): the logits of one member.
    logits: Vec<f32>,
    mixture: Mixture,
}

impl Ensemble {
    /// The mean of these models.
    ///
    /// # Errors
    /// [`Error::Setting`] if there are none, or they differ in their vocabulary or context length.
    pub fn new(members: Vec<CpuBackend>) -> Result<Self> {
        check_members(members.iter().map(Backend::config))?;
        Ok(Self { members, losses: Vec::new(), logits: Vec::new(), mixture: Mixture::default() })
    }

    /// The sizes of the first member. Vocabulary and context length are those of all.
    pub fn config(&self) -> &ModelConfig {
        self.members[0].config()
    }

    /// The number of models.
    pub fn members(&self) -> usize {
        self.members.len()
    }

    /// The loss of each token of a batch in nats, (B, T), without dropout: -ln of the mean of the probabilities that the
    /// members give to the target.
    pub fn losses(&mut self, batch: Batch<'_>) -> &[f64] {
        // -ln(mean of exp(-loss)) = lowest - ln(mean of exp(lowest - loss)), which does not underflow.
        let members = self.members.len();
        let of_members: Vec<Vec<f32>> =
            self.members.iter_mut().map(|member| member.losses(batch).to_vec()).collect();
        let mean = |token: usize| {
            let losses = || of_members.iter().map(|losses| f64::from(losses[token]));
            let lowest = losses().fold(f64::INFINITY, f64::min);
            let sum: f64 = losses().map(|loss| (lowest - loss).exp()).sum();
            lowest - (sum / members as f64).ln()
        };
        self.losses.clear();
        self.losses.extend((0..batch.targets.len()).map(mean));
        &self.losses
    }

    /// The logarithm of the mean probability of every token of the vocabulary after each token of a batch, (B, T, V), without
    /// dropout. Takes 16 bytes for each of them, so it is for small vocabularies or small batches.
    pub fn log_probabilities(&mut self, batch: Batch<'_>) -> &[f32] {
        let Self { members, logits, mixture, .. } = self;
        let vocab = members[0].config().vocab_size;
        logits.resize(batch.inputs.len() * vocab, 0.0);
        mixture.begin(batch.inputs.len(), vocab);
        for member in members.iter_mut() {
            member.batch_logits(batch, logits);
            mixture.add(logits, vocab);
        }
        mixture.finish(members.len())
    }
}

/// Checks that the models of checkpoints have one tokenizer, and with `same_text` that none was trained on text that another is
/// evaluated on.
///
/// # Errors
/// [`Error::Checkpoint`] of the first one that differs from the first of all.
pub fn check_checkpoints(checkpoints: &[Checkpoint], same_text: bool) -> Result<()> {
    let Some((first, others)) = checkpoints.split_first() else { return Ok(()) };
    let path = first.directory().display();
    let identity = &first.state().identity;
    for checkpoint in others {
        let other = &checkpoint.state().identity;
        let (one, two) = (identity.model.block_size, other.model.block_size);
        let reason = if other.tokenizer_sha256 != identity.tokenizer_sha256 {
            format!(
                "was trained with another tokenizer than {path}: an ensemble needs one tokenizer; leave it out"
            )
        } else if one != two {
            format!(
                "has block_size {two} and {path} has {one}: an ensemble needs one context length; leave it out"
            )
        } else if let Some(what) = identity.text_difference(other).filter(|_| same_text) {
            format!(
                "was trained with another {what} than {path}, so the evaluation text of one may be training text of the \
                 other; leave it out, or evaluate on another text"
            )
        } else {
            continue;
        };
        return Err(Error::Checkpoint { path: checkpoint.directory().to_path_buf(), reason });
    }
    Ok(())
}

/// Checks that models can be averaged.
///
/// # Errors
/// [`Error::Setting`] if there are none, or they differ in their vocabulary or context length.
pub(crate) fn check_members<'a>(mut members: impl Iterator<Item = &'a ModelConfig>) -> Result<()> {
    let Some(first) = members.next() else {
        return Err(Error::setting("ensemble", "needs at least one model"));
    };
    for (config, number) in members.zip(2..) {
        let sizes = [
            ("vocab_size", first.vocab_size, config.vocab_size),
            ("block_size", first.block_size, config.block_size),
        ];
        if let Some((name, one, other)) = sizes.iter().find(|(_, one, other)| one != other) {
            let reason = format!(
                "model {number} has {name} {other} and the first has {one}: probabilities are averaged over one vocabulary \
                 and one context length; leave it out"
            );
            return Err(Error::setting("ensemble", reason));
        }
    }
    Ok(())
}

/// The mean of several softmaxes, row by row. Its buffers are reused.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mixture {
    vocab: usize,
    /// (rows, V): the sum of the probabilities so far.
    sums: Vec<f64>,
    /// (rows, V): the logarithm of their mean.
    logs: Vec<f32>,
}

impl Mixture {
    /// Begins with rows of `vocab` tokens.
    pub(crate) fn begin(&mut self, rows: usize, vocab: usize) {
        self.vocab = vocab;
        self.sums.clear();
        self.sums.resize(rows * vocab, 0.0);
    }

    /// Adds a model's probabilities, the softmax of the first V of each row of `stride` logits.
    pub(crate) fn add(&mut self, logits: &[f32], stride: usize) {
        let vocab = self.vocab;
        self.sums.par_chunks_exact_mut(vocab).zip(logits.par_chunks_exact(stride)).for_each(
            |(sums, logits)| {
                let logits = &logits[..vocab];
                let highest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
                let exponential = |logit: &f32| (f64::from(*logit) - highest).exp();
                let total: f64 = logits.iter().map(exponential).sum();
                sums.iter_mut().zip(logits).for_each(|(sum, logit)| *sum += exponential(logit) / total);
            },
        );
    }

    /// The logarithm of the mean over `members` models: (rows, V).
    pub(crate) fn finish(&mut self, members: usize) -> &[f32] {
        let Self { sums, logs, .. } = self;
        logs.resize(sums.len(), 0.0);
        // A probability of 0 is the lowest number, not minus infinity.
        let log = |sum: f64| (sum / members as f64).max(f64::MIN_POSITIVE).ln() as f32;
        logs.par_iter_mut().zip(&*sums).with_min_len(1024).for_each(|(out, &sum)| *out = log(sum));
        logs
    }
}
