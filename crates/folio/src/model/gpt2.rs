//! The forward and the backward pass of GPT-2, op by op in the paper's order.

use std::ops::Range;

use folio_kernels::attention::{self, attention_backward, attention_forward};
use folio_kernels::cross_entropy::{cross_entropy, cross_entropy_loss};
use folio_kernels::dims::{AttentionDims, EmbeddingDims, LinearDims, RowDims};
use folio_kernels::dropout::{Dropout, dropout_backward, dropout_in_place, dropout_residual_forward};
use folio_kernels::embedding::{embedding_backward, embedding_forward};
use folio_kernels::gelu::{gelu_backward, gelu_forward};
use folio_kernels::layernorm::{LayerNormGradients, Statistics, layernorm_backward, layernorm_forward};
use folio_kernels::linear::{
    head_backward, head_forward, linear_backward_input, linear_backward_parameters, linear_forward,
};

use super::activations::{Activations, BlockActivations, Capacity, LayerNormStatistics, Purpose, Shared};
use super::parameters::Block;
use super::{ModelConfig, Parameters};
use crate::rng::Rng;

/// A GPT-2 with its weights, their gradients, and the buffers of a pass.
pub struct Gpt2 {
    config: ModelConfig,
    parameters: Parameters,
    /// Empty until the first training step.
    gradients: Option<Parameters>,
    /// Allocated by the first pass, and again only if a larger one comes.
    activations: Option<Activations>,
}

/// Sequences of tokens and, one later, what follows each.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// (B, T)
    pub inputs: &'a [u32],
    /// (B, T)
    pub targets: &'a [u32],
    /// T, the tokens of each sequence.
    pub time: usize,
}

impl Gpt2 {
    /// A model with GPT-2's random initial weights.
    ///
    /// # Panics
    /// If the configuration is not valid ([`ModelConfig::validate`]).
    pub fn new(config: ModelConfig, rng: &mut Rng) -> Self {
        let parameters = Parameters::random(&config, rng);
        Self::from_parameters(config, parameters)
    }

    /// A model with given weights.
    ///
    /// # Panics
    /// If the configuration is not valid.
    pub fn from_parameters(config: ModelConfig, parameters: Parameters) -> Self {
        config.validate().unwrap_or_else(|error| panic!("{error}"));
        Self { config, parameters, gradients: None, activations: None }
    }

    /// The model's sizes.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The weights.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The weights to be changed, and the gradients of the last training step.
    ///
    /// # Panics
    /// If there was no training step yet.
    pub fn parameters_and_gradients(&mut self) -> (&mut Parameters, &Parameters) {
        let gradients = self.gradients.as_ref().expect("a training step comes first");
        (&mut self.parameters, gradients)
    }

    /// The mean cross-entropy of a batch in nats a token, with dropout drawn from `dropout_key`; leaves its
    /// gradients by every parameter in [`Gpt2::parameters_and_gradients`].
    pub fn train_step(&mut self, batch: Batch, dropout_key: u64) -> f32 {
        let pass = self.begin(batch.inputs, batch.time, Some(dropout_key));
        pass.check_targets(batch.targets);
        let gradients = self.gradients.get_or_insert_with(|| Parameters::zeros(&self.config));
        gradients.values_mut().fill(0.0);
        let activations = self.activations.as_mut().expect("begin allocates");
        pass.forward(&self.parameters, activations, batch.inputs);
        pass.head(&self.parameters, gradients, activations, batch.targets);
        pass.backward(&self.parameters, gradients, activations, batch.inputs);
        mean(&activations.losses[..pass.tokens()])
    }

