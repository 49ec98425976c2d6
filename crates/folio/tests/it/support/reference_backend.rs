//! A slow backend made of the naive twins of the kernels. It computes in f64; what lasts from one call to the next (weights,
//! gradients, moments) is rounded to f32, as a checkpoint stores it.

use std::borrow::Cow;

use folio::distributed::Communicator;
use folio::model::{
    Backend, Batch, Frozen, MicroBatch, ModelConfig, Moments, MuonUpdate, ParameterSpec, Parameters,
    SoftTargets, StepBatch, Update, tree_split,
};
use folio_kernels::dims::{AttentionDims, EmbeddingDims, LinearDims, RowDims};
use folio_kernels::dropout::Dropout;
use folio_kernels::newton_schulz::{Columns, ITERATIONS};
use folio_kernels::reference as naive;
use half::f16;

pub(crate) struct ReferenceBackend {
    config: ModelConfig,
    parameters: Parameters,
    frozen: Frozen,
    gradients: Parameters,
    moments: Moments,
    average: Option<Parameters>,
    losses: Vec<f32>,
}

/// One block's activations, whole micro-batch each.
#[derive(Default)]
struct BlockState {
    input: Vec<f64>,
    ln_1: Normed,
    qkv: Vec<f64>,
    lse: Vec<f64>,
    heads: Vec<f64>,
    middle: Vec<f64>,
    ln_2: Normed,
    fc: Vec<f64>,
    gelu: Vec<f64>,
}

/// A LayerNorm's output and statistics.
#[derive(Default)]
struct Normed {
    y: Vec<f64>,
    mean: Vec<f64>,
    rstd: Vec<f64>,
}

/// A forward and backward pass over a micro-batch.
struct NaivePass<'a> {
    config: ModelConfig,
    specs: &'a [ParameterSpec],
    /// The weights.
    w: Vec<f64>,
    batch: Batch<'a>,
    first_sequence: usize,
    dropout_key: Option<u64>,
}

impl ReferenceBackend {
    pub(crate) fn new(config: ModelConfig, parameters: Parameters) -> Self {
        let moments = Moments::zeros(parameters.values().len());
        let gradients = Parameters::zeros(&config);
        let frozen = Frozen::NOTHING;
        Self { config, parameters, frozen, gradients, moments, average: None, losses: Vec::new() }
    }

