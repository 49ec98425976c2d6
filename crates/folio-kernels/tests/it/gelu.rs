//! Both forms of GELU: near zero, where they are curved, and far out, where they are 0 or the identity.

use std::f64::consts::PI;

use folio_kernels::gelu::{
    Gelu, gelu_backward_of_row, gelu_erf_backward_of_row, gelu_erf_of_row, gelu_of_row,
};
use folio_kernels::isa::Isa;
use folio_kernels::reference;

use crate::support::{EXP_ROUNDINGS, Expected, Random, TAIL_ROUNDINGS, TINY, U, check, on_every_isa, wide};

pub(crate) const FORMS: [Gelu; 2] = [Gelu::Tanh, Gelu::Erf];

#[test]
fn gelu_equals_its_twin() {
    for len in (0..=65).chain([100, 20_000]) {
        for reach in [1.0, 6.0, 12.0, 40.0] {
            FORMS.iter().for_each(|&form| compare(form, &Random(41).as_f32(len, reach)));
        }
    }
}

#[test]
fn gelu_equals_its_twin_at_the_extremes() {
    let near =
        [0.0, 1e-45, 1e-38, 1e-10, 9.999_999, 10.0, 10.000_001, 10.5, 11.0, 12.499_999, 12.5, 12.500_001];
    let far = (1..=38).map(|exponent| 10.0f32.powi(exponent)).chain([f32::MAX]);
    let x: Vec<f32> = near.into_iter().chain(far).flat_map(|x| [x, -x]).collect();
    FORMS.iter().for_each(|&form| compare(form, &x));
}

#[test]
fn gelu_is_zero_far_left_and_the_identity_far_right() {
    let far: Vec<f32> = (0..=30).map(|exponent| 12.5 * 10.0f32.powi(exponent)).collect();
    let negative: Vec<f32> = far.iter().map(|x| -x).collect();
    for form in FORMS {
        on_every_isa(|isa| {
            let [value, again, slope] = apply(form, &far);
            assert_eq!((&value, &again), (&far, &far), "{form:?} on {}", isa.name());
            assert!(slope.iter().all(|&slope| slope == 1.0), "{form:?} on {}: {slope:?}", isa.name());
            for all in apply(form, &negative) {
                // In f32, gelu(-10) of the tanh form and its slope are about 5 and 240 times the smallest normal number;
                // gelu(-12.5) and its slope of the exact form are 4e3 and 5e4 times.
                let most = if form == Gelu::Tanh { 256.0 } else { 65_536.0 } * TINY;
                assert!(
                    all.iter().all(|x| (-most..=0.0).contains(&f64::from(*x))),
                    "{form:?} on {}: {all:?}",
                    isa.name()
                );
            }
        });
    }
}

