//! Matmuls: `out = lhs rhs`, tile by tile. An epilogue receives each tile while it is in the first-level cache.
//!
//! The right operand is in panels ([`crate::panels`]). The left operand is row-major ([`Lhs::Rows`]) or, for sums over
//! tokens, in panels too ([`Lhs::Columns`]). It is read in place, or copied into tiles first if the instruction set
//! requires that. The sums of a tile stay in registers for the whole depth. Every element is therefore summed in the
//! same order, whatever the number of threads and however they divide the work.

use std::cell::RefCell;
use std::ops::Range;

use crate::element::Element;
use crate::isa::Isa;
use crate::microkernel::{self, MicroKernel, TileInProgress};
use crate::non_temporal::{store_fence, store_non_temporal};
use crate::operand::Panels;
use crate::prefetch::{CACHE_LINE, PrefetchHint, prefetch};
use crate::tile::{COLS, MAX_ROWS, ROWS, Sums, TileBuffer};

pub use crate::operand::Lhs;
pub use crate::prefetch::Prefetch;
pub use crate::tile::TileRange;

/// Rows of a tile of sums of `E` on this instruction set: 6 in vector registers, 32 in AMX's.
pub fn tile_rows<E: Element>(isa: Isa) -> usize {
    microkernel::tile_rows::<E>(isa)
}

/// Rows `rows` of `out = lhs rhs`: calls `epilogue` with every tile of sums, the tiles of a row from left to right. With AMX it may
/// receive an even number of a tile's rows at a time, while the next tile is multiplied; so it must not multiply matrices itself, nor
/// call other code that uses AMX.
///
/// A row of the tile has 64 elements. Elements from `TileRange::cols` on, and rows from `TileRange::rows` on, are
/// meaningless.
#[inline(always)]
pub fn matmul<E: Element>(
    isa: Isa,
    rows: Range<usize>,
    lhs: Lhs<E>,
    rhs: Panels<E>,
    epilogue: impl FnMut(TileRange, &mut [[f32; COLS]]),
) {
    rhs.matmul_with(isa, rows, lhs, [], Cost::Low, epilogue);
}

/// How long an epilogue takes per element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// It adds, multiplies and stores.
    Low,
    /// It evaluates a function such as exp.
    High,
}

impl Cost {
    /// The least depth with which tiles are multiplied in steps, and rows of the tile before are passed on between them. The fewer
    /// steps there are, the more rows fall to each, and the less of their work overlaps. Measurements: docs/experiments.md.
    fn least_depth(self) -> usize {
        match self {
            Self::Low => 768,
            Self::High => 256,
        }
    }
}

/// A right operand, in any number format.
pub trait Rhs<E: Element>: Copy {
    /// A range of its columns; it must start at a multiple of 64.
    ///
    /// # Panics
    /// If the range is outside the operand.
    fn columns(self, range: Range<usize>) -> Self;

    /// [`matmul`] that prefetches the memory that `epilogue` will access, before it computes each tile. Hardware
    /// prefetchers do not recognize the pattern, because a tile is a narrow column of a wide array. `cost` decides from which depth
    /// on the epilogue runs while the next tile is multiplied.
    fn matmul_with<const N: usize>(
        self,
        isa: Isa,
        rows: Range<usize>,
        lhs: Lhs<E>,
        prefetches: [Prefetch; N],
        cost: Cost,
        epilogue: impl FnMut(TileRange, &mut [[f32; COLS]]),
    );
}

impl<E: Element> Rhs<E> for Panels<'_, E> {
    fn columns(self, range: Range<usize>) -> Self {
        Panels::columns(self, range)
    }

    #[inline(always)]
    fn matmul_with<const N: usize>(
        self,
        isa: Isa,
        rows: Range<usize>,
        lhs: Lhs<E>,
        prefetches: [Prefetch; N],
        cost: Cost,
        mut epilogue: impl FnMut(TileRange, &mut [[f32; COLS]]),
    ) {
        let count = rows.len();
        let mut tiles = TileOrder::new(isa, rows, lhs, self);
        let overlaps = tiles.kernel.can_take_steps(count, cost.least_depth());
        let mut buffers = [const { TileBuffer([[0.0; COLS]; MAX_ROWS]) }; 2];
        let (mut current, mut finished) = (0, TileRange::default());
        loop {
            let [first, second] = &mut buffers;
            let (tile, previous) = if current == 0 { (first, second) } else { (second, first) };
            let at = tiles.next();
            let mut in_progress = TileInProgress::None;
            if let Some(at) = at {
                prefetches.iter().for_each(|prefetch| prefetch.tile(at));
                in_progress = tiles.kernel.begin(tile.sums(false), at, overlaps);
            }
            let done = if overlaps { finished } else { at.unwrap_or_default() };
            let (steps, mut passed) = (in_progress.steps(), 0);
            for step in 1..=steps {
                // SAFETY: there are as many steps; the buffer has room for all rows and columns of a tile; epilogues use no AMX.
                unsafe { tiles.kernel.step(&mut in_progress) };
                let rows = if overlaps { &mut *previous } else { &mut *tile };
                // A whole number of units of any number format, so that an epilogue can pack them.
                let due = if step == steps { done.rows } else { done.rows * step / steps / 2 * 2 };
                if due > passed {
                    let at = TileRange { row: done.row + passed, rows: due - passed, ..done };
                    epilogue(at, &mut rows.0[passed..due]);
                    passed = due;
                }
            }
            let Some(at) = at else { break };
            if overlaps {
                (current, finished) = (1 - current, at);
            }
        }
    }
}

