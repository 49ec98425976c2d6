//! The embedding of a control token that the model never generates.

use crate::export::WeightType;

/// How far the control token's logit is below the mean of all logits, in nats.
const GAP: f64 = 30.0;

/// A row (C) for a token whose logit is never the highest, for the head (V, C) after the final LayerNorm with this weight and
/// bias, (C) each; and the type for head and row, `weight_type` or a more precise one.
///
/// The mean of all rows has the mean of all logits, which is never above the highest. LayerNorm allows more. Its output is
/// h = w n + b, where the elements of n sum to zero. The row a / w has the logit
///
/// sum((a / w) (w n + b)) = a sum(n) + a sum(b / w) = a sum(b / w),
///
/// which is the same for all n. So mean + a / w with a = -GAP / sum(b / w) is GAP below the mean logit, if rounding leaves
/// it there. Without biases the sum is 0, and with a weight of 0 the row does not exist; then it is the mean alone: its probability is at most 1 / (V + 1) by Jensen's
/// inequality.
pub(super) fn control_row(
    head: &[f32],
    weight: &[f32],
    bias: &[f32],
    weight_type: WeightType,
) -> (Vec<f32>, WeightType) {
    let channels = weight.len();
    let mut mean = vec![0_f64; channels];
    for row in head.chunks_exact(channels) {
        mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    let rows = (head.len() / channels) as f64;
    mean.iter_mut().for_each(|sum| *sum /= rows);

    let inverse: Vec<f64> = weight.iter().map(|&weight| 1.0 / f64::from(weight)).collect();
    let sum: f64 = inverse.iter().zip(bias).map(|(inverse, bias)| inverse * f64::from(*bias)).sum();
    let shift: Vec<f64> = inverse.iter().map(|inverse| -GAP / sum * inverse).collect();
    let types = [weight_type, WeightType::F16, WeightType::F32];
    let clear = types.into_iter().find(|&weight_type| is_clear(&shift, sum, weight_type));
    if clear.is_some() {
        mean.iter_mut().zip(&shift).for_each(|(value, shift)| *value += shift);
    }
    (mean.iter().map(|&value| value as f32).collect(), clear.unwrap_or(weight_type))
}

/// Whether the gap is four times what rounding in this type can make of it.
///
/// llama.cpp rounds activations like weights. The error of a product relative to |a n| is 2^-10 for f16, 2^-7 for bf16, and
/// about 2^-6 for q8_0, whose step is 1/127 of the largest of 32 numbers. Sums in f32 stay below 2^-20. The C errors add up
/// like sqrt(C), since n has the root mean square 1.
fn is_clear(shift: &[f64], sum: f64, weight_type: WeightType) -> bool {
    let sizes = || shift.iter().map(|value| value.abs());
    let (least, most) = (sizes().fold(f64::INFINITY, f64::min), sizes().fold(0.0, f64::max));
    let (roundoff, is_held) = match weight_type {
        WeightType::F32 => (2_f64.powi(-20), most < 1e30),
        WeightType::F16 => (2_f64.powi(-10), most < 6e4),
        WeightType::Bf16 => (2_f64.powi(-7), most < 1e30),
        // Blocks share a step.
        WeightType::Q8_0 => (2_f64.powi(-6), most < 8.0 * least),
    };
    let is_finite = sum.is_finite() && shift.iter().all(|value| value.is_finite());
    is_finite && is_held && sum.abs() >= 4.0 * roundoff * (shift.len() as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Rng, Stream};

    const CHANNELS: usize = 64;
    const TOKENS: usize = 50;

    /// The mean of all logits and the logit of the control token, for several states after the final LayerNorm.
    fn logits(bias_size: f64, weight_type: WeightType) -> Vec<(f64, f64)> {
        let mut rng = Rng::new(1, Stream::Init);
        let mut normal = |size: f64, count: usize| -> Vec<f32> {
            (0..count).map(|_| (size * rng.normal()) as f32).collect()
        };
        let head = normal(0.3, TOKENS * CHANNELS);
        let weight: Vec<f32> = normal(0.2, CHANNELS).iter().map(|value| 1.0 + value).collect();
        let bias = normal(bias_size, CHANNELS);
        let (row, weight_type) = control_row(&head, &weight, &bias, weight_type);
        let mut bytes = Vec::new();
        weight_type.encode(&row, &mut bytes).expect("in range");
        let row = weight_type.decode(&bytes);
        let state = |numbers: Vec<f32>| -> Vec<f64> {
            let count = CHANNELS as f64;
            let mean = numbers.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
            let variance = numbers.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / count;
            let normal = numbers.iter().map(|&x| (f64::from(x) - mean) / variance.sqrt());
            normal.zip(&weight).zip(&bias).map(|((n, &w), &b)| n * f64::from(w) + f64::from(b)).collect()
        };
        let logit = |row: &[f32], state: &[f64]| -> f64 {
            row.iter().zip(state).map(|(&row, state)| f64::from(row) * state).sum()
        };
        let states: Vec<Vec<f64>> = (0..20).map(|_| state(normal(1.0, CHANNELS))).collect();
        let of = |state: &Vec<f64>| {
            let all = head.chunks_exact(CHANNELS).map(|row| logit(row, state)).sum::<f64>();
            (all / TOKENS as f64, logit(&row, state))
        };
        states.iter().map(of).collect()
    }

    #[test]
    fn the_control_token_is_far_below_the_mean_logit() {
        for (weight_type, slack) in
            [(WeightType::F32, 1e-3), (WeightType::F16, GAP / 4.0), (WeightType::Q8_0, GAP / 2.0)]
        {
            for (mean, control) in logits(0.2, weight_type) {
                assert!((control - (mean - GAP)).abs() <= slack, "{weight_type}: {control}, mean {mean}");
            }
        }
    }

    #[test]
    fn a_small_gap_needs_a_more_precise_type() {
        let ones = [1.0; CHANNELS];
        let of = |bias: f32, weight_type| control_row(&ones, &ones, &[bias; CHANNELS], weight_type).1;
        // The sum of biases is 64 times one; the type needs 4 sqrt(64) = 32 times its roundoff.
        for (bias, in_q8_0, in_bf16, in_f16) in [
            (0.5 / 63.0, WeightType::Q8_0, WeightType::Bf16, WeightType::F16),
            (0.5 / 65.0, WeightType::F16, WeightType::Bf16, WeightType::F16),
            (0.5 / 129.0, WeightType::F16, WeightType::F16, WeightType::F16),
            (0.5 / 1025.0, WeightType::F32, WeightType::F32, WeightType::F32),
            (0.0, WeightType::Q8_0, WeightType::Bf16, WeightType::F16),
        ] {
            assert_eq!(of(bias, WeightType::Q8_0), in_q8_0, "{bias}");
            assert_eq!(of(bias, WeightType::Bf16), in_bf16, "{bias}");
            assert_eq!(of(bias, WeightType::F16), in_f16, "{bias}");
            assert_eq!(of(bias, WeightType::F32), WeightType::F32, "{bias}");
        }
    }

    #[test]
    fn without_biases_it_has_the_mean_logit() {
        for (mean, control) in logits(0.0, WeightType::F32) {
            // 64 products of about 0.1, rounded to f32.
            assert!((control - mean).abs() <= 64.0 * 0.1 * f64::from(f32::EPSILON), "{control}, mean {mean}");
        }
    }
}
