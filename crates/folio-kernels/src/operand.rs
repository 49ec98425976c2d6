//! The operands of a matmul: a left operand of rows or columns, a right operand in panels.
//!
//! A right operand (depth, cols) is cut into panels of [`PANEL_COLS`] columns. A panel stores, for one unit of depth
//! after another, the unit of each of its columns. With bfloat16 a unit is two neighbors along the depth, so two rows
//! are interleaved. Incomplete panels and units are padded with zeros. [`crate::panels`] packs matrices into this
//! layout.
//!
//! ```text
//! rows k, k + 1 of bfloat16:  a0 a1 a2 ...        one unit of 64 columns:  a0 b0 a1 b1 a2 b2 ...
//!                             b0 b1 b2 ...
//! ```

use std::ops::Range;

use crate::element::Element;
use crate::tile::COLS;

/// Columns of a panel.
pub const PANEL_COLS: usize = COLS;

/// The shape of a matrix in panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PanelDims {
    /// Rows: the dimension that a matmul sums over.
    pub depth: usize,
    /// Columns.
    pub cols: usize,
}

impl PanelDims {
    /// Units of depth.
    pub const fn units<E: Element>(self) -> usize {
        self.depth.div_ceil(E::PER_UNIT)
    }

    /// Number of panels.
    pub const fn panels(self) -> usize {
        self.cols.div_ceil(COLS)
    }

    /// Elements per panel.
    pub const fn panel_len<E: Element>(self) -> usize {
        self.units::<E>() * COLS * E::PER_UNIT
    }

    /// Elements of all panels.
    #[expect(clippy::len_without_is_empty, reason = "the length of an array that is yet to be allocated")]
    pub const fn len<E: Element>(self) -> usize {
        self.panels() * self.panel_len::<E>()
    }
}

/// A view of a matrix in panels. Its depth may consist of several segments of equal length that are apart in memory:
/// the tokens of one or several sequences, then those of the next.
#[derive(Clone, Copy, Debug)]
pub struct Panels<'a, E> {
    pub(crate) data: &'a [E],
    pub(crate) cols: usize,
    /// Units of depth per segment.
    pub(crate) units: usize,
    /// Elements from one panel to the next.
    pub(crate) panel_stride: usize,
    pub(crate) segments: usize,
    /// Elements from one segment to the next.
    pub(crate) segment_stride: usize,
}

impl<'a, E: Element> Panels<'a, E> {
    /// A matrix that [`crate::panels::pack_rows`] or [`crate::panels::pack_columns`] wrote to the start of `data`.
    pub fn new(dims: PanelDims, data: &'a [E]) -> Self {
        Self::segmented(dims, data, 1, 0)
    }

    /// A matrix of `segments` segments of shape `dims`, whose starts are `stride` elements apart in `data`.
    ///
    /// # Panics
    /// If `data` is too short, or `stride` is not a whole number of units.
    pub fn segmented(dims: PanelDims, data: &'a [E], segments: usize, stride: usize) -> Self {
        assert!(
            stride.is_multiple_of(E::PER_UNIT),
            "a stride of {stride} elements is not divisible by {}, the elements per unit",
            E::PER_UNIT
        );
        let needed = if segments == 0 { 0 } else { (segments - 1) * stride + dims.len::<E>() };
        assert!(
            data.len() >= needed,
            "{segments} segments of {dims:?} with stride {stride} need {needed} elements, got {}",
            data.len()
        );
        let (cols, units, panel_stride) = (dims.cols, dims.units::<E>(), dims.panel_len::<E>());
        Self { data, cols, units, panel_stride, segments, segment_stride: stride }
    }

    /// The first `depth` rows and `cols` columns of one segment. A unit that `depth` cuts in half is included.
    pub fn corner(self, depth: usize, cols: usize) -> Self {
        let units = depth.div_ceil(E::PER_UNIT);
        assert!(
            units <= self.units && cols <= self.cols,
            "a corner of ({depth}, {cols}) is outside {} units and {} columns",
            self.units,
            self.cols
        );
        Self { cols, units, ..self }
    }

    /// A range of the columns; it must start with the first column of a panel.
    ///
    /// # Panics
    /// If the range is outside the matrix, or starts inside a panel.
    pub fn columns(self, range: Range<usize>) -> Self {
        assert!(
            range.start.is_multiple_of(COLS) && range.end <= self.cols,
            "columns {range:?} must start at a multiple of {COLS} and end by {}",
            self.cols
        );
        let data = &self.data[range.start / COLS * self.panel_stride..];
        Self { data, cols: range.len(), ..self }
    }

    /// Bytes that a matmul reads.
    pub fn bytes(self) -> usize {
        self.segments * self.units * self.cols * E::PER_UNIT * size_of::<E>()
    }

    /// Number of columns.
    pub fn cols(self) -> usize {
        self.cols
    }

    /// `count` segments, starting with segment `first`.
    pub(crate) fn part(self, first: usize, count: usize) -> Self {
        Self { data: &self.data[first * self.segment_stride..], segments: count, ..self }
    }

    /// Whether every unit that a matmul reads is inside the data.
    pub(crate) fn is_inside(self) -> bool {
        let panels = self.cols.div_ceil(COLS);
        if panels == 0 || self.segments == 0 || self.units == 0 {
            return true;
        }
        let last = (self.segments - 1) * self.segment_stride + (panels - 1) * self.panel_stride;
        last + self.units * COLS * E::PER_UNIT <= self.data.len()
    }
}

/// A left operand.
#[derive(Clone, Copy, Debug)]
pub enum Lhs<'a, E> {
    /// A row-major matrix (rows, depth).
    Rows {
        /// Its elements.
        data: &'a [E],
        /// Elements from the start of a row to the start of the next; at least the depth, rounded up to whole units.
        stride: usize,
    },
    /// The transpose of a matrix in panels: the columns of the panels are the rows of the operand.
    Columns(Panels<'a, E>),
}
