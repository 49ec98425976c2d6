//! The buffers of a forward and a backward pass, allocated once for the largest batch.
//!
//! Every sequence has its own, so that threads work on sequences without knowing of each other; every thread has a
//! [`Workspace`] for what lives no longer than one sequence's turn.

use std::sync::{Mutex, MutexGuard};

use folio_kernels::attention::AttentionScratch;
use folio_kernels::buffer::Buffer;
use folio_kernels::dims::{AttentionDims, HeadDims};
use folio_kernels::element::Element;
use folio_kernels::head::HeadScratch;
use folio_kernels::panels::{PanelDims, Panels};

use super::ModelConfig;

/// What a pass writes down.
pub(super) struct Activations<E> {
    pub(super) capacity: Capacity,
    pub(super) sequences: Vec<Sequence<E>>,
    /// For each sequence, its [`Operands`] of the block at hand. Empty for inference.
    pub(super) operands: Buffer<E>,
    /// For each sequence of one turn of the head, panels (depth T, V): the gradients of its logits. Empty for
    /// inference.
    pub(super) dlogits: Buffer<E>,
    /// (B, T, C): the gradient of the residual stream. Empty for inference.
    pub(super) dresidual: Buffer<f32>,
    /// (B, T): the loss of each token, in nats.
    pub(super) losses: Vec<f32>,
    pub(super) workspaces: Workspaces<E>,
}

/// What the backward pass of one sequence needs of its forward pass. Inference keeps one block's at a time.
pub(super) struct Sequence<E> {
    /// The residual stream, (T, C) each: after the embeddings, then after every block. Inference has two and takes
    /// turns.
    pub(super) residual: Vec<Buffer<f32>>,
    /// One for each block, or one in all.
    pub(super) blocks: Vec<BlockActivations<E>>,
    /// (T): of the final LayerNorm.
    pub(super) ln_f: LayerNormStatistics,
    /// This sequence's share of the gradients of the block's vectors, then of the final LayerNorm's.
    pub(super) vectors: Vec<f32>,
}

/// What the backward pass of one block needs of its forward pass.
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
    /// (T, 4C): before GELU.
    pub(super) fc: Buffer<E>,
}

pub(super) struct LayerNormStatistics {
    /// (T)
    pub(super) mean: Vec<f32>,
    /// (T)
    pub(super) rstd: Vec<f32>,
}

/// What lives no longer than one thread's work on one sequence.
pub(super) struct Workspace<E> {
    /// (T, C): the output of the LayerNorm at hand; going back, also the gradient of the heads.
    pub(super) normed: Buffer<E>,
    /// (T, C): the gradient of a branch's output.
    pub(super) branch: Buffer<E>,
    /// (T, 4C): GELU's output going forward; the gradient of its input, or of qkv, going back.
    pub(super) wide: Buffer<E>,
    /// (T, C): the gradient of a LayerNorm's output.
    pub(super) dnormed: Buffer<f32>,
    pub(super) attention: AttentionScratch<E>,
    pub(super) head: HeadScratch<E>,
}

/// One [`Workspace`] for each thread.
pub(super) struct Workspaces<E>(Vec<Mutex<Workspace<E>>>);

impl<E: Element> Workspaces<E> {
    /// That of the thread that asks.
    pub(super) fn mine(&self) -> MutexGuard<'_, Workspace<E>> {
        let thread = rayon::current_thread_index().unwrap_or(0);
        self.0[thread].lock().expect("a thread that panicked takes the process with it")
    }
}

/// The operands of one block's weight gradients, in panels whose depth is the tokens of one sequence: every x and
/// dy of `dw = xᵀ dy`, in the order of [`Operands::WIDTHS`].
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
    /// (T, 4C)
    pub(super) dfc: S,
    /// (T, 4C): GELU's output.
    pub(super) gelu: S,
    /// (T, C): the gradient of mlp_proj's output.
    pub(super) dmlp: S,
}

impl<S> Operands<S> {
    /// Columns of each, in multiples of C.
    const WIDTHS: [usize; 8] = [1, 3, 1, 1, 1, 4, 4, 1];