    fn pass<'a>(
        &'a self,
        batch: Batch<'a>,
        first_sequence: usize,
        dropout_key: Option<u64>,
        dropout: Option<f32>,
    ) -> NaivePass<'a> {
        let w = self.parameters.values().iter().map(|&value| f64::from(value)).collect();
        NaivePass {
            config: ModelConfig { dropout: dropout.unwrap_or(self.config.dropout), ..self.config },
            specs: self.parameters.specs(),
            w,
            batch,
            first_sequence,
            dropout_key,
        }
    }

    /// The sum of the losses of micro-batches, and the sum of their gradients in f32.
    fn sum(&self, step: &StepBatch, first: usize, count: usize) -> (f64, Vec<f32>) {
        if count == 1 {
            return self.micro_batch(&step.micro_batch(first));
        }
        let left = tree_split(count);
        let (loss_a, a) = self.sum(step, first, left);
        let (loss_b, b) = self.sum(step, first + left, count - left);
        (loss_a + loss_b, a.iter().zip(b).map(|(a, b)| a + b).collect())
    }

    fn micro_batch(&self, micro_batch: &MicroBatch) -> (f64, Vec<f32>) {
        let MicroBatch { batch, first_sequence, total_tokens, dropout_key, dropout, .. } = *micro_batch;
        if batch.inputs.is_empty() {
            return (0.0, vec![0.0; self.parameters.values().len()]);
        }
        let pass = self.pass(batch, first_sequence, Some(dropout_key), dropout);
        let (losses, gradients) =
            pass.forward_backward(1.0 / total_tokens as f64, &self.targets(micro_batch));
        let mut gradients: Vec<f32> = gradients.iter().map(|&value| value as f32).collect();
        for spec in self.parameters.specs().iter().filter(|spec| self.frozen.contains(spec)) {
            gradients[spec.range.clone()].fill(0.0);
        }
        (losses.iter().sum(), gradients)
    }

    /// (M, V): what the gradients pull the probabilities towards.
    fn targets(&self, micro_batch: &MicroBatch) -> Vec<f64> {
        let MicroBatch { batch, label_smoothing, soft_targets, .. } = *micro_batch;
        let (vocab, smoothing) = (self.config.vocab_size, f64::from(label_smoothing));
        let mut q = vec![smoothing / vocab as f64; batch.targets.len() * vocab];
        for (row, &target) in batch.targets.iter().enumerate() {
            q[row * vocab + target as usize] += 1.0 - smoothing;
        }
        if let Some(SoftTargets { probabilities, weight }) = soft_targets {
            let weight = f64::from(weight);
            for (q, &bits) in q.iter_mut().zip(probabilities) {
                *q = (1.0 - weight) * *q + weight * f16::from_bits(bits).to_f64();
            }
        }
        q
    }

    /// Muon's update of one parameter.
    fn muon(&mut self, update: &MuonUpdate, spec: &ParameterSpec) {
        let MuonUpdate { learning_rate, momentum, weight_decay, gradient_scale } = *update;
        let gradient = &self.gradients.values()[spec.range.clone()];
        let parameter = &mut self.parameters.values_mut()[spec.range.clone()];
        let average = &mut self.moments.exp_avg[spec.range.clone()];
        for matrix in MuonUpdate::matrices(spec) {
            let Columns { rows, cols, first, stride } = matrix;
            let index = |i: usize| i / cols * stride + first + i % cols;
            let mut direction = Vec::new();
            for i in (0..rows * cols).map(index) {
                let g = gradient_scale * f64::from(gradient[i]);
                let m = momentum * f64::from(average[i]) + (1.0 - momentum) * g;
                average[i] = m as f32;
                direction.push((1.0 - momentum) * g + momentum * m);
            }
            naive::newton_schulz(rows, cols, &mut direction, ITERATIONS);
            for (i, direction) in direction.into_iter().enumerate() {
                let p = &mut parameter[index(i)];
                let decayed = f64::from(*p) * (1.0 - learning_rate * weight_decay);
                *p = (decayed - update.rate(matrix) * direction) as f32;
            }
        }
    }
}

impl Backend for ReferenceBackend {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn forward_backward(&mut self, step: StepBatch<'_>) -> f64 {
        let (loss, gradients) = self.sum(&step, 0, step.division.micro_batches);
        self.gradients.values_mut().copy_from_slice(&gradients);
        loss
    }

    fn losses(&mut self, batch: Batch<'_>) -> &[f32] {
        let pass = self.pass(batch, 0, None, None);
        let (_, _, logits) = pass.forward();
        let mut losses = vec![0.0; batch.targets.len()];
        naive::cross_entropy_loss(pass.head_dims(), &mut losses, &logits, batch.targets);
        self.losses = losses.into_iter().map(|loss| loss as f32).collect();
        &self.losses
    }

    fn reduce_gradients(&mut self, communicator: &dyn Communicator) {
        communicator.all_reduce(self.gradients.values_mut());
    }

    fn gradient_norm(&mut self) -> f64 {
        self.gradients.values().iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt()
    }

    fn update(&mut self, update: &Update) {
        let frozen = self.frozen;
        for spec in self.gradients.specs().to_vec().into_iter().filter(|spec| !frozen.contains(spec)) {
            let Some(step) = update.adamw_of(&spec) else {
                let update = update.muon.as_ref().expect("the parameter is not AdamW's");
                self.muon(update, &spec);
                continue;
            };
            let range = spec.range;
            let wide =
                |values: &[f32]| -> Vec<f64> { values.iter().map(|&value| f64::from(value)).collect() };
            let gradient = wide(&self.gradients.values()[range.clone()]);
            let arrays = [
                &mut self.parameters.values_mut()[range.clone()],
                &mut self.moments.exp_avg[range.clone()],
                &mut self.moments.exp_avg_sq[range],
            ];
            let [mut p, mut m, mut v] = arrays.each_ref().map(|values| wide(values));
            naive::adamw(&mut p, &gradient, &mut m, &mut v, step);
            for (array, new) in arrays.into_iter().zip([p, m, v]) {
                array.iter_mut().zip(new).for_each(|(value, new)| *value = new as f32);
            }
        }
    }

