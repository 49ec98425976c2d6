//! Arithmetic and argument checks that the naive twins share.

use num_traits::{Float, NumAssign};

/// A constant, rounded to F.
pub(super) fn real<F: Float>(value: f64) -> F {
    F::from(value).expect("any f64 can be rounded to F")
}

/// The dot product of two vectors of equal length.
pub(super) fn dot<F: Float + NumAssign>(a: &[F], b: &[F]) -> F {
    let mut sum = F::zero();
    for (&a, &b) in a.iter().zip(b) {
        sum += a * b;
    }
    sum
}

/// Panics unless the length of the argument `name` matches its shape.
#[track_caller]
pub(super) fn expect_len<E>(name: &str, argument: &[E], shape: &[usize]) {
    let (got, want) = (argument.len(), shape.iter().product::<usize>());
    assert_eq!(got, want, "`{name}` has {got} elements, but its shape {shape:?} needs {want}");
}
