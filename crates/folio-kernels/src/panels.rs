//! Operands laid out for products: panels of 64 columns, units along the sum.
//!
//! A matrix (depth, cols) that is summed over its depth is cut into panels of [`PANEL_COLS`] columns; a panel
//! holds, for one unit of depth after another, the unit of each of its columns. With bfloat16 a unit is two
//! neighbours along the depth, so that two rows are zipped together. What is missing to a whole panel or unit is
//! zero.
//!
//! ```text
//! rows k, k + 1 of bfloat16:  a0 a1 a2 ...        one unit of 64 columns:  a0 b0 a1 b1 a2 b2 ...
//!                             b0 b1 b2 ...
//! ```

use std::ops::Range;

use crate::element::Element;
use crate::isa::Isa;
use crate::rounding::{convert, convert_pairs};
use crate::tile::{COLS, store_past_caches, wait_for_stores};
use crate::transpose::{SIDE, transpose};

/// Columns of a panel.
pub const PANEL_COLS: usize = COLS;

/// The sizes of a matrix in panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PanelDims {
    /// Rows, along which products sum.
    pub depth: usize,
    /// Columns.
    pub cols: usize,
}

impl PanelDims {
    /// Units of depth.
    pub const fn units<E: Element>(self) -> usize {
        self.depth.div_ceil(E::PAIR)
    }

    /// Panels side by side.
    pub const fn panels(self) -> usize {
        self.cols.div_ceil(COLS)
    }

    /// Elements of one panel.
    pub const fn panel_len<E: Element>(self) -> usize {
        self.units::<E>() * COLS * E::PAIR
    }

    /// Elements in all.
    #[expect(clippy::len_without_is_empty, reason = "the length of an array to come")]
    pub const fn len<E: Element>(self) -> usize {
        self.panels() * self.panel_len::<E>()
    }
}

/// When what is written will be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// While the caches still have it.
    Soon,
    /// When they have lost it: it is written past them, which spares reading its place first. Only whole cache lines are.
    Late,
}

/// A matrix in panels, to be read. Its depth may come in several equal segments that lie apart: the tokens of one
/// sequence, then those of the next.
#[derive(Clone, Copy, Debug)]
pub struct Panels<'a, E> {
    pub(crate) data: &'a [E],
    pub(crate) cols: usize,
    /// Units of depth of one segment.
    pub(crate) units: usize,
    /// Elements from one panel to the next.
    pub(crate) panel_stride: usize,
    pub(crate) segments: usize,
    /// Elements from one segment to the next.
    pub(crate) segment_stride: usize,
}

impl<'a, E: Element> Panels<'a, E> {
    /// A matrix that [`pack_rows`] or [`pack_columns`] wrote at the head of `data`.
    pub fn new(dims: PanelDims, data: &'a [E]) -> Self {
        Self::segmented(dims, data, 1, 0)
    }

    /// A matrix in `segments` of `dims` each, the first at the head of `data`, each `stride` elements after the
    /// one before it.
    ///
    /// # Panics
    /// If `data` is too short, or `stride` not a number of whole units.
    pub fn segmented(dims: PanelDims, data: &'a [E], segments: usize, stride: usize) -> Self {
        assert!(stride.is_multiple_of(E::PAIR), "segments {stride} apart in units of {}", E::PAIR);
        let needed = if segments == 0 { 0 } else { (segments - 1) * stride + dims.len::<E>() };
        assert!(data.len() >= needed, "{segments} segments of {dims:?}, {stride} apart, in {}", data.len());
        let (cols, units, panel_stride) = (dims.cols, dims.units::<E>(), dims.panel_len::<E>());
        Self { data, cols, units, panel_stride, segments, segment_stride: stride }
    }

    /// The first `depth` rows and `cols` columns of one segment. A unit that `depth` cuts is kept whole.
    pub fn corner(self, depth: usize, cols: usize) -> Self {
        let units = depth.div_ceil(E::PAIR);
        assert!(units <= self.units && cols <= self.cols, "({depth}, {cols}) of {}", self.cols);
        Self { cols, units, ..self }
    }

