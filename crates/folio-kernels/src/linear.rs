//! Linear layers, and the head that is tied to the token embedding: the matrix products, where the time goes.
//!
//! `y = x w + b` with `w` of shape (inputs, outputs), the Conv1D layout of the published GPT-2 weights
//! (Radford et al. 2019). The products themselves are the `gemm` crate's.

use gemm::{Parallelism, gemm};
use rayon::prelude::*;

use crate::dims::{LinearDims, RowDims};
use crate::isa::Isa;

/// `y = x w + bias`.
///
/// `y` (M, N) is overwritten; `x` (M, K); `w` (K, N); `bias` (N).
pub fn linear_forward(dims: LinearDims, y: &mut [f32], x: &[f32], w: &[f32], bias: Option<&[f32]>) {
    let LinearDims { inputs, outputs, .. } = dims;
    check_linear(dims, y.len(), x.len(), w.len());
    let chunk = row_chunk(dims.rows);
    y.par_chunks_mut(chunk * outputs).zip(x.par_chunks(chunk * inputs)).for_each(|(y, x)| {
        if let Some(bias) = bias {
            y.chunks_exact_mut(outputs).for_each(|row| row.copy_from_slice(bias));
        }
        let dims = ProductDims { rows: y.len() / outputs, cols: outputs, depth: inputs };
        let into = if bias.is_some() { Into::Add } else { Into::Overwrite };
        product(dims, y, View::rows(x, inputs), View::rows(w, outputs), into, Parallelism::None);
    });
}

/// `dx = dy wᵀ`, math.md (4), from `y = x w + bias`.
///
/// `dx` (M, K) is overwritten; `dy` (M, N); `w` (K, N).
pub fn linear_backward_input(dims: LinearDims, dx: &mut [f32], dy: &[f32], w: &[f32]) {
    let LinearDims { inputs, outputs, .. } = dims;
    check_linear(dims, dy.len(), dx.len(), w.len());
    let chunk = row_chunk(dims.rows);
    dx.par_chunks_mut(chunk * inputs).zip(dy.par_chunks(chunk * outputs)).for_each(|(dx, dy)| {
        let dims = ProductDims { rows: dx.len() / inputs, cols: inputs, depth: outputs };
        let (dy, w) = (View::rows(dy, outputs), View::transposed(w, outputs));
        product(dims, dx, dy, w, Into::Overwrite, Parallelism::None);
    });
}

/// `dw += xᵀ dy` and `dbias += sum of dy over the rows`, math.md (5) and (6), from `y = x w + bias`.
///
/// `dw` (K, N) and `dbias` (N) are accumulated into; `dy` (M, N); `x` (M, K); `scratch` at least
/// [`column_sums_scratch`]`(N)` long.
pub fn linear_backward_parameters(
    dims: LinearDims,
    dw: &mut [f32],
    dbias: Option<&mut [f32]>,
    dy: &[f32],
    x: &[f32],
    scratch: &mut [f32],
) {
    let LinearDims { rows, inputs, outputs } = dims;
    check_linear(dims, dy.len(), x.len(), dw.len());
    let shape = ProductDims { rows: inputs, cols: outputs, depth: rows };
    product(
        shape,
        dw,
        View::transposed(x, inputs),
        View::rows(dy, outputs),
        Into::Add,
        Parallelism::Rayon(0),
    );
    if let Some(dbias) = dbias {
        add_column_sums(RowDims { rows, cols: outputs }, dbias, dy, scratch);
    }
}

/// `logits = x wteᵀ`: the head shares the token embedding (Press and Wolf 2017, "Using the Output Embedding").
///
/// `dims.inputs` is C and `dims.outputs` is V. `logits` (M, V) is overwritten; `x` (M, C); `wte` (V, C).
pub fn head_forward(dims: LinearDims, logits: &mut [f32], x: &[f32], wte: &[f32]) {
    let LinearDims { rows, inputs, outputs } = dims;
    check_linear(dims, logits.len(), x.len(), wte.len());
    let shape = ProductDims { rows, cols: outputs, depth: inputs };
    let (x, wte) = (View::rows(x, inputs), View::transposed(wte, inputs));
    product(shape, logits, x, wte, Into::Overwrite, Parallelism::Rayon(0));
}

/// `dx = dlogits wte` and `dwte += dlogitsᵀ x`, math.md (33) and (34), from `logits = x wteᵀ`.
///
/// `dx` (M, C) is overwritten; `dwte` (V, C) is accumulated into; `dlogits` (M, V); `x` (M, C); `wte` (V, C).
pub fn head_backward(
    dims: LinearDims,
    dx: &mut [f32],
    dwte: &mut [f32],
    dlogits: &[f32],
    x: &[f32],
    wte: &[f32],
) {
    let LinearDims { rows, inputs, outputs } = dims;
    check_linear(dims, dlogits.len(), x.len(), wte.len());
    let all = Parallelism::Rayon(0);
    let shape = ProductDims { rows, cols: inputs, depth: outputs };
    product(shape, dx, View::rows(dlogits, outputs), View::rows(wte, inputs), Into::Overwrite, all);
    let shape = ProductDims { rows: outputs, cols: inputs, depth: rows };
    product(shape, dwte, View::transposed(dlogits, outputs), View::rows(x, inputs), Into::Add, all);
}

