//! The matrix products. Each term passes through its own rounding and at most one addition for every term.

use folio_kernels::dims::{LinearDims, RowDims};
use folio_kernels::{linear, reference};

use crate::support::{Expected, Random, check, sizes, transposed, wide};

/// Tiles of the products are up to 96 rows and 48 columns, depths 512 and 1,024. Pieces of rows are 192 for
/// up to 3,072 rows, then a sixteenth, and at most 1,024.
const SIZES: [(usize, usize, usize); 17] = [
    (1, 1, 1),
    (1, 5, 3),
    (7, 1, 4),
    (4, 6, 1),
    (3, 17, 33),
    (16, 64, 48),
    (17, 65, 49),
    (33, 31, 97),
    (64, 64, 64),
    (65, 127, 67),
    (97, 96, 25),
    (192, 40, 41),
    (193, 33, 34),
    (385, 20, 65),
    (66, 1030, 9),
    (3100, 9, 8),
    (16_500, 3, 2),
];

#[test]
fn linear_layers_equal_their_twin() {
    for (rows, inputs, outputs) in SIZES {
        let dims = LinearDims { rows, inputs, outputs };
        let layer = Layer::random(dims);
        let roundings = [inputs + 1, inputs + 1, outputs + 1, rows + 1, rows + 1, rows + 1];
        let names = ["y", "y without bias", "dx", "dw", "dbias", "dw without dbias"];
        let outputs = layer.twin(wide).into_iter().zip(layer.twin(sizes));
        let expected: Vec<_> = outputs
            .zip(names.into_iter().zip(roundings))
            .map(|((want, sizes), (name, roundings))| Expected::from_sizes(name, roundings, want, sizes))
            .collect();
        check("linear", &dims, &expected, || layer.run());
    }
}

#[test]
fn the_tied_head_equals_a_linear_layer_with_the_transposed_embedding() {
    for (rows, inputs, outputs) in SIZES {
        let dims = LinearDims { rows, inputs, outputs };
        let head = Head::random(dims);
        let roundings = [inputs + 1, outputs + 1, rows + 1];
        let outputs = head.twin(wide).into_iter().zip(head.twin(sizes));
        let expected: Vec<_> = outputs
            .zip(["logits", "dx", "dwte"].into_iter().zip(roundings))
            .map(|((want, sizes), (name, roundings))| Expected::from_sizes(name, roundings, want, sizes))
            .collect();
        check("head", &dims, &expected, || head.run());
    }
}

#[test]
fn column_sums_are_added_to_what_is_there() {
    for (rows, cols) in [(0, 3), (1, 1), (31, 5), (32, 17), (33, 64), (65, 33), (1000, 7)] {
        let dims = RowDims { rows, cols };
        let mut random = Random(13);
        let (x, before) = (random.singles(rows * cols, 1.0), random.singles(cols, 1.0));
        let add = |to: &mut [f64], values: &[f64]| {
            values.chunks_exact(cols).for_each(|row| to.iter_mut().zip(row).for_each(|(to, x)| *to += x));
        };
        let (mut want, mut size) = (wide(&before), sizes(&before));
        add(&mut want, &wide(&x));
        add(&mut size, &sizes(&x));
        // A sum of n + 1 numbers in any order.
        let expected = Expected::from_sizes("sums", rows, want, size);
        check("add_column_sums", &dims, &[expected], || {
            let (mut sums, mut scratch) = (before.clone(), vec![f32::NAN; linear::column_sums_scratch(cols)]);
            linear::add_column_sums(dims, &mut sums, &x, &mut scratch);
            vec![sums]
        });
    }
}

/// A linear layer with gradients that hold something before they are added to.
pub(crate) struct Layer {
    dims: LinearDims,
    x: Vec<f32>,
    w: Vec<f32>,
    bias: Vec<f32>,
    dy: Vec<f32>,
    dw: Vec<f32>,
    dbias: Vec<f32>,
}

impl Layer {
    pub(crate) fn random(dims: LinearDims) -> Self {
        let LinearDims { rows, inputs, outputs } = dims;
        let mut random = Random(11);
        Self {
            dims,
            x: random.singles(rows * inputs, 1.0),
            w: random.singles(inputs * outputs, 1.0),
            bias: random.singles(outputs, 1.0),
            dy: random.singles(rows * outputs, 1.0),
            dw: random.singles(inputs * outputs, 1.0),
            dbias: random.singles(outputs, 1.0),
        }
    }

