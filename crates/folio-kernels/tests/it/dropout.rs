//! Dropout: its arithmetic, the statistics of its masks, and that all who draw a mask draw the same.

use std::collections::HashMap;

use folio_kernels::attention::{self, Forward};
use folio_kernels::dims::{AttentionDims, RowDims};
use folio_kernels::dropout::{self, Dropout};
use folio_kernels::reference;

use crate::support::{Expected, Random, check, on_every_isa, sizes, wide};

const RATES: [f32; 7] = [0.01, 0.1, 0.2, 0.5, 0.75, 0.9, 0.999];

/// How many standard deviations a statistic may be off. A normal deviate exceeds 6 with probability 2e-9, and
/// there are about a thousand statistics below.
const Z_MAX: f64 = 6.0;

/// Pieces are 64 rows.
const SIZES: [(usize, usize); 8] =
    [(1, 1), (1, 7), (3, 16), (5, 33), (63, 17), (64, 31), (65, 65), (130, 100)];

#[test]
fn dropout_equals_its_twin() {
    for dropout in [Dropout::none(), Dropout::new(0.1, 81), Dropout::new(0.6, 82)] {
        for (rows, cols) in SIZES {
            let branch = Branch::random(RowDims { rows, cols }, dropout);
            // One product each, by zero without any error; then one sum.
            let outputs = branch.twin(wide).into_iter().zip(branch.twin(sizes));
            let expected: Vec<_> = outputs
                .zip([("y", 1), ("dx", 1), ("residual", 2)])
                .map(|((want, sizes), (name, roundings))| Expected::from_sizes(name, roundings, want, sizes))
                .collect();
            check("dropout", &(branch.dims, dropout), &expected, || branch.run());
        }
    }
}

#[test]
fn every_kernel_draws_the_mask_that_its_rows_say() {
    let dims = RowDims { rows: 70, cols: 45 };
    let ones = vec![1.0; dims.rows * dims.cols];
    for rate in RATES {
        let dropout = Dropout::new(rate, 83);
        let rows = (0..dims.rows).map(|row| dropout.row(row));
        let mask: Vec<f32> =
            rows.flat_map(|row| (0..dims.cols as u32).map(move |col| row.factor(col))).collect();
        assert!(mask.iter().all(|&factor| factor == 0.0 || factor == 1.0 / (1.0 - rate)), "rate {rate}");
        on_every_isa(|isa| {
            let mut forward = ones.clone();
            dropout::dropout_in_place(dims, &mut forward, dropout);
            assert_eq!(forward, mask, "in place, rate {rate}, {}", isa.name());
            let mut backward = vec![f32::NAN; ones.len()];
            dropout::dropout_backward(dims, &mut backward, &ones, dropout);
            assert_eq!(backward, mask, "backward, rate {rate}, {}", isa.name());
            let mut residual = vec![f32::NAN; ones.len()];
            dropout::dropout_residual_forward(dims, &mut residual, &vec![0.0; ones.len()], &ones, dropout);
            assert_eq!(residual, mask, "residual, rate {rate}, {}", isa.name());
        });
    }
}

#[test]
fn attention_draws_the_same_mask_going_back() {
    // With q = k = 0 all weights of query i are 1 / (i + 1). With one-hot v and dy each is read off: y_ij and
    // dv_ji.
    let dims = AttentionDims { batch: 2, time: 70, heads: 2, head_size: 70 };
    let AttentionDims { batch, time, heads, .. } = dims;
    let channels = dims.channels();
    let dropout = Dropout::new(0.4, 84);
    let mut dy = vec![0.0; batch * time * channels];
    let mut qkv = vec![0.0; 3 * dy.len()];
    for (token, (qkv, dy)) in
        qkv.chunks_exact_mut(3 * channels).zip(dy.chunks_exact_mut(channels)).enumerate()
    {
        for h in 0..heads {
            qkv[2 * channels + h * time + token % time] = 1.0;
            dy[h * time + token % time] = 1.0;
        }
    }
    on_every_isa(|isa| {
        let (mut y, mut lse) = (vec![f32::NAN; dy.len()], vec![f32::NAN; batch * heads * time]);
        let mut scratch = vec![f32::NAN; attention::backward_scratch(dims)];
        attention::attention_forward(dims, &mut y, &mut lse, &qkv, dropout, &mut scratch);
        let mut dqkv = vec![f32::NAN; qkv.len()];
        let forward = Forward { y: &y, qkv: &qkv, lse: &lse };
        attention::attention_backward(dims, &mut dqkv, &dy, forward, dropout, &mut scratch);
        for index in 0..batch * heads * time * time {
            let (row, i, j) = (index / time, index / time % time, index % time);
            let (b, h) = (row / time / heads, row / time % heads);
            let kept = j <= i && dropout.row(row).factor(j as u32) != 0.0;
            let there = y[(b * time + i) * channels + h * time + j];
            let back = dqkv[((b * time + j) * 3 + 2) * channels + h * time + i];
            assert_eq!((there != 0.0, back != 0.0), (kept, kept), "{b} {h} {i} {j} on {}", isa.name());
        }
    });
}

