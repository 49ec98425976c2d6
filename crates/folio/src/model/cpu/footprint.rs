//! How much memory training takes.

use super::CpuBackend;
use super::pass::CHUNK_TOKENS;
use crate::distributed::RankCount;
use crate::model::{Frozen, ModelConfig, Precision};

impl CpuBackend {
    /// Approximate memory of training in bytes, with batches of `batch_size` sequences of `block_size` tokens in
    /// `micro_batches` micro-batches per rank: weights, gradients, moments, packed weights, and the activations that the backward
    /// pass reads. What is frozen has no gradients and no moments. With `zero` 1 the moments are divided over the `ranks`.
    pub fn training_bytes(
        config: &ModelConfig,
        precision: Precision,
        batch_size: usize,
        micro_batches: usize,
        frozen: Frozen,
        ranks: RankCount,
        zero: usize,
    ) -> u64 {
        let ModelConfig { n_blocks: l, n_emb: c, block_size: t, .. } = *config;
        let sequences = batch_size.div_ceil(ranks.all * micro_batches.max(1));
        let levels = micro_batches.max(1).next_power_of_two().ilog2() as u128;
        let [l, c, t, i, sequences] = [l, c, t, config.inner(), sequences].map(|size| size as u128);
        let element = if precision == Precision::F32 { 4 } else { 2 };
        let parameters = config.matrix_elements();
        let trained = parameters - frozen.matrix_elements(config);
        // Per token: qkv, heads (4 C) and fc (I) in the format and two residual streams in f32, for each block; operands of
        // one block's weight gradients (8 C + 2 I) in the format; the gradient of the residual stream.
        let token = l * ((4 * c + i) * element + 8 * c) + (8 * c + 2 * i) * element + 8 * c;
        // The gradients of the logits of a group of chunks; of one chunk, each thread's exponentials and the gradients of a segment.
        let v = config.vocab_size as u128;
        let chunk_tokens = t.max((sequences * t).min(CHUNK_TOKENS as u128));
        let scratch = rayon::current_num_threads() as u128 * chunk_tokens * (v + v.min(2048));
        let logits = (sequences * t * v).min(1 << 26) + scratch;
        // Both orders of every matrix that is multiplied with; of the embeddings only a tied head is.
        let packed = parameters - if config.tie_word_embeddings { 0 } else { v * c };
        let moments = if zero == 0 { trained * 8 } else { (trained * 8).div_ceil(ranks.all as u128) };
        let bytes = parameters * 4
            + trained * (4 + 4 * levels)
            + moments
            + 2 * packed * element
            + sequences * t * token
            + logits * element;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}
