//! Causal attention, with and without dropout. Tiles are 64 queries long.

use folio_kernels::attention::{self, Forward};
use folio_kernels::dims::AttentionDims;
use folio_kernels::dropout::Dropout;
use folio_kernels::reference;

use crate::support::{EXP_ROUNDINGS, Expected, LN_ROUNDINGS, Random, U, check, on_every_isa, wide};

const SIZES: [(usize, usize, usize, usize); 14] = [
    (1, 1, 1, 16),
    (1, 2, 1, 1),
    (3, 1, 2, 16),
    (1, 7, 3, 5),
    (2, 17, 2, 24),
    (2, 33, 3, 17),
    (1, 63, 1, 64),
    (1, 64, 2, 48),
    (2, 65, 2, 32),
    (1, 66, 1, 128),
    (1, 100, 1, 80),
    (1, 127, 2, 16),
    (1, 129, 1, 96),
    (2, 193, 1, 20),
];

#[test]
fn attention_equals_its_twin() {
    for dropout in [Dropout::none(), Dropout::new(0.3, 51)] {
        for (batch, time, heads, head_size) in SIZES {
            compare(Attention::random(AttentionDims { batch, time, heads, head_size }, dropout));
        }
    }
}

#[test]
fn scores_whose_exponentials_overflow_do_no_harm() {
    let dims = AttentionDims { batch: 1, time: 70, heads: 2, head_size: 16 };
    for sign in [1.0, -1.0] {
        let mut attention = Attention::random(dims, Dropout::none());
        // Adds 40 * 40 / sqrt(16) = 400 to each score, plus or minus at most 40.
        for row in attention.qkv.chunks_exact_mut(3 * dims.channels()) {
            for head in 0..dims.heads {
                row[head * dims.head_size] += 40.0;
                row[dims.channels() + head * dims.head_size] += sign * 40.0;
            }
        }
        compare(attention.with_twin_outputs());
    }
}

#[test]
fn the_future_has_no_influence() {
    let dims = AttentionDims { batch: 1, time: 130, heads: 1, head_size: 16 };
    let attention = Attention::random(dims, Dropout::new(0.2, 52));
    let mut other = Attention::random(dims, attention.dropout);
    other.qkv[100 * 48..].iter_mut().for_each(|value| *value = 1.0 - *value);
    on_every_isa(|isa| {
        let (a, b) = (attention.forward(), other.forward());
        assert_eq!(a[0][..100 * 16], b[0][..100 * 16], "{}: y before token 100", isa.name());
        assert_eq!(a[1][..100], b[1][..100], "{}: lse before token 100", isa.name());
        assert!(a[1][100..].iter().zip(&b[1][100..]).all(|(a, b)| a != b), "{}: lse behind", isa.name());
    });
}

fn compare(attention: Attention) {
    let (y, lse) = attention.twin_forward();
    let (y_off, lse_off) = attention.forward_tolerances(&lse);
    let expected = [
        Expected { name: "y", want: y, tolerance: y_off },
        Expected { name: "lse", want: lse, tolerance: lse_off },
        Expected {
            name: "dqkv",
            want: attention.twin_backward(),
            tolerance: attention.backward_tolerances(),
        },
    ];
    check("attention", &(attention.dims, attention.dropout), &expected, || attention.run());
}

/// Inputs, and the twin's outputs rounded to f32 for the backward.
pub(crate) struct Attention {
    dims: AttentionDims,
    dropout: Dropout,
    qkv: Vec<f32>,
    dy: Vec<f32>,
    y: Vec<f32>,
    lse: Vec<f32>,
}

impl Attention {
    pub(crate) fn random(dims: AttentionDims, dropout: Dropout) -> Self {
        let tokens = dims.batch * dims.time;
        let mut random = Random(53);
        let qkv = random.singles(tokens * 3 * dims.channels(), 2.0);
        let dy = random.singles(tokens * dims.channels(), 1.0);
        Self { dims, dropout, qkv, dy, y: vec![], lse: vec![] }.with_twin_outputs()
    }