#[test]
fn infinities_give_the_limits_and_nan_gives_nan() {
    for form in FORMS {
        on_every_isa(|isa| {
            let case = format!("{form:?} on {}", isa.name());
            let [value, again, slope] = apply(form, &[f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
            for value in [&value, &again] {
                assert_eq!(value[0], f32::INFINITY, "{case}");
                assert!(value[1].abs() < 1e-34 && value[2].is_nan(), "{case}: {value:?}");
            }
            assert_eq!(slope[0], 1.0, "{case}");
            assert!(slope[1].abs() < 1e-33 && slope[2].is_nan(), "{case}: {slope:?}");
        });
    }
}

#[test]
fn the_lower_tail_is_accurate_in_relative_terms() {
    // Unlike the twin's tanh, the logistic form does not cancel for large negative arguments. Nor does the exact form, but
    // its twin does not either.
    let x: Vec<f32> = (0..=10_000).map(|i| -(i as f32) / 1000.0).collect();
    let want: Vec<f64> = wide(&x).iter().map(|&x| x * logistic(argument(x))).collect();
    let tolerance = wide(&x).iter().map(|&x| tanh_tolerances(x).0).collect();
    check("gelu", &"lower tail", &[Expected { name: "y", want, tolerance }], || {
        let [value, ..] = apply(Gelu::Tanh, &x);
        vec![value]
    });
}

#[test]
fn the_exact_form_has_the_published_values() {
    // P(Z <= x) for x = 1, 2, 3: Abramowitz and Stegun 1964, table 26.1, to 15 digits.
    let table = [(1.0, 0.841_344_746_068_543), (2.0, 0.977_249_868_051_821), (3.0, 0.998_650_101_968_370)];
    for (x, cdf) in table {
        let mut y = [f64::NAN; 2];
        reference::gelu_forward(Gelu::Erf, &mut y, &[x, -x]);
        assert!((y[0] - x * cdf).abs() <= 4.0 * x * 1e-15, "{x}: {y:?}");
        assert!((y[1] + x * (1.0 - cdf)).abs() <= 4.0 * x * 1e-15, "-{x}: {y:?}");
    }
}

/// GELU of `x`.
pub(crate) fn expected_values(form: Gelu, x: &[f32]) -> Expected {
    let x = wide(x);
    let mut want = vec![f64::NAN; x.len()];
    reference::gelu_forward(form, &mut want, &x);
    let tolerance = x.iter().map(|&x| match form {
        Gelu::Tanh => tanh_tolerances(x).0 + twin_off(x),
        Gelu::Erf => erf_tolerances(x).0,
    });
    let tolerance = tolerance.collect();
    Expected { name: "gelu", want, tolerance }
}

/// The derivative of GELU at `x`.
pub(crate) fn expected_slopes(form: Gelu, x: &[f32]) -> Expected {
    let x = wide(x);
    let mut want = vec![f64::NAN; x.len()];
    reference::gelu_backward(form, &mut want, &vec![1.0; x.len()], &x);
    let tolerance = x.iter().map(|&x| match form {
        Gelu::Tanh => tanh_tolerances(x).1 + twin_off(x) * (1.0 + slope_of_argument(x)),
        Gelu::Erf => erf_tolerances(x).1,
    });
    let tolerance = tolerance.collect();
    Expected { name: "slope", want, tolerance }
}

fn compare(form: Gelu, x: &[f32]) {
    let again = Expected { name: "gelu with slope", ..expected_values(form, x) };
    let expected = [expected_values(form, x), again, expected_slopes(form, x)];
    check("gelu", &(form, x.len()), &expected, || apply(form, x).into());
}

/// GELU of each element; then the same, and the slope, from the backward function.
fn apply(form: Gelu, x: &[f32]) -> [Vec<f32>; 3] {
    let [mut value, mut again] = [(); 2].map(|()| vec![f32::NAN; x.len()]);
    let mut slope = vec![1.0; x.len()];
    Isa::detected().run(
        #[inline(always)]
        || match form {
            Gelu::Tanh => {
                gelu_of_row(&mut value, x);
                gelu_backward_of_row(&mut slope, &mut again, x);
            }
            Gelu::Erf => {
                gelu_erf_of_row(&mut value, x);
                gelu_erf_backward_of_row(&mut slope, &mut again, x);
            }
        },
    );
    [value, again, slope]
}

/// `z = 2 u`, the argument of the logistic function in GELU.
fn argument(x: f64) -> f64 {
    2.0 * (2.0 / PI).sqrt() * (x + 0.044715 * x.powi(3))
}

fn slope_of_argument(x: f64) -> f64 {
    2.0 * (2.0 / PI).sqrt() * (1.0 + 3.0 * 0.044715 * x * x)
}

fn logistic(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

/// The error of the tanh form's twin. Where tanh is nearly -1, `1 + tanh` and `1 - tanh^2` cancel: the twin is off by eps of f64 or
/// twice that, times `x`, and for the slope also times the slope of the argument. From 20 on, the tanh is exactly 1.
fn twin_off(x: f64) -> f64 {
    if x.abs() > 20.0 { 0.0 } else { f64::EPSILON * x.abs() }
}

/// The tolerances of the tanh form: of `y = x s` and of its slope `s + x s (1 - s) 2 u'`, with `s = 1 / (1 + exp(-z))`, `z = 2 u`:
///
/// - `z` has at most 6 roundings: the constants of its two terms, the square, their sum, the product with `x`.
/// - `exp(-z)` turns them into `6 |z|` and adds its own.
/// - `s` multiplies them by the share of the exponential in the denominator, `1 - s`, and adds 2.
/// - `1 - s` has the error of `s` and one rounding.
/// - `2 u'` has at most 5 roundings: as `z`, without one product. The three products, the sum and one more add 5.
///
/// Below -10 the functions are constant; both values are at the end of the range of f32.
fn tanh_tolerances(x: f64) -> (f64, f64) {
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

/// The tolerances of the exact form: of `y = x c` and of its slope `c + x e / sqrt(2 pi)`, with `e = exp(-x^2 / 2)`, the tail
/// `t = e scaled_normal_tail(|x|)` and `c = P(Z <= x)`, which is `t` left of zero and `1 - t` right of it:
///
/// - The exponent has 3 roundings: the square, the constant and their product. `e` turns them into `3 x^2 / 2` and adds its
///   own.
/// - `t` has those of both factors, and one for their product; `1 - t` adds one of `c`.
/// - The second term of the slope has those of `e`, and one each for the constant and two products; the sum adds one.
///
/// The twin in f64 is exact by comparison: its `1/2 + ...` cancels down to P(Z <= -3) = 1.3e-3, which costs a factor of 400 of
/// 2^29. Below -12.5 the functions are constant; both values are at the end of the range of f32.
fn erf_tolerances(x: f64) -> (f64, f64) {
    let near = x.clamp(-12.5, 12.5);
    let e = (-near * near / 2.0).exp();
    let density = e / (2.0 * PI).sqrt();
    // P(Z > z) < density / z, and at most 1/2.
    let tail = (density / near.abs()).min(0.5);
    let cdf = if x < 0.0 { tail } else { 1.0 };
    let e_roundings = 1.5 * near * near + EXP_ROUNDINGS;
    let c = tail * (e_roundings + TAIL_ROUNDINGS + 1.0) + cdf;
    let size = x.abs().min(if x < 0.0 { 12.5 } else { f64::INFINITY });
    let slope = c + near.abs() * density * (e_roundings + 3.0) + cdf + near.abs() * density;
    let left = if x < -12.5 { 12.5 * density } else { 0.0 };
    let subnormal = TINY * f64::from(f32::EPSILON);
    (U * size * (c + cdf) + left + subnormal, U * slope + 12.5 * left + subnormal)
}