    fn update_average(&mut self, decay: f64) {
        let average = self.average.as_mut().expect("an average was loaded");
        for index in self.frozen.trained(&self.parameters).flatten() {
            let (average, weight) = (&mut average.values_mut()[index], self.parameters.values()[index]);
            *average = (decay * f64::from(*average) + (1.0 - decay) * f64::from(weight)) as f32;
        }
    }

    fn average(&self) -> Option<Cow<'_, Parameters>> {
        self.average.as_ref().map(Cow::Borrowed)
    }

    fn load_average(&mut self, average: Parameters) {
        self.average = Some(average);
    }

    fn swap_average(&mut self) {
        if let Some(average) = &mut self.average {
            std::mem::swap(average, &mut self.parameters);
        }
    }

    fn parameters(&self) -> Cow<'_, Parameters> {
        Cow::Borrowed(&self.parameters)
    }

    fn load_parameters(&mut self, parameters: Parameters) {
        self.parameters = parameters;
    }

    fn gradients(&self) -> Cow<'_, Parameters> {
        Cow::Borrowed(&self.gradients)
    }

    fn moments(&self) -> Cow<'_, Moments> {
        Cow::Borrowed(&self.moments)
    }

    fn freeze(&mut self, frozen: Frozen) {
        self.frozen = frozen;
    }

    fn load_moments(&mut self, moments: Moments) {
        self.moments = moments;
    }
}

