//! Matmuls: `out = lhs rhs`, tile by tile, each tile passed to a closure while it is in the first-level cache.
//!
//! The right operand is in panels ([`crate::panels`]). The left one is row-major ([`Lhs::Rows`]) or, for a sum over tokens, in
//! panels of its own ([`Lhs::Columns`]); it is read in place, or laid out in tiles first where the instruction set wants that.
//! A tile of sums stays in registers for the whole depth, so that every element is summed in one order, whatever the sizes of
//! the pieces and the number of threads.

use std::cell::RefCell;
use std::ops::Range;

use crate::columns::ColumnsMut;
use crate::element::Element;
use crate::isa::Isa;
use crate::panels::Panels;
use crate::tile::{self, COLS, Intent, Kernel, LINE, MOST_ROWS, Sums, Tile};

/// A left operand.
#[derive(Clone, Copy, Debug)]
pub enum Lhs<'a, E> {
    /// A row-major matrix (rows, depth).
    Rows {
        /// Its elements.
        data: &'a [E],
        /// From the start of a row to that of the next; at least the depth, rounded up to whole units.
        stride: usize,
    },
    /// The transpose of a matrix in panels: its columns are the rows here.
    Columns(Panels<'a, E>),
}

/// Which part of the result a tile is.
#[derive(Clone, Copy, Debug)]
pub struct At {
    /// The first row.
    pub row: usize,
    /// The first column.
    pub col: usize,
    /// Rows of the tile: [`tile_rows`], or what is left of the rows.
    pub rows: usize,
    /// Columns of the tile, up to 64.
    pub cols: usize,
}

/// Rows of a tile of sums of `E` on this instruction set: 6 in vector registers, 32 in AMX's.
pub fn tile_rows<E: Element>(isa: Isa) -> usize {
    tile::rows::<E>(isa)
}

/// Rows `rows` of `out = lhs rhs`: calls `finish` with every tile of sums. Those of a row come from left to right.
///
/// A row of the tile is 64 long; its elements beyond `At::cols`, and rows beyond `At::rows`, mean nothing.
#[inline(always)]
pub fn product<E: Element>(
    isa: Isa,
    rows: Range<usize>,
    lhs: Lhs<E>,
    rhs: Panels<E>,
    finish: impl FnMut(At, &mut [[f32; COLS]]),
) {
    rhs.product_ahead(isa, rows, lhs, [], finish);
}

/// A right operand, in whatever numbers it is.
pub trait Rhs<E: Element>: Copy {
    /// Some of its columns, from a multiple of 64 on.
    ///
    /// # Panics
    /// If they are outside.
    fn columns(self, range: Range<usize>) -> Self;

    /// [`product`] that asks for the memory which `finish` will read and write before a tile is computed, so that it
    /// comes meanwhile. Processors do not foresee it, for a tile is a narrow column of a wide array.
    fn product_ahead<const N: usize>(
        self,
        isa: Isa,
        rows: Range<usize>,
        lhs: Lhs<E>,
        fetches: [Fetch; N],
        finish: impl FnMut(At, &mut [[f32; COLS]]),
    );
}

impl<E: Element> Rhs<E> for Panels<'_, E> {
    fn columns(self, range: Range<usize>) -> Self {
        Panels::columns(self, range)
    }

    #[inline(always)]
    fn product_ahead<const N: usize>(
        self,
        isa: Isa,
        rows: Range<usize>,
        lhs: Lhs<E>,
        fetches: [Fetch; N],
        mut finish: impl FnMut(At, &mut [[f32; COLS]]),
    ) {
        for_each_tile(
            isa,
            rows,
            lhs,
            self,
            #[inline(always)]
            |at, tile| {
                fetches.iter().for_each(|fetch| fetch.tile(at));
                tile.sums(false)
            },
            #[inline(always)]
            |at, tile| finish(at, &mut tile.0),
        );
    }
}

