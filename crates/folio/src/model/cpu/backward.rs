//! The backward pass of GPT-2: the forward pass op by op in reverse order.
//!
//! The gradients of a block's weights sum over all tokens. They are computed when every sequence has been through the block,
//! and there threads share the rows of each weight.

use folio_kernels::attention::{Forward, attention_backward};
use folio_kernels::dims::{EmbeddingDims, RowDims};
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
    Activations, BackwardJob, ForwardJob, LayerNormStatistics, Operands, SequenceActivations, ThreadScratch,
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
        let t = self.time;
        for idx in (self.frozen.lowest_block()..self.config.n_blocks).rev() {
            let (jobs, scratch) = a.backward_jobs(self.batch, t, &self.config);
            jobs.for_each(|BackwardJob { b, sequence, dresidual, operands }| {
                let w = weights.block(idx);
                let operands = Operands::of(t, &self.config, operands);
                let mut scratch = scratch.of_this_thread();
                self.block_backward(b, idx, &w, dresidual, sequence, operands, &mut scratch);
                if idx == 0 && !self.frozen.embeddings {
                    dropout_in_place(self.row_dims(), dresidual, self.dropout(Site::Embedding, b));
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
        let dims = EmbeddingDims { batch: self.batch, ..self.embedding_dims() };
        embedding_backward(dims, dwte, dwpe, &a.dresidual[..self.tokens() * self.config.n_emb], batch.inputs);
    }

    /// The forward pass, the loss, and the backward pass of the head and the final LayerNorm, a group of sequences at a
    /// time, so that no (B T, V) matrix exists. Leaves the gradient of the last block's output in `a.dresidual`.
    fn forward_and_head<E: Element>(
        self,
        weights: PassWeights<E>,
        gradients: &mut ParametersMut,
        a: &mut Activations<E>,
        batch: Batch,
        soft_targets: Option<SoftTargets>,
    ) {
        let (t, c, v) = (self.time, self.config.n_emb, self.config.vocab_size);
        let group = a.capacity.head_group(v);
        let logits_dims = PanelDims { depth: t, cols: v };
        for first in (0..self.batch).step_by(group) {
            let sequences = first..(first + group).min(self.batch);
            let (jobs, scratch) =
                a.forward_jobs(sequences.clone(), batch, &self.config, logits_dims.len::<E>());
            jobs.for_each(|job| {
                let tokens = job.b * t..(job.b + 1) * t;
                let soft_targets = soft_targets.map(|soft| soft.select(tokens, self.tokens()));
                self.sequence_and_head(weights, job, soft_targets, &mut scratch.of_this_thread());
            });
            if self.frozen.embeddings && !gradients.has_separate_head() {
                continue; // The head's weights are the token embedding.
            }
            let (dims, stride) = (PanelDims { depth: t, cols: c }, operands_len::<E>(t, &self.config));
            let count = sequences.len();
            let dlogits = Panels::segmented(logits_dims, &a.dlogits, count, logits_dims.len::<E>());
            let normed = Panels::segmented(dims, &a.operands, count, stride);
            weight_gradient(gradients.head_mut(), dlogits, normed, first > 0);
        }
        let (dweight, dbias) = gradients.ln_f_mut();
        sum_over_sequences([dweight, dbias], &a.sequences[..self.batch]);
    }

    /// [`Pass::forward_and_head`] for one sequence, but for the gradient of the head's weights, whose operands are left in
    /// `job`.
    fn sequence_and_head<E: Element>(
        self,
        weights: PassWeights<E>,
        job: ForwardJob<E>,
        soft_targets: Option<SoftTargets>,
        scratch: &mut ThreadScratch<E>,
    ) {
        let ForwardJob { b, inputs, targets, sequence, losses, dresidual, operands, dlogits } = job;
        let (t, c) = (self.time, self.config.n_emb);
        self.forward(b, weights, sequence, scratch, inputs);
        let ThreadScratch { normed, dnormed, head, .. } = scratch;
        let (normed, dnormed) = (&normed[..t * c], &mut dnormed[..t * c]);
        head_forward(self.head_dims(), losses, normed, weights.packed.head(), targets, head);
        let w = weights.packed.head_backward();
        let (scale, label_smoothing) = (1.0 / self.total_tokens as f32, self.label_smoothing);
        let objective = Objective { targets, scale, label_smoothing, soft_targets };
        // Groups are smaller than the batch only if a group is large (`head_group`), so the size of the batch decides as theirs would.
        let reuse = Reuse::of(self.batch * size_of_val(dlogits));
        head_backward(self.head_dims(), dnormed, dlogits, w, objective, head, reuse);
        pack((t, c), Some(operands), None, normed, Reuse::Temporal);
        dresidual.fill(0.0);
        let last = &sequence.residual[self.config.n_blocks][..t * c];
        let (dweight, dbias) = sequence.vector_gradients[..2 * c].split_at_mut(c);
        let gradients = LayerNormGradients { dx: dresidual, dweight, dbias };
        let weight = weights.parameters.ln_f().0;
        self.layernorm_backward(gradients, dnormed, last, &sequence.ln_f, weight);
    }

    /// The backward pass of a block for sequence `b`: `dresidual` is the gradient of the block's output, then of its input.
    /// The outputs of the LayerNorms and of GELU are recomputed, which costs less than storing them.
    #[expect(clippy::too_many_arguments, reason = "what a block reads and writes")]
    fn block_backward<E: Element>(
        self,
        b: usize,
        idx: usize,
        w: &PassBlock<E>,
        dresidual: &mut [f32],
        sequence: &mut SequenceActivations<E>,
        operands: Operands<&mut [E]>,
        scratch: &mut ThreadScratch<E>,
    ) {
        let (t, c, inner) = (self.time, self.config.n_emb, self.config.inner());
        let a = &sequence.blocks[idx];
        let (input, middle) = (&sequence.residual[idx][..t * c], &a.middle[..t * c]);
        let PassBlock { vectors: v, packed } = w;
        let dv = BlockVectors::split(&mut sequence.vector_gradients, &self.config);
        let ThreadScratch { normed, branch, wide, dnormed, attention, .. } = scratch;
        let (normed, branch, dnormed) = (&mut normed[..t * c], &mut branch[..t * c], &mut dnormed[..t * c]);
        // The operands are read after all sequences have written theirs.
        let reuse = Reuse::of(self.batch * operands_len::<E>(t, &self.config) * size_of::<E>());
        let pack = |cols, out, x: &[E]| pack((t, cols), Some(out), None, x, reuse);

        // output = middle + drop(mlp_proj(gelu(c_fc(ln_2(middle)))))
        let site = Site::MlpBranch { block: idx };
        dropout_backward(self.row_dims(), branch, dresidual, self.dropout(site, b));
        column_sums(self.row_dims(), dv.mlp_proj_bias, branch);
        pack(c, operands.dmlp, branch);
        let dfc = &mut wide[..t * inner];
        let gelu = GeluGradients { dfc, dfc_panels: operands.dfc, gelu_panels: operands.gelu, reuse };
        linear_gelu_backward(
            self.linear_dims(&packed.mlp_proj),
            self.config.activation.kernel(),
            gelu,
            &a.fc[..t * inner],
            branch,
            packed.mlp_proj.backward(),
        );
        let dfc = &wide[..t * inner];
        column_sums(RowDims { rows: t, cols: inner }, dv.c_fc_bias, dfc);
        self.layernorm_recompute(normed, &a.ln_2, middle, (v.ln_2_weight, v.ln_2_bias));
        pack(c, operands.normed_2, normed);
        linear_backward_input(self.linear_dims(&packed.c_fc), dnormed, dfc, packed.c_fc.backward());
        let gradients = LayerNormGradients { dx: dresidual, dweight: dv.ln_2_weight, dbias: dv.ln_2_bias };
        self.layernorm_backward(gradients, dnormed, middle, &a.ln_2, v.ln_2_weight);

        // middle = input + drop(attn_proj(attention(c_attn(ln_1(input)))))
        let site = Site::AttentionBranch { block: idx };
        dropout_backward(self.row_dims(), branch, dresidual, self.dropout(site, b));
        column_sums(self.row_dims(), dv.attn_proj_bias, branch);
        pack(c, operands.dattn, branch);
        pack(c, operands.heads, &a.heads[..t * c]);
        let dheads = &mut *normed;
        linear_backward_input(
            self.linear_dims(&packed.attn_proj),
            dheads,
            branch,
            packed.attn_proj.backward(),
        );
        let dqkv = &mut wide[..t * 3 * c];
        let lse = &a.lse[..t * self.config.n_heads];
        let forward = Forward { y: &a.heads[..t * c], qkv: &a.qkv[..t * 3 * c], lse };
        let dropout = self.dropout(Site::AttentionWeights { block: idx }, b);
        attention_backward(self.attention_dims(), dqkv, dheads, forward, dropout, attention);
        column_sums(RowDims { rows: t, cols: 3 * c }, dv.c_attn_bias, dqkv);
        pack(3 * c, operands.dqkv, dqkv);
        self.layernorm_recompute(normed, &a.ln_1, input, (v.ln_1_weight, v.ln_1_bias));
        pack(c, operands.normed_1, normed);
        linear_backward_input(self.linear_dims(&packed.c_attn), dnormed, dqkv, packed.c_attn.backward());
        let gradients = LayerNormGradients { dx: dresidual, dweight: dv.ln_1_weight, dbias: dv.ln_1_bias };
        self.layernorm_backward(gradients, dnormed, input, &a.ln_1, v.ln_1_weight);
    }

    /// The gradients of a block's weights from the operands of all sequences.
    fn weight_gradients<E: Element>(self, idx: usize, gradients: &mut ParametersMut, a: &Activations<E>) {
        let o = Operands::of_all(self.batch, self.time, &self.config, &a.operands);
        let dw = gradients.block_mut(idx);
        // The largest first, so that the threads finish at about the same time.
        rayon::join(
            || weight_gradient(dw.c_fc_weight, o.normed_2, o.dfc, false),
            || {
                weight_gradient(dw.c_attn_weight, o.normed_1, o.dqkv, false);
                weight_gradient(dw.mlp_proj_weight, o.gelu, o.dmlp, false);
                weight_gradient(dw.attn_proj_weight, o.heads, o.dattn, false);
            },
        );
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
        sum_over_sequences(vectors, &a.sequences[..self.batch]);
    }

    /// `y = layernorm(x)` from the statistics of the forward pass.
    fn layernorm_recompute<E: Element>(
        self,
        y: &mut [E],
        statistics: &LayerNormStatistics,
        x: &[f32],
        weights: (&[f32], &[f32]),
    ) {
        layernorm_recompute(self.row_dims(), y, x, self.statistics(statistics), weights);
    }

    /// From `dy`, the gradient of the output of `y = layernorm(x)`.
    fn layernorm_backward(
        self,
        gradients: LayerNormGradients,
        dy: &[f32],
        x: &[f32],
        statistics: &LayerNormStatistics,
        weight: &[f32],
    ) {
        layernorm_backward(self.row_dims(), gradients, dy, x, self.statistics(statistics), weight);
    }

    fn statistics(self, statistics: &LayerNormStatistics) -> Statistics<'_> {
        Statistics { mean: &statistics.mean[..self.time], rstd: &statistics.rstd[..self.time] }
    }
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
fn sum_over_sequences<const N: usize, E>(vectors: [&mut [f32]; N], sequences: &[SequenceActivations<E>]) {
    let mut first = 0;
    for vector in vectors {
        vector.fill(0.0);
        for sequence in sequences {
            let own = &sequence.vector_gradients[first..][..vector.len()];
            vector.iter_mut().zip(own).for_each(|(sum, value)| *sum += value);
        }
        first += vector.len();
    }
}