    fn with_twin_outputs(mut self) -> Self {
        let (y, lse) = self.twin_forward();
        self.y = y.iter().map(|&y| y as f32).collect();
        self.lse = lse.iter().map(|&lse| lse as f32).collect();
        self
    }

    /// `y`, `lse` and `dqkv`.
    pub(crate) fn run(&self) -> Vec<Vec<f32>> {
        let Self { dims, dropout, qkv, dy, y, lse } = self;
        let mut outputs = Vec::from(self.forward());
        let mut dqkv = vec![f32::NAN; qkv.len()];
        // Longer than it must be, as where one scratch serves several operations.
        let mut scratch = vec![f32::NAN; attention::backward_scratch(*dims) + 7];
        attention::attention_backward(*dims, &mut dqkv, dy, Forward { y, qkv, lse }, *dropout, &mut scratch);
        outputs.push(dqkv);
        outputs
    }

    fn forward(&self) -> [Vec<f32>; 2] {
        let Self { dims, dropout, qkv, .. } = self;
        let (mut y, mut lse) = (vec![f32::NAN; self.y.len()], vec![f32::NAN; self.lse.len()]);
        let mut scratch = vec![f32::NAN; attention::forward_scratch(*dims) + 7];
        attention::attention_forward(*dims, &mut y, &mut lse, qkv, *dropout, &mut scratch);
        [y, lse]
    }

    fn twin_forward(&self) -> (Vec<f64>, Vec<f64>) {
        let Self { dims, dropout, qkv, .. } = self;
        let tokens = dims.batch * dims.time;
        let (mut y, mut lse) =
            (vec![f64::NAN; tokens * dims.channels()], vec![f64::NAN; tokens * dims.heads]);
        reference::attention_forward(*dims, &mut y, &mut lse, &wide(qkv), *dropout);
        (y, lse)
    }

    fn twin_backward(&self) -> Vec<f64> {
        let Self { dims, dropout, qkv, dy, y, lse } = self;
        let mut dqkv = vec![f64::NAN; qkv.len()];
        let (qkv, lse) = (wide(qkv), wide(lse));
        reference::attention_backward(*dims, &mut dqkv, &wide(dy), &wide(y), &qkv, &lse, *dropout);
        dqkv
    }

    /// For query i with its n = i + 1 keys, in units of U:
    ///
    /// - A score is off by `s = (D + 3) sum|q k| / sqrt(D)`: D + 1 roundings of the product, 2 of the factor.
    /// - An exponential has s twice, from score and maximum, the rounding of their difference, at most
    ///   `range`, and its own.
    /// - lse moves by at most s with its scores; the sum adds the rest of an exponential and n additions;
    ///   then come the logarithm of at most n and the last sum.
    /// - A weight has the errors of an exponential and of their sum, n additions, a reciprocal and 2
    ///   products; the sum of its product with v has n + 1.
    fn forward_tolerances(&self, lse: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let AttentionDims { batch, time, heads, head_size } = self.dims;
        let mut y_off = vec![0.0; self.y.len()];
        let mut lse_off = vec![0.0; lse.len()];
        for (b, h, i) in indices(&[batch, heads, time]) {
            let row = (b * heads + h) * time + i;
            let scores: Vec<_> = (0..=i).map(|j| self.score(b, h, i, j)).collect();
            let score_off = scores.iter().map(|score| score.off).fold(0.0, f64::max);
            let highest = scores.iter().map(|score| score.value).fold(f64::NEG_INFINITY, f64::max);
            let lowest = scores.iter().map(|score| score.value).fold(f64::INFINITY, f64::min);
            let (range, n) = (highest - lowest, (i + 1) as f64);
            let exp_off = range + EXP_ROUNDINGS;
            lse_off[row] = U * (score_off + exp_off + n + LN_ROUNDINGS * n.ln() + lse[row].abs());
            let weight_off = 2.0 * (2.0 * score_off + exp_off) + n + 3.0;
            for (j, score) in scores.iter().enumerate() {
                let weight = self.factor(row, j) * (score.value - lse[row]).exp();
                for d in 0..head_size {
                    let size = weight * self.qkv_at(2, b, h, j, d).abs();
                    y_off[self.y_index(b, h, i, d)] += U * (weight_off + n + 1.0) * size;
                }
            }
        }
        (y_off, lse_off)
    }

