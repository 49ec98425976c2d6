//! LayerNorm. The tolerances are derived from the formulas; C is the length of a row.

use folio_kernels::dims::RowDims;
use folio_kernels::element::{Bf16, Element};
use folio_kernels::layernorm::{self, LayerNormGradients, Statistics};
use folio_kernels::reference;

use crate::support::{
    Expected, Random, U, as_f32, assert_same_bits, check, format, nans, on_every_isa, sizes, stored,
    sum_depth, wide,
};

/// The epsilon of GPT-2, and smaller ones of other checkpoints.
const EPSILONS: [f32; 3] = [1e-5, 1e-6, 1e-12];

/// Sums have 32 lanes.
const SIZES: [(usize, usize); 15] = [
    (1, 1),
    (1, 2),
    (1, 31),
    (1, 32),
    (1, 33),
    (5, 7),
    (3, 63),
    (31, 64),
    (32, 65),
    (33, 17),
    (64, 48),
    (65, 16),
    (100, 97),
    (130, 5),
    (4, 1025),
];

fn compare_all<E: Element>(sizes: &[(usize, usize)], center: f32) {
    for &(rows, cols) in sizes {
        let dims = RowDims { rows, cols };
        for eps in EPSILONS {
            let norm = Norm::random(dims, eps, center);
            let mut expected = Vec::from(norm.forward_expected::<E>());
            expected.extend(norm.backward_expected());
            check("layernorm", &(format::<E>(), dims, eps), &expected, || {
                let (y, mean, rstd) = norm.forward::<E>();
                let mut outputs = vec![as_f32(&y), mean, rstd];
                outputs.extend(norm.backward());
                outputs
            });
        }
    }
}

#[test]
fn layernorm_equals_its_twin() {
    compare_all::<f32>(&SIZES, 0.0);
    compare_all::<Bf16>(&SIZES, 0.0);
}

#[test]
fn layernorm_is_accurate_far_from_zero() {
    let sizes = [(1, 1), (3, 33), (5, 100), (2, 768)];
    compare_all::<f32>(&sizes, 20.0);
    compare_all::<Bf16>(&sizes, 20.0);
}

#[test]
fn a_constant_row_gives_the_bias() {
    for cols in [1, 5, 32, 33, 768] {
        let dims = RowDims { rows: 2, cols };
        for eps in EPSILONS {
            let mut norm = Norm::random(dims, eps, 0.0);
            norm.x.fill(0.5);
            // Sums of halves are exact: the mean is 0.5, and the centered elements are zero.
            let (y, mean, rstd) = norm.forward::<f32>();
            assert_eq!(y, [&norm.bias[..], &norm.bias[..]].concat(), "{dims:?}");
            assert_eq!(mean, [0.5; 2], "{dims:?}");
            assert_eq!(rstd, [1.0 / eps.sqrt(); 2], "{dims:?}");
        }
    }
}

fn recompute<E: Element>() {
    for (rows, cols) in SIZES {
        let norm = Norm::random(RowDims { rows, cols }, 1e-5, 1.0);
        on_every_isa(|isa| {
            let (want, mean, rstd) = norm.forward::<E>();
            let statistics = Statistics { mean: &mean, rstd: &rstd };
            let mut y = nans::<E>(want.len());
            layernorm::layernorm_recompute(
                norm.dims,
                &mut y,
                &norm.x,
                statistics,
                (&norm.weight, &norm.bias),
            );
            assert_same_bits(&format!("{rows} {cols} on {}", isa.name()), &y, &want);
        });
    }
}

#[test]
fn the_recomputed_output_has_the_same_bits() {
    recompute::<f32>();
    recompute::<Bf16>();
}

#[test]
#[should_panic(expected = "argument lengths for RowDims { rows: 2, cols: 1 }")]
fn statistics_of_another_number_of_rows_panic() {
    let statistics = Statistics { mean: &[0.0], rstd: &[1.0] };
    let dims = RowDims { rows: 2, cols: 1 };
    layernorm::layernorm_recompute(dims, &mut [0.0f32; 2], &[0.0; 2], statistics, (&[1.0], &[0.0]));
}

/// A layer, a gradient of its input with non-zero initial values, and the twin's statistics for the backward pass.
struct Norm {
    dims: RowDims,
    eps: f32,
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    mean: Vec<f32>,
    rstd: Vec<f32>,
    dy: Vec<f32>,
    dx: Vec<f32>,
}

impl Norm {
    fn random(dims: RowDims, eps: f32, center: f32) -> Self {
        let RowDims { rows, cols } = dims;
        let mut random = Random(31);
        let mut norm = Self {
            dims,
            eps,
            x: random.as_f32(rows * cols, 2.0).iter().map(|x| x + center).collect(),
            weight: random.as_f32(cols, 1.0),
            bias: random.as_f32(cols, 1.0),
            mean: vec![],
            rstd: vec![],
            dy: random.as_f32(rows * cols, 1.0),
            dx: random.as_f32(rows * cols, 1.0),
        };
        let [_, mean, rstd] = norm.twin_forward();
        norm.mean = mean.iter().map(|&mean| mean as f32).collect();
        norm.rstd = rstd.iter().map(|&rstd| rstd as f32).collect();
        norm
    }

    /// `y`, `mean` and `rstd`.
    fn forward<E: Element>(&self) -> (Vec<E>, Vec<f32>, Vec<f32>) {
        let Self { dims, x, weight, bias, .. } = self;
        let mut y = nans(x.len());
        let (mut mean, mut rstd) = (vec![f32::NAN; dims.rows], vec![f32::NAN; dims.rows]);
        layernorm::layernorm_forward(*dims, self.eps, &mut y, (&mut mean, &mut rstd), x, (weight, bias));
        (y, mean, rstd)
    }

