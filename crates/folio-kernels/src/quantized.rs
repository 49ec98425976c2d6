//! Weights in eight bits: one scale for each column, for generation, which reads every weight for every token.
//!
//! ```text
//! w[k][n] = scale[n] q[k][n],  scale[n] = max over k of |w[k][n]| / 127,  q = round(w / scale)
//! ```
//! Symmetric quantisation by output channel (Jacob et al. 2018, "Quantization and Training of Neural Networks for
//! Efficient Integer-Arithmetic-Only Inference", section 2.1, with a zero point of 0). Only weights are quantised:
//! activations and sums stay as they are, so that a weight is off by half a scale at most and nothing else is.

use std::ops::Range;

use crate::isa::Isa;
use crate::matmul::{At, Fetch, Lhs, Rhs};
use crate::panels::{PANEL_COLS, PanelDims};
use crate::tile::{self, ROWS};

/// One row of a panel: a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Line([i8; PANEL_COLS]);

/// A matrix (depth, cols) in eight bits.
#[derive(Clone, Debug)]
pub struct Quantized {
    dims: PanelDims,
    /// (panels, depth): panels of 64 columns; zeros beyond the last.
    lines: Vec<Line>,
    /// (cols rounded up to panels)
    scales: Vec<f32>,
}

impl Quantized {
    /// The nearest to a matrix whose element (k, n) is `w(k, n)`.
    pub fn new(dims: PanelDims, w: impl Fn(usize, usize) -> f32) -> Self {
        let PanelDims { depth, cols } = dims;
        let mut lines = vec![Line([0; PANEL_COLS]); dims.panels() * depth];
        let mut scales = vec![0.0f32; dims.panels() * PANEL_COLS];
        // Panel by panel: whether columns or rows of `w` lie together, what is read stays near.
        for panel in 0..dims.panels() {
            let first = panel * PANEL_COLS;
            let (columns, lines) =
                (first..(first + PANEL_COLS).min(cols), &mut lines[panel * depth..][..depth]);
            let scales = &mut scales[first..][..PANEL_COLS];
            for k in 0..depth {
                for (n, scale) in columns.clone().zip(&mut *scales) {
                    *scale = scale.max(w(k, n).abs() / 127.0);
                }
            }
            for (k, line) in lines.iter_mut().enumerate() {
                for ((n, scale), q) in columns.clone().zip(&*scales).zip(&mut line.0) {
                    // A cast saturates, and makes 0 of NaN: of 0 / 0 in a column of zeros.
                    *q = (w(k, n) / scale).round_ties_even() as i8;
                }
            }
        }
        Self { dims, lines, scales }
    }

    /// The matrix as a right operand.
    pub fn view(&self) -> QuantizedPanels<'_> {
        let Self { dims, lines, scales } = self;
        QuantizedPanels { lines, scales, depth: dims.depth, cols: dims.cols }
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.lines) + size_of_val(&*self.scales)
    }
}

/// A matrix in eight bits, to be read.
#[derive(Clone, Copy, Debug)]
pub struct QuantizedPanels<'a> {
    lines: &'a [Line],
    scales: &'a [f32],
    depth: usize,
    cols: usize,
}

impl Rhs<f32> for QuantizedPanels<'_> {
    fn columns(self, range: Range<usize>) -> Self {
        assert!(
            range.start.is_multiple_of(PANEL_COLS) && range.end <= self.cols,
            "{range:?} of {}",
            self.cols
        );
        let panel = range.start / PANEL_COLS;
        let (lines, scales) = (&self.lines[panel * self.depth..], &self.scales[range.start..]);
        Self { lines, scales, cols: range.len(), ..self }
    }

    #[inline(always)]
    fn product_ahead<const N: usize>(
        self,
        isa: Isa,
        rows: Range<usize>,
        lhs: Lhs<f32>,
        fetches: [Fetch; N],
        mut finish: impl FnMut(At, &mut [[f32; PANEL_COLS]]),
    ) {
        let Lhs::Rows { data, stride } = lhs else { panic!("quantised weights meet rows") };
        let panels = self.lines.chunks_exact(self.depth.max(1)).zip(self.scales.chunks_exact(PANEL_COLS));
        for (col, (lines, scales)) in (0..self.cols).step_by(PANEL_COLS).zip(panels) {
            let cols = (self.cols - col).min(PANEL_COLS);
            for row in rows.clone().step_by(ROWS) {
                let at = At { row, col, rows: (rows.end - row).min(ROWS), cols };
                fetches.iter().for_each(|fetch| fetch.tile(at));
                let left =
                    std::array::from_fn(|r| &data[(row + r.min(at.rows - 1)) * stride..][..self.depth]);
                let tile = if let Some(tile) = tile::multiply_quantized(isa, at.rows, &left, lines) {
                    &mut { tile }
                } else {
                    &mut left.map(|left| sums(isa, left, lines))
                };
                scale(&mut tile[..at.rows], scales);
                finish(at, tile);
            }
        }
    }
}

/// Brings sums to the weights' scale.
#[inline(always)]
fn scale(sums: &mut [[f32; PANEL_COLS]], scales: &[f32]) {
    for row in sums {
        row.iter_mut().zip(scales).for_each(|(sum, scale)| *sum *= scale);
    }
}

/// The sums of a row with a panel, each in the order of the depth, before they are scaled.
#[inline(always)]
fn sums(isa: Isa, left: &[f32], lines: &[Line]) -> [f32; PANEL_COLS] {
    /// Columns whose sums are held in a register together.
    const GROUP: usize = 16;
    let mut sums = [[0.0f32; GROUP]; PANEL_COLS / GROUP];
    // In one rounding where the tiles of f32 do it.
    let fuses = isa.fuses();
    for (&value, line) in left.iter().zip(lines) {
        for (sums, weights) in sums.iter_mut().zip(line.0.as_chunks::<GROUP>().0) {
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
