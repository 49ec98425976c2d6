//! NEON: registers of 4 f32, by the compiler's vectoriser.

/// Runs `body` compiled for this set.
///
/// # Safety
/// The processor must have NEON.
#[target_feature(enable = "neon")]
pub(crate) unsafe fn run<R>(body: impl FnOnce() -> R) -> R {
    body()
}
