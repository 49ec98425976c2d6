//! Packing: copies matrices into the panels that a matmul reads ([`Panels`] describes the layout).

use crate::buffer::CacheAligned;
use crate::element::Element;
use crate::isa::Isa;
use crate::non_temporal::{store_fence, store_non_temporal};
use crate::rounding::{convert, convert_pairs};
use crate::tile::COLS;
use crate::transpose::{SIDE, transpose};

pub use crate::operand::{PANEL_COLS, PanelDims, Panels};

/// Whether packed data will be read while it is still in the caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// It will be: ordinary stores.
    Temporal,
    /// It will have been evicted: non-temporal stores, which do not read the destination first. Partial cache lines are
    /// stored as with `Temporal`.
    NonTemporal,
}

impl Reuse {
    /// For `bytes` bytes that are written one after the other, and read only then.
    pub fn of(bytes: usize) -> Self {
        const LARGE: usize = 64 << 20;
        if bytes < LARGE { Self::Temporal } else { Self::NonTemporal }
    }
}

/// Packs `src`, a matrix of shape `dims` whose rows are `stride` elements apart. `out` is overwritten.
#[inline(always)]
pub fn pack_rows<S: Element, E: Element>(isa: Isa, dims: PanelDims, out: &mut [E], src: &[S], stride: usize) {
    if dims.depth == 0 {
        return;
    }
    let out = &mut out[..dims.len::<E>()];
    for (panel, out) in out.chunks_exact_mut(dims.panel_len::<E>()).enumerate() {
        pack_rows_panel(isa, dims, panel, out, src, stride, Reuse::Temporal);
    }
}

/// One panel of [`pack_rows`]. Call a store fence after non-temporal stores.
#[inline(always)]
pub fn pack_rows_panel<S: Element, E: Element>(
    isa: Isa,
    dims: PanelDims,
    panel: usize,
    out: &mut [E],
    src: &[S],
    stride: usize,
    reuse: Reuse,
) {
    let zeros = [S::default(); COLS];
    let first = panel * COLS;
    let width = (dims.cols - first).min(COLS);
    for (unit, out) in out.chunks_exact_mut(COLS * E::PER_UNIT).enumerate() {
        let row = |half: usize| {
            let row = unit * E::PER_UNIT + half;
            if row < dims.depth { &src[row * stride + first..][..width] } else { &zeros[..width] }
        };
        store_unit(isa, out, row(0), row(E::PER_UNIT - 1), reuse);
    }
}

/// One unit of [`pack_rows`]: the same unit of every panel. `src` contains only the rows of the unit.
#[inline(always)]
pub(crate) fn pack_unit<S: Element, E: Element>(
    isa: Isa,
    dims: PanelDims,
    unit: usize,
    out: &mut [E],
    src: &[S],
    stride: usize,
) {
    let zeros = [S::default(); COLS];
    for panel in 0..dims.panels() {
        let first = panel * COLS;
        let width = (dims.cols - first).min(COLS);
        let row = |half: usize| match src.get(half * stride + first..) {
            Some(row) if half * stride < src.len() => &row[..width],
            _ => &zeros[..width],
        };
        let place = panel * dims.panel_len::<E>() + unit * COLS * E::PER_UNIT;
        let out = &mut out[place..][..COLS * E::PER_UNIT];
        store_unit(isa, out, row(0), row(E::PER_UNIT - 1), Reuse::Temporal);
    }
}

/// Stores one unit of up to 64 columns: `low` or, for pairs, `low` interleaved with `high`, padded with zeros. Call
/// a store fence after non-temporal stores.
#[inline(always)]
pub(crate) fn store_unit<S: Element, E: Element>(
    isa: Isa,
    out: &mut [E],
    low: &[S],
    high: &[S],
    reuse: Reuse,
) {
    if reuse == Reuse::NonTemporal {
        let mut unit = CacheAligned([[E::default(); COLS]; 2]);
        let unit = &mut unit.0.as_flattened_mut()[..COLS * E::PER_UNIT];
        store_unit_temporal(isa, unit, low, high);
        store_non_temporal(isa, out, unit);
    } else {
        store_unit_temporal(isa, out, low, high);
    }
}

