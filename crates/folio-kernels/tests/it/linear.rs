//! Linear layers with their epilogues. Each term is rounded once, and passes through at most one addition per term.

use folio_kernels::columns::ColumnsMut;
use folio_kernels::dims::{LinearDims, RowDims};
use folio_kernels::dropout::Dropout;
use folio_kernels::element::{Bf16, Element};
use folio_kernels::gelu::Gelu;
use folio_kernels::linear::{self, GeluGradients};
use folio_kernels::panels::{PanelDims, Panels, Reuse};
use folio_kernels::reference;

use crate::gelu;
use crate::support::{
    Expected, Random, U, aligned_nans, as_f32, assert_same_bits, check, format, from_panels, in_panels, nans,
    on_every_isa, roundings, sizes, transposed, wide,
};

/// Rows, inputs, outputs. Tiles have 6 or 32 rows, and up to 64 columns in steps of 16.
const SIZES: [(usize, usize, usize); 21] = [
    (1, 1, 1),
    (1, 5, 3),
    (7, 1, 4),
    (4, 6, 1),
    (3, 17, 33),
    (6, 16, 64),
    (5, 65, 49),
    (13, 31, 97),
    (12, 64, 64),
    (65, 127, 67),
    (37, 96, 130),
    (64, 40, 41),
    (63, 33, 15),
    (66, 1030, 9),
    (130, 20, 65),
    (2, 7, 193),
    (17, 130, 128),
    // Deep enough that AMX multiplies tiles while the epilogue receives the rows of others: in this pass, or in the other.
    (99, 256, 130),
    (81, 130, 384),
    (70, 768, 66),
    (70, 66, 800),
];

/// The sizes with whole units along the summed dimension: bfloat16 is multiplied in pairs.
fn even_inputs<E: Element>() -> impl Iterator<Item = LinearDims> {
    SIZES.into_iter().map(|(rows, inputs, outputs)| LinearDims {
        rows,
        inputs: inputs.next_multiple_of(E::PER_UNIT),
        outputs,
    })
}

fn even_outputs<E: Element>() -> impl Iterator<Item = LinearDims> {
    SIZES.into_iter().map(|(rows, inputs, outputs)| LinearDims {
        rows,
        inputs,
        outputs: outputs.next_multiple_of(E::PER_UNIT),
    })
}

/// A linear layer, a residual to add to its output, and gradients with non-zero initial values.
struct Layer<E> {
    dims: LinearDims,
    x: Vec<E>,
    w: Vec<E>,
    bias: Vec<f32>,
    residual: Vec<f32>,
    dy: Vec<E>,
    dw: Vec<f32>,
}

impl<E: Element> Layer<E> {
    fn random(dims: LinearDims) -> Self {
        let LinearDims { rows, inputs, outputs } = dims;
        let mut random = Random(11);
        Self {
            dims,
            x: random.elements(rows * inputs, 1.0),
            w: random.elements(inputs * outputs, 1.0),
            bias: random.as_f32(outputs, 1.0),
            residual: random.as_f32(rows * outputs, 1.0),
            dy: random.elements(rows * outputs, 1.0),
            dw: random.as_f32(inputs * outputs, 1.0),
        }
    }

    /// w in panels.
    fn w(&self) -> (PanelDims, Vec<E>) {
        let dims = PanelDims { depth: self.dims.inputs, cols: self.dims.outputs };
        (dims, in_panels(dims, &self.w))
    }

    /// wᵀ in panels.
    fn w_t(&self) -> (PanelDims, Vec<E>) {
        let LinearDims { inputs, outputs, .. } = self.dims;
        let dims = PanelDims { depth: outputs, cols: inputs };
        (dims, in_panels(dims, &transposed(&self.w, inputs, outputs)))
    }

    fn shape(&self) -> (&'static str, LinearDims) {
        (format::<E>(), self.dims)
    }