    /// `dx`, `dweight` and `dbias`.
    fn backward(&self) -> [Vec<f32>; 3] {
        let Self { dims, x, weight, dy, .. } = self;
        let mut dx = self.dx.clone();
        let (mut dweight, mut dbias) = (vec![f32::NAN; dims.cols], vec![f32::NAN; dims.cols]);
        let gradients = LayerNormGradients { dx: &mut dx, dweight: &mut dweight, dbias: &mut dbias };
        let statistics = Statistics { mean: &self.mean, rstd: &self.rstd };
        layernorm::layernorm_backward(*dims, gradients, dy, x, statistics, weight);
        [dx, dweight, dbias]
    }

    fn twin_forward(&self) -> [Vec<f64>; 3] {
        let dims = self.dims;
        let (x, weight, bias) = (wide(&self.x), wide(&self.weight), wide(&self.bias));
        let mut y = vec![f64::NAN; x.len()];
        let (mut mean, mut rstd) = (vec![f64::NAN; dims.rows], vec![f64::NAN; dims.rows]);
        let eps = f64::from(self.eps);
        reference::layernorm_forward(dims, eps, &mut y, &mut mean, &mut rstd, &x, &weight, &bias);
        [y, mean, rstd]
    }

    /// With S the number of additions of a sum, and d for an error:
    ///
    /// - mean: S additions and a division, `dmean <= (S + 1) U mean|x|`.
    /// - `x - mean`: `dmean` and a rounding.
    /// - variance: deviations from a mean that is off by `dmean` have the variance plus `dmean^2`. S additions, a
    ///   square, a division and twice the rounding of `x - mean` are `(S + 4) U` of that sum.
    /// - rstd: the change of `1 / sqrt(variance + eps)` with the variance, and 3 roundings: half of those of eps and
    ///   its addition, the root and the reciprocal.
    /// - y: both errors of `(x - mean) rstd`, its rounding, and the rounding of y, which is then stored.
    fn forward_expected<E: Element>(&self) -> [Expected; 3] {
        let RowDims { cols, .. } = self.dims;
        let [y, mean, rstd] = self.twin_forward();
        let (mut dy, mut dmean, mut drstd) = (vec![], vec![], vec![]);
        for (row, x) in wide(&self.x).chunks_exact(cols).enumerate() {
            let size = x.iter().map(|x| x.abs()).sum::<f64>() / cols as f64;
            dmean.push((sum_depth(cols) + 1.0) * U * size);
            let variance = (rstd[row].powi(-2) - f64::from(self.eps)).max(0.0);
            let off_center = dmean[row].powi(2);
            let dvariance = (sum_depth(cols) + 4.0) * U * (variance + off_center) + off_center;
            let eps = f64::from(self.eps);
            let highest = ((variance - dvariance).max(0.0) + eps).sqrt().recip();
            let lowest = (variance + dvariance + eps).sqrt().recip();
            drstd.push((highest - rstd[row]).max(rstd[row] - lowest) + 3.0 * U * highest);
            for c in 0..cols {
                let deviation = (x[c] - mean[row]).abs();
                let normal = (dmean[row] + 2.0 * U * deviation) * rstd[row] + deviation * drstd[row];
                let y = y[row * cols + c];
                dy.push(stored::<E>(y, normal * f64::from(self.weight[c]).abs() + U * y.abs()));
            }
        }
        let expected = |name, want, tolerance| Expected { name, want, tolerance };
        [expected("y", y, dy), expected("mean", mean, dmean), expected("rstd", rstd, drstd)]
    }

    /// The statistics are given, so `n = (x - mean) rstd` has two roundings. In `rstd (g - mean(g) - n mean(g n))` the
    /// last term has the most: `g n` 4, its mean S + 1, times `n` 3, two subtractions, times `rstd`, added to dx: S +
    /// 12. A term of dweight has 3, of dbias none, and both have at most one addition per row.
    fn backward_expected(&self) -> [Expected; 3] {
        let Self { dims, .. } = self;
        let RowDims { rows, cols } = *dims;
        let (x, weight, dy) = (wide(&self.x), wide(&self.weight), wide(&self.dy));
        let (mean, rstd) = (wide(&self.mean), wide(&self.rstd));
        let (mut dx, mut dweight, mut dbias) = (wide(&self.dx), vec![0.0; cols], vec![0.0; cols]);
        reference::layernorm_backward(
            *dims,
            &mut dx,
            &mut dweight,
            &mut dbias,
            &dy,
            &x,
            &mean,
            &rstd,
            &weight,
        );
        let mut dx_size = sizes(&self.dx);
        let (mut dweight_size, mut dbias_size) = (vec![0.0; cols], vec![0.0; cols]);
        for row in 0..rows {
            let at = |c: usize| row * cols + c;
            let n = |c: usize| ((x[at(c)] - mean[row]) * rstd[row]).abs();
            let g = |c: usize| (dy[at(c)] * weight[c]).abs();
            let mean_g = (0..cols).map(g).sum::<f64>() / cols as f64;
            let mean_gn = (0..cols).map(|c| g(c) * n(c)).sum::<f64>() / cols as f64;
            for c in 0..cols {
                dx_size[at(c)] += rstd[row] * (g(c) + mean_g + n(c) * mean_gn);
                dweight_size[c] += dy[at(c)].abs() * n(c);
                dbias_size[c] += dy[at(c)].abs();
            }
        }
        [
            Expected::from_sizes("dx", sum_depth(cols) as usize + 12, dx, dx_size),
            Expected::from_sizes("dweight", rows + 3, dweight, dweight_size),
            Expected::from_sizes("dbias", rows, dbias, dbias_size),
        ]
    }
}
