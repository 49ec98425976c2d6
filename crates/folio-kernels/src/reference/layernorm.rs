//! Layer normalization over the channels of a token.

use super::numeric::{dot, expect_len, real};
use crate::dims::RowDims;
use num_traits::{Float, NumAssign};

/// `y_c = (x_c - mean) rstd weight_c + bias_c` for each row, with the mean of the row and
/// `rstd = 1 / sqrt(mean_c((x_c - mean)^2) + eps)`.
///
/// Source: Ba, Kiros and Hinton 2016, "Layer Normalization"; PyTorch, `torch.nn.LayerNorm`.
/// - `y` (rows, cols), `mean` (rows), `rstd` (rows): overwritten.
/// - `x` (rows, cols), `weight` (cols), `bias` (cols).
#[expect(clippy::too_many_arguments, reason = "three outputs and all that they depend on")]
pub fn layernorm_forward<F: Float + NumAssign>(
    dims: RowDims,
    eps: F,
    y: &mut [F],
    mean: &mut [F],
    rstd: &mut [F],
    x: &[F],
    weight: &[F],
    bias: &[F],
) {
    let RowDims { rows, cols } = dims;
    expect_len("y", y, &[rows, cols]);
    expect_len("mean", mean, &[rows]);
    expect_len("rstd", rstd, &[rows]);
    expect_len("x", x, &[rows, cols]);
    expect_len("weight", weight, &[cols]);
    expect_len("bias", bias, &[cols]);
    let count = real::<F>(cols as f64);
    for row in 0..rows {
        let x = &x[row * cols..][..cols];
        let mut sum = F::zero();
        for c in 0..cols {
            sum += x[c];
        }
        mean[row] = sum / count;
        let mut squares = F::zero();
        for c in 0..cols {
            squares += (x[c] - mean[row]).powi(2);
        }
        rstd[row] = (squares / count + eps).sqrt().recip();
        for c in 0..cols {
            y[row * cols + c] = (x[c] - mean[row]) * rstd[row] * weight[c] + bias[c];
        }
    }
}

/// With `x̂_c = (x_c - mean) rstd` and `g_c = dy_c weight_c`: math.md (11), (12) and (14).
///
/// ```text
/// dx_c += rstd (g_c - mean_c(g) - x̂_c mean_c(g x̂)),  dweight_c += dy_c x̂_c,  dbias_c += dy_c
/// ```
///
/// Differentiates `y[..] = (x[c] - mean[row]) * rstd[row] * weight[c] + bias[c]`, where `mean` and `rstd` depend on `x`
/// too. `dx` is accumulated into because the residual stream contributes its own gradient.
/// - `dx` (rows, cols), `dweight` (cols), `dbias` (cols): accumulated into.
/// - `dy` (rows, cols), `x` (rows, cols), `mean` (rows), `rstd` (rows), `weight` (cols).
#[expect(clippy::too_many_arguments, reason = "three gradients and all that they depend on")]
pub fn layernorm_backward<F: Float + NumAssign>(
    dims: RowDims,
    dx: &mut [F],
    dweight: &mut [F],
    dbias: &mut [F],
    dy: &[F],
    x: &[F],
    mean: &[F],
    rstd: &[F],
    weight: &[F],
) {
    let RowDims { rows, cols } = dims;
    expect_len("dx", dx, &[rows, cols]);
    expect_len("dweight", dweight, &[cols]);
    expect_len("dbias", dbias, &[cols]);
    expect_len("dy", dy, &[rows, cols]);
    expect_len("x", x, &[rows, cols]);
    expect_len("mean", mean, &[rows]);
    expect_len("rstd", rstd, &[rows]);
    expect_len("weight", weight, &[cols]);
    let count = real::<F>(cols as f64);
    let mut x_hat = vec![F::zero(); cols];
    let mut g = vec![F::zero(); cols];
    for row in 0..rows {
        let dy = &dy[row * cols..][..cols];
        let mut g_sum = F::zero();
        for c in 0..cols {
            x_hat[c] = (x[row * cols + c] - mean[row]) * rstd[row];
            g[c] = dy[c] * weight[c];
            g_sum += g[c];
        }
        let g_mean = g_sum / count;
        let g_x_hat_mean = dot(&g, &x_hat) / count;
        for c in 0..cols {
            dx[row * cols + c] += rstd[row] * (g[c] - g_mean - x_hat[c] * g_x_hat_mean);
            dweight[c] += dy[c] * x_hat[c];
            dbias[c] += dy[c];
        }
    }
}
