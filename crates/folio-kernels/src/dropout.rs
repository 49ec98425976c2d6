//! Dropout whose mask is a function of a key and a position, so that no mask is ever stored.
//!
//! `y = x * keep / (1 - rate)` with `keep ~ Bernoulli(1 - rate)` (Srivastava et al. 2014, "Dropout", in the
//! inverted form of PyTorch's `nn.Dropout`). The backward pass draws the same mask again from the same key.
//! A mask depends on its key, its row and its column alone: never on the number of threads, the order of
//! the work or the instruction set.

use crate::dims::RowDims;
use crate::element::Element;
use crate::isa::Isa;
use crate::rounding::round;

/// The mask of one tensor in one step: how much to drop, and which draw of the generator says what.
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
    /// The row of the whole tensor that is row 0 here.
    first_row: usize,
    /// An element is dropped when its 32 random bits are below this.
    threshold: u32,
    /// `1 / (1 - rate)`, the factor on what is kept.
    scale: f32,
}

impl Dropout {
    /// A mask that drops a share `rate` of the elements.
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

    /// Whether the mask lets everything through unchanged.
    pub fn is_identity(self) -> bool {
        self.threshold == 0
    }

    /// The mask of the part of a tensor that starts `rows` further down.
    pub fn skip_rows(self, rows: usize) -> Self {
        Self { first_row: self.first_row + rows, ..self }
    }

    /// The mask's row `row`: for a (B, T, C) tensor the token's index in B * T.
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

/// One row of a mask; its columns are drawn independently of each other and of every other row.
#[derive(Clone, Copy, Debug)]
pub struct DropoutRow {
    low: u32,
    high: u32,
    threshold: u32,
    scale: f32,
}

impl DropoutRow {
    /// What the element in column `col` is multiplied by: 0 or `1 / (1 - rate)`. Loops that count columns in `u32` fill the
    /// widest registers; 64 bits of an index would fill them with half as many.
    #[inline(always)]
    pub fn factor(self, col: u32) -> f32 {
        if self.bits(col) < self.threshold { 0.0 } else { self.scale }
    }

    /// Thirty-two random bits for a column: a keyed integer hash with the constants of Wellons' `lowbias32`
    /// (2018, "Prospecting for Hash Functions"), made of multiplies, shifts and xors only, so that compilers
    /// turn a loop over columns into vector instructions.
    #[inline(always)]
    fn bits(self, col: u32) -> u32 {
        let mut x = col.wrapping_mul(0x9E37_79B9) ^ self.low;
        x = (x ^ (x >> 16)).wrapping_mul(0x7FEB_352D) ^ self.high;
        x = (x ^ (x >> 15)).wrapping_mul(0x846C_A68B);
        x ^ (x >> 16)
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection of 64 bits that spreads any change.
#[inline(always)]
fn mix64(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// `y = drop(y)` in place.
///
/// `y` (rows, cols) is overwritten by itself times the mask.
pub fn dropout_in_place(dims: RowDims, y: &mut [f32], dropout: Dropout) {
    assert_eq!(y.len(), dims.rows * dims.cols, "dropout of {dims:?}");
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

/// `dx = dy * mask`, math.md (18), from `y = drop(x)`, with the mask drawn again.
///
/// `dx` (rows, cols) is overwritten; `dy` (rows, cols).
pub fn dropout_backward<E: Element>(dims: RowDims, dx: &mut [E], dy: &[f32], dropout: Dropout) {
    let len = dims.rows * dims.cols;
    assert_eq!((dx.len(), dy.len()), (len, len), "dropout backward of {dims:?}");
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
