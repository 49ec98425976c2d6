//! AMX's tile registers: sizes and configuration.

use std::arch::asm;

use crate::element::{Bf16, Element};
use crate::linear::DEPTH_STEP;
use crate::tile::COLS;

/// Rows of a tile of sums: two tile registers.
pub(crate) const ROWS: usize = 2 * TILE_ROWS;
/// Rows of a tile register.
pub(super) const TILE_ROWS: usize = 16;
/// Units per row of a left tile, and rows of a right tile.
pub(super) const STEP: usize = 16;
const _: () = assert!(STEP * Bf16::PER_UNIT == DEPTH_STEP);
/// Bytes of a unit.
pub(super) const UNIT_BYTES: usize = 4;
/// Bytes of a row of a tile register.
pub(super) const TILE_ROW_BYTES: usize = STEP * UNIT_BYTES;
/// Bytes of a tile register.
pub(super) const TILE_BYTES: usize = TILE_ROWS * TILE_ROW_BYTES;
/// Bytes of one unit of all columns of a panel.
pub(super) const PANEL_ROW_BYTES: usize = COLS * UNIT_BYTES;

/// The shapes of a thread's tile registers.
#[repr(C, align(64))]
struct Configuration([u8; 64]);

impl Configuration {
    /// For a matmul of `rows` rows. If they fit into one tile register, the tiles of the sums and of the left operand
    /// are configured with exactly these rows, so that no other row is loaded, computed or stored.
    fn for_rows(rows: usize) -> Self {
        Self::with_rows(rows, 5)
    }

    /// The first `count` tiles have `rows` rows, or 16 if that is more; the others have 16.
    fn with_rows(rows: usize, count: usize) -> Self {
        let mut bytes = [0; 64];
        bytes[0] = 1; // The palette. Palette 0 releases the registers.
        for tile in 0..8 {
            bytes[16 + 2 * tile] = TILE_ROW_BYTES as u8;
            bytes[48 + tile] = if tile < count { rows.clamp(1, TILE_ROWS) } else { TILE_ROWS } as u8;
        }
        Self(bytes)
    }
}

/// The configuration of the current thread's tile registers for this module. Dropping it restores the previous
/// configuration, which another library may be using.
pub(crate) struct Tiles {
    before: Configuration,
    /// The registers belong to a thread.
    not_send: std::marker::PhantomData<*const ()>,
}

impl Tiles {
    /// Configures the registers for a matmul of `rows` rows.
    ///
    /// # Safety
    /// [`super::support`] must have returned `Granted`.
    pub(crate) unsafe fn configure(rows: usize) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { Self::load(Configuration::for_rows(rows)) }
    }

    /// Configures the registers for [`super::multiply_int8`] with `rows` rows in all.
    ///
    /// # Safety
    /// As [`Tiles::configure`].
    pub(crate) unsafe fn configure_int8(rows: usize) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { Self::load(Configuration::with_rows(rows, 6)) }
    }

    /// # Safety
    /// As [`Tiles::configure`].
    unsafe fn load(configuration: Configuration) -> Self {
        let mut before = Configuration([0; 64]);
        // SAFETY: the process may use AMX; both addresses point to 64 bytes.
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
        // SAFETY: the process may use AMX; the processor itself stored this configuration. If it was that of released
        // registers, this releases them.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) self.before.0.as_ptr(), options(nostack, readonly, preserves_flags),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _);
        }
    }
}
