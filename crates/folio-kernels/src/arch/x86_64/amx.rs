//! AMX-BF16: eight tile registers of 16 rows by 64 bytes, and one instruction that multiplies two of them.
//!
//! `TDPBF16PS` adds to a tile of 16 x 16 sums the matmul of a tile of the left operand, 16 rows of 16 units, and one of the
//! right operand, 16 units of 16 columns, which is how [`crate::panels`] lays units out. What it rounds is written down in
//! [`crate::reference::amx`]. Intel 2024, "Intel 64 and IA-32 Architectures Software Developer's Manual", volume 1,
//! chapter 18, and volume 2, TDPBF16PS.
//!
//! The intrinsics are unstable in Rust; inline assembly is not.

use std::arch::asm;
use std::cell::Cell;
use std::ops::Range;
use std::sync::OnceLock;

mod micro;

pub(crate) use micro::peak;

use self::micro::{Block, Right, one_by_four, two_by_two};
use super::avx512;
use crate::buffer::Buffer;
use crate::element::{Bf16, Element};
use crate::matmul::Lhs;
use crate::panels::Panels;
use crate::tile::{COLS, Sums};

/// Rows of sums that are computed together: two tiles.
pub(crate) const ROWS: usize = 2 * TILE_ROWS;
/// Rows of a tile.
const TILE_ROWS: usize = 16;
/// Units of a row of a tile of the left operand, and rows of one of the right operand.
const STEP: usize = 16;
/// Bytes of a unit.
const UNIT: usize = 4;
/// Bytes of a row of a tile.
const TILE_ROW: usize = STEP * UNIT;
/// Bytes of a whole tile.
const TILE: usize = TILE_ROWS * TILE_ROW;
/// Bytes of the units of one row of a panel.
const PANEL_ROW: usize = COLS * UNIT;

/// What came of asking for AMX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Support {
    /// The processor does not have AMX-BF16.
    Absent,
    /// The processor has it, the operating system does not allow it.
    Refused,
    /// The process may use it.
    Granted,
}

/// Whether this process may use AMX-BF16; asks the operating system at the first call.
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
    let leaves = std::arch::x86_64::__cpuid(0).eax;
    leaves >= 7 && std::arch::x86_64::__cpuid_count(7, 0).edx & (1 << 24 | 1 << 22) == 1 << 24 | 1 << 22
}

/// Asks Linux to let this process keep state in tile registers: `arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA)`. The
/// permission holds for all of its threads, present and to come (Linux, Documentation/arch/x86/xstate.rst).
fn request_permission() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
        const XFEATURE_XTILEDATA: usize = 18;
        // SAFETY: a system call of two numbers.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// The shapes of a thread's tile registers.
#[repr(C, align(64))]
struct Configuration([u8; 64]);

impl Configuration {
    /// Tiles for a matmul of `rows` rows. If they fit into one tile, the tiles of the sums and of the left operand have only
    /// these rows, so that no other row is loaded, computed or stored.
    fn for_rows(rows: usize) -> Self {
        let mut bytes = [0; 64];
        bytes[0] = 1; // The palette; 0 is that of released registers.
        for tile in 0..8 {
            bytes[16 + 2 * tile] = TILE_ROW as u8;
            bytes[48 + tile] = if tile <= 4 { rows.clamp(1, TILE_ROWS) } else { TILE_ROWS } as u8;
        }
        Self(bytes)
    }
}

/// Tile registers that are configured for this module, on the thread that made it. What the thread had configured before,
/// for code of another library, is configured again afterwards.
pub(crate) struct Tiles {
    before: Configuration,
    /// Registers belong to a thread.
    not_send: std::marker::PhantomData<*const ()>,
}

impl Tiles {
    /// For a matmul of `rows` rows.
    ///
    /// # Safety
    /// [`support`] must have said `Granted`.
    pub(crate) unsafe fn configure(rows: usize) -> Self {
        let configuration = Configuration::for_rows(rows);
        let mut before = Configuration([0; 64]);
        // SAFETY: the process may use AMX; both places are 64 bytes.
        unsafe {
            asm!("sttilecfg [{}]", in(reg) before.0.as_mut_ptr(), options(nostack, preserves_flags));
            asm!("ldtilecfg [{}]", in(reg) configuration.0.as_ptr(), options(nostack, readonly, preserves_flags),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _);
        }
        Self { before, not_send: std::marker::PhantomData }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the process may use AMX; the configuration is one that the processor stored. That of released registers
        // releases them.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) self.before.0.as_ptr(), options(nostack, readonly, preserves_flags),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _);
        }
    }
}

/// The depth of a matmul in steps of one tile.
#[derive(Clone, Copy)]
struct Depth {
    segments: usize,
    /// Whole steps of a segment.
    steps: usize,
    /// Units of a segment behind its whole steps.
    rest: usize,
}

impl Depth {
    fn of<E: Element>(rhs: Panels<E>) -> Self {
        Self { segments: rhs.segments, steps: rhs.units / STEP, rest: rhs.units % STEP }
    }

