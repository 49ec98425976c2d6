//! Some columns of a matrix, to be written: what lets threads share the rows of one.

use std::marker::PhantomData;
use std::ops::Range;

/// Columns of a row-major matrix that nobody else writes meanwhile.
///
/// ```
/// use folio_kernels::columns::ColumnsMut;
/// let mut matrix = [0; 6];
/// let (mut left, mut right) = ColumnsMut::new(&mut matrix, 3).split_at(1);
/// assert_eq!((left.rows(), left.cols(), right.cols()), (2, 1, 2));
/// left.row(1)[0] = 7;
/// right.row(0)[1] = 8;
/// assert_eq!(matrix, [0, 0, 8, 7, 0, 0]);
/// ```
#[derive(Debug)]
pub struct ColumnsMut<'a, T> {
    /// The first element of the first row.
    start: *mut T,
    rows: usize,
    /// From one row to the next.
    stride: usize,
    /// Which columns of the matrix these are.
    range: Range<usize>,
    matrix: PhantomData<&'a mut [T]>,
}

// SAFETY: it gives access to elements that it alone borrows, as a `&mut [T]` does.
unsafe impl<T: Send> Send for ColumnsMut<'_, T> {}
// SAFETY: through a shared reference nothing can be reached.
unsafe impl<T: Sync> Sync for ColumnsMut<'_, T> {}

impl<'a, T> ColumnsMut<'a, T> {
    /// All columns of a matrix with rows of `cols` elements.
    ///
    /// # Panics
    /// If `data` is not made of whole rows.
    pub fn new(data: &'a mut [T], cols: usize) -> Self {
        assert!(cols > 0 && data.len().is_multiple_of(cols), "{} elements in rows of {cols}", data.len());
        let rows = data.len() / cols;
        Self { start: data.as_mut_ptr(), rows, stride: cols, range: 0..cols, matrix: PhantomData }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.range.len()
    }

    /// Which columns of the matrix these are.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// The first `cols` columns, and the others.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn split_at(self, cols: usize) -> (Self, Self) {
        assert!(cols <= self.cols(), "column {cols} of {}", self.cols());
        let middle = self.range.start + cols;
        // A matrix without rows has no memory to point into.
        let offset = if self.rows == 0 { 0 } else { cols };
        let right = Self {
            // SAFETY: the first row has that many elements from here on.
            start: unsafe { self.start.add(offset) },
            range: middle..self.range.end,
            ..self
        };
        (Self { range: self.range.start..middle, ..self }, right)
    }

    /// The columns of some of the rows.
    ///
    /// # Panics
    /// If there are not so many rows.
    pub fn part(&mut self, rows: Range<usize>) -> ColumnsMut<'_, T> {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        let offset = if rows.is_empty() { 0 } else { rows.start * self.stride };
        ColumnsMut {
            // SAFETY: that row exists, or none is asked for.
            start: unsafe { self.start.add(offset) },
            rows: rows.len(),
            stride: self.stride,
            range: self.range.clone(),
            matrix: PhantomData,
        }
    }

    /// The columns of one row.
    ///
    /// # Panics
    /// If there is no such row.
    #[inline(always)]
    pub fn row(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the row exists, its columns lie inside it, and no other `ColumnsMut` has them: one is made of a slice
        // that is borrowed as long as it lives, and splitting shares its columns out.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride), self.range.len()) }
    }

    /// The same columns of the start of the matrix's first row, to know where memory lies.
    pub(crate) fn as_ptr(&self) -> *const T {
        self.start
    }

    /// From one row to the next, in elements.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }
}
