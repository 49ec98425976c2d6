//! Dropout. The mask is a pure function of a key and a position, so that it is never stored.
//!
//! `y = x * keep / (1 - rate)` with `keep ~ Bernoulli(1 - rate)` (Srivastava et al. 2014, "Dropout", in the inverted
//! form of PyTorch's `nn.Dropout`). The backward pass regenerates the mask from the key. A mask depends only on its
//! key, row and column; not on the number of threads, the order of the work or the instruction set.

use crate::dims::RowDims;
use crate::element::Element;
use crate::isa::Isa;
use crate::rounding::round;

/// The mask of one tensor in one step: the dropout rate, and the key of the random numbers.
///
/// ```
/// use folio_kernels::dropout::Dropout;
/// let dropout = Dropout::new(0.25, 42);
/// let row = dropout.row(3);
/// let kept = (0..10_000).filter(|&col| row.factor(col) != 0.0).count();
/// assert!((7_300..7_700).contains(&kept));
/// assert_eq!(row.factor(5), dropout.row(3).factor(5));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    key: u64,
    /// The first row of this part of the tensor.
    first_row: usize,
    /// An element is dropped if its 32 random bits are below this value.
    threshold: u32,
    /// `1 / (1 - rate)`, the factor on elements that are kept.
    scale: f32,
}

impl Dropout {
    /// A mask that drops each element with probability `rate`.
    ///
    /// # Panics
    /// If `rate` is outside `[0, 1)`.
    pub fn new(rate: f32, key: u64) -> Self {
        assert!((0.0..1.0).contains(&rate), "dropout rate {rate} is outside [0, 1)");
        Self {
            key,
            first_row: 0,
            threshold: (f64::from(rate) * 4_294_967_296.0) as u32,
            scale: 1.0 / (1.0 - rate),
        }
    }

    /// The mask that drops nothing.
    pub fn none() -> Self {
        Self::new(0.0, 0)
    }

    /// Whether the mask drops nothing.
    pub fn is_identity(self) -> bool {
        self.threshold == 0
    }

    /// The mask of the part of the tensor that starts `rows` rows further down.
    pub fn skip_rows(self, rows: usize) -> Self {
        Self { first_row: self.first_row + rows, ..self }
    }

    /// Row `row` of the mask. In a (B, T, C) tensor, rows are numbered by token, from 0 to B * T.
    #[inline(always)]
    pub fn row(self, row: usize) -> DropoutRow {
        let mixed = mix64(self.key ^ mix64((self.first_row + row) as u64));
        DropoutRow {
            low: mixed as u32,
            high: (mixed >> 32) as u32,
            threshold: self.threshold,
            scale: self.scale,
        }
    }
}

/// One row of a mask. Its columns are independent of each other and of every other row.
#[derive(Clone, Copy, Debug)]
pub struct DropoutRow {
    low: u32,
    high: u32,
    threshold: u32,
    scale: f32,
}

impl DropoutRow {
    /// The factor on the element in column `col`: 0 or `1 / (1 - rate)`. The column is a `u32` because vector registers
    /// hold twice as many of them as of `u64`.
    #[inline(always)]
    pub fn factor(self, col: u32) -> f32 {
        if self.bits(col) < self.threshold { 0.0 } else { self.scale }
    }

    /// Thirty-two random bits for a column: a keyed integer hash with the constants of Wellons' `lowbias32` (2018,
    /// "Prospecting for Hash Functions"). It uses only multiplications, shifts and xors, so that compilers vectorize a
    /// loop over columns.
    #[inline(always)]
    fn bits(self, col: u32) -> u32 {
        let mut x = col.wrapping_mul(0x9E37_79B9) ^ self.low;
        x = (x ^ (x >> 16)).wrapping_mul(0x7FEB_352D) ^ self.high;
        x = (x ^ (x >> 15)).wrapping_mul(0x846C_A68B);
        x ^ (x >> 16)
    }
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood 2014): a bijection of 64 bits in which every input bit affects
/// every output bit.
#[inline(always)]
fn mix64(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// `y = drop(y)`, in place.
///
/// - `y` (rows, cols): multiplied by the mask.
pub fn dropout_in_place(dims: RowDims, y: &mut [f32], dropout: Dropout) {
    assert_eq!(y.len(), dims.rows * dims.cols, "length of y for {dims:?}");
    if dropout.is_identity() {
        return;
    }
    Isa::detected().run(
        #[inline(always)]
        || {
            for (row_idx, y) in y.chunks_exact_mut(dims.cols).enumerate() {
                let row = dropout.row(row_idx);
                for (col, y) in (0..).zip(y) {
                    *y *= row.factor(col);
                }
            }
        },
    );
}

/// `dx = dy * mask`: math.md (18). Differentiates `y = drop(x)`, with the same mask.
///
/// - `dx` (rows, cols): overwritten.
/// - `dy` (rows, cols).
pub fn dropout_backward<E: Element>(dims: RowDims, dx: &mut [E], dy: &[f32], dropout: Dropout) {
    let len = dims.rows * dims.cols;
    assert_eq!((dx.len(), dy.len()), (len, len), "lengths of dx and dy for {dims:?}");
    let isa = Isa::detected();
    isa.run(
        #[inline(always)]
        || {
            if dropout.is_identity() {
                return round(isa, dx, dy);
            }
            let rows = dx.chunks_exact_mut(dims.cols).zip(dy.chunks_exact(dims.cols));
            for (row_idx, (dx, dy)) in rows.enumerate() {
                let row = dropout.row(row_idx);
                for (col, (dx, &dy)) in (0..).zip(dx.iter_mut().zip(dy)) {
                    *dx = E::from_f32(dy * row.factor(col));
                }
            }
        },
    );
}
