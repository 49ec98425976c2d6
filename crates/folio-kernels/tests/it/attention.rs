//! Causal attention, with and without dropout. Tiles have 64 queries.

use folio_kernels::attention::{self, AttentionScratch, Forward, KeyValueCache, attention_cached};
use folio_kernels::columns::ColumnsMut;
use folio_kernels::dims::AttentionDims;
use folio_kernels::dropout::Dropout;
use folio_kernels::element::{Bf16, Element};
use folio_kernels::reference;

use crate::support::{
    EXP_ROUNDINGS, Expected, LN_ROUNDINGS, Random, TINY, U, as_f32, assert_same_bits, check, format, nans,
    on_every_isa, rounded, stored, sum_depth, wide,
};

/// Batch, time, heads, head size.
const SIZES: [(usize, usize, usize, usize); 17] = [
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
    (1, 128, 1, 2),
    (1, 129, 1, 96),
    (1, 130, 2, 66),
    (2, 193, 1, 20),
    (1, 31, 2, 3),
];

/// In bfloat16, which is multiplied in pairs, only even head sizes are possible.
fn even<E: Element>((batch, time, heads, head_size): (usize, usize, usize, usize)) -> AttentionDims {
    AttentionDims { batch, time, heads, head_size: head_size.next_multiple_of(E::PER_UNIT) }
}

fn compare_all<E: Element>(dropout: Dropout) {
    for sizes in SIZES {
        Attention::<E>::random(even::<E>(sizes), dropout).compare();
    }
}

#[test]
fn attention_equals_its_twin() {
    compare_all::<f32>(Dropout::none());
    compare_all::<Bf16>(Dropout::none());
}

#[test]
fn attention_with_dropout_equals_its_twin() {
    compare_all::<f32>(Dropout::new(0.3, 51));
    compare_all::<Bf16>(Dropout::new(0.3, 51).skip_rows(77));
}

fn compare_large<E: Element>() {
    let dims = AttentionDims { batch: 1, time: 70, heads: 2, head_size: 16 };
    for sign in [1.0, -1.0] {
        let attention = Attention::<E>::random(dims, Dropout::none());
        let mut qkv = as_f32(&attention.qkv);
        // Adds 40 * 40 / sqrt(16) = 400 to each score, whose own size is at most 40.
        for row in qkv.chunks_exact_mut(3 * dims.channels()) {
            for head in 0..dims.heads {
                row[head * dims.head_size] += 40.0;
                row[dims.channels() + head * dims.head_size] += sign * 40.0;
            }
        }
        Attention { qkv: rounded(&qkv), ..attention }.with_twin_outputs().compare();
    }
}

#[test]
fn scores_whose_exponentials_would_overflow_are_handled() {
    compare_large::<f32>();
    compare_large::<Bf16>();
}

fn hide_the_future<E: Element>() {
    let dims = AttentionDims { batch: 1, time: 130, heads: 1, head_size: 16 };
    let attention = Attention::<E>::random(dims, Dropout::new(0.2, 52));
    let mut other = Attention::<E>::random(dims, attention.dropout);
    other.qkv[100 * 48..].iter_mut().for_each(|value| *value = E::from_f32(1.0 - value.to_f32()));
    on_every_isa(|isa| {
        let mut scratch = used_scratch(dims);
        let (y, lse) = attention.forward(&mut scratch);
        let (other_y, other_lse) = other.forward(&mut scratch);
        assert_same_bits(
            &format!("y before token 100 on {}", isa.name()),
            &other_y[..100 * 16],
            &y[..100 * 16],
        );
        assert_same_bits(&format!("lse before token 100 on {}", isa.name()), &other_lse[..100], &lse[..100]);
        assert!(lse[100..].iter().zip(&other_lse[100..]).all(|(a, b)| a != b), "{}: lse behind", isa.name());
    });
}

#[test]
fn future_tokens_have_no_influence() {
    hide_the_future::<f32>();
    hide_the_future::<Bf16>();
}

fn compare_one_by_one<E: Element>() {
    // As the model does: one sequence per call, with the rows of its mask.
    let dims = AttentionDims { batch: 3, time: 67, heads: 2, head_size: 10 };
    let one = AttentionDims { batch: 1, ..dims };
    let all = Attention::<E>::random(dims, Dropout::new(0.25, 54));
    let (stream, wide, rows) = (67 * 20, 67 * 60, 67 * 2);
    on_every_isa(|isa| {
        let mut scratch = used_scratch(dims);
        let (y, lse) = all.forward(&mut scratch);
        let dqkv = all.backward(&mut scratch);
        for b in 0..dims.batch {
            let part = Attention {
                dims: one,
                dropout: all.dropout.skip_rows(b * rows),
                qkv: all.qkv[b * wide..][..wide].to_vec(),
                dy: all.dy[b * stream..][..stream].to_vec(),
                y: all.y[b * stream..][..stream].to_vec(),
                lse: all.lse[b * rows..][..rows].to_vec(),
            };
            let (part_y, part_lse) = part.forward(&mut scratch);
            assert_same_bits(isa.name(), &part_y, &y[b * stream..][..stream]);
            assert_same_bits(isa.name(), &part_lse, &lse[b * rows..][..rows]);
            assert_same_bits(isa.name(), &part.backward(&mut scratch), &dqkv[b * wide..][..wide]);
        }
    });
}