    /// The cross-entropy of every token of a batch in nats, (B, T), without dropout.
    pub fn losses(&mut self, batch: Batch) -> &[f32] {
        let pass = self.begin(batch.inputs, batch.time, None);
        pass.check_targets(batch.targets);
        let activations = self.activations.as_mut().expect("begin allocates");
        pass.forward(&self.parameters, activations, batch.inputs);
        let wte = self.parameters.wte();
        for rows in pass.head_chunks(activations.capacity) {
            let dims = pass.head_dims(rows.len());
            let logits = &mut activations.logits[..rows.len() * self.config.vocab_size];
            let normed = &activations.shared.normed[rows.start * self.config.n_emb..]
                [..rows.len() * self.config.n_emb];
            head_forward(dims, logits, normed, wte);
            let dims = RowDims { rows: rows.len(), cols: self.config.vocab_size };
            cross_entropy_loss(dims, &mut activations.losses[rows.clone()], logits, &batch.targets[rows]);
        }
        &activations.losses[..pass.tokens()]
    }

    /// The logits of what follows the last token of one sequence, (V).
    pub fn next_logits(&mut self, tokens: &[u32]) -> &[f32] {
        let pass = self.begin(tokens, tokens.len(), None);
        let activations = self.activations.as_mut().expect("begin allocates");
        pass.forward(&self.parameters, activations, tokens);
        let last = (tokens.len() - 1) * self.config.n_emb;
        let logits = &mut activations.logits[..self.config.vocab_size];
        let normed = &activations.shared.normed[last..][..self.config.n_emb];
        head_forward(pass.head_dims(1), logits, normed, self.parameters.wte());
        logits
    }

    /// Checks the sizes of a pass and sees that its buffers exist.
    fn begin(&mut self, inputs: &[u32], time: usize, dropout_key: Option<u64>) -> Pass {
        let longest = self.config.block_size;
        assert!((1..=longest).contains(&time), "{time} tokens a sequence, the model takes 1 to {longest}");
        assert!(
            !inputs.is_empty() && inputs.len().is_multiple_of(time),
            "{} tokens in rows of {time}",
            inputs.len()
        );
        let batch = inputs.len() / time;
        let purpose = if dropout_key.is_some() { Purpose::Training } else { Purpose::Inference };
        let wanted = Capacity { batch, time, purpose };
        if !self.activations.as_ref().is_some_and(|buffers| buffers.capacity.holds(wanted)) {
            self.activations = None; // The old buffers go before the new ones come.
            self.activations = Some(Activations::new(&self.config, wanted));
        }
        Pass { config: self.config, batch, time, dropout_key }
    }
}

/// The sizes and the randomness of one pass over a batch.
#[derive(Clone, Copy)]
struct Pass {
    config: ModelConfig,
    batch: usize,
    time: usize,
    /// `None`: no dropout.
    dropout_key: Option<u64>,
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
    /// B * T.
    fn tokens(self) -> usize {
        self.batch * self.time
    }

    /// The whole model up to its final LayerNorm, whose output is left in `normed`.
    fn forward(self, parameters: &Parameters, a: &mut Activations, inputs: &[u32]) {
        let stream = self.tokens() * self.config.n_emb;
        let x = &mut a.residual[0][..stream];
        embedding_forward(self.embedding_dims(), x, parameters.wte(), parameters.wpe(), inputs);
        dropout_in_place(self.row_dims(), x, self.dropout(Site::Embedding));
        let (slots, kept) = (a.residual.len(), a.blocks.len());
        for idx in 0..self.config.n_blocks {
            // The output is taken out of the list while its neighbour, the input, is read.
            let mut output = std::mem::take(&mut a.residual[(idx + 1) % slots]);
            let input = &a.residual[idx % slots][..stream];
            let block = &mut a.blocks[idx % kept];
            self.block_forward(
                idx,
                &parameters.block(idx),
                &mut output[..stream],
                input,
                block,
                &mut a.shared,
            );
            a.residual[(idx + 1) % slots] = output;
        }
        let last = &a.residual[self.config.n_blocks % slots][..stream];
        self.layernorm(&mut a.shared.normed[..stream], &mut a.ln_f, last, parameters.ln_f());
    }

