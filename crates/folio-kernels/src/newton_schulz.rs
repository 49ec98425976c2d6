//! Newton–Schulz iterations, which bring the singular values of a matrix near 1: the direction of Muon's update.
//!
//! ```text
//! X <- U / norm(U), transposed if it has more rows than columns
//! X <- a X + (b A + c A²) X with A = X Xᵀ, five times
//! ```
//! Every step maps each singular value s to `a s + b s³ + c s⁵` and keeps the singular vectors. With these coefficients, values
//! above 0.003 end between 0.68 and 1.21. Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".

use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::element::Element;
use crate::isa::Isa;
use crate::linear::for_each_row;
use crate::matmul::{Cost, Lhs};
use crate::panels::{PanelDims, Panels, Reuse, pack_columns_panel, pack_rows_panel};
use crate::rounding::round;

/// a, b and c.
pub const COEFFICIENTS: [f64; 3] = [3.4445, -4.7750, 2.0315];
/// The number of iterations.
pub const ITERATIONS: usize = 5;

/// A smaller norm counts as this one. It is so small that the result does not depend on the scale of a gradient; Jordan's
/// code adds 1e-7.
const LEAST_NORM: f64 = 1e-30;
/// Rows per task of a matmul: whole tiles on every instruction set.
const PIECE: usize = 96;
/// Rows per task of an elementwise loop: a transposed read takes a whole cache line.
const STRIP: usize = 16;

/// Some adjacent columns of a matrix (rows, stride): the queries' part of `c_attn`, or a whole matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Rows.
    pub rows: usize,
    /// How many columns.
    pub cols: usize,
    /// The first of them.
    pub first: usize,
    /// Columns of the whole matrix.
    pub stride: usize,
}

impl Columns {
    /// S, the smaller side.
    pub fn short(self) -> usize {
        self.rows.min(self.cols)
    }

    /// L, the larger side.
    pub fn long(self) -> usize {
        self.rows.max(self.cols)
    }

    fn is_tall(self) -> bool {
        self.rows > self.cols
    }

    /// The index of the element that becomes row `r`, column `c` of X.
    #[inline(always)]
    fn index(self, r: usize, c: usize) -> usize {
        let (row, col) = if self.is_tall() { (c, r) } else { (r, c) };
        row * self.stride + self.first + col
    }
}

/// The buffers of an iteration.
#[derive(Debug)]
pub struct NewtonSchulz<E> {
    /// X (S, L), its rows padded to whole units.
    x: Buffer<E>,
    /// Xᵀ or X in panels.
    x_panels: Buffer<E>,
    /// A (S, S), padded.
    a: Buffer<E>,
    /// A in panels.
    a_panels: Buffer<E>,
    /// b A + c A² (S, S), padded.
    b: Buffer<E>,
    /// The sum of squares of each strip.
    squares: Vec<f64>,
}

impl<E: Element> NewtonSchulz<E> {
    /// Buffers for matrices whose smaller side is at most `short`, and whose larger side is at most `long`.
    pub fn new(short: usize, long: usize) -> Self {
        let panels = |depth, cols| PanelDims { depth, cols }.len::<E>();
        let side = short * padded::<E>(short);
        Self {
            x: Buffer::zeroed(short * padded::<E>(long)),
            x_panels: Buffer::zeroed(panels(long, short).max(panels(short, long))),
            a: Buffer::zeroed(side),
            a_panels: Buffer::zeroed(panels(short, short)),
            b: Buffer::zeroed(side),
            squares: vec![0.0; short.div_ceil(STRIP)],
        }
    }

    /// Bytes of the buffers for matrices of this size, without padding.
    pub fn bytes(short: usize, long: usize) -> usize {
        (2 * short * long + 3 * short * short) * size_of::<E>()
    }

    /// Computes X from the matrix `u`, whose elements are `element(index)`.
    ///
    /// # Panics
    /// If the matrix is too large for the buffers.
    pub fn orthogonalize(&mut self, u: Columns, iterations: usize, element: impl Fn(usize) -> f32 + Sync) {
        let (short, long) = (u.short(), u.long());
        self.load(u, element);
        for _ in 0..iterations {
            self.iterate(short, long);
        }
    }

    /// `parameter <- parameter - (decay parameter + rate X)`, for the columns `u` that X was computed from.
    ///
    /// - `parameter` (rows, stride): these columns are updated in place.
    pub fn update(&self, u: Columns, parameter: &mut [f32], decay: f32, rate: f32) {
        assert_eq!(parameter.len(), u.rows * u.stride, "elements of the parameter of {u:?}");
        let row_len = padded::<E>(u.long());
        parameter.par_chunks_mut(STRIP * u.stride).enumerate().for_each(|(strip, parameter)| {
            let (start, rows) = (strip * STRIP, parameter.len() / u.stride);
            let step = |p: &mut f32, x: E| *p -= decay * *p + rate * x.to_f32();
            if u.is_tall() {
                for c in 0..u.cols {
                    let x = &self.x[c * row_len + start..][..rows];
                    let column = parameter[u.first + c..].iter_mut().step_by(u.stride);
                    column.zip(x).for_each(|(p, &x)| step(p, x));
                }
            } else {
                for (r, parameter) in parameter.chunks_exact_mut(u.stride).enumerate() {
                    let x = &self.x[(start + r) * row_len..][..u.cols];
                    parameter[u.first..].iter_mut().zip(x).for_each(|(p, &x)| step(p, x));
                }
            }
        });
    }

