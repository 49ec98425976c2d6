//! The forward and the backward pass of GPT-2, op by op in the paper's order.
//!
//! Threads take sequences: within one, every op is plain sequential code over slices. The gradients of the weights,
//! which sum over all tokens, come after each block, and there threads take rows of the weights.

use folio_kernels::attention::{Forward, attention_backward, attention_forward};
use folio_kernels::columns::ColumnsMut;
use folio_kernels::dims::{AttentionDims, EmbeddingDims, HeadDims, LinearDims, RowDims};
use folio_kernels::dropout::{Dropout, dropout_backward, dropout_in_place};
use folio_kernels::element::Element;
use folio_kernels::embedding::{embedding_backward, embedding_forward};
use folio_kernels::head::{head_backward, head_forward, head_logits};
use folio_kernels::layernorm::{
    LayerNormGradients, Statistics, layernorm_backward, layernorm_forward, layernorm_recompute,
};
use folio_kernels::linear::{
    GeluGradients, column_sums, linear_backward_input, linear_backward_weight, linear_forward,
    linear_gelu_backward, linear_gelu_forward, linear_residual_forward, weight_piece,
};
use folio_kernels::panels::{PanelDims, Panels, Reuse};
use rayon::prelude::*;

use super::activations::{
    Activations, BlockActivations, LayerNormStatistics, Operands, Sequence, Workspace, operands_len,
};
use super::packed::{PackedBlock, PackedLinear, PackedWeights, pack, reuse};
use super::parameters::{Block, BlockVectors};
use super::{ModelConfig, Parameters};

/// The sizes and the randomness of one pass over a batch.
#[derive(Clone, Copy)]
pub(super) struct Pass {
    pub(super) config: ModelConfig,
    pub(super) batch: usize,
    pub(super) time: usize,
    /// `None`: no dropout.
    pub(super) dropout_key: Option<u64>,
}

/// The weights: f32 as they are trained, and packed for products.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a, E> {
    pub(super) parameters: &'a Parameters,
    pub(super) packed: &'a PackedWeights<E>,
}

/// One block's weights.
struct BlockWeights<'a, E> {
    vectors: Block<&'a [f32]>,
    packed: &'a PackedBlock<E>,
}

/// The places where dropout stands, numbered so that each has its own mask.
#[derive(Clone, Copy)]
enum Site {
    Embedding,
    AttentionWeights(usize),
    AttentionBranch(usize),
    MlpBranch(usize),
}

impl Pass {
    /// The losses of a training batch, left in `a.losses`; `gradients` are overwritten by those of the mean loss.
    pub(super) fn train<E: Element>(
        self,
        weights: Weights<E>,
        gradients: &mut Parameters,
        a: &mut Activations<E>,
        (inputs, targets): (&[u32], &[u32]),
    ) {
        self.forward_and_head(weights, gradients, a, (inputs, targets));
        let last = self.config.n_blocks;
        for idx in (0..last).rev() {
            self.each_sequence(a, |b, sequence, dresidual, share, workspace| {
                let w = weights.block(idx);
                let operands = Operands::of(self.time, self.config.n_emb, share);
                self.block_backward((b, idx), &w, dresidual, sequence, operands, workspace);
                if idx == 0 {
                    dropout_in_place(self.row_dims(), dresidual, self.dropout(Site::Embedding, b));
                }
            });
            self.weight_gradients(idx, gradients, a);
        }
        let (dwte, dwpe) = gradients.embeddings_mut();
        dwpe.fill(0.0);
        let dims = EmbeddingDims { batch: self.batch, ..self.embedding_dims() };
        embedding_backward(dims, dwte, dwpe, &a.dresidual[..self.tokens() * self.config.n_emb], inputs);
    }

    /// The losses of a batch, left in `a.losses`.
    pub(super) fn losses<E: Element>(
        self,
        weights: Weights<E>,
        a: &mut Activations<E>,
        (inputs, targets): (&[u32], &[u32]),
    ) {
        let Activations { sequences, losses, workspaces, .. } = a;
        let tokens = inputs.par_chunks_exact(self.time).zip(targets.par_chunks_exact(self.time));
        let sequences = sequences[..self.batch].par_iter_mut().zip(losses.par_chunks_mut(self.time));
        sequences.zip(tokens).with_max_len(1).enumerate().for_each(
            |(b, ((sequence, losses), (inputs, targets)))| {
                let workspace = &mut *workspaces.mine();
                self.forward(b, weights, sequence, workspace, inputs);
                let normed = &workspace.normed[..self.time * self.config.n_emb];
                let wte_t = weights.packed.head();
                head_forward(self.head_dims(), losses, normed, wte_t, targets, &mut workspace.head);
            },
        );
    }

