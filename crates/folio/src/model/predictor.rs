//! A GPT-2 that writes: the forward pass for tokens that follow others, whose keys and values are kept.
//!
//! Every sum runs in the order in which [`super::Gpt2`] runs it, so that the logits are the same bits however a text is
//! cut into passes and whatever other texts share them. Threads share the columns of each layer's output, since a token
//! costs what it takes to read the weights, and each weight is read by one thread.

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

use super::packed::PackedMatrix;
use super::{ModelConfig, Parameters, WeightFormat};

mod weights;

use weights::{BlockWeights, Matrix, Norm, Weights};

/// Tokens that one pass takes, all texts together: enough for the products of a long prompt to run at full speed, few
/// enough that other texts do not wait long for their next token.
pub const PASS_TOKENS: usize = 256;

/// The weights of a model, as they are read to write texts; shared by all who write with it.
pub struct Predictor {
    config: ModelConfig,
    model: Model,
}

/// What depends on the number format.
enum Model {
    F32(Weights<PackedMatrix<f32>>),
    Bf16(Weights<PackedMatrix<Bf16>>),
    Int8(Weights<Quantized>),
}

/// The keys and values of one text.
pub struct Cache(Caches);

enum Caches {
    F32(Heads<f32>),
    Bf16(Heads<Bf16>),
}

/// (L, H): those of each head of each block. Threads share a pass by heads, so that none ever waits for another's.
type Heads<E> = Vec<Mutex<KeyValueCache<E>>>;

/// The buffers of a pass.
pub struct Workspace(Buffers);

enum Buffers {
    F32(Activations<f32>),
    Bf16(Activations<Bf16>),
}

/// A text under way.
pub trait Text: Send + Sync {
    /// Its keys and values.
    fn cache(&self) -> &Cache;
    /// The tokens that the next pass shall take; with the cache's not more than `block_size`.
    fn next_tokens(&self) -> &[u32];
}

impl Predictor {
    /// The model with these weights.
    ///
    /// # Panics
    /// If the configuration is not valid, or not for this format ([`WeightFormat::check`]).
    pub fn new(config: ModelConfig, format: WeightFormat, parameters: &Parameters) -> Self {
        config.validate().and_then(|()| format.check(&config)).unwrap_or_else(|error| panic!("{error}"));
        let model = match format {
            WeightFormat::F32 => Model::F32(Weights::new(&config, parameters)),
            WeightFormat::Bf16 => Model::Bf16(Weights::new(&config, parameters)),
            WeightFormat::Int8 => Model::Int8(Weights::new(&config, parameters)),
        };
        Self { config, model }
    }

    /// The model's sizes.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The numbers that its weights are in.
    pub fn format(&self) -> WeightFormat {
        match self.model {
            Model::F32(_) => WeightFormat::F32,
            Model::Bf16(_) => WeightFormat::Bf16,
            Model::Int8(_) => WeightFormat::Int8,
        }
    }

    /// Bytes of weights that a pass reads.
    pub fn weight_bytes(&self) -> usize {
        match &self.model {
            Model::F32(weights) => weights.bytes(),
            Model::Bf16(weights) => weights.bytes(),
            Model::Int8(weights) => weights.bytes(),
        }
    }

    /// Bytes of one text's keys and values.
    pub fn cache_bytes(&self) -> usize {
        let dims = attention_dims(&self.config);
        let head = match self.model {
            Model::F32(_) | Model::Int8(_) => KeyValueCache::<f32>::bytes(dims),
            Model::Bf16(_) => KeyValueCache::<Bf16>::bytes(dims),
        };
        head * self.config.n_heads * self.config.n_blocks
    }

    /// A cache for a new text.
    pub fn cache(&self) -> Cache {
        let dims = attention_dims(&self.config);
        let heads = 0..self.config.n_blocks * self.config.n_heads;
        Cache(match self.model {
            Model::F32(_) | Model::Int8(_) => {
                Caches::F32(heads.map(|_| KeyValueCache::new(dims).into()).collect())
            }
            Model::Bf16(_) => Caches::Bf16(heads.map(|_| KeyValueCache::new(dims).into()).collect()),
        })
    }

    /// Buffers for passes over up to so many texts at once.
    pub fn workspace(&self, texts: usize) -> Workspace {
        Workspace(match self.model {
            Model::F32(_) | Model::Int8(_) => Buffers::F32(Activations::new(&self.config, texts)),
            Model::Bf16(_) => Buffers::Bf16(Activations::new(&self.config, texts)),
        })
    }

