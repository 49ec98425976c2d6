//! NEON: registers of 4 f32, vectorized by the compiler.

/// Runs `body` compiled for NEON.
///
/// # Safety
/// The processor must have NEON.
#[target_feature(enable = "neon")]
pub(crate) unsafe fn run<R>(body: impl FnOnce() -> R) -> R {
    body()
}