    /// `y` of the twin, and the sum of the sizes of its terms.
    fn twin_forward(&self) -> [Vec<f64>; 2] {
        let run = |x: Vec<f64>, w: Vec<f64>, bias: Vec<f64>| {
            let mut y = vec![f64::NAN; self.dy.len()];
            reference::linear_forward(self.dims, &mut y, &x, &w, Some(&bias));
            y
        };
        let Self { x, w, bias, .. } = self;
        [run(wide(x), wide(w), wide(bias)), run(sizes(x), sizes(w), sizes(bias))]
    }

    /// `dx` of the twin, and the sum of the sizes of its terms.
    fn twin_backward_input(&self) -> [Vec<f64>; 2] {
        let run = |dy: Vec<f64>, w: Vec<f64>| {
            let mut dx = vec![f64::NAN; self.x.len()];
            reference::linear_backward_input(self.dims, &mut dx, &dy, &w);
            dx
        };
        [run(wide(&self.dy), wide(&self.w)), run(sizes(&self.dy), sizes(&self.w))]
    }
}

fn forward<E: Element>() {
    for dims in even_inputs::<E>() {
        let layer = Layer::<E>::random(dims);
        let [want, size] = layer.twin_forward();
        let expected = Expected::from_sizes("y", dims.inputs + 1, want, size).stored::<E>();
        let (w_dims, w) = layer.w();
        check("linear_forward", &layer.shape(), &[expected], || {
            let mut y = nans::<E>(layer.dy.len());
            linear::linear_forward(dims, whole(&mut y, dims), &layer.x, Panels::new(w_dims, &w), &layer.bias);
            vec![as_f32(&y)]
        });
    }
}

#[test]
fn linear_layers_equal_their_twin() {
    forward::<f32>();
    forward::<Bf16>();
}

fn residual_forward<E: Element>() {
    for dims in even_inputs::<E>() {
        for dropout in [Dropout::none(), Dropout::new(0.3, 14), Dropout::new(0.5, 15).skip_rows(1000)] {
            let layer = Layer::<E>::random(dims);
            let rows = RowDims { rows: dims.rows, cols: dims.outputs };
            let [branch, size] = layer.twin_forward();
            let join = |residual: Vec<f64>, branch: Vec<f64>| {
                let mut y = vec![f64::NAN; branch.len()];
                reference::dropout_residual_forward(rows, &mut y, &residual, &branch, dropout);
                y
            };
            let (want, size) = (join(wide(&layer.residual), branch), join(sizes(&layer.residual), size));
            // The roundings of the branch, plus the product with the mask and the last addition.
            let expected = Expected::from_sizes("y", dims.inputs + 3, want, size);
            let (w_dims, w) = layer.w();
            check("linear_residual_forward", &(layer.shape(), dropout), &[expected], || {
                let mut y = vec![f32::NAN; layer.dy.len()];
                let w = (Panels::new(w_dims, &w), &layer.bias[..]);
                linear::linear_residual_forward(
                    dims,
                    whole(&mut y, dims),
                    &layer.residual,
                    &layer.x,
                    w,
                    dropout,
                );
                vec![y]
            });
        }
    }
}

#[test]
fn linear_layers_with_residual_equal_their_twin() {
    residual_forward::<f32>();
    residual_forward::<Bf16>();
}

fn gelu_forward<E: Element>() {
    for dims in even_inputs::<E>() {
        let layer = Layer::<E>::random(dims);
        let [want, size] = layer.twin_forward();
        let expected = Expected::from_sizes("fc", dims.inputs + 1, want, size).stored::<E>();
        let (w_dims, w) = layer.w();
        on_every_isa(|isa| {
            let case = format!("linear_gelu_forward {:?} on {}", layer.shape(), isa.name());
            for form in gelu::FORMS {
                let (mut fc, mut y) = (nans::<E>(layer.dy.len()), nans::<E>(layer.dy.len()));
                let outputs = (whole(&mut fc, dims), whole(&mut y, dims));
                let w = (Panels::new(w_dims, &w), &layer.bias[..]);
                linear::linear_gelu_forward(dims, form, outputs, &layer.x, w);
                expected.compare(&case, &as_f32(&fc));
                // GELU of the stored value, exactly.
                gelu::expected_values(form, &as_f32(&fc)).stored::<E>().compare(&case, &as_f32(&y));
            }
        });
    }
}

