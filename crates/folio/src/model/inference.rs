//! Inference with a KV cache: the forward pass for the tokens that follow those in the cache.
//!
//! Every sum runs in the order of [`super::CpuBackend`], so that the logits have the same bits however a sequence is divided
//! into passes and whichever sequences are batched with it. Threads share the columns of each layer's output: generation is
//! bound by the memory that the weights are read from, and so each weight is read by one thread only.

use std::sync::{Mutex, MutexGuard};

use folio_kernels::attention::{AttentionScratch, KeyValueCache, attention_cached};
use folio_kernels::buffer::Buffer;
use folio_kernels::columns::ColumnsMut;
use folio_kernels::dims::{AttentionDims, EmbeddingDims, HeadDims, LinearDims, RowDims};
use folio_kernels::dropout::Dropout;
use folio_kernels::element::{Bf16, Element};
use folio_kernels::embedding::embedding_forward;
use folio_kernels::head::head_logits;
use folio_kernels::layernorm::layernorm_forward;
use folio_kernels::linear::{linear_forward, linear_gelu_forward, linear_residual_forward};
use folio_kernels::panels::PANEL_COLS;
use folio_kernels::quantized::Quantized;

use super::packed_matrix::PackedMatrix;
use super::{ModelConfig, Parameters, WeightFormat};

mod weights;

use weights::{InferenceBlock, InferenceWeights, Matrix, Norm};

/// The most tokens of one pass, over all sequences: enough for the matmuls of a long prompt to run at full speed, few enough
/// that other sequences do not wait long for their next token.
pub const PASS_TOKENS: usize = 256;

/// The weights of a model in the layout of inference. Any number of generators can share one.
pub struct InferenceModel {
    config: ModelConfig,
    weights: FormatWeights,
}

/// The weights in one of the number formats.
enum FormatWeights {
    F32(InferenceWeights<PackedMatrix<f32>>),
    Bf16(InferenceWeights<PackedMatrix<Bf16>>),
    Int8(InferenceWeights<Quantized>),
}

/// The keys and values of one sequence.
pub struct Cache(Caches);

enum Caches {
    F32(Heads<f32>),
    Bf16(Heads<Bf16>),
}

/// (L, H): one cache per head of each block. Threads share a pass by heads, so that these locks are never contended.
type Heads<E> = Vec<Mutex<KeyValueCache<E>>>;

/// The buffers of a pass.
pub struct Workspace(FormatBuffers);

enum FormatBuffers {
    F32(InferenceActivations<f32>),
    Bf16(InferenceActivations<Bf16>),
}

/// A sequence whose keys and values are cached.
pub trait CachedSequence: Send + Sync {
    /// The keys and values of the tokens so far.
    fn cache(&self) -> &Cache;
    /// The tokens of the next pass. Together with those in the cache at most `block_size`.
    fn next_tokens(&self) -> &[u32];
}

impl InferenceModel {
    /// The model with these weights.
    ///
    /// # Panics
    /// If the configuration is not valid, or not for this format ([`WeightFormat::check`]).
    pub fn new(config: ModelConfig, format: WeightFormat, parameters: &Parameters) -> Self {
        config.validate().and_then(|()| format.check(&config)).unwrap_or_else(|error| panic!("{error}"));
        let weights = match format {
            WeightFormat::F32 => FormatWeights::F32(InferenceWeights::new(&config, parameters)),
            WeightFormat::Bf16 => FormatWeights::Bf16(InferenceWeights::new(&config, parameters)),
            WeightFormat::Int8 => FormatWeights::Int8(InferenceWeights::new(&config, parameters)),
        };
        Self { config, weights }
    }

    /// The model's sizes.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The number format of the weights.
    pub fn format(&self) -> WeightFormat {
        match self.weights {
            FormatWeights::F32(_) => WeightFormat::F32,
            FormatWeights::Bf16(_) => WeightFormat::Bf16,
            FormatWeights::Int8(_) => WeightFormat::Int8,
        }
    }

