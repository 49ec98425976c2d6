//! The buffers of a forward and a backward pass, allocated once for the largest batch.
//!
//! Each sequence has buffers for what its backward pass reads, so that threads work on sequences independently. Each thread
//! has a [`ThreadScratch`] for intermediate results.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use folio_kernels::attention::AttentionScratch;
use folio_kernels::buffer::Buffer;
use folio_kernels::dims::{AttentionDims, HeadDims};
use folio_kernels::element::Element;
use folio_kernels::head::HeadScratch;
use folio_kernels::panels::{PanelDims, Panels};
use rayon::prelude::*;

use crate::model::parameters::vector_lengths;
use crate::model::{Batch, ModelConfig};

/// All buffers of a pass.
pub(super) struct Activations<E> {
    pub(super) capacity: Capacity,
    pub(super) sequences: Vec<SequenceActivations<E>>,
    /// The [`Operands`] of the current block, sequence after sequence. Empty for inference.
    pub(super) operands: Buffer<E>,
    /// The gradients of the logits of one group of sequences, panels (depth T, V) each. Empty for inference.
    pub(super) dlogits: Buffer<E>,
    /// (B, T, C): the gradient of the residual stream. Empty for inference.
    pub(super) dresidual: Buffer<f32>,
    /// (B, T): the loss of each token, in nats.
    pub(super) losses: Vec<f32>,
    pub(super) scratch: ScratchOfThreads<E>,
}

/// What the backward pass of one sequence reads of its forward pass.
pub(super) struct SequenceActivations<E> {
    /// The residual stream, (T, C) each: after the embeddings, then after every block. Inference alternates between two.
    pub(super) residual: Vec<Buffer<f32>>,
    /// One per block; for inference a single one.
    pub(super) blocks: Vec<BlockActivations<E>>,
    /// The final LayerNorm.
    pub(super) ln_f: LayerNormStatistics,
    /// This sequence's contribution to the gradients of the vectors (biases and LayerNorm) of the final LayerNorm, then of the
    /// current block.
    pub(super) vector_gradients: Vec<f32>,
}

/// What the backward pass of one block reads of its forward pass.
pub(super) struct BlockActivations<E> {
    pub(super) ln_1: LayerNormStatistics,
    /// (T, 3C)
    pub(super) qkv: Buffer<E>,
    /// (H, T): log-sum-exp of the attention scores.
    pub(super) lse: Vec<f32>,
    /// (T, C): the heads' outputs side by side.
    pub(super) heads: Buffer<E>,
    /// (T, C): the residual stream between attention and feed-forward.
    pub(super) middle: Buffer<f32>,
    pub(super) ln_2: LayerNormStatistics,
    /// (T, I): before GELU.
    pub(super) fc: Buffer<E>,
}

pub(super) struct LayerNormStatistics {
    /// (T)
    pub(super) mean: Vec<f32>,
    /// (T)
    pub(super) rstd: Vec<f32>,
}

/// Intermediate results of one thread's work on one sequence.
pub(super) struct ThreadScratch<E> {
    /// (T, C): a LayerNorm's output; in the backward pass also the gradient of the heads.
    pub(super) normed: Buffer<E>,
    /// (T, C): the gradient of a branch's output.
    pub(super) branch: Buffer<E>,
    /// (T, the larger of I and 3C): GELU's output; in the backward pass the gradient of its input, or of qkv.
    pub(super) wide: Buffer<E>,
    /// (T, C): the gradient of a LayerNorm's output.
    pub(super) dnormed: Buffer<f32>,
    pub(super) attention: AttentionScratch<E>,
    pub(super) head: HeadScratch<E>,
}

/// One [`ThreadScratch`] per thread.
pub(super) struct ScratchOfThreads<E>(Vec<Mutex<ThreadScratch<E>>>);