#[test]
fn linear_layers_with_gelu_equal_their_twins() {
    gelu_forward::<f32>();
    gelu_forward::<Bf16>();
}

fn backward_input<E: Element, O: Element>() {
    for dims in even_outputs::<E>() {
        let layer = Layer::<E>::random(dims);
        let [want, size] = layer.twin_backward_input();
        let expected = Expected::from_sizes("dx", dims.outputs, want, size).stored::<O>();
        let (w_dims, w_t) = layer.w_t();
        check("linear_backward_input", &(layer.shape(), format::<O>()), &[expected], || {
            let mut dx = nans::<O>(layer.x.len());
            linear::linear_backward_input(dims, &mut dx, &layer.dy, Panels::new(w_dims, &w_t));
            vec![as_f32(&dx)]
        });
    }
}

#[test]
fn gradients_of_inputs_equal_their_twin() {
    backward_input::<f32, f32>();
    backward_input::<Bf16, f32>();
    backward_input::<Bf16, Bf16>();
}

fn gelu_backward<E: Element>(form: Gelu) {
    for dims in even_outputs::<E>() {
        let layer = Layer::<E>::random(dims);
        // Both tails of GELU, and values near zero.
        let fc = Random(16).elements::<E>(layer.x.len(), 6.0);
        let [dx, size] = layer.twin_backward_input();
        let mut dfc = vec![f64::NAN; fc.len()];
        reference::gelu_backward(form, &mut dfc, &dx, &wide(&fc));
        let slope = gelu::expected_slopes(form, &as_f32(&fc));
        // The errors of the matmul and of the slope, and the rounding of their product.
        let tolerance = (0..fc.len()).map(|i| {
            let product_off = dims.outputs as f64 * U * size[i];
            product_off * (slope.want[i].abs() + slope.tolerance[i])
                + slope.tolerance[i] * dx[i].abs()
                + U * dfc[i].abs()
        });
        let tolerance = tolerance.collect();
        let expected = Expected { name: "dfc", want: dfc, tolerance }.stored::<E>();
        let values = gelu::expected_values(form, &as_f32(&fc)).stored::<E>();
        let (w_dims, w_t) = layer.w_t();
        let panels = PanelDims { depth: dims.rows, cols: dims.inputs };
        on_every_isa(|isa| {
            let case = format!("linear_gelu_backward {form:?} {:?} on {}", layer.shape(), isa.name());
            let mut dfc = nans::<E>(fc.len());
            for reuse in [Reuse::Temporal, Reuse::NonTemporal] {
                let gelu_panels = &mut aligned_nans::<E>(panels.len::<E>());
                let dfc_panels = &mut aligned_nans::<E>(panels.len::<E>());
                let gradients = GeluGradients { dfc: &mut dfc, dfc_panels, gelu_panels, reuse };
                linear::linear_gelu_backward(
                    dims,
                    form,
                    gradients,
                    &fc,
                    &layer.dy,
                    Panels::new(w_dims, &w_t),
                );
                expected.compare(&case, &as_f32(&dfc));
                assert_same_bits(&case, &from_panels(&case, panels, dfc_panels), &dfc);
                values.compare(&case, &as_f32(&from_panels(&case, panels, gelu_panels)));
            }
        });
    }
}

#[test]
fn gradients_through_gelu_equal_their_twins() {
    for form in gelu::FORMS {
        gelu_backward::<f32>(form);
        gelu_backward::<Bf16>(form);
    }
}

