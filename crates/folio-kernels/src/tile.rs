//! The micro-kernel of every matmul: one tile of the result, kept in registers; and the choice of it.
//!
//! In vector registers a tile is [`ROWS`] rows by [`COLS`] columns: with AVX-512 six times four registers of sums, which with
//! four of the right operand and one of the left fill 29 of the 32. In AMX's tile registers it is 32 rows by [`COLS`] columns.
//! Measured: docs/log.md.

use std::ops::Range;

use crate::arch::generic;
#[cfg(target_arch = "x86_64")]
use crate::arch::x86_64::{amx, avx2, avx512};
use crate::element::Element;
use crate::isa::Isa;
use crate::matmul::{At, Lhs};
use crate::panels::Panels;
use crate::quantized::Line;

/// Rows of a tile of sums in vector registers.
pub(crate) const ROWS: usize = 6;
/// Columns of a tile, and of a panel of the right operand.
pub(crate) const COLS: usize = 64;
/// Columns that one step of every instruction set handles together.
pub(crate) const GROUP: usize = 16;

/// The most rows of sums that any instruction set computes together.
pub(crate) const MOST_ROWS: usize = 32;

/// A tile of sums.
#[repr(align(64))]
pub(crate) struct Tile(pub(crate) [[f32; COLS]; MOST_ROWS]);

impl Tile {
    /// As a place for sums.
    pub(crate) fn sums(&mut self, add: bool) -> Sums {
        Sums { start: self.0.as_mut_ptr().cast(), stride: COLS, add }
    }
}

/// Where a product puts its sums: in a [`Tile`], or straight into the result.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sums {
    /// The first of the first row.
    pub(crate) start: *mut f32,
    /// From one row to the next.
    pub(crate) stride: usize,
    /// Whether the sums start with what is there rather than with zero.
    pub(crate) add: bool,
}

impl Sums {
    /// A column of a row.
    ///
    /// # Safety
    /// Both must be inside.
    #[inline(always)]
    pub(crate) unsafe fn at(self, row: usize, col: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.start.add(row * self.stride + col) }
    }
}

/// Rows of sums that are computed together.
#[inline(always)]
pub(crate) fn rows<E: Element>(isa: Isa) -> usize {
    #[cfg(target_arch = "x86_64")]
    if E::PAIR == 2 && isa.has_amx_bf16() {
        return amx::ROWS;
    }
    let _ = isa;
    ROWS
}

impl Sums {
    /// Whether the sums of a tile can be written without rows or columns behind them.
    #[inline(always)]
    pub(crate) fn fit<E: Element>(isa: Isa, at: At) -> bool {
        #[cfg(target_arch = "x86_64")]
        if E::PAIR == 2 && isa.has_amx_bf16() {
            return amx::fits(at.rows, at.cols);
        }
        let _ = isa;
        at.cols.is_multiple_of(GROUP)
    }
}

/// What computes the tiles of one matmul.
pub(crate) struct Kernel<'a, E> {
    isa: Isa,
    lhs: Lhs<'a, E>,
    rhs: Panels<'a, E>,
    #[cfg(target_arch = "x86_64")]
    amx: Option<(amx::Left<'a, E>, amx::Tiles)>,
}

impl<'a, E: Element> Kernel<'a, E> {
    /// For `rows` rows in all, of operands that fit each other.
    #[inline(always)]
    pub(crate) fn new(isa: Isa, rows: usize, lhs: Lhs<'a, E>, rhs: Panels<'a, E>) -> Self {
        let _ = rows;
        Self {
            isa,
            lhs,
            rhs,
            #[cfg(target_arch = "x86_64")]
            amx: (E::PAIR == 2 && isa.has_amx_bf16()).then(|| {
                // SAFETY: an `Isa` exists only if the process may use it.
                (amx::Left::new(lhs, rhs, rows), unsafe { amx::Tiles::configure(rows) })
            }),
        }
    }

    /// Rows that [`Kernel::prepare`] takes at once, of `rows` in all; at least one.
    #[inline(always)]
    pub(crate) fn group(&self, rows: usize) -> usize {
        #[cfg(target_arch = "x86_64")]
        if let Some((left, _)) = &self.amx {
            return left.group(rows);
        }
        rows.max(1)
    }

    /// To be called before the tiles of these rows are computed.
    ///
    /// # Safety
    /// The rows must be inside the left operand; segments and units of both operands must agree.
    #[inline(always)]
    pub(crate) unsafe fn prepare(&mut self, rows: Range<usize>) {
        #[cfg(target_arch = "x86_64")]
        if let Some((left, _)) = &mut self.amx {
            // SAFETY: passed on to the caller.
            return unsafe { left.prepare(rows) };
        }
        let _ = rows;
    }

