//! The buffers of a forward and a backward pass, allocated once for the largest batch.
//!
//! Each chunk of sequences has buffers for what its backward pass reads, so that threads work on chunks independently. Each thread
//! has a [`ThreadScratch`] for intermediate results. B and T are the sequences of a chunk and their tokens.

use std::sync::{Mutex, MutexGuard};

use folio_kernels::attention::AttentionScratch;
use folio_kernels::buffer::Buffer;
use folio_kernels::dims::{AttentionDims, HeadDims};
use folio_kernels::element::Element;
use folio_kernels::head::HeadScratch;
use folio_kernels::panels::{PanelDims, Panels};
use rayon::prelude::*;

use super::pass::Pass;
use crate::model::parameters::vector_lengths;
use crate::model::{Batch, ModelConfig};

/// All buffers of a pass.
pub(super) struct Activations<E> {
    pub(super) capacity: Capacity,
    pub(super) chunks: Vec<ChunkActivations<E>>,
    /// The [`Operands`] of the current block, chunk after chunk. Empty for inference.
    pub(super) operands: Buffer<E>,
    /// The gradients of the logits of one group of chunks, panels (depth B T, V) each. Empty for inference.
    pub(super) dlogits: Buffer<E>,
    /// The gradient of the residual stream, (B, T, C) of each chunk. Empty for inference.
    pub(super) dresidual: Buffer<f32>,
    /// The loss of each token in nats, (B, T) of each chunk.
    pub(super) losses: Vec<f32>,
    pub(super) scratch: ScratchOfThreads<E>,
}

/// What the backward pass of one chunk reads of its forward pass.
pub(super) struct ChunkActivations<E> {
    /// The residual stream, (B, T, C) each: after the embeddings, then after every block. Inference alternates between two.
    pub(super) residual: Vec<Buffer<f32>>,
    /// One per block; for inference a single one.
    pub(super) blocks: Vec<BlockActivations<E>>,
    /// The final LayerNorm.
    pub(super) ln_f: LayerNormStatistics,
    /// The contribution of each sequence to the gradients of the vectors (biases and LayerNorm) of the final LayerNorm, then of the
    /// current block.
    pub(super) vector_gradients: Vec<VectorGradients>,
}

/// The gradients of vectors from one sequence, one after the other.
pub(super) type VectorGradients = Vec<f32>;

/// What the backward pass of one block reads of its forward pass.
pub(super) struct BlockActivations<E> {
    pub(super) ln_1: LayerNormStatistics,
    /// (B, T, 3C)
    pub(super) qkv: Buffer<E>,
    /// (B, H, T): log-sum-exp of the attention scores.
    pub(super) lse: Vec<f32>,
    /// (B, T, C): the heads' outputs side by side.
    pub(super) heads: Buffer<E>,
    /// (B, T, C): the residual stream between attention and feed-forward.
    pub(super) middle: Buffer<f32>,
    pub(super) ln_2: LayerNormStatistics,
    /// (B, T, I): before GELU.
    pub(super) fc: Buffer<E>,
}

pub(super) struct LayerNormStatistics {
    /// (B, T)
    pub(super) mean: Vec<f32>,
    /// (B, T)
    pub(super) rstd: Vec<f32>,
}

