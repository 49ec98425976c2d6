//! 8-bit weights.

use folio_kernels::columns::ColumnsMut;
use folio_kernels::dims::LinearDims;
use folio_kernels::linear::linear_forward;
use folio_kernels::panels::PanelDims;
use folio_kernels::quantized::{MAX_DEPTH, Quantized};
use folio_kernels::reference;

use crate::support::{Expected, Random, U, assert_same_bits, check, nans, on_every_isa, sizes, wide};

/// Rows, inputs, outputs. Rows are multiplied in groups of 16, or of 6 in AVX-512, inputs in steps of 64, columns in strips of 32.
const SIZES: [(usize, usize, usize); 14] = [
    (1, 1, 1),
    (1, 70, 64),
    (2, 33, 65),
    (3, 64, 63),
    (5, 17, 130),
    (6, 384, 66),
    (7, 48, 128),
    (20, 5, 1),
    (15, 63, 31),
    (16, 64, 32),
    (17, 65, 33),
    (33, 128, 96),
    (12, 1540, 20),
    (3, 0, 5),
];

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
fn matmuls_have_the_bits_of_their_twin() {
    for (rows, inputs, outputs) in SIZES {
        let dims = LinearDims { rows, inputs, outputs };
        let mut random = Random(71);
        let (x, w) = (random.as_f32(rows * inputs, 1.0), random.as_f32(inputs * outputs, 1.0));
        let mut want = nans::<f32>(rows * outputs);
        reference::quantized_forward(dims, &mut want, &x, &w);
        // The kernel adds a bias of zero, which turns -0 into 0.
        want.iter_mut().for_each(|y| *y += 0.0);
        let w = quantized(dims, &w);
        on_every_isa(|isa| {
            assert_same_bits(&format!("{dims:?} on {}", isa.name()), &matmul(dims, &x, &w), &want)
        });
    }
}

/// The largest inputs and weights, all of the same sign, in the deepest matrix.
#[test]
fn the_largest_sums_have_the_bits_of_their_twin() {
    let dims = LinearDims { rows: 2, inputs: MAX_DEPTH, outputs: 2 };
    let x = [vec![1.0; MAX_DEPTH], vec![-1.0; MAX_DEPTH]].concat();
    let w: Vec<f32> = (0..MAX_DEPTH).flat_map(|_| [1.0, -1.0]).collect();
    let mut want = nans::<f32>(4);
    reference::quantized_forward(dims, &mut want, &x, &w);
    let w = quantized(dims, &w);
    on_every_isa(|isa| assert_same_bits(isa.name(), &matmul(dims, &x, &w), &want));
}

#[test]
#[should_panic(expected = "the sums of 131073 integers may not fit into 32 bits")]
fn a_deeper_matrix_panics() {
    Quantized::new(PanelDims { depth: MAX_DEPTH + 1, cols: 1 }, |_, _| 1.0);
}

#[test]
fn matmuls_are_close_to_those_with_the_dequantized_weights() {
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
        let want = run(wide(&x), wide(&values));
        // Of every input half a step, a 32,512th of the row's maximum, times the weights. Roundings: the inverse of the input's scale and
        // the product with it, both scales, their product, the sum of the parts, the high part in f32 and the result.
        let steps = x.chunks_exact(inputs.max(1)).flat_map(|row| {
            let step = row.iter().fold(0.0f32, |m, x| m.max(x.abs())) / 32_512.0;
            vec![f64::from(step); inputs]
        });
        let (error, size) = (run(steps.collect(), sizes(&values)), run(sizes(&x), sizes(&values)));
        let tolerance = error.iter().zip(size).map(|(error, size)| error + 8.0 * U * size).collect();
        check("quantized linear_forward", &dims, &[Expected { name: "y", want, tolerance }], || {
            vec![matmul(dims, &x, &w)]
        });
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
            // The scales of weight and input, their product, the quotient and the result are rounded: each changes the weight, up to
            // 127 scales, by U of it.
            assert!(error <= scale * (0.5 + 6.0 * 127.0 * U), "weight {i}: {} for {}", got[i], w[i]);
        }
    }
}

#[test]
fn rows_and_columns_have_the_same_bits_alone_and_together() {
    let dims = LinearDims { rows: 18, inputs: 90, outputs: 200 };
    let mut random = Random(73);
    let (x, w) = (random.as_f32(18 * 90, 1.0), random.as_f32(90 * 200, 1.0));
    let (w, bias) = (quantized(dims, &w), random.as_f32(200, 1.0));
    on_every_isa(|isa| {
        let mut all = nans::<f32>(18 * 200);
        linear_forward(dims, ColumnsMut::new(&mut all, 200), &x, w.view(), &bias);
        let mut parts = nans::<f32>(18 * 200);
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
    // Roundings: as in `matmuls_are_close_to_those_with_the_dequantized_weights`.
    let dims = LinearDims { rows: 1, inputs: 2, outputs: 1 };
    let got = dequantized(dims, &quantized(dims, &[f32::NAN, 2.0]));
    assert!(got[0] == 0.0 && (f64::from(got[1]) - 2.0).abs() <= 2.0 * 8.0 * U, "{got:?}");
}

#[test]
fn rows_with_numbers_that_are_not_finite_become_nan() {
    let dims = LinearDims { rows: 4, inputs: 3, outputs: 2 };
    let w = quantized(dims, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let x = [f32::NAN, 1.0, 1.0, 1.0, f32::INFINITY, 1.0, 0.0, 0.0, 0.0, 1e-40, 0.0, -1e-40];
    on_every_isa(|isa| {
        let y = matmul(dims, &x, &w);
        assert!(y[..4].iter().all(|y| y.is_nan()), "{y:?} on {}", isa.name());
        assert_eq!(y[4..], [0.0; 4], "{}", isa.name());
    });
}