#[inline(always)]
fn store_unit_temporal<S: Element, E: Element>(isa: Isa, out: &mut [E], low: &[S], high: &[S]) {
    let width = low.len();
    if width == COLS {
        // The length as a constant lets the compiler unroll and use shuffles.
        zip(isa, &mut out[..COLS * E::PER_UNIT], &low[..COLS], &high[..COLS]);
    } else {
        let (used, unused) = out.split_at_mut(width * E::PER_UNIT);
        zip(isa, used, low, high);
        unused.fill(E::default());
    }
}

#[inline(always)]
fn zip<S: Element, E: Element>(isa: Isa, out: &mut [E], low: &[S], high: &[S]) {
    if E::PER_UNIT == 1 { convert(isa, out, low) } else { convert_pairs(isa, out, low, high) }
}

/// Packs the transpose of `src`, which has `dims.cols` rows of `dims.depth` elements that are `stride` apart. `out` is
/// overwritten.
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
    if width < COLS || !dims.depth.is_multiple_of(E::PER_UNIT) {
        out.fill(E::default());
    }
    let step = SIDE * E::PER_UNIT;
    let mut square = [[E::default(); 2 * SIDE]; SIDE];
    for depth in (0..dims.depth).step_by(step) {
        let depths = (dims.depth - depth).min(step);
        for col in (0..width).step_by(SIDE) {
            let cols = (width - col).min(SIDE);
            let corner = &src[(first + col) * stride + depth..];
            let out = &mut out[(depth / E::PER_UNIT * COLS + col) * E::PER_UNIT..];
            if depths == step && cols == SIDE {
                for (c, row) in square.iter_mut().enumerate() {
                    convert(isa, &mut row[..step], &corner[c * stride..][..step]);
                }
                transpose(isa, out, COLS * E::PER_UNIT, &square);
            } else {
                for (c, row) in corner.chunks(stride).take(cols).enumerate() {
                    let values = &mut [E::default(); 2 * SIDE][..depths];
                    convert(isa, values, &row[..depths]);
                    for (at, &value) in values.iter().enumerate() {
                        let (unit, half) = (at / E::PER_UNIT, at % E::PER_UNIT);
                        out[(unit * COLS + c) * E::PER_UNIT + half] = value;
                    }
                }
            }
        }
    }
}

/// Packs a matrix (rows, cols) with contiguous rows, and its transpose, in blocks, so that it is read from memory only
/// once. `by_rows` receives the result of [`pack_rows`], `by_columns` that of [`pack_columns`]; each is overwritten, or
/// skipped if `None`.
#[inline(always)]
pub fn pack_both_ways<S: Element, E: Element>(
    isa: Isa,
    (rows, cols): (usize, usize),
    mut by_rows: Option<&mut [E]>,
    mut by_columns: Option<&mut [E]>,
    src: &[S],
    reuse: Reuse,
) {
    let mut scratch = CacheAligned([[E::default(); COLS]; COLS]);
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
                if reuse == Reuse::NonTemporal {
                    let scratch = &mut scratch[..out.len()];
                    pack_rows_panel(isa, block, 0, scratch, src, cols, Reuse::Temporal);
                    store_non_temporal(isa, out, scratch);
                } else {
                    pack_rows_panel(isa, block, 0, out, src, cols, Reuse::Temporal);
                }
            }
            if let Some(out) = &mut by_columns {
                let block = PanelDims { depth: width, cols: height };
                let start = row / COLS * of_columns.panel_len::<E>() + col * COLS;
                let out = &mut out[start..][..block.len::<E>()];
                if reuse == Reuse::NonTemporal {
                    let scratch = &mut scratch[..out.len()];
                    pack_columns_panel(isa, block, 0, scratch, src, cols);
                    store_non_temporal(isa, out, scratch);
                } else {
                    pack_columns_panel(isa, block, 0, out, src, cols);
                }
            }
        }
    }
    if reuse == Reuse::NonTemporal {
        store_fence();
    }
}
