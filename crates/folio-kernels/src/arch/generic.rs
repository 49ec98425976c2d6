//! Plain Rust, compiled for the instruction set of the caller.

use crate::element::Element;
use crate::quantized::{InputRows, IntegerSums, STRIP_COLS, StripUnit, UNIT};
use crate::tile::{COLS, GROUP, ROWS, Sums, Walk};

/// The micro-kernel in plain Rust, [`GROUP`] columns at a time.
///
/// # Safety
/// The contract of [`Walk`] must hold.
#[inline(always)]
pub(crate) unsafe fn multiply<E: Element, const R: usize>(
    sums: Sums,
    lhs: &[*const E; ROWS],
    rhs: *const E,
    walk: &Walk,
) {
    for first in (0..walk.cols).step_by(GROUP) {
        // SAFETY: the caller guarantees the rows and whole groups of columns.
        let places: [*mut [f32; GROUP]; R] = std::array::from_fn(|r| unsafe { sums.at(r, first).cast() });
        let mut group = [[0.0f32; GROUP]; R];
        if sums.add {
            // SAFETY: as above.
            group = places.map(|place| unsafe { *place });
        }
        for segment in 0..walk.segments {
            for unit in 0..walk.units {
                // SAFETY: the caller guarantees every unit of the walk; a unit is `E::PER_UNIT` elements.
                let rhs = unsafe {
                    let start = segment * walk.rhs_segment + unit * COLS + first;
                    std::slice::from_raw_parts(rhs.add(start * E::PER_UNIT), GROUP * E::PER_UNIT)
                };
                for (r, sums) in group.iter_mut().enumerate() {
                    let start = (segment * walk.lhs_segment + unit * walk.lhs_step) * E::PER_UNIT;
                    for half in 0..E::PER_UNIT {
                        // SAFETY: as above.
                        let a = unsafe { *lhs[r].add(start + half) }.to_f32();
                        for (c, sum) in sums.iter_mut().enumerate() {
                            *sum = multiply_add(a, rhs[c * E::PER_UNIT + half].to_f32(), *sum);
                        }
                    }
                }
            }
        }
        for (place, group) in places.into_iter().zip(group) {
            // SAFETY: as above.
            unsafe { *place = group };
        }
    }
}

/// `a b + c`, fused if the target has an instruction for it.
#[inline(always)]
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) { a.mul_add(b, c) } else { a * b + c }
}

/// The sums of the high and the low parts of some rows times a strip of 8-bit weights.
#[inline(always)]
pub(crate) fn multiply_int8(sums: &mut IntegerSums, rows: InputRows, weights: &[StripUnit]) {
    let parts = [(rows.high, &mut sums.high), (rows.low, &mut sums.low)];
    for (inputs, sums) in parts {
        for (row, sums) in inputs.chunks_exact(rows.steps.max(1)).take(rows.rows).zip(sums) {
            let mut totals = [0i32; STRIP_COLS];
            let units = row.iter().flat_map(|step| step.0.as_chunks::<UNIT>().0);
            for (inputs, weights) in units.zip(weights) {
                for (total, weights) in totals.iter_mut().zip(&weights.0) {
                    for (x, w) in inputs.iter().zip(weights) {
                        *total += i32::from(*x) * i32::from(*w);
                    }
                }
            }
            *sums = totals;
        }
    }
}
