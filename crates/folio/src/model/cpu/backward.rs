//! The backward pass of GPT-2: the forward pass op by op in reverse order.
//!
//! The gradients of a block's weights sum over all tokens. They are computed when every chunk has been through the block,
//! and there threads share the rows of each weight.

use folio_kernels::attention::{Forward, attention_backward};
use folio_kernels::dims::RowDims;
use folio_kernels::dropout::{dropout_backward, dropout_in_place};
use folio_kernels::element::Element;
use folio_kernels::embedding::embedding_backward;
use folio_kernels::head::{Objective, SoftTargets, head_backward, head_forward};
use folio_kernels::layernorm::{LayerNormGradients, Statistics, layernorm_backward, layernorm_recompute};
use folio_kernels::linear::{
    GeluGradients, column_sums, linear_backward_input, linear_backward_weight, linear_gelu_backward,
    weight_piece,
};
use folio_kernels::panels::{PanelDims, Panels, Reuse};
use rayon::prelude::*;

use super::activations::{
    Activations, BackwardJob, ForwardJob, LayerNormStatistics, Operands, ThreadScratch, VectorGradients,
    operands_len,
};
use super::gradients::Gradients;
use super::pass::{Pass, PassBlock, PassWeights, Site};
use crate::model::Batch;
use crate::model::packed_matrix::pack;
use crate::model::parameters::{BlockVectors, ParametersMut};

impl Pass {
    /// Forward and backward of a micro-batch. Leaves the token losses in `a.losses`, and overwrites `gradients` by those of
    /// the mean loss of the global batch, except where parameters are frozen. Below the lowest trained ones there is no
    /// backward pass.
    pub(super) fn forward_backward<E: Element>(
        self,
        weights: PassWeights<E>,
        gradients: &mut Gradients,
        a: &mut Activations<E>,
        batch: Batch,
        soft_targets: Option<SoftTargets>,
    ) {
        self.forward_and_head(weights, &mut gradients.rest, a, batch, soft_targets);
        gradients.complete(gradients.rest.ln_f_start());
        // The operands are read after all chunks have written theirs.
        let reuse = Reuse::of(operands_len::<E>(self.tokens(), &self.config) * size_of::<E>());
        for idx in (self.frozen.lowest_block()..self.config.n_blocks).rev() {
            let (jobs, scratch) = a.backward_jobs(self);
            jobs.for_each(|job| {
                let (pass, w, mut scratch) = (job.pass, weights.block(idx), scratch.of_this_thread());
                let dresidual = pass.block_backward(idx, &w, job, reuse, &mut scratch);
                if idx == 0 && !self.frozen.embeddings {
                    dropout_in_place(pass.row_dims(), dresidual, pass.dropout(Site::Embedding));
                }
                drop(scratch); // Waiting threads may take other work, which needs it.
                gradients.progress();
            });
            if idx >= self.frozen.blocks {
                self.weight_gradients(idx, &mut gradients.rest, a);
                gradients.complete(gradients.rest.block_start(idx));
            }
        }
        if !self.frozen.embeddings {
            self.embedding_gradients(&mut gradients.rest, a, batch);
        }
        gradients.complete(0);
    }

    /// The gradients of the embeddings from that of the first block's input.
    fn embedding_gradients<E: Element>(
        self,
        gradients: &mut ParametersMut,
        a: &Activations<E>,
        batch: Batch,
    ) {
        let has_separate_head = gradients.has_separate_head();
        let (dwte, dwpe) = gradients.embeddings_mut();
        if has_separate_head {
            // A tied head has already left its part of the gradient here.
            dwte.fill(0.0);
        }
        dwpe.fill(0.0);
        let dresidual = &a.dresidual[..self.tokens() * self.config.n_emb];
        embedding_backward(self.embedding_dims(), dwte, dwpe, dresidual, batch.inputs);
    }

