//! The weights packed for matmuls. They are packed again after every optimizer step, from the f32 weights.

use folio_kernels::element::Element;
use folio_kernels::head::VOCAB_SEGMENT;
use folio_kernels::panels::{PanelDims, Panels, Reuse};
use rayon::prelude::*;

use crate::model::packed_matrix::{PackedMatrix, pack};
use crate::model::{ModelConfig, Parameters};

/// Every matrix of a model in panels, for both passes.
pub(super) struct PackedWeights<E> {
    pub(super) blocks: Vec<PackedBlock<E>>,
    /// The head's weights, transposed: wteᵀ (C, V), unless the head is separate.
    head: PackedMatrix<E>,
    /// The head's weights (V, C) in segments of the vocabulary.
    head_backward: Vec<PackedMatrix<E>>,
    /// What is up to date.
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

/// A linear layer's weight w (K, N), and its transpose.
pub(super) struct PackedLinear<E> {
    /// K
    pub(super) inputs: usize,
    /// N
    pub(super) outputs: usize,
    forward: PackedMatrix<E>,
    backward: PackedMatrix<E>,
}

impl<E: Element> PackedWeights<E> {
    pub(super) fn new(config: &ModelConfig) -> Self {
        let ModelConfig { vocab_size, n_blocks, n_emb: c, .. } = *config;
        let block = |_| PackedBlock {
            c_attn: PackedLinear::new(c, 3 * c),
            attn_proj: PackedLinear::new(c, c),
            c_fc: PackedLinear::new(c, config.inner()),
            mlp_proj: PackedLinear::new(config.inner(), c),
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

    /// Marks the panels as out of date, because the weights have changed.
    pub(super) fn invalidate(&mut self) {
        self.current = Current::Nothing;
    }

    /// Packs what is out of date: for the forward pass, and for the backward pass too if `training`. A matrix is read once for
    /// both.
    pub(super) fn update(&mut self, parameters: &Parameters, training: bool) {
        let needed = if training { Current::Both } else { Current::Forward };
        if self.current >= needed {
            return;
        }
        let (forward, backward) = (self.current < Current::Forward, training);
        let reuse = Reuse::of(size_of_val(parameters.values()));
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
                let segments = (parameters.head().par_chunks(VOCAB_SEGMENT * c))
                    .zip(head.memory().par_chunks_mut(segment))
                    .zip(head_backward);
                segments.for_each(|((w, by_columns), by_rows)| {
                    let by_rows = backward.then(|| by_rows.memory());
                    pack((w.len() / c, c), by_rows, forward.then_some(by_columns), w, reuse);
                });
            },
        );
        self.current = needed;
    }

    /// The head's weights, transposed (C, V).
    pub(super) fn head(&self) -> Panels<'_, E> {
        self.head.panels()
    }

    /// The head's weights (V, C) in segments of the vocabulary.
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
}
