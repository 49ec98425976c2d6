//! The linear layer, with weights in the (inputs, outputs) layout of GPT-2's Conv1D.

use super::numeric::expect_len;
use crate::dims::LinearDims;
use num_traits::{Float, NumAssign};

/// `y_mn = bias_n + sum_k x_mk w_kn`, or `y <- x w + bias`.
///
/// Source: PyTorch, `torch.nn.Linear`, with the weight transposed.
/// - `y` (M, N): overwritten.
/// - `x` (M, K), `w` (K, N), `bias` (N), optional.
pub fn linear_forward<F: Float + NumAssign>(
    dims: LinearDims,
    y: &mut [F],
    x: &[F],
    w: &[F],
    bias: Option<&[F]>,
) {
    let LinearDims { rows, inputs, outputs } = dims;
    expect_len("y", y, &[rows, outputs]);
    expect_len("x", x, &[rows, inputs]);
    expect_len("w", w, &[inputs, outputs]);
    if let Some(bias) = bias {
        expect_len("bias", bias, &[outputs]);
    }
    for m in 0..rows {
        for n in 0..outputs {
            let mut sum = bias.map_or(F::zero(), |bias| bias[n]);
            for k in 0..inputs {
                sum += x[m * inputs + k] * w[k * outputs + n];
            }
            y[m * outputs + n] = sum;
        }
    }
}

/// `dx_mk = sum_n dy_mn w_kn`, or `dx <- dy wᵀ`: math.md (4).
///
/// Differentiates `sum += x[m * inputs + k] * w[k * outputs + n]` with respect to `x`.
/// - `dx` (M, K): overwritten.
/// - `dy` (M, N), `w` (K, N).
pub fn linear_backward_input<F: Float + NumAssign>(dims: LinearDims, dx: &mut [F], dy: &[F], w: &[F]) {
    let LinearDims { rows, inputs, outputs } = dims;
    expect_len("dx", dx, &[rows, inputs]);
    expect_len("dy", dy, &[rows, outputs]);
    expect_len("w", w, &[inputs, outputs]);
    for m in 0..rows {
        for k in 0..inputs {
            let mut sum = F::zero();
            for n in 0..outputs {
                sum += dy[m * outputs + n] * w[k * outputs + n];
            }
            dx[m * inputs + k] = sum;
        }
    }
}

/// `dw_kn += sum_m x_mk dy_mn` and `dbias_n += sum_m dy_mn`, or `dw <- xᵀ dy + dw`: math.md (5) and (6).
///
/// Differentiates `sum += x[m * inputs + k] * w[k * outputs + n]` with respect to `w`, and
/// `sum = bias[n]` with respect to `bias`.
/// - `dw` (K, N), `dbias` (N), optional: accumulated into.
/// - `dy` (M, N), `x` (M, K).
pub fn linear_backward_parameters<F: Float + NumAssign>(
    dims: LinearDims,
    dw: &mut [F],
    dbias: Option<&mut [F]>,
    dy: &[F],
    x: &[F],
) {
    let LinearDims { rows, inputs, outputs } = dims;
    expect_len("dw", dw, &[inputs, outputs]);
    expect_len("dy", dy, &[rows, outputs]);
    expect_len("x", x, &[rows, inputs]);
    for m in 0..rows {
        for k in 0..inputs {
            for n in 0..outputs {
                dw[k * outputs + n] += x[m * inputs + k] * dy[m * outputs + n];
            }
        }
    }
    if let Some(dbias) = dbias {
        expect_len("dbias", dbias, &[outputs]);
        for m in 0..rows {
            for n in 0..outputs {
                dbias[n] += dy[m * outputs + n];
            }
        }
    }
}