    /// Bytes of weights that one pass reads.
    pub fn weight_bytes(&self) -> usize {
        match &self.weights {
            FormatWeights::F32(weights) => weights.bytes(),
            FormatWeights::Bf16(weights) => weights.bytes(),
            FormatWeights::Int8(weights) => weights.bytes(),
        }
    }

    /// Bytes of one sequence's keys and values.
    pub fn cache_bytes(&self) -> usize {
        let dims = attention_dims(&self.config);
        let head = match self.weights {
            FormatWeights::F32(_) | FormatWeights::Int8(_) => KeyValueCache::<f32>::bytes(dims),
            FormatWeights::Bf16(_) => KeyValueCache::<Bf16>::bytes(dims),
        };
        head * self.config.n_heads * self.config.n_blocks
    }

    /// A cache for a new sequence.
    pub fn cache(&self) -> Cache {
        let dims = attention_dims(&self.config);
        let heads = 0..self.config.n_blocks * self.config.n_heads;
        Cache(match self.weights {
            FormatWeights::F32(_) | FormatWeights::Int8(_) => {
                Caches::F32(heads.map(|_| KeyValueCache::new(dims).into()).collect())
            }
            FormatWeights::Bf16(_) => Caches::Bf16(heads.map(|_| KeyValueCache::new(dims).into()).collect()),
        })
    }

    /// Buffers for passes over at most `sequences` sequences at once.
    pub fn workspace(&self, sequences: usize) -> Workspace {
        Workspace(match self.weights {
            FormatWeights::F32(_) | FormatWeights::Int8(_) => {
                FormatBuffers::F32(InferenceActivations::new(&self.config, sequences))
            }
            FormatWeights::Bf16(_) => FormatBuffers::Bf16(InferenceActivations::new(&self.config, sequences)),
        })
    }

    /// Appends the next tokens of each sequence to its cache, and returns the logits of the token that follows the last of
    /// them: (sequences, V). The row of a sequence without next tokens is undefined.
    ///
    /// # Panics
    /// If there are more sequences than the workspace was made for, more next tokens than both [`PASS_TOKENS`] and the number
    /// of sequences, or more tokens than a cache holds.
    pub fn advance<'w, S: CachedSequence>(&self, workspace: &'w mut Workspace, sequences: &[S]) -> &'w [f32] {
        self.pass(workspace, sequences, None)
    }

    /// [`InferenceModel::advance`], which also reports the attention weights of one block: `on_weights` is called with each
    /// head, query and softmax(...) over the keys up to that query. Positions count from the start of the sequence.
    pub fn advance_with_weights<S: CachedSequence>(
        &self,
        workspace: &mut Workspace,
        sequence: &S,
        block: usize,
        on_weights: &mut (dyn FnMut(usize, usize, &[f32]) + Send),
    ) {
        self.pass(workspace, std::slice::from_ref(sequence), Some(AttentionObserver { block, on_weights }));
    }

    fn pass<'w, S: CachedSequence>(
        &self,
        workspace: &'w mut Workspace,
        sequences: &[S],
        observer: Option<AttentionObserver>,
    ) -> &'w [f32] {
        let config = self.config;
        // On a thread of the pool, where the many small parallel parts start and end cheaply.
        rayon::join(
            move || match (&self.weights, &mut workspace.0) {
                (FormatWeights::F32(weights), FormatBuffers::F32(a)) => {
                    InferencePass { config, weights }.run(a, sequences, observer)
                }
                (FormatWeights::Bf16(weights), FormatBuffers::Bf16(a)) => {
                    InferencePass { config, weights }.run(a, sequences, observer)
                }
                (FormatWeights::Int8(weights), FormatBuffers::F32(a)) => {
                    InferencePass { config, weights }.run(a, sequences, observer)
                }
                _ => panic!("a workspace of another format"),
            },
            || (),
        )
        .0
    }
}

