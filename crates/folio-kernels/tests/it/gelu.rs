//! GELU: near zero, where it is curved, and far out, where the logistic function is 0 or 1.

use folio_kernels::gelu::{gelu_backward_of_row, gelu_of_row};
use folio_kernels::isa::Isa;
use folio_kernels::reference;

use crate::support::{EXP_ROUNDINGS, Expected, Random, TINY, U, check, on_every_isa, wide};

#[test]
fn gelu_equals_its_twin() {
    for len in [0, 1, 7, 15, 16, 17, 33, 100, 20_000] {
        for reach in [1.0, 6.0, 12.0, 40.0] {
            compare(&Random(41).as_f32(len, reach));
        }
    }
}

#[test]
fn gelu_equals_its_twin_at_the_extremes() {
    let near = [0.0, 1e-45, 1e-38, 1e-10, 9.999_999, 10.0, 10.000_001, 10.5, 11.0];
    let far = (1..=38).map(|exponent| 10.0f32.powi(exponent)).chain([f32::MAX]);
    let x: Vec<f32> = near.into_iter().chain(far).flat_map(|x| [x, -x]).collect();
    compare(&x);
}

#[test]
fn gelu_is_zero_far_left_and_the_identity_far_right() {
    let far: Vec<f32> = (0..=30).map(|exponent| 10.0 * 10.0f32.powi(exponent)).collect();
    let negative: Vec<f32> = far.iter().map(|x| -x).collect();
    on_every_isa(|isa| {
        let [value, again, slope] = apply(&far);
        assert_eq!((&value, &again), (&far, &far), "{}", isa.name());
        assert!(slope.iter().all(|&slope| slope == 1.0), "{}: {slope:?}", isa.name());
        for all in apply(&negative) {
            // In f32, gelu(-10) and its slope are about 5 and 240 times the smallest normal number.
            assert!(
                all.iter().all(|x| (-256.0 * TINY..=0.0).contains(&f64::from(*x))),
                "{}: {all:?}",
                isa.name()
            );
        }
    });
}

#[test]
fn infinities_give_the_limits_and_nan_gives_nan() {
    on_every_isa(|isa| {
        let [value, again, slope] = apply(&[f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
        for value in [&value, &again] {
            assert_eq!(value[0], f32::INFINITY, "{}", isa.name());
            assert!(value[1].abs() < 1e-36 && value[2].is_nan(), "{}: {value:?}", isa.name());
        }
        assert_eq!(slope[0], 1.0, "{}", isa.name());
        assert!(slope[1].abs() < 1e-35 && slope[2].is_nan(), "{}: {slope:?}", isa.name());
    });
}

#[test]
fn the_lower_tail_is_accurate_in_relative_terms() {
    // Unlike the twin's tanh, the logistic form does not cancel for large negative arguments.
    let x: Vec<f32> = (0..=10_000).map(|i| -(i as f32) / 1000.0).collect();
    let want: Vec<f64> = wide(&x).iter().map(|&x| x * logistic(argument(x))).collect();
    let tolerance = wide(&x).iter().map(|&x| tolerances(x).0).collect();
    check("gelu", &"lower tail", &[Expected { name: "y", want, tolerance }], || {
        let [value, ..] = apply(&x);
        vec![value]
    });
}

/// GELU of `x`.
pub(crate) fn expected_values(x: &[f32]) -> Expected {
    let x = wide(x);
    let mut want = vec![f64::NAN; x.len()];
    reference::gelu_forward(&mut want, &x);
    let tolerance = x.iter().map(|&x| tolerances(x).0 + twin_off(x)).collect();
    Expected { name: "gelu", want, tolerance }
}

/// The derivative of GELU at `x`.
pub(crate) fn expected_slopes(x: &[f32]) -> Expected {
    let x = wide(x);
    let mut want = vec![f64::NAN; x.len()];
    reference::gelu_backward(&mut want, &vec![1.0; x.len()], &x);
    let tolerance = x.iter().map(|&x| tolerances(x).1 + twin_off(x) * (1.0 + slope_of_argument(x))).collect();
    Expected { name: "slope", want, tolerance }
}

fn compare(x: &[f32]) {
    let again = Expected { name: "gelu with slope", ..expected_values(x) };
    let expected = [expected_values(x), again, expected_slopes(x)];
    check("gelu", &x.len(), &expected, || apply(x).into());
}

/// GELU of each element; then the same, and the slope, from the backward function.
fn apply(x: &[f32]) -> [Vec<f32>; 3] {
    let [mut value, mut again] = [(); 2].map(|()| vec![f32::NAN; x.len()]);
    let mut slope = vec![1.0; x.len()];
    Isa::detected().run(
        #[inline(always)]
        || {
            gelu_of_row(&mut value, x);
            gelu_backward_of_row(&mut slope, &mut again, x);
        },
    );
    [value, again, slope]
}

/// `z = 2 u`, the argument of the logistic function in GELU.
fn argument(x: f64) -> f64 {
    2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))
}

fn slope_of_argument(x: f64) -> f64 {
    2.0 * (2.0 / std::f64::consts::PI).sqrt() * (1.0 + 3.0 * 0.044715 * x * x)
}

fn logistic(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

/// The error of the twin. Where tanh is nearly -1, `1 + tanh` and `1 - tanh^2` cancel: the twin is off by eps of f64 or
/// twice that, times `x`, and for the slope also times the slope of the argument. From 20 on, the tanh is exactly 1.
fn twin_off(x: f64) -> f64 {
    if x.abs() > 20.0 { 0.0 } else { f64::EPSILON * x.abs() }
}

/// The tolerances of `y = x s` and of its slope `s + x s (1 - s) 2 u'`, with `s = 1 / (1 + exp(-z))`, `z = 2 u`:
///
/// - `z` has at most 6 roundings: the constants of its two terms, the square, their sum, the product with `x`.
/// - `exp(-z)` turns them into `6 |z|` and adds its own.
/// - `s` multiplies them by the share of the exponential in the denominator, `1 - s`, and adds 2.
/// - `1 - s` has the error of `s` and one rounding.
/// - `2 u'` has at most 5 roundings: as `z`, without one product. The three products, the sum and one more add 5.
///
/// Below -10 the functions are constant; both values are at the end of the range of f32.
fn tolerances(x: f64) -> (f64, f64) {
    let near = x.clamp(-10.0, 10.0);
    let (z, slope) = (argument(near), slope_of_argument(near));
    let (s, rest) = (logistic(z), logistic(-z));
    let s_roundings = 2.0 + rest * (6.0 * z.abs() + EXP_ROUNDINGS);
    let size = x.abs().min(if x < 0.0 { 10.0 } else { f64::INFINITY }) * s;
    let product = near.abs() * s * slope * (rest * (s_roundings + 1.0 + 5.0 + 5.0) + s * s_roundings);
    let (left, left_slope) = if x < -10.0 { (10.0 * s, 10.0 * s * slope) } else { (0.0, 0.0) };
    let subnormal = TINY * f64::from(f32::EPSILON);
    let y = U * (s_roundings + 1.0) * size + left + subnormal;
    (y, U * (product + s * (s_roundings + 2.0)) + left_slope + subnormal)
}
