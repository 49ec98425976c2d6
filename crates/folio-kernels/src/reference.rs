//! The naive twins: every operation of the model, as the plain loops of its formula.
//!
//! They are the oracle for the fast kernels in this crate's tests, and the place to read what an operation computes.
//! They are generic over f32 and f64. In f64, `tests/it/finite_differences.rs` checks each backward function against
//! its forward function. References such as `math.md (7)` are to equations of `docs/math.md`.
//!
//! Legend: B batch, T time, C channels, H heads, D head size, V vocabulary; M, K and N are the rows, inputs and outputs
//! of a matmul. `dx` is the gradient of the loss with respect to `x` and has the shape of `x`. Every function panics if
//! the length of a slice does not match its shape.
//!
//! ```
//! use folio_kernels::{dims::LinearDims, reference};
//! let dims = LinearDims { rows: 1, inputs: 2, outputs: 3 };
//! let (x, w) = ([1.0, 2.0], [1.0, 0.0, -1.0, 0.5, 1.0, 2.0]);
//! let mut y = [0.0; 3];
//! reference::linear_forward(dims, &mut y, &x, &w, Some(&[0.0, 0.0, 1.0]));
//! assert_eq!(y, [2.0, 2.0, 4.0]);
//! ```

#![expect(clippy::needless_range_loop, reason = "loops run over the indices of the formulas")]

mod numeric;

mod linear;
pub use linear::{linear_backward_input, linear_backward_parameters, linear_forward};

mod embedding;
pub use embedding::{embedding_backward, embedding_forward};

mod layernorm;
pub use layernorm::{layernorm_backward, layernorm_forward};

mod gelu;
pub use gelu::{gelu_backward, gelu_forward};

mod dropout;
pub use dropout::{dropout_backward, dropout_forward, dropout_residual_forward};

mod attention;
pub use attention::{attention_backward, attention_forward};

mod cross_entropy;
pub use cross_entropy::{cross_entropy, cross_entropy_loss, soft_cross_entropy};

mod adamw;
pub use adamw::adamw;

mod newton_schulz;
pub use newton_schulz::newton_schulz;

mod amx;
pub use amx::amx_dot;

mod quantized;
pub use quantized::quantized_forward;
