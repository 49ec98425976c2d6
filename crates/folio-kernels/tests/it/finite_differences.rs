//! Every backward function of `reference` against central differences of its forward function, in f64.
//!
//! A case creates random inputs and a random gradient `dy` of the outputs, runs the backward function once, and checks
//! the gradient of each argument. With `dy` fixed, the loss is `L = sum_k dy_k y_k`, and the gradient of an element `x`
//! must be the derivative of `L` with respect to `x`.

use crate::support::{Random, transposed};
use folio_kernels::{
    dims::{AttentionDims, EmbeddingDims, LinearDims, RowDims},
    dropout::Dropout,
    gelu::Gelu,
    reference,
};
use std::fmt::Debug;

/// An upper bound for the roundings in one output: no case sums more than 21 products.
const OPERATIONS: f64 = 64.0;

/// The initial value of gradients that are accumulated into; `added` subtracts it again. Those that are overwritten
/// start as NaN.
const BEFORE: f64 = 0.5;

#[test]
fn linear_backward() {
    linear(LinearDims { rows: 1, inputs: 1, outputs: 1 });
    linear(LinearDims { rows: 1, inputs: 5, outputs: 3 });
    linear(LinearDims { rows: 7, inputs: 1, outputs: 4 });
    linear(LinearDims { rows: 4, inputs: 6, outputs: 1 });
    linear(LinearDims { rows: 6, inputs: 7, outputs: 9 });
}

#[test]
fn embedding_backward() {
    embedding(EmbeddingDims { batch: 1, time: 1, channels: 1, vocab: 1 });
    embedding(EmbeddingDims { batch: 1, time: 5, channels: 3, vocab: 4 });
    embedding(EmbeddingDims { batch: 3, time: 1, channels: 2, vocab: 7 });
    embedding(EmbeddingDims { batch: 3, time: 4, channels: 5, vocab: 3 });
}

#[test]
fn layernorm_backward() {
    layernorm(RowDims { rows: 1, cols: 1 });
    layernorm(RowDims { rows: 1, cols: 2 });
    layernorm(RowDims { rows: 1, cols: 7 });
    layernorm(RowDims { rows: 5, cols: 3 });
    layernorm(RowDims { rows: 4, cols: 16 });
}

#[test]
fn gelu_backward() {
    for form in [Gelu::Tanh, Gelu::Erf] {
        gelu(form, 1, 1.0);
        gelu(form, 33, 1.0);
        gelu(form, 33, 6.0);
    }
}

#[test]
fn dropout_backward() {
    for dropout in [Dropout::none(), Dropout::new(0.3, 11)] {
        dropout_and_residual(RowDims { rows: 1, cols: 1 }, dropout);
        dropout_and_residual(RowDims { rows: 1, cols: 9 }, dropout);
        dropout_and_residual(RowDims { rows: 5, cols: 7 }, dropout);
    }
}

#[test]
fn attention_backward() {
    for dropout in [Dropout::none(), Dropout::new(0.3, 11)] {
        attention(AttentionDims { batch: 1, time: 1, heads: 1, head_size: 1 }, dropout);
        attention(AttentionDims { batch: 1, time: 7, heads: 1, head_size: 4 }, dropout);
        attention(AttentionDims { batch: 3, time: 1, heads: 2, head_size: 3 }, dropout);
        attention(AttentionDims { batch: 1, time: 4, heads: 3, head_size: 1 }, dropout);
        attention(AttentionDims { batch: 2, time: 5, heads: 3, head_size: 5 }, dropout);
    }
}

#[test]
fn cross_entropy_backward() {
    cross_entropy(RowDims { rows: 1, cols: 1 });
    cross_entropy(RowDims { rows: 1, cols: 7 });
    cross_entropy(RowDims { rows: 6, cols: 2 });
    cross_entropy(RowDims { rows: 5, cols: 21 });
    smoothed_cross_entropy(RowDims { rows: 1, cols: 1 });
    smoothed_cross_entropy(RowDims { rows: 5, cols: 21 });
    soft_cross_entropy(RowDims { rows: 1, cols: 1 });
    soft_cross_entropy(RowDims { rows: 5, cols: 21 });
}

#[test]
fn tied_head_backward() {
    tied_head(EmbeddingDims { batch: 1, time: 1, channels: 1, vocab: 2 });
    tied_head(EmbeddingDims { batch: 1, time: 5, channels: 3, vocab: 4 });
    tied_head(EmbeddingDims { batch: 2, time: 3, channels: 4, vocab: 7 });
}