#[test]
fn sequences_give_the_same_bits_alone_and_in_a_batch() {
    compare_one_by_one::<f32>();
    compare_one_by_one::<Bf16>();
}

/// Compares cached attention, with the tokens divided by `cuts`, with attention over the whole sequence.
fn compare_cached<E: Element>(cuts: impl Fn(usize) -> usize) {
    for sizes in SIZES {
        let dims = AttentionDims { batch: 1, ..even::<E>(sizes) };
        let AttentionDims { time, heads, head_size, .. } = dims;
        let attention = Attention::<E>::random(dims, Dropout::none());
        let width = dims.channels();
        let room = AttentionDims { time: time + 3, ..dims };
        let other = nans::<E>(room.time * 3 * width);
        on_every_isa(|isa| {
            let mut scratch = used_scratch(dims);
            let (want, _) = attention.forward(&mut scratch);
            let mut got = nans::<E>(time * width);
            for h in 0..heads {
                let mut cache = KeyValueCache::new(room);
                let mut run = |y: &mut [E], qkv: &[E], cache: &mut KeyValueCache<E>| {
                    let y = ColumnsMut::new(y, width).split_at(h * head_size).1.split_at(head_size).0;
                    let mut seen = Vec::new();
                    let mut on_weights =
                        |i: usize, row: &[f32]| seen.push((i, row.len(), row.iter().sum::<f32>()));
                    attention_cached(dims, h, y, qkv, cache, &mut scratch, Some(&mut on_weights));
                    seen
                };
                // Fill the cache with another sequence first, which must not affect the result.
                run(&mut nans::<E>(room.time * width), &other, &mut cache);
                cache.clear();
                let mut first = 0;
                while first < time {
                    let next = (first + cuts(first)).min(time);
                    let qkv = &attention.qkv[first * 3 * width..next * 3 * width];
                    let seen = run(&mut got[first * width..next * width], qkv, &mut cache);
                    assert_eq!(seen.len(), next - first);
                    for (i, (place, keys, sum)) in (first..next).zip(seen) {
                        assert_eq!((place, keys), (i, i + 1), "position, and number of weights");
                        // Each quotient is off by 1.5 U; the total, and the sum computed here, by U per term.
                        assert!(f64::from((sum - 1.0).abs()) <= (2 * keys + 2) as f64 * U, "{sum} of {keys}");
                    }
                    first = next;
                }
            }
            assert_same_bits(&format!("{dims:?} {} on {}", format::<E>(), isa.name()), &got, &want);
        });
    }
}

#[test]
fn cached_attention_token_by_token_gives_the_same_bits() {
    compare_cached::<f32>(|_| 1);
    compare_cached::<Bf16>(|_| 1);
}

#[test]
fn cached_attention_in_chunks_gives_the_same_bits() {
    compare_cached::<f32>(|first| [3, 70, 1, 64][first % 4]);
    compare_cached::<Bf16>(|first| [3, 70, 1, 64][first % 4]);
}

#[test]
#[should_panic(expected = "2 tokens after 1 do not fit into a cache of 2")]
fn a_full_cache_panics() {
    let dims = AttentionDims { batch: 1, time: 2, heads: 1, head_size: 2 };
    let (mut cache, mut scratch) = (KeyValueCache::<f32>::new(dims), AttentionScratch::new(dims));
    for tokens in [1, 2] {
        let mut y = vec![0.0; tokens * 2];
        let y = ColumnsMut::new(&mut y, 2);
        attention_cached(dims, 0, y, &vec![0.0; tokens * 6], &mut cache, &mut scratch, None);
    }
}

#[test]
#[should_panic(
    expected = "does not fit into scratch for AttentionDims { batch: 1, time: 3, heads: 1, head_size: 2 }"
)]
fn a_sequence_longer_than_the_scratch_panics() {
    let dims = AttentionDims { batch: 1, time: 4, heads: 1, head_size: 2 };
    let mut scratch = AttentionScratch::<f32>::new(AttentionDims { time: 3, ..dims });
    let (mut y, mut lse) = ([0.0; 8], [0.0; 4]);
    attention::attention_forward(dims, &mut y, &mut lse, &[0.0; 24], Dropout::none(), &mut scratch);
}

