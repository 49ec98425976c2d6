//! The weights of inference: matrices packed in one format, vectors and embeddings in f32.

use folio_kernels::element::Element;
use folio_kernels::matmul::Rhs;
use folio_kernels::panels::{PanelDims, Panels};
use folio_kernels::quantized::{Quantized, QuantizedPanels};
use rayon::prelude::*;

use crate::model::packed_matrix::PackedMatrix;
use crate::model::{ModelConfig, Parameters};

/// A packed matrix.
pub(super) trait Matrix: Send + Sync + Sized {
    /// The format of the activations that it is multiplied with.
    type Element: Element;
    /// The right operand of a matmul.
    type View<'a>: Rhs<Self::Element> + Send + Sync
    where
        Self: 'a;

    /// Packs `w` (depth, cols), or the transpose of `w` (cols, depth) if `transposed`.
    fn pack(dims: PanelDims, w: &[f32], transposed: bool) -> Self;
    fn view(&self) -> Self::View<'_>;
    fn bytes(&self) -> usize;
}

impl<E: Element> Matrix for PackedMatrix<E> {
    type Element = E;
    type View<'a> = Panels<'a, E>;

    fn pack(dims: PanelDims, w: &[f32], transposed: bool) -> Self {
        Self::of(dims, w, transposed)
    }

    fn view(&self) -> Panels<'_, E> {
        self.panels()
    }

    fn bytes(&self) -> usize {
        self.panels().bytes()
    }
}

impl Matrix for Quantized {
    type Element = f32;
    type View<'a> = QuantizedPanels<'a>;

    fn pack(dims: PanelDims, w: &[f32], transposed: bool) -> Self {
        let PanelDims { depth, cols } = dims;
        if transposed {
            Self::new(dims, |k, n| w[n * depth + k])
        } else {
            Self::new(dims, |k, n| w[k * cols + n])
        }
    }

    fn view(&self) -> QuantizedPanels<'_> {
        self.view()
    }

    fn bytes(&self) -> usize {
        self.bytes()
    }
}

/// Weight and bias of a LayerNorm, (C) each.
pub(super) struct Norm {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

impl Norm {
    fn new((weight, bias): (&[f32], &[f32])) -> Self {
        Self { weight: weight.to_vec(), bias: bias.to_vec() }
    }
}

/// The weights of one block.
pub(super) struct InferenceBlock<W> {
    pub(super) ln_1: Norm,
    /// (C, 3C)
    pub(super) c_attn: W,
    /// (3C)
    pub(super) c_attn_bias: Vec<f32>,
    /// (C, C)
    pub(super) attn_proj: W,
    /// (C)
    pub(super) attn_proj_bias: Vec<f32>,
    pub(super) ln_2: Norm,
    /// (C, I)
    pub(super) c_fc: W,
    /// (I)
    pub(super) c_fc_bias: Vec<f32>,
    /// (I, C)
    pub(super) mlp_proj: W,
    /// (C)
    pub(super) mlp_proj_bias: Vec<f32>,
}

/// All weights of a model.
pub(super) struct InferenceWeights<W> {
    /// (V, C)
    pub(super) wte: Vec<f32>,
    /// (block_size, C)
    pub(super) wpe: Vec<f32>,
    pub(super) blocks: Vec<InferenceBlock<W>>,
    pub(super) ln_f: Norm,
    /// The head's weights, transposed: wteᵀ (C, V), unless the head is separate.
    pub(super) head: W,
}

impl<W: Matrix> InferenceWeights<W> {
    pub(super) fn new(config: &ModelConfig, parameters: &Parameters) -> Self {
        let c = config.n_emb;
        let layer = |inputs, outputs, w| W::pack(PanelDims { depth: inputs, cols: outputs }, w, false);
        let block = |idx| {
            let w = parameters.block(idx);
            InferenceBlock {
                ln_1: Norm::new((w.ln_1_weight, w.ln_1_bias)),
                c_attn: layer(c, 3 * c, w.c_attn_weight),
                c_attn_bias: w.c_attn_bias.to_vec(),
                attn_proj: layer(c, c, w.attn_proj_weight),
                attn_proj_bias: w.attn_proj_bias.to_vec(),
                ln_2: Norm::new((w.ln_2_weight, w.ln_2_bias)),
                c_fc: layer(c, config.inner(), w.c_fc_weight),
                c_fc_bias: w.c_fc_bias.to_vec(),
                mlp_proj: layer(config.inner(), c, w.mlp_proj_weight),
                mlp_proj_bias: w.mlp_proj_bias.to_vec(),
            }
        };
        let head = PanelDims { depth: c, cols: config.vocab_size };
        Self {
            wte: parameters.wte().to_vec(),
            wpe: parameters.wpe().to_vec(),
            blocks: (0..config.n_blocks).into_par_iter().map(block).collect(),
            ln_f: Norm::new(parameters.ln_f()),
            head: W::pack(head, parameters.head(), true),
        }
    }

    /// Bytes that a pass over one token reads: matrices and vectors. One row of each embedding is not counted.
    pub(super) fn bytes(&self) -> usize {
        let block = |w: &InferenceBlock<W>| {
            let matrices = [&w.c_attn, &w.attn_proj, &w.c_fc, &w.mlp_proj].map(Matrix::bytes);
            // Two LayerNorms, and the biases of c_attn and the two projections.
            let vectors = 9 * w.ln_1.weight.len() + w.c_fc_bias.len();
            matrices.iter().sum::<usize>() + vectors * size_of::<f32>()
        };
        self.blocks.iter().map(block).sum::<usize>() + self.head.bytes()
    }
}
