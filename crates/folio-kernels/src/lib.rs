//! The ten operations of a GPT-2, forward and backward, over plain slices.
//!
//! Each operation is a pair of free functions, `op_forward` and `op_backward`, that share a file. `dx` is the
//! gradient of the loss by `x`. Every output says whether it is overwritten or accumulated into. Nothing here
//! allocates: the caller owns all buffers, scratch included.
//!
//! Legend of dimensions, used everywhere: B batch, T time, C channels, H heads, D head size, V vocabulary,
//! L layers. The backward passes are derived and numbered in `docs/math.md`.
//!
//! The kernels run on rayon's current thread pool. Work is cut into pieces by size alone and every sum has a
//! fixed order, so that results do not depend on the number of threads.
//!
//! ```
//! use folio_kernels::{dims::LinearDims, linear};
//! let dims = LinearDims { rows: 1, inputs: 2, outputs: 2 };
//! let mut y = [0.0; 2];
//! linear::linear_forward(dims, &mut y, &[1.0, 2.0], &[1.0, 0.0, 0.0, 1.0], Some(&[0.5, 0.5]));
//! assert_eq!(y, [1.5, 2.5]);
//! ```

pub mod dims;
pub mod isa;
pub mod vector;

pub mod buffer;
pub mod element;
pub mod matmul;
pub mod panels;
mod tile;

pub mod adamw;
pub mod attention;
pub mod dropout;
pub mod embedding;
pub mod gelu;
pub mod head;
pub mod layernorm;
pub mod linear;

pub mod peak;
pub mod reference;
