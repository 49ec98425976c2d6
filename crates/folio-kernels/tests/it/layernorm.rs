//! LayerNorm. The bounds follow the formulas from the mean to the output; C is the length of a row.

use folio_kernels::dims::RowDims;
use folio_kernels::layernorm::{self, LayerNormGradients, Statistics};
use folio_kernels::reference;

use crate::support::{Expected, Random, U, check, sizes, sum_depth, wide};

/// The lanes of a sum are 32, the pieces of rows 64 and the parts of the sums over rows 32.
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

#[test]
fn layernorm_equals_its_twin() {
    for (rows, cols) in SIZES {
        compare(Norm::random(RowDims { rows, cols }, 0.0));
    }
}

#[test]
fn layernorm_keeps_its_precision_far_from_zero() {
    for (rows, cols) in [(1, 1), (3, 33), (5, 100), (2, 768)] {
        compare(Norm::random(RowDims { rows, cols }, 20.0));
    }
}

#[test]
fn a_constant_row_gives_the_bias() {
    for cols in [1, 5, 32, 33, 768] {
        let dims = RowDims { rows: 2, cols };
        let mut norm = Norm::random(dims, 0.0);
        norm.x.fill(0.5);
        // Sums of halves are exact, so that the mean is 0.5 and what is left of each element zero.
        let [y, mean, rstd] = norm.forward(&norm.x);
        assert_eq!(y, [&norm.bias[..], &norm.bias[..]].concat(), "{dims:?}");
        assert_eq!(mean, [0.5; 2], "{dims:?}");
        assert_eq!(rstd, [1.0 / layernorm::EPS.sqrt(); 2], "{dims:?}");
    }
}

fn compare(norm: Norm) {
    let mut expected = Vec::from(norm.forward_expected());
    expected.extend(norm.backward_expected());
    check("layernorm", &norm.dims, &expected, || norm.run());
}

/// A layer, gradients that hold something before they are added to, and the twin's statistics for the
/// backward.
pub(crate) struct Norm {
    dims: RowDims,
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    mean: Vec<f32>,
    rstd: Vec<f32>,
    dy: Vec<f32>,
    dx: Vec<f32>,
    dweight: Vec<f32>,
    dbias: Vec<f32>,
}

impl Norm {
    /// Rows of deviates around `center`.
    pub(crate) fn random(dims: RowDims, center: f32) -> Self {
        let RowDims { rows, cols } = dims;
        let mut random = Random(31);
        let mut norm = Self {
            dims,
            x: random.singles(rows * cols, 2.0).iter().map(|x| x + center).collect(),
            weight: random.singles(cols, 1.0),
            bias: random.singles(cols, 1.0),
            mean: vec![],
            rstd: vec![],
            dy: random.singles(rows * cols, 1.0),
            dx: random.singles(rows * cols, 1.0),
            dweight: random.singles(cols, 1.0),
            dbias: random.singles(cols, 1.0),
        };
        let [_, mean, rstd] = norm.twin_forward();
        norm.mean = mean.iter().map(|&mean| mean as f32).collect();
        norm.rstd = rstd.iter().map(|&rstd| rstd as f32).collect();
        norm
    }

    /// `y`, `mean`, `rstd`, `dx`, `dweight` and `dbias`.
    pub(crate) fn run(&self) -> Vec<Vec<f32>> {
        let Self { dims, x, weight, dy, .. } = self;
        let mut outputs = Vec::from(self.forward(x));
        let (mut dx, mut dweight, mut dbias) = (self.dx.clone(), self.dweight.clone(), self.dbias.clone());
        let gradients = LayerNormGradients { dx: &mut dx, dweight: &mut dweight, dbias: &mut dbias };
        let statistics = Statistics { mean: &self.mean, rstd: &self.rstd };
        let mut scratch = vec![f32::NAN; layernorm::layernorm_scratch(dims.cols)];
        layernorm::layernorm_backward(*dims, gradients, dy, x, statistics, weight, &mut scratch);
        outputs.extend([dx, dweight, dbias]);
        outputs
    }