    /// One transformer block: `middle = x + attn(ln_1(x))`, `output = middle + mlp(ln_2(middle))`.
    fn block_forward(
        self,
        idx: usize,
        w: &Block<&[f32]>,
        output: &mut [f32],
        input: &[f32],
        a: &mut BlockActivations,
        shared: &mut Shared,
    ) {
        let (tokens, c) = (self.tokens(), self.config.n_emb);
        let (normed, branch) = (&mut shared.normed[..tokens * c], &mut shared.branch[..tokens * c]);
        let (qkv, fc) = (&mut a.qkv[..tokens * 3 * c], &mut a.fc[..tokens * 4 * c]);
        let (heads, middle) = (&mut a.heads[..tokens * c], &mut a.middle[..tokens * c]);
        let lse = &mut a.lse[..tokens * self.config.n_heads];
        let gelu = &mut shared.wide[..tokens * 4 * c];

        self.layernorm(normed, &mut a.ln_1, input, (w.ln_1_weight, w.ln_1_bias));
        linear_forward(self.linear(c, 3 * c), qkv, normed, w.c_attn_weight, Some(w.c_attn_bias));
        let dropout = self.dropout(Site::AttentionWeights(idx));
        attention_forward(self.attention_dims(), heads, lse, qkv, dropout, &mut shared.scratch);
        linear_forward(self.linear(c, c), branch, heads, w.attn_proj_weight, Some(w.attn_proj_bias));
        let dropout = self.dropout(Site::AttentionBranch(idx));
        dropout_residual_forward(self.row_dims(), middle, input, branch, dropout);

        self.layernorm(normed, &mut a.ln_2, middle, (w.ln_2_weight, w.ln_2_bias));
        linear_forward(self.linear(c, 4 * c), fc, normed, w.c_fc_weight, Some(w.c_fc_bias));
        gelu_forward(gelu, fc);
        linear_forward(self.linear(4 * c, c), branch, gelu, w.mlp_proj_weight, Some(w.mlp_proj_bias));
        let dropout = self.dropout(Site::MlpBranch(idx));
        dropout_residual_forward(self.row_dims(), output, middle, branch, dropout);
    }

    /// The tied head and the loss, forward and backward in one go over chunks of tokens, so that no (B T, V)
    /// matrix exists. Reads the final LayerNorm's output in `normed`, leaves its gradient in `branch`.
    fn head(self, parameters: &Parameters, gradients: &mut Parameters, a: &mut Activations, targets: &[u32]) {
        let (c, v) = (self.config.n_emb, self.config.vocab_size);
        let (dwte, _) = gradients.embeddings_mut();
        let scale = 1.0 / self.tokens() as f32;
        for rows in self.head_chunks(a.capacity) {
            let dims = self.head_dims(rows.len());
            let logits = &mut a.logits[..rows.len() * v];
            let normed = &a.shared.normed[rows.start * c..rows.end * c];
            let dnormed = &mut a.shared.branch[rows.start * c..rows.end * c];
            head_forward(dims, logits, normed, parameters.wte());
            let row_dims = RowDims { rows: rows.len(), cols: v };
            cross_entropy(row_dims, logits, &mut a.losses[rows.clone()], &targets[rows.clone()], scale);
            head_backward(dims, dnormed, dwte, logits, normed, parameters.wte());
        }
    }

    /// The backward pass from the gradient of the final LayerNorm's output in `branch`; accumulates into
    /// `gradients`.
    fn backward(
        self,
        parameters: &Parameters,
        gradients: &mut Parameters,
        a: &mut Activations,
        inputs: &[u32],
    ) {
        let stream = self.tokens() * self.config.n_emb;
        let dresidual = &mut a.dresidual[..stream];
        dresidual.fill(0.0);
        let last = &a.residual[self.config.n_blocks][..stream];
        let norm = (parameters.ln_f().0, gradients.ln_f_mut());
        self.layernorm_backward(dresidual, norm, last, &a.ln_f, &mut a.shared);
        for idx in (0..self.config.n_blocks).rev() {
            let (w, dw) = (parameters.block(idx), gradients.block_mut(idx));
            let input = &a.residual[idx][..stream];
            self.block_backward(idx, &w, dw, dresidual, input, &mut a.blocks[idx], &mut a.shared);
        }
        dropout_in_place(self.row_dims(), dresidual, self.dropout(Site::Embedding));
        let (dwte, dwpe) = gradients.embeddings_mut();
        embedding_backward(self.embedding_dims(), dwte, dwpe, dresidual, inputs);
    }