fn recomputed_gelu<E: Element>(form: Gelu) {
    // With the identity as weights, the layer's output is its input.
    let dims = LinearDims { rows: 23, inputs: 70, outputs: 70 };
    let x = Random(17).elements::<E>(23 * 70, 7.0);
    let identity: Vec<E> = (0..70 * 70).map(|i| E::from_f32(f32::from(u8::from(i % 71 == 0)))).collect();
    let panels = PanelDims { depth: 70, cols: 70 };
    let w = in_panels(panels, &identity);
    let out = PanelDims { depth: 23, cols: 70 };
    on_every_isa(|isa| {
        let (mut fc, mut y, mut dfc) = (nans::<E>(x.len()), nans::<E>(x.len()), nans::<E>(x.len()));
        let w = Panels::new(panels, &w);
        let outputs = (whole(&mut fc, dims), whole(&mut y, dims));
        linear::linear_gelu_forward(dims, form, outputs, &x, (w, &[0.0; 70]));
        assert_eq!(wide(&fc), wide(&x));
        let (mut dfc_panels, mut gelu_panels) = (nans::<E>(out.len::<E>()), nans::<E>(out.len::<E>()));
        let (dfc_panels, gelu_panels) = (&mut dfc_panels, &mut gelu_panels);
        let gradients = GeluGradients { dfc: &mut dfc, dfc_panels, gelu_panels, reuse: Reuse::Temporal };
        linear::linear_gelu_backward(dims, form, gradients, &fc, &x, w);
        assert_same_bits(isa.name(), &from_panels(isa.name(), out, gelu_panels), &y);
    });
}

#[test]
fn the_backward_pass_recomputes_the_same_activations() {
    for form in gelu::FORMS {
        recomputed_gelu::<f32>(form);
        recomputed_gelu::<Bf16>(form);
    }
}

/// `matrix` (segments * tokens, cols) in `segments` of panels, with one unit of NaN after each.
pub(crate) fn in_segments<E: Element>(
    segments: usize,
    cols: usize,
    matrix: &[E],
) -> (PanelDims, usize, Vec<E>) {
    let part = matrix.len() / segments;
    let dims = PanelDims { depth: part / cols, cols };
    let of = |part| [in_panels(dims, part), nans(E::PER_UNIT)].concat();
    (dims, dims.len::<E>() + E::PER_UNIT, matrix.chunks_exact(part).flat_map(of).collect())
}

fn backward_weight<E: Element>() {
    // A few long segments, processed one at a time, and many short ones, processed in groups.
    let segments = [(1, 1), (1, 2), (1, 13), (2, 7), (3, 300), (5, 65), (9, 31), (300, 1), (2, 512)];
    let shapes = [(1, 1), (5, 3), (64, 128), (130, 49)];
    // One result large enough for non-temporal stores.
    let large = [((3, 5), (190, 704))];
    for ((segments, time), (inputs, outputs)) in
        segments.into_iter().flat_map(|segment| shapes.map(|shape| (segment, shape))).chain(large)
    {
        let dims = LinearDims { rows: segments * time, inputs, outputs };
        let layer = Layer::<E>::random(dims);
        let (x_dims, x_stride, x) = in_segments(segments, inputs, &layer.x);
        let (dy_dims, dy_stride, dy) = in_segments(segments, outputs, &layer.dy);
        let expected = [false, true].map(|add| {
            let run = |x: Vec<f64>, dy: Vec<f64>, mut dw: Vec<f64>| {
                if !add {
                    dw.fill(0.0);
                }
                reference::linear_backward_parameters(dims, &mut dw, None, &dy, &x);
                dw
            };
            let want = run(wide(&layer.x), wide(&layer.dy), wide(&layer.dw));
            let size = run(sizes(&layer.x), sizes(&layer.dy), sizes(&layer.dw));
            let roundings = roundings::<E>(dims.rows + 1, dims.rows, segments);
            Expected::from_sizes(if add { "dw, added to" } else { "dw" }, roundings, want, size)
        });
        check("linear_backward_weight", &(layer.shape(), segments), &expected, || {
            let x = Panels::segmented(x_dims, &x, segments, x_stride);
            let dy = Panels::segmented(dy_dims, &dy, segments, dy_stride);
            let (mut dw, mut added) = (vec![f32::NAN; layer.dw.len()], layer.dw.clone());
            linear::linear_backward_weight(0..inputs, &mut dw, x, dy, false);
            linear::linear_backward_weight(0..inputs, &mut added, x, dy, true);
            vec![dw, added]
        });
    }
}