impl<E: Element> ScratchOfThreads<E> {
    /// The calling thread's. Kernels do not fork, so a thread never needs it twice at once.
    pub(super) fn of_this_thread(&self) -> MutexGuard<'_, ThreadScratch<E>> {
        let thread = rayon::current_thread_index().unwrap_or(0);
        self.0[thread].try_lock().expect("one user per thread at a time")
    }
}

/// The operands of one block's weight gradients `dw = xᵀ dy`, in panels whose depth is the tokens of one sequence, in the
/// order of [`Operands::columns`].
pub(super) struct Operands<S> {
    /// (T, C): ln_1's output.
    pub(super) normed_1: S,
    /// (T, 3C)
    pub(super) dqkv: S,
    /// (T, C): attention's output.
    pub(super) heads: S,
    /// (T, C): the gradient of attn_proj's output.
    pub(super) dattn: S,
    /// (T, C): ln_2's output.
    pub(super) normed_2: S,
    /// (T, I)
    pub(super) dfc: S,
    /// (T, I): GELU's output.
    pub(super) gelu: S,
    /// (T, C): the gradient of mlp_proj's output.
    pub(super) dmlp: S,
}

impl<S> Operands<S> {
    /// The number of columns of each.
    fn columns(config: &ModelConfig) -> [usize; 8] {
        let (c, inner) = (config.n_emb, config.inner());
        [c, 3 * c, c, c, c, inner, inner, c]
    }

    /// Collects the parts, which `next` returns for their numbers of columns.
    fn gather(config: &ModelConfig, next: impl FnMut(usize) -> S) -> Self {
        let [normed_1, dqkv, heads, dattn, normed_2, dfc, gelu, dmlp] = Self::columns(config).map(next);
        Self { normed_1, dqkv, heads, dattn, normed_2, dfc, gelu, dmlp }
    }
}

/// Elements of the operands of one sequence.
pub(super) fn operands_len<E: Element>(time: usize, config: &ModelConfig) -> usize {
    let lengths = Operands::<()>::columns(config).map(|cols| PanelDims { depth: time, cols }.len::<E>());
    lengths.iter().sum()
}

impl<'a, E: Element> Operands<&'a mut [E]> {
    /// The parts of one sequence's [`Activations::operands`].
    pub(super) fn of(time: usize, config: &ModelConfig, mut operands: &'a mut [E]) -> Self {
        Self::gather(config, |cols| {
            let length = PanelDims { depth: time, cols }.len::<E>();
            operands.split_off_mut(..length).expect("as long as its parts")
        })
    }
}

impl<'a, E: Element> Operands<Panels<'a, E>> {
    /// The operands of `batch` sequences: one segment per sequence in each part.
    pub(super) fn of_all(batch: usize, time: usize, config: &ModelConfig, operands: &'a [E]) -> Self {
        let stride = operands_len::<E>(time, config);
        let mut first = 0;
        Self::gather(config, |cols| {
            let dims = PanelDims { depth: time, cols };
            let panels = Panels::segmented(dims, &operands[first..batch * stride], batch, stride);
            first += dims.len::<E>();
            panels
        })
    }
}

/// The largest pass that the buffers hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capacity {
    pub(super) batch: usize,
    pub(super) time: usize,
    pub(super) purpose: Purpose,
    /// Threads of the pool.
    pub(super) threads: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Inference,
    Training,
}

impl Capacity {
    /// Whether a pass of this size fits.
    pub(super) fn holds(self, needed: Capacity) -> bool {
        self.batch >= needed.batch
            && self.time >= needed.time
            && self.threads >= needed.threads
            && (self.purpose == Purpose::Training || needed.purpose == Purpose::Inference)
    }

    /// Sequences of one group of the head. With a large vocabulary, the gradients of all logits would be larger than all other
    /// buffers. The gradient of the embedding is read and written once per group; with 2^26 logits (128 MiB in bfloat16) per
    /// group this takes little time.
    pub(super) fn head_group(self, vocab_size: usize) -> usize {
        const LOGITS: usize = 1 << 26;
        (LOGITS / (self.time * vocab_size)).clamp(1, self.batch)
    }
}

