//! Linear layers, forward and backward. Epilogues apply the next operation to each tile while it is in the cache.
//!
//! `y = x w + b` with `w` of shape (inputs, outputs), the Conv1D layout of the published GPT-2 weights (Radford et al.
//! 2019). Rows are tokens. The weights are packed once per step: `w` for the forward pass, `wᵀ` for
//! the backward pass.

use std::ops::Range;

use crate::columns::ColumnsMut;
use crate::dims::{LinearDims, RowDims};
use crate::dropout::Dropout;
use crate::element::Element;
use crate::gelu::{Gelu, gelu_backward_of_row, gelu_erf_backward_of_row, gelu_erf_of_row, gelu_of_row};
use crate::isa::Isa;
use crate::matmul::{Cost, Lhs, Prefetch, Rhs, Store, TileRange, matmul_into};
use crate::non_temporal::store_fence;
use crate::panels::{PANEL_COLS, PanelDims, Panels, Reuse, store_unit};
use crate::rounding::round;

/// `y = x w + bias`, for the columns that `y` contains.
///
/// - `y` (M, N), or a range of its columns: overwritten.
/// - `x` (M, K); `w` (K, N) in panels; `bias` (N). These three and `dims` are those of the whole layer.
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
        [Prefetch::columns(&y)],
        Cost::Low,
        #[inline(always)]
        |row, col, sums| {
            sums.iter_mut().zip(&bias[col..]).for_each(|(sum, bias)| *sum += bias);
            round(isa, &mut y.row(row)[col..][..sums.len()], sums);
        },
    );
}