/// A row-major array that a product's tiles are matched with.
#[derive(Clone, Copy, Debug)]
pub struct Fetch {
    start: *const u8,
    element_size: usize,
    /// From one row to the next, in elements.
    stride: usize,
    intent: Intent,
}

impl Fetch {
    /// An array that will be read.
    pub fn to_read<T>(array: &[T], stride: usize) -> Self {
        Self { start: array.as_ptr().cast(), element_size: size_of::<T>(), stride, intent: Intent::Read }
    }

    /// An array that will be read some tiles later.
    pub(crate) fn to_read_later<T>(array: &[T], stride: usize) -> Self {
        Self { intent: Intent::ReadLater, ..Self::to_read(array, stride) }
    }

    /// An array that will be overwritten.
    pub fn to_write<T>(array: &[T], stride: usize) -> Self {
        Self { intent: Intent::Write, ..Self::to_read(array, stride) }
    }

    /// Some columns that will be overwritten.
    pub fn columns<T>(columns: &ColumnsMut<T>) -> Self {
        let (start, stride) = (columns.as_ptr().cast(), columns.stride());
        Self { start, element_size: size_of::<T>(), stride, intent: Intent::Write }
    }

    /// Asks for one tile.
    #[inline(always)]
    pub(crate) fn tile(&self, at: At) {
        for row in at.row..at.row + at.rows {
            let start = self.start.wrapping_add((row * self.stride + at.col) * self.element_size);
            for line in (0..at.cols * self.element_size).step_by(LINE) {
                tile::prefetch(start.wrapping_add(line), self.intent);
            }
        }
    }
}

/// How a product is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// `out = lhs rhs`.
    Over,
    /// The same, past the caches: for results that are too large to be found there later, whose place would be read for
    /// nothing before it is written. Rows that do not start on a cache line are written as by `Over`.
    PastCaches,
    /// `out += lhs rhs`.
    Add,
}

/// Rows `rows` of `out = lhs rhs` or `out += lhs rhs`, where row `rows.start` stands at the head of `out` and rows
/// start `stride` apart.
#[inline(always)]
pub fn product_into<E: Element>(
    isa: Isa,
    rows: Range<usize>,
    lhs: Lhs<E>,
    rhs: Panels<E>,
    out: &mut [f32],
    stride: usize,
    store: Store,
) {
    let add = store == Store::Add;
    let (first, step) = (rows.start, tile_rows::<E>(isa));
    let fetch = Fetch::to_write(out, stride);
    let out = RefCell::new(out);
    let place = |at: At, r: usize| (at.row - first + r) * stride + at.col;
    // Whole groups of columns, and of rows where those are computed together, need no tile in between.
    let is_direct = |at: At| store != Store::PastCaches && Sums::fit::<E>(isa, at);
    for_each_tile(
        isa,
        rows,
        lhs,
        rhs,
        #[inline(always)]
        |at, tile| {
            // The tile itself comes while it is computed, unless it is read first: then the one below does. Lines of a
            // tile of 32 rows are more than can be under way at a time.
            let coming = if add { at.row + step } else { at.row } - first;
            if store != Store::PastCaches && step <= tile::ROWS {
                fetch.tile(At { row: coming, ..at });
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
                if store == Store::PastCaches {
                    tile::store_past_caches(isa, out, sums);
                } else {
                    out.copy_from_slice(sums);
                }
            }
        },
    );
    if store == Store::PastCaches {
        tile::wait_for_stores();
    }
}

