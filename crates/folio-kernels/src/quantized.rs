//! 8-bit weights with one scale per column, for generation, which reads every weight for every token.
//!
//! ```text
//! w[k][n] = scale[n] q[k][n],  scale[n] = max over k of |w[k][n]| / 127,  q = round(w / scale)
//! ```
//! Symmetric quantization per output channel (Jacob et al. 2018, "Quantization and Training of Neural Networks for
//! Efficient Integer-Arithmetic-Only Inference", section 2.1, with a zero point of 0). Only weights are quantized;
//! activations and sums stay in f32. The error of a weight is at most half a scale.

use std::ops::Range;

use crate::isa::Isa;
use crate::matmul::{Cost, Lhs, Prefetch, Rhs, TileRange};
use crate::microkernel::multiply_quantized;
use crate::operand::{Int8Row, PANEL_COLS, PanelDims};
use crate::tile::ROWS;

/// A matrix (depth, cols) of 8-bit integers, with one scale per column.
#[derive(Clone, Debug)]
pub struct Quantized {
    dims: PanelDims,
    /// (panels, depth): panels of 64 columns, padded with zeros.
    data: Vec<Int8Row>,
    /// (cols rounded up to whole panels)
    scales: Vec<f32>,
}

impl Quantized {
    /// Quantizes the matrix whose element (k, n) is `w(k, n)`.
    pub fn new(dims: PanelDims, w: impl Fn(usize, usize) -> f32) -> Self {
        let PanelDims { depth, cols } = dims;
        let mut data = vec![Int8Row([0; PANEL_COLS]); dims.panels() * depth];
        let mut scales = vec![0.0f32; dims.panels() * PANEL_COLS];
        // Panel by panel, so that the accesses stay local whether `w` is stored by rows or by columns.
        for panel in 0..dims.panels() {
            let first = panel * PANEL_COLS;
            let columns = first..(first + PANEL_COLS).min(cols);
            let rows = &mut data[panel * depth..][..depth];
            let scales = &mut scales[first..][..PANEL_COLS];
            for k in 0..depth {
                for (n, scale) in columns.clone().zip(&mut *scales) {
                    *scale = scale.max(w(k, n).abs() / 127.0);
                }
            }
            for (k, row) in rows.iter_mut().enumerate() {
                for ((n, scale), q) in columns.clone().zip(&*scales).zip(&mut row.0) {
                    // The cast saturates and converts NaN, from 0 / 0 in a column of zeros, to 0.
                    *q = (w(k, n) / scale).round_ties_even() as i8;
                }
            }
        }
        Self { dims, data, scales }
    }

    /// The matrix as a right operand.
    pub fn view(&self) -> QuantizedPanels<'_> {
        let Self { dims, data, scales } = self;
        QuantizedPanels { data, scales, depth: dims.depth, cols: dims.cols }
    }

    /// Bytes that a matmul reads.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.data) + size_of_val(&*self.scales)
    }
}

/// A view of a [`Quantized`] matrix.
#[derive(Clone, Copy, Debug)]
pub struct QuantizedPanels<'a> {
    data: &'a [Int8Row],
    scales: &'a [f32],
    depth: usize,
    cols: usize,
}

impl Rhs<f32> for QuantizedPanels<'_> {
    fn columns(self, range: Range<usize>) -> Self {
        assert!(
            range.start.is_multiple_of(PANEL_COLS) && range.end <= self.cols,
            "columns {range:?} must start at a multiple of {PANEL_COLS} and end by {}",
            self.cols
        );
        let panel = range.start / PANEL_COLS;
        let (data, scales) = (&self.data[panel * self.depth..], &self.scales[range.start..]);
        Self { data, scales, cols: range.len(), ..self }
    }

    #[inline(always)]
    fn matmul_with<const N: usize>(
        self,
        isa: Isa,
        rows: Range<usize>,
        lhs: Lhs<f32>,
        prefetches: [Prefetch; N],
        _cost: Cost,
        mut epilogue: impl FnMut(TileRange, &mut [[f32; PANEL_COLS]]),
    ) {
        let Lhs::Rows { data, stride } = lhs else {
            panic!("a quantized right operand needs a row-major left operand")
        };
        let panels = self.data.chunks_exact(self.depth.max(1)).zip(self.scales.chunks_exact(PANEL_COLS));
        for (col, (panel, scales)) in (0..self.cols).step_by(PANEL_COLS).zip(panels) {
            let cols = (self.cols - col).min(PANEL_COLS);
            for row in rows.clone().step_by(ROWS) {
                let at = TileRange { row, col, rows: (rows.end - row).min(ROWS), cols };
                prefetches.iter().for_each(|prefetch| prefetch.tile(at));
                let left =
                    std::array::from_fn(|r| &data[(row + r.min(at.rows - 1)) * stride..][..self.depth]);
                let tile = if let Some(tile) = multiply_quantized(isa, at.rows, &left, panel) {
                    &mut { tile }
                } else {
                    &mut left.map(|left| sums(isa, left, panel))
                };
                scale(&mut tile[..at.rows], scales);
                epilogue(at, tile);
            }
        }
    }
}

/// Multiplies each column of sums by its scale.
#[inline(always)]
fn scale(sums: &mut [[f32; PANEL_COLS]], scales: &[f32]) {
    for row in sums {
        row.iter_mut().zip(scales).for_each(|(sum, scale)| *sum *= scale);
    }
}

/// A row times a panel, before scaling. Each sum is in the order of the depth.
#[inline(always)]
fn sums(isa: Isa, left: &[f32], panel: &[Int8Row]) -> [f32; PANEL_COLS] {
    /// Columns whose sums share a register.
    const GROUP: usize = 16;
    let mut sums = [[0.0f32; GROUP]; PANEL_COLS / GROUP];
    // Fused if the f32 micro-kernel of this instruction set fuses too.
    let fuses = isa.fuses_multiply_add();
    for (&value, row) in left.iter().zip(panel) {
        for (sums, weights) in sums.iter_mut().zip(row.0.as_chunks::<GROUP>().0) {
            for (sum, &weight) in sums.iter_mut().zip(weights) {
                let weight = f32::from(weight);
                *sum = if fuses { value.mul_add(weight, *sum) } else { value * weight + *sum };
            }
        }
    }
    let mut row = [0.0; PANEL_COLS];
    row.copy_from_slice(sums.as_flattened());
    row
}
