//! The ten operations of a GPT-2, forward and backward, over plain slices.
//!
//! - Each operation is a pair of free functions, `op_forward` and `op_backward`, in one file. Operations that follow a
//!   matmul (bias, GELU, dropout, loss) are fused into it as epilogues.
//! - `dx` is the gradient of the loss with respect to `x`. The documentation of every output says whether it is
//!   overwritten or accumulated into.
//! - No kernel allocates: the caller owns all buffers, including scratch.
//! - Kernels run on the calling thread, over the tokens of a few sequences; the caller parallelizes. Only the embedding's
//!   backward pass and the optimizer, which process whole parameters, use the current rayon thread pool.
//! - Every sum has a fixed order, so results do not depend on the number of threads.
//!
//! Legend of dimensions: B batch, T time, C channels, H heads, D head size, V vocabulary, L layers. The backward passes
//! are derived in `docs/math.md`, whose equation numbers the code cites.
//!
//! ```
//! use folio_kernels::columns::ColumnsMut;
//! use folio_kernels::dims::LinearDims;
//! use folio_kernels::isa::Isa;
//! use folio_kernels::linear::linear_forward;
//! use folio_kernels::panels::{PanelDims, Panels, pack_rows};
//!
//! let dims = LinearDims { rows: 1, inputs: 2, outputs: 2 };
//! let w_dims = PanelDims { depth: dims.inputs, cols: dims.outputs };
//! let mut w = vec![0.0f32; w_dims.len::<f32>()];
//! pack_rows(Isa::detected(), w_dims, &mut w, &[1.0f32, 2.0, 0.0, 1.0], dims.outputs);
//! let mut y = [0.0f32; 2];
//! let columns = ColumnsMut::new(&mut y, dims.outputs);
//! linear_forward(dims, columns, &[1.0, 2.0], Panels::new(w_dims, &w), &[0.5, 0.5]);
//! assert_eq!(y, [1.5, 4.5]);
//! ```

pub mod dims;
pub mod isa;
pub mod vector;

pub mod buffer;
pub mod columns;
pub mod element;

mod arch;
mod operand;
mod prefetch;
mod tile;

mod microkernel;
mod non_temporal;
pub mod rounding;
mod transpose;

pub mod matmul;
pub mod panels;
pub mod quantized;

pub mod adamw;
pub mod attention;
pub mod dropout;
pub mod embedding;
pub mod gelu;
pub mod head;
pub mod layernorm;
pub mod linear;
pub mod moving_average;
pub mod newton_schulz;

pub mod peak;
pub mod reference;