    /// Appends the next tokens of each text to its cache, and returns the logits of what follows the last of them:
    /// (texts, V). The row of a text without next tokens means nothing.
    ///
    /// # Panics
    /// If there are more texts than the workspace is for, more next tokens than [`PASS_TOKENS`] and the number of texts,
    /// or more than a cache has room for.
    pub fn advance<'w, T: Text>(&self, workspace: &'w mut Workspace, texts: &[T]) -> &'w [f32] {
        self.pass(workspace, texts, None)
    }

    /// [`Predictor::advance`] that tells what one block's heads attend to: `on_weights` is called with each head, query
    /// and softmax(...) over the keys up to that query, both counted from the start of the text.
    pub fn advance_with_weights<T: Text>(
        &self,
        workspace: &mut Workspace,
        text: &T,
        block: usize,
        on_weights: &mut (dyn FnMut(usize, usize, &[f32]) + Send),
    ) {
        self.pass(workspace, std::slice::from_ref(text), Some(Watch { block, on_weights }));
    }

    fn pass<'w, T: Text>(
        &self,
        workspace: &'w mut Workspace,
        texts: &[T],
        watch: Option<Watch>,
    ) -> &'w [f32] {
        let config = self.config;
        // On a thread of the pool, so that the many small parallel parts start and end cheaply.
        rayon::join(
            move || match (&self.model, &mut workspace.0) {
                (Model::F32(weights), Buffers::F32(a)) => Pass { config, weights }.run(a, texts, watch),
                (Model::Bf16(weights), Buffers::Bf16(a)) => Pass { config, weights }.run(a, texts, watch),
                (Model::Int8(weights), Buffers::F32(a)) => Pass { config, weights }.run(a, texts, watch),
                _ => panic!("a workspace of another format"),
            },
            || (),
        )
        .0
    }
}