fn linear(dims: LinearDims) {
    let LinearDims { rows, inputs, outputs } = dims;
    let mut random = Random(1);
    let (x, w) = (random.values(rows * inputs), random.values(inputs * outputs));
    let (bias, dy) = (random.values(outputs), random.values(rows * outputs));

    let mut dx = vec![f64::NAN; x.len()];
    reference::linear_backward_input(dims, &mut dx, &dy, &w);
    let (mut dw, mut dbias) = (vec![BEFORE; w.len()], vec![BEFORE; outputs]);
    reference::linear_backward_parameters(dims, &mut dw, Some(&mut dbias), &dy, &x);
    let mut dw_alone = vec![BEFORE; w.len()];
    reference::linear_backward_parameters(dims, &mut dw_alone, None, &dy, &x);

    let forward = |x: &[f64], w: &[f64], bias: Option<&[f64]>| {
        let mut y = vec![f64::NAN; dy.len()];
        reference::linear_forward(dims, &mut y, x, w, bias);
        y
    };
    let case = Case { op: "linear", shape: &dims, dy: &dy };
    case.check("x", &x, &dx, |x| forward(x, &w, Some(&bias)));
    case.check("w", &w, &added(dw), |w| forward(&x, w, Some(&bias)));
    case.check("bias", &bias, &added(dbias), |bias| forward(&x, &w, Some(bias)));
    let case = Case { op: "linear without bias", ..case };
    case.check("x", &x, &dx, |x| forward(x, &w, None));
    case.check("w", &w, &added(dw_alone), |w| forward(&x, w, None));
}

fn embedding(dims: EmbeddingDims) {
    let EmbeddingDims { batch, time, channels, vocab } = dims;
    let mut random = Random(2);
    let wte = random.values(vocab * channels);
    // Two more positions than the sequence has; their gradient is zero.
    let wpe = random.values((time + 2) * channels);
    let tokens = random.tokens(batch * time, vocab);
    let dy = random.values(batch * time * channels);

    let (mut dwte, mut dwpe) = (vec![BEFORE; wte.len()], vec![BEFORE; wpe.len()]);
    reference::embedding_backward(dims, &mut dwte, &mut dwpe, &dy, &tokens);

    let forward = |wte: &[f64], wpe: &[f64]| {
        let mut y = vec![f64::NAN; dy.len()];
        reference::embedding_forward(dims, &mut y, wte, wpe, &tokens);
        y
    };
    let case = Case { op: "embedding", shape: &dims, dy: &dy };
    case.check("wte", &wte, &added(dwte), |wte| forward(wte, &wpe));
    case.check("wpe", &wpe, &added(dwpe), |wpe| forward(&wte, wpe));
}

fn layernorm(dims: RowDims) {
    let RowDims { rows, cols } = dims;
    let mut random = Random(3);
    let (x, dy) = (random.values(rows * cols), random.values(rows * cols));
    let (weight, bias) = (random.values(cols), random.values(cols));

    let forward = |x: &[f64], weight: &[f64], bias: &[f64]| {
        let (mut y, mut mean, mut rstd) =
            (vec![f64::NAN; dy.len()], vec![f64::NAN; rows], vec![f64::NAN; rows]);
        reference::layernorm_forward(dims, 1e-5, &mut y, &mut mean, &mut rstd, x, weight, bias);
        (y, mean, rstd)
    };
    let (_, mean, rstd) = forward(&x, &weight, &bias);
    let (mut dx, mut dweight, mut dbias) = (vec![BEFORE; x.len()], vec![BEFORE; cols], vec![BEFORE; cols]);
    reference::layernorm_backward(dims, &mut dx, &mut dweight, &mut dbias, &dy, &x, &mean, &rstd, &weight);

    let case = Case { op: "layernorm", shape: &dims, dy: &dy };
    case.check("x", &x, &added(dx), |x| forward(x, &weight, &bias).0);
    case.check("weight", &weight, &added(dweight), |weight| forward(&x, weight, &bias).0);
    case.check("bias", &bias, &added(dbias), |bias| forward(&x, &weight, bias).0);
}

/// `reach` is the maximum size of the inputs: GELU is curved near zero and straight beyond about 4.
fn gelu(form: Gelu, len: usize, reach: f64) {
    let mut random = Random(4);
    let x: Vec<f64> = random.values(len).iter().map(|x| reach * x).collect();
    let dy = random.values(len);

    let mut dx = vec![f64::NAN; len];
    reference::gelu_backward(form, &mut dx, &dy, &x);

    let case = Case { op: "gelu", shape: &(form, len, reach), dy: &dy };
    case.check("x", &x, &dx, |x| {
        let mut y = vec![f64::NAN; len];
        reference::gelu_forward(form, &mut y, x);
        y
    });
}