    /// `y` and `lse` are given. In units of U:
    ///
    /// - `P = exp(s - lse)` has the error of the score, the rounding of the difference, and its own.
    /// - `ds = P (f dy.v - dy.y) / sqrt(D)` has those of P, D + 1 of the products and 6 more: f, the
    ///   difference, two factors, the second with 2 of its own.
    /// - The sums for dq, dk and dv add at most T + 1, and f one.
    fn backward_tolerances(&self) -> Vec<f64> {
        let AttentionDims { batch, time, heads, head_size } = self.dims;
        let scale = 1.0 / (head_size as f64).sqrt();
        let mut off = vec![0.0; self.qkv.len()];
        let dy = |b, h, i, d| f64::from(self.dy[self.y_index(b, h, i, d)]);
        let y = |b, h, i, d| f64::from(self.y[self.y_index(b, h, i, d)]);
        for (b, h, i) in indices(&[batch, heads, time]) {
            let row = (b * heads + h) * time + i;
            let lse = f64::from(self.lse[row]);
            let mean: f64 = (0..head_size).map(|d| (dy(b, h, i, d) * y(b, h, i, d)).abs()).sum();
            for j in 0..=i {
                let score = self.score(b, h, i, j);
                let p = (score.value - lse).exp();
                let f = self.factor(row, j);
                let p_off = score.off + (score.value - lse).abs() + EXP_ROUNDINGS;
                let all_off = U * (p_off + (head_size + 7 + time + 2) as f64);
                let dp = (0..head_size).map(|d| (dy(b, h, i, d) * self.qkv_at(2, b, h, j, d)).abs());
                let ds = p * scale * (f * dp.sum::<f64>() + mean);
                for d in 0..head_size {
                    off[self.qkv_index(0, b, h, i, d)] += all_off * ds * self.qkv_at(1, b, h, j, d).abs();
                    off[self.qkv_index(1, b, h, j, d)] += all_off * ds * self.qkv_at(0, b, h, i, d).abs();
                    off[self.qkv_index(2, b, h, j, d)] += all_off * f * p * dy(b, h, i, d).abs();
                }
            }
        }
        off
    }

    fn score(&self, b: usize, h: usize, i: usize, j: usize) -> Score {
        let head_size = self.dims.head_size;
        let scale = 1.0 / (head_size as f64).sqrt();
        let terms = (0..head_size).map(|d| self.qkv_at(0, b, h, i, d) * self.qkv_at(1, b, h, j, d));
        let size: f64 = terms.clone().map(f64::abs).sum();
        Score { value: scale * terms.sum::<f64>(), off: (head_size + 3) as f64 * scale * size }
    }

    fn factor(&self, row: usize, j: usize) -> f64 {
        f64::from(self.dropout.row(row).factor(j as u32))
    }

    /// `which` is 0 for q, 1 for k and 2 for v.
    fn qkv_index(&self, which: usize, b: usize, h: usize, t: usize, d: usize) -> usize {
        let AttentionDims { time, head_size, .. } = self.dims;
        ((b * time + t) * 3 + which) * self.dims.channels() + h * head_size + d
    }

    fn qkv_at(&self, which: usize, b: usize, h: usize, t: usize, d: usize) -> f64 {
        f64::from(self.qkv[self.qkv_index(which, b, h, t, d)])
    }

    fn y_index(&self, b: usize, h: usize, t: usize, d: usize) -> usize {
        let AttentionDims { time, head_size, .. } = self.dims;
        (b * time + t) * self.dims.channels() + h * head_size + d
    }
}

/// A scaled score and its error in units of U.
struct Score {
    value: f64,
    off: f64,
}

/// All indices of an array of three dimensions.
fn indices(shape: &[usize; 3]) -> impl Iterator<Item = (usize, usize, usize)> {
    let [first, second, third] = *shape;
    (0..first * second * third).map(move |i| (i / third / second, i / third % second, i % third))
}
