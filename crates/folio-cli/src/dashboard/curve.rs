//! A curve of any length in little memory.

/// More points than any terminal has columns of dots.
const POINTS_MAX: usize = 2048;

/// The points of a curve, neighbours of which become one when there are too many.
#[derive(Clone, Debug)]
pub(super) struct Curve {
    points: Vec<(f64, f64)>,
    /// How many values a point is the mean of.
    stride: u64,
    /// The sum of the values that are no point yet, and their number.
    rest: (f64, u64),
}

impl Default for Curve {
    fn default() -> Self {
        Self { points: Vec::new(), stride: 1, rest: (0.0, 0) }
    }
}

impl Curve {
    /// Adds the value at a step, unless it is not finite.
    pub(super) fn push(&mut self, step: u64, value: f64) {
        if !value.is_finite() {
            return;
        }
        let (sum, count) = (self.rest.0 + value, self.rest.1 + 1);
        if count < self.stride {
            self.rest = (sum, count);
            return;
        }
        self.rest = (0.0, 0);
        self.points.push((step as f64, sum / count as f64));
        if self.points.len() == POINTS_MAX {
            let mean = |pair: &[(f64, f64)]| (pair[1].0, (pair[0].1 + pair[1].1) / 2.0);
            self.points = self.points.chunks_exact(2).map(mean).collect();
            self.stride *= 2;
        }
    }

    /// Forgets what came after a step.
    pub(super) fn go_back_to(&mut self, step: u64) {
        self.points.retain(|&(at, _)| at <= step as f64);
        self.rest = (0.0, 0);
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
    fn a_long_curve_keeps_its_mean_and_its_end() {
        for steps in [1, 2047, 2048, 2049, 100_000] {
            let mut curve = Curve::default();
            (1..=steps).for_each(|step| curve.push(step, step as f64));
            let points = curve.points();
            assert!(points.len() < POINTS_MAX && points.len() as u64 >= steps.min(POINTS_MAX as u64 / 2));
            assert!(steps as f64 - points[points.len() - 1].0 < curve.stride as f64, "{steps}");
            for pair in points.windows(2) {
                assert_eq!(pair[1].0 - pair[0].0, curve.stride as f64);
            }
            // The mean of the values from x - stride + 1 to x.
            let mean = |step: f64| step - (curve.stride as f64 - 1.0) / 2.0;
            assert!(points.iter().all(|&(step, value)| value == mean(step)), "{steps}");
        }
    }

    #[test]
    fn what_is_not_finite_is_left_out() {
        let mut curve = Curve::default();
        [1.0, f64::NAN, f64::INFINITY, 2.0]
            .iter()
            .zip(1..)
            .for_each(|(&value, step)| curve.push(step, value));
        assert_eq!(curve.points(), [(1.0, 1.0), (4.0, 2.0)]);
        curve.go_back_to(3);
        assert_eq!(curve.points(), [(1.0, 1.0)]);
    }
}
