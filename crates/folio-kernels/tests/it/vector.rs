//! Row and scalar functions, against f64.

use folio_kernels::gelu::Gelu;
use folio_kernels::isa::Isa;
use folio_kernels::reference;
use folio_kernels::vector::{self, LANES, map_lanes};

use crate::support::{
    EXP_ROUNDINGS, Expected, Random, TAIL_ROUNDINGS, U, check, on_every_isa, sum_depth, wide,
};

/// Up to two rounds of the 32 lanes and one more; then row lengths as they occur in models.
fn lengths() -> impl Iterator<Item = usize> {
    (0..=65).chain([95, 96, 97, 127, 128, 129, 768, 1023, 4097])
}

#[test]
fn exp_has_a_relative_error_of_at_most_two_eps() {
    let (lowest, highest) = (-87.0f32, 88.0f32);
    let steps = 1 << 18;
    let mut x: Vec<f32> =
        (0..=steps).map(|i| lowest + (highest - lowest) * (i as f32 / steps as f32)).collect();
    // Small arguments, and both sides of the odd multiples of ln(2) / 2, where n changes.
    x.extend((-120..=0).flat_map(|e| [2.0f32.powi(e), -2.0f32.powi(e)]));
    for n in -125..127 {
        let middle = ((f64::from(n) + 0.5) * std::f64::consts::LN_2) as f32;
        x.extend((-8..=8).map(|ulps: i32| f32::from_bits(middle.to_bits().wrapping_add_signed(ulps))));
    }
    assert!(x.iter().all(|x| (lowest..=highest).contains(x)));
    let want: Vec<f64> = wide(&x).iter().map(|x| x.exp()).collect();
    let tolerance = want.iter().map(|want| EXP_ROUNDINGS * U * want).collect();
    let expected = [Expected { name: "exp", want, tolerance }];
    check("exp", &(lowest, highest), &expected, || vec![on_all(&x, vector::exp)]);
}

#[test]
fn exp_is_clamped_at_the_extremes() {
    let (least, greatest) = (vector::exp(-87.0), vector::exp(88.0));
    assert!(least >= f32::MIN_POSITIVE && greatest.is_finite());
    let below = [-87.000_01, -88.0, -1e4, f32::MIN, f32::NEG_INFINITY];
    let above = [88.000_01, 89.0, 1e4, f32::MAX, f32::INFINITY];
    let tiny = f32::from_bits(1);
    let around_zero = [0.0, -0.0, tiny, -tiny, f32::MIN_POSITIVE, -f32::MIN_POSITIVE, 1e-9, -1e-9];
    on_every_isa(|isa| {
        assert_eq!(on_all(&below, vector::exp), [least; 5], "{}", isa.name());
        assert_eq!(on_all(&above, vector::exp), [greatest; 5], "{}", isa.name());
        assert_eq!(on_all(&around_zero, vector::exp), [1.0; 8], "{}", isa.name());
        assert!(on_all(&[f32::NAN], vector::exp)[0].is_nan(), "{}", isa.name());
    });
}

#[test]
fn exp_of_negative_is_as_exact_as_documented() {
    // At the lower end, 2^-126, the rounded argument decides whether the result is 0.
    let lowest = -126.0 * std::f32::consts::LN_2 * (1.0 - 1e-6);
    let steps = 1 << 18;
    let mut x: Vec<f32> = (0..=steps).map(|i| lowest * (i as f32 / steps as f32)).collect();
    x.extend((0..=1000).map(|i| 0.087 * i as f32));
    x.extend((-120..=0).flat_map(|e| [2.0f32.powi(e), -2.0f32.powi(e)]));
    let want: Vec<f64> = wide(&x).iter().map(|x| x.exp()).collect();
    let eps = |x: f32| f64::from(x.abs() + 2.0) * f64::from(f32::EPSILON);
    let tolerance = want.iter().zip(&x).map(|(want, &x)| eps(x) * want).collect();
    let expected = [Expected { name: "exp", want, tolerance }];
    check("exp_of_negative", &lowest, &expected, || vec![on_all(&x, vector::exp_of_negative)]);
    on_every_isa(|isa| {
        let below = on_all(&[-87.4, -1e4, f32::MIN, f32::NEG_INFINITY], vector::exp_of_negative);
        assert_eq!(below, [0.0; 4], "{}", isa.name());
        assert_eq!(on_all(&[0.0, -0.0], vector::exp_of_negative), [1.0; 2], "{}", isa.name());
        let nans = [f32::NAN, f32::from_bits(0x7fc0_0001)];
        assert!(on_all(&nans, vector::exp_of_negative).iter().all(|y| y.is_nan()), "{}", isa.name());
    });
}