    /// Steps of a segment, the last of which may be filled up with zeros.
    fn segment_steps(self) -> usize {
        self.steps + usize::from(self.rest > 0)
    }

    /// Bytes of [`ROWS`] rows of the left operand in tiles.
    fn block_bytes(self) -> usize {
        self.segments * self.segment_steps() * 2 * TILE
    }
}

/// A left operand, as far as it is read in place, and in tiles, as far as it is not.
///
/// Rows are read in place if they are whole steps and start on cache lines: a tile row that straddles two lines loads at half
/// the speed. For few rows this does not matter. Other rows, and panels, whose units stand the other way round, are first
/// laid out in tiles: for each [`ROWS`] rows and each step, two tiles. What is missing is zero there.
pub(crate) struct Left<'a, E> {
    lhs: Lhs<'a, E>,
    depth: Depth,
    /// Whether whole tiles of rows are read in place.
    in_place: bool,
    /// The first row that is laid out in tiles.
    first: usize,
    tiles: Buffer<Bf16>,
}

/// Bytes of tiles that [`Left`] lays out together, unless [`ROWS`] rows alone take more.
const TILES_BYTES: usize = 256 * 1024;

thread_local! {
    /// What [`Left`] lays tiles out in.
    static TILES: Cell<Buffer<Bf16>> = Cell::default();
}

impl<'a, E: Element> Left<'a, E> {
    /// For `rows` rows in all.
    pub(crate) fn new(lhs: Lhs<'a, E>, rhs: Panels<E>, rows: usize) -> Self {
        let depth = Depth::of(rhs);
        let in_place = match lhs {
            Lhs::Rows { data, stride } => {
                let is_whole = |bytes: usize| bytes.is_multiple_of(TILE_ROW);
                let on_lines = is_whole(data.as_ptr().addr()) && is_whole(stride * size_of::<E>());
                depth.rest == 0 && (on_lines || rows <= TILE_ROWS)
            }
            Lhs::Columns(_) => false,
        };
        Self { lhs, depth, in_place, first: 0, tiles: TILES.take() }
    }

    /// Rows that are laid out together, or all `rows` if they are read in place: as many as stay in the second-level
    /// cache beside what they are multiplied with.
    pub(crate) fn group(&self, rows: usize) -> usize {
        if self.in_place {
            rows.max(1)
        } else {
            (TILES_BYTES / self.depth.block_bytes().max(1)).max(1) * ROWS
        }
    }

    /// Lays out what of `rows` is not read in place.
    ///
    /// # Safety
    /// The rows must be inside the operand; its segments and units must be those of the right one.
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
            // The least is what most matmuls need, so that a thread allocates once.
            self.tiles = Buffer::zeroed((blocks * bytes).max(TILES_BYTES) / size_of::<Bf16>());
        }
        let blocks = self.tiles.chunks_exact_mut((bytes / size_of::<Bf16>()).max(1));
        for (first, block) in (self.first..rows.end).step_by(ROWS).zip(blocks) {
            let rows = first..(first + ROWS).min(rows.end);
            // Two elements of a tile are one unit.
            let out = block.as_mut_ptr().cast();
            // SAFETY: a block has room for all steps; the rows are inside by the caller's promise.
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

    /// The tiles of the rows from `row` on, which [`Left::prepare`] has seen.
    fn block(&self, row: usize) -> Block {
        if row < self.first {
            let Lhs::Rows { data, stride } = self.lhs else { unreachable!("panels are laid out") };
            let stride = stride * size_of::<E>();
            let start = data.as_ptr().cast::<u8>().wrapping_add(row * stride);
            Block { start, stride, second: TILE_ROWS * stride, step: TILE_ROW }
        } else {
            let start = self.tiles.as_ptr().cast::<u8>();
            let start = start.wrapping_add((row - self.first) / ROWS * self.depth.block_bytes());
            Block { start, stride: TILE_ROW, second: TILE, step: 2 * TILE }
        }
    }
}

impl<E> Drop for Left<'_, E> {
    fn drop(&mut self) {
        TILES.set(std::mem::take(&mut self.tiles));
    }
}

/// # Safety
/// `out` must have room for a block; the rows, `stride` bytes apart, must be readable.
unsafe fn lay_out_rows(out: *mut u8, depth: Depth, rows: Range<usize>, data: *const u8, stride: usize) {
    let bytes = depth.steps * TILE_ROW + depth.rest * UNIT;
    for r in 0..ROWS {
        // SAFETY: the caller's promise; a row has as many bytes as its units.
        unsafe {
            let to = out.add(r / TILE_ROWS * TILE + r % TILE_ROWS * TILE_ROW);
            let from = data.wrapping_add((rows.start + r) * stride);
            for step in 0..depth.segment_steps() {
                let to = to.add(step * 2 * TILE);
                let here = if r < rows.len() { (bytes - step * TILE_ROW).min(TILE_ROW) } else { 0 };
                if here < TILE_ROW {
                    to.write_bytes(0, TILE_ROW);
                }
                let from = from.wrapping_add(step * TILE_ROW);
                if here == TILE_ROW {
                    // A constant length compiles to a register move instead of a call of memcpy.
                    to.copy_from_nonoverlapping(from, TILE_ROW);
                } else {
                    to.copy_from_nonoverlapping(from, here);
                }
            }
        }
    }
}

