//! The forward pass of GPT-2, op by op in the paper's order.

use folio_kernels::attention::attention_forward;
use folio_kernels::columns::ColumnsMut;
use folio_kernels::dims::HeadDims;
use folio_kernels::dropout::dropout_in_place;
use folio_kernels::element::Element;
use folio_kernels::embedding::embedding_forward;
use folio_kernels::head::{head_forward, head_logits};
use folio_kernels::layernorm::layernorm_forward;
use folio_kernels::linear::{linear_forward, linear_gelu_forward, linear_residual_forward};
use rayon::prelude::*;

use super::activations::{
    Activations, BlockActivations, ChunkActivations, EvaluationJob, LayerNormStatistics, ThreadScratch,
};
use super::pass::{Pass, PassBlock, PassWeights, Site};
use crate::model::Batch;

impl Pass {
    /// The losses of a batch, left in `a.losses`.
    pub(super) fn losses<E: Element>(self, weights: PassWeights<E>, a: &mut Activations<E>, batch: Batch) {
        let (jobs, scratch) = a.evaluation_jobs(self, batch);
        jobs.for_each(|job| {
            let EvaluationJob { pass, inputs, targets, chunk, losses } = job;
            let scratch = &mut *scratch.of_this_thread();
            pass.forward(weights, chunk, scratch, inputs);
            let normed = &scratch.normed[..pass.tokens() * self.config.n_emb];
            let head = weights.packed.head();
            head_forward(pass.head_dims(), losses, normed, head, targets, &mut scratch.head);
        });
    }

    /// The logits of the token that follows each token of a batch: (B, T, V), overwritten.
    pub(super) fn batch_logits<E: Element>(
        self,
        weights: PassWeights<E>,
        a: &mut Activations<E>,
        logits: &mut [f32],
        batch: Batch,
    ) {
        let vocab = self.config.vocab_size;
        let (jobs, scratch) = a.evaluation_jobs(self, batch);
        jobs.zip(logits.par_chunks_mut(self.chunk_tokens() * vocab)).for_each(|(job, logits)| {
            let EvaluationJob { pass, inputs, chunk, .. } = job;
            let scratch = &mut *scratch.of_this_thread();
            pass.forward(weights, chunk, scratch, inputs);
            let normed = &scratch.normed[..pass.tokens() * self.config.n_emb];
            head_logits(pass.head_dims(), ColumnsMut::new(logits, vocab), normed, weights.packed.head());
        });
    }

    /// The logits of the token that follows each of the last tokens of a single sequence: (rows, V), overwritten.
    pub(super) fn last_logits<E: Element>(
        self,
        weights: PassWeights<E>,
        a: &mut Activations<E>,
        logits: &mut [f32],
        tokens: &[u32],
    ) {
        let scratch = &mut *a.scratch.of_this_thread();
        self.forward(weights, &mut a.chunks[0], scratch, tokens);
        let c = self.config.n_emb;
        let rows = logits.len() / self.config.vocab_size;
        let last = &scratch.normed[(self.time - rows) * c..][..rows * c];
        let logits = ColumnsMut::new(logits, self.config.vocab_size);
        head_logits(HeadDims { rows, ..self.head_dims() }, logits, last, weights.packed.head());
    }

    /// The whole model on one chunk up to its final LayerNorm, whose output is left in `scratch.normed`.
    pub(super) fn forward<E: Element>(
        self,
        weights: PassWeights<E>,
        a: &mut ChunkActivations<E>,
        scratch: &mut ThreadScratch<E>,
        inputs: &[u32],
    ) {
        let stream = self.tokens() * self.config.n_emb;
        let x = &mut a.residual[0][..stream];
        let parameters = weights.parameters;
        embedding_forward(self.embedding_dims(), x, parameters.wte(), parameters.wpe(), inputs);
        dropout_in_place(self.row_dims(), x, self.dropout(Site::Embedding));
        // Evaluation has two slots of the residual stream and one block's activations, and reuses them.
        let (slots, kept) = (a.residual.len(), a.blocks.len());
        for idx in 0..self.config.n_blocks {
            // Taken out of the list, because its neighbor, the input, is borrowed at the same time.
            let mut output = std::mem::take(&mut a.residual[(idx + 1) % slots]);
            let input = &a.residual[idx % slots][..stream];
            let block = &mut a.blocks[idx % kept];
            self.block_forward(idx, &weights.block(idx), &mut output[..stream], input, block, scratch);
            a.residual[(idx + 1) % slots] = output;
        }
        let last = &a.residual[self.config.n_blocks % slots][..stream];
        self.layernorm(&mut scratch.normed[..stream], &mut a.ln_f, last, parameters.ln_f());
    }

    /// One transformer block: `middle = x + attn(ln_1(x))`, `output = middle + mlp(ln_2(middle))`.
    fn block_forward<E: Element>(
        self,
        idx: usize,
        w: &PassBlock<E>,
        output: &mut [f32],
        input: &[f32],
        a: &mut BlockActivations<E>,
        scratch: &mut ThreadScratch<E>,
    ) {
        let (rows, c, inner) = (self.tokens(), self.config.n_emb, self.config.inner());
        let (normed, gelu) = (&mut scratch.normed[..rows * c], &mut scratch.wide[..rows * inner]);
        let (qkv, fc) = (&mut a.qkv[..rows * 3 * c], &mut a.fc[..rows * inner]);
        let (heads, middle) = (&mut a.heads[..rows * c], &mut a.middle[..rows * c]);
        let lse = &mut a.lse[..rows * self.config.n_heads];
        let PassBlock { vectors: v, packed } = w;

        self.layernorm(normed, &mut a.ln_1, input, (v.ln_1_weight, v.ln_1_bias));
        linear_forward(
            self.linear_dims(&packed.c_attn),
            ColumnsMut::new(qkv, 3 * c),
            normed,
            packed.c_attn.forward(),
            v.c_attn_bias,
        );
        let dropout = self.dropout(Site::AttentionWeights { block: idx });
        attention_forward(self.attention_dims(), heads, lse, qkv, dropout, &mut scratch.attention);
        linear_residual_forward(
            self.linear_dims(&packed.attn_proj),
            ColumnsMut::new(middle, c),
            input,
            heads,
            (packed.attn_proj.forward(), v.attn_proj_bias),
            self.dropout(Site::AttentionBranch { block: idx }),
        );

        self.layernorm(normed, &mut a.ln_2, middle, (v.ln_2_weight, v.ln_2_bias));
        linear_gelu_forward(
            self.linear_dims(&packed.c_fc),
            self.config.activation.kernel(),
            (ColumnsMut::new(fc, inner), ColumnsMut::new(gelu, inner)),
            normed,
            (packed.c_fc.forward(), v.c_fc_bias),
        );
        linear_residual_forward(
            self.linear_dims(&packed.mlp_proj),
            ColumnsMut::new(output, c),
            middle,
            gelu,
            (packed.mlp_proj.forward(), v.mlp_proj_bias),
            self.dropout(Site::MlpBranch { block: idx }),
        );
    }

    /// `y = layernorm(x)`, storing its statistics.
    fn layernorm<E: Element>(
        self,
        y: &mut [E],
        statistics: &mut LayerNormStatistics,
        x: &[f32],
        weights: (&[f32], &[f32]),
    ) {
        let LayerNormStatistics { mean, rstd } = statistics;
        let statistics = (&mut mean[..self.tokens()], &mut rstd[..self.tokens()]);
        layernorm_forward(self.row_dims(), self.config.layer_norm_epsilon, y, statistics, x, weights);
    }
}