#[test]
fn exp2_has_a_relative_error_of_at_most_two_eps() {
    let steps = 1 << 18;
    let mut x: Vec<f32> = (0..=steps).map(|i| 252.0 * (i as f32 / steps as f32) - 126.0).collect();
    x.extend((-120..=0).flat_map(|e| [2.0f32.powi(e), -2.0f32.powi(e)]));
    // Both sides of the arguments where n changes.
    for n in -126..126 {
        let middle = n as f32 + 0.5;
        x.extend((-8..=8).map(|ulps: i32| f32::from_bits(middle.to_bits().wrapping_add_signed(ulps))));
    }
    let want: Vec<f64> = wide(&x).iter().map(|x| x.exp2()).collect();
    let tolerance = want.iter().map(|want| EXP_ROUNDINGS * U * want).collect();
    check("exp2", &x.len(), &[Expected { name: "exp2", want, tolerance }], || {
        let mut y = vec![f32::NAN; x.len()];
        Isa::detected().run(
            #[inline(always)]
            || map_lanes([&mut y], &x, |_, x| [vector::exp2(x)]),
        );
        vec![y]
    });
    let power_of_zero = |zero: f32| vector::exp2(zero.into()).to_array();
    assert_eq!((power_of_zero(0.0), power_of_zero(-0.0)), ([1.0; LANES], [1.0; LANES]));
}

#[test]
fn the_scaled_normal_tail_has_a_relative_error_of_at_most_three_eps() {
    let steps = 1 << 18;
    let mut z: Vec<f32> = (0..=steps).map(|i| 12.5 * (i as f32 / steps as f32)).collect();
    z.extend((-120..=3).map(|e| 2.0f32.powi(e)));
    // gelu(-z) = -z P(Z > z), of the twin, which computes small probabilities without cancellation.
    let wide: Vec<f64> = wide(&z).iter().map(|&z| z.max(1e-40)).collect();
    let mut values = vec![f64::NAN; z.len()];
    reference::gelu_forward(Gelu::Erf, &mut values, &wide.iter().map(|z| -z).collect::<Vec<_>>());
    let want: Vec<f64> = values.iter().zip(&wide).map(|(y, z)| -y / z * (z * z / 2.0).exp()).collect();
    let tolerance = want.iter().map(|want| TAIL_ROUNDINGS * U * want).collect();
    check("scaled_normal_tail", &z.len(), &[Expected { name: "tail", want, tolerance }], || {
        let mut y = vec![f32::NAN; z.len()];
        Isa::detected().run(
            #[inline(always)]
            || map_lanes([&mut y], &z, |_, z| [vector::scaled_normal_tail(z)]),
        );
        vec![y]
    });
}

#[test]
fn sums_equal_those_of_f64() {
    for len in lengths() {
        let mut random = Random(91);
        let (a, b) = (random.as_f32(len, 1.0), random.as_f32(len, 1.0));
        let terms: Vec<f64> = wide(&a).iter().zip(wide(&b)).map(|(a, b)| a * b).collect();
        let size = |terms: &[f64]| terms.iter().map(|term| term.abs()).sum::<f64>();
        let depth = sum_depth(len) as usize;
        let expected = [
            Expected::from_sizes("sum", depth, vec![wide(&a).iter().sum()], vec![size(&wide(&a))]),
            Expected::from_sizes("sum_by", depth + 1, vec![terms.iter().sum()], vec![size(&terms)]),
        ];
        check("sums", &len, &expected, || {
            let sums = Isa::detected().run(
                #[inline(always)]
                || [vector::sum(&a), vector::sum_by([&a, &b], |[a, b]| a * b)],
            );
            sums.map(|sum| vec![sum]).into()
        });
    }
}

#[test]
fn sums_of_small_integers_are_exact() {
    for len in lengths() {
        let x: Vec<f32> = (0..len).map(|i| (i * i % 1013) as f32 - 500.0).collect();
        // No partial sum reaches 2^24.
        let want = wide(&x).iter().sum::<f64>() as f32;
        on_every_isa(|isa| {
            let got = isa.run(
                #[inline(always)]
                || vector::sum(&x),
            );
            assert_eq!(got, want, "{len} on {}", isa.name());
        });
    }
}

#[test]
fn max_finds_the_maximum_at_every_index() {
    on_every_isa(|isa| {
        let max = |x: &[f32]| {
            isa.run(
                #[inline(always)]
                || vector::max(x),
            )
        };
        assert_eq!(max(&[]), f32::NEG_INFINITY);
        for len in 1..=97 {
            let low: Vec<f32> = (0..len).map(|i| -5.0 - i as f32).collect();
            for place in 0..len {
                for greatest in [-1.5, 0.0, f32::MAX, f32::INFINITY] {
                    let mut x = low.clone();
                    x[place] = greatest;
                    assert_eq!(max(&x), greatest, "{place} of {len} on {}", isa.name());
                }
                let mut x = low.clone();
                x[place] = f32::NAN;
                let want = if len == 1 { f32::NEG_INFINITY } else { -5.0 - f32::from(u8::from(place == 0)) };
                assert_eq!(max(&x), want, "NaN at {place} of {len} on {}", isa.name());
            }
            assert_eq!(max(&vec![f32::NEG_INFINITY; len]), f32::NEG_INFINITY);
        }
    });
}

/// `f` of each element, compiled for the current instruction set.
#[inline(always)]
fn on_all(x: &[f32], f: impl Fn(f32) -> f32) -> Vec<f32> {
    let mut y = vec![f32::NAN; x.len()];
    Isa::detected().run(
        #[inline(always)]
        || y.iter_mut().zip(x).for_each(|(y, &x)| *y = f(x)),
    );
    y
}