impl NaivePass<'_> {
    /// The parameter of this name, or its place in an array of all.
    fn range(&self, name: &str) -> std::ops::Range<usize> {
        self.specs.iter().find(|spec| spec.name == name).expect("a parameter").range.clone()
    }

    fn weight(&self, name: &str) -> &[f64] {
        &self.w[self.range(name)]
    }

    /// The name of the head's weights.
    fn head(&self) -> &'static str {
        if self.config.tie_word_embeddings { "wte.weight" } else { "lm_head.weight" }
    }

    fn rows(&self) -> usize {
        self.batch.inputs.len()
    }

    fn row_dims(&self) -> RowDims {
        RowDims { rows: self.rows(), cols: self.config.n_emb }
    }

    fn head_dims(&self) -> RowDims {
        RowDims { rows: self.rows(), cols: self.config.vocab_size }
    }

    fn attention_dims(&self) -> AttentionDims {
        let (heads, head_size) = (self.config.n_heads, self.config.head_size());
        AttentionDims { batch: self.batch.sequences(), time: self.batch.time, heads, head_size }
    }

    fn embedding_dims(&self) -> EmbeddingDims {
        let ModelConfig { vocab_size: vocab, n_emb: channels, .. } = self.config;
        EmbeddingDims { batch: self.batch.sequences(), time: self.batch.time, channels, vocab }
    }

    /// The masks of the model's `number`th dropout, which has `rows` rows per token.
    fn dropout(&self, number: u64, rows: usize) -> Dropout {
        let Some(key) = self.dropout_key else { return Dropout::none() };
        let key = key.wrapping_add(number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        Dropout::new(self.config.dropout, key).skip_rows(self.first_sequence * self.batch.time * rows)
    }

    fn layernorm(&self, x: &[f64], name: &str) -> Normed {
        let rows = self.rows();
        let mut normed = Normed { y: vec![0.0; x.len()], mean: vec![0.0; rows], rstd: vec![0.0; rows] };
        let Normed { y, mean, rstd } = &mut normed;
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        let (weight, bias) = (self.weight(&weight), self.weight(&bias));
        let eps = f64::from(self.config.layer_norm_epsilon);
        naive::layernorm_forward(self.row_dims(), eps, y, mean, rstd, x, weight, bias);
        normed
    }

    fn linear(&self, x: &[f64], name: &str) -> Vec<f64> {
        let (weight, bias) = (self.range(&format!("{name}.weight")), self.range(&format!("{name}.bias")));
        let dims = LinearDims { rows: self.rows(), inputs: x.len() / self.rows(), outputs: bias.len() };
        let mut y = vec![0.0; dims.rows * dims.outputs];
        naive::linear_forward(dims, &mut y, x, &self.w[weight], Some(&self.w[bias]));
        y
    }

    /// The blocks, the final LayerNorm of the last residual stream, and the logits.
    fn forward(&self) -> (Vec<BlockState>, (Vec<f64>, Normed), Vec<f64>) {
        let mut embedded = vec![0.0; self.rows() * self.config.n_emb];
        let (wte, wpe) = (self.weight("wte.weight"), self.weight("wpe.weight"));
        let wpe = &wpe[..self.batch.time * self.config.n_emb];
        naive::embedding_forward(self.embedding_dims(), &mut embedded, wte, wpe, self.batch.inputs);
        let mut x = vec![0.0; embedded.len()];
        naive::dropout_forward(self.row_dims(), &mut x, &embedded, self.dropout(0, 1));
        let mut blocks = Vec::new();
        for idx in 0..self.config.n_blocks {
            let (block, output) = self.block_forward(idx, x);
            blocks.push(block);
            x = output;
        }
        let normed = self.layernorm(&x, "ln_f");
        let (c, v) = (self.config.n_emb, self.config.vocab_size);
        let mut logits = vec![0.0; self.rows() * v];
        for (logits, normed) in logits.chunks_exact_mut(v).zip(normed.y.chunks_exact(c)) {
            for (logit, row) in logits.iter_mut().zip(self.weight(self.head()).chunks_exact(c)) {
                *logit = normed.iter().zip(row).map(|(a, b)| a * b).sum();
            }
        }
        (blocks, (x, normed), logits)
    }

    fn block_forward(&self, idx: usize, input: Vec<f64>) -> (BlockState, Vec<f64>) {
        let name = |layer: &str| format!("h.{idx}.{layer}");
        let number = 3 * idx as u64;
        let mut s = BlockState { input, ..BlockState::default() };
        s.ln_1 = self.layernorm(&s.input, &name("ln_1"));
        s.qkv = self.linear(&s.ln_1.y, &name("attn.c_attn"));
        s.heads = vec![0.0; s.input.len()];
        s.lse = vec![0.0; self.rows() * self.config.n_heads];
        let dropout = self.dropout(1 + number, self.config.n_heads);
        naive::attention_forward(self.attention_dims(), &mut s.heads, &mut s.lse, &s.qkv, dropout);
        let branch = self.linear(&s.heads, &name("attn.c_proj"));
        s.middle = vec![0.0; s.input.len()];
        let dropout = self.dropout(2 + number, 1);
        naive::dropout_residual_forward(self.row_dims(), &mut s.middle, &s.input, &branch, dropout);
        s.ln_2 = self.layernorm(&s.middle, &name("ln_2"));
        s.fc = self.linear(&s.ln_2.y, &name("mlp.c_fc"));
        s.gelu = vec![0.0; s.fc.len()];
        naive::gelu_forward(self.config.activation.kernel(), &mut s.gelu, &s.fc);
        let branch = self.linear(&s.gelu, &name("mlp.c_proj"));
        let mut output = vec![0.0; s.input.len()];
        let dropout = self.dropout(3 + number, 1);
        naive::dropout_residual_forward(self.row_dims(), &mut output, &s.middle, &branch, dropout);
        (s, output)
    }

    /// The losses, and the gradients of `scale` times the sum of the smoothed losses.
    fn forward_backward(&self, scale: f64, distributions: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (blocks, (last, normed), mut logits) = self.forward();
        let mut losses = vec![0.0; self.rows()];
        let dims = self.head_dims();
        // Afterwards `logits` holds their gradients.
        naive::cross_entropy_loss(dims, &mut losses, &logits, self.batch.targets);
        naive::soft_cross_entropy(dims, &mut logits, &mut vec![0.0; losses.len()], distributions, scale);
        let mut gradients = vec![0.0; self.w.len()];
        let (c, v) = (self.config.n_emb, self.config.vocab_size);
        let mut dnormed = vec![0.0; last.len()];
        let head = self.range(self.head());
        let rows = logits.chunks_exact(v).zip(normed.y.chunks_exact(c)).zip(dnormed.chunks_exact_mut(c));
        for ((dlogits, normed), dnormed) in rows {
            for (token, &dlogit) in dlogits.iter().enumerate() {
                for channel in 0..c {
                    let place = head.start + token * c + channel;
                    dnormed[channel] += dlogit * self.w[place];
                    gradients[place] += dlogit * normed[channel];
                }
            }
        }
        let mut dx = vec![0.0; last.len()];
        self.layernorm_backward(&mut dx, &dnormed, &last, &normed, "ln_f", &mut gradients);
        for (idx, block) in blocks.iter().enumerate().rev() {
            self.block_backward(idx, block, &mut dx, &mut gradients);
        }
        let mut dembedded = vec![0.0; dx.len()];
        naive::dropout_backward(self.row_dims(), &mut dembedded, &dx, self.dropout(0, 1));
        let (wte, mut dwpe) = (self.range("wte.weight"), self.range("wpe.weight"));
        dwpe.end = dwpe.start + self.batch.time * c;
        let (dwte, rest) = gradients.split_at_mut(wte.end);
        let dwpe = &mut rest[dwpe.start - wte.end..dwpe.end - wte.end];
        naive::embedding_backward(self.embedding_dims(), dwte, dwpe, &dembedded, self.batch.inputs);
        (losses, gradients)
    }

    /// `dx` is the gradient of the block's output, then of its input.
    fn block_backward(&self, idx: usize, s: &BlockState, dx: &mut [f64], gradients: &mut [f64]) {
        let name = |layer: &str| format!("h.{idx}.{layer}");
        let number = 3 * idx as u64;
        let mut dbranch = vec![0.0; dx.len()];
        naive::dropout_backward(self.row_dims(), &mut dbranch, dx, self.dropout(3 + number, 1));
        let dgelu = self.linear_backward(&dbranch, &s.gelu, &name("mlp.c_proj"), gradients);
        let mut dfc = vec![0.0; dgelu.len()];
        naive::gelu_backward(self.config.activation.kernel(), &mut dfc, &dgelu, &s.fc);
        let dnormed = self.linear_backward(&dfc, &s.ln_2.y, &name("mlp.c_fc"), gradients);
        self.layernorm_backward(dx, &dnormed, &s.middle, &s.ln_2, &name("ln_2"), gradients);

        naive::dropout_backward(self.row_dims(), &mut dbranch, dx, self.dropout(2 + number, 1));
        let dheads = self.linear_backward(&dbranch, &s.heads, &name("attn.c_proj"), gradients);
        let mut dqkv = vec![0.0; s.qkv.len()];
        let dropout = self.dropout(1 + number, self.config.n_heads);
        let dims = self.attention_dims();
        naive::attention_backward(dims, &mut dqkv, &dheads, &s.heads, &s.qkv, &s.lse, dropout);
        let dnormed = self.linear_backward(&dqkv, &s.ln_1.y, &name("attn.c_attn"), gradients);
        self.layernorm_backward(dx, &dnormed, &s.input, &s.ln_1, &name("ln_1"), gradients);
    }

    /// Returns the gradient of `x`, from `dy`, the gradient of `y = linear(x)`.
    fn linear_backward(&self, dy: &[f64], x: &[f64], name: &str, gradients: &mut [f64]) -> Vec<f64> {
        let (weight, bias) = (self.range(&format!("{name}.weight")), self.range(&format!("{name}.bias")));
        let dims = LinearDims { rows: self.rows(), inputs: x.len() / self.rows(), outputs: bias.len() };
        let mut dx = vec![0.0; x.len()];
        naive::linear_backward_input(dims, &mut dx, dy, &self.w[weight.clone()]);
        // The bias follows its weight.
        let (dw, dbias) = gradients[weight.start..bias.end].split_at_mut(weight.len());
        naive::linear_backward_parameters(dims, dw, Some(dbias), dy, x);
        dx
    }

    /// Adds to `dx` the gradient of `x`, from `dy`, the gradient of `y = layernorm(x)`.
    fn layernorm_backward(
        &self,
        dx: &mut [f64],
        dy: &[f64],
        x: &[f64],
        normed: &Normed,
        name: &str,
        gradients: &mut [f64],
    ) {
        let (weight, bias) = (self.range(&format!("{name}.weight")), self.range(&format!("{name}.bias")));
        let (dweight, dbias) = gradients[weight.start..bias.end].split_at_mut(weight.len());
        let Normed { mean, rstd, .. } = normed;
        naive::layernorm_backward(self.row_dims(), dx, dweight, dbias, dy, x, mean, rstd, &self.w[weight]);
    }
}
