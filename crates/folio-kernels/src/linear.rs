//! Linear layers, forward and backward, with what comes next done while a tile of the result is in cache.
//!
//! `y = x w + b` with `w` of shape (inputs, outputs), the Conv1D layout of the published GPT-2 weights
//! (Radford et al. 2019). Rows are the tokens of one sequence; the weights are packed once a step, `w` in panels
//! of outputs for the forward pass and `wᵀ` in panels of inputs for the backward pass.

use std::ops::Range;

use crate::dims::{LinearDims, RowDims};
use crate::dropout::Dropout;
use crate::element::{Element, convert};
use crate::gelu::{gelu, gelu_and_slope};
use crate::isa::Isa;
use crate::matmul::{At, Fetch, Lhs, product, product_ahead, product_into};
use crate::panels::{PANEL_COLS, PanelDims, Panels, store_unit};

/// `y = x w + bias`.
///
/// `y` (M, N) is overwritten; `x` (M, K); `w` (K, N) in panels; `bias` (N).
pub fn linear_forward<E: Element>(dims: LinearDims, y: &mut [E], x: &[E], w: Panels<E>, bias: &[f32]) {
    let LinearDims { rows, outputs, .. } = dims;
    check(dims, y.len(), x.len(), bias.len());
    let isa = Isa::detected();
    isa.run(
        #[inline(always)]
        || {
            product_ahead(
                isa,
                0..rows,
                lhs(x, dims.inputs),
                w,
                [Fetch::to_write(y, outputs)],
                #[inline(always)]
                |at, tile| {
                    for (r, sums) in tile[..at.rows].iter().enumerate() {
                        let bias = &bias[at.col..][..at.cols];
                        let y = &mut y[(at.row + r) * outputs + at.col..][..at.cols];
                        for ((y, sum), bias) in y.iter_mut().zip(sums).zip(bias) {
                            *y = E::from_f32(sum + bias);
                        }
                    }
                },
            );
        },
    );
}

/// `y = residual + drop(x w + bias)`: the end of both halves of a block.
///
/// `y` (M, N) is overwritten; `residual` (M, N); `x` (M, K); `w` (K, N) in panels; `bias` (N).
pub fn linear_residual_forward<E: Element>(
    dims: LinearDims,
    y: &mut [f32],
    residual: &[f32],
    x: &[E],
    (w, bias): (Panels<E>, &[f32]),
    dropout: Dropout,
) {
    let LinearDims { rows, outputs, .. } = dims;
    check(dims, y.len(), x.len(), bias.len());
    assert_eq!(residual.len(), y.len(), "residual of {dims:?}");
    let isa = Isa::detected();
    isa.run(
        #[inline(always)]
        || {
            product_ahead(
                isa,
                0..rows,
                lhs(x, dims.inputs),
                w,
                [Fetch::to_read(residual, outputs), Fetch::to_write(y, outputs)],
                #[inline(always)]
                |at, tile| {
                    for (r, sums) in tile[..at.rows].iter().enumerate() {
                        let place = (at.row + r) * outputs + at.col;
                        let bias = &bias[at.col..][..at.cols];
                        let residual = &residual[place..][..at.cols];
                        let outputs = y[place..][..at.cols].iter_mut().zip(sums).zip(bias).zip(residual);
                        if dropout.is_identity() {
                            outputs.for_each(|(((y, sum), bias), residual)| *y = residual + (sum + bias));
                        } else {
                            let mask = dropout.row(at.row + r);
                            for (c, (((y, sum), bias), residual)) in outputs.enumerate() {
                                *y = residual + (sum + bias) * mask.factor((at.col + c) as u32);
                            }
                        }
                    }
                },
            );
        },
    );
}

