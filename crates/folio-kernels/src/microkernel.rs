//! Selects the micro-kernel of a matmul: the code that computes one [tile](crate::tile) of the result in registers.

use std::ops::Range;

#[cfg(target_arch = "aarch64")]
use crate::arch::aarch64::neon;
use crate::arch::generic;
#[cfg(target_arch = "x86_64")]
use crate::arch::x86_64::{amx, avx2, avx512};
use crate::element::Element;
use crate::isa::Isa;
use crate::operand::{Lhs, Panels};
use crate::tile::{COLS, GROUP, ROWS, Sums, TileRange, Walk};

/// Rows of a tile on this instruction set.
#[inline(always)]
pub(crate) fn tile_rows<E: Element>(isa: Isa) -> usize {
    #[cfg(target_arch = "x86_64")]
    if E::PER_UNIT == 2 && isa.has_amx_bf16() {
        return amx::ROWS;
    }
    let _ = (isa, E::PER_UNIT);
    ROWS
}

/// Whether the micro-kernel can write the sums of a tile without touching rows or columns outside it.
#[inline(always)]
pub(crate) fn fits<E: Element>(isa: Isa, at: TileRange) -> bool {
    #[cfg(target_arch = "x86_64")]
    if E::PER_UNIT == 2 && isa.has_amx_bf16() {
        return amx::fits(at.rows, at.cols);
    }
    let _ = (isa, E::PER_UNIT);
    at.cols.is_multiple_of(GROUP)
}

/// A tile that is being multiplied.
pub(crate) enum TileInProgress {
    /// No tile: one step that does nothing.
    None,
    /// In one step.
    AtOnce(Sums, TileRange),
    /// In several steps.
    #[cfg(target_arch = "x86_64")]
    InSteps(amx::SteppedTile),
}

impl TileInProgress {
    /// Steps in all, at least one.
    #[inline(always)]
    pub(crate) fn steps(&self) -> usize {
        match self {
            Self::None | Self::AtOnce(..) => 1,
            #[cfg(target_arch = "x86_64")]
            Self::InSteps(tile) => tile.steps(),
        }
    }
}

/// The micro-kernel of one matmul, with its operands.
pub(crate) struct MicroKernel<'a, E> {
    isa: Isa,
    lhs: Lhs<'a, E>,
    rhs: Panels<'a, E>,
    #[cfg(target_arch = "x86_64")]
    amx: Option<(amx::LeftOperand<'a, E>, amx::Tiles)>,
}

impl<'a, E: Element> MicroKernel<'a, E> {
    /// For a left operand of `rows` rows. The shapes of the operands must match.
    #[inline(always)]
    pub(crate) fn new(isa: Isa, rows: usize, lhs: Lhs<'a, E>, rhs: Panels<'a, E>) -> Self {
        let _ = rows;
        Self {
            isa,
            lhs,
            rhs,
            #[cfg(target_arch = "x86_64")]
            amx: (E::PER_UNIT == 2 && isa.has_amx_bf16()).then(|| {
                // SAFETY: an `Isa` proves that the process may use AMX.
                (amx::LeftOperand::new(lhs, rhs, rows), unsafe { amx::Tiles::configure(rows) })
            }),
        }
    }

    /// How many of `rows` rows to pass to each [`MicroKernel::prepare`]; at least one.
    #[inline(always)]
    pub(crate) fn group(&self, rows: usize) -> usize {
        #[cfg(target_arch = "x86_64")]
        if let Some((left, _)) = &self.amx {
            return left.group(rows);
        }
        rows.max(1)
    }

    /// Prepares these rows of the left operand. Call it before computing their tiles.
    ///
    /// # Safety
    /// The rows must be inside the left operand; both operands must have the same segments and units.
    #[inline(always)]
    pub(crate) unsafe fn prepare(&mut self, rows: Range<usize>) {
        #[cfg(target_arch = "x86_64")]
        if let Some((left, _)) = &mut self.amx {
            // SAFETY: guaranteed by the caller.
            return unsafe { left.prepare(rows) };
        }
        let _ = rows;
    }

    /// Whether [`MicroKernel::begin`] can divide the tiles into steps: with AMX, more than 16 rows, and a depth of whole steps and at
    /// least `depth` elements.
    #[inline(always)]
    pub(crate) fn can_take_steps(&self, rows: usize, depth: usize) -> bool {
        #[cfg(target_arch = "x86_64")]
        if let Some((left, _)) = &self.amx {
            return left.has_whole_steps() && amx::takes_steps(rows) && self.rhs.units * E::PER_UNIT >= depth;
        }
        let _ = (rows, depth);
        false
    }