impl Cache {
    /// The number of tokens.
    pub fn len(&self) -> usize {
        match &self.0 {
            Caches::F32(heads) => lock(&heads[0]).len(),
            Caches::Bf16(heads) => lock(&heads[0]).len(),
        }
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Removes all tokens.
    pub fn clear(&mut self) {
        match &self.0 {
            Caches::F32(heads) => heads.iter().for_each(|head| lock(head).clear()),
            Caches::Bf16(heads) => heads.iter().for_each(|head| lock(head).clear()),
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.try_lock().expect("one user per thread and head at a time")
}

/// A format of cached keys and values.
trait CacheFormat: Element {
    fn of(cache: &Cache) -> &Heads<Self>;
}

impl CacheFormat for f32 {
    fn of(cache: &Cache) -> &Heads<Self> {
        let Caches::F32(heads) = &cache.0 else { panic!("a cache of another format") };
        heads
    }
}

impl CacheFormat for Bf16 {
    fn of(cache: &Cache) -> &Heads<Self> {
        let Caches::Bf16(heads) = &cache.0 else { panic!("a cache of another format") };
        heads
    }
}

/// The buffers of a pass over N tokens of all sequences.
struct InferenceActivations<E> {
    /// (N, C): the residual stream.
    residual: Buffer<f32>,
    /// (N, C): the residual stream between attention and feed-forward.
    middle: Buffer<f32>,
    /// (N, C): the output of the current LayerNorm.
    normed: Buffer<E>,
    /// (N, 3C)
    qkv: Buffer<E>,
    /// (N, C): the heads' outputs side by side.
    heads: Buffer<E>,
    /// (N, I): before GELU.
    fc: Buffer<E>,
    /// (N, I): after it.
    gelu: Buffer<E>,
    /// (2, N): mean and rstd of the current LayerNorm.
    statistics: Vec<f32>,
    /// (sequences, C): the residual stream of each sequence's last token.
    last: Buffer<f32>,
    /// (sequences, V)
    logits: Buffer<f32>,
    /// One per thread.
    attention: Vec<Mutex<AttentionScratch<E>>>,
}

impl<E: Element> InferenceActivations<E> {
    fn new(config: &ModelConfig, sequences: usize) -> Self {
        let ModelConfig { n_emb: c, vocab_size, .. } = *config;
        let tokens = PASS_TOKENS.max(sequences);
        let scratch = |_| Mutex::new(AttentionScratch::new(attention_dims(config)));
        Self {
            residual: Buffer::zeroed(tokens * c),
            middle: Buffer::zeroed(tokens * c),
            normed: Buffer::zeroed(tokens * c),
            qkv: Buffer::zeroed(tokens * 3 * c),
            heads: Buffer::zeroed(tokens * c),
            fc: Buffer::zeroed(tokens * config.inner()),
            gelu: Buffer::zeroed(tokens * config.inner()),
            statistics: vec![0.0; 2 * tokens],
            last: Buffer::zeroed(sequences * c),
            logits: Buffer::zeroed(sequences * vocab_size),
            attention: (0..rayon::current_num_threads()).map(scratch).collect(),
        }
    }
}

/// A callback for the attention weights of one block.
struct AttentionObserver<'a> {
    block: usize,
    on_weights: &'a mut (dyn FnMut(usize, usize, &[f32]) + Send),
}

/// A pass over the next tokens of some sequences.
struct InferencePass<'a, W> {
    config: ModelConfig,
    weights: &'a InferenceWeights<W>,
}

impl<W: Matrix> InferencePass<'_, W>
where
    W::Element: CacheFormat,
{
    fn run<'w, S: CachedSequence>(
        &self,
        a: &'w mut InferenceActivations<W::Element>,
        sequences: &[S],
        mut observer: Option<AttentionObserver>,
    ) -> &'w [f32] {
        let c = self.config.n_emb;
        let tokens: usize = sequences.iter().map(|sequence| sequence.next_tokens().len()).sum();
        assert!(tokens <= a.statistics.len() / 2, "{tokens} tokens in one pass");
        self.embed(&mut a.residual[..tokens * c], sequences);
        for (idx, w) in self.weights.blocks.iter().enumerate() {
            let observer = observer.as_mut().filter(|observer| observer.block == idx);
            self.block(idx, tokens, w, a, sequences, observer);
        }
        self.logits(a, sequences)
    }

    fn embed<S: CachedSequence>(&self, mut x: &mut [f32], sequences: &[S]) {
        let ModelConfig { vocab_size: vocab, n_emb: channels, .. } = self.config;
        for sequence in sequences {
            let (tokens, past) = (sequence.next_tokens(), sequence.cache().len());
            let dims = EmbeddingDims { batch: 1, time: tokens.len(), channels, vocab };
            let rows = x.split_off_mut(..tokens.len() * channels).expect("one row per token");
            let positions = &self.weights.wpe[past * channels..];
            embedding_forward(dims, rows, &self.weights.wte, positions, tokens);
        }
    }

    /// One transformer block: `middle = x + attn(ln_1(x))`, `x = middle + mlp(ln_2(middle))`.
    fn block<S: CachedSequence>(
        &self,
        idx: usize,
        tokens: usize,
        w: &InferenceBlock<W>,
        a: &mut InferenceActivations<W::Element>,
        sequences: &[S],
        observer: Option<&mut AttentionObserver>,
    ) {
        let ModelConfig { n_emb: c, activation, layer_norm_epsilon: eps, .. } = self.config;
        let inner = self.config.inner();
        let InferenceActivations {
            residual,
            middle,
            normed,
            qkv,
            heads,
            fc,
            gelu,
            statistics,
            attention,
            ..
        } = a;
        let (residual, middle) = (&mut residual[..tokens * c], &mut middle[..tokens * c]);
        let (normed, qkv) = (&mut normed[..tokens * c], &mut qkv[..tokens * 3 * c]);
        let (heads, fc) = (&mut heads[..tokens * c], &mut fc[..tokens * inner]);
        let gelu = &mut gelu[..tokens * inner];
        let layer = |inputs, outputs| LinearDims { rows: tokens, inputs, outputs };

        layernorm(eps, normed, statistics, residual, &w.ln_1);
        by_columns(ColumnsMut::new(qkv, 3 * c), PANEL_COLS, &|qkv| {
            linear_forward(layer(c, 3 * c), qkv, normed, w.c_attn.view(), &w.c_attn_bias);
        });
        self.attend(idx, heads, qkv, attention, sequences, observer);
        by_columns(ColumnsMut::new(middle, c), PANEL_COLS, &|middle| {
            let attn_proj = (w.attn_proj.view(), &*w.attn_proj_bias);
            linear_residual_forward(layer(c, c), middle, residual, heads, attn_proj, Dropout::none());
        });

        layernorm(eps, normed, statistics, middle, &w.ln_2);
        by_columns((ColumnsMut::new(fc, inner), ColumnsMut::new(gelu, inner)), PANEL_COLS, &|outputs| {
            let c_fc = (w.c_fc.view(), &*w.c_fc_bias);
            linear_gelu_forward(layer(c, inner), activation.kernel(), outputs, normed, c_fc);
        });
        by_columns(ColumnsMut::new(residual, c), PANEL_COLS, &|residual| {
            let mlp_proj = (w.mlp_proj.view(), &*w.mlp_proj_bias);
            linear_residual_forward(layer(inner, c), residual, middle, gelu, mlp_proj, Dropout::none());
        });
    }

    /// Attention of each sequence's next tokens to all its tokens.
    fn attend<S: CachedSequence>(
        &self,
        idx: usize,
        y: &mut [W::Element],
        qkv: &[W::Element],
        scratch: &[Mutex<AttentionScratch<W::Element>>],
        sequences: &[S],
        observer: Option<&mut AttentionObserver>,
    ) {
        let ModelConfig { n_emb: c, n_heads, .. } = self.config;
        let dims = attention_dims(&self.config);
        let attend = |mut y: ColumnsMut<W::Element>, mut observer: Option<&mut AttentionObserver>| {
            let scratch = &mut *lock(&scratch[rayon::current_thread_index().unwrap_or(0)]);
            for h in y.range().start / dims.head_size..y.range().end / dims.head_size {
                let (mut head, rest) = y.split_at(dims.head_size);
                y = rest;
                let mut first = 0;
                for sequence in sequences {
                    let rows = first..first + sequence.next_tokens().len();
                    first = rows.end;
                    let qkv = &qkv[rows.start * 3 * c..rows.end * 3 * c];
                    let cache = &mut *lock(&W::Element::of(sequence.cache())[idx * n_heads + h]);
                    let y = head.part(rows);
                    match &mut observer {
                        None => attention_cached(dims, h, y, qkv, cache, scratch, None),
                        Some(observer) => {
                            let mut report = |query: usize, row: &[f32]| (observer.on_weights)(h, query, row);
                            attention_cached(dims, h, y, qkv, cache, scratch, Some(&mut report));
                        }
                    }
                }
            }
        };
        let y = ColumnsMut::new(y, c);
        match observer {
            Some(observer) => attend(y, Some(observer)),
            None => by_columns(y, dims.head_size, &|y| attend(y, None)),
        }
    }

    /// The logits of the token that follows the last one of each sequence.
    fn logits<'w, S: CachedSequence>(
        &self,
        a: &'w mut InferenceActivations<W::Element>,
        sequences: &[S],
    ) -> &'w [f32] {
        let ModelConfig { n_emb: c, vocab_size: vocab, .. } = self.config;
        let InferenceActivations { residual, last, normed, statistics, logits, .. } = a;
        let count = sequences.len();
        let (last, normed) = (&mut last[..count * c], &mut normed[..count * c]);
        let logits = &mut logits[..count * vocab];
        let mut end = 0;
        for (sequence, last) in sequences.iter().zip(last.chunks_exact_mut(c)) {
            end += sequence.next_tokens().len();
            // The row of a sequence without next tokens is that of another sequence.
            last.copy_from_slice(&residual[end.max(1) * c - c..][..c]);
        }
        layernorm(self.config.layer_norm_epsilon, normed, statistics, last, &self.weights.ln_f);
        by_columns(ColumnsMut::new(logits, vocab), PANEL_COLS, &|logits| {
            let dims = HeadDims { rows: count, channels: c, vocab };
            head_logits(dims, logits, normed, self.weights.head.view());
        });
        logits
    }
}

