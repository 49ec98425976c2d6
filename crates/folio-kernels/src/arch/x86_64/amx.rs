//! AMX-BF16: eight tile registers of 16 rows by 64 bytes, and one instruction that multiplies two of them.
//!
//! `TDPBF16PS` multiplies a tile of the left operand (16 rows of 16 units) by a tile of the right operand (16 units of
//! 16 columns, in the layout of [`Panels`]) and adds the result to a tile of 16 x 16 sums. `reference/amx.rs` specifies
//! its rounding. Source: Intel 2024, "Intel 64 and IA-32 Architectures Software Developer's Manual", volume 1, chapter
//! 18, and volume 2, TDPBF16PS.
//!
//! Rust's AMX intrinsics are unstable; inline assembly is stable.

use std::cell::Cell;
use std::ops::Range;
use std::sync::OnceLock;

/// How far ahead of its use a right operand that is used only once is prefetched, in bytes.
const PREFETCH_AHEAD: usize = 8192;

/// Assembly that prefetches 16 lines, [`PREFETCH_AHEAD`] and the given number of KiB behind `{b}`.
macro_rules! prefetch_kib {
    ($kib:literal) => {
        prefetch_kib!($kib, 0, 64, 128, 192, 256, 320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960)
    };
    ($kib:literal, $($line:literal),*) => {
        concat!($("prefetcht0 [{b}+{ahead}+", $kib, "*1024+", $line, "]\n"),*)
    };
}

mod int8;
mod micro;
mod registers;

pub(crate) use int8::{has_int8, multiply_int8};
pub(crate) use micro::peak;
pub(crate) use registers::{ROWS, Tiles};

use self::micro::{
    LeftTiles, RightTiles, one_by_four, step_two_by_two, store_two_by_two, two_by_two, zero_two_by_two,
};
use self::registers::{PANEL_ROW_BYTES, STEP, TILE_BYTES, TILE_ROW_BYTES, TILE_ROWS, UNIT_BYTES};
use super::avx512;
use crate::buffer::{Buffer, CacheAligned};
use crate::element::{Bf16, Element};
use crate::operand::{Lhs, Panels};
use crate::tile::{COLS, Sums, TileRange};

/// Whether AMX-BF16 can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Support {
    /// The processor does not have AMX-BF16.
    Absent,
    /// The processor has it, but the operating system does not permit its use.
    Refused,
    /// The process may use it.
    Granted,
}

/// Whether this process may use AMX-BF16. The first call requests permission from the operating system.
pub(crate) fn support() -> Support {
    static SUPPORT: OnceLock<Support> = OnceLock::new();
    *SUPPORT.get_or_init(|| {
        if !is_present() {
            Support::Absent
        } else if request_permission() {
            Support::Granted
        } else {
            Support::Refused
        }
    })
}

/// Whether CPUID reports AMX-TILE and AMX-BF16: leaf 7, EDX bits 24 and 22.
fn is_present() -> bool {
    cpuid_leaf_7_edx() & (1 << 24 | 1 << 22) == 1 << 24 | 1 << 22
}

/// EDX of CPUID's leaf 7, or 0 if the processor has no such leaf.
fn cpuid_leaf_7_edx() -> u32 {
    let leaves = std::arch::x86_64::__cpuid(0).eax;
    if leaves < 7 { 0 } else { std::arch::x86_64::__cpuid_count(7, 0).edx }
}

/// Requests permission from Linux to use the tile registers: `arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA)`. The
/// permission covers all current and future threads of the process (Linux, Documentation/arch/x86/xstate.rst).
fn request_permission() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
        const XFEATURE_XTILEDATA: usize = 18;
        // SAFETY: a system call with two integer arguments.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// The depth of a matmul in steps of one tile each.
#[derive(Clone, Copy)]
struct Depth {
    segments: usize,
    /// Full steps per segment.
    steps: usize,
    /// Units per segment after its full steps.
    rest: usize,
}

impl Depth {
    fn of<E: Element>(rhs: Panels<E>) -> Self {
        Self { segments: rhs.segments, steps: rhs.units / STEP, rest: rhs.units % STEP }
    }

    /// Steps per segment, including a partial last one, which is padded with zeros.
    fn segment_steps(self) -> usize {
        self.steps + usize::from(self.rest > 0)
    }

    /// Bytes of [`ROWS`] rows of the left operand in tiles.
    fn block_bytes(self) -> usize {
        self.segments * self.segment_steps() * 2 * TILE_BYTES
    }
}