/// Scratch for longer sequences and wider heads, filled with NaN.
fn used_scratch<E: Element>(dims: AttentionDims) -> AttentionScratch<E> {
    let (time, head_size) = (dims.time + 67, dims.head_size + 2);
    let dims = AttentionDims { batch: 1, time, heads: 1, head_size };
    let mut scratch = AttentionScratch::new(dims);
    let (qkv, dy) = (nans::<E>(time * 3 * head_size), nans::<E>(time * head_size));
    let (mut y, mut dqkv, mut lse) = (dy.clone(), qkv.clone(), vec![0.0; time]);
    attention::attention_forward(dims, &mut y, &mut lse, &qkv, Dropout::none(), &mut scratch);
    assert!(lse.iter().all(|lse| lse.is_nan()));
    let forward = Forward { y: &y, qkv: &qkv, lse: &lse };
    attention::attention_backward(dims, &mut dqkv, &dy, forward, Dropout::none(), &mut scratch);
    scratch
}

/// Inputs, and the outputs of the twin's forward pass, rounded, for the backward pass.
struct Attention<E> {
    dims: AttentionDims,
    dropout: Dropout,
    qkv: Vec<E>,
    dy: Vec<E>,
    y: Vec<E>,
    lse: Vec<f32>,
}

impl<E: Element> Attention<E> {
    fn random(dims: AttentionDims, dropout: Dropout) -> Self {
        let tokens = dims.batch * dims.time;
        let mut random = Random(53);
        let qkv = random.elements(tokens * 3 * dims.channels(), 2.0);
        let dy = random.elements(tokens * dims.channels(), 1.0);
        Self { dims, dropout, qkv, dy, y: vec![], lse: vec![] }.with_twin_outputs()
    }

    fn with_twin_outputs(mut self) -> Self {
        let (y, lse) = self.twin_forward();
        self.y = y.iter().map(|&y| E::from_f32(y as f32)).collect();
        self.lse = lse.iter().map(|&lse| lse as f32).collect();
        self
    }

    /// Panics unless all outputs equal those of the twin.
    fn compare(&self) {
        let (y, lse) = self.twin_forward();
        let (y_off, lse_off) = self.forward_tolerances(&y, &lse);
        let dqkv = self.twin_backward();
        let dqkv_off = self.backward_tolerances(&dqkv);
        let expected = [
            Expected { name: "y", want: y, tolerance: y_off },
            Expected { name: "lse", want: lse, tolerance: lse_off },
            Expected { name: "dqkv", want: dqkv, tolerance: dqkv_off },
        ];
        check("attention", &(format::<E>(), self.dims, self.dropout), &expected, || {
            let mut scratch = used_scratch(self.dims);
            let (y, lse) = self.forward(&mut scratch);
            vec![as_f32(&y), lse, as_f32(&self.backward(&mut scratch))]
        });
    }

    /// `y` and `lse`.
    fn forward(&self, scratch: &mut AttentionScratch<E>) -> (Vec<E>, Vec<f32>) {
        let Self { dims, dropout, qkv, .. } = self;
        let (mut y, mut lse) = (nans(self.y.len()), vec![f32::NAN; self.lse.len()]);
        attention::attention_forward(*dims, &mut y, &mut lse, qkv, *dropout, scratch);
        (y, lse)
    }

    /// `dqkv`.
    fn backward(&self, scratch: &mut AttentionScratch<E>) -> Vec<E> {
        let Self { dims, dropout, qkv, dy, y, lse } = self;
        let mut dqkv = nans(qkv.len());
        attention::attention_backward(*dims, &mut dqkv, dy, Forward { y, qkv, lse }, *dropout, scratch);
        dqkv
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
    /// - A score: `s = (D + 4) sum|q k| / sqrt(D)`. The dot product has D + 1 roundings, the scale factor 2, and the
    ///   product of the maximum score with it one.
    /// - An exponential: s twice (score and maximum), the rounding of their difference, at most `range`, and its own.
    /// - lse: s, plus the error of an exponential without its score, and the additions of the sum; then the logarithm,
    ///   of at most n, and the last addition.
    /// - A weight: the error of an exponential, and the product with the factor of the mask; then it is stored. Its
    ///   product with v has n + 1 roundings. The sum is divided by the sum of exponentials, with its additions, a
    ///   reciprocal and a product; then it is stored.
    ///
    /// `exp` is constant below e^-87, and subnormal numbers may be flushed to zero.
    fn forward_tolerances(&self, y: &[f64], lse: &[f64]) -> (Vec<f64>, Vec<f64>) {
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
            let depth = sum_depth(i + 1);
            lse_off[row] = U * (score_off + exp_off + depth + LN_ROUNDINGS * n.ln() + lse[row].abs());
            let weight_off = U * (2.0 * score_off + exp_off + 1.0);
            let sum_off = U * (2.0 * score_off + exp_off + depth + 2.0 + n + 1.0);
            for (j, score) in scores.iter().enumerate() {
                let weight = self.factor(row, j) * (score.value - lse[row]).exp();
                let off = stored::<E>(weight, weight * weight_off) + weight * sum_off + 4.0 * TINY;
                for d in 0..head_size {
                    y_off[self.y_index(b, h, i, d)] += off * self.qkv_at(2, b, h, j, d).abs();
                }
            }
        }
        for (off, y) in y_off.iter_mut().zip(y) {
            *off = stored::<E>(*y, *off);
        }
        (y_off, lse_off)
    }