/// `fc = x w + bias` and `y = gelu(fc)`.
///
/// `fc` and `y` (M, N) are overwritten; `x` (M, K); `w` (K, N) in panels; `bias` (N).
pub fn linear_gelu_forward<E: Element>(
    dims: LinearDims,
    fc: &mut [E],
    y: &mut [E],
    x: &[E],
    (w, bias): (Panels<E>, &[f32]),
) {
    let LinearDims { rows, outputs, .. } = dims;
    check(dims, y.len(), x.len(), bias.len());
    assert_eq!(fc.len(), y.len(), "GELU's input and output");
    let isa = Isa::detected();
    isa.run(
        #[inline(always)]
        || {
            product_ahead(
                isa,
                0..rows,
                lhs(x, dims.inputs),
                w,
                [Fetch::to_write(fc, outputs)],
                #[inline(always)]
                |at, tile| {
                    for (r, sums) in tile[..at.rows].iter().enumerate() {
                        let place = (at.row + r) * outputs + at.col;
                        let inputs = sums.iter().zip(&bias[at.col..][..at.cols]);
                        let outputs = fc[place..][..at.cols].iter_mut().zip(&mut y[place..][..at.cols]);
                        for ((fc, y), (sum, bias)) in outputs.zip(inputs) {
                            // The backward pass sees the rounded value, so the forward pass takes it as well.
                            *fc = E::from_f32(sum + bias);
                            *y = E::from_f32(gelu(fc.to_f32()));
                        }
                    }
                },
            );
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
    let LinearDims { rows, inputs, outputs } = dims;
    check(dims, dy.len(), dx.len(), outputs);
    let isa = Isa::detected();
    isa.run(
        #[inline(always)]
        || {
            product(
                isa,
                0..rows,
                lhs(dy, outputs),
                w_t,
                #[inline(always)]
                |at, tile| {
                    for (r, sums) in tile[..at.rows].iter().enumerate() {
                        let dx = &mut dx[(at.row + r) * inputs + at.col..][..at.cols];
                        for (dx, sum) in dx.iter_mut().zip(sums) {
                            *dx = O::from_f32(*sum);
                        }
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
    let GeluGradients { dfc, dfc_panels, gelu_panels } = gradients;
    check(dims, dy.len(), fc.len(), outputs);
    assert_eq!(dfc.len(), fc.len(), "{dims:?}");
    let panels = PanelDims { depth: rows, cols: inputs };
    let isa = Isa::detected();
    isa.run(
        #[inline(always)]
        || {
            product_ahead(
                isa,
                0..rows,
                lhs(dy, outputs),
                w_t,
                [Fetch::to_read(fc, inputs)],
                #[inline(always)]
                |at, tile| {
                    let mut activation = [[0.0f32; PANEL_COLS]; 6];
                    for (r, sums) in tile[..at.rows].iter_mut().enumerate() {
                        let place = (at.row + r) * inputs + at.col;
                        let fc = &fc[place..][..at.cols];
                        let values = sums.iter_mut().zip(&mut activation[r]);
                        for ((sum, activation), fc) in values.zip(fc) {
                            let (value, slope) = gelu_and_slope(fc.to_f32());
                            *activation = value;
                            *sum *= slope;
                        }
                        convert(&mut dfc[place..][..at.cols], sums);
                    }
                    store_tile(panels, dfc_panels, at, tile);
                    store_tile(panels, gelu_panels, at, &activation);
                },
            );
        },
    );
}

/// Writes a tile into panels whose depth is the tile's rows.
#[inline(always)]
fn store_tile<E: Element>(dims: PanelDims, out: &mut [E], at: At, tile: &[[f32; PANEL_COLS]]) {
    let zeros = [0.0; PANEL_COLS];
    for r in (0..at.rows).step_by(E::PAIR) {
        let unit = (at.row + r) / E::PAIR;
        let place = at.col / PANEL_COLS * dims.panel_len::<E>() + unit * PANEL_COLS * E::PAIR;
        let high = if r + E::PAIR <= at.rows { &tile[r + E::PAIR - 1] } else { &zeros };
        store_unit(&mut out[place..][..PANEL_COLS * E::PAIR], &tile[r][..at.cols], &high[..at.cols]);
    }
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
    assert_eq!(dw.len(), rows.len() * dy.cols, "rows {rows:?} of {}", dy.cols);
    let isa = Isa::detected();
    let group = (UNITS / x.units.max(1)).max(1);
    isa.run(
        #[inline(always)]
        || {
            for first in (0..x.segments).step_by(group) {
                let count = group.min(x.segments - first);
                let (x, dy) = (x.part(first, count), dy.part(first, count));
                product_into(isa, rows.clone(), Lhs::Columns(x), dy, dw, dy.cols, add || first > 0);
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

#[inline(always)]
fn lhs<E>(data: &[E], stride: usize) -> Lhs<'_, E> {
    Lhs::Rows { data, stride }
}

fn check(dims: LinearDims, y_len: usize, x_len: usize, bias_len: usize) {
    let LinearDims { rows, inputs, outputs } = dims;
    assert_eq!((y_len, x_len, bias_len), (rows * outputs, rows * inputs, outputs), "{dims:?}");
}