/// A left operand: partly read in place, partly copied into tiles.
///
/// Rows are read in place if they consist of full steps and start on cache lines: loading a tile row that straddles two
/// lines takes twice as long. With few rows the alignment does not matter. All other rows, and panels, whose units are
/// transposed, are first copied into tiles: two tiles for every [`ROWS`] rows and every step, padded with zeros.
pub(crate) struct LeftOperand<'a, E> {
    lhs: Lhs<'a, E>,
    depth: Depth,
    /// Whether full tiles of rows are read in place.
    in_place: bool,
    /// The first row that is copied into tiles.
    first: usize,
    tiles: Buffer<Bf16>,
}

/// Bytes of tiles that [`LeftOperand`] copies at a time, unless [`ROWS`] rows alone take more.
const TILES_BYTES: usize = 256 * 1024;

thread_local! {
    /// This thread's memory for the tiles of [`LeftOperand`].
    static TILES: Cell<Buffer<Bf16>> = Cell::default();
}

impl<'a, E: Element> LeftOperand<'a, E> {
    /// For an operand of `rows` rows.
    pub(crate) fn new(lhs: Lhs<'a, E>, rhs: Panels<E>, rows: usize) -> Self {
        let depth = Depth::of(rhs);
        let in_place = match lhs {
            Lhs::Rows { data, stride } => {
                let is_whole = |bytes: usize| bytes.is_multiple_of(TILE_ROW_BYTES);
                let on_lines = is_whole(data.as_ptr().addr()) && is_whole(stride * size_of::<E>());
                depth.rest == 0 && (on_lines || rows <= TILE_ROWS)
            }
            Lhs::Columns(_) => false,
        };
        Self { lhs, depth, in_place, first: 0, tiles: TILES.take() }
    }

    /// Whether the depth is one segment of whole steps, at least one.
    pub(crate) fn has_whole_steps(&self) -> bool {
        let Depth { segments, steps, rest } = self.depth;
        rest == 0 && segments == 1 && steps > 0
    }

    /// How many rows to prepare at a time: as many as fit into the second-level cache beside the right operand, or all
    /// `rows` if they are read in place.
    pub(crate) fn group(&self, rows: usize) -> usize {
        if self.in_place {
            rows.max(1)
        } else {
            (TILES_BYTES / self.depth.block_bytes().max(1)).max(1) * ROWS
        }
    }

    /// Copies those of `rows` into tiles that are not read in place.
    ///
    /// # Safety
    /// The rows must be inside the operand, whose segments and units must be those of the right operand.
    pub(crate) unsafe fn prepare(&mut self, rows: Range<usize>) {
        let rest = rows.len() % ROWS;
        let in_place = if !self.in_place {
            0
        } else if rest == TILE_ROWS || rows.len() <= TILE_ROWS {
            rows.len()
        } else {
            rows.len() - rest
        };
        self.first = rows.start + in_place;
        let (blocks, bytes) = ((rows.end - self.first).div_ceil(ROWS), self.depth.block_bytes());
        if self.tiles.len() * size_of::<Bf16>() < blocks * bytes {
            // Large enough for most matmuls, so that a thread allocates only once.
            self.tiles = Buffer::zeroed((blocks * bytes).max(TILES_BYTES) / size_of::<Bf16>());
        }
        let blocks = self.tiles.chunks_exact_mut((bytes / size_of::<Bf16>()).max(1));
        for (first, block) in (self.first..rows.end).step_by(ROWS).zip(blocks) {
            let rows = first..(first + ROWS).min(rows.end);
            // Two elements of a tile are one unit.
            let out = block.as_mut_ptr().cast();
            // SAFETY: a block has room for all steps; the caller guarantees that the rows are inside the operand.
            unsafe {
                match self.lhs {
                    Lhs::Rows { data, stride } => {
                        lay_out_rows(out, self.depth, rows, data.as_ptr().cast(), stride * size_of::<E>());
                    }
                    Lhs::Columns(panels) => lay_out_columns(out, self.depth, rows, panels),
                }
            }
        }
    }

    /// The tiles of the rows starting at `row`, which must be prepared.
    fn block(&self, row: usize) -> LeftTiles {
        if row < self.first {
            let Lhs::Rows { data, stride } = self.lhs else { unreachable!("panels are laid out") };
            let stride = stride * size_of::<E>();
            let start = data.as_ptr().cast::<u8>().wrapping_add(row * stride);
            LeftTiles { start, stride, second: TILE_ROWS * stride, step: TILE_ROW_BYTES }
        } else {
            let start = self.tiles.as_ptr().cast::<u8>();
            let start = start.wrapping_add((row - self.first) / ROWS * self.depth.block_bytes());
            LeftTiles { start, stride: TILE_ROW_BYTES, second: TILE_BYTES, step: 2 * TILE_BYTES }
        }
    }
}

impl<E> Drop for LeftOperand<'_, E> {
    fn drop(&mut self) {
        TILES.set(std::mem::take(&mut self.tiles));
    }
}

