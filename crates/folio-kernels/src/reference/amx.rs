//! The rounding of AMX-BF16's matmul of two tiles.
//!
//! ```text
//! even = sum over k of a[2 k] b[2 k];  odd = sum over k of a[2 k + 1] b[2 k + 1];  sum += even + odd
//! ```
//! where k runs over the 16 units of one step and both sums start at zero. Every multiplication and addition of `even`
//! and `odd` is one fused operation. Subnormal inputs and results are flushed to zero. Rounding is to nearest, ties to
//! even (Intel 2024, "Intel 64 and IA-32 Architectures Software Developer's Manual", volume 2, TDPBF16PS).

use crate::element::{Bf16, Element};
use crate::linear::DEPTH_STEP;

/// `sum + a b` in steps of [`DEPTH_STEP`] elements; the last may be shorter.
///
/// # Panics
/// If `a` and `b` differ in length.
pub fn amx_dot(mut sum: f32, a: &[Bf16], b: &[Bf16]) -> f32 {
    assert_eq!(a.len(), b.len(), "vectors of a dot product differ in length");
    for (a, b) in a.chunks(DEPTH_STEP).zip(b.chunks(DEPTH_STEP)) {
        let mut halves = [0.0f32; 2];
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            let half = &mut halves[i % 2];
            *half = flush(flush(a.to_f32()).mul_add(flush(b.to_f32()), *half));
        }
        sum = flush(flush(sum) + flush(halves[0] + halves[1]));
    }
    sum
}

/// Flushes subnormal numbers to zero, with their sign.
fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}