    /// The logits of what follows the last token of a single sequence: (V), overwritten.
    pub(super) fn next_logits<E: Element>(
        self,
        weights: Weights<E>,
        a: &mut Activations<E>,
        logits: &mut [f32],
        tokens: &[u32],
    ) {
        let workspace = &mut *a.workspaces.mine();
        self.forward(0, weights, &mut a.sequences[0], workspace, tokens);
        let c = self.config.n_emb;
        let last = &workspace.normed[(self.time - 1) * c..][..c];
        let logits = ColumnsMut::new(logits, self.config.vocab_size);
        head_logits(HeadDims { rows: 1, ..self.head_dims() }, logits, last, weights.packed.head());
    }

    /// The whole model for sequence `b` up to its final LayerNorm, whose output is left in `normed`.
    fn forward<E: Element>(
        self,
        b: usize,
        weights: Weights<E>,
        a: &mut Sequence<E>,
        workspace: &mut Workspace<E>,
        inputs: &[u32],
    ) {
        let stream = self.time * self.config.n_emb;
        let x = &mut a.residual[0][..stream];
        let parameters = weights.parameters;
        embedding_forward(self.embedding_dims(), x, parameters.wte(), parameters.wpe(), inputs);
        dropout_in_place(self.row_dims(), x, self.dropout(Site::Embedding, b));
        let (slots, kept) = (a.residual.len(), a.blocks.len());
        for idx in 0..self.config.n_blocks {
            // The output is taken out of the list while its neighbour, the input, is read.
            let mut output = std::mem::take(&mut a.residual[(idx + 1) % slots]);
            let streams = (&mut output[..stream], &a.residual[idx % slots][..stream]);
            self.block_forward((b, idx), &weights.block(idx), streams, &mut a.blocks[idx % kept], workspace);
            a.residual[(idx + 1) % slots] = output;
        }
        let last = &a.residual[self.config.n_blocks % slots][..stream];
        self.layernorm(&mut workspace.normed[..stream], &mut a.ln_f, last, parameters.ln_f());
    }

    /// One transformer block: `middle = x + attn(ln_1(x))`, `output = middle + mlp(ln_2(middle))`.
    fn block_forward<E: Element>(
        self,
        (b, idx): (usize, usize),
        w: &BlockWeights<E>,
        (output, input): (&mut [f32], &[f32]),
        a: &mut BlockActivations<E>,
        workspace: &mut Workspace<E>,
    ) {
        let (t, c) = (self.time, self.config.n_emb);
        let (normed, gelu) = (&mut workspace.normed[..t * c], &mut workspace.wide[..t * 4 * c]);
        let (qkv, fc) = (&mut a.qkv[..t * 3 * c], &mut a.fc[..t * 4 * c]);
        let (heads, middle) = (&mut a.heads[..t * c], &mut a.middle[..t * c]);
        let lse = &mut a.lse[..t * self.config.n_heads];
        let BlockWeights { vectors: v, packed } = w;

        self.layernorm(normed, &mut a.ln_1, input, (v.ln_1_weight, v.ln_1_bias));
        linear_forward(
            self.linear(&packed.c_attn),
            ColumnsMut::new(qkv, 3 * c),
            normed,
            packed.c_attn.forward(),
            v.c_attn_bias,
        );
        let dropout = self.dropout(Site::AttentionWeights(idx), b);
        attention_forward(self.attention_dims(), heads, lse, qkv, dropout, &mut workspace.attention);
        let attn_proj = (packed.attn_proj.forward(), v.attn_proj_bias);
        let dropout = self.dropout(Site::AttentionBranch(idx), b);
        let middle_columns = ColumnsMut::new(middle, c);
        linear_residual_forward(
            self.linear(&packed.attn_proj),
            middle_columns,
            input,
            heads,
            attn_proj,
            dropout,
        );

        self.layernorm(normed, &mut a.ln_2, middle, (v.ln_2_weight, v.ln_2_bias));
        let c_fc = (packed.c_fc.forward(), v.c_fc_bias);
        let columns = (ColumnsMut::new(fc, 4 * c), ColumnsMut::new(gelu, 4 * c));
        linear_gelu_forward(self.linear(&packed.c_fc), columns, normed, c_fc);
        let mlp_proj = (packed.mlp_proj.forward(), v.mlp_proj_bias);
        let dropout = self.dropout(Site::MlpBranch(idx), b);
        let output = ColumnsMut::new(output, c);
        linear_residual_forward(self.linear(&packed.mlp_proj), output, middle, gelu, mlp_proj, dropout);
    }