/// Intermediate results of one thread's work on one chunk.
pub(super) struct ThreadScratch<E> {
    /// (B, T, C): a LayerNorm's output; in the backward pass also the gradient of the heads.
    pub(super) normed: Buffer<E>,
    /// (B, T, C): the gradient of a branch's output.
    pub(super) branch: Buffer<E>,
    /// (B, T, the larger of I and 3C): GELU's output; in the backward pass the gradient of its input, or of qkv.
    pub(super) wide: Buffer<E>,
    /// (B, T, C): the gradient of a LayerNorm's output.
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

/// The operands of one block's weight gradients `dw = xᵀ dy`, in panels whose depth is the tokens of one chunk, in the
/// order of [`Operands::columns`].
pub(super) struct Operands<S> {
    /// (B, T, C): ln_1's output.
    pub(super) normed_1: S,
    /// (B, T, 3C)
    pub(super) dqkv: S,
    /// (B, T, C): attention's output.
    pub(super) heads: S,
    /// (B, T, C): the gradient of attn_proj's output.
    pub(super) dattn: S,
    /// (B, T, C): ln_2's output.
    pub(super) normed_2: S,
    /// (B, T, I)
    pub(super) dfc: S,
    /// (B, T, I): GELU's output.
    pub(super) gelu: S,
    /// (B, T, C): the gradient of mlp_proj's output.
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

/// Elements of the operands of a chunk of `tokens`.
pub(super) fn operands_len<E: Element>(tokens: usize, config: &ModelConfig) -> usize {
    let lengths = Operands::<()>::columns(config).map(|cols| PanelDims { depth: tokens, cols }.len::<E>());
    lengths.iter().sum()
}

impl<'a, E: Element> Operands<&'a mut [E]> {
    /// The parts of one chunk's [`Activations::operands`].
    pub(super) fn of(tokens: usize, config: &ModelConfig, mut operands: &'a mut [E]) -> Self {
        Self::gather(config, |cols| {
            let length = PanelDims { depth: tokens, cols }.len::<E>();
            operands.split_off_mut(..length).expect("as long as its parts")
        })
    }
}

impl<'a, E: Element> Operands<Panels<'a, E>> {
    /// The operands of `count` chunks of `tokens`, whose starts are `stride` elements apart: one segment per chunk in each part.
    pub(super) fn of_all(
        count: usize,
        tokens: usize,
        config: &ModelConfig,
        operands: &'a [E],
        stride: usize,
    ) -> Self {
        let mut first = 0;
        Self::gather(config, |cols| {
            let dims = PanelDims { depth: tokens, cols };
            let panels = Panels::segmented(dims, &operands[first..], count, stride);
            first += dims.len::<E>();
            panels
        })
    }
}

/// The largest pass that the buffers hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capacity {
    /// Chunks.
    pub(super) chunks: usize,
    /// Sequences of a chunk.
    pub(super) chunk_size: usize,
    /// Tokens of a sequence.
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
    /// What a pass over `batch` sequences in chunks of `chunk_size` needs.
    pub(super) fn needed(batch: usize, chunk_size: usize, time: usize, purpose: Purpose) -> Self {
        Self {
            chunks: batch.div_ceil(chunk_size),
            chunk_size,
            time,
            purpose,
            threads: rayon::current_num_threads(),
        }
    }

    /// Whether a pass of this size fits.
    pub(super) fn holds(self, needed: Capacity) -> bool {
        self.chunks >= needed.chunks
            && self.chunk_size >= needed.chunk_size
            && self.time >= needed.time
            && self.threads >= needed.threads
            && (self.purpose == Purpose::Training || needed.purpose == Purpose::Inference)
    }

    /// Tokens of a chunk.
    fn tokens(self) -> usize {
        self.chunk_size * self.time
    }

    /// Chunks of one group of the head. With a large vocabulary, the gradients of all logits would be larger than all other
    /// buffers. The gradient of the embedding is read and written once per group; with 2^26 logits (128 MiB in bfloat16) per
    /// group this takes little time.
    pub(super) fn head_group(self, vocab_size: usize) -> usize {
        const LOGITS: usize = 1 << 26;
        (LOGITS / (self.tokens() * vocab_size)).clamp(1, self.chunks)
    }
}

impl<E: Element> Activations<E> {
    pub(super) fn new(config: &ModelConfig, capacity: Capacity) -> Self {
        let ModelConfig { vocab_size, n_emb: c, .. } = *config;
        let Capacity { chunks, purpose, threads, .. } = capacity;
        let (training, tokens) = (purpose == Purpose::Training, capacity.tokens());
        let if_training = |len: usize| if training { len } else { 0 };
        let logits = PanelDims { depth: tokens, cols: vocab_size }.len::<E>();
        Self {
            capacity,
            chunks: (0..chunks).map(|_| ChunkActivations::new(config, capacity)).collect(),
            operands: Buffer::zeroed(if_training(chunks * operands_len::<E>(tokens, config))),
            dlogits: Buffer::zeroed(if_training(capacity.head_group(vocab_size) * logits)),
            dresidual: Buffer::zeroed(if_training(chunks * tokens * c)),
            losses: vec![0.0; chunks * tokens],
            scratch: ScratchOfThreads(
                (0..threads).map(|_| Mutex::new(ThreadScratch::new(config, capacity))).collect(),
            ),
        }
    }
}

/// The work on one chunk of a batch without gradients.
pub(super) struct EvaluationJob<'a, E> {
    /// The pass over the chunk.
    pub(super) pass: Pass,
    /// (B, T)
    pub(super) inputs: &'a [u32],
    /// (B, T)
    pub(super) targets: &'a [u32],
    pub(super) chunk: &'a mut ChunkActivations<E>,
    /// (B, T)
    pub(super) losses: &'a mut [f32],
}

