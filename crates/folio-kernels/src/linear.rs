//! Linear layers, forward and backward, with what comes next done while a tile of the result is in cache.
//!
//! `y = x w + b` with `w` of shape (inputs, outputs), the Conv1D layout of the published GPT-2 weights
//! (Radford et al. 2019). Rows are the tokens of one sequence; the weights are packed once a step, `w` in panels
//! of outputs for the forward pass and `wᵀ` in panels of inputs for the backward pass.

use std::ops::Range;

use crate::columns::ColumnsMut;
use crate::dims::{LinearDims, RowDims};
use crate::dropout::Dropout;
use crate::element::Element;
use crate::gelu::{gelu_backward_of_row, gelu_of_row};
use crate::isa::Isa;
use crate::matmul::{At, Fetch, Lhs, Rhs, Store, product_into};
use crate::panels::{PANEL_COLS, PanelDims, Panels, Reuse, store_unit};
use crate::rounding::round;
use crate::tile::wait_for_stores;

/// `y = x w + bias`, or some columns of it.
///
/// `y` (M, N) is overwritten; `x` (M, K); `w` (K, N) in panels; `bias` (N). `dims` are those of the whole layer, and so
/// are `w` and `bias`; `y` says which columns are wanted.
pub fn linear_forward<E: Element>(
    dims: LinearDims,
    mut y: ColumnsMut<E>,
    x: &[E],
    w: impl Rhs<E>,
    bias: &[f32],
) {
    check_columns(dims, &y, x, bias);
    let (w, bias) = (w.columns(y.range()), &bias[y.range()]);
    let isa = Isa::detected();
    for_each_row(
        isa,
        dims.rows,
        rows_of(x, dims.inputs),
        w,
        [Fetch::columns(&y)],
        #[inline(always)]
        |row, col, sums| {
            sums.iter_mut().zip(&bias[col..]).for_each(|(sum, bias)| *sum += bias);
            round(isa, &mut y.row(row)[col..][..sums.len()], sums);
        },
    );
}

/// `y = residual + drop(x w + bias)`, or some columns of it: the end of both halves of a block.
///
/// `y` (M, N) is overwritten; `residual` (M, N); `x` (M, K); `w` (K, N) in panels; `bias` (N); columns as in
/// [`linear_forward`].
pub fn linear_residual_forward<E: Element>(
    dims: LinearDims,
    mut y: ColumnsMut<f32>,
    residual: &[f32],
    x: &[E],
    (w, bias): (impl Rhs<E>, &[f32]),
    dropout: Dropout,
) {
    check_columns(dims, &y, x, bias);
    assert_eq!(residual.len(), dims.rows * dims.outputs, "residual of {dims:?}");
    let first = y.range().start;
    let (w, bias, residual) = (w.columns(y.range()), &bias[y.range()], &residual[first..]);
    for_each_row(
        Isa::detected(),
        dims.rows,
        rows_of(x, dims.inputs),
        w,
        [Fetch::to_read(residual, dims.outputs), Fetch::columns(&y)],
        #[inline(always)]
        |row, col, sums| {
            let y = &mut y.row(row)[col..][..sums.len()];
            let residual = &residual[row * dims.outputs + col..][..sums.len()];
            let outputs = y.iter_mut().zip(sums).zip(&bias[col..]).zip(residual);
            if dropout.is_identity() {
                outputs.for_each(|(((y, sum), bias), residual)| *y = residual + (*sum + bias));
            } else {
                let mask = dropout.row(row);
                for (c, (((y, sum), bias), residual)) in ((first + col) as u32..).zip(outputs) {
                    *y = residual + (*sum + bias) * mask.factor(c);
                }
            }
        },
    );
}

/// `fc = x w + bias` and `y = gelu(fc)`, or some columns of both.
///
/// `fc` and `y` (M, N) are overwritten; `x` (M, K); `w` (K, N) in panels; `bias` (N); columns as in
/// [`linear_forward`], the same of both.
pub fn linear_gelu_forward<E: Element>(
    dims: LinearDims,
    (mut fc, mut y): (ColumnsMut<E>, ColumnsMut<E>),
    x: &[E],
    (w, bias): (impl Rhs<E>, &[f32]),
) {
    check_columns(dims, &y, x, bias);
    check_columns(dims, &fc, x, bias);
    assert_eq!(fc.range(), y.range(), "GELU's input and output");
    let (w, bias) = (w.columns(y.range()), &bias[y.range()]);
    let isa = Isa::detected();
    for_each_row(
        isa,
        dims.rows,
        rows_of(x, dims.inputs),
        w,
        [Fetch::columns(&fc)],
        #[inline(always)]
        |row, col, sums| {
            let fc = &mut fc.row(row)[col..][..sums.len()];
            sums.iter_mut().zip(&bias[col..]).for_each(|(sum, bias)| *sum += bias);
            round(isa, fc, sums);
            // The backward pass sees the rounded value, so the forward pass takes it as well.
            gelu_of_row(sums, fc);
            round(isa, &mut y.row(row)[col..][..sums.len()], sums);
        },
    );
}