/// # Safety
/// `out` must have room for a block; the rows must be columns of `panels`, whose units are as `depth` says.
unsafe fn lay_out_columns<E: Element>(out: *mut u8, depth: Depth, rows: Range<usize>, panels: Panels<E>) {
    for tile in 0..2 {
        let first = rows.start + tile * TILE_ROWS;
        let count = rows.end.saturating_sub(first).min(TILE_ROWS);
        let is_whole = count == TILE_ROWS && first % COLS + TILE_ROWS <= COLS;
        for segment in 0..depth.segments {
            for step in 0..depth.segment_steps() {
                let units = (depth.steps * STEP + depth.rest - step * STEP).min(STEP);
                // From a column's unit to the same of the next panel and to the next unit of its own.
                let unit = |row: usize, unit: usize| {
                    let place = segment * panels.segment_stride + row / COLS * panels.panel_stride;
                    let place = place + ((step * STEP + unit) * COLS + row % COLS) * E::PAIR;
                    panels.data.as_ptr().wrapping_add(place).cast::<i32>()
                };
                // SAFETY: the caller's promise: columns and units are inside; the tile is one of the block's.
                unsafe {
                    let out =
                        out.add(((segment * depth.segment_steps() + step) * 2 + tile) * TILE).cast::<i32>();
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

/// Whether sums of this size can be written straight into a result.
pub(crate) fn fits(rows: usize, cols: usize) -> bool {
    rows.is_multiple_of(TILE_ROWS) && (cols == COLS || (cols == COLS / 2 && rows == ROWS))
}

/// `sums = lhs rhs` or `sums += lhs rhs` for `rows` rows from `row` on, up to [`ROWS`], and `cols` columns of the panel at
/// the start of `panel`; all of the tile if they do not [`fits`] it.
///
/// # Safety
/// `left` must have been prepared for these rows; `rhs` must be what it was made with; `sums` must have room. [`Tiles`] must be
/// configured for as many rows as `left` was made for, and, if these are at most 16, `rows` must be all of them.
pub(crate) unsafe fn multiply<E: Element>(
    sums: Sums,
    left: &Left<E>,
    row: usize,
    rows: usize,
    panel: *const E,
    cols: usize,
    rhs: Panels<E>,
) {
    let (depth, block, panel) = (left.depth, left.block(row), panel.cast::<u8>());
    let Depth { segments, steps, rest } = depth;
    let segment = rhs.segment_stride * size_of::<E>();
    // SAFETY: passed on to the caller.
    unsafe {
        if rest == 0 && segments > 0 && steps > 0 {
            let gap = segment.wrapping_sub(steps * STEP * PANEL_ROW);
            return run(sums, block, Right { start: panel, steps, segments, gap }, rows, cols);
        }
        if !sums.add {
            zero(sums, rows, cols);
        }
        let sums = Sums { add: true, ..sums };
        // A step of a panel that is filled up with zeros, which the left operand's are multiplied with.
        let mut last = Aligned([0u8; STEP * PANEL_ROW]);
        for s in 0..segments {
            let start = panel.wrapping_add(s * segment);
            let of_segment = block.start.wrapping_add(s * depth.segment_steps() * block.step);
            if steps > 0 {
                let block = Block { start: of_segment, ..block };
                run(sums, block, Right { start, steps, segments: 1, gap: 0 }, rows, cols);
            }
            if rest > 0 {
                let units = start.add(steps * STEP * PANEL_ROW);
                last.0.as_mut_ptr().copy_from_nonoverlapping(units, rest * PANEL_ROW);
                let block = Block { start: of_segment.wrapping_add(steps * block.step), ..block };
                let right = Right { start: last.0.as_ptr(), steps: 1, segments: 1, gap: 0 };
                run(sums, block, right, rows, cols);
            }
        }
    }
}

/// # Safety
/// As [`multiply`].
unsafe fn zero(sums: Sums, rows: usize, cols: usize) {
    let (rows, cols) = if fits(rows, cols) { (rows, cols) } else { (ROWS, COLS) };
    for row in 0..rows {
        // SAFETY: the caller's promise.
        unsafe { sums.at(row, 0).write_bytes(0, cols) };
    }
}

/// # Safety
/// As [`multiply`]; there must be steps and segments.
unsafe fn run(sums: Sums, block: Block, right: Right, rows: usize, cols: usize) {
    // SAFETY: passed on to the caller.
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
            let right = Right { start: right.start.add(half * PANEL_ROW / 2), ..right };
            if sums.add {
                two_by_two::<true>(sums, block, right);
            } else {
                two_by_two::<false>(sums, block, right);
            }
        }
    }
}

/// Something that starts on a cache line.
#[repr(align(64))]
struct Aligned<T>(T);