    /// `sums = lhs rhs` or `sums += lhs rhs` for one tile. If the tile does not [`Sums::fit`], columns up to the next
    /// multiple of 16 are overwritten too, or all of a [`Tile`].
    ///
    /// # Safety
    /// The tile must be inside both operands and [`Kernel::prepare`]d for; what is overwritten must be there to be
    /// written, and overlap no operand.
    #[inline(always)]
    pub(crate) unsafe fn multiply(&self, sums: Sums, at: At) {
        let Self { isa, lhs, rhs, .. } = *self;
        let panel = rhs.data[at.col / COLS * rhs.panel_stride..].as_ptr();
        #[cfg(target_arch = "x86_64")]
        if let Some((left, _)) = &self.amx {
            // SAFETY: passed on to the caller; the tile registers were configured for as many rows as `left` was made for.
            return unsafe { amx::multiply(sums, left, at.row, at.rows, panel, at.cols, rhs) };
        }
        let (lhs_step, lhs_segment) = match lhs {
            Lhs::Rows { .. } => (1, 0),
            Lhs::Columns(left) => (COLS, left.segment_stride / E::PAIR),
        };
        let left = std::array::from_fn(|r| row_start(lhs, at.row + r.min(at.rows - 1)));
        let Panels { units, segments, segment_stride, .. } = rhs;
        let rhs_segment = segment_stride / E::PAIR;
        let walk = Walk { rows: at.rows, cols: at.cols, segments, units, lhs_step, lhs_segment, rhs_segment };
        // SAFETY: passed on to the caller: the walk stays inside both operands, and the panel is one of the right one's.
        unsafe { multiply(isa, sums, &left, panel, &walk) };
    }
}

/// Where row `row` of the left operand begins.
#[inline(always)]
fn row_start<E: Element>(lhs: Lhs<E>, row: usize) -> *const E {
    match lhs {
        Lhs::Rows { data, stride } => data[row * stride..].as_ptr(),
        Lhs::Columns(panels) => {
            panels.data[row / COLS * panels.panel_stride + row % COLS * E::PAIR..].as_ptr()
        }
    }
}

/// How a product walks through its operands to fill one tile. Lengths are in units of 32 bits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walk {
    /// Rows of the tile that are wanted, 1 to [`ROWS`].
    pub(crate) rows: usize,
    /// Columns of the tile that are wanted, 1 to [`COLS`].
    pub(crate) cols: usize,
    /// Stretches of the sum that lie apart in memory.
    pub(crate) segments: usize,
    /// Units of one stretch.
    pub(crate) units: usize,
    /// From one unit of a row of the left operand to the next.
    pub(crate) lhs_step: usize,
    /// From one stretch of the left operand to the next.
    pub(crate) lhs_segment: usize,
    /// From one stretch of the right operand to the next.
    pub(crate) rhs_segment: usize,
}

/// `sums = lhs rhs` or `sums += lhs rhs` for the rows and columns that are wanted; columns up to the next multiple
/// of 16 are overwritten too.
///
/// # Safety
/// What is overwritten must be there to be written, and overlap no operand. For every row `r` below `walk.rows`,
/// segment `s` and unit `u`, the unit at `lhs[r] + s * lhs_segment + u * lhs_step` must be readable; so must the [`COLS`]
/// units from `rhs + s * rhs_segment + u * COLS`.
pub(crate) unsafe fn multiply<E: Element>(
    isa: Isa,
    sums: Sums,
    lhs: &[*const E; ROWS],
    rhs: *const E,
    walk: &Walk,
) {
    // SAFETY: passed on to the caller.
    unsafe {
        match walk.rows {
            1 => multiply_rows::<E, 1>(isa, sums, lhs, rhs, walk),
            2 => multiply_rows::<E, 2>(isa, sums, lhs, rhs, walk),
            3 => multiply_rows::<E, 3>(isa, sums, lhs, rhs, walk),
            4 => multiply_rows::<E, 4>(isa, sums, lhs, rhs, walk),
            5 => multiply_rows::<E, 5>(isa, sums, lhs, rhs, walk),
            _ => multiply_rows::<E, 6>(isa, sums, lhs, rhs, walk),
        }
    }
}