    /// [`Pass::block_forward`] backwards: `dresidual` is the gradient of the block's output, then of its input.
    /// The LayerNorms' outputs and GELU's are computed again, which costs less than keeping them.
    #[allow(clippy::too_many_arguments)] // The block's weights, gradients, activations, and the stream.
    fn block_backward(
        self,
        idx: usize,
        w: &Block<&[f32]>,
        dw: Block<&mut [f32]>,
        dresidual: &mut [f32],
        input: &[f32],
        a: &mut BlockActivations,
        shared: &mut Shared,
    ) {
        let (tokens, c) = (self.tokens(), self.config.n_emb);
        let (middle, heads) = (&a.middle[..tokens * c], &a.heads[..tokens * c]);
        let fc = &mut a.fc[..tokens * 4 * c];

        // output = middle + drop(mlp_proj(gelu(c_fc(ln_2(middle)))))
        let Shared { normed, branch, wide, scratch } = shared;
        let (normed, branch) = (&mut normed[..tokens * c], &mut branch[..tokens * c]);
        let dfc = &mut wide[..tokens * 4 * c];
        dropout_backward(self.row_dims(), branch, dresidual, self.dropout(Site::MlpBranch(idx)));
        linear_backward_input(self.linear(4 * c, c), dfc, branch, w.mlp_proj_weight);
        gelu_backward(dfc, fc);
        let (weight, bias) = (dw.mlp_proj_weight, dw.mlp_proj_bias);
        linear_backward_parameters(self.linear(4 * c, c), weight, Some(bias), branch, fc, scratch);
        self.layernorm(normed, &mut a.ln_2, middle, (w.ln_2_weight, w.ln_2_bias));
        let (weight, bias) = (dw.c_fc_weight, dw.c_fc_bias);
        linear_backward_parameters(self.linear(c, 4 * c), weight, Some(bias), dfc, normed, scratch);
        linear_backward_input(self.linear(c, 4 * c), branch, dfc, w.c_fc_weight);
        let norm = (w.ln_2_weight, (dw.ln_2_weight, dw.ln_2_bias));
        self.layernorm_backward(dresidual, norm, middle, &a.ln_2, shared);

        // middle = input + drop(attn_proj(attention(c_attn(ln_1(input)))))
        let Shared { normed, branch, wide, scratch } = shared;
        let (normed, branch) = (&mut normed[..tokens * c], &mut branch[..tokens * c]);
        let dqkv = &mut wide[..tokens * 3 * c];
        dropout_backward(self.row_dims(), branch, dresidual, self.dropout(Site::AttentionBranch(idx)));
        let (weight, bias) = (dw.attn_proj_weight, dw.attn_proj_bias);
        linear_backward_parameters(self.linear(c, c), weight, Some(bias), branch, heads, scratch);
        let dheads = &mut *normed;
        linear_backward_input(self.linear(c, c), dheads, branch, w.attn_proj_weight);
        let (qkv, lse) = (&a.qkv[..tokens * 3 * c], &a.lse[..tokens * self.config.n_heads]);
        let forward = attention::Forward { y: heads, qkv, lse };
        let dropout = self.dropout(Site::AttentionWeights(idx));
        attention_backward(self.attention_dims(), dqkv, dheads, forward, dropout, scratch);
        self.layernorm(normed, &mut a.ln_1, input, (w.ln_1_weight, w.ln_1_bias));
        let (weight, bias) = (dw.c_attn_weight, dw.c_attn_bias);
        linear_backward_parameters(self.linear(c, 3 * c), weight, Some(bias), dqkv, normed, scratch);
        linear_backward_input(self.linear(c, 3 * c), branch, dqkv, w.c_attn_weight);
        let norm = (w.ln_1_weight, (dw.ln_1_weight, dw.ln_1_bias));
        self.layernorm_backward(dresidual, norm, input, &a.ln_1, shared);
    }