    /// The forward pass, the loss, and the backward pass of the head and the final LayerNorm, a group of chunks at a
    /// time, so that no (B T, V) matrix exists. Leaves the gradient of the last block's output in `a.dresidual`.
    fn forward_and_head<E: Element>(
        self,
        weights: PassWeights<E>,
        gradients: &mut ParametersMut,
        a: &mut Activations<E>,
        batch: Batch,
        soft_targets: Option<SoftTargets>,
    ) {
        let (c, v) = (self.config.n_emb, self.config.vocab_size);
        let logits = |tokens| PanelDims { depth: tokens, cols: v };
        let logits_len = logits(self.chunk_tokens()).len::<E>();
        // Groups are smaller than the batch only if a group is large (`head_group`), so the size of the batch decides as theirs would.
        let reuse = Reuse::of(self.batch.div_ceil(self.chunk_size) * logits_len * size_of::<E>());
        let group_size = a.capacity.head_group(v) * self.chunk_size;
        for first in (0..self.batch).step_by(group_size) {
            let group = self.part(first..(first + group_size).min(self.batch));
            let (jobs, scratch) = a.forward_jobs(group, first / self.chunk_size, batch, logits_len);
            jobs.for_each(|job| {
                let start = (job.pass.first_sequence - self.first_sequence) * self.time;
                let tokens = start..start + job.pass.tokens();
                let soft_targets = soft_targets.map(|soft| soft.select(tokens, self.tokens()));
                job.pass.chunk_and_head(weights, job, soft_targets, reuse, &mut scratch.of_this_thread());
            });
            if self.frozen.embeddings && !gradients.has_separate_head() {
                continue; // The head's weights are the token embedding.
            }
            let stride = operands_len::<E>(self.chunk_tokens(), &self.config);
            for (chunks, tokens) in group.equal_chunks() {
                let (dims, count) = (PanelDims { depth: tokens, cols: c }, chunks.len());
                let dlogits = &a.dlogits[chunks.start * logits_len..];
                let dlogits = Panels::segmented(logits(tokens), dlogits, count, logits_len);
                let normed = Panels::segmented(dims, &a.operands[chunks.start * stride..], count, stride);
                weight_gradient(gradients.head_mut(), dlogits, normed, first + chunks.start > 0);
            }
        }
        let (dweight, dbias) = gradients.ln_f_mut();
        sum_over_sequences([dweight, dbias], || a.vector_gradients(self));
    }

    /// [`Pass::forward_and_head`] for one chunk, but for the gradient of the head's weights, whose operands are left in
    /// `job`.
    fn chunk_and_head<E: Element>(
        self,
        weights: PassWeights<E>,
        job: ForwardJob<E>,
        soft_targets: Option<SoftTargets>,
        reuse: Reuse,
        scratch: &mut ThreadScratch<E>,
    ) {
        let ForwardJob { inputs, targets, chunk, losses, dresidual, operands, dlogits, .. } = job;
        let (rows, c) = (self.tokens(), self.config.n_emb);
        self.forward(weights, chunk, scratch, inputs);
        let ThreadScratch { normed, dnormed, head, .. } = scratch;
        let (normed, dnormed) = (&normed[..rows * c], &mut dnormed[..rows * c]);
        head_forward(self.head_dims(), losses, normed, weights.packed.head(), targets, head);
        let w = weights.packed.head_backward();
        let (scale, label_smoothing) = (1.0 / self.total_tokens as f32, self.label_smoothing);
        let objective = Objective { targets, scale, label_smoothing, soft_targets };
        head_backward(self.head_dims(), dnormed, dlogits, w, objective, head, reuse);
        pack((rows, c), Some(operands), None, normed, Reuse::Temporal);
        dresidual.fill(0.0);
        let last = &chunk.residual[self.config.n_blocks][..rows * c];
        let layer = LayerNorm { x: last, statistics: &chunk.ln_f, weight: weights.parameters.ln_f().0 };
        self.layernorm_backward(dresidual, dnormed, layer, &mut chunk.vector_gradients, |vectors| {
            vectors[..2 * c].split_at_mut(c)
        });
    }