    /// `y` and `lse` are given. In units of U:
    ///
    /// - `P = exp(s - lse)`: the errors of the score, of the difference, and its own.
    /// - `ds = P (f dy.v - dy.y) / sqrt(D)`: the error of P, D + 1 roundings of the dot products, and 6 more: f, the
    ///   difference, and two factors, the second with 2 of its own.
    /// - `f P` and `ds` are stored. The sums for dq, dk and dv add at most T + 1, and f adds one. Then they are stored.
    fn backward_tolerances(&self, dqkv: &[f64]) -> Vec<f64> {
        let AttentionDims { batch, time, heads, head_size } = self.dims;
        let scale = 1.0 / (head_size as f64).sqrt();
        let mut off = vec![0.0; self.qkv.len()];
        let dy = |b, h, i, d| f64::from(self.dy[self.y_index(b, h, i, d)].to_f32());
        let y = |b, h, i, d| f64::from(self.y[self.y_index(b, h, i, d)].to_f32());
        for (b, h, i) in indices(&[batch, heads, time]) {
            let row = (b * heads + h) * time + i;
            let lse = f64::from(self.lse[row]);
            let mean = (0..head_size).map(|d| dy(b, h, i, d) * y(b, h, i, d));
            let (mean, mean_size) = (mean.clone().sum::<f64>(), mean.map(f64::abs).sum::<f64>());
            for j in 0..=i {
                let score = self.score(b, h, i, j);
                let p = (score.value - lse).exp();
                let f = self.factor(row, j);
                let p_off = score.off + (score.value - lse).abs() + EXP_ROUNDINGS;
                let element_off = U * (p_off + (head_size + 7) as f64);
                let sum_off = U * (time + 2) as f64;
                let dp = (0..head_size).map(|d| dy(b, h, i, d) * self.qkv_at(2, b, h, j, d));
                let (dp, dp_size) = (dp.clone().sum::<f64>(), dp.map(f64::abs).sum::<f64>());
                let (ds, ds_size) = (p * scale * (f * dp - mean), p * scale * (f * dp_size + mean_size));
                let ds_off = stored::<E>(ds, element_off * ds_size) + sum_off * ds_size + 4.0 * TINY;
                let weight = f * p;
                let weight_off = stored::<E>(weight, element_off * weight) + sum_off * weight + 4.0 * TINY;
                for d in 0..head_size {
                    off[self.qkv_index(0, b, h, i, d)] += ds_off * self.qkv_at(1, b, h, j, d).abs();
                    off[self.qkv_index(1, b, h, j, d)] += ds_off * self.qkv_at(0, b, h, i, d).abs();
                    off[self.qkv_index(2, b, h, j, d)] += weight_off * dy(b, h, i, d).abs();
                }
            }
        }
        off.iter().zip(dqkv).map(|(off, dqkv)| stored::<E>(*dqkv, *off)).collect()
    }

    fn score(&self, b: usize, h: usize, i: usize, j: usize) -> Score {
        let head_size = self.dims.head_size;
        let scale = 1.0 / (head_size as f64).sqrt();
        let terms = (0..head_size).map(|d| self.qkv_at(0, b, h, i, d) * self.qkv_at(1, b, h, j, d));
        let size: f64 = terms.clone().map(f64::abs).sum();
        Score { value: scale * terms.sum::<f64>(), off: (head_size + 4) as f64 * scale * size }
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
        f64::from(self.qkv[self.qkv_index(which, b, h, t, d)].to_f32())
    }

    fn y_index(&self, b: usize, h: usize, t: usize, d: usize) -> usize {
        let AttentionDims { time, head_size, .. } = self.dims;
        (b * time + t) * self.dims.channels() + h * head_size + d
    }
}

/// A scaled score, and its error in units of U.
struct Score {
    value: f64,
    off: f64,
}

/// All indices of an array of three dimensions.
fn indices(shape: &[usize; 3]) -> impl Iterator<Item = (usize, usize, usize)> {
    let [first, second, third] = *shape;
    (0..first * second * third).map(move |i| (i / third / second, i / third % second, i % third))
}
