//! Mutable views of columns of a matrix, so that several threads can write different columns of the same rows.

use std::marker::PhantomData;
use std::ops::Range;

/// Exclusive access to a range of columns of a row-major matrix.
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
    /// Elements from one row to the next.
    stride: usize,
    /// The range of columns within the matrix.
    range: Range<usize>,
    matrix: PhantomData<&'a mut [T]>,
}

// SAFETY: it gives access to elements that it borrows exclusively, like a `&mut [T]`.
unsafe impl<T: Send> Send for ColumnsMut<'_, T> {}
// SAFETY: a shared reference gives no access to the elements.
unsafe impl<T: Sync> Sync for ColumnsMut<'_, T> {}

impl<'a, T> ColumnsMut<'a, T> {
    /// All columns of a matrix with rows of `cols` elements.
    ///
    /// # Panics
    /// If `data` does not consist of whole rows.
    pub fn new(data: &'a mut [T], cols: usize) -> Self {
        assert!(
            cols > 0 && data.len().is_multiple_of(cols),
            "{} elements are not divisible into rows of {cols}",
            data.len()
        );
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

    /// The range of columns within the matrix.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// The first `cols` columns, and the remaining ones.
    ///
    /// # Panics
    /// If there are fewer than `cols` columns.
    pub fn split_at(self, cols: usize) -> (Self, Self) {
        assert!(cols <= self.cols(), "cannot split {} columns at {cols}", self.cols());
        let middle = self.range.start + cols;
        // An empty matrix has no memory to point into.
        let offset = if self.rows == 0 { 0 } else { cols };
        let right = Self {
            // SAFETY: the first row has at least `cols` more elements.
            start: unsafe { self.start.add(offset) },
            range: middle..self.range.end,
            ..self
        };
        (Self { range: self.range.start..middle, ..self }, right)
    }

    /// The same columns of a range of the rows.
    ///
    /// # Panics
    /// If the range is outside the matrix.
    pub fn part(&mut self, rows: Range<usize>) -> ColumnsMut<'_, T> {
        assert!(
            rows.start <= rows.end && rows.end <= self.rows,
            "rows {rows:?} are outside a matrix of {} rows",
            self.rows
        );
        let offset = if rows.is_empty() { 0 } else { rows.start * self.stride };
        ColumnsMut {
            // SAFETY: the row exists, or the offset is 0.
            start: unsafe { self.start.add(offset) },
            rows: rows.len(),
            stride: self.stride,
            range: self.range.clone(),
            matrix: PhantomData,
        }
    }

    /// The elements of one row.
    ///
    /// # Panics
    /// If there is no such row.
    #[inline(always)]
    pub fn row(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows, "row {row} is outside a matrix of {} rows", self.rows);
        // SAFETY: the row exists and contains the columns. No other `ColumnsMut` has access to them, because the matrix
        // is borrowed mutably and splitting distributes its columns.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride), self.range.len()) }
    }

    /// The address of the first row, for prefetching.
    pub(crate) fn as_ptr(&self) -> *const T {
        self.start
    }

    /// Elements from one row to the next.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }
}
