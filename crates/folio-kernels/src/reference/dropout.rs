//! Dropout, alone and where a branch joins the residual stream. Element (r, c) of a matrix uses row r and column c of
//! the mask.

use super::numeric::{expect_len, real};
use crate::dims::RowDims;
use crate::dropout::{Dropout, DropoutRow};
use num_traits::{Float, NumAssign};

/// `y_rc = f_rc x_rc`, where the mask's factor `f` is 0 or `1 / (1 - rate)`.
///
/// Source: Srivastava et al. 2014, "Dropout"; PyTorch, `torch.nn.Dropout`.
/// - `y` (rows, cols): overwritten.
/// - `x` (rows, cols).
pub fn dropout_forward<F: Float + NumAssign>(dims: RowDims, y: &mut [F], x: &[F], dropout: Dropout) {
    let RowDims { rows, cols } = dims;
    expect_len("y", y, &[rows, cols]);
    expect_len("x", x, &[rows, cols]);
    for r in 0..rows {
        let mask = dropout.row(r);
        for c in 0..cols {
            y[r * cols + c] = factor::<F>(mask, c) * x[r * cols + c];
        }
    }
}

/// `dx_rc = f_rc dy_rc`: math.md (18).
///
/// Differentiates `y[r * cols + c] = factor(mask, c) * x[r * cols + c]`. The factors are regenerated from the key.
/// - `dx` (rows, cols): overwritten.
/// - `dy` (rows, cols).
pub fn dropout_backward<F: Float + NumAssign>(dims: RowDims, dx: &mut [F], dy: &[F], dropout: Dropout) {
    let RowDims { rows, cols } = dims;
    expect_len("dx", dx, &[rows, cols]);
    expect_len("dy", dy, &[rows, cols]);
    for r in 0..rows {
        let mask = dropout.row(r);
        for c in 0..cols {
            dx[r * cols + c] = factor::<F>(mask, c) * dy[r * cols + c];
        }
    }
}

/// `y_rc = residual_rc + f_rc branch_rc`. Its backward is math.md (20): `dy` for the residual, and [`dropout_backward`]
/// of `dy` for the branch.
///
/// Source: He et al. 2016, "Deep Residual Learning"; Radford et al. 2019 for the dropout before the addition.
/// - `y` (rows, cols): overwritten.
/// - `residual` (rows, cols), `branch` (rows, cols).
pub fn dropout_residual_forward<F: Float + NumAssign>(
    dims: RowDims,
    y: &mut [F],
    residual: &[F],
    branch: &[F],
    dropout: Dropout,
) {
    let RowDims { rows, cols } = dims;
    expect_len("y", y, &[rows, cols]);
    expect_len("residual", residual, &[rows, cols]);
    expect_len("branch", branch, &[rows, cols]);
    for r in 0..rows {
        let mask = dropout.row(r);
        for c in 0..cols {
            y[r * cols + c] = residual[r * cols + c] + factor::<F>(mask, c) * branch[r * cols + c];
        }
    }
}

/// The factor of the mask in column `col`.
pub(super) fn factor<F: Float>(mask: DropoutRow, col: usize) -> F {
    real(f64::from(mask.factor(col as u32)))
}
