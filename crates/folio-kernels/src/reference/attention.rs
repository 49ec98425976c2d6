//! Causal self-attention of H heads, with dropout on the weights.

use super::dropout::factor;
use super::numeric::{dot, expect_len, real};
use crate::dims::AttentionDims;
use crate::dropout::Dropout;
use num_traits::{Float, NumAssign};

/// The indices of queries, keys and values among the three blocks of C channels of a row of `qkv`.
const Q: usize = 0;
const K: usize = 1;
const V: usize = 2;

/// For each sequence and head, over the positions `j <= i` that position `i` attends to:
///
/// ```text
/// s_ij = q_i . k_j / sqrt(D),  P_ij = exp(s_ij) / sum_j exp(s_ij),  y_i = sum_j f_ij P_ij v_j
/// ```
///
/// `f` is the factor of the dropout mask in row `(b * H + h) * T + i` and column `j`. The maximum of the scores is
/// subtracted before the exponential, which does not change `P` and prevents overflow.
///
/// Source: Vaswani et al. 2017, "Attention Is All You Need"; PyTorch,
/// `torch.nn.functional.scaled_dot_product_attention` with `is_causal`.
/// - `y` (B, T, C), the heads side by side: overwritten.
/// - `lse` (B, H, T), `log(sum_j exp(s_ij))`: overwritten.
/// - `qkv` (B, T, 3C): queries, keys and values side by side, each with its heads side by side.
pub fn attention_forward<F: Float + NumAssign>(
    dims: AttentionDims,
    y: &mut [F],
    lse: &mut [F],
    qkv: &[F],
    dropout: Dropout,
) {
    let AttentionDims { batch, time, heads, head_size } = dims;
    expect_len("y", y, &[batch, time, dims.channels()]);
    expect_len("lse", lse, &[batch, heads, time]);
    expect_len("qkv", qkv, &[batch, time, 3, dims.channels()]);
    let scale = score_scale::<F>(dims);
    let mut weights = vec![F::zero(); time];
    for b in 0..batch {
        for h in 0..heads {
            let part = |which, t| &qkv[qkv_start(dims, which, b, t, h)..][..head_size];
            for i in 0..time {
                let mut max = F::neg_infinity();
                for j in 0..=i {
                    weights[j] = scale * dot(part(Q, i), part(K, j));
                    max = max.max(weights[j]);
                }
                let mut sum = F::zero();
                for j in 0..=i {
                    weights[j] = (weights[j] - max).exp();
                    sum += weights[j];
                }
                let row = (b * heads + h) * time + i;
                lse[row] = max + sum.ln();
                let mask = dropout.row(row);
                let y_i = &mut y[y_start(dims, b, i, h)..][..head_size];
                y_i.fill(F::zero());
                for j in 0..=i {
                    let weight = factor::<F>(mask, j) * weights[j] / sum;
                    for d in 0..head_size {
                        y_i[d] += weight * part(V, j)[d];
                    }
                }
            }
        }
    }
}

/// With `P_ij = exp(s_ij - lse_i)` recomputed, over `j <= i`: math.md (24) to (29).
///
/// ```text
/// dv_j = sum_i f_ij P_ij dy_i,  dP_ij = f_ij dy_i . v_j,  ds_ij = P_ij (dP_ij - D_i)
/// dq_i = sum_j ds_ij k_j / sqrt(D),  dk_j = sum_i ds_ij q_i / sqrt(D)
/// ```
///
/// `D_i = sum_j P_ij dP_ij` comes from the normalizer of the softmax. Because `dP` includes the mask,
/// `D_i = sum_j P_ij f_ij dy_i . v_j = dy_i . sum_j f_ij P_ij v_j = dy_i . y_i`: one dot product, with or without
/// dropout (Dao et al. 2022, "FlashAttention").
///
/// Differentiates `y_i[d] += weight * part(V, j)[d]`, `weight = factor(mask, j) * weights[j] / sum`,
/// `weights[j] = (weights[j] - max).exp()` and `weights[j] = scale * dot(part(Q, i), part(K, j))`.
/// - `dqkv` (B, T, 3C): overwritten.
/// - `dy` (B, T, C); `y` (B, T, C) and `lse` (B, H, T) from the forward pass; `qkv` (B, T, 3C).
pub fn attention_backward<F: Float + NumAssign>(
    dims: AttentionDims,
    dqkv: &mut [F],
    dy: &[F],
    y: &[F],
    qkv: &[F],
    lse: &[F],
    dropout: Dropout,
) {
    let AttentionDims { batch, time, heads, head_size } = dims;
    expect_len("dqkv", dqkv, &[batch, time, 3, dims.channels()]);
    expect_len("dy", dy, &[batch, time, dims.channels()]);
    expect_len("y", y, &[batch, time, dims.channels()]);
    expect_len("qkv", qkv, &[batch, time, 3, dims.channels()]);
    expect_len("lse", lse, &[batch, heads, time]);
    let scale = score_scale::<F>(dims);
    dqkv.fill(F::zero());
    for b in 0..batch {
        for h in 0..heads {
            let start = |which, t| qkv_start(dims, which, b, t, h);
            let part = |which, t| &qkv[start(which, t)..][..head_size];
            for i in 0..time {
                let row = (b * heads + h) * time + i;
                let mask = dropout.row(row);
                let dy_i = &dy[y_start(dims, b, i, h)..][..head_size];
                let d_i = dot(dy_i, &y[y_start(dims, b, i, h)..][..head_size]);
                for j in 0..=i {
                    let p_ij = (scale * dot(part(Q, i), part(K, j)) - lse[row]).exp();
                    let f_ij = factor::<F>(mask, j);
                    let dp_ij = f_ij * dot(dy_i, part(V, j));
                    let ds_ij = p_ij * (dp_ij - d_i);
                    for d in 0..head_size {
                        dqkv[start(V, j) + d] += f_ij * p_ij * dy_i[d];
                        dqkv[start(Q, i) + d] += scale * ds_ij * part(K, j)[d];
                        dqkv[start(K, j) + d] += scale * ds_ij * part(Q, i)[d];
                    }
                }
            }
        }
    }
}

/// `1 / sqrt(D)`.
fn score_scale<F: Float>(dims: AttentionDims) -> F {
    real::<F>(dims.head_size as f64).sqrt().recip()
}

/// The index of the first of the D channels of head `h` of token (b, t) in the queries, keys or values of `qkv` (B, T,
/// 3C).
fn qkv_start(dims: AttentionDims, which: usize, b: usize, t: usize, h: usize) -> usize {
    ((b * dims.time + t) * 3 + which) * dims.channels() + h * dims.head_size
}

/// The index of the first of the D channels of head `h` of token (b, t) in `y` (B, T, C).
fn y_start(dims: AttentionDims, b: usize, t: usize, h: usize) -> usize {
    (b * dims.time + t) * dims.channels() + h * dims.head_size
}