fn layernorm<E: Element>(eps: f32, y: &mut [E], statistics: &mut [f32], x: &[f32], norm: &Norm) {
    let cols = norm.weight.len();
    let rows = x.len() / cols;
    let (mean, rest) = statistics.split_at_mut(rows);
    let weights = (&*norm.weight, &*norm.bias);
    layernorm_forward(RowDims { rows, cols }, eps, y, (mean, &mut rest[..rows]), x, weights);
}

fn attention_dims(config: &ModelConfig) -> AttentionDims {
    let (heads, head_size) = (config.n_heads, config.head_size());
    AttentionDims { batch: 1, time: config.block_size, heads, head_size }
}

/// Outputs that are divided by columns.
trait Shared: Send + Sized {
    fn cols(&self) -> usize;
    fn split_at(self, cols: usize) -> (Self, Self);
}

impl<T: Send> Shared for ColumnsMut<'_, T> {
    fn cols(&self) -> usize {
        self.cols()
    }

    fn split_at(self, cols: usize) -> (Self, Self) {
        self.split_at(cols)
    }
}

impl<A: Shared, B: Shared> Shared for (A, B) {
    fn cols(&self) -> usize {
        self.0.cols()
    }

    fn split_at(self, cols: usize) -> (Self, Self) {
        let ((a, c), (b, d)) = (self.0.split_at(cols), self.1.split_at(cols));
        ((a, b), (c, d))
    }
}

/// Calls `work` with one part of the outputs per thread, in multiples of `piece` columns.
fn by_columns<S: Shared>(outputs: S, piece: usize, work: &(impl Fn(S) + Sync)) {
    fn divide<S: Shared>(outputs: S, piece: usize, parts: usize, work: &(impl Fn(S) + Sync)) {
        let pieces = outputs.cols().div_ceil(piece);
        let parts = parts.min(pieces);
        if parts <= 1 {
            return work(outputs);
        }
        let (left, right) = (parts / 2, parts - parts / 2);
        let (first, rest) = outputs.split_at(pieces * left / parts * piece);
        rayon::join(|| divide(first, piece, left, work), || divide(rest, piece, right, work));
    }
    divide(outputs, piece, rayon::current_num_threads(), work);
}