/// Copies up to [`ROWS`] rows into tiles.
///
/// # Safety
/// `out` must have room for a block; the rows, `stride` bytes apart, must be readable.
unsafe fn lay_out_rows(out: *mut u8, depth: Depth, rows: Range<usize>, data: *const u8, stride: usize) {
    let bytes = depth.steps * TILE_ROW_BYTES + depth.rest * UNIT_BYTES;
    for r in 0..ROWS {
        // SAFETY: guaranteed by the caller; a row has as many bytes as its units.
        unsafe {
            let to = out.add(r / TILE_ROWS * TILE_BYTES + r % TILE_ROWS * TILE_ROW_BYTES);
            let from = data.wrapping_add((rows.start + r) * stride);
            for step in 0..depth.segment_steps() {
                let to = to.add(step * 2 * TILE_BYTES);
                let here =
                    if r < rows.len() { (bytes - step * TILE_ROW_BYTES).min(TILE_ROW_BYTES) } else { 0 };
                if here < TILE_ROW_BYTES {
                    to.write_bytes(0, TILE_ROW_BYTES);
                }
                let from = from.wrapping_add(step * TILE_ROW_BYTES);
                if here == TILE_ROW_BYTES {
                    // A constant length compiles to a register move instead of a call of memcpy.
                    to.copy_from_nonoverlapping(from, TILE_ROW_BYTES);
                } else {
                    to.copy_from_nonoverlapping(from, here);
                }
            }
        }
    }
}

/// Transposes up to [`ROWS`] columns of panels into tiles.
///
/// # Safety
/// `out` must have room for a block; the rows must be columns of `panels`, whose depth must be `depth`.
unsafe fn lay_out_columns<E: Element>(out: *mut u8, depth: Depth, rows: Range<usize>, panels: Panels<E>) {
    for tile in 0..2 {
        let first = rows.start + tile * TILE_ROWS;
        let count = rows.end.saturating_sub(first).min(TILE_ROWS);
        let is_whole = count == TILE_ROWS && first % COLS + TILE_ROWS <= COLS;
        for segment in 0..depth.segments {
            for step in 0..depth.segment_steps() {
                let units = (depth.steps * STEP + depth.rest - step * STEP).min(STEP);
                // The address of a unit of a column; the next unit of the same column is COLS units further.
                let unit = |row: usize, unit: usize| {
                    let place = segment * panels.segment_stride + row / COLS * panels.panel_stride;
                    let place = place + ((step * STEP + unit) * COLS + row % COLS) * E::PER_UNIT;
                    panels.data.as_ptr().wrapping_add(place).cast::<i32>()
                };
                // SAFETY: the caller guarantees that columns and units are inside the panels and the tile inside the
                // block.
                unsafe {
                    let out = out
                        .add(((segment * depth.segment_steps() + step) * 2 + tile) * TILE_BYTES)
                        .cast::<i32>();
                    if is_whole && units == STEP {
                        avx512::transpose(out, STEP, unit(first, 0), COLS);
                        continue;
                    }
                    out.write_bytes(0, TILE_ROWS * STEP);
                    for r in 0..count {
                        for u in 0..units {
                            *out.add(r * STEP + u) = unit(first + r, u).read_unaligned();
                        }
                    }
                }
            }
        }
    }
}

/// Whether sums of this shape can be stored directly into a result.
pub(crate) fn fits(rows: usize, cols: usize) -> bool {
    rows.is_multiple_of(TILE_ROWS) && (cols == COLS || (cols == COLS / 2 && rows == ROWS))
}