    /// Some of the columns, from the first of a panel on.
    ///
    /// # Panics
    /// If they are outside, or begin inside a panel.
    pub fn columns(self, range: Range<usize>) -> Self {
        assert!(range.start.is_multiple_of(COLS) && range.end <= self.cols, "{range:?} of {}", self.cols);
        let data = &self.data[range.start / COLS * self.panel_stride..];
        Self { data, cols: range.len(), ..self }
    }

    /// Bytes that a product reads.
    pub fn bytes(self) -> usize {
        self.segments * self.units * self.cols * E::PAIR * size_of::<E>()
    }

    /// Columns.
    pub fn cols(self) -> usize {
        self.cols
    }

    /// Some of the segments.
    pub(crate) fn part(self, first: usize, count: usize) -> Self {
        Self { data: &self.data[first * self.segment_stride..], segments: count, ..self }
    }

    /// Whether every unit that a walk through the columns `0..cols` reaches is inside the data.
    pub(crate) fn is_inside(self) -> bool {
        let panels = self.cols.div_ceil(COLS);
        if panels == 0 || self.segments == 0 || self.units == 0 {
            return true;
        }
        let last = (self.segments - 1) * self.segment_stride + (panels - 1) * self.panel_stride;
        last + self.units * COLS * E::PAIR <= self.data.len()
    }
}

/// Packs `out = src`, whose rows (depth of them, `cols` long) start `stride` apart; `out` is overwritten.
#[inline(always)]
pub fn pack_rows<S: Element, E: Element>(isa: Isa, dims: PanelDims, out: &mut [E], src: &[S], stride: usize) {
    if dims.depth == 0 {
        return;
    }
    let out = &mut out[..dims.len::<E>()];
    for (panel, out) in out.chunks_exact_mut(dims.panel_len::<E>()).enumerate() {
        pack_rows_panel(isa, dims, panel, out, src, stride);
    }
}

/// One panel of [`pack_rows`].
#[inline(always)]
pub fn pack_rows_panel<S: Element, E: Element>(
    isa: Isa,
    dims: PanelDims,
    panel: usize,
    out: &mut [E],
    src: &[S],
    stride: usize,
) {
    let zeros = [S::default(); COLS];
    let first = panel * COLS;
    let width = (dims.cols - first).min(COLS);
    for (unit, out) in out.chunks_exact_mut(COLS * E::PAIR).enumerate() {
        let row = |half: usize| {
            let row = unit * E::PAIR + half;
            if row < dims.depth { &src[row * stride + first..][..width] } else { &zeros[..width] }
        };
        store_unit(isa, out, row(0), row(E::PAIR - 1), Reuse::Soon);
    }
}

/// Writes one unit of up to 64 columns: `low` and, for pairs, `high` zipped with it; zeros behind. After stores for late
/// reuse comes [`wait_for_stores`].
#[inline(always)]
pub(crate) fn store_unit<S: Element, E: Element>(
    isa: Isa,
    out: &mut [E],
    low: &[S],
    high: &[S],
    reuse: Reuse,
) {
    if reuse == Reuse::Late {
        let mut unit = Aligned([[E::default(); COLS]; 2]);
        let unit = &mut unit.0.as_flattened_mut()[..COLS * E::PAIR];
        store_unit_soon(isa, unit, low, high);
        store_past_caches(isa, out, unit);
    } else {
        store_unit_soon(isa, out, low, high);
    }
}

/// Where something is put together that is then stored past the caches.
#[repr(align(64))]
struct Aligned<T>(T);

#[inline(always)]
fn store_unit_soon<S: Element, E: Element>(isa: Isa, out: &mut [E], low: &[S], high: &[S]) {
    let width = low.len();
    if width == COLS {
        // The length as a constant lets the compiler unroll and shuffle.
        zip(isa, &mut out[..COLS * E::PAIR], &low[..COLS], &high[..COLS]);
    } else {
        let (used, unused) = out.split_at_mut(width * E::PAIR);
        zip(isa, used, low, high);
        unused.fill(E::default());
    }
}

#[inline(always)]
fn zip<S: Element, E: Element>(isa: Isa, out: &mut [E], low: &[S], high: &[S]) {
    if E::PAIR == 1 { convert(isa, out, low) } else { convert_pairs(isa, out, low, high) }
}

