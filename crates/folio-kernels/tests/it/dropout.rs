//! Dropout: its arithmetic, the statistics of its masks, and that all kernels generate the same mask.

use std::collections::HashMap;

use folio_kernels::attention::{self, AttentionScratch, Forward};
use folio_kernels::columns::ColumnsMut;
use folio_kernels::dims::{AttentionDims, LinearDims, RowDims};
use folio_kernels::dropout::{self, Dropout};
use folio_kernels::element::{Bf16, Element};
use folio_kernels::linear;
use folio_kernels::panels::{PanelDims, Panels};
use folio_kernels::reference;

use crate::support::{
    Expected, Random, as_f32, assert_same_bits, check, format, in_panels, nans, on_every_isa, rounded, sizes,
    wide,
};

const RATES: [f32; 7] = [0.01, 0.1, 0.2, 0.5, 0.75, 0.9, 0.999];

/// How many standard deviations a statistic may be off. A normal deviate exceeds 6 with probability 2e-9, and about a
/// thousand statistics are tested below.
const Z_MAX: f64 = 6.0;

const SIZES: [(usize, usize); 8] =
    [(1, 1), (1, 7), (3, 16), (5, 33), (63, 17), (64, 31), (65, 65), (130, 100)];

fn compare_all<E: Element>() {
    for dropout in [Dropout::none(), Dropout::new(0.1, 81), Dropout::new(0.6, 82).skip_rows(12)] {
        for (rows, cols) in SIZES {
            let dims = RowDims { rows, cols };
            let mut random = Random(87);
            let (x, dy) = (random.as_f32(rows * cols, 1.0), random.as_f32(rows * cols, 1.0));
            let twin = |of: fn(&[f32]) -> Vec<f64>| {
                let (mut y, mut dx) = (vec![f64::NAN; x.len()], vec![f64::NAN; x.len()]);
                reference::dropout_forward(dims, &mut y, &of(&x), dropout);
                reference::dropout_backward(dims, &mut dx, &of(&dy), dropout);
                (y, dx)
            };
            let ((y, dx), (y_size, dx_size)) = (twin(wide), twin(sizes));
            // One product each, exact if by zero; the gradient is stored.
            let expected = [
                Expected::from_sizes("y", 1, y, y_size),
                Expected::from_sizes("dx", 1, dx, dx_size).stored::<E>(),
            ];
            check("dropout", &(format::<E>(), dims, dropout), &expected, || {
                let (mut y, mut dx) = (x.clone(), nans::<E>(x.len()));
                dropout::dropout_in_place(dims, &mut y, dropout);
                dropout::dropout_backward(dims, &mut dx, &dy, dropout);
                vec![y, as_f32(&dx)]
            });
        }
    }
}

#[test]
fn dropout_equals_its_twin() {
    compare_all::<f32>();
    compare_all::<Bf16>();
}

/// The factors of a mask, element by element.
fn mask(dims: RowDims, dropout: Dropout) -> Vec<f32> {
    let rows = (0..dims.rows).map(|row| dropout.row(row));
    rows.flat_map(|row| (0..dims.cols as u32).map(move |col| row.factor(col))).collect()
}

fn draw_by_every_kernel<E: Element>() {
    let dims = RowDims { rows: 70, cols: 145 };
    let ones = vec![1.0; dims.rows * dims.cols];
    for rate in RATES {
        let dropout = Dropout::new(rate, 83).skip_rows(5);
        let mask = mask(dims, dropout);
        assert!(mask.iter().all(|&factor| factor == 0.0 || factor == 1.0 / (1.0 - rate)), "rate {rate}");
        on_every_isa(|isa| {
            let case = format!("{} at rate {rate} on {}", format::<E>(), isa.name());
            let mut forward = ones.clone();
            dropout::dropout_in_place(dims, &mut forward, dropout);
            assert_same_bits(&format!("in place, {case}"), &forward, &mask);
            let mut backward = nans::<E>(ones.len());
            dropout::dropout_backward(dims, &mut backward, &ones, dropout);
            assert_same_bits(&format!("backward, {case}"), &backward, &rounded(&mask));
            // All elements of the branch are 1: x = (1, 1), w = (1, 0), without bias and residual.
            let linear = LinearDims { rows: dims.rows, inputs: 2, outputs: dims.cols };
            let panels = PanelDims { depth: 2, cols: dims.cols };
            let row = vec![1.0; dims.cols];
            let w = in_panels(panels, &rounded::<E>(&[row.clone(), vec![0.0; dims.cols]].concat()));
            let (mut y, zeros) = (vec![f32::NAN; ones.len()], vec![0.0; ones.len()]);
            let w = (Panels::new(panels, &w), &zeros[..dims.cols]);
            let x = rounded::<E>(&vec![1.0; 2 * dims.rows]);
            linear::linear_residual_forward(
                linear,
                ColumnsMut::new(&mut y, linear.outputs),
                &zeros,
                &x,
                w,
                dropout,
            );
            assert_same_bits(&format!("residual, {case}"), &y, &mask);
        });
    }
}