    /// The forward pass, the loss, and the backward pass of the head and the final LayerNorm, in turns of some
    /// sequences each, so that no (B T, V) matrix exists. Leaves the gradient of the last block's output in
    /// `a.dresidual`.
    fn forward_and_head<E: Element>(
        self,
        weights: Weights<E>,
        gradients: &mut Parameters,
        a: &mut Activations<E>,
        (inputs, targets): (&[u32], &[u32]),
    ) {
        let (t, c, v) = (self.time, self.config.n_emb, self.config.vocab_size);
        let turn = a.capacity.head_turn(v);
        let logits_dims = PanelDims { depth: t, cols: v };
        let (normed_dims, share) = (PanelDims { depth: t, cols: c }, operands_len::<E>(t, c));
        for first in (0..self.batch).step_by(turn) {
            let count = turn.min(self.batch - first);
            let Activations { sequences, operands, dlogits, dresidual, losses, workspaces, .. } = a;
            let tokens = first * t..(first + count) * t;
            let tokens = inputs[tokens.clone()].par_chunks_exact(t).zip(targets[tokens].par_chunks_exact(t));
            let outputs = sequences[first..].par_iter_mut().zip(losses[first * t..].par_chunks_mut(t));
            let for_weights = (operands.par_chunks_exact_mut(share))
                .zip(dlogits.par_chunks_exact_mut(logits_dims.len::<E>()));
            let dresidual = dresidual[first * t * c..].par_chunks_exact_mut(t * c);
            tokens.zip(outputs).zip(for_weights.zip(dresidual)).with_max_len(1).enumerate().for_each(
                |(b, (((inputs, targets), (sequence, losses)), ((operands, dlogits), dresidual)))| {
                    let workspace = &mut *workspaces.mine();
                    self.forward(first + b, weights, sequence, workspace, inputs);
                    let Workspace { normed, dnormed, head, .. } = workspace;
                    let (normed, dnormed) = (&normed[..t * c], &mut dnormed[..t * c]);
                    head_forward(self.head_dims(), losses, normed, weights.packed.head(), targets, head);
                    let (wte, scale) = (weights.packed.head_backward(), 1.0 / self.tokens() as f32);
                    head_backward(self.head_dims(), dnormed, dlogits, wte, targets, scale, head);
                    pack((t, c), Some(operands), None, normed, Reuse::Temporal);
                    dresidual.fill(0.0);
                    let last = &sequence.residual[self.config.n_blocks][..t * c];
                    let (dweight, dbias) = sequence.vectors[..2 * c].split_at_mut(c);
                    let gradients = LayerNormGradients { dx: dresidual, dweight, dbias };
                    let weight = weights.parameters.ln_f().0;
                    self.layernorm_backward(gradients, dnormed, last, &sequence.ln_f, weight);
                },
            );
            let dlogits = Panels::segmented(logits_dims, dlogits, count, logits_dims.len::<E>());
            let normed = Panels::segmented(normed_dims, operands, count, share);
            weight_gradient(gradients.embeddings_mut().0, dlogits, normed, first > 0);
        }
        let (dweight, dbias) = gradients.ln_f_mut();
        sum_shares([dweight, dbias], &a.sequences[..self.batch]);
    }

    /// Calls `work` with every sequence, its part of `a.dresidual` and its share of `a.operands`.
    fn each_sequence<E: Element>(
        self,
        a: &mut Activations<E>,
        work: impl Fn(usize, &mut Sequence<E>, &mut [f32], &mut [E], &mut Workspace<E>) + Sync,
    ) {
        let (stream, share) =
            (self.time * self.config.n_emb, operands_len::<E>(self.time, self.config.n_emb));
        let Activations { sequences, operands, dresidual, workspaces, .. } = a;
        let gradients = dresidual.par_chunks_exact_mut(stream).zip(operands.par_chunks_exact_mut(share));
        let sequences = sequences[..self.batch].par_iter_mut().zip(gradients);
        sequences.with_max_len(1).enumerate().for_each(|(b, (sequence, (dresidual, share)))| {
            work(b, sequence, dresidual, share, &mut workspaces.mine());
        });
    }