/// `sums = lhs rhs` or `sums += lhs rhs` for up to [`ROWS`] rows, starting at `row`, and the first `cols` columns of
/// `panel`. If the shape does not [fit](fits), all of a [`crate::tile::TileBuffer`] is overwritten.
///
/// # Safety
/// - `left` must be prepared for these rows, and `rhs` must be the operand that `left` was created with.
/// - `sums` must have room for what is overwritten.
/// - [`Tiles`] must be configured for the total number of rows of `left`; if that is at most 16, `rows` must equal it.
pub(crate) unsafe fn multiply<E: Element>(
    sums: Sums,
    left: &LeftOperand<E>,
    row: usize,
    rows: usize,
    panel: *const E,
    cols: usize,
    rhs: Panels<E>,
) {
    let (depth, block, panel) = (left.depth, left.block(row), panel.cast::<u8>());
    let Depth { segments, steps, rest } = depth;
    let segment = rhs.segment_stride * size_of::<E>();
    // SAFETY: guaranteed by the caller.
    unsafe {
        if rest == 0 && segments > 0 && steps > 0 {
            let gap = segment.wrapping_sub(steps * STEP * PANEL_ROW_BYTES);
            return run(sums, block, RightTiles { start: panel, steps, segments, gap }, rows, cols);
        }
        if !sums.add {
            zero(sums, rows, cols);
        }
        let sums = Sums { add: true, ..sums };
        // The last step of a segment of the right operand, padded with zeros, to match the left operand.
        let mut last = CacheAligned([0u8; STEP * PANEL_ROW_BYTES]);
        for s in 0..segments {
            let start = panel.wrapping_add(s * segment);
            let of_segment = block.start.wrapping_add(s * depth.segment_steps() * block.step);
            if steps > 0 {
                let block = LeftTiles { start: of_segment, ..block };
                run(sums, block, RightTiles { start, steps, segments: 1, gap: 0 }, rows, cols);
            }
            if rest > 0 {
                let units = start.add(steps * STEP * PANEL_ROW_BYTES);
                last.0.as_mut_ptr().copy_from_nonoverlapping(units, rest * PANEL_ROW_BYTES);
                let block = LeftTiles { start: of_segment.wrapping_add(steps * block.step), ..block };
                let right = RightTiles { start: last.0.as_ptr(), steps: 1, segments: 1, gap: 0 };
                run(sums, block, right, rows, cols);
            }
        }
    }
}

/// Whether a tile of this many rows can be a [`SteppedTile`].
pub(crate) fn takes_steps(rows: usize) -> bool {
    rows > TILE_ROWS
}

/// `sums = lhs rhs` for one tile, a step at a time: 32 rows times 32 columns of 32 elements. The out-of-order window of the processor
/// reaches from a step into the code that follows it, so that tiles are loaded and multiplied meanwhile.
pub(crate) struct SteppedTile {
    /// The destination of the half of the columns that is being computed, and its operands.
    sums: Sums,
    left: LeftTiles,
    right: *const u8,
    halves: usize,
    /// Steps of a half.
    steps: usize,
    /// Steps done in this half.
    done: usize,
}

impl SteppedTile {
    /// For a tile that [takes steps](takes_steps), a depth of [whole steps](LeftOperand::has_whole_steps), and a
    /// [`crate::tile::TileBuffer`] as the destination.
    #[inline(always)]
    pub(crate) fn new<E: Element>(sums: Sums, left: &LeftOperand<E>, at: TileRange, panel: *const E) -> Self {
        let (steps, halves) = (left.depth.steps, at.cols.div_ceil(COLS / 2));
        Self { sums, left: left.block(at.row), right: panel.cast(), halves, steps, done: 0 }
    }

    #[inline(always)]
    pub(crate) fn steps(&self) -> usize {
        self.halves * self.steps
    }

    /// # Safety
    /// As [`multiply`] for the tile; there must be a step left. Between the steps of a tile nothing else may use AMX.
    #[inline(always)]
    pub(crate) unsafe fn step(&mut self) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            if self.done == 0 {
                zero_two_by_two();
            }
            let left = self.left.start.wrapping_add(self.done * self.left.step);
            let right = self.right.wrapping_add(self.done * STEP * PANEL_ROW_BYTES);
            step_two_by_two(LeftTiles { start: left, ..self.left }, right);
            self.done += 1;
            if self.done == self.steps {
                store_two_by_two(self.sums);
                self.sums.start = self.sums.start.wrapping_add(COLS / 2);
                self.right = self.right.wrapping_add(PANEL_ROW_BYTES / 2);
                self.done = 0;
            }
        }
    }
}

/// Sets the destination to zero.
///
/// # Safety
/// As [`multiply`].
unsafe fn zero(sums: Sums, rows: usize, cols: usize) {
    let (rows, cols) = if fits(rows, cols) { (rows, cols) } else { (ROWS, COLS) };
    for row in 0..rows {
        // SAFETY: guaranteed by the caller.
        unsafe { sums.at(row, 0).write_bytes(0, cols) };
    }
}

/// Runs the micro-kernel for this number of rows.
///
/// # Safety
/// As [`multiply`]; there must be at least one step and one segment.
unsafe fn run(sums: Sums, block: LeftTiles, right: RightTiles, rows: usize, cols: usize) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        if rows <= TILE_ROWS {
            return if sums.add {
                one_by_four::<true>(sums, block, right)
            } else {
                one_by_four::<false>(sums, block, right)
            };
        }
        for half in 0..cols.div_ceil(COLS / 2) {
            let sums = Sums { start: sums.at(0, half * COLS / 2), ..sums };
            let right = RightTiles { start: right.start.add(half * PANEL_ROW_BYTES / 2), ..right };
            if sums.add {
                two_by_two::<true>(sums, block, right);
            } else {
                two_by_two::<false>(sums, block, right);
            }
        }
    }
}
