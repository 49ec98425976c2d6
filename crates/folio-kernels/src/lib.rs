//! The ten operations of a GPT-2, forward and backward, over plain slices.
//!
//! Each operation is a pair of free functions, `op_forward` and `op_backward`, that share a file; what follows a
//! product (a bias, GELU, dropout, the loss) is part of it. `dx` is the gradient of the loss by `x`. Every output
//! says whether it is overwritten or accumulated into. Nothing here allocates: the caller owns all buffers, scratch
//! included.
//!
//! Legend of dimensions, used everywhere: B batch, T time, C channels, H heads, D head size, V vocabulary,
//! L layers. The backward passes are derived and numbered in `docs/math.md`.
//!
//! Kernels run on the thread that calls them, over the tokens of one sequence; threads are the caller's matter.
//! Only the embedding's backward pass and the optimizer, which go over whole parameters, use rayon's current thread
//! pool. Every sum has a fixed order, so that results do not depend on the number of threads.
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

mod arch;
pub mod buffer;
pub mod columns;
pub mod element;
pub mod matmul;
pub mod panels;
pub mod quantized;
mod tile;
mod transpose;

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
pub mod rounding;