/// The work on one chunk from the embedding to the gradient of the last block's output.
pub(super) struct ForwardJob<'a, E> {
    /// The pass over the chunk.
    pub(super) pass: Pass,
    /// (B, T)
    pub(super) inputs: &'a [u32],
    /// (B, T)
    pub(super) targets: &'a [u32],
    pub(super) chunk: &'a mut ChunkActivations<E>,
    /// (B, T)
    pub(super) losses: &'a mut [f32],
    /// (B, T, C)
    pub(super) dresidual: &'a mut [f32],
    /// [`operands_len`] elements.
    pub(super) operands: &'a mut [E],
    /// Panels (depth B T, V).
    pub(super) dlogits: &'a mut [E],
}

/// The work on one chunk in the backward pass of one block.
pub(super) struct BackwardJob<'a, E> {
    /// The pass over the chunk.
    pub(super) pass: Pass,
    pub(super) chunk: &'a mut ChunkActivations<E>,
    /// (B, T, C)
    pub(super) dresidual: &'a mut [f32],
    /// [`operands_len`] elements.
    pub(super) operands: &'a mut [E],
}

impl<E: Element> Activations<E> {
    /// One job per chunk of a batch.
    pub(super) fn evaluation_jobs<'a>(
        &'a mut self,
        pass: Pass,
        batch: Batch<'a>,
    ) -> (impl IndexedParallelIterator<Item = EvaluationJob<'a, E>>, &'a ScratchOfThreads<E>) {
        let tokens = pass.chunk_tokens();
        let ids = batch.inputs.par_chunks(tokens).zip(batch.targets.par_chunks(tokens));
        let losses = self.losses[..batch.inputs.len()].par_chunks_mut(tokens);
        let jobs = ids.zip(self.chunks.par_iter_mut().zip(losses)).with_max_len(1).enumerate().map(
            move |(index, ((inputs, targets), (chunk, losses)))| {
                let pass = pass.nth_chunk(index);
                EvaluationJob { pass, inputs, targets, chunk, losses }
            },
        );
        (jobs, &self.scratch)
    }

    /// One job per chunk of a group of the head, whose first chunk is given. Operands and logits are those of the group.
    pub(super) fn forward_jobs<'a>(
        &'a mut self,
        group: Pass,
        first: usize,
        batch: Batch<'a>,
        logits: usize,
    ) -> (impl IndexedParallelIterator<Item = ForwardJob<'a, E>>, &'a ScratchOfThreads<E>) {
        let (tokens, c) = (group.chunk_tokens(), group.config.n_emb);
        let own = first * tokens..first * tokens + group.tokens();
        let ids =
            batch.inputs[own.clone()].par_chunks(tokens).zip(batch.targets[own.clone()].par_chunks(tokens));
        let losses = self.losses[own.clone()].par_chunks_mut(tokens);
        let dresidual = self.dresidual[own.start * c..own.end * c].par_chunks_mut(tokens * c);
        let operands = self.operands.par_chunks_exact_mut(operands_len::<E>(tokens, &group.config));
        let dlogits = self.dlogits.par_chunks_exact_mut(logits);
        let outputs = self.chunks[first..].par_iter_mut().zip(losses);
        let jobs =
            ids.zip(outputs).zip(dresidual.zip(operands.zip(dlogits))).with_max_len(1).enumerate().map(
                move |(index, (((inputs, targets), (chunk, losses)), (dresidual, (operands, dlogits))))| {
                    let pass = group.nth_chunk(index);
                    ForwardJob { pass, inputs, targets, chunk, losses, dresidual, operands, dlogits }
                },
            );
        (jobs, &self.scratch)
    }

    /// One job per chunk.
    pub(super) fn backward_jobs(
        &mut self,
        pass: Pass,
    ) -> (impl IndexedParallelIterator<Item = BackwardJob<'_, E>>, &ScratchOfThreads<E>) {
        let (tokens, c) = (pass.chunk_tokens(), pass.config.n_emb);
        let dresidual = self.dresidual[..pass.tokens() * c].par_chunks_mut(tokens * c);
        let operands = self.operands.par_chunks_exact_mut(operands_len::<E>(tokens, &pass.config));
        let chunks = self.chunks.par_iter_mut().zip(dresidual.zip(operands));
        let jobs = chunks.with_max_len(1).enumerate().map(move |(index, (chunk, (dresidual, operands)))| {
            BackwardJob { pass: pass.nth_chunk(index), chunk, dresidual, operands }
        });
        (jobs, &self.scratch)
    }

    /// The gradients of vectors from each sequence of a pass.
    pub(super) fn vector_gradients(&self, pass: Pass) -> impl Iterator<Item = &VectorGradients> {
        self.chunks.iter().flat_map(move |chunk| &chunk.vector_gradients[..pass.chunk_size]).take(pass.batch)
    }
}