#[test]
fn every_kernel_generates_the_same_mask() {
    draw_by_every_kernel::<f32>();
    draw_by_every_kernel::<Bf16>();
}

#[test]
fn skip_rows_gives_the_mask_of_the_rows_further_down() {
    let dropout = Dropout::new(0.5, 88);
    let whole = mask(RowDims { rows: 100, cols: 64 }, dropout);
    for rows in [0, 1, 7, 63, 90] {
        let part = mask(RowDims { rows: 10, cols: 64 }, dropout.skip_rows(rows));
        assert_eq!(part, whole[rows * 64..][..640], "{rows} rows");
        let twice = dropout.skip_rows(rows / 2).skip_rows(rows - rows / 2);
        assert_eq!(twice, dropout.skip_rows(rows));
    }
    assert_eq!(dropout.skip_rows(0), dropout);
    assert!(Dropout::none().skip_rows(3).is_identity());
}

fn draw_in_attention<E: Element>() {
    // With q = k = 0, all weights of query i are 1 / (i + 1). With one-hot v and dy, y_ij and dv_ji show the factors of
    // the mask.
    let dims = AttentionDims { batch: 2, time: 70, heads: 2, head_size: 70 };
    let AttentionDims { batch, time, heads, .. } = dims;
    let channels = dims.channels();
    let dropout = Dropout::new(0.4, 84).skip_rows(11);
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
    let (qkv, dy) = (rounded::<E>(&qkv), rounded::<E>(&dy));
    on_every_isa(|isa| {
        let (mut y, mut lse) = (nans::<E>(dy.len()), vec![f32::NAN; batch * heads * time]);
        let mut scratch = AttentionScratch::new(dims);
        attention::attention_forward(dims, &mut y, &mut lse, &qkv, dropout, &mut scratch);
        let mut dqkv = nans::<E>(qkv.len());
        let forward = Forward { y: &y, qkv: &qkv, lse: &lse };
        attention::attention_backward(dims, &mut dqkv, &dy, forward, dropout, &mut scratch);
        let (y, dqkv) = (as_f32(&y), as_f32(&dqkv));
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
fn attention_uses_the_same_mask_in_both_passes() {
    draw_in_attention::<f32>();
    draw_in_attention::<Bf16>();
}

#[test]
fn the_fraction_kept_is_one_minus_the_rate() {
    // The number of kept elements among n has the variance n p (1 - p).
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
fn row_and_column_counts_vary_like_independent_samples() {
    // The sum of squares of R standardized counts is approximately chi-square distributed: mean R, variance 2 R plus
    // the excess kurtosis of the binomial, R (1 / (n p (1 - p)) - 6 / n).
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
fn no_two_rows_are_equal_under_any_keys() {
    // 64 columns at a rate of one half are 64 random bits. The probability that any two of 300,000 rows are equal is
    // one in 4e8. If only 32 bits distinguished rows, about ten pairs would be equal.
    let mut seen = HashMap::new();
    for key in (0..50).chain((0..50).map(|key| key << 32)) {
        for row in 0..3000 {
            let mask = Dropout::new(0.5, key).row(row);
            let bits = (0..64).fold(0u64, |bits, col| bits << 1 | u64::from(mask.factor(col) != 0.0));
            // Key 0 is in both ranges.
            let first = *seen.entry(bits).or_insert((key, row));
            assert_eq!(first, (key, row), "two keys and rows have the same mask");
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
    let x = Random(86).as_f32(10 * 33, 1.0);
    let mut y = x.clone();
    dropout::dropout_in_place(RowDims { rows: 10, cols: 33 }, &mut y, Dropout::new(0.0, 9));
    assert_eq!(y, x);
}

#[test]
#[should_panic(expected = "dropout rate 1 is outside [0, 1)")]
fn a_rate_of_one_panics() {
    Dropout::new(1.0, 0);
}

#[test]
#[should_panic(expected = "dropout rate NaN is outside [0, 1)")]
fn a_rate_of_nan_panics() {
    Dropout::new(f32::NAN, 0);
}

/// Panics unless the two elements of each pair, which are true with probability p, are uncorrelated:
/// `sum (a - p)(b - p)` has mean 0 and variance `n (p (1 - p))^2`.
fn expect_independent(name: &str, p: f64, pairs: impl Iterator<Item = (bool, bool)>) {
    let off = |kept: bool| f64::from(u8::from(kept)) - p;
    let (n, sum) = pairs.fold((0.0, 0.0), |(n, sum), (a, b)| (n + 1.0, sum + off(a) * off(b)));
    let z: f64 = sum / (f64::sqrt(n) * p * (1.0 - p));
    assert!(z.abs() <= Z_MAX, "{name}: {n} pairs with p = {p:.3} are correlated, {z:.1} sigma off");
}

/// Which elements of a (rows, cols) matrix are kept, and the probability p of each.
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