fn dropout_and_residual(dims: RowDims, dropout: Dropout) {
    let mut random = Random(5);
    let len = dims.rows * dims.cols;
    let (residual, branch, dy) = (random.values(len), random.values(len), random.values(len));

    let mut dbranch = vec![f64::NAN; len];
    reference::dropout_backward(dims, &mut dbranch, &dy, dropout);

    let case = Case { op: "dropout", shape: &(dims, dropout), dy: &dy };
    case.check("x", &branch, &dbranch, |x| {
        let mut y = vec![f64::NAN; len];
        reference::dropout_forward(dims, &mut y, x, dropout);
        y
    });
    let forward = |residual: &[f64], branch: &[f64]| {
        let mut y = vec![f64::NAN; len];
        reference::dropout_residual_forward(dims, &mut y, residual, branch, dropout);
        y
    };
    let case = Case { op: "dropout_residual", ..case };
    case.check("residual", &residual, &dy, |residual| forward(residual, &branch));
    case.check("branch", &branch, &dbranch, |branch| forward(&residual, branch));
}

fn attention(dims: AttentionDims, dropout: Dropout) {
    let mut random = Random(6);
    let rows = dims.batch * dims.time;
    let (qkv, dy) = (random.values(rows * 3 * dims.channels()), random.values(rows * dims.channels()));

    let forward = |qkv: &[f64]| {
        let (mut y, mut lse) = (vec![f64::NAN; dy.len()], vec![f64::NAN; rows * dims.heads]);
        reference::attention_forward(dims, &mut y, &mut lse, qkv, dropout);
        (y, lse)
    };
    let (y, lse) = forward(&qkv);
    let mut dqkv = vec![f64::NAN; qkv.len()];
    reference::attention_backward(dims, &mut dqkv, &dy, &y, &qkv, &lse, dropout);

    let case = Case { op: "attention", shape: &(dims, dropout), dy: &dy };
    case.check("qkv", &qkv, &dqkv, |qkv| forward(qkv).0);
}

fn cross_entropy(dims: RowDims) {
    let RowDims { rows, cols } = dims;
    let mut random = Random(7);
    let logits: Vec<f64> = random.values(rows * cols).iter().map(|z| 3.0 * z).collect();
    let targets = random.tokens(rows, cols);
    let scale = 1.0 / rows as f64;

    let (mut dlogits, mut losses) = (logits.clone(), vec![f64::NAN; rows]);
    reference::cross_entropy(dims, &mut dlogits, &mut losses, &targets, scale, 0.0);

    let forward = |logits: &[f64]| {
        let mut losses = vec![f64::NAN; rows];
        reference::cross_entropy_loss(dims, &mut losses, logits, &targets);
        losses
    };
    assert_eq!(
        losses,
        forward(&logits),
        "cross_entropy {dims:?}: losses with and without the gradient differ"
    );
    let case = Case { op: "cross_entropy", shape: &dims, dy: &vec![scale; rows] };
    case.check("logits", &logits, &dlogits, forward);
}

/// With label smoothing s, the loss is `1 - s` times the loss of the target and `s` times the mean loss over all tokens as
/// targets.
fn smoothed_cross_entropy(dims: RowDims) {
    const SMOOTHING: f64 = 0.3;
    let RowDims { rows, cols } = dims;
    let mut random = Random(9);
    let logits: Vec<f64> = random.values(rows * cols).iter().map(|z| 3.0 * z).collect();
    let targets = random.tokens(rows, cols);
    let scale = 1.0 / rows as f64;
    let (mut dlogits, mut losses) = (logits.clone(), vec![f64::NAN; rows]);
    reference::cross_entropy(dims, &mut dlogits, &mut losses, &targets, scale, SMOOTHING);

    let losses_of = |logits: &[f64], targets: &[u32]| {
        let mut losses = vec![f64::NAN; rows];
        reference::cross_entropy_loss(dims, &mut losses, logits, targets);
        losses
    };
    assert_eq!(losses, losses_of(&logits, &targets), "the reported losses are not smoothed");
    let forward = |logits: &[f64]| {
        let mut smoothed: Vec<f64> =
            losses_of(logits, &targets).iter().map(|loss| (1.0 - SMOOTHING) * loss).collect();
        for token in 0..cols as u32 {
            let losses = losses_of(logits, &vec![token; rows]);
            smoothed.iter_mut().zip(losses).for_each(|(sum, loss)| *sum += SMOOTHING / cols as f64 * loss);
        }
        smoothed
    };
    let case = Case { op: "smoothed cross_entropy", shape: &dims, dy: &vec![scale; rows] };
    case.check("logits", &logits, &dlogits, forward);
}