    fn forward(&self, x: &[f32]) -> [Vec<f32>; 3] {
        let Self { dims, weight, bias, .. } = self;
        let mut y = vec![f32::NAN; x.len()];
        let (mut mean, mut rstd) = (vec![f32::NAN; dims.rows], vec![f32::NAN; dims.rows]);
        layernorm::layernorm_forward(*dims, &mut y, &mut mean, &mut rstd, x, weight, bias);
        [y, mean, rstd]
    }

    fn twin_forward(&self) -> [Vec<f64>; 3] {
        let dims = self.dims;
        let (x, weight, bias) = (wide(&self.x), wide(&self.weight), wide(&self.bias));
        let mut y = vec![f64::NAN; x.len()];
        let (mut mean, mut rstd) = (vec![f64::NAN; dims.rows], vec![f64::NAN; dims.rows]);
        reference::layernorm_forward(dims, &mut y, &mut mean, &mut rstd, &x, &weight, &bias);
        [y, mean, rstd]
    }

    /// With S the additions of a sum, and writing d for an error:
    ///
    /// - mean: S additions and a division, `dmean <= (S + 1) U mean|x|`.
    /// - `x - mean`: `dmean` and a rounding.
    /// - variance: deviations from a mean that is off by `dmean` have the variance and `dmean^2`; S
    ///   additions, a square, a division and twice the rounding of `x - mean` make `(S + 4) U` of that sum.
    /// - rstd: how far `1 / sqrt(variance + eps)` moves with the variance, and 3 roundings: half of those of
    ///   eps and its addition, the root and the reciprocal.
    /// - y: both errors of `(x - mean) rstd`, a rounding of it, and one of y.
    fn forward_expected(&self) -> [Expected; 3] {
        let RowDims { cols, .. } = self.dims;
        let [y, mean, rstd] = self.twin_forward();
        let (mut dy, mut dmean, mut drstd) = (vec![], vec![], vec![]);
        for (row, x) in wide(&self.x).chunks_exact(cols).enumerate() {
            let size = x.iter().map(|x| x.abs()).sum::<f64>() / cols as f64;
            dmean.push((sum_depth(cols) + 1.0) * U * size);
            let variance = rstd[row].powi(-2) - reference::EPS;
            let off_center = dmean[row].powi(2);
            let dvariance = (sum_depth(cols) + 4.0) * U * (variance + off_center) + off_center;
            let highest = ((variance - dvariance).max(0.0) + reference::EPS).sqrt().recip();
            drstd.push(highest - rstd[row] + 3.0 * U * highest);
            for c in 0..cols {
                let deviation = (x[c] - mean[row]).abs();
                let normal = (dmean[row] + 2.0 * U * deviation) * rstd[row] + deviation * drstd[row];
                dy.push(normal * f64::from(self.weight[c]).abs() + U * y[row * cols + c].abs());
            }
        }
        let expected = |name, want, tolerance| Expected { name, want, tolerance };
        [expected("y", y, dy), expected("mean", mean, dmean), expected("rstd", rstd, drstd)]
    }

    /// The statistics are given, so that `n = (x - mean) rstd` has two roundings. In `rstd (g - mean(g) - n
    /// mean(g n))` the last term has most: `g n` 4, its mean S + 1, times `n` 3, and two subtractions, times
    /// `rstd`, added to dx: S + 12. A term of dweight has 3, of dbias none, and both at most one addition for
    /// each row.
    fn backward_expected(&self) -> [Expected; 3] {
        let Self { dims, .. } = self;
        let RowDims { rows, cols } = *dims;
        let (x, weight, dy) = (wide(&self.x), wide(&self.weight), wide(&self.dy));
        let (mean, rstd) = (wide(&self.mean), wide(&self.rstd));
        let (mut dx, mut dweight, mut dbias) = (wide(&self.dx), wide(&self.dweight), wide(&self.dbias));
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
        let (mut dweight_size, mut dbias_size) = (sizes(&self.dweight), sizes(&self.dbias));
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