/// Adds the sum of each column of `x` (rows, cols) to `sums` (cols).
///
/// The rows are cut into [`PARTIALS`] equal parts whatever the number of threads; the parts' sums go to
/// `scratch`, at least [`column_sums_scratch`]`(cols)` long, and are added in order.
pub fn add_column_sums(dims: RowDims, sums: &mut [f32], x: &[f32], scratch: &mut [f32]) {
    let RowDims { rows, cols } = dims;
    assert_eq!((x.len(), sums.len()), (rows * cols, cols), "column sums of {dims:?}");
    let isa = Isa::detected();
    let part = rows.div_ceil(PARTIALS).max(1) * cols;
    let partials = &mut scratch[..x.len().div_ceil(part) * cols];
    partials.par_chunks_mut(cols).zip(x.par_chunks(part)).for_each(|(partial, x)| {
        isa.run(
            #[inline(always)]
            || {
                partial.fill(0.0);
                x.chunks_exact(cols).for_each(|row| add_row(partial, row));
            },
        );
    });
    partials.chunks_exact(cols).for_each(|partial| add_row(sums, partial));
}

/// The parts that a sum over rows is cut into: enough for the threads of a large machine.
pub const PARTIALS: usize = 32;

/// The scratch, in elements, that [`add_column_sums`] needs.
pub const fn column_sums_scratch(cols: usize) -> usize {
    PARTIALS * cols
}

/// `sums += row`, element by element.
#[inline(always)]
fn add_row(sums: &mut [f32], row: &[f32]) {
    for (sum, &value) in sums.iter_mut().zip(row) {
        *sum += value;
    }
}

/// Rows of one parallel piece of a product. Its boundaries depend on the sizes alone. Measured with the
/// `gemm` crate at M = 16,384 on two cores: 1,024 rows lose 4 % to a single call and keep the piece in cache
/// between the bias and the product, 256 rows lose 12 % to packing `w` again.
fn row_chunk(rows: usize) -> usize {
    rows.div_ceil(16).next_multiple_of(64).clamp(192, 1024)
}

/// The sizes of `out (rows, cols) = lhs (rows, depth) rhs (depth, cols)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProductDims {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) depth: usize,
}

/// What a product does with what `out` held.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Into {
    Overwrite,
    Add,
}

/// A matrix inside a slice: element (row, col) stands at `row * row_stride + col * col_stride`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    data: &'a [f32],
    row_stride: usize,
    col_stride: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix whose rows start `stride` apart.
    pub(crate) fn rows(data: &'a [f32], stride: usize) -> Self {
        Self { data, row_stride: stride, col_stride: 1 }
    }

    /// The transpose of a row-major matrix whose rows start `stride` apart.
    pub(crate) fn transposed(data: &'a [f32], stride: usize) -> Self {
        Self { data, row_stride: 1, col_stride: stride }
    }

    /// Whether a matrix of `rows` by `cols` lies inside the slice.
    fn holds(self, rows: usize, cols: usize) -> bool {
        rows == 0
            || cols == 0
            || (rows - 1) * self.row_stride + (cols - 1) * self.col_stride < self.data.len()
    }
}

/// `out = lhs rhs` or `out += lhs rhs`, `out` row-major with rows `dims.cols` apart.
pub(crate) fn product(
    dims: ProductDims,
    out: &mut [f32],
    lhs: View,
    rhs: View,
    into: Into,
    threads: Parallelism,
) {
    let stride = dims.cols;
    product_strided(dims, out, stride, lhs, rhs, into, threads);
}

/// [`product`] into rows that start `out_stride` apart.
pub(crate) fn product_strided(
    dims: ProductDims,
    out: &mut [f32],
    out_stride: usize,
    lhs: View,
    rhs: View,
    into: Into,
    threads: Parallelism,
) {
    let ProductDims { rows, cols, depth } = dims;
    assert!(lhs.holds(rows, depth), "left operand too short for {dims:?}: {}", lhs.data.len());
    assert!(rhs.holds(depth, cols), "right operand too short for {dims:?}: {}", rhs.data.len());
    assert!(View::rows(out, out_stride).holds(rows, cols), "result too short for {dims:?}: {}", out.len());
    assert!(out_stride >= cols, "rows of the result overlap: stride {out_stride}, {dims:?}");
    let add = into == Into::Add;
    // SAFETY: the asserts above keep every element that the strides reach inside its slice, `out` is borrowed
    // exclusively and its rows do not overlap, and the operands are only read. C <- alpha C + beta A B.
    unsafe {
        gemm(
            rows,
            cols,
            depth,
            out.as_mut_ptr(),
            1,
            out_stride as isize,
            add,
            lhs.data.as_ptr(),
            lhs.col_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.col_stride as isize,
            rhs.row_stride as isize,
            if add { 1.0 } else { 0.0 },
            1.0,
            false,
            false,
            false,
            threads,
        );
    }
}

fn check_linear(dims: LinearDims, y_len: usize, x_len: usize, w_len: usize) {
    let LinearDims { rows, inputs, outputs } = dims;
    assert_eq!((y_len, x_len, w_len), (rows * outputs, rows * inputs, inputs * outputs), "{dims:?}");
}