    /// The backward pass of a block for one chunk: `dresidual` of the job is the gradient of the block's output, then of its input,
    /// and returned. The outputs of the LayerNorms and of GELU are recomputed, which costs less than storing them.
    fn block_backward<'a, E: Element>(
        self,
        idx: usize,
        w: &PassBlock<E>,
        job: BackwardJob<'a, E>,
        reuse: Reuse,
        scratch: &mut ThreadScratch<E>,
    ) -> &'a mut [f32] {
        let BackwardJob { chunk, dresidual, operands, .. } = job;
        let (rows, c, inner) = (self.tokens(), self.config.n_emb, self.config.inner());
        let operands = Operands::of(rows, &self.config, operands);
        let a = &chunk.blocks[idx];
        let (input, middle) = (&chunk.residual[idx][..rows * c], &a.middle[..rows * c]);
        let PassBlock { vectors: v, packed } = w;
        let dvectors = &mut chunk.vector_gradients;
        let ThreadScratch { normed, branch, wide, dnormed, attention, .. } = scratch;
        let (normed, branch, dnormed) =
            (&mut normed[..rows * c], &mut branch[..rows * c], &mut dnormed[..rows * c]);
        let pack = |cols, out, x: &[E]| pack((rows, cols), Some(out), None, x, reuse);

        // output = middle + drop(mlp_proj(gelu(c_fc(ln_2(middle)))))
        let site = Site::MlpBranch { block: idx };
        dropout_backward(self.row_dims(), branch, dresidual, self.dropout(site));
        self.column_sums(branch, dvectors, |dv| dv.mlp_proj_bias);
        pack(c, operands.dmlp, branch);
        let dfc = &mut wide[..rows * inner];
        let gelu = GeluGradients { dfc, dfc_panels: operands.dfc, gelu_panels: operands.gelu, reuse };
        linear_gelu_backward(
            self.linear_dims(&packed.mlp_proj),
            self.config.activation.kernel(),
            gelu,
            &a.fc[..rows * inner],
            branch,
            packed.mlp_proj.backward(),
        );
        let dfc = &wide[..rows * inner];
        self.column_sums(dfc, dvectors, |dv| dv.c_fc_bias);
        self.layernorm_recompute(normed, &a.ln_2, middle, (v.ln_2_weight, v.ln_2_bias));
        pack(c, operands.normed_2, normed);
        linear_backward_input(self.linear_dims(&packed.c_fc), dnormed, dfc, packed.c_fc.backward());
        let layer = LayerNorm { x: middle, statistics: &a.ln_2, weight: v.ln_2_weight };
        self.layernorm_backward(dresidual, dnormed, layer, dvectors, |vectors| {
            let dv = BlockVectors::split(vectors, &self.config);
            (dv.ln_2_weight, dv.ln_2_bias)
        });

        // middle = input + drop(attn_proj(attention(c_attn(ln_1(input)))))
        let site = Site::AttentionBranch { block: idx };
        dropout_backward(self.row_dims(), branch, dresidual, self.dropout(site));
        self.column_sums(branch, dvectors, |dv| dv.attn_proj_bias);
        pack(c, operands.dattn, branch);
        pack(c, operands.heads, &a.heads[..rows * c]);
        let dheads = &mut *normed;
        linear_backward_input(
            self.linear_dims(&packed.attn_proj),
            dheads,
            branch,
            packed.attn_proj.backward(),
        );
        let dqkv = &mut wide[..rows * 3 * c];
        let lse = &a.lse[..rows * self.config.n_heads];
        let forward = Forward { y: &a.heads[..rows * c], qkv: &a.qkv[..rows * 3 * c], lse };
        let dropout = self.dropout(Site::AttentionWeights { block: idx });
        attention_backward(self.attention_dims(), dqkv, dheads, forward, dropout, attention);
        self.column_sums(dqkv, dvectors, |dv| dv.c_attn_bias);
        pack(3 * c, operands.dqkv, dqkv);
        self.layernorm_recompute(normed, &a.ln_1, input, (v.ln_1_weight, v.ln_1_bias));
        pack(c, operands.normed_1, normed);
        linear_backward_input(self.linear_dims(&packed.c_attn), dnormed, dqkv, packed.c_attn.backward());
        let layer = LayerNorm { x: input, statistics: &a.ln_1, weight: v.ln_1_weight };
        self.layernorm_backward(dresidual, dnormed, layer, dvectors, |vectors| {
            let dv = BlockVectors::split(vectors, &self.config);
            (dv.ln_1_weight, dv.ln_1_bias)
        });
        dresidual
    }

    /// The gradients of a block's weights from the operands of all chunks.
    fn weight_gradients<E: Element>(self, idx: usize, gradients: &mut ParametersMut, a: &Activations<E>) {
        let stride = operands_len::<E>(self.chunk_tokens(), &self.config);
        let dw = gradients.block_mut(idx);
        for (chunks, tokens) in self.equal_chunks() {
            let (operands, add) = (&a.operands[chunks.start * stride..], chunks.start > 0);
            let o = Operands::of_all(chunks.len(), tokens, &self.config, operands, stride);
            // The largest first, so that the threads finish at about the same time.
            rayon::join(
                || weight_gradient(dw.c_fc_weight, o.normed_2, o.dfc, add),
                || {
                    weight_gradient(dw.c_attn_weight, o.normed_1, o.dqkv, add);
                    weight_gradient(dw.mlp_proj_weight, o.gelu, o.dmlp, add);
                    weight_gradient(dw.attn_proj_weight, o.heads, o.dattn, add);
                },
            );
        }
        let vectors = [
            dw.ln_1_weight,
            dw.ln_1_bias,
            dw.c_attn_bias,
            dw.attn_proj_bias,
            dw.ln_2_weight,
            dw.ln_2_bias,
            dw.c_fc_bias,
            dw.mlp_proj_bias,
        ];
        sum_over_sequences(vectors, || a.vector_gradients(self));
    }

    /// `y = layernorm(x)` from the statistics of the forward pass.
    fn layernorm_recompute<E: Element>(
        self,
        y: &mut [E],
        statistics: &LayerNormStatistics,
        x: &[f32],
        weights: (&[f32], &[f32]),
    ) {
        let LayerNormStatistics { mean, rstd } = statistics;
        let statistics = Statistics { mean: &mean[..self.tokens()], rstd: &rstd[..self.tokens()] };
        layernorm_recompute(self.row_dims(), y, x, statistics, weights);
    }

    /// `dx += ` the gradient of a LayerNorm's input, from `dy`, that of its output; and each sequence's gradients of its weight and its bias,
    /// which `parts` selects.
    fn layernorm_backward(
        self,
        dx: &mut [f32],
        dy: &[f32],
        layer: LayerNorm,
        vectors: &mut [VectorGradients],
        parts: impl for<'v> Fn(&'v mut [f32]) -> (&'v mut [f32], &'v mut [f32]),
    ) {
        let (t, c) = (self.time, self.config.n_emb);
        let dims = RowDims { rows: t, cols: c };
        let LayerNormStatistics { mean, rstd } = layer.statistics;
        let statistics = mean.chunks_exact(t).zip(rstd.chunks_exact(t));
        let sequences =
            dx.chunks_exact_mut(t * c).zip(dy.chunks_exact(t * c)).zip(layer.x.chunks_exact(t * c));
        for (((dx, dy), x), ((mean, rstd), vectors)) in sequences.zip(statistics.zip(vectors)) {
            let (dweight, dbias) = parts(vectors);
            let gradients = LayerNormGradients { dx, dweight, dbias };
            layernorm_backward(dims, gradients, dy, x, Statistics { mean, rstd }, layer.weight);
        }
    }

    /// The sum of each column of `x` (B T, cols), for each sequence, into the vector that `part` selects.
    fn column_sums<E: Element>(
        self,
        x: &[E],
        vectors: &mut [VectorGradients],
        part: impl for<'v> Fn(BlockVectors<'v>) -> &'v mut [f32],
    ) {
        let cols = x.len() / self.tokens();
        for (x, vectors) in x.chunks_exact(self.time * cols).zip(vectors) {
            let sums = part(BlockVectors::split(vectors, &self.config));
            column_sums(RowDims { rows: self.time, cols }, sums, x);
        }
    }
}

