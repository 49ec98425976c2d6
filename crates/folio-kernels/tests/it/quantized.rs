//! 8-bit weights.

use folio_kernels::columns::ColumnsMut;
use folio_kernels::dims::LinearDims;
use folio_kernels::linear::linear_forward;
use folio_kernels::panels::PanelDims;
use folio_kernels::quantized::Quantized;
use folio_kernels::reference;

use crate::support::{Expected, Random, U, assert_same_bits, check, nans, on_every_isa, sizes, wide};

/// Rows, inputs, outputs.
const SIZES: [(usize, usize, usize); 8] =
    [(1, 1, 1), (1, 70, 64), (2, 33, 65), (3, 64, 63), (5, 17, 130), (6, 384, 66), (7, 48, 128), (20, 5, 1)];

fn quantized(dims: LinearDims, w: &[f32]) -> Quantized {
    Quantized::new(PanelDims { depth: dims.inputs, cols: dims.outputs }, |k, n| w[k * dims.outputs + n])
}

/// `x w` with 8-bit weights.
fn matmul(dims: LinearDims, x: &[f32], w: &Quantized) -> Vec<f32> {
    let mut y = nans::<f32>(dims.rows * dims.outputs);
    let columns = ColumnsMut::new(&mut y, dims.outputs);
    linear_forward(dims, columns, x, w.view(), &vec![0.0; dims.outputs]);
    y
}

/// The dequantized weights: the matmul with the identity.
fn dequantized(dims: LinearDims, w: &Quantized) -> Vec<f32> {
    let LinearDims { inputs, .. } = dims;
    let identity: Vec<f32> = (0..inputs * inputs).map(|i| f32::from(i % (inputs + 1) == 0)).collect();
    matmul(LinearDims { rows: inputs, ..dims }, &identity, w)
}

#[test]
fn matmuls_equal_those_with_the_dequantized_weights() {
    for (rows, inputs, outputs) in SIZES {
        let dims = LinearDims { rows, inputs, outputs };
        let mut random = Random(71);
        let (x, w) = (random.as_f32(rows * inputs, 1.0), random.as_f32(inputs * outputs, 1.0));
        let w = quantized(dims, &w);
        let values = dequantized(dims, &w);
        let run = |x: Vec<f64>, w: Vec<f64>| {
            let mut y = vec![f64::NAN; rows * outputs];
            reference::linear_forward(dims, &mut y, &x, &w, None);
            y
        };
        let (want, size) = (run(wide(&x), wide(&values)), run(sizes(&x), sizes(&values)));
        // A product and an addition per input, the scale of the sum, and the scale of `values`.
        let expected = Expected::from_sizes("y", inputs + 2, want, size);
        check("quantized linear_forward", &dims, &[expected], || vec![matmul(dims, &x, &w)]);
    }
}

#[test]
fn the_error_of_a_weight_is_at_most_half_a_scale() {
    let dims = LinearDims { rows: 1, inputs: 300, outputs: 70 };
    let mut w = Random(72).as_f32(300 * 70, 3.0);
    // A column of zeros, and a column of one large weight among small ones.
    (0..300).for_each(|k| w[k * 70 + 3] = 0.0);
    w[5 * 70 + 4] = 1e6;
    let got = dequantized(dims, &quantized(dims, &w));
    for n in 0..70 {
        let column = || (0..300).map(|k| k * 70 + n);
        let scale = column().map(|i| f64::from(w[i]).abs()).fold(0.0, f64::max) / 127.0;
        for i in column() {
            let error = (f64::from(got[i]) - f64::from(w[i])).abs();
            // The scale, the quotient and the product are rounded: each changes the weight, up to 127 scales, by U of
            // it.
            assert!(error <= scale * (0.5 + 3.0 * 127.0 * U), "weight {i}: {} for {}", got[i], w[i]);
        }
    }
    assert_eq!(got[5 * 70 + 4], 1e6, "the maximum of a column is exact");
}

#[test]
fn rows_and_columns_have_the_same_bits_alone_and_together() {
    let dims = LinearDims { rows: 8, inputs: 90, outputs: 200 };
    let mut random = Random(73);
    let (x, w) = (random.as_f32(8 * 90, 1.0), random.as_f32(90 * 200, 1.0));
    let (w, bias) = (quantized(dims, &w), random.as_f32(200, 1.0));
    on_every_isa(|isa| {
        let mut all = nans::<f32>(8 * 200);
        linear_forward(dims, ColumnsMut::new(&mut all, 200), &x, w.view(), &bias);
        let mut parts = nans::<f32>(8 * 200);
        for (x, y) in x.chunks_exact(90).zip(parts.chunks_exact_mut(200)) {
            let (left, right) = ColumnsMut::new(y, 200).split_at(128);
            for y in [left, right] {
                linear_forward(LinearDims { rows: 1, ..dims }, y, x, w.view(), &bias);
            }
        }
        assert_same_bits(isa.name(), &parts, &all);
    });
}

#[test]
fn nan_weights_become_zero() {
    let dims = LinearDims { rows: 1, inputs: 2, outputs: 1 };
    assert_eq!(dequantized(dims, &quantized(dims, &[f32::NAN, 2.0])), [0.0, 2.0]);
}