    /// Names the parts, which come in the order of the widths.
    fn gather(mut next: impl FnMut(usize) -> S) -> Self {
        let [normed_1, dqkv, heads, dattn, normed_2, dfc, gelu, dmlp] = Self::WIDTHS.map(&mut next);
        Self { normed_1, dqkv, heads, dattn, normed_2, dfc, gelu, dmlp }
    }
}

/// Elements of the operands of one sequence.
pub(super) fn operands_len<E: Element>(time: usize, c: usize) -> usize {
    let lengths = Operands::<()>::WIDTHS.map(|width| PanelDims { depth: time, cols: width * c }.len::<E>());
    lengths.iter().sum()
}

impl<'a, E: Element> Operands<&'a mut [E]> {
    /// The parts of one sequence's share of [`Activations::operands`].
    pub(super) fn of(time: usize, c: usize, mut share: &'a mut [E]) -> Self {
        Self::gather(|width| {
            let length = PanelDims { depth: time, cols: width * c }.len::<E>();
            share.split_off_mut(..length).expect("a share holds every part")
        })
    }
}

impl<'a, E: Element> Operands<Panels<'a, E>> {
    /// The operands of `batch` sequences, each part with one segment for each sequence.
    pub(super) fn of_all(batch: usize, time: usize, c: usize, operands: &'a [E]) -> Self {
        let stride = operands_len::<E>(time, c);
        let mut first = 0;
        Self::gather(|width| {
            let dims = PanelDims { depth: time, cols: width * c };
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
    /// Threads that work at once.
    pub(super) threads: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Inference,
    Training,
}

impl Capacity {
    /// Whether a pass of this size fits.
    pub(super) fn holds(self, wanted: Capacity) -> bool {
        self.batch >= wanted.batch
            && self.time >= wanted.time
            && self.threads >= wanted.threads
            && (self.purpose == Purpose::Training || wanted.purpose == Purpose::Inference)
    }

    /// Sequences that the head takes in one turn. With a large vocabulary the gradients of all logits would dwarf
    /// everything else; 2^26 of them (128 MiB in bfloat16) are enough for the gradient of the embedding, which
    /// is read and written once a turn, not to count.
    pub(super) fn head_turn(self, vocab_size: usize) -> usize {
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
            sequences: (0..batch).map(|_| Sequence::new(config, time, training)).collect(),
            operands: Buffer::zeroed(if_training(batch * operands_len::<E>(time, c))),
            dlogits: Buffer::zeroed(if_training(capacity.head_turn(vocab_size) * logits)),
            dresidual: Buffer::zeroed(if_training(batch * time * c)),
            losses: vec![0.0; batch * time],
            workspaces: Workspaces(
                (0..threads).map(|_| Mutex::new(Workspace::new(config, time, training))).collect(),
            ),
        }
    }
}

impl<E: Element> Sequence<E> {
    fn new(config: &ModelConfig, time: usize, training: bool) -> Self {
        let ModelConfig { n_blocks, n_emb: c, n_heads, .. } = *config;
        let block = |_| BlockActivations {
            ln_1: LayerNormStatistics::new(time),
            qkv: Buffer::zeroed(time * 3 * c),
            lse: vec![0.0; time * n_heads],
            heads: Buffer::zeroed(time * c),
            middle: Buffer::zeroed(time * c),
            ln_2: LayerNormStatistics::new(time),
            fc: Buffer::zeroed(time * 4 * c),
        };
        let slots = if training { n_blocks + 1 } else { 2 };
        Self {
            residual: (0..slots).map(|_| Buffer::zeroed(time * c)).collect(),
            blocks: (0..if training { n_blocks } else { 1 }).map(block).collect(),
            ln_f: LayerNormStatistics::new(time),
            vectors: vec![
                0.0;
                if training {
                    super::parameters::VECTOR_WIDTHS.iter().sum::<usize>() * c
                } else {
                    0
                }
            ],
        }
    }
}

impl<E: Element> Workspace<E> {
    fn new(config: &ModelConfig, time: usize, training: bool) -> Self {
        let ModelConfig { vocab_size, n_emb: c, n_heads, .. } = *config;
        let head_size = config.head_size();
        Self {
            normed: Buffer::zeroed(time * c),
            branch: Buffer::zeroed(time * c),
            wide: Buffer::zeroed(time * 4 * c),
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
