//! Tiles: the part of a matmul's result that one micro-kernel computes in registers.
//!
//! In vector registers a tile is [`ROWS`] rows by [`COLS`] columns. With AVX-512 that is 6 x 4 registers of sums; with
//! four registers for the right operand and one for the left they fill 29 of the 32. In AMX's tile registers a tile is
//! 32 rows by [`COLS`] columns. Measurements: docs/experiments.md.
//!
//! This file holds the types that the micro-kernels in [`crate::arch`] implement against; [`crate::microkernel`]
//! selects one.

/// Rows of a tile in vector registers.
pub(crate) const ROWS: usize = 6;
/// Columns of a tile, and of a panel of the right operand.
pub(crate) const COLS: usize = 64;
/// Columns that every instruction set computes as a group.
pub(crate) const GROUP: usize = 16;
/// The most rows that a tile has on any instruction set.
pub(crate) const MAX_ROWS: usize = 32;

/// The part of a matmul's result that a tile covers.
#[derive(Clone, Copy, Debug, Default)]
pub struct TileRange {
    /// The first row.
    pub row: usize,
    /// The first column.
    pub col: usize,
    /// Number of rows: [`crate::matmul::tile_rows`], or up to 16 with 8-bit weights, or fewer at the end of the matrix. An epilogue may
    /// receive a part of them.
    pub rows: usize,
    /// Number of columns: 64, or fewer at the end of the matrix.
    pub cols: usize,
}

/// Memory for the sums of one tile.
#[repr(align(64))]
pub(crate) struct TileBuffer(pub(crate) [[f32; COLS]; MAX_ROWS]);

impl TileBuffer {
    /// This buffer as the destination of a micro-kernel.
    pub(crate) fn sums(&mut self, add: bool) -> Sums {
        Sums { start: self.0.as_mut_ptr().cast(), stride: COLS, add }
    }
}

/// Where a micro-kernel writes its sums: into a [`TileBuffer`], or directly into the result.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sums {
    /// The first element of the first row.
    pub(crate) start: *mut f32,
    /// Elements from one row to the next.
    pub(crate) stride: usize,
    /// Whether to add to the destination instead of overwriting it.
    pub(crate) add: bool,
}

impl Sums {
    /// The address of an element.
    ///
    /// # Safety
    /// `row` and `col` must be inside the destination.
    #[inline(always)]
    pub(crate) unsafe fn at(self, row: usize, col: usize) -> *mut f32 {
        // SAFETY: guaranteed by the caller.
        unsafe { self.start.add(row * self.stride + col) }
    }
}

/// How a micro-kernel steps through its operands to compute `sums = lhs rhs` or `sums += lhs rhs` for one tile. Lengths
/// are in units of 32 bits.
///
/// The contract of every micro-kernel:
/// - The destination must be writable, and readable to add to it, and must not overlap an operand. Columns up to the next multiple of 16
///   are overwritten.
/// - For every row `r` below `rows`, segment `s` and unit `u`, the unit at `lhs[r] + s * lhs_segment + u * lhs_step`
///   must be readable.
/// - So must the [`COLS`] units from `rhs + s * rhs_segment + u * COLS`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walk {
    /// Rows of the tile to compute, 1 to [`ROWS`].
    pub(crate) rows: usize,
    /// Columns of the tile to compute, 1 to [`COLS`].
    pub(crate) cols: usize,
    /// Segments of the depth, which are apart in memory.
    pub(crate) segments: usize,
    /// Units per segment.
    pub(crate) units: usize,
    /// From one unit of a row of the left operand to the next.
    pub(crate) lhs_step: usize,
    /// From one segment of the left operand to the next.
    pub(crate) lhs_segment: usize,
    /// From one segment of the right operand to the next.
    pub(crate) rhs_segment: usize,
}