/// `dx = dy wᵀ`, math.md (4), from `y = x w + b`.
///
/// `dx` (M, K) is overwritten; `dy` (M, N); `w_t` is wᵀ (N, K) in panels.
pub fn linear_backward_input<E: Element, O: Element>(
    dims: LinearDims,
    dx: &mut [O],
    dy: &[E],
    w_t: Panels<E>,
) {
    let inputs = dims.inputs;
    check(dims, dy.len(), dx.len(), dims.outputs);
    let isa = Isa::detected();
    for_each_row(
        isa,
        dims.rows,
        rows_of(dy, dims.outputs),
        w_t,
        [],
        #[inline(always)]
        |row, col, sums| round(isa, &mut dx[row * inputs + col..][..sums.len()], sums),
    );
}

/// Calls `finish(row, column, sums)` with every row of every tile of `lhs rhs`.
#[inline(always)]
pub(crate) fn for_each_row<E: Element, const N: usize>(
    isa: Isa,
    rows: usize,
    lhs: Lhs<E>,
    rhs: impl Rhs<E>,
    fetches: [Fetch; N],
    mut finish: impl FnMut(usize, usize, &mut [f32]),
) {
    isa.run(
        #[inline(always)]
        || {
            rhs.product_ahead(
                isa,
                0..rows,
                lhs,
                fetches,
                #[inline(always)]
                |at, tile| {
                    for (row, sums) in (at.row..).zip(&mut tile[..at.rows]) {
                        finish(row, at.col, &mut sums[..at.cols]);
                    }
                },
            );
        },
    );
}

/// Where [`linear_gelu_backward`] writes.
#[derive(Debug)]
pub struct GeluGradients<'a, E> {
    /// (M, K): the gradient of GELU's input.
    pub dfc: &'a mut [E],
    /// The same in panels (depth M, K).
    pub dfc_panels: &'a mut [E],
    /// GELU's output once more, in panels (depth M, K).
    pub gelu_panels: &'a mut [E],
    /// When the panels will be read.
    pub reuse: Reuse,
}

/// `dfc = (dy wᵀ) gelu'(fc)`, math.md (4) and (16), from `y = gelu(fc) w + b`.
///
/// `gradients` are overwritten; `fc` (M, K) as the forward pass left it; `dy` (M, N); `w_t` is wᵀ (N, K) in
/// panels.
pub fn linear_gelu_backward<E: Element>(
    dims: LinearDims,
    gradients: GeluGradients<E>,
    fc: &[E],
    dy: &[E],
    w_t: Panels<E>,
) {
    let LinearDims { rows, inputs, outputs } = dims;
    let GeluGradients { dfc, dfc_panels, gelu_panels, reuse } = gradients;
    check(dims, dy.len(), fc.len(), outputs);
    assert_eq!(dfc.len(), fc.len(), "{dims:?}");
    let panels = PanelDims { depth: rows, cols: inputs };
    let isa = Isa::detected();
    isa.run(
        #[inline(always)]
        || {
            w_t.product_ahead(
                isa,
                0..rows,
                rows_of(dy, outputs),
                [Fetch::to_read(fc, inputs), Fetch::to_write(dfc, inputs)],
                #[inline(always)]
                |at, tile| {
                    // As many rows at a time as make a unit of the panels.
                    for (unit, sums) in tile[..at.rows].chunks_mut(E::PAIR).enumerate() {
                        let row = at.row + unit * E::PAIR;
                        let mut values = [[0.0f32; PANEL_COLS]; 2];
                        for (r, (sums, values)) in sums.iter_mut().zip(&mut values).enumerate() {
                            let place = (row + r) * inputs + at.col;
                            let sums = &mut sums[..at.cols];
                            gelu_backward_of_row(sums, &mut values[..at.cols], &fc[place..][..at.cols]);
                            round(isa, &mut dfc[place..][..at.cols], sums);
                        }
                        let at = At { row, rows: sums.len(), ..at };
                        store_rows(isa, panels, dfc_panels, at, sums, reuse);
                        store_rows(isa, panels, gelu_panels, at, &values, reuse);
                    }
                },
            );
        },
    );
    wait_for_stores();
}