    /// [`Pass::block_forward`] backwards for sequence `b`: `dresidual` is the gradient of the block's output, then
    /// of its input. The LayerNorms' outputs and GELU's are computed again, which costs less than keeping them.
    fn block_backward<E: Element>(
        self,
        (b, idx): (usize, usize),
        w: &BlockWeights<E>,
        dresidual: &mut [f32],
        sequence: &mut Sequence<E>,
        operands: Operands<&mut [E]>,
        workspace: &mut Workspace<E>,
    ) {
        let (t, c) = (self.time, self.config.n_emb);
        let a = &sequence.blocks[idx];
        let (input, middle) = (&sequence.residual[idx][..t * c], &a.middle[..t * c]);
        let BlockWeights { vectors: v, packed } = w;
        let dv = BlockVectors::split(&mut sequence.vectors, c);
        let Workspace { normed, branch, wide, dnormed, attention, .. } = workspace;
        let (normed, branch, dnormed) = (&mut normed[..t * c], &mut branch[..t * c], &mut dnormed[..t * c]);
        // The operands are read when all sequences have written theirs.
        let reuse = reuse(self.batch * operands_len::<E>(t, c) * size_of::<E>());
        let pack = |cols, out, x: &[E]| pack((t, cols), Some(out), None, x, reuse);

        // output = middle + drop(mlp_proj(gelu(c_fc(ln_2(middle)))))
        dropout_backward(self.row_dims(), branch, dresidual, self.dropout(Site::MlpBranch(idx), b));
        column_sums(self.row_dims(), dv.mlp_proj_bias, branch);
        pack(c, operands.dmlp, branch);
        let dfc = &mut wide[..t * 4 * c];
        let gelu = GeluGradients { dfc, dfc_panels: operands.dfc, gelu_panels: operands.gelu, reuse };
        linear_gelu_backward(
            self.linear(&packed.mlp_proj),
            gelu,
            &a.fc[..t * 4 * c],
            branch,
            packed.mlp_proj.backward(),
        );
        let dfc = &wide[..t * 4 * c];
        column_sums(RowDims { rows: t, cols: 4 * c }, dv.c_fc_bias, dfc);
        self.layernorm_again(normed, &a.ln_2, middle, (v.ln_2_weight, v.ln_2_bias));
        pack(c, operands.normed_2, normed);
        linear_backward_input(self.linear(&packed.c_fc), dnormed, dfc, packed.c_fc.backward());
        let gradients = LayerNormGradients { dx: dresidual, dweight: dv.ln_2_weight, dbias: dv.ln_2_bias };
        self.layernorm_backward(gradients, dnormed, middle, &a.ln_2, v.ln_2_weight);

        // middle = input + drop(attn_proj(attention(c_attn(ln_1(input)))))
        dropout_backward(self.row_dims(), branch, dresidual, self.dropout(Site::AttentionBranch(idx), b));
        column_sums(self.row_dims(), dv.attn_proj_bias, branch);
        pack(c, operands.dattn, branch);
        pack(c, operands.heads, &a.heads[..t * c]);
        let dheads = &mut *normed;
        linear_backward_input(self.linear(&packed.attn_proj), dheads, branch, packed.attn_proj.backward());
        let dqkv = &mut wide[..t * 3 * c];
        let lse = &a.lse[..t * self.config.n_heads];
        let forward = Forward { y: &a.heads[..t * c], qkv: &a.qkv[..t * 3 * c], lse };
        let dropout = self.dropout(Site::AttentionWeights(idx), b);
        attention_backward(self.attention_dims(), dqkv, dheads, forward, dropout, attention);
        column_sums(RowDims { rows: t, cols: 3 * c }, dv.c_attn_bias, dqkv);
        pack(3 * c, operands.dqkv, dqkv);
        self.layernorm_again(normed, &a.ln_1, input, (v.ln_1_weight, v.ln_1_bias));
        pack(c, operands.normed_1, normed);
        linear_backward_input(self.linear(&packed.c_attn), dnormed, dqkv, packed.c_attn.backward());
        let gradients = LayerNormGradients { dx: dresidual, dweight: dv.ln_1_weight, dbias: dv.ln_1_bias };
        self.layernorm_backward(gradients, dnormed, input, &a.ln_1, v.ln_1_weight);
    }

    /// The gradients of a block's weights from the operands that all sequences have left.
    fn weight_gradients<E: Element>(self, idx: usize, gradients: &mut Parameters, a: &Activations<E>) {
        let o = Operands::of_all(self.batch, self.time, self.config.n_emb, &a.operands);
        let dw = gradients.block_mut(idx);
        // Large pieces first, so that the threads end at about the same time.
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
        sum_shares(vectors, &a.sequences[..self.batch]);
    }
}

