//! The weights in the layout of the products, made anew from the f32 masters after every optimizer step.

use folio_kernels::buffer::Buffer;
use folio_kernels::element::Element;
use folio_kernels::head::VOCAB_SEGMENT;
use folio_kernels::isa::Isa;
use folio_kernels::panels::{PanelDims, Panels, Reuse, pack_both_ways};
use rayon::prelude::*;

use super::{ModelConfig, Parameters};

/// Whether the caches still have so many bytes when all of them have been written and the first are read.
pub(super) fn reuse(bytes: usize) -> Reuse {
    const LARGE: usize = 64 << 20;
    if bytes < LARGE { Reuse::Temporal } else { Reuse::NonTemporal }
}

/// Every matrix of a model in panels, for the forward and for the backward pass.
pub(super) struct PackedWeights<E> {
    pub(super) blocks: Vec<PackedBlock<E>>,
    /// wteᵀ (C, V)
    head: PackedMatrix<E>,
    /// wte (V, C) in segments of the vocabulary.
    head_backward: Vec<PackedMatrix<E>>,
    /// What is packed of the weights as they are.
    current: Current,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Current {
    Nothing,
    Forward,
    Both,
}

/// The four linear layers of a block.
pub(super) struct PackedBlock<E> {
    pub(super) c_attn: PackedLinear<E>,
    pub(super) attn_proj: PackedLinear<E>,
    pub(super) c_fc: PackedLinear<E>,
    pub(super) mlp_proj: PackedLinear<E>,
}

/// A linear layer's w (K, N), and its transpose.
pub(super) struct PackedLinear<E> {
    inputs: usize,
    outputs: usize,
    forward: PackedMatrix<E>,
    backward: PackedMatrix<E>,
}

/// A matrix in panels; without memory until it is first packed.
pub(super) struct PackedMatrix<E> {
    dims: PanelDims,
    data: Buffer<E>,
}

impl<E: Element> PackedWeights<E> {
    pub(super) fn new(config: &ModelConfig) -> Self {
        let ModelConfig { vocab_size, n_blocks, n_emb: c, .. } = *config;
        let block = |_| PackedBlock {
            c_attn: PackedLinear::new(c, 3 * c),
            attn_proj: PackedLinear::new(c, c),
            c_fc: PackedLinear::new(c, 4 * c),
            mlp_proj: PackedLinear::new(4 * c, c),
        };
        let segments = (0..vocab_size).step_by(VOCAB_SEGMENT);
        let segment = |first: usize| PackedMatrix::new((vocab_size - first).min(VOCAB_SEGMENT), c);
        Self {
            blocks: (0..n_blocks).map(block).collect(),
            head: PackedMatrix::new(c, vocab_size),
            head_backward: segments.map(segment).collect(),
            current: Current::Nothing,
        }
    }

    /// The weights have changed: what is packed is out of date.
    pub(super) fn invalidate(&mut self) {
        self.current = Current::Nothing;
    }

    /// Packs what is out of date: for the forward pass, and for the backward pass if `training`. A matrix is read once
    /// for both.
    pub(super) fn update(&mut self, parameters: &Parameters, training: bool) {
        let wanted = if training { Current::Both } else { Current::Forward };
        if self.current >= wanted {
            return;
        }
        let (forward, backward) = (self.current < Current::Forward, training);
        let reuse = reuse(size_of_val(parameters.values()));
        let Self { blocks, head, head_backward, .. } = self;
        rayon::join(
            || {
                blocks.par_iter_mut().enumerate().for_each(|(idx, packed)| {
                    let w = parameters.block(idx);
                    let layers = [
                        (&mut packed.c_fc, w.c_fc_weight),
                        (&mut packed.mlp_proj, w.mlp_proj_weight),
                        (&mut packed.c_attn, w.c_attn_weight),
                        (&mut packed.attn_proj, w.attn_proj_weight),
                    ];
                    layers.into_par_iter().with_max_len(1).for_each(|(packed, w)| {
                        let by_rows = forward.then(|| packed.forward.memory());
                        let by_columns = backward.then(|| packed.backward.memory());
                        pack((packed.inputs, packed.outputs), by_rows, by_columns, w, reuse);
                    });
                });
            },
            || {
                let c = parameters.ln_f().0.len();
                let segment = PanelDims { depth: c, cols: VOCAB_SEGMENT }.len::<E>();
                let segments = (parameters.wte().par_chunks(VOCAB_SEGMENT * c))
                    .zip(head.memory().par_chunks_mut(segment))
                    .zip(head_backward);
                segments.for_each(|((wte, by_columns), by_rows)| {
                    let by_rows = backward.then(|| by_rows.memory());
                    pack((wte.len() / c, c), by_rows, forward.then_some(by_columns), wte, reuse);
                });
            },
        );
        self.current = wanted;
    }

    /// wteᵀ (C, V).
    pub(super) fn head(&self) -> Panels<'_, E> {
        self.head.panels()
    }

    /// wte (V, C) in segments of the vocabulary.
    pub(super) fn head_backward(&self) -> impl Iterator<Item = Panels<'_, E>> {
        self.head_backward.iter().map(PackedMatrix::panels)
    }
}

impl<E: Element> PackedLinear<E> {
    fn new(inputs: usize, outputs: usize) -> Self {
        let (forward, backward) = (PackedMatrix::new(inputs, outputs), PackedMatrix::new(outputs, inputs));
        Self { inputs, outputs, forward, backward }
    }

    /// w (K, N).
    pub(super) fn forward(&self) -> Panels<'_, E> {
        self.forward.panels()
    }

    /// wᵀ (N, K).
    pub(super) fn backward(&self) -> Panels<'_, E> {
        self.backward.panels()
    }

    /// K and N.
    pub(super) fn shape(&self) -> (usize, usize) {
        (self.inputs, self.outputs)
    }
}

impl<E: Element> PackedMatrix<E> {
    fn new(depth: usize, cols: usize) -> Self {
        Self { dims: PanelDims { depth, cols }, data: Buffer::default() }
    }

    /// `w` (depth, cols), or, if `transposed`, the transpose of `w` (cols, depth).
    pub(super) fn of(dims: PanelDims, w: &[f32], transposed: bool) -> Self {
        let PanelDims { depth, cols } = dims;
        let mut matrix = Self::new(depth, cols);
        let memory = matrix.memory();
        if transposed {
            pack((cols, depth), None, Some(memory), w, Reuse::Temporal);
        } else {
            pack((depth, cols), Some(memory), None, w, Reuse::Temporal);
        }
        matrix
    }

    pub(super) fn panels(&self) -> Panels<'_, E> {
        Panels::new(self.dims, &self.data)
    }

    /// What is packed, to be written; allocated if need be.
    fn memory(&mut self) -> &mut [E] {
        if self.data.is_empty() {
            self.data = Buffer::zeroed(self.dims.len::<E>());
        }
        &mut self.data
    }
}

/// Packs a matrix (rows, cols) and its transpose.
pub(super) fn pack<S: Element, E: Element>(
    shape: (usize, usize),
    by_rows: Option<&mut [E]>,
    by_columns: Option<&mut [E]>,
    src: &[S],
    reuse: Reuse,
) {
    let isa = Isa::detected();
    isa.run(
        #[inline(always)]
        || pack_both_ways(isa, shape, by_rows, by_columns, src, reuse),
    );
}