impl Cache {
    /// The tokens in it.
    pub fn len(&self) -> usize {
        match &self.0 {
            Caches::F32(heads) => lock(&heads[0]).len(),
            Caches::Bf16(heads) => lock(&heads[0]).len(),
        }
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all tokens.
    pub fn clear(&mut self) {
        match &self.0 {
            Caches::F32(heads) => heads.iter().for_each(|head| lock(head).clear()),
            Caches::Bf16(heads) => heads.iter().for_each(|head| lock(head).clear()),
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().expect("a thread that panicked takes the pass with it")
}

/// A format that caches keep keys and values in.
trait Kept: Element {
    fn of(cache: &Cache) -> &Heads<Self>;
}

impl Kept for f32 {
    fn of(cache: &Cache) -> &Heads<Self> {
        let Caches::F32(heads) = &cache.0 else { panic!("a cache of another format") };
        heads
    }
}

impl Kept for Bf16 {
    fn of(cache: &Cache) -> &Heads<Self> {
        let Caches::Bf16(heads) = &cache.0 else { panic!("a cache of another format") };
        heads
    }
}

/// What a pass writes down. N is its tokens, all texts together.
struct Activations<E> {
    /// (N, C): the residual stream.
    residual: Buffer<f32>,
    /// (N, C): the residual stream between attention and feed-forward.
    middle: Buffer<f32>,
    /// (N, C): the output of the LayerNorm at hand.
    normed: Buffer<E>,
    /// (N, 3C)
    qkv: Buffer<E>,
    /// (N, C): the heads' outputs side by side.
    heads: Buffer<E>,
    /// (N, 4C): before GELU.
    fc: Buffer<E>,
    /// (N, 4C): after it.
    gelu: Buffer<E>,
    /// (2, N): mean and rstd of the LayerNorm at hand.
    statistics: Vec<f32>,
    /// (texts, C): the residual stream of each text's last token.
    last: Buffer<f32>,
    /// (texts, V)
    logits: Buffer<f32>,
    /// One for each thread.
    attention: Vec<Mutex<AttentionScratch<E>>>,
}

impl<E: Element> Activations<E> {
    fn new(config: &ModelConfig, texts: usize) -> Self {
        let ModelConfig { n_emb: c, vocab_size, .. } = *config;
        let tokens = PASS_TOKENS.max(texts);
        let scratch = |_| Mutex::new(AttentionScratch::new(attention_dims(config)));
        Self {
            residual: Buffer::zeroed(tokens * c),
            middle: Buffer::zeroed(tokens * c),
            normed: Buffer::zeroed(tokens * c),
            qkv: Buffer::zeroed(tokens * 3 * c),
            heads: Buffer::zeroed(tokens * c),
            fc: Buffer::zeroed(tokens * 4 * c),
            gelu: Buffer::zeroed(tokens * 4 * c),
            statistics: vec![0.0; 2 * tokens],
            last: Buffer::zeroed(texts * c),
            logits: Buffer::zeroed(texts * vocab_size),
            attention: (0..rayon::current_num_threads()).map(scratch).collect(),
        }
    }
}

/// Whom to tell the attention weights of a block.
struct Watch<'a> {
    block: usize,
    on_weights: &'a mut (dyn FnMut(usize, usize, &[f32]) + Send),
}

/// A pass over the next tokens of some texts.
struct Pass<'a, W> {
    config: ModelConfig,
    weights: &'a Weights<W>,
}

impl<W: Matrix> Pass<'_, W>
where
    W::Element: Kept,
{
    fn run<'w, T: Text>(
        &self,
        a: &'w mut Activations<W::Element>,
        texts: &[T],
        mut watch: Option<Watch>,
    ) -> &'w [f32] {
        let c = self.config.n_emb;
        let tokens: usize = texts.iter().map(|text| text.next_tokens().len()).sum();
        assert!(tokens <= a.statistics.len() / 2, "{tokens} tokens in one pass");
        self.embed(&mut a.residual[..tokens * c], texts);
        for (idx, w) in self.weights.blocks.iter().enumerate() {
            let watch = watch.as_mut().filter(|watch| watch.block == idx);
            self.block((idx, tokens), w, a, texts, watch);
        }
        self.logits(a, texts)
    }

    fn embed<T: Text>(&self, mut x: &mut [f32], texts: &[T]) {
        let ModelConfig { vocab_size: vocab, n_emb: channels, .. } = self.config;
        for text in texts {
            let (tokens, past) = (text.next_tokens(), text.cache().len());
            let dims = EmbeddingDims { batch: 1, time: tokens.len(), channels, vocab };
            let rows = x.split_off_mut(..tokens.len() * channels).expect("a row for each token");
            let positions = &self.weights.wpe[past * channels..];
            embedding_forward(dims, rows, &self.weights.wte, positions, tokens);
        }
    }

    /// One transformer block: `middle = x + attn(ln_1(x))`, `x = middle + mlp(ln_2(middle))`.
    fn block<T: Text>(
        &self,
        (idx, tokens): (usize, usize),
        w: &BlockWeights<W>,
        a: &mut Activations<W::Element>,
        texts: &[T],
        watch: Option<&mut Watch>,
    ) {
        let c = self.config.n_emb;
        let Activations { residual, middle, normed, qkv, heads, fc, gelu, statistics, attention, .. } = a;
        let (residual, middle) = (&mut residual[..tokens * c], &mut middle[..tokens * c]);
        let (normed, qkv) = (&mut normed[..tokens * c], &mut qkv[..tokens * 3 * c]);
        let (heads, fc) = (&mut heads[..tokens * c], &mut fc[..tokens * 4 * c]);
        let gelu = &mut gelu[..tokens * 4 * c];
        let layer = |inputs, outputs| LinearDims { rows: tokens, inputs, outputs };

        layernorm(normed, statistics, residual, &w.ln_1);
        by_columns(ColumnsMut::new(qkv, 3 * c), PANEL_COLS, &|qkv| {
            linear_forward(layer(c, 3 * c), qkv, normed, w.c_attn.view(), &w.c_attn_bias);
        });
        self.attend(idx, heads, qkv, attention, texts, watch);
        by_columns(ColumnsMut::new(middle, c), PANEL_COLS, &|middle| {
            let attn_proj = (w.attn_proj.view(), &*w.attn_proj_bias);
            linear_residual_forward(layer(c, c), middle, residual, heads, attn_proj, Dropout::none());
        });

        layernorm(normed, statistics, middle, &w.ln_2);
        by_columns((ColumnsMut::new(fc, 4 * c), ColumnsMut::new(gelu, 4 * c)), PANEL_COLS, &|outputs| {
            linear_gelu_forward(layer(c, 4 * c), outputs, normed, (w.c_fc.view(), &w.c_fc_bias));
        });
        by_columns(ColumnsMut::new(residual, c), PANEL_COLS, &|residual| {
            let mlp_proj = (w.mlp_proj.view(), &*w.mlp_proj_bias);
            linear_residual_forward(layer(4 * c, c), residual, middle, gelu, mlp_proj, Dropout::none());
        });
    }

    /// Attention of each text's next tokens to all its tokens.
    fn attend<T: Text>(
        &self,
        idx: usize,
        y: &mut [W::Element],
        qkv: &[W::Element],
        scratch: &[Mutex<AttentionScratch<W::Element>>],
        texts: &[T],
        watch: Option<&mut Watch>,
    ) {
        let ModelConfig { n_emb: c, n_heads, .. } = self.config;
        let dims = attention_dims(&self.config);
        let attend = |mut y: ColumnsMut<W::Element>, mut watch: Option<&mut Watch>| {
            let scratch = &mut *lock(&scratch[rayon::current_thread_index().unwrap_or(0)]);
            for h in y.range().start / dims.head_size..y.range().end / dims.head_size {
                let (mut of_head, others) = y.split_at(dims.head_size);
                y = others;
                let mut first = 0;
                for text in texts {
                    let rows = first..first + text.next_tokens().len();
                    first = rows.end;
                    let qkv = &qkv[rows.start * 3 * c..rows.end * 3 * c];
                    let cache = &mut *lock(&W::Element::of(text.cache())[idx * n_heads + h]);
                    let y = of_head.part(rows);
                    match &mut watch {
                        None => attention_cached((dims, h), y, qkv, cache, scratch, None),
                        Some(watch) => {
                            let mut tell = |query: usize, row: &[f32]| (watch.on_weights)(h, query, row);
                            attention_cached((dims, h), y, qkv, cache, scratch, Some(&mut tell));
                        }
                    }
                }
            }
        };
        let y = ColumnsMut::new(y, c);
        match watch {
            Some(watch) => attend(y, Some(watch)),
            None => by_columns(y, dims.head_size, &|y| attend(y, None)),
        }
    }

    /// The logits of what follows the last token of each text.
    fn logits<'w, T: Text>(&self, a: &'w mut Activations<W::Element>, texts: &[T]) -> &'w [f32] {
        let ModelConfig { n_emb: c, vocab_size: vocab, .. } = self.config;
        let Activations { residual, last, normed, statistics, logits, .. } = a;
        let count = texts.len();
        let (last, normed) = (&mut last[..count * c], &mut normed[..count * c]);
        let logits = &mut logits[..count * vocab];
        let mut end = 0;
        for (text, last) in texts.iter().zip(last.chunks_exact_mut(c)) {
            end += text.next_tokens().len();
            // A text without next tokens has no last one: its row is another's, and means nothing.
            last.copy_from_slice(&residual[end.max(1) * c - c..][..c]);
        }
        layernorm(normed, statistics, last, &self.weights.ln_f);
        by_columns(ColumnsMut::new(logits, vocab), PANEL_COLS, &|logits| {
            let dims = HeadDims { rows: count, channels: c, vocab };
            head_logits(dims, logits, normed, self.weights.head.view());
        });
        logits
    }
}