/// How [`matmul_into`] stores the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// `out = lhs rhs`.
    Overwrite,
    /// `out = lhs rhs` with non-temporal stores: for results that are too large to stay in the caches until they are
    /// read. Rows that do not start on a cache line are stored as with `Overwrite`.
    NonTemporal,
    /// `out += lhs rhs`.
    Accumulate,
}

/// Rows `rows` of `out = lhs rhs` or `out += lhs rhs`. Row `rows.start` is at the start of `out`; rows are `stride`
/// elements apart.
#[inline(always)]
pub fn matmul_into<E: Element>(
    isa: Isa,
    rows: Range<usize>,
    lhs: Lhs<E>,
    rhs: Panels<E>,
    out: &mut [f32],
    stride: usize,
    store: Store,
) {
    let add = store == Store::Accumulate;
    let (first, step) = (rows.start, tile_rows::<E>(isa));
    let prefetch_out = Prefetch::write(out, stride);
    let out = RefCell::new(out);
    let place = |at: TileRange, r: usize| (at.row - first + r) * stride + at.col;
    // Tiles that fit are written directly into `out`, the others through the tile buffer.
    let is_direct = |at: TileRange| store != Store::NonTemporal && microkernel::fits::<E>(isa, at);
    for_each_tile(
        isa,
        rows,
        lhs,
        rhs,
        #[inline(always)]
        |at, tile| {
            // Prefetch this tile of `out`, or the tile below if this one is read at once. A tile of 32 rows has more
            // lines than the processor can prefetch at a time.
            let row = if add { at.row + step } else { at.row } - first;
            if store != Store::NonTemporal && step <= ROWS {
                prefetch_out.tile(TileRange { row, ..at });
            }
            let mut out = out.borrow_mut();
            if is_direct(at) {
                let sums = &mut out[place(at, 0)..][..(at.rows - 1) * stride + at.cols];
                return Sums { start: sums.as_mut_ptr(), stride, add };
            }
            if add {
                for r in 0..at.rows {
                    tile.0[r][..at.cols].copy_from_slice(&out[place(at, r)..][..at.cols]);
                }
            }
            tile.sums(add)
        },
        #[inline(always)]
        |at, tile| {
            if is_direct(at) {
                return;
            }
            let mut out = out.borrow_mut();
            for r in 0..at.rows {
                let (out, sums) = (&mut out[place(at, r)..][..at.cols], &tile.0[r][..at.cols]);
                if store == Store::NonTemporal {
                    store_non_temporal(isa, out, sums);
                } else {
                    out.copy_from_slice(sums);
                }
            }
        },
    );
    if store == Store::NonTemporal {
        store_fence();
    }
}

/// Computes the tiles of a matmul. Calls `destination` before each tile, to learn where its sums go, and `epilogue`
/// after it. Both receive a buffer that they may use for the tile.
#[inline(always)]
fn for_each_tile<E: Element>(
    isa: Isa,
    rows: Range<usize>,
    lhs: Lhs<E>,
    rhs: Panels<E>,
    mut destination: impl FnMut(TileRange, &mut TileBuffer) -> Sums,
    mut epilogue: impl FnMut(TileRange, &mut TileBuffer),
) {
    let mut tile = TileBuffer([[0.0; COLS]; MAX_ROWS]);
    let mut tiles = TileOrder::new(isa, rows, lhs, rhs);
    while let Some(at) = tiles.next() {
        let sums = destination(at, &mut tile);
        // SAFETY: `destination` returned the buffer, which has room for all rows and columns, or a part of the result that is as
        // long as what is written; both were borrowed mutably.
        unsafe { tiles.kernel.multiply(sums, at) };
        epilogue(at, &mut tile);
    }
}

/// The tiles of a matmul, one after another, and the kernel that multiplies the latest. The tiles of a panel follow each other, and those
/// of a row come from left to right.
struct TileOrder<'a, E> {
    kernel: MicroKernel<'a, E>,
    rhs: Panels<'a, E>,
    /// The end of all rows.
    end: usize,
    /// Rows of a tile.
    step: usize,
    /// Rows that the kernel prepares at a time.
    group: usize,
    /// The rows that the kernel is prepared for.
    rows: Range<usize>,
    /// Where the next tile starts.
    row: usize,
    col: usize,
    next_panel: NextPanel<'a, E>,
}