    /// `y` with and without bias, `dx`, `dw`, `dbias`, and `dw` where there is no bias.
    pub(crate) fn run(&self) -> Vec<Vec<f32>> {
        let Self { dims, x, w, bias, dy, .. } = self;
        let (mut y, mut y_alone) = (vec![f32::NAN; dy.len()], vec![f32::NAN; dy.len()]);
        linear::linear_forward(*dims, &mut y, x, w, Some(bias));
        linear::linear_forward(*dims, &mut y_alone, x, w, None);
        let mut dx = vec![f32::NAN; x.len()];
        linear::linear_backward_input(*dims, &mut dx, dy, w);
        let (mut dw, mut dbias, mut dw_alone) = (self.dw.clone(), self.dbias.clone(), self.dw.clone());
        let mut scratch = vec![f32::NAN; linear::column_sums_scratch(dims.outputs)];
        linear::linear_backward_parameters(*dims, &mut dw, Some(&mut dbias), dy, x, &mut scratch);
        linear::linear_backward_parameters(*dims, &mut dw_alone, None, dy, x, &mut []);
        vec![y, y_alone, dx, dw, dbias, dw_alone]
    }

    /// The same by the twin, with every input taken through `of`.
    fn twin(&self, of: impl Fn(&[f32]) -> Vec<f64>) -> Vec<Vec<f64>> {
        let dims = self.dims;
        let (x, w, bias, dy) = (of(&self.x), of(&self.w), of(&self.bias), of(&self.dy));
        let (mut y, mut y_alone) = (vec![f64::NAN; dy.len()], vec![f64::NAN; dy.len()]);
        reference::linear_forward(dims, &mut y, &x, &w, Some(&bias));
        reference::linear_forward(dims, &mut y_alone, &x, &w, None);
        let mut dx = vec![f64::NAN; x.len()];
        reference::linear_backward_input(dims, &mut dx, &dy, &w);
        let (mut dw, mut dbias) = (of(&self.dw), of(&self.dbias));
        reference::linear_backward_parameters(dims, &mut dw, Some(&mut dbias), &dy, &x);
        let dw_alone = dw.clone();
        vec![y, y_alone, dx, dw, dbias, dw_alone]
    }
}

/// The head, whose gradient of `wte` holds something before it is added to.
pub(crate) struct Head {
    dims: LinearDims,
    x: Vec<f32>,
    wte: Vec<f32>,
    dlogits: Vec<f32>,
    dwte: Vec<f32>,
}

impl Head {
    pub(crate) fn random(dims: LinearDims) -> Self {
        let LinearDims { rows, inputs, outputs } = dims;
        let mut random = Random(12);
        Self {
            dims,
            x: random.singles(rows * inputs, 1.0),
            wte: random.singles(outputs * inputs, 1.0),
            dlogits: random.singles(rows * outputs, 1.0),
            dwte: random.singles(outputs * inputs, 1.0),
        }
    }

    /// `logits`, `dx` and `dwte`.
    pub(crate) fn run(&self) -> Vec<Vec<f32>> {
        let Self { dims, x, wte, dlogits, dwte } = self;
        let mut logits = vec![f32::NAN; dlogits.len()];
        linear::head_forward(*dims, &mut logits, x, wte);
        let (mut dx, mut dwte) = (vec![f32::NAN; x.len()], dwte.clone());
        linear::head_backward(*dims, &mut dx, &mut dwte, dlogits, x, wte);
        vec![logits, dx, dwte]
    }

    /// The same by the twin of the linear layer, with every input taken through `of`.
    fn twin(&self, of: impl Fn(&[f32]) -> Vec<f64>) -> Vec<Vec<f64>> {
        let dims = self.dims;
        let LinearDims { inputs, outputs, .. } = dims;
        let (x, dlogits) = (of(&self.x), of(&self.dlogits));
        let w = transposed(&of(&self.wte), outputs, inputs);
        let mut logits = vec![f64::NAN; dlogits.len()];
        reference::linear_forward(dims, &mut logits, &x, &w, None);
        let mut dx = vec![f64::NAN; x.len()];
        reference::linear_backward_input(dims, &mut dx, &dlogits, &w);
        let mut dw = transposed(&of(&self.dwte), outputs, inputs);
        reference::linear_backward_parameters(dims, &mut dw, None, &dlogits, &x);
        vec![logits, dx, transposed(&dw, inputs, outputs)]
    }
}