fn layernorm<E: Element>(y: &mut [E], statistics: &mut [f32], x: &[f32], norm: &Norm) {
    let cols = norm.weight.len();
    let rows = x.len() / cols;
    let (mean, rest) = statistics.split_at_mut(rows);
    let weights = (&*norm.weight, &*norm.bias);
    layernorm_forward(RowDims { rows, cols }, y, (mean, &mut rest[..rows]), x, weights);
}

fn attention_dims(config: &ModelConfig) -> AttentionDims {
    let (heads, head_size) = (config.n_heads, config.head_size());
    AttentionDims { batch: 1, time: config.block_size, heads, head_size }
}

/// Outputs that threads share by columns.
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

/// Calls `work` with parts of the outputs, one for each thread, whole pieces of `piece` columns each.
fn by_columns<S: Shared>(outputs: S, piece: usize, work: &(impl Fn(S) + Sync)) {
    fn share<S: Shared>(outputs: S, (piece, parts): (usize, usize), work: &(impl Fn(S) + Sync)) {
        let pieces = outputs.cols().div_ceil(piece);
        let parts = parts.min(pieces);
        if parts <= 1 {
            return work(outputs);
        }
        let (left, right) = (parts / 2, parts - parts / 2);
        let (ours, others) = outputs.split_at(pieces * left / parts * piece);
        rayon::join(|| share(ours, (piece, left), work), || share(others, (piece, right), work));
    }
    share(outputs, (piece, rayon::current_num_threads()), work);
}