#[test]
fn the_share_of_what_is_kept_is_one_minus_the_rate() {
    // A count of n draws has the variance n p (1 - p).
    for rate in RATES {
        for key in [0, 1, 2, u64::MAX, 0x1234_5678_9ABC_DEF0] {
            let mask = Mask::draw(rate, key, 500, 400);
            let count = mask.kept.iter().filter(|&&kept| kept).count() as f64;
            let n = mask.kept.len() as f64;
            let z = (count - n * mask.p) / (n * mask.p * (1.0 - mask.p)).sqrt();
            assert!(z.abs() <= Z_MAX, "rate {rate}, key {key}: kept {count} of {n}, {z:.1} sigma off");
        }
    }
}

#[test]
fn rows_and_columns_vary_as_independent_draws_do() {
    // The squares of R standardised counts, approximately normal ones, sum to chi-square: mean R, variance 2
    // R, plus the excess kurtosis of the binomial, R (1 / (n p (1 - p)) - 6 / n).
    for rate in [0.1, 0.5, 0.9] {
        for key in [0, 7, u64::MAX] {
            let mask = Mask::draw(rate, key, 600, 500);
            for (name, counts, n) in
                [("rows", mask.row_counts(), mask.cols), ("columns", mask.col_counts(), 600)]
            {
                let (n, r) = (n as f64, counts.len() as f64);
                let variance = n * mask.p * (1.0 - mask.p);
                let chi2: f64 = counts.iter().map(|count| (count - n * mask.p).powi(2) / variance).sum();
                let z = (chi2 - r) / (r * (2.0 + 1.0 / variance - 6.0 / n)).sqrt();
                assert!(
                    z.abs() <= Z_MAX,
                    "{name} at rate {rate}, key {key}: chi-square {chi2} of {r}, z {z:.1}"
                );
            }
        }
    }
}

#[test]
fn masks_of_different_keys_are_independent() {
    for rate in [0.1, 0.5, 0.9] {
        for key in [0, 1 << 40, 0xDEAD_BEEF] {
            let mask = Mask::draw(rate, key, 200, 150);
            for other in
                [key + 1, key + 2, key + 1000, !key].into_iter().chain((0..64).map(|b| key ^ (1 << b)))
            {
                let pairs = mask.kept.iter().zip(Mask::draw(rate, other, 200, 150).kept);
                expect_independent(&format!("keys {key} and {other}"), mask.p, pairs.map(|(&a, b)| (a, b)));
            }
        }
    }
}

#[test]
fn no_two_rows_are_alike_under_any_keys() {
    // 64 columns at a rate of one half are 64 random bits: two of 30,000 rows agree by chance once in 4e10.
    let mut seen = HashMap::new();
    for key in (0..50).chain((0..50).map(|key| key << 32)) {
        for row in 0..300 {
            let mask = Dropout::new(0.5, key).row(row);
            let bits = (0..64).fold(0u64, |bits, col| bits << 1 | u64::from(mask.factor(col) != 0.0));
            // Key 0 is in both ranges.
            let first = *seen.entry(bits).or_insert((key, row));
            assert_eq!(first, (key, row), "two keys and rows have one mask");
        }
    }
}

#[test]
fn rows_and_columns_of_one_mask_are_independent() {
    for rate in [0.1, 0.5, 0.9] {
        let mask = Mask::draw(rate, 85, 300, 300);
        let pairs = |rows: usize, cols: usize| {
            let inside = move |index: &usize| index / 300 + rows < 300 && index % 300 + cols < 300;
            let kept = &mask.kept;
            (0..kept.len()).filter(inside).map(move |index| (kept[index], kept[index + rows * 300 + cols]))
        };
        for distance in [1, 2, 3, 4, 8, 16, 32, 64, 128, 256] {
            expect_independent(&format!("rows {distance} apart"), mask.p, pairs(distance, 0));
            expect_independent(&format!("columns {distance} apart"), mask.p, pairs(0, distance));
            expect_independent(&format!("both {distance} apart"), mask.p, pairs(distance, distance));
        }
        let upper =
            (0..mask.kept.len()).map(|index| (index / 300, index % 300)).filter(|(row, col)| row < col);
        let across = upper.map(|(row, col)| (mask.kept[row * 300 + col], mask.kept[col * 300 + row]));
        expect_independent("row and column exchanged", mask.p, across);
    }
}

