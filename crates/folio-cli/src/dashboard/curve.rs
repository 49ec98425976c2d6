//! Curves of any length in bounded memory.

/// More points than any terminal can display.
const POINTS_MAX: usize = 2048;

/// A curve whose resolution is halved, by averaging neighbors, whenever it has too many points.
#[derive(Clone, Debug)]
pub(super) struct DownsampledCurve {
    /// Steps and values.
    points: Vec<(f64, f64)>,
    /// Number of values that each point is the mean of.
    stride: u64,
    /// Sum of the values since the last point.
    pending_sum: f64,
    pending_count: u64,
}

impl Default for DownsampledCurve {
    fn default() -> Self {
        Self { points: Vec::new(), stride: 1, pending_sum: 0.0, pending_count: 0 }
    }
}

impl DownsampledCurve {
    /// Adds the value of a step. Values that are not finite are ignored.
    pub(super) fn push(&mut self, step: u64, value: f64) {
        if !value.is_finite() {
            return;
        }
        self.pending_sum += value;
        self.pending_count += 1;
        if self.pending_count < self.stride {
            return;
        }
        self.points.push((step as f64, self.pending_sum / self.pending_count as f64));
        (self.pending_sum, self.pending_count) = (0.0, 0);
        if self.points.len() == POINTS_MAX {
            let mean = |pair: &[(f64, f64)]| (pair[1].0, (pair[0].1 + pair[1].1) / 2.0);
            self.points = self.points.chunks_exact(2).map(mean).collect();
            self.stride *= 2;
        }
    }

    /// Removes the points after a step.
    pub(super) fn truncate(&mut self, step: u64) {
        self.points.retain(|&(at, _)| at <= step as f64);
        (self.pending_sum, self.pending_count) = (0.0, 0);
    }

    /// Steps and values.
    pub(super) fn points(&self) -> &[(f64, f64)] {
        &self.points
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn downsampling_keeps_means_and_the_last_point() {
        for steps in [1, 2047, 2048, 2049, 100_000] {
            let mut curve = DownsampledCurve::default();
            (1..=steps).for_each(|step| curve.push(step, step as f64));
            let points = curve.points();
            assert!(points.len() < POINTS_MAX && points.len() as u64 >= steps.min(POINTS_MAX as u64 / 2));
            assert!(steps as f64 - points[points.len() - 1].0 < curve.stride as f64, "{steps}");
            for pair in points.windows(2) {
                assert_eq!(pair[1].0 - pair[0].0, curve.stride as f64);
            }
            // The mean of the integers from step - stride + 1 to step.
            let mean = |step: f64| step - (curve.stride as f64 - 1.0) / 2.0;
            assert!(points.iter().all(|&(step, value)| value == mean(step)), "{steps}");
        }
    }

    #[test]
    fn values_that_are_not_finite_are_ignored() {
        let mut curve = DownsampledCurve::default();
        [1.0, f64::NAN, f64::INFINITY, 2.0]
            .iter()
            .zip(1..)
            .for_each(|(&value, step)| curve.push(step, value));
        assert_eq!(curve.points(), [(1.0, 1.0), (4.0, 2.0)]);
        curve.truncate(3);
        assert_eq!(curve.points(), [(1.0, 1.0)]);
    }
}
