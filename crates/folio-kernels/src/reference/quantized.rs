//! A linear layer with 8-bit weights: the naive twin of [`crate::quantized`].

use crate::dims::LinearDims;

/// `y = x w` with quantized inputs and weights, as [`crate::quantized`] defines them. Both sums are exact; every other operation is
/// rounded once, in the order of the formulas there. Inputs must be finite.
///
/// - `y` (M, N): overwritten.
/// - `x` (M, K), `w` (K, N).
pub fn quantized_forward(dims: LinearDims, y: &mut [f32], x: &[f32], w: &[f32]) {
    let LinearDims { rows, inputs, outputs } = dims;
    let magnitude = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0f32, |m, x| m.max(x.abs()));
    for m in 0..rows {
        let x = &x[m * inputs..][..inputs];
        let greatest = magnitude(&mut x.iter().copied());
        let inverse = if greatest > 1e-30 { 16_256.0 / greatest } else { 0.0 };
        for n in 0..outputs {
            let column = || (0..inputs).map(|k| w[k * outputs + n]);
            let scale = column().fold(0.0f32, |scale, w| scale.max(w.abs() / 127.0));
            let (mut high, mut low) = (0i64, 0i64);
            for (x, w) in x.iter().zip(column()) {
                let r = (x * inverse).round_ties_even() as i64;
                let upper = (r + 64).div_euclid(128);
                let q = i64::from((w / scale).round_ties_even() as i8);
                high += upper * q;
                low += (r - 128 * upper) * q;
            }
            y[m * outputs + n] = (high as f32 * 128.0 + low as f32) * (greatest / 16_256.0 * scale);
        }
    }
}
