//! Layer normalization over the channels of each token.
//!
//! ```text
//! y = (x - mean) rstd * weight + bias,  rstd = 1 / sqrt(var + eps),  var = mean of (x - mean)^2
//! ```
//! Ba, Kiros and Hinton 2016, "Layer Normalization", equations 3 and 4; eps as in PyTorch's `nn.LayerNorm`.

use crate::dims::RowDims;
use crate::element::Element;
use crate::isa::Isa;
use crate::vector::{sum, sum_by};

/// `y = (x - mean) rstd * weight + bias`, row by row.
///
/// - `y` (rows, cols), `mean` (rows), `rstd` (rows): overwritten.
/// - `x` (rows, cols); `weight`, `bias` (cols).
/// - `eps`: added to the variance, to avoid division by zero for constant rows.
pub fn layernorm_forward<E: Element>(
    dims: RowDims,
    eps: f32,
    y: &mut [E],
    (mean, rstd): (&mut [f32], &mut [f32]),
    x: &[f32],
    (weight, bias): (&[f32], &[f32]),
) {
    let RowDims { rows, cols } = dims;
    assert_eq!((y.len(), x.len()), (rows * cols, rows * cols), "argument lengths for {dims:?}");
    assert_eq!((mean.len(), rstd.len()), (rows, rows), "argument lengths for {dims:?}");
    assert_eq!((weight.len(), bias.len()), (cols, cols), "argument lengths for {dims:?}");
    Isa::detected().run(
        #[inline(always)]
        || {
            let rows = y.chunks_exact_mut(cols).zip(x.chunks_exact(cols));
            for ((y, x), (mean, rstd)) in rows.zip(mean.iter_mut().zip(rstd)) {
                (*mean, *rstd) = statistics_of(x, eps);
                normalize(y, x, *mean, *rstd, weight, bias);
            }
        },
    );
}

/// Recomputes the output of [`layernorm_forward`] from its statistics. In the backward pass this costs less than
/// storing the output.
///
/// - `y` (rows, cols): overwritten.
/// - `x` (rows, cols); `weight`, `bias` (cols).
pub fn layernorm_recompute<E: Element>(
    dims: RowDims,
    y: &mut [E],
    x: &[f32],
    statistics: Statistics,
    (weight, bias): (&[f32], &[f32]),
) {
    let RowDims { rows, cols } = dims;
    assert_eq!((y.len(), x.len()), (rows * cols, rows * cols), "argument lengths for {dims:?}");
    assert_eq!((statistics.mean.len(), statistics.rstd.len()), (rows, rows), "argument lengths for {dims:?}");
    assert_eq!((weight.len(), bias.len()), (cols, cols), "argument lengths for {dims:?}");
    Isa::detected().run(
        #[inline(always)]
        || {
            let rows = y.chunks_exact_mut(cols).zip(x.chunks_exact(cols));
            for ((y, x), (&mean, &rstd)) in rows.zip(statistics.mean.iter().zip(statistics.rstd)) {
                normalize(y, x, mean, rstd, weight, bias);
            }
        },
    );
}

/// The mean of a row and the reciprocal of its standard deviation.
#[inline(always)]
fn statistics_of(x: &[f32], eps: f32) -> (f32, f32) {
    let count = x.len() as f32;
    let mean = sum(x) / count;
    let variance = sum_by([x], |[x]| (x - mean) * (x - mean)) / count;
    (mean, 1.0 / (variance + eps).sqrt())
}

#[inline(always)]
fn normalize<E: Element>(y: &mut [E], x: &[f32], mean: f32, rstd: f32, weight: &[f32], bias: &[f32]) {
    for (((y, &x), &weight), &bias) in y.iter_mut().zip(x).zip(weight).zip(bias) {
        *y = E::from_f32(((x - mean) * rstd).mul_add(weight, bias));
    }
}

/// The backward pass: math.md (11), (12) and (14). Differentiates `y = n * weight + bias` with `n = (x - mean) rstd`.
///
/// - `gradients`: see [`LayerNormGradients`].
/// - `dy`, `x` (rows, cols); `statistics` from the forward pass; `weight` (cols).
///
/// ```text
/// g = dy * weight;  dx += rstd (g - mean(g) - n mean(g n));  dweight = sum of dy n;  dbias = sum of dy
/// ```
pub fn layernorm_backward(
    dims: RowDims,
    gradients: LayerNormGradients,
    dy: &[f32],
    x: &[f32],
    statistics: Statistics,
    weight: &[f32],
) {
    let RowDims { rows, cols } = dims;
    let LayerNormGradients { dx, dweight, dbias } = gradients;
    assert_eq!(
        (dx.len(), dy.len(), x.len()),
        (rows * cols, rows * cols, rows * cols),
        "argument lengths for {dims:?}"
    );
    assert_eq!((statistics.mean.len(), statistics.rstd.len()), (rows, rows), "argument lengths for {dims:?}");
    assert_eq!(
        (dweight.len(), dbias.len(), weight.len()),
        (cols, cols, cols),
        "argument lengths for {dims:?}"
    );
    Isa::detected().run(
        #[inline(always)]
        || {
            dweight.fill(0.0);
            dbias.fill(0.0);
            let rows = dx.chunks_exact_mut(cols).zip(dy.chunks_exact(cols)).zip(x.chunks_exact(cols));
            for (((dx, dy), x), (&mean, &rstd)) in rows.zip(statistics.mean.iter().zip(statistics.rstd)) {
                backward_row(dx, dweight, dbias, dy, x, mean, rstd, weight);
            }
        },
    );
}

/// The outputs of [`layernorm_backward`].
#[derive(Debug)]
pub struct LayerNormGradients<'a> {
    /// (rows, cols), accumulated into.
    pub dx: &'a mut [f32],
    /// (cols), overwritten.
    pub dweight: &'a mut [f32],
    /// (cols), overwritten.
    pub dbias: &'a mut [f32],
}

/// The mean and the reciprocal standard deviation of each row, from the forward pass.
#[derive(Clone, Copy, Debug)]
pub struct Statistics<'a> {
    /// (rows)
    pub mean: &'a [f32],
    /// (rows): 1 / sqrt(var + eps).
    pub rstd: &'a [f32],
}

#[expect(clippy::too_many_arguments, reason = "one row of each array of the caller")]
#[inline(always)]
fn backward_row(
    dx: &mut [f32],
    dweight: &mut [f32],
    dbias: &mut [f32],
    dy: &[f32],
    x: &[f32],
    mean: f32,
    rstd: f32,
    weight: &[f32],
) {
    let cols = dx.len();
    let (dweight, dbias) = (&mut dweight[..cols], &mut dbias[..cols]);
    let (dy, x, weight) = (&dy[..cols], &x[..cols], &weight[..cols]);
    let mean_g = sum_by([dy, weight], |[dy, weight]| dy * weight) / cols as f32;
    let gn = |[dy, weight, x]: [f32; 3]| dy * weight * ((x - mean) * rstd);
    let mean_gn = sum_by([dy, weight, x], gn) / cols as f32;
    for i in 0..cols {
        let n = (x[i] - mean) * rstd;
        dx[i] += rstd * (dy[i] * weight[i] - mean_g - n * mean_gn);
        dweight[i] += dy[i] * n;
        dbias[i] += dy[i];
    }
}
