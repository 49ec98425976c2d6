//! The naive twins: every operation of the model as the plain loops its formula asks for.
//!
//! They are the oracle of the fast kernels in this crate's tests, and the place to read what an operation
//! does. They run in f32 and in f64; in f64 `tests/it/finite_differences.rs` checks each backward against its
//! own forward. A number such as `math.md (7)` names an equation of `docs/math.md`, where it is derived.
//!
//! The legend: B batch, T time, C channels, H heads, D head size, V vocabulary; M, K and N are the rows,
//! inputs and outputs of a product. `dx` is the gradient of the loss with respect to `x` and has the shape of
//! `x`. Every function panics if the length of a slice is not the product of its shape.
//!
//! ```
//! use folio_kernels::{dims::LinearDims, reference};
//! let dims = LinearDims { rows: 1, inputs: 2, outputs: 3 };
//! let (x, w) = ([1.0, 2.0], [1.0, 0.0, -1.0, 0.5, 1.0, 2.0]);
//! let mut y = [0.0; 3];
//! reference::linear_forward(dims, &mut y, &x, &w, Some(&[0.0, 0.0, 1.0]));
//! assert_eq!(y, [2.0, 2.0, 4.0]);
//! ```

#![expect(clippy::needless_range_loop, reason = "loops run over the indices that the formulas name")]

mod linear;
pub use linear::{linear_backward_input, linear_backward_parameters, linear_forward};

mod embedding;
pub use embedding::{embedding_backward, embedding_forward};

mod layernorm;
pub use layernorm::{EPS, layernorm_backward, layernorm_forward};

mod gelu;
pub use gelu::{gelu_backward, gelu_forward};

mod dropout;
pub use dropout::{dropout_backward, dropout_forward, dropout_residual_forward};

mod attention;
pub use attention::{attention_backward, attention_forward};

mod cross_entropy;
pub use cross_entropy::{cross_entropy, cross_entropy_loss};

mod adamw;
pub use adamw::adamw;

mod amx;
pub use amx::amx_dot;

use num_traits::{Float, NumAssign};

/// A number of the formulas, rounded to the precision at hand.
fn real<F: Float>(value: f64) -> F {
    F::from(value).expect("f32 and f64 are made from any f64")
}

/// The sum of the products of two vectors of one length.
fn dot<F: Float + NumAssign>(a: &[F], b: &[F]) -> F {
    let mut sum = F::zero();
    for (&a, &b) in a.iter().zip(b) {
        sum += a * b;
    }
    sum
}

/// Panics unless the argument `name` holds the elements that its shape asks for.
#[track_caller]
fn expect_len<E>(name: &str, argument: &[E], shape: &[usize]) {
    let (got, want) = (argument.len(), shape.iter().product::<usize>());
    assert_eq!(got, want, "`{name}` has {got} elements, and its shape {shape:?} asks for {want}");
}
