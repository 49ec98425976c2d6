//! A matrix packed in panels, the layout that matmuls read their right operand in.

use folio_kernels::buffer::Buffer;
use folio_kernels::element::Element;
use folio_kernels::isa::Isa;
use folio_kernels::panels::{PanelDims, Panels, Reuse, pack_both_ways};

/// A matrix in panels, allocated when it is first packed.
pub(super) struct PackedMatrix<E> {
    dims: PanelDims,
    data: Buffer<E>,
}

impl<E: Element> PackedMatrix<E> {
    pub(super) fn new(depth: usize, cols: usize) -> Self {
        Self { dims: PanelDims { depth, cols }, data: Buffer::default() }
    }

    /// Packs `w` (depth, cols), or the transpose of `w` (cols, depth) if `transposed`.
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

    /// The memory of the panels, allocated on first use.
    pub(super) fn memory(&mut self) -> &mut [E] {
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