/// Distributions as targets. With all of the probability on one token, the loss and the gradient are those of a target.
fn soft_cross_entropy(dims: RowDims) {
    let RowDims { rows, cols } = dims;
    let mut random = Random(10);
    let logits: Vec<f64> = random.values(rows * cols).iter().map(|z| 3.0 * z).collect();
    let mut distributions: Vec<f64> = random.values(rows * cols).iter().map(|x| x + 1.01).collect();
    for row in distributions.chunks_exact_mut(cols) {
        let sum: f64 = row.iter().sum();
        row.iter_mut().for_each(|q| *q /= sum);
    }
    let scale = 1.0 / rows as f64;
    let run = |logits: &[f64], distributions: &[f64]| {
        let (mut dlogits, mut losses) = (logits.to_vec(), vec![f64::NAN; rows]);
        reference::soft_cross_entropy(dims, &mut dlogits, &mut losses, distributions, scale);
        (dlogits, losses)
    };
    let case = Case { op: "soft cross_entropy", shape: &dims, dy: &vec![scale; rows] };
    let dlogits = run(&logits, &distributions).0;
    case.check("logits", &logits, &dlogits, |logits| run(logits, &distributions).1);

    let targets = random.tokens(rows, cols);
    let (mut one_hot, mut want) = (vec![0.0; rows * cols], (logits.clone(), vec![f64::NAN; rows]));
    targets.iter().enumerate().for_each(|(row, &target)| one_hot[row * cols + target as usize] = 1.0);
    reference::cross_entropy(dims, &mut want.0, &mut want.1, &targets, scale, 0.0);
    let (dlogits, losses) = run(&logits, &one_hot);
    // Numbers of at most 10, computed by one operation more or less.
    let is_near = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 20.0 * f64::EPSILON);
    assert!(is_near(&dlogits, &want.0) && is_near(&losses, &want.1), "{dims:?}: one target");
}

/// The smallest model with tied weights: the embedding, and its transpose as the head. The gradient of `wte` is the sum
/// of both contributions.
fn tied_head(dims: EmbeddingDims) {
    let EmbeddingDims { batch, time, channels, vocab } = dims;
    let rows = batch * time;
    let head = LinearDims { rows, inputs: channels, outputs: vocab };
    let loss = RowDims { rows, cols: vocab };
    let mut random = Random(8);
    let (wte, wpe) = (random.values(vocab * channels), random.values(time * channels));
    let (tokens, targets) = (random.tokens(rows, vocab), random.tokens(rows, vocab));
    let scale = 1.0 / rows as f64;

    let forward = |wte: &[f64]| {
        let (mut x, mut logits) = (vec![f64::NAN; rows * channels], vec![f64::NAN; rows * vocab]);
        reference::embedding_forward(dims, &mut x, wte, &wpe, &tokens);
        reference::linear_forward(head, &mut logits, &x, &transposed(wte, vocab, channels), None);
        (x, logits)
    };
    let (x, mut dlogits) = forward(&wte);
    let mut losses = vec![f64::NAN; rows];
    reference::cross_entropy(loss, &mut dlogits, &mut losses, &targets, scale, 0.0);
    let mut dx = vec![f64::NAN; x.len()];
    reference::linear_backward_input(head, &mut dx, &dlogits, &transposed(&wte, vocab, channels));
    let mut dhead = vec![BEFORE; wte.len()];
    reference::linear_backward_parameters(head, &mut dhead, None, &dlogits, &x);
    let mut dwte = transposed(&dhead, channels, vocab);
    reference::embedding_backward(dims, &mut dwte, &mut vec![0.0; wpe.len()], &dx, &tokens);

    let case = Case { op: "tied head", shape: &dims, dy: &vec![scale; rows] };
    case.check("wte", &wte, &added(dwte), |wte| {
        let mut losses = vec![f64::NAN; rows];
        reference::cross_entropy_loss(loss, &mut losses, &forward(wte).1, &targets);
        losses
    });
}

