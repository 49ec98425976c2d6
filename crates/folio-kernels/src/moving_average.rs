//! Exponential moving averages.

use rayon::prelude::*;

use crate::isa::Isa;

/// Elements per parallel task: two arrays of 64 KiB.
const PIECE: usize = 16 * 1024;

/// The update of a moving average m with decay rate beta: `m = keep m + (1 - beta) (x - part m)`.
///
/// With keep = part = 1, only `1 - beta` is rounded, to its own relative precision. If beta < 1/2, then keep = beta and
/// part = 0, because m may be much larger than the result.
#[derive(Clone, Copy)]
pub(crate) struct MovingAverage {
    keep: f32,
    part: f32,
    /// `1 - beta`
    new: f32,
}

impl MovingAverage {
    pub(crate) fn of(beta: f64) -> Self {
        let (keep, part) = if beta < 0.5 { (beta as f32, 0.0) } else { (1.0, 1.0) };
        Self { keep, part, new: (1.0 - beta) as f32 }
    }

    #[inline(always)]
    pub(crate) fn next(self, m: f32, x: f32) -> f32 {
        self.keep * m + self.new * (x - self.part * m)
    }
}

/// `average <- decay average + (1 - decay) x`, in place. Both have the same length.
///
/// ```
/// let mut average = [1.0, 0.0];
/// folio_kernels::moving_average::update_average(&mut average, &[2.0, 4.0], 0.75);
/// assert_eq!(average, [1.25, 1.0]);
/// ```
pub fn update_average(average: &mut [f32], x: &[f32], decay: f64) {
    update_scaled_average(average, x, 1.0, decay);
}

/// `average <- decay average + (1 - decay) scale x`, in place. Both have the same length.
pub fn update_scaled_average(average: &mut [f32], x: &[f32], scale: f64, decay: f64) {
    assert_eq!(average.len(), x.len(), "lengths of the average and of x");
    let (isa, update, scale) = (Isa::detected(), MovingAverage::of(decay), scale as f32);
    average.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).for_each(|(average, x)| {
        isa.run(
            #[inline(always)]
            || average.iter_mut().zip(x).for_each(|(m, &x)| *m = update.next(*m, scale * x)),
        );
    });
}