/// `y = residual + drop(x w + bias)`, for the columns that `y` contains: the end of both halves of a block.
///
/// - `y` (M, N), or a range of its columns: overwritten.
/// - `residual` (M, N); `x` (M, K); `w` (K, N) in panels; `bias` (N).
pub fn linear_residual_forward<E: Element>(
    dims: LinearDims,
    mut y: ColumnsMut<f32>,
    residual: &[f32],
    x: &[E],
    (w, bias): (impl Rhs<E>, &[f32]),
    dropout: Dropout,
) {
    check_columns(dims, &y, x, bias);
    assert_eq!(residual.len(), dims.rows * dims.outputs, "length of the residual for {dims:?}");
    let first = y.range().start;
    let (w, bias, residual) = (w.columns(y.range()), &bias[y.range()], &residual[first..]);
    for_each_row(
        Isa::detected(),
        dims.rows,
        rows_of(x, dims.inputs),
        w,
        [Prefetch::read(residual, dims.outputs), Prefetch::columns(&y)],
        Cost::Low,
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

/// `fc = x w + bias` and `y = gelu(fc)`, for the columns that both contain.
///
/// - `fc`, `y` (M, N), or the same range of columns of both: overwritten.
/// - `x` (M, K); `w` (K, N) in panels; `bias` (N).
pub fn linear_gelu_forward<E: Element>(
    dims: LinearDims,
    gelu: Gelu,
    outputs: (ColumnsMut<E>, ColumnsMut<E>),
    x: &[E],
    weights: (impl Rhs<E>, &[f32]),
) {
    // Closures that are certain to be inlined, and so compiled for the instruction set that calls them.
    match gelu {
        Gelu::Tanh => linear_activation_forward(
            dims,
            #[inline(always)]
            |y, x| gelu_of_row(y, x),
            outputs,
            x,
            weights,
        ),
        Gelu::Erf => linear_activation_forward(
            dims,
            #[inline(always)]
            |y, x| gelu_erf_of_row(y, x),
            outputs,
            x,
            weights,
        ),
    }
}

/// [`linear_gelu_forward`] with `activation(y, fc)` as the function of a row.
#[inline(always)]
fn linear_activation_forward<E: Element>(
    dims: LinearDims,
    activation: impl Fn(&mut [f32], &[E]),
    (mut fc, mut y): (ColumnsMut<E>, ColumnsMut<E>),
    x: &[E],
    (w, bias): (impl Rhs<E>, &[f32]),
) {
    check_columns(dims, &y, x, bias);
    check_columns(dims, &fc, x, bias);
    assert_eq!(fc.range(), y.range(), "columns of GELU's input and output");
    let (w, bias) = (w.columns(y.range()), &bias[y.range()]);
    let isa = Isa::detected();
    for_each_row(
        isa,
        dims.rows,
        rows_of(x, dims.inputs),
        w,
        [Prefetch::columns(&fc)],
        Cost::High,
        #[inline(always)]
        |row, col, sums| {
            let fc = &mut fc.row(row)[col..][..sums.len()];
            sums.iter_mut().zip(&bias[col..]).for_each(|(sum, bias)| *sum += bias);
            round(isa, fc, sums);
            // GELU of the rounded value, because the backward pass reads the rounded value too.
            activation(sums, fc);
            round(isa, &mut y.row(row)[col..][..sums.len()], sums);
        },
    );
}

/// `dx = dy wᵀ`: math.md (4). Differentiates `y = x w + b`.
///
/// - `dx` (M, K): overwritten.
/// - `dy` (M, N); `w_t`: wᵀ (N, K) in panels.
pub fn linear_backward_input<E: Element, O: Element>(
    dims: LinearDims,
    dx: &mut [O],
    dy: &[E],
    w_t: Panels<E>,
) {
    let inputs = dims.inputs;
    check(dims, dy.len(), dx.len());
    let isa = Isa::detected();
    for_each_row(
        isa,
        dims.rows,
        rows_of(dy, dims.outputs),
        w_t,
        [],
        Cost::Low,
        #[inline(always)]
        |row, col, sums| round(isa, &mut dx[row * inputs + col..][..sums.len()], sums),
    );
}

/// Calls `epilogue(row, column, sums)` for every row of every tile of `lhs rhs`.
#[inline(always)]
pub(crate) fn for_each_row<E: Element, const N: usize>(
    isa: Isa,
    rows: usize,
    lhs: Lhs<E>,
    rhs: impl Rhs<E>,
    prefetches: [Prefetch; N],
    cost: Cost,
    mut epilogue: impl FnMut(usize, usize, &mut [f32]),
) {
    isa.run(
        #[inline(always)]
        || {
            rhs.matmul_with(
                isa,
                0..rows,
                lhs,
                prefetches,
                cost,
                #[inline(always)]
                |at, tile| {
                    for (row, sums) in (at.row..).zip(&mut tile[..at.rows]) {
                        epilogue(row, at.col, &mut sums[..at.cols]);
                    }
                },
            );
        },
    );
}

/// The outputs of [`linear_gelu_backward`].
#[derive(Debug)]
pub struct GeluGradients<'a, E> {
    /// (M, K): the gradient of GELU's input.
    pub dfc: &'a mut [E],
    /// The same gradient in panels (depth M, K).
    pub dfc_panels: &'a mut [E],
    /// GELU's output, recomputed, in panels (depth M, K).
    pub gelu_panels: &'a mut [E],
    /// When the panels will be read.
    pub reuse: Reuse,
}

/// `dfc = (dy wᵀ) gelu'(fc)`: math.md (4) and (16) or (16a). Differentiates `y = gelu(fc) w + b`.
///
/// - `gradients`: overwritten.
/// - `fc` (M, K) from the forward pass; `dy` (M, N); `w_t`: wᵀ (N, K) in panels.
pub fn linear_gelu_backward<E: Element>(
    dims: LinearDims,
    gelu: Gelu,
    gradients: GeluGradients<E>,
    fc: &[E],
    dy: &[E],
    w_t: Panels<E>,
) {
    match gelu {
        Gelu::Tanh => linear_activation_backward(
            dims,
            #[inline(always)]
            |dx, y, x| gelu_backward_of_row(dx, y, x),
            gradients,
            fc,
            dy,
            w_t,
        ),
        Gelu::Erf => linear_activation_backward(
            dims,
            #[inline(always)]
            |dx, y, x| gelu_erf_backward_of_row(dx, y, x),
            gradients,
            fc,
            dy,
            w_t,
        ),
    }
}

/// [`linear_gelu_backward`] with `backward(dx, y, x)` as the function of a row.
#[inline(always)]
fn linear_activation_backward<E: Element>(
    dims: LinearDims,
    backward: impl Fn(&mut [f32], &mut [f32], &[E]),
    gradients: GeluGradients<E>,
    fc: &[E],
    dy: &[E],
    w_t: Panels<E>,
) {
    let LinearDims { rows, inputs, outputs } = dims;
    let GeluGradients { dfc, dfc_panels, gelu_panels, reuse } = gradients;
    check(dims, dy.len(), fc.len());
    assert_eq!(dfc.len(), fc.len(), "lengths of dfc and fc for {dims:?}");
    let panels = PanelDims { depth: rows, cols: inputs };
    let isa = Isa::detected();
    isa.run(
        #[inline(always)]
        || {
            w_t.matmul_with(
                isa,
                0..rows,
                rows_of(dy, outputs),
                [Prefetch::read(fc, inputs), Prefetch::write(dfc, inputs)],
                Cost::High,
                #[inline(always)]
                |at, tile| {
                    // One unit of the panels at a time: one row, or a pair of rows.
                    for (unit, sums) in tile[..at.rows].chunks_mut(E::PER_UNIT).enumerate() {
                        let row = at.row + unit * E::PER_UNIT;
                        let mut values = [[0.0f32; PANEL_COLS]; 2];
                        for (r, (sums, values)) in sums.iter_mut().zip(&mut values).enumerate() {
                            let place = (row + r) * inputs + at.col;
                            let sums = &mut sums[..at.cols];
                            backward(sums, &mut values[..at.cols], &fc[place..][..at.cols]);
                            round(isa, &mut dfc[place..][..at.cols], sums);
                        }
                        let at = TileRange { row, rows: sums.len(), ..at };
                        store_rows(isa, panels, dfc_panels, at, sums, reuse);
                        store_rows(isa, panels, gelu_panels, at, &values, reuse);
                    }
                },
            );
        },
    );
    store_fence();
}

/// Stores the rows of one unit of a tile into panels of shape `dims`.
#[inline(always)]
fn store_rows<E: Element>(
    isa: Isa,
    dims: PanelDims,
    out: &mut [E],
    at: TileRange,
    rows: &[[f32; PANEL_COLS]],
    reuse: Reuse,
) {
    let zeros = [0.0; PANEL_COLS];
    let place = at.col / PANEL_COLS * dims.panel_len::<E>() + at.row / E::PER_UNIT * PANEL_COLS * E::PER_UNIT;
    let high = if at.rows == E::PER_UNIT { &rows[E::PER_UNIT - 1] } else { &zeros };
    let unit = &mut out[place..][..PANEL_COLS * E::PER_UNIT];
    store_unit(isa, unit, &rows[0][..at.cols], &high[..at.cols], reuse);
}

/// Rows `rows` of `dw = xᵀ dy`, or of `dw += xᵀ dy` if `add`: math.md (5). Differentiates `y = x w + b`.
///
/// - `dw`: these rows of (K, N).
/// - `x` (depth M, K), `dy` (depth M, N), both in panels.
///
/// The sum runs over the tokens in order, however the rows are divided among calls. On segments: [`DEPTH_STEP`].
pub fn linear_backward_weight<E: Element>(
    rows: Range<usize>,
    dw: &mut [f32],
    x: Panels<E>,
    dy: Panels<E>,
    add: bool,
) {
    /// Units of depth per pass over the result: enough to make loading and storing the sums cheap, few enough that the
    /// operands' panels fit into the second-level cache. Measured on Zen 5: docs/experiments.md.
    const UNITS: usize = 256;
    /// Bytes of the result from which on it would be evicted from the second-level cache before the optimizer reads it.
    const LARGE: usize = 512 * 1024;
    assert_eq!(dw.len(), rows.len() * dy.cols, "length of dw for rows {rows:?} of {} columns", dy.cols);
    let isa = Isa::detected();
    let group = (UNITS / x.units.max(1)).max(1);
    let is_large = size_of_val(dw) >= LARGE;
    let over = if group >= x.segments && is_large { Store::NonTemporal } else { Store::Overwrite };
    isa.run(
        #[inline(always)]
        || {
            for first in (0..x.segments).step_by(group) {
                let count = group.min(x.segments - first);
                let (x, dy) = (x.part(first, count), dy.part(first, count));
                let store = if add || first > 0 { Store::Accumulate } else { over };
                matmul_into(isa, rows.clone(), Lhs::Columns(x), dy, dw, dy.cols, store);
            }
        },
    );
}

/// Tokens whose products AMX sums before it adds the sum to a weight gradient; BFMMLA sums two. If segments consist of whole steps, the gradient
/// does not depend on how many segments there are.
pub const DEPTH_STEP: usize = 32;

/// The number of rows of a weight (K, N) to compute per call of [`linear_backward_weight`], given the number of
/// threads: enough rows to make reading `dy` cheap, and few enough that every thread gets some and the sums fit into
/// the second-level cache. A whole number of tiles.
pub fn weight_piece(inputs: usize, threads: usize) -> usize {
    inputs.div_ceil(threads).next_multiple_of(6).clamp(24, 192)
}

/// The sum of each column of `x`: math.md (6). With `dy` as `x`, the gradient of a bias.
///
/// - `sums` (cols): overwritten.
/// - `x` (rows, cols).
pub fn column_sums<E: Element>(dims: RowDims, sums: &mut [f32], x: &[E]) {
    assert_eq!(
        (x.len(), sums.len()),
        (dims.rows * dims.cols, dims.cols),
        "lengths of input and column sums for {dims:?}"
    );
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
    assert_eq!(
        (y.rows(), y.stride(), x.len(), bias.len()),
        (rows, outputs, rows * inputs, outputs),
        "rows and stride of y, lengths of x and bias, for {dims:?}"
    );
}

fn check(dims: LinearDims, dy_len: usize, dx_len: usize) {
    let LinearDims { rows, inputs, outputs } = dims;
    assert_eq!((dy_len, dx_len), (rows * outputs, rows * inputs), "lengths of dy and dx for {dims:?}");
}