    /// `X = U / norm(U)`.
    fn load(&mut self, u: Columns, element: impl Fn(usize) -> f32 + Sync) {
        let (short, long) = (u.short(), u.long());
        let row_len = padded::<E>(long);
        let strips = short.div_ceil(STRIP);
        let rows_of = |strip: usize| strip * STRIP..((strip + 1) * STRIP).min(short);
        self.squares[..strips].par_iter_mut().enumerate().for_each(|(strip, squares)| {
            *squares = 0.0;
            for_each_element(u, rows_of(strip), |index, _, _| {
                *squares += f64::from(element(index)).powi(2);
            });
        });
        let norm = self.squares[..strips].iter().sum::<f64>().sqrt();
        let scale = (1.0 / norm.max(LEAST_NORM)) as f32;
        let x = &mut self.x[..short * row_len];
        x.par_chunks_mut(STRIP * row_len).enumerate().for_each(|(strip, x)| {
            for_each_element(u, rows_of(strip), |index, r, c| {
                x[r * row_len + c] = E::from_f32(scale * element(index));
            });
            x.chunks_exact_mut(row_len).for_each(|row| row[long..].fill(E::default()));
        });
        // The padding of an earlier, wider matrix.
        let side_len = padded::<E>(short);
        for side in [&mut self.a, &mut self.b] {
            side[..short * side_len]
                .chunks_exact_mut(side_len)
                .for_each(|row| row[short..].fill(E::default()));
        }
    }

    fn iterate(&mut self, short: usize, long: usize) {
        let [a, b, c] = COEFFICIENTS.map(|coefficient| coefficient as f32);
        let isa = Isa::detected();
        let (row_len, side_len) = (padded::<E>(long), padded::<E>(short));
        let x = &mut self.x[..short * row_len];
        let side = short * side_len;
        // A = X Xᵀ
        let dims = PanelDims { depth: long, cols: short };
        let panels = pack(isa, dims, &mut self.x_panels, x, row_len, Source::Transposed);
        multiply(
            isa,
            (x, row_len),
            panels,
            (&mut self.a[..side], side_len),
            #[inline(always)]
            |_, _, out, sums| round(isa, out, sums),
        );
        // B = b A + c A²
        let gram = &self.a[..side];
        let dims = PanelDims { depth: short, cols: short };
        let panels = pack(isa, dims, &mut self.a_panels, gram, side_len, Source::AsIs);
        multiply(
            isa,
            (gram, side_len),
            panels,
            (&mut self.b[..side], side_len),
            #[inline(always)]
            |row, col, out, sums| {
                let gram = &gram[row * side_len + col..][..sums.len()];
                sums.iter_mut().zip(gram).for_each(|(sum, gram)| *sum = b * gram.to_f32() + c * *sum);
                round(isa, out, sums);
            },
        );
        // X = a X + B X
        let dims = PanelDims { depth: short, cols: long };
        let panels = pack(isa, dims, &mut self.x_panels, x, row_len, Source::AsIs);
        multiply(
            isa,
            (&self.b[..side], side_len),
            panels,
            (x, row_len),
            #[inline(always)]
            |_, _, out, sums| {
                sums.iter_mut().zip(&*out).for_each(|(sum, x)| *sum += a * x.to_f32());
                round(isa, out, sums);
            },
        );
    }
}

/// The length of a row of `cols` elements in whole units.
fn padded<E: Element>(cols: usize) -> usize {
    cols.next_multiple_of(E::PER_UNIT)
}

/// Calls `visit(index, row from the first, column)` for the elements of some rows of X, in the order of their indexes.
#[inline(always)]
fn for_each_element(u: Columns, rows: std::ops::Range<usize>, mut visit: impl FnMut(usize, usize, usize)) {
    if u.is_tall() {
        for c in 0..u.long() {
            rows.clone().for_each(|r| visit(u.index(r, c), r - rows.start, c));
        }
    } else {
        for r in rows.clone() {
            (0..u.long()).for_each(|c| visit(u.index(r, c), r - rows.start, c));
        }
    }
}

/// Which matrix is packed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    AsIs,
    Transposed,
}

/// Packs a matrix of shape `dims`, or the transpose of one, whose rows are `stride` apart.
fn pack<'a, E: Element>(
    isa: Isa,
    dims: PanelDims,
    out: &'a mut [E],
    matrix: &[E],
    stride: usize,
    source: Source,
) -> Panels<'a, E> {
    let out = &mut out[..dims.len::<E>()];
    out.par_chunks_exact_mut(dims.panel_len::<E>()).enumerate().for_each(|(panel, out)| {
        isa.run(
            #[inline(always)]
            || match source {
                Source::AsIs => pack_rows_panel(isa, dims, panel, out, matrix, stride, Reuse::Temporal),
                Source::Transposed => pack_columns_panel(isa, dims, panel, out, matrix, stride),
            },
        );
    });
    Panels::new(dims, out)
}

/// Calls `epilogue(row, column, out, sums)` for the rows of all tiles of `lhs rhs`, where `out` is the place of the sums in the
/// result. Both matrices come with the length of their rows.
fn multiply<E: Element>(
    isa: Isa,
    (lhs, lhs_len): (&[E], usize),
    rhs: Panels<E>,
    (out, out_len): (&mut [E], usize),
    epilogue: impl Fn(usize, usize, &mut [E], &mut [f32]) + Sync,
) {
    out.par_chunks_mut(PIECE * out_len).enumerate().for_each(|(piece, out)| {
        let first = piece * PIECE;
        let data = &lhs[first * lhs_len..];
        for_each_row(
            isa,
            out.len() / out_len,
            Lhs::Rows { data, stride: lhs_len },
            rhs,
            [],
            Cost::Low,
            #[inline(always)]
            |row, col, sums| {
                epilogue(first + row, col, &mut out[row * out_len + col..][..sums.len()], sums);
            },
        );
    });
}