/// [`multiply`] for `R` rows.
///
/// # Safety
/// As [`multiply`].
#[inline]
unsafe fn multiply_rows<E: Element, const R: usize>(
    isa: Isa,
    sums: Sums,
    lhs: &[*const E; ROWS],
    rhs: *const E,
    walk: &Walk,
) {
    // SAFETY: passed on to the caller; an `Isa` exists only if the processor has it.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        {
            if isa.has_avx512() && E::PAIR == 1 {
                return avx512::multiply_f32::<R>(
                    sums,
                    lhs.each_ref().map(|&row| row.cast()),
                    rhs.cast(),
                    walk,
                );
            }
            if isa.has_avx512_bf16() && E::PAIR == 2 {
                return avx512::multiply_bf16::<R>(
                    sums,
                    lhs.each_ref().map(|&row| row.cast()),
                    rhs.cast(),
                    walk,
                );
            }
            if isa.has_avx2() {
                return avx2::multiply::<E, R>(sums, lhs, rhs, walk);
            }
        }
        let _ = isa;
        generic::multiply::<E, R>(sums, lhs, rhs, walk);
    }
}

/// The sums of some rows with a panel of eight bits, if the processor has instructions to widen them on the way; each sum
/// runs in the order of the depth. Rows from `rows` on mean nothing.
#[inline(always)]
pub(crate) fn multiply_quantized(
    isa: Isa,
    rows: usize,
    lhs: &[&[f32]; ROWS],
    lines: &[Line],
) -> Option<[[f32; COLS]; ROWS]> {
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx512() {
        assert!(lhs.iter().all(|row| row.len() == lines.len()), "rows of {} lines", lines.len());
        let mut tile = [[0.0; COLS]; ROWS];
        let sums = Sums { start: tile.as_mut_ptr().cast(), stride: COLS, add: false };
        let (segments, units) = (1, lines.len());
        let walk = Walk { rows, cols: COLS, segments, units, lhs_step: 1, lhs_segment: 0, rhs_segment: 0 };
        let lhs = lhs.map(<[f32]>::as_ptr);
        let rhs = lines.as_ptr().cast();
        // SAFETY: an `Isa` exists only if the processor has it; every row and the panel have as many units as the walk.
        unsafe {
            match rows {
                1 => avx512::multiply_i8::<1>(sums, lhs, rhs, &walk),
                2 => avx512::multiply_i8::<2>(sums, lhs, rhs, &walk),
                3 => avx512::multiply_i8::<3>(sums, lhs, rhs, &walk),
                4 => avx512::multiply_i8::<4>(sums, lhs, rhs, &walk),
                5 => avx512::multiply_i8::<5>(sums, lhs, rhs, &walk),
                _ => avx512::multiply_i8::<6>(sums, lhs, rhs, &walk),
            }
        }
        return Some(tile);
    }
    let _ = (isa, rows, lhs, lines);
    None
}

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// What memory is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Intent {
    /// To be read at once: into the first-level cache.
    Read,
    /// To be read some tiles later: into the second-level cache.
    ReadLater,
    /// To be overwritten at once.
    Write,
}

/// Asks for the cache line at an address to be brought near, to be read or to be written; does nothing where it is
/// not known how, and nothing bad where there is no memory.
#[inline(always)]
pub(crate) fn prefetch(address: *const u8, intent: Intent) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint that reads and writes nothing.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        match intent {
            Intent::Read => _mm_prefetch::<_MM_HINT_T0>(address.cast()),
            Intent::ReadLater => _mm_prefetch::<_MM_HINT_T1>(address.cast()),
            Intent::Write => _mm_prefetch::<_MM_HINT_ET0>(address.cast()),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (address, intent);
}

/// `to = from` where it will not be read for long: past the caches, if the processor can and `to` is made of whole cache
/// lines, so that these are not read before they are written.
#[inline(always)]
pub(crate) fn store_past_caches<E: Element>(isa: Isa, to: &mut [E], from: &[E]) {
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx512() && to.as_ptr().addr().is_multiple_of(LINE) && size_of_val(to).is_multiple_of(LINE) {
        assert_eq!(to.len(), from.len(), "storing past the caches");
        // SAFETY: an `Isa` exists only if the processor has it; `to` is as long as `from` and aligned.
        return unsafe {
            avx512::store_past_caches(to.as_mut_ptr().cast(), from.as_ptr().cast(), size_of_val(to))
        };
    }
    let _ = isa;
    to.copy_from_slice(from);
}

/// Makes what [`store_past_caches`] wrote visible to other threads before anything that this one writes next.
#[inline(always)]
pub(crate) fn wait_for_stores() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE, which every x86-64 has.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}