/// What the backward pass of a LayerNorm reads: its input, statistics and weight.
struct LayerNorm<'a> {
    x: &'a [f32],
    statistics: &'a LayerNormStatistics,
    weight: &'a [f32],
}

/// `dw = xᵀ dy`, or `dw += xᵀ dy` if `add`, for a whole weight: threads share its rows.
fn weight_gradient<E: Element>(dw: &mut [f32], x: Panels<E>, dy: Panels<E>, add: bool) {
    let outputs = dy.cols();
    let rows = weight_piece(dw.len() / outputs, rayon::current_num_threads());
    dw.par_chunks_mut(rows * outputs).enumerate().with_max_len(1).for_each(|(piece, dw)| {
        let first = piece * rows;
        linear_backward_weight(first..first + dw.len() / outputs, dw, x, dy, add);
    });
}

/// Sums the gradients of vectors over sequences, in order. They are the first in each sequence's `vector_gradients`.
fn sum_over_sequences<'a, I: Iterator<Item = &'a VectorGradients>>(
    vectors: impl IntoIterator<Item = &'a mut [f32]>,
    sequences: impl Fn() -> I,
) {
    let mut first = 0;
    for vector in vectors {
        vector.fill(0.0);
        for gradients in sequences() {
            let own = &gradients[first..][..vector.len()];
            vector.iter_mut().zip(own).for_each(|(sum, value)| *sum += value);
        }
        first += vector.len();
    }
}