    /// `y = layernorm(x)`, keeping its statistics.
    fn layernorm(
        self,
        y: &mut [f32],
        kept: &mut LayerNormStatistics,
        x: &[f32],
        (weight, bias): (&[f32], &[f32]),
    ) {
        let LayerNormStatistics { mean, rstd } = kept;
        let tokens = self.tokens();
        layernorm_forward(self.row_dims(), y, &mut mean[..tokens], &mut rstd[..tokens], x, weight, bias);
    }

    /// Adds the gradient of a LayerNorm's input `x` to `dresidual`, given that of its output in `branch`.
    /// `weights` is the norm's weight and the gradients of its weight and bias.
    fn layernorm_backward(
        self,
        dresidual: &mut [f32],
        (weight, (dweight, dbias)): (&[f32], (&mut [f32], &mut [f32])),
        x: &[f32],
        kept: &LayerNormStatistics,
        shared: &mut Shared,
    ) {
        let tokens = self.tokens();
        let statistics = Statistics { mean: &kept.mean[..tokens], rstd: &kept.rstd[..tokens] };
        let dy = &shared.branch[..tokens * self.config.n_emb];
        let gradients = LayerNormGradients { dx: dresidual, dweight, dbias };
        layernorm_backward(self.row_dims(), gradients, dy, x, statistics, weight, &mut shared.scratch);
    }

    /// The tokens of each chunk of the head.
    fn head_chunks(self, capacity: Capacity) -> impl Iterator<Item = Range<usize>> {
        let (tokens, chunk) = (self.tokens(), capacity.head_rows(self.config.vocab_size));
        (0..tokens).step_by(chunk).map(move |start| start..(start + chunk).min(tokens))
    }

    /// The mask of one place in this pass; every place has a key of its own.
    fn dropout(self, site: Site) -> Dropout {
        let Some(key) = self.dropout_key else { return Dropout::none() };
        let number = match site {
            Site::Embedding => 0,
            Site::AttentionWeights(block) => 1 + 3 * block as u64,
            Site::AttentionBranch(block) => 2 + 3 * block as u64,
            Site::MlpBranch(block) => 3 + 3 * block as u64,
        };
        Dropout::new(self.config.dropout, key.wrapping_add(number.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
    }

    fn embedding_dims(self) -> EmbeddingDims {
        let ModelConfig { vocab_size: vocab, n_emb: channels, .. } = self.config;
        EmbeddingDims { batch: self.batch, time: self.time, channels, vocab }
    }

    fn attention_dims(self) -> AttentionDims {
        let (heads, head_size) = (self.config.n_heads, self.config.head_size());
        AttentionDims { batch: self.batch, time: self.time, heads, head_size }
    }

    fn linear(self, inputs: usize, outputs: usize) -> LinearDims {
        LinearDims { rows: self.tokens(), inputs, outputs }
    }

    fn head_dims(self, rows: usize) -> LinearDims {
        LinearDims { rows, inputs: self.config.n_emb, outputs: self.config.vocab_size }
    }

    fn row_dims(self) -> RowDims {
        RowDims { rows: self.tokens(), cols: self.config.n_emb }
    }

    fn check_targets(self, targets: &[u32]) {
        assert_eq!(targets.len(), self.tokens(), "one target a token");
    }
}

/// The mean of the tokens' losses, added up in f64.
fn mean(losses: &[f32]) -> f32 {
    (losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / losses.len() as f64) as f32
}