impl<'a, E: Element> TileOrder<'a, E> {
    /// # Panics
    /// Unless the shapes of the operands match.
    #[inline(always)]
    fn new(isa: Isa, rows: Range<usize>, lhs: Lhs<'a, E>, rhs: Panels<'a, E>) -> Self {
        check(lhs, &rows, rhs);
        let kernel = MicroKernel::new(isa, rows.len(), lhs, rhs);
        let (step, group) = (tile_rows::<E>(isa), kernel.group(rows.len()));
        // Nothing is prepared, and no tile is left in it. Without columns there are no tiles at all.
        let start = if rhs.cols == 0 { rows.end } else { rows.start };
        let next_panel = NextPanel::new(rhs, rhs.cols, 0);
        Self {
            kernel,
            rhs,
            end: rows.end,
            step,
            group,
            rows: start..start,
            row: start,
            col: rhs.cols,
            next_panel,
        }
    }

    #[inline(always)]
    fn next(&mut self) -> Option<TileRange> {
        if self.row >= self.rows.end {
            self.col += COLS;
            if self.col >= self.rhs.cols {
                let start = self.rows.end;
                if start >= self.end {
                    return None;
                }
                self.rows = start..(start + self.group).min(self.end);
                // SAFETY: `check` verified the rows and the operands.
                unsafe { self.kernel.prepare(self.rows.clone()) };
                self.col = 0;
            }
            self.row = self.rows.start;
            self.next_panel = NextPanel::new(self.rhs, self.col, self.rows.len().div_ceil(self.step));
        }
        self.next_panel.prefetch((self.row - self.rows.start) / self.step);
        let (row, col) = (self.row, self.col);
        self.row += self.step;
        let (rows, cols) = ((self.rows.end - row).min(self.step), (self.rhs.cols - col).min(COLS));
        Some(TileRange { row, col, rows, cols })
    }
}

/// Prefetches the next panel to the right, a part with each tile of the current panel. A panel of weights is read from
/// memory once and from the second-level cache for every further tile; without prefetching, the first tile would wait
/// for memory.
struct NextPanel<'a, E> {
    panels: Panels<'a, E>,
    start: *const E,
    /// Tiles of the current panel; 0 if there is no next panel.
    tiles: usize,
}

/// Cache lines per unit of a panel.
const UNIT_LINES: usize = COLS * size_of::<f32>() / CACHE_LINE;

/// The fewest tiles per panel for which software prefetching pays. With fewer, each tile would have to prefetch more
/// lines than the processor can have in flight, and the hardware prefetcher does better: a panel is read sequentially.
const MIN_TILES: usize = 9;

impl<'a, E: Element> NextPanel<'a, E> {
    #[inline(always)]
    fn new(panels: Panels<'a, E>, col: usize, tiles: usize) -> Self {
        let place = (col / COLS + 1) * panels.panel_stride;
        let tiles = if col + COLS < panels.cols { tiles } else { 0 };
        Self { panels, start: panels.data.as_ptr().wrapping_add(place), tiles }
    }

    /// Prefetches the part that belongs to the tile with this index.
    #[inline(always)]
    fn prefetch(&self, index: usize) {
        if self.tiles < MIN_TILES {
            return;
        }
        let all = self.panels.segments * self.panels.units;
        let count = all.div_ceil(self.tiles);
        for unit in index * count..((index + 1) * count).min(all) {
            let (segment, unit) = (unit / self.panels.units, unit % self.panels.units);
            let unit =
                self.start.wrapping_add(segment * self.panels.segment_stride + unit * COLS * E::PER_UNIT);
            for line in 0..UNIT_LINES {
                prefetch(unit.cast::<u8>().wrapping_add(line * CACHE_LINE), PrefetchHint::ReadLater);
            }
        }
    }
}

/// Panics unless the shapes of the operands match.
#[inline(always)]
fn check<E: Element>(lhs: Lhs<E>, rows: &Range<usize>, rhs: Panels<E>) {
    assert!(
        rhs.is_inside(),
        "right operand: {} columns do not fit into {} elements",
        rhs.cols,
        rhs.data.len()
    );
    match lhs {
        Lhs::Rows { data, stride } => {
            assert_eq!(rhs.segments, 1, "a row-major left operand needs a right operand of one segment");
            let depth = rhs.units * E::PER_UNIT;
            let needed = if rows.is_empty() { 0 } else { (rows.end - 1) * stride + depth };
            assert!(
                data.len() >= needed,
                "left operand: rows {rows:?} of {depth} need {needed} elements, got {}",
                data.len()
            );
        }
        Lhs::Columns(left) => {
            let (left_depth, right_depth) = ((left.segments, left.units), (rhs.segments, rhs.units));
            assert_eq!(left_depth, right_depth, "segments and units of the two operands differ");
            assert!(
                left.is_inside() && rows.end <= left.cols,
                "left operand: rows {rows:?} are outside its {}",
                left.cols
            );
        }
    }
}
