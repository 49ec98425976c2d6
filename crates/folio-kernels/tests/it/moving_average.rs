//! Exponential moving averages.

use folio_kernels::moving_average::{update_average, update_scaled_average};

use crate::support::{Expected, Random, U, check, wide};

#[test]
fn a_scaled_average_is_that_of_scaled_values() {
    let mut random = Random(76);
    let (average, x) = (random.as_f32(20_000, 1.0), random.as_f32(20_000, 1.0));
    // Powers of 2 are exact.
    let (mut got, mut want) = (average.clone(), average);
    update_scaled_average(&mut got, &x, 0.25, 0.9);
    update_average(&mut want, &x.iter().map(|x| 0.25 * x).collect::<Vec<_>>(), 0.9);
    assert_eq!(got, want);
}

#[test]
fn an_average_equals_its_formula() {
    // Parallel tasks process 16,384 elements each.
    for len in [0, 1, 7, 15, 16, 33, 1000, 16_384, 16_387] {
        for decay in [0.0, 0.3, 0.5, 0.9, 0.9999] {
            let mut random = Random(75);
            let (average, x) = (random.as_f32(len, 1.0), random.as_f32(len, 1.0));
            let pairs = || wide(&average).into_iter().zip(wide(&x));
            let want: Vec<f64> = pairs().map(|(m, x)| decay * m + (1.0 - decay) * x).collect();
            // If decay >= 1/2, `m + (1 - decay) (x - m)`: one rounding each for the difference, for `1 - decay` and for the
            // product, relative to `(1 - decay) (|x| + |m|)`; one for the sum. If decay < 1/2, one each for decay, `1 - decay`
            // and their products; one for the sum.
            let off = pairs().zip(&want).map(|((m, x), want)| {
                let parts = if decay < 0.5 {
                    2.0 * (decay * m.abs() + (1.0 - decay) * x.abs())
                } else {
                    3.0 * (1.0 - decay) * (x.abs() + m.abs())
                };
                1.01 * U * (parts + want.abs())
            });
            let expected = Expected { name: "average", tolerance: off.collect(), want };
            check("update_average", &(len, decay), &[expected], || {
                let mut average = average.clone();
                update_average(&mut average, &x, decay);
                vec![average]
            });
        }
    }
}