#[test]
fn a_rate_of_zero_changes_nothing() {
    assert!(Dropout::none().is_identity());
    assert!(!Dropout::new(1e-6, 0).is_identity());
    let x = Random(86).singles(10 * 33, 1.0);
    let mut y = x.clone();
    dropout::dropout_in_place(RowDims { rows: 10, cols: 33 }, &mut y, Dropout::new(0.0, 9));
    assert_eq!(y, x);
}

#[test]
#[should_panic(expected = "dropout rate 1 is outside [0, 1)")]
fn a_rate_of_one_is_refused() {
    Dropout::new(1.0, 0);
}

#[test]
#[should_panic(expected = "dropout rate NaN is outside [0, 1)")]
fn a_rate_that_is_no_number_is_refused() {
    Dropout::new(f32::NAN, 0);
}

/// Panics unless the two of each pair, which are true with probability p, are uncorrelated: `sum (a - p)(b -
/// p)` has the mean 0 and the variance `n (p (1 - p))^2`.
fn expect_independent(name: &str, p: f64, pairs: impl Iterator<Item = (bool, bool)>) {
    let off = |kept: bool| f64::from(u8::from(kept)) - p;
    let (n, sum) = pairs.fold((0.0, 0.0), |(n, sum), (a, b)| (n + 1.0, sum + off(a) * off(b)));
    let z: f64 = sum / (f64::sqrt(n) * p * (1.0 - p));
    assert!(z.abs() <= Z_MAX, "{name}, share {p:.3} of {n}: correlated by {z:.1} sigma");
}

/// Which elements of a (rows, cols) matrix are kept, and with which probability p each.
struct Mask {
    cols: usize,
    p: f64,
    kept: Vec<bool>,
}

impl Mask {
    fn draw(rate: f32, key: u64, rows: usize, cols: usize) -> Self {
        let dropout = Dropout::new(rate, key);
        let rows = (0..rows).map(|row| dropout.row(row));
        let kept = rows.flat_map(|row| (0..cols as u32).map(move |col| row.factor(col) != 0.0)).collect();
        Self { cols, p: 1.0 - f64::from(rate), kept }
    }

    fn row_counts(&self) -> Vec<f64> {
        let count = |row: &[bool]| row.iter().filter(|&&kept| kept).count() as f64;
        self.kept.chunks_exact(self.cols).map(count).collect()
    }

    fn col_counts(&self) -> Vec<f64> {
        let mut counts = vec![0.0; self.cols];
        for row in self.kept.chunks_exact(self.cols) {
            counts.iter_mut().zip(row).for_each(|(count, &kept)| *count += f64::from(u8::from(kept)));
        }
        counts
    }
}

/// The end of a branch, and the residual stream that it joins.
pub(crate) struct Branch {
    dims: RowDims,
    dropout: Dropout,
    branch: Vec<f32>,
    residual: Vec<f32>,
    dy: Vec<f32>,
}

impl Branch {
    pub(crate) fn random(dims: RowDims, dropout: Dropout) -> Self {
        let len = dims.rows * dims.cols;
        let mut random = Random(87);
        let (branch, residual) = (random.singles(len, 1.0), random.singles(len, 1.0));
        Self { dims, dropout, branch, residual, dy: random.singles(len, 1.0) }
    }

    /// `y` of the branch alone, `dx`, and `y` of the branch on its residual.
    pub(crate) fn run(&self) -> Vec<Vec<f32>> {
        let Self { dims, dropout, branch, residual, dy } = self;
        let mut y = branch.clone();
        dropout::dropout_in_place(*dims, &mut y, *dropout);
        let (mut dx, mut sum) = (vec![f32::NAN; dy.len()], vec![f32::NAN; dy.len()]);
        dropout::dropout_backward(*dims, &mut dx, dy, *dropout);
        dropout::dropout_residual_forward(*dims, &mut sum, residual, branch, *dropout);
        vec![y, dx, sum]
    }

    /// The same by the twin, with every input taken through `of`.
    fn twin(&self, of: impl Fn(&[f32]) -> Vec<f64>) -> Vec<Vec<f64>> {
        let Self { dims, dropout, .. } = self;
        let (branch, residual, dy) = (of(&self.branch), of(&self.residual), of(&self.dy));
        let (mut y, mut dx, mut sum) =
            (vec![f64::NAN; dy.len()], vec![f64::NAN; dy.len()], vec![f64::NAN; dy.len()]);
        reference::dropout_forward(*dims, &mut y, &branch, *dropout);
        reference::dropout_backward(*dims, &mut dx, &dy, *dropout);
        reference::dropout_residual_forward(*dims, &mut sum, &residual, &branch, *dropout);
        vec![y, dx, sum]
    }
}