    /// `sums = lhs rhs` for one tile, in as many calls of [`MicroKernel::step`] as the result [has steps](TileInProgress::steps).
    /// `in_steps` requires [`MicroKernel::can_take_steps`]; without it there is one step.
    #[inline(always)]
    pub(crate) fn begin(&self, sums: Sums, at: TileRange, in_steps: bool) -> TileInProgress {
        #[cfg(target_arch = "x86_64")]
        if let Some((left, _)) = &self.amx
            && in_steps
            && amx::takes_steps(at.rows)
        {
            let panel = self.rhs.data[at.col / COLS * self.rhs.panel_stride..].as_ptr();
            return TileInProgress::InSteps(amx::SteppedTile::new(sums, left, at, panel));
        }
        let _ = in_steps;
        TileInProgress::AtOnce(sums, at)
    }

    /// The next step of a tile. Inlined, it would make compilers repeat the loop around it, with a long epilogue, for each kind of
    /// tile.
    ///
    /// # Safety
    /// As [`MicroKernel::multiply`]; there must be a step left. Between the steps of a tile nothing else may use AMX.
    #[inline(never)]
    pub(crate) unsafe fn step(&self, tile: &mut TileInProgress) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            match tile {
                TileInProgress::None => {}
                TileInProgress::AtOnce(sums, at) => self.multiply(*sums, *at),
                #[cfg(target_arch = "x86_64")]
                TileInProgress::InSteps(tile) => tile.step(),
            }
        }
    }

    /// `sums = lhs rhs` or `sums += lhs rhs` for one tile. If the tile does not [fit](fits), columns up to the next
    /// multiple of 16 are overwritten too, or all of a [`crate::tile::TileBuffer`].
    ///
    /// # Safety
    /// The tile must be inside both operands, and its rows must be [prepared](MicroKernel::prepare). The destination
    /// must be writable and must not overlap an operand.
    #[inline(always)]
    pub(crate) unsafe fn multiply(&self, sums: Sums, at: TileRange) {
        let Self { isa, lhs, rhs, .. } = *self;
        let panel = rhs.data[at.col / COLS * rhs.panel_stride..].as_ptr();
        #[cfg(target_arch = "x86_64")]
        if let Some((left, _)) = &self.amx {
            // SAFETY: guaranteed by the caller; the tile registers are configured for the number of rows of `left`.
            return unsafe { amx::multiply(sums, left, at.row, at.rows, panel, at.cols, rhs) };
        }
        let (lhs_step, lhs_segment) = match lhs {
            Lhs::Rows { .. } => (1, 0),
            Lhs::Columns(left) => (COLS, left.segment_stride / E::PER_UNIT),
        };
        let left = std::array::from_fn(|r| row_start(lhs, at.row + r.min(at.rows - 1)));
        let Panels { units, segments, segment_stride, .. } = rhs;
        let rhs_segment = segment_stride / E::PER_UNIT;
        let walk = Walk { rows: at.rows, cols: at.cols, segments, units, lhs_step, lhs_segment, rhs_segment };
        // SAFETY: guaranteed by the caller: the walk stays inside both operands, and `panel` is a panel of the right
        // one.
        unsafe { multiply(isa, sums, &left, panel, &walk) };
    }
}

/// The address of the first element of a row of the left operand.
#[inline(always)]
fn row_start<E: Element>(lhs: Lhs<E>, row: usize) -> *const E {
    match lhs {
        Lhs::Rows { data, stride } => data[row * stride..].as_ptr(),
        Lhs::Columns(panels) => {
            panels.data[row / COLS * panels.panel_stride + row % COLS * E::PER_UNIT..].as_ptr()
        }
    }
}

/// Runs the micro-kernel of this instruction set.
///
/// # Safety
/// The contract of [`Walk`] must hold.
unsafe fn multiply<E: Element>(isa: Isa, sums: Sums, lhs: &[*const E; ROWS], rhs: *const E, walk: &Walk) {
    // SAFETY: guaranteed by the caller.
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

/// [`multiply`] with the number of rows as a constant.
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
    // SAFETY: guaranteed by the caller; an `Isa` proves that the processor has it.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        {
            if isa.has_avx512() && E::PER_UNIT == 1 {
                return avx512::multiply_f32::<R>(
                    sums,
                    lhs.each_ref().map(|&row| row.cast()),
                    rhs.cast(),
                    walk,
                );
            }
            if isa.has_avx512_bf16() && E::PER_UNIT == 2 {
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
        #[cfg(target_arch = "aarch64")]
        if isa.has_neon_bf16() && E::PER_UNIT == 2 {
            return neon::multiply_bf16(sums, &lhs.map(|row| row.cast()), rhs.cast(), walk);
        }
        let _ = isa;
        generic::multiply::<E, R>(sums, lhs, rhs, walk);
    }
}
