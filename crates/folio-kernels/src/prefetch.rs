//! Software prefetches: hints that load cache lines before they are needed.

use crate::columns::ColumnsMut;
use crate::tile::TileRange;

/// Bytes of a cache line.
pub(crate) const CACHE_LINE: usize = 64;

/// How a prefetched cache line will be used.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PrefetchHint {
    /// Read soon: into the first-level cache.
    Read,
    /// Read a few tiles later: into the second-level cache.
    ReadLater,
    /// Overwritten soon.
    Write,
}

/// Prefetches the cache line at `address`. The address need not be valid: an invalid one has no effect. Does nothing on
/// architectures other than x86-64.
#[inline(always)]
pub(crate) fn prefetch(address: *const u8, hint: PrefetchHint) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint that reads and writes nothing.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        match hint {
            PrefetchHint::Read => _mm_prefetch::<_MM_HINT_T0>(address.cast()),
            PrefetchHint::ReadLater => _mm_prefetch::<_MM_HINT_T1>(address.cast()),
            PrefetchHint::Write => _mm_prefetch::<_MM_HINT_ET0>(address.cast()),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (address, hint);
}

/// How far ahead strips of 8-bit weights are prefetched, in bytes. The hardware prefetcher keeps too few lines in flight.
/// As far as panels of bfloat16 (docs/experiments.md).
#[cfg(target_arch = "x86_64")]
pub(crate) const INT8_PREFETCH_AHEAD: usize = 8192;

/// A row-major array that the epilogue of a matmul reads or writes tile by tile.
#[derive(Clone, Copy, Debug)]
pub struct Prefetch {
    start: *const u8,
    element_size: usize,
    /// Elements from one row to the next.
    stride: usize,
    hint: PrefetchHint,
}

impl Prefetch {
    /// An array that will be read.
    pub fn read<T>(array: &[T], stride: usize) -> Self {
        Self { start: array.as_ptr().cast(), element_size: size_of::<T>(), stride, hint: PrefetchHint::Read }
    }

    /// An array that will be read a few tiles later.
    pub(crate) fn read_later<T>(array: &[T], stride: usize) -> Self {
        Self { hint: PrefetchHint::ReadLater, ..Self::read(array, stride) }
    }

    /// An array that will be overwritten.
    pub fn write<T>(array: &[T], stride: usize) -> Self {
        Self { hint: PrefetchHint::Write, ..Self::read(array, stride) }
    }

    /// Columns of a matrix that will be overwritten.
    pub fn columns<T>(columns: &ColumnsMut<T>) -> Self {
        let (start, stride) = (columns.as_ptr().cast(), columns.stride());
        Self { start, element_size: size_of::<T>(), stride, hint: PrefetchHint::Write }
    }

    /// Prefetches one tile.
    #[inline(always)]
    pub(crate) fn tile(&self, at: TileRange) {
        for row in at.row..at.row + at.rows {
            let start = self.start.wrapping_add((row * self.stride + at.col) * self.element_size);
            for line in (0..at.cols * self.element_size).step_by(CACHE_LINE) {
                prefetch(start.wrapping_add(line), self.hint);
            }
        }
    }
}