/// One operation at one shape, with the gradient of its outputs.
struct Case<'a> {
    op: &'a str,
    shape: &'a dyn Debug,
    dy: &'a [f64],
}

/// The difference between one element of a gradient and the difference quotient.
struct Mismatch {
    index: usize,
    got: f64,
    want: f64,
    tolerance: f64,
    /// The error divided by the tolerance.
    excess: f64,
}

impl Case<'_> {
    /// Compares `got`, the gradient of the argument `name` with the value `x`, with the central difference
    /// `D(h) = (L(x + h) - L(x - h)) / 2h` at each element.
    ///
    /// The tolerance is the sum of three errors:
    /// - Truncation. By Taylor's theorem `D(h) = L' + h^2 L'''/6 + O(h^4)`, so `D(2h) - D(h)` is `3 h^2 L'''/6`, and a
    ///   third of it is the truncation of `D(h)`. It is measured on the forward function alone.
    /// - Rounding of the forward function. At most `OPERATIONS` roundings, each of eps/2 relative to values of about
    ///   `max(1, |y_k|)`, change `y_k` by `OPERATIONS eps/2 max(1, |y_k|)`. Two such errors divided by `2h` are
    ///   `OPERATIONS eps/2 / h sum_k |dy_k| max(1, |y_k|)`. The difference is computed per output before the sum, so
    ///   outputs that do not depend on `x` contribute nothing.
    /// - Rounding of the backward function: `OPERATIONS eps/2 sum_k |dy_k|`, five orders of magnitude less.
    ///
    /// The first grows with `h^2`, the second with `eps / h`. With `h = eps^(1/3)`, times the size of `x` if that is
    /// above one, both are of the order `eps^(2/3) = 4e-11`.
    fn check(&self, name: &str, x: &[f64], got: &[f64], forward: impl Fn(&[f64]) -> Vec<f64>) {
        let Case { op, shape, dy } = self;
        assert_eq!(got.len(), x.len(), "{op} {shape:?}: length of the gradient of {name}");
        let roundings = OPERATIONS * f64::EPSILON / 2.0;
        let dy_size: f64 = dy.iter().map(|dy| dy.abs()).sum();
        let mut worst = Mismatch { index: 0, got: 0.0, want: 0.0, tolerance: 0.0, excess: 0.0 };
        for index in 0..x.len() {
            let h = f64::EPSILON.cbrt() * x[index].abs().max(1.0);
            let (want, size) = central_difference(x, index, h, dy, &forward);
            let (want_wide, _) = central_difference(x, index, 2.0 * h, dy, &forward);
            let truncation = (want_wide - want).abs() / 3.0;
            let tolerance = truncation + roundings / h * size + roundings * dy_size;
            let error = (got[index] - want).abs();
            let excess = if error == 0.0 { 0.0 } else { error / tolerance };
            let excess = if excess.is_nan() { f64::INFINITY } else { excess };
            if excess > worst.excess {
                worst = Mismatch { index, got: got[index], want, tolerance, excess };
            }
        }
        let Mismatch { index, got, want, tolerance, excess } = worst;
        assert!(
            excess <= 1.0,
            "{op}, gradient of {name}, {shape:?}: worst at index {index}: got {got}, want {want}, \
             tolerance {tolerance:e}, exceeded {excess:.1} times"
        );
    }
}

/// The central difference of `sum_k dy_k y_k` with respect to `x[index]`, and `sum_k |dy_k| max(1, |y_k|)` over the
/// outputs that changed.
fn central_difference(
    x: &[f64],
    index: usize,
    h: f64,
    dy: &[f64],
    forward: impl Fn(&[f64]) -> Vec<f64>,
) -> (f64, f64) {
    let mut moved = x.to_vec();
    moved[index] = x[index] + h;
    let (x_above, y_above) = (moved[index], forward(&moved));
    moved[index] = x[index] - h;
    let (x_below, y_below) = (moved[index], forward(&moved));
    let (mut change, mut size) = (0.0, 0.0);
    for (k, &dy_k) in dy.iter().enumerate() {
        if y_above[k] != y_below[k] {
            change += dy_k * (y_above[k] - y_below[k]);
            size += dy_k.abs() * y_above[k].abs().max(1.0);
        }
    }
    // Both ends are rounded, so the step is their difference, not exactly 2h.
    (change / (x_above - x_below), size)
}

/// The part of a gradient that a backward function added to `BEFORE`.
fn added(gradient: Vec<f64>) -> Vec<f64> {
    gradient.iter().map(|value| value - BEFORE).collect()
}