impl<E: Element> ChunkActivations<E> {
    fn new(config: &ModelConfig, capacity: Capacity) -> Self {
        let ModelConfig { n_blocks, n_emb: c, n_heads, .. } = *config;
        let (training, tokens) = (capacity.purpose == Purpose::Training, capacity.tokens());
        let block = |_| BlockActivations {
            ln_1: LayerNormStatistics::new(tokens),
            qkv: Buffer::zeroed(tokens * 3 * c),
            lse: vec![0.0; tokens * n_heads],
            heads: Buffer::zeroed(tokens * c),
            middle: Buffer::zeroed(tokens * c),
            ln_2: LayerNormStatistics::new(tokens),
            fc: Buffer::zeroed(tokens * config.inner()),
        };
        let slots = if training { n_blocks + 1 } else { 2 };
        // The final LayerNorm's fit into a block's.
        let vectors: usize = vector_lengths(config).iter().sum();
        let sequences = if training { capacity.chunk_size } else { 0 };
        Self {
            residual: (0..slots).map(|_| Buffer::zeroed(tokens * c)).collect(),
            blocks: (0..if training { n_blocks } else { 1 }).map(block).collect(),
            ln_f: LayerNormStatistics::new(tokens),
            vector_gradients: vec![vec![0.0; vectors]; sequences],
        }
    }
}

impl<E: Element> ThreadScratch<E> {
    fn new(config: &ModelConfig, capacity: Capacity) -> Self {
        let ModelConfig { vocab_size, n_emb: c, n_heads, .. } = *config;
        let (training, tokens) = (capacity.purpose == Purpose::Training, capacity.tokens());
        let head_size = config.head_size();
        let attention = AttentionDims { batch: 1, time: capacity.time, heads: n_heads, head_size };
        Self {
            normed: Buffer::zeroed(tokens * c),
            branch: Buffer::zeroed(tokens * c),
            wide: Buffer::zeroed(tokens * config.inner().max(3 * c)),
            dnormed: Buffer::zeroed(tokens * c),
            attention: AttentionScratch::new(attention),
            head: HeadScratch::new(HeadDims { rows: tokens, channels: c, vocab: vocab_size }, training),
        }
    }
}

impl LayerNormStatistics {
    fn new(tokens: usize) -> Self {
        Self { mean: vec![0.0; tokens], rstd: vec![0.0; tokens] }
    }
}
