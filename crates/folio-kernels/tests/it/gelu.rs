//! GELU, near zero, where it bends, and far out, where the logistic function is 0 or 1.

use folio_kernels::{gelu, reference};

use crate::support::{EXP_ROUNDINGS, Expected, Random, U, check, wide};

/// Pieces are 16,384 long.
const SIZES: [usize; 10] = [0, 1, 7, 15, 16, 17, 33, 100, 16_384, 16_385];

#[test]
fn gelu_equals_its_twin() {
    for len in SIZES {
        for reach in [1.0, 6.0, 40.0] {
            compare(Activation::random(len, reach));
        }
    }
}

#[test]
fn gelu_holds_at_the_extremes() {
    let x = [0.0, -0.0, 1e-38, -1e-38, 1e-10, -1e-10, 10.5, -10.5, 11.0, -11.0, 1e4, -1e4, 1e8, -1e8];
    compare(Activation { x: x.to_vec(), dy: vec![1.0; x.len()] });
}

fn compare(activation: Activation) {
    let expected = activation.expected();
    check("gelu", &activation.x.len(), &expected, || activation.run());
}

pub(crate) struct Activation {
    x: Vec<f32>,
    dy: Vec<f32>,
}

impl Activation {
    pub(crate) fn random(len: usize, reach: f32) -> Self {
        let mut random = Random(41);
        Self { x: random.singles(len, reach), dy: random.singles(len, 1.0) }
    }

    /// `y`, `dx`, and `y` computed again going back.
    pub(crate) fn run(&self) -> Vec<Vec<f32>> {
        let mut y = vec![f32::NAN; self.x.len()];
        gelu::gelu_forward(&mut y, &self.x);
        let (mut grad, mut activation) = (self.dy.clone(), self.x.clone());
        gelu::gelu_backward(&mut grad, &mut activation);
        vec![y, grad, activation]
    }

    fn expected(&self) -> [Expected; 3] {
        let (x, dy) = (wide(&self.x), wide(&self.dy));
        let (mut y, mut dx) = (vec![f64::NAN; x.len()], vec![f64::NAN; x.len()]);
        reference::gelu_forward(&mut y, &x);
        reference::gelu_backward(&mut dx, &dy, &x);
        let (y_off, slope_off): (Vec<_>, Vec<_>) = x.iter().map(|&x| tolerances(x)).unzip();
        let dx_off = slope_off.iter().zip(&dy).map(|(off, dy)| off * dy.abs()).collect();
        let again = Expected { name: "y again", want: y.clone(), tolerance: y_off.clone() };
        let y = Expected { name: "y", want: y, tolerance: y_off };
        [y, Expected { name: "dx", want: dx, tolerance: dx_off }, again]
    }
}

/// How far `y = x s` and its slope `s + x s (1 - s) 2 u'` may be off, with `s = 1 / (1 + exp(-z))`, `z = 2
/// u`:
///
/// - `z` has 6 roundings: the constant of the cube, two products, a sum, the constant in front, its product.
/// - `exp(-z)` turns them into `6 |z|` and adds its own.
/// - `s` takes them times the share of the exponential in the denominator, which is `1 - s`, and adds 2.
/// - `1 - s` is off by as much as `s` is, and has a rounding.
/// - `2 u'` has 5 roundings: as `z`, without a product. The three products, the sum and `dy` add 5.
///
/// `exp` ends at e^88, where s is subnormal: below e^-87 s may be off by e^-87 itself. The twin has an error
/// too, where its tanh is nearly -1 and `1 + tanh` and `1 - tanh^2` cancel: of an eps of f64, and twice that.
fn tolerances(x: f64) -> (f64, f64) {
    let root = (2.0 / std::f64::consts::PI).sqrt();
    let z = 2.0 * root * (x + 0.044715 * x.powi(3));
    let slope = (2.0 * root * (1.0 + 3.0 * 0.044715 * x * x)).abs();
    let exponential = (-z).exp();
    let s = 1.0 / (1.0 + exponential);
    let rest = 1.0 / (1.0 + z.exp());
    let s_roundings = 2.0 + rest * (6.0 * z.abs() + EXP_ROUNDINGS);
    let floor = f64::EPSILON + if z < -87.0 { (-87.0f64).exp() } else { 0.0 };
    let size = x.abs() * s;
    let y = U * (s_roundings + 1.0) * size + floor * x.abs();
    let product = size * slope * (rest * (s_roundings + 1.0 + 5.0 + 5.0) + s * s_roundings);
    let sum = s * (s_roundings + 2.0);
    (y, U * (product + sum) + floor * (1.0 + x.abs() * slope))
}