/// Calls `begin` before each tile, which says where its sums belong, and `finish` after it; both may use the tile that
/// they are given.
#[inline(always)]
fn for_each_tile<E: Element>(
    isa: Isa,
    rows: Range<usize>,
    lhs: Lhs<E>,
    rhs: Panels<E>,
    mut begin: impl FnMut(At, &mut Tile) -> Sums,
    mut finish: impl FnMut(At, &mut Tile),
) {
    check(lhs, &rows, rhs);
    let step = tile_rows::<E>(isa);
    let mut tile = Tile([[0.0; COLS]; MOST_ROWS]);
    let mut kernel = Kernel::new(isa, rows.len(), lhs, rhs);
    let group = kernel.group(rows.len());
    for first in rows.clone().step_by(group) {
        let rows = first..(first + group).min(rows.end);
        // SAFETY: `check` made sure of the rows and of the operands.
        unsafe { kernel.prepare(rows.clone()) };
        for col in (0..rhs.cols).step_by(COLS) {
            let cols = (rhs.cols - col).min(COLS);
            let ahead = NextPanel::new(rhs, col, rows.len().div_ceil(step));
            for (index, row) in rows.clone().step_by(step).enumerate() {
                ahead.fetch(index);
                let at = At { row, col, rows: (rows.end - row).min(step), cols };
                let sums = begin(at, &mut tile);
                // SAFETY: `check` made sure that both operands have what the tile is computed from, and the kernel is
                // prepared for the row. `begin` gave the tile, which has room for all rows and columns, or a part of the
                // result that is as long as what is written; both were borrowed mutably.
                unsafe { kernel.multiply(sums, at) };
                finish(at, &mut tile);
            }
        }
    }
}

/// The panel to the right of the one at hand, which is brought near bit by bit: a panel of weights is read from memory
/// once and from the second-level cache by every further tile, and without this the first tile would wait.
struct NextPanel<'a, E> {
    panels: Panels<'a, E>,
    start: *const E,
    /// Tiles of the panel at hand; none if there is no panel to the right.
    tiles: usize,
}

/// Cache lines of one unit.
const UNIT_LINES: usize = COLS * size_of::<f32>() / LINE;

/// With fewer tiles to a panel there would be so many lines to ask for with each that they would hold it up, since few can
/// be under way at a time; the processor, which sees memory read in order, asks for more of them by itself.
const FEW_TILES: usize = 9;

impl<'a, E: Element> NextPanel<'a, E> {
    #[inline(always)]
    fn new(panels: Panels<'a, E>, col: usize, tiles: usize) -> Self {
        let place = (col / COLS + 1) * panels.panel_stride;
        let tiles = if col + COLS < panels.cols { tiles } else { 0 };
        Self { panels, start: panels.data.as_ptr().wrapping_add(place), tiles }
    }

    /// Asks for the part that belongs to the tile with this index.
    #[inline(always)]
    fn fetch(&self, index: usize) {
        if self.tiles < FEW_TILES {
            return;
        }
        let all = self.panels.segments * self.panels.units;
        let count = all.div_ceil(self.tiles);
        for unit in index * count..((index + 1) * count).min(all) {
            let (segment, unit) = (unit / self.panels.units, unit % self.panels.units);
            let unit = self.start.wrapping_add(segment * self.panels.segment_stride + unit * COLS * E::PAIR);
            for line in 0..UNIT_LINES {
                tile::prefetch(unit.cast::<u8>().wrapping_add(line * LINE), Intent::ReadLater);
            }
        }
    }
}

/// Asserts that the operands fit each other.
#[inline(always)]
fn check<E: Element>(lhs: Lhs<E>, rows: &Range<usize>, rhs: Panels<E>) {
    assert!(rhs.is_inside(), "right operand: {} columns outside their {}", rhs.cols, rhs.data.len());
    match lhs {
        Lhs::Rows { data, stride } => {
            assert_eq!(rhs.segments, 1, "segments beside a row-major operand");
            let depth = rhs.units * E::PAIR;
            let needed = if rows.is_empty() { 0 } else { (rows.end - 1) * stride + depth };
            assert!(data.len() >= needed, "left operand: {rows:?} rows of {depth} outside {}", data.len());
        }
        Lhs::Columns(left) => {
            let (ours, theirs) = ((left.segments, left.units), (rhs.segments, rhs.units));
            assert_eq!(ours, theirs, "segments and units of the two operands");
            assert!(left.is_inside() && rows.end <= left.cols, "left operand: {rows:?} of {}", left.cols);
        }
    }
}