impl<E: Element> Activations<E> {
    pub(super) fn new(config: &ModelConfig, capacity: Capacity) -> Self {
        let ModelConfig { vocab_size, n_emb: c, .. } = *config;
        let Capacity { batch, time, purpose, threads } = capacity;
        let training = purpose == Purpose::Training;
        let if_training = |len: usize| if training { len } else { 0 };
        let logits = PanelDims { depth: time, cols: vocab_size }.len::<E>();
        Self {
            capacity,
            sequences: (0..batch).map(|_| SequenceActivations::new(config, time, training)).collect(),
            operands: Buffer::zeroed(if_training(batch * operands_len::<E>(time, config))),
            dlogits: Buffer::zeroed(if_training(capacity.head_group(vocab_size) * logits)),
            dresidual: Buffer::zeroed(if_training(batch * time * c)),
            losses: vec![0.0; batch * time],
            scratch: ScratchOfThreads(
                (0..threads).map(|_| Mutex::new(ThreadScratch::new(config, time, training))).collect(),
            ),
        }
    }
}

/// The work on one sequence of a batch without gradients.
pub(super) struct EvaluationJob<'a, E> {
    /// The index of the sequence in the pass.
    pub(super) b: usize,
    /// (T)
    pub(super) inputs: &'a [u32],
    /// (T)
    pub(super) targets: &'a [u32],
    pub(super) sequence: &'a mut SequenceActivations<E>,
    /// (T)
    pub(super) losses: &'a mut [f32],
}

/// The work on one sequence from the embedding to the gradient of the last block's output.
pub(super) struct ForwardJob<'a, E> {
    /// The index of the sequence in the pass.
    pub(super) b: usize,
    /// (T)
    pub(super) inputs: &'a [u32],
    /// (T)
    pub(super) targets: &'a [u32],
    pub(super) sequence: &'a mut SequenceActivations<E>,
    /// (T)
    pub(super) losses: &'a mut [f32],
    /// (T, C)
    pub(super) dresidual: &'a mut [f32],
    /// [`operands_len`] elements.
    pub(super) operands: &'a mut [E],
    /// Panels (depth T, V).
    pub(super) dlogits: &'a mut [E],
}

/// The work on one sequence in the backward pass of one block.
pub(super) struct BackwardJob<'a, E> {
    /// The index of the sequence in the pass.
    pub(super) b: usize,
    pub(super) sequence: &'a mut SequenceActivations<E>,
    /// (T, C)
    pub(super) dresidual: &'a mut [f32],
    /// [`operands_len`] elements.
    pub(super) operands: &'a mut [E],
}