impl Pass {
    /// `y = layernorm(x)`, keeping its statistics.
    fn layernorm<E: Element>(
        self,
        y: &mut [E],
        kept: &mut LayerNormStatistics,
        x: &[f32],
        weights: (&[f32], &[f32]),
    ) {
        let LayerNormStatistics { mean, rstd } = kept;
        let statistics = (&mut mean[..self.time], &mut rstd[..self.time]);
        layernorm_forward(self.row_dims(), y, statistics, x, weights);
    }

    /// `y = layernorm(x)` once more.
    fn layernorm_again<E: Element>(
        self,
        y: &mut [E],
        kept: &LayerNormStatistics,
        x: &[f32],
        weights: (&[f32], &[f32]),
    ) {
        layernorm_recompute(self.row_dims(), y, x, self.statistics(kept), weights);
    }

    /// From the gradient `dy` of a LayerNorm's output.
    fn layernorm_backward(
        self,
        gradients: LayerNormGradients,
        dy: &[f32],
        x: &[f32],
        kept: &LayerNormStatistics,
        weight: &[f32],
    ) {
        layernorm_backward(self.row_dims(), gradients, dy, x, self.statistics(kept), weight);
    }

    fn statistics(self, kept: &LayerNormStatistics) -> Statistics<'_> {
        Statistics { mean: &kept.mean[..self.time], rstd: &kept.rstd[..self.time] }
    }

    /// The mask of one place in this pass, from sequence `b` on; every place has a key of its own.
    fn dropout(self, site: Site, b: usize) -> Dropout {
        let Some(key) = self.dropout_key else { return Dropout::none() };
        let (number, rows) = match site {
            Site::Embedding => (0, self.time),
            Site::AttentionWeights(block) => (1 + 3 * block as u64, self.time * self.config.n_heads),
            Site::AttentionBranch(block) => (2 + 3 * block as u64, self.time),
            Site::MlpBranch(block) => (3 + 3 * block as u64, self.time),
        };
        let key = key.wrapping_add(number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        Dropout::new(self.config.dropout, key).skip_rows(b * rows)
    }

    /// B * T.
    pub(super) fn tokens(self) -> usize {
        self.batch * self.time
    }

    fn embedding_dims(self) -> EmbeddingDims {
        let ModelConfig { vocab_size: vocab, n_emb: channels, .. } = self.config;
        EmbeddingDims { batch: 1, time: self.time, channels, vocab }
    }

    fn attention_dims(self) -> AttentionDims {
        let (heads, head_size) = (self.config.n_heads, self.config.head_size());
        AttentionDims { batch: 1, time: self.time, heads, head_size }
    }

    fn linear<E: Element>(self, layer: &PackedLinear<E>) -> LinearDims {
        let (inputs, outputs) = layer.shape();
        LinearDims { rows: self.time, inputs, outputs }
    }

    fn head_dims(self) -> HeadDims {
        let ModelConfig { vocab_size: vocab, n_emb: channels, .. } = self.config;
        HeadDims { rows: self.time, channels, vocab }
    }

    fn row_dims(self) -> RowDims {
        RowDims { rows: self.time, cols: self.config.n_emb }
    }
}

impl<'a, E> Weights<'a, E> {
    fn block(self, idx: usize) -> BlockWeights<'a, E> {
        BlockWeights { vectors: self.parameters.block(idx), packed: &self.packed.blocks[idx] }
    }
}

/// `dw = xᵀ dy`, or `dw += xᵀ dy` if `add`, for a whole weight: threads take rows of it.
fn weight_gradient<E: Element>(dw: &mut [f32], x: Panels<E>, dy: Panels<E>, add: bool) {
    let outputs = dy.cols();
    let rows = weight_piece(dw.len() / outputs, rayon::current_num_threads());
    dw.par_chunks_mut(rows * outputs).enumerate().with_max_len(1).for_each(|(piece, dw)| {
        let first = piece * rows;
        linear_backward_weight(first..first + dw.len() / outputs, dw, x, dy, add);
    });
}

/// Adds up the sequences' shares of the gradients of vectors, which stand at the head of each share, in order.
fn sum_shares<const N: usize, E>(vectors: [&mut [f32]; N], sequences: &[Sequence<E>]) {
    let mut first = 0;
    for vector in vectors {
        vector.fill(0.0);
        for sequence in sequences {
            let share = &sequence.vectors[first..][..vector.len()];
            vector.iter_mut().zip(share).for_each(|(sum, value)| *sum += value);
        }
        first += vector.len();
    }
}