/// Packs a transpose: `out = srcᵀ`, where `src` has `cols` rows of `depth` elements that start `stride` apart;
/// `out` is overwritten.
#[inline(always)]
pub fn pack_columns<S: Element, E: Element>(
    isa: Isa,
    dims: PanelDims,
    out: &mut [E],
    src: &[S],
    stride: usize,
) {
    if dims.depth == 0 {
        return;
    }
    let out = &mut out[..dims.len::<E>()];
    for (panel, out) in out.chunks_exact_mut(dims.panel_len::<E>()).enumerate() {
        pack_columns_panel(isa, dims, panel, out, src, stride);
    }
}

/// One panel of [`pack_columns`].
#[inline(always)]
pub fn pack_columns_panel<S: Element, E: Element>(
    isa: Isa,
    dims: PanelDims,
    panel: usize,
    out: &mut [E],
    src: &[S],
    stride: usize,
) {
    let first = panel * COLS;
    let width = (dims.cols - first).min(COLS);
    if width < COLS || !dims.depth.is_multiple_of(E::PAIR) {
        out.fill(E::default());
    }
    let step = SIDE * E::PAIR;
    let mut square = [[E::default(); 2 * SIDE]; SIDE];
    for depth in (0..dims.depth).step_by(step) {
        let depths = (dims.depth - depth).min(step);
        for col in (0..width).step_by(SIDE) {
            let cols = (width - col).min(SIDE);
            let corner = &src[(first + col) * stride + depth..];
            let out = &mut out[(depth / E::PAIR * COLS + col) * E::PAIR..];
            if depths == step && cols == SIDE {
                for (c, row) in square.iter_mut().enumerate() {
                    convert(isa, &mut row[..step], &corner[c * stride..][..step]);
                }
                transpose(isa, out, COLS * E::PAIR, &square);
            } else {
                for (c, row) in corner.chunks(stride).take(cols).enumerate() {
                    let values = &mut [E::default(); 2 * SIDE][..depths];
                    convert(isa, values, &row[..depths]);
                    for (at, &value) in values.iter().enumerate() {
                        let (unit, half) = (at / E::PAIR, at % E::PAIR);
                        out[(unit * COLS + c) * E::PAIR + half] = value;
                    }
                }
            }
        }
    }
}

/// Packs a matrix (rows, cols) without gaps between its rows, and its transpose, block by block, so that it comes from
/// memory once: `by_rows` is [`pack_rows`] of it, `by_columns` [`pack_columns`]; each is overwritten if there is one.
#[inline(always)]
pub fn pack_both_ways<S: Element, E: Element>(
    isa: Isa,
    (rows, cols): (usize, usize),
    mut by_rows: Option<&mut [E]>,
    mut by_columns: Option<&mut [E]>,
    src: &[S],
    reuse: Reuse,
) {
    let mut scratch = Aligned([[E::default(); COLS]; COLS]);
    let scratch = scratch.0.as_flattened_mut();
    let of_rows = PanelDims { depth: rows, cols };
    let of_columns = PanelDims { depth: cols, cols: rows };
    for row in (0..rows).step_by(COLS) {
        for col in (0..cols).step_by(COLS) {
            let (height, width) = ((rows - row).min(COLS), (cols - col).min(COLS));
            let src = &src[row * cols + col..];
            if let Some(out) = &mut by_rows {
                let block = PanelDims { depth: height, cols: width };
                let start = col / COLS * of_rows.panel_len::<E>() + row * COLS;
                let out = &mut out[start..][..block.len::<E>()];
                if reuse == Reuse::Late {
                    let scratch = &mut scratch[..out.len()];
                    pack_rows_panel(isa, block, 0, scratch, src, cols);
                    store_past_caches(isa, out, scratch);
                } else {
                    pack_rows_panel(isa, block, 0, out, src, cols);
                }
            }
            if let Some(out) = &mut by_columns {
                let block = PanelDims { depth: width, cols: height };
                let start = row / COLS * of_columns.panel_len::<E>() + col * COLS;
                let out = &mut out[start..][..block.len::<E>()];
                if reuse == Reuse::Late {
                    let scratch = &mut scratch[..out.len()];
                    pack_columns_panel(isa, block, 0, scratch, src, cols);
                    store_past_caches(isa, out, scratch);
                } else {
                    pack_columns_panel(isa, block, 0, out, src, cols);
                }
            }
        }
    }
    if reuse == Reuse::Late {
        wait_for_stores();
    }
}