impl<E: Element> Activations<E> {
    /// One job per sequence of a batch.
    pub(super) fn evaluation_jobs<'a>(
        &'a mut self,
        batch: Batch<'a>,
    ) -> (impl IndexedParallelIterator<Item = EvaluationJob<'a, E>>, &'a ScratchOfThreads<E>) {
        let t = batch.time;
        let tokens = batch.inputs.par_chunks_exact(t).zip(batch.targets.par_chunks_exact(t));
        let outputs =
            self.sequences[..batch.sequences()].par_iter_mut().zip(self.losses.par_chunks_exact_mut(t));
        let jobs = tokens.zip(outputs).with_max_len(1).enumerate().map(
            |(b, ((inputs, targets), (sequence, losses)))| EvaluationJob {
                b,
                inputs,
                targets,
                sequence,
                losses,
            },
        );
        (jobs, &self.scratch)
    }

    /// One job per sequence of a group of the head. Operands and logits are those of the group.
    pub(super) fn forward_jobs<'a>(
        &'a mut self,
        group: Range<usize>,
        batch: Batch<'a>,
        config: &ModelConfig,
        logits: usize,
    ) -> (impl IndexedParallelIterator<Item = ForwardJob<'a, E>>, &'a ScratchOfThreads<E>) {
        let (t, c, first) = (batch.time, config.n_emb, group.start);
        let part = batch.select(group.clone());
        let tokens = part.inputs.par_chunks_exact(t).zip(part.targets.par_chunks_exact(t));
        let outputs =
            self.sequences[group].par_iter_mut().zip(self.losses[first * t..].par_chunks_exact_mut(t));
        let operands = self.operands.par_chunks_exact_mut(operands_len::<E>(t, config));
        let gradients = operands.zip(self.dlogits.par_chunks_exact_mut(logits));
        let dresidual = self.dresidual[first * t * c..].par_chunks_exact_mut(t * c);
        let jobs = tokens.zip(outputs).zip(gradients.zip(dresidual)).with_max_len(1).enumerate().map(
            move |(index, (((inputs, targets), (sequence, losses)), ((operands, dlogits), dresidual)))| {
                let b = first + index;
                ForwardJob { b, inputs, targets, sequence, losses, dresidual, operands, dlogits }
            },
        );
        (jobs, &self.scratch)
    }

    /// One job per sequence.
    pub(super) fn backward_jobs(
        &mut self,
        batch: usize,
        t: usize,
        config: &ModelConfig,
    ) -> (impl IndexedParallelIterator<Item = BackwardJob<'_, E>>, &ScratchOfThreads<E>) {
        let gradients = (self.dresidual.par_chunks_exact_mut(t * config.n_emb))
            .zip(self.operands.par_chunks_exact_mut(operands_len::<E>(t, config)));
        let sequences = self.sequences[..batch].par_iter_mut().zip(gradients);
        let jobs = sequences
            .with_max_len(1)
            .enumerate()
            .map(|(b, (sequence, (dresidual, operands)))| BackwardJob { b, sequence, dresidual, operands });
        (jobs, &self.scratch)
    }
}

impl<E: Element> SequenceActivations<E> {
    fn new(config: &ModelConfig, time: usize, training: bool) -> Self {
        let ModelConfig { n_blocks, n_emb: c, n_heads, .. } = *config;
        let block = |_| BlockActivations {
            ln_1: LayerNormStatistics::new(time),
            qkv: Buffer::zeroed(time * 3 * c),
            lse: vec![0.0; time * n_heads],
            heads: Buffer::zeroed(time * c),
            middle: Buffer::zeroed(time * c),
            ln_2: LayerNormStatistics::new(time),
            fc: Buffer::zeroed(time * config.inner()),
        };
        let slots = if training { n_blocks + 1 } else { 2 };
        // The final LayerNorm's fit into a block's.
        let vectors = vector_lengths(config).iter().sum();
        Self {
            residual: (0..slots).map(|_| Buffer::zeroed(time * c)).collect(),
            blocks: (0..if training { n_blocks } else { 1 }).map(block).collect(),
            ln_f: LayerNormStatistics::new(time),
            vector_gradients: vec![0.0; if training { vectors } else { 0 }],
        }
    }
}

impl<E: Element> ThreadScratch<E> {
    fn new(config: &ModelConfig, time: usize, training: bool) -> Self {
        let ModelConfig { vocab_size, n_emb: c, n_heads, .. } = *config;
        let head_size = config.head_size();
        Self {
            normed: Buffer::zeroed(time * c),
            branch: Buffer::zeroed(time * c),
            wide: Buffer::zeroed(time * config.inner().max(3 * c)),
            dnormed: Buffer::zeroed(time * c),
            attention: AttentionScratch::new(AttentionDims { batch: 1, time, heads: n_heads, head_size }),
            head: HeadScratch::new(HeadDims { rows: time, channels: c, vocab: vocab_size }, training),
        }
    }
}

impl LayerNormStatistics {
    fn new(time: usize) -> Self {
        Self { mean: vec![0.0; time], rstd: vec![0.0; time] }
    }
}