/// Writes one unit's rows of a tile into panels whose depth is the tile's rows.
#[inline(always)]
fn store_rows<E: Element>(
    isa: Isa,
    dims: PanelDims,
    out: &mut [E],
    at: At,
    rows: &[[f32; PANEL_COLS]],
    reuse: Reuse,
) {
    let zeros = [0.0; PANEL_COLS];
    let place = at.col / PANEL_COLS * dims.panel_len::<E>() + at.row / E::PAIR * PANEL_COLS * E::PAIR;
    let high = if at.rows == E::PAIR { &rows[E::PAIR - 1] } else { &zeros };
    let unit = &mut out[place..][..PANEL_COLS * E::PAIR];
    store_unit(isa, unit, &rows[0][..at.cols], &high[..at.cols], reuse);
}

/// Rows `rows` of `dw = xᵀ dy`, or `dw += xᵀ dy` if `add`, math.md (5), from `y = x w + b`.
///
/// `dw` holds these rows of (K, N); `x` (depth M, K) and `dy` (depth M, N) in panels. The sum runs over the tokens
/// in their order, whatever the rows of one call.
pub fn linear_backward_weight<E: Element>(
    rows: Range<usize>,
    dw: &mut [f32],
    x: Panels<E>,
    dy: Panels<E>,
    add: bool,
) {
    /// Units of depth that are taken at once: enough to make the coming and going of the sums cheap, few
    /// enough that the operands' panels stay in the second-level cache. Measured on Zen 5: docs/log.md.
    const UNITS: usize = 256;
    /// Bytes of a piece of the result that no second-level cache would hold until the optimizer comes to it.
    const LARGE: usize = 512 * 1024;
    assert_eq!(dw.len(), rows.len() * dy.cols, "rows {rows:?} of {}", dy.cols);
    let isa = Isa::detected();
    let group = (UNITS / x.units.max(1)).max(1);
    let is_large = size_of_val(dw) >= LARGE;
    let over = if group >= x.segments && is_large { Store::PastCaches } else { Store::Over };
    isa.run(
        #[inline(always)]
        || {
            for first in (0..x.segments).step_by(group) {
                let count = group.min(x.segments - first);
                let (x, dy) = (x.part(first, count), dy.part(first, count));
                let store = if add || first > 0 { Store::Add } else { over };
                product_into(isa, rows.clone(), Lhs::Columns(x), dy, dw, dy.cols, store);
            }
        },
    );
}

/// Rows of a weight (K, N) that one call of [`linear_backward_weight`] should take in so many threads: many enough
/// that the reading of `dy` does not count, few enough that every thread has some and the sums stay in the
/// second-level cache; whole tiles.
pub fn weight_piece(inputs: usize, threads: usize) -> usize {
    inputs.div_ceil(threads).next_multiple_of(6).clamp(24, 192)
}

/// `sums = the sum of each column of x`, math.md (6): the gradient of a bias, given `dy` as `x`.
///
/// `sums` (cols) is overwritten; `x` (rows, cols).
pub fn column_sums<E: Element>(dims: RowDims, sums: &mut [f32], x: &[E]) {
    assert_eq!((x.len(), sums.len()), (dims.rows * dims.cols, dims.cols), "column sums of {dims:?}");
    Isa::detected().run(
        #[inline(always)]
        || {
            sums.fill(0.0);
            for row in x.chunks_exact(dims.cols) {
                for (sum, value) in sums.iter_mut().zip(row) {
                    *sum += value.to_f32();
                }
            }
        },
    );
}

fn rows_of<E>(data: &[E], stride: usize) -> Lhs<'_, E> {
    Lhs::Rows { data, stride }
}

fn check_columns<E, O>(dims: LinearDims, y: &ColumnsMut<O>, x: &[E], bias: &[f32]) {
    let LinearDims { rows, inputs, outputs } = dims;
    let found = (y.rows(), y.stride(), x.len(), bias.len());
    assert_eq!(found, (rows, outputs, rows * inputs, outputs), "{dims:?}");
}

fn check(dims: LinearDims, y_len: usize, x_len: usize, bias_len: usize) {
    let LinearDims { rows, inputs, outputs } = dims;
    assert_eq!((y_len, x_len, bias_len), (rows * outputs, rows * inputs, outputs), "{dims:?}");
}