#[test]
fn gradients_of_weights_equal_their_twin() {
    backward_weight::<f32>();
    backward_weight::<Bf16>();
}

/// 256 tokens in segments of 32, 64, 128 and 256, and the last 64 in a call of their own: the same bits.
fn segments_of_whole_steps<E: Element>() {
    let (tokens, inputs, outputs) = (8 * linear::DEPTH_STEP, 40, 130);
    let layer = Layer::<E>::random(LinearDims { rows: tokens, inputs, outputs });
    let gradient = |parts: &[(usize, usize)]| {
        let (mut first, mut dw) = (0, vec![f32::NAN; inputs * outputs]);
        for &(segments, time) in parts {
            let own = first..first + segments * time;
            let (x, dy) = (&layer.x[own.start * inputs..own.end * inputs], &layer.dy[own.start * outputs..]);
            let (x_dims, x_stride, x) = in_segments(segments, inputs, x);
            let (dy_dims, dy_stride, dy) = in_segments(segments, outputs, &dy[..own.len() * outputs]);
            let x = Panels::segmented(x_dims, &x, segments, x_stride);
            let dy = Panels::segmented(dy_dims, &dy, segments, dy_stride);
            linear::linear_backward_weight(0..inputs, &mut dw, x, dy, first > 0);
            first = own.end;
        }
        dw.iter().map(|value| value.to_bits()).collect::<Vec<u32>>()
    };
    crate::support::on_every_isa(|isa| {
        let want = gradient(&[(8, 32)]);
        for parts in [&[(4, 64)][..], &[(2, 128)], &[(1, 256)], &[(2, 96), (1, 64)]] {
            assert!(gradient(parts) == want, "{parts:?} on {}", isa.name());
        }
    });
}

#[test]
fn segments_of_whole_steps_give_the_same_bits() {
    segments_of_whole_steps::<f32>();
    segments_of_whole_steps::<Bf16>();
}

fn sums_of_columns<E: Element>() {
    for (rows, cols) in [(0, 3), (1, 1), (31, 5), (32, 17), (33, 64), (65, 33), (1000, 7), (3, 130)] {
        let dims = RowDims { rows, cols };
        let x = Random(13).elements::<E>(rows * cols, 1.0);
        let add = |values: Vec<f64>| {
            let mut sums = vec![0.0; cols];
            values.chunks_exact(cols).for_each(|row| sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x));
            sums
        };
        let expected = Expected::from_sizes("sums", rows, add(wide(&x)), add(sizes(&x)));
        check("column_sums", &(format::<E>(), dims), &[expected], || {
            let mut sums = vec![f32::NAN; cols];
            linear::column_sums(dims, &mut sums, &x);
            vec![sums]
        });
    }
}

#[test]
fn sums_of_columns_equal_their_twin() {
    sums_of_columns::<f32>();
    sums_of_columns::<Bf16>();
}

#[test]
#[should_panic(expected = "LinearDims { rows: 2, inputs: 2, outputs: 3 }")]
fn an_output_of_the_wrong_length_panics() {
    let dims = PanelDims { depth: 2, cols: 3 };
    let w = in_panels(dims, &[0.0f32; 6]);
    let sizes = LinearDims { rows: 2, inputs: 2, outputs: 3 };
    linear::linear_forward(
        sizes,
        ColumnsMut::new(&mut [0.0; 4], 2),
        &[0.0; 4],
        Panels::new(dims, &w),
        &[0.0; 3],
    );
}

#[test]
#[should_panic(expected = "rows 2..5 of 3")]
fn a_gradient_of_the_wrong_length_panics() {
    let (x, dy) = (PanelDims { depth: 1, cols: 8 }, PanelDims { depth: 1, cols: 3 });
    let zeros = [0.0f32; 64];
    linear::linear_backward_weight(
        2..5,
        &mut [0.0; 8],
        Panels::new(x, &zeros),
        Panels::new(dy, &zeros),
        false,
    );
}

/// All columns of a layer's output.
fn whole<T>(y: &mut [T], dims: LinearDims) -> ColumnsMut<'_, T> {
    ColumnsMut::new(y, dims.outputs)
}
