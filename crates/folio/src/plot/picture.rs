//! The data of a figure, independent of the output format: cleaned points, ranges of the axes, ticks.

use std::ops::Range;

use super::{Curve, LossUnit};
use crate::error::{Error, Result};

/// (global optimizer step, loss or learning rate)
pub(super) type Point = (f64, f64);

/// The maximum number of runs in the legend.
pub(super) const LEGEND_RUNS_MAX: usize = 12;

/// Two points for each of about 1,000 columns of pixels; more would not be visible.
const LINE_POINTS_MAX: usize = 2000;

/// The maximum for all lines of a kind together, so that the SVG of 200 runs has only a few megabytes.
const KIND_POINTS_MAX: usize = 60_000;

/// More than twice this many train losses are noisy losses of single batches. They are drawn as means over this many
/// stretches of equal length.
const TREND_POINTS: usize = 200;

/// The middle of longer labels is cut out.
const LABEL_CHARS_MAX: usize = 52;

/// Values beyond this do not occur in training, and count as non-finite.
const MAGNITUDE_MAX: f64 = 1e12;

/// The loss of a uniform guess among 268,000 tokens, more than any common tokenizer has, in nats. Higher losses count as
/// divergence and are cut off, so that the rest stays readable.
const LOSS_GUESS_MAX: f64 = 12.5;

/// The fraction of train losses, from the first, that the range of the loss axis ignores: they fall from the uniform guess
/// within a few steps.
const TRAIN_WARMUP_SHARE: f64 = 0.02;

/// One run, ready to draw.
pub(super) struct Run {
    /// The index of the caller's curve.
    pub(super) index: usize,
    pub(super) label: String,
    /// The trend of the train losses: all of them if there are few, otherwise means.
    pub(super) train: Vec<Point>,
    /// The raw train losses behind the trend; empty without a trend or with several runs.
    pub(super) train_noise: Vec<Point>,
    pub(super) eval: Vec<Point>,
    pub(super) rates: Vec<Point>,
    /// The point of the lowest eval loss.
    pub(super) best: Option<Point>,
}

/// All runs, sorted by their best eval loss, runs without one last; and the ranges of the three axes.
pub(super) struct Picture {
    pub(super) runs: Vec<Run>,
    pub(super) unit: LossUnit,
    pub(super) steps: Range<f64>,
    pub(super) losses: Range<f64>,
    /// `None` if no run has a learning rate.
    pub(super) rates: Option<Range<f64>>,
}

impl Picture {
    /// # Errors
    /// If there is no finite point.
    pub(super) fn new(curves: &[Curve]) -> Result<Self> {
        if curves.is_empty() {
            return Err(Error::Plot { reason: "there are none; give at least one run".to_string() });
        }
        let mut runs: Vec<Run> = (0..curves.len()).map(|index| Run::new(curves, index)).collect();
        // A stable sort keeps the caller's order of runs without eval losses.
        runs.sort_by(|a, b| match (a.best, b.best) {
            (Some(a), Some(b)) => a.1.total_cmp(&b.1),
            (a, b) => b.is_some().cmp(&a.is_some()),
        });
        let Some(steps) = step_range(&runs) else {
            let reason =
                "no run has a finite loss or learning rate yet; train for one epoch first".to_string();
            return Err(Error::Plot { reason });
        };
        let (losses, rates) = (loss_range(&runs), rate_range(&runs));
        Ok(Self { runs, unit: curves[0].unit, steps, losses, rates })
    }
}

impl Run {
    fn new(curves: &[Curve], index: usize) -> Self {
        let curve = &curves[index];
        let points_max = (KIND_POINTS_MAX / curves.len()).clamp(2 * TREND_POINTS, LINE_POINTS_MAX);
        let (train, eval) = (finite(&curve.train_losses), finite(&curve.eval_losses));
        let (train, train_noise) = match (train.len() > 2 * TREND_POINTS, curves) {
            (false, _) => (train, Vec::new()),
            (true, [_]) => (means(&train), thinned(train, points_max)),
            (true, _) => (means(&train), Vec::new()),
        };
        Self {
            index,
            label: clean_text(&curve.label, LABEL_CHARS_MAX),
            train,
            train_noise,
            best: eval.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)),
            eval: thinned(eval, points_max),
            rates: thinned(finite(&curve.learning_rates), points_max),
        }
    }

    /// The run's text in the legend, such as `lr 0.001 eval 1.4697 @ 5000`.
    pub(super) fn legend(&self) -> String {
        let result = match (self.best, self.train.last()) {
            (Some((step, loss)), _) => format!("eval {} @ {step:.0}", loss_text(loss)),
            (None, Some((step, loss))) => format!("train {} @ {step:.0}", loss_text(*loss)),
            (None, None) => "no finite loss".to_string(),
        };
        if self.label.is_empty() { result } else { format!("{} {result}", self.label) }
    }
}

/// A loss with four decimals, as in reports.
pub(super) fn loss_text(loss: f64) -> String {
    if loss.abs() < 1e6 { format!("{loss:.4}") } else { format!("{loss:.4e}") }
}

/// Replaces control characters, which are invalid in XML and have effects in terminals, and cuts out the middle of long text.
pub(super) fn clean_text(text: &str, chars_max: usize) -> String {
    // The only other characters that are invalid in XML are U+FFFE and U+FFFF.
    let forbidden = |c: char| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}');
    let chars: Vec<char> = text.chars().map(|c| if forbidden(c) { ' ' } else { c }).collect();
    if chars.len() <= chars_max {
        return chars.into_iter().collect();
    }
    let tail_len = chars_max / 2;
    let head = &chars[..chars_max - tail_len - 1];
    head.iter().chain(&['…']).chain(&chars[chars.len() - tail_len..]).collect()
}

fn finite(points: &[Point]) -> Vec<Point> {
    let drawable = |value: f64| value.abs() <= MAGNITUDE_MAX; // false for NaN
    points.iter().copied().filter(|&(step, value)| drawable(step) && drawable(value)).collect()
}

fn step_range(runs: &[Run]) -> Option<Range<f64>> {
    let lines = runs.iter().flat_map(|run| [&run.train, &run.train_noise, &run.eval, &run.rates]);
    let (min, max) = span(lines.flatten().map(|point| point.0))?;
    if max - min < 1.0 {
        return Some(min - 1.0..max + 1.0);
    }
    // A run that continues another may begin at a late step.
    let start = if (0.0..=max / 2.0).contains(&min) { 0.0 } else { min };
    Some(start..max)
}

/// The padded span of all eval losses and of the train losses after their first 2 %, without divergence.
fn loss_range<'a>(runs: &'a [Run]) -> Range<f64> {
    let warm = |line: &'a [Point]| &line[(line.len() as f64 * TRAIN_WARMUP_SHARE) as usize..];
    let lines = runs.iter().flat_map(|run| [&run.eval[..], warm(&run.train), warm(&run.train_noise)]);
    let losses = lines.flatten().map(|point| point.1);
    let sensible = span(losses.clone().filter(|&loss| loss <= LOSS_GUESS_MAX));
    let (min, max) = sensible.or_else(|| span(losses)).unwrap_or((0.0, 1.0));
    // Pad a constant line, too.
    let padding = (0.05 * (max - min)).max(0.01 * max.abs()).max(0.01);
    let low = if min >= 0.0 { (min - padding).max(0.0) } else { min - padding };
    low..max + padding
}

/// Starts at zero, so that a constant rate looks constant and the depth of a cosine shows.
fn rate_range(runs: &[Run]) -> Option<Range<f64>> {
    let (min, max) = span(runs.iter().flat_map(|run| &run.rates).map(|point| point.1))?;
    Some(min.min(0.0)..(max * 1.12).max(1e-12))
}

fn span(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |span, value| match span {
        None => Some((value, value)),
        Some((min, max)) => Some((value.min(min), value.max(max))),
    })
}

/// Reduces a line to about `points_max` points that look the same: the lowest and the highest of each stretch, in order, and
/// both ends.
fn thinned(points: Vec<Point>, points_max: usize) -> Vec<Point> {
    if points.len() <= points_max {
        return points;
    }
    let stretch_len = points.len().div_ceil(points_max / 2);
    let mut kept = vec![points[0]];
    for stretch in points.chunks(stretch_len) {
        let (mut lowest_idx, mut highest_idx) = (0, 0);
        for (i, point) in stretch.iter().enumerate() {
            if point.1 < stretch[lowest_idx].1 {
                lowest_idx = i;
            }
            if point.1 > stretch[highest_idx].1 {
                highest_idx = i;
            }
        }
        kept.push(stretch[lowest_idx.min(highest_idx)]);
        kept.push(stretch[lowest_idx.max(highest_idx)]);
    }
    kept.push(points[points.len() - 1]);
    kept.dedup();
    kept
}

/// The mean of each of `TREND_POINTS` stretches, in both coordinates.
fn means(points: &[Point]) -> Vec<Point> {
    let mean = |stretch: &[Point]| {
        let (steps, values) =
            stretch.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (steps / stretch.len() as f64, values / stretch.len() as f64)
    };
    points.chunks(points.len().div_ceil(TREND_POINTS)).map(mean).collect()
}

/// About `count` ticks within `range`, at multiples of 1, 2 or 5 times a power of ten, and the step between them.
pub(super) fn ticks(range: &Range<f64>, count: usize, step_min: f64) -> (Vec<f64>, f64) {
    let coarse = ((range.end - range.start) / count.max(1) as f64).max(f64::MIN_POSITIVE);
    let power = 10f64.powf(coarse.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|&step| step >= coarse * 0.999);
    let step = step.unwrap_or(10.0 * power).max(step_min);
    let first = (range.start / step).ceil();
    // A step below the precision of f64 would never reach the end.
    let ticks = (0..=2 * count).map(|i| (first + i as f64) * step).take_while(|&tick| tick <= range.end);
    (ticks.collect(), step)
}

/// `1.4`, with enough decimals to distinguish the ticks.
pub(super) fn loss_tick(loss: f64, step: f64) -> String {
    if loss.abs() >= 1e6 {
        return rate_tick(loss, step);
    }
    let decimals = (-(step * 1.001).log10().floor()).clamp(0.0, 12.0) as usize;
    format!("{loss:.decimals$}")
}

/// `2e-4`, with enough digits to distinguish the ticks.
pub(super) fn rate_tick(rate: f64, step: f64) -> String {
    if rate.abs() < step / 2.0 {
        return "0".to_string();
    }
    let digits = (rate.abs().log10().floor() - (step * 1.001).log10().floor()).clamp(0.0, 12.0) as usize;
    let text = format!("{rate:.digits$e}");
    match text.split_once('e') {
        Some((mantissa, exponent)) if mantissa.contains('.') => {
            let mantissa = mantissa.trim_end_matches('0').trim_end_matches('.');
            format!("{mantissa}e{exponent}")
        }
        _ => text,
    }
}

/// `12,000`
pub(super) fn step_tick(step: f64) -> String {
    let digits = format!("{:.0}", step.abs());
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    if step < 0.0 { format!("-{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn falling(points_len: usize) -> Vec<Point> {
        (0..points_len).map(|i| (i as f64, 1.5 + 100.0 / (1.0 + i as f64))).collect()
    }

    #[test]
    fn first_train_losses_do_not_affect_the_range() {
        let curve =
            Curve { train_losses: falling(1000), eval_losses: vec![(999.0, 1.7)], ..Curve::default() };
        let losses = Picture::new(&[curve]).unwrap().losses;
        assert!(losses.end < 8.0 && losses.start < 1.6, "{losses:?}");
    }

    #[test]
    fn divergence_does_not_affect_the_range() {
        let good = Curve { eval_losses: vec![(0.0, 4.2), (100.0, 1.5)], ..Curve::default() };
        let bad = Curve { eval_losses: vec![(0.0, 4.2), (100.0, 3e8)], ..Curve::default() };
        let losses = Picture::new(&[good, bad.clone()]).unwrap().losses;
        assert!(losses.end < 4.5, "{losses:?}");
        let only_huge = Curve { eval_losses: vec![(0.0, 3e8), (1.0, 4e8)], ..Curve::default() };
        let losses = Picture::new(&[only_huge]).unwrap().losses;
        assert!(losses.contains(&3e8) && losses.contains(&4e8), "{losses:?}");
    }

    #[test]
    fn best_run_comes_first_and_runs_without_eval_last() {
        let run = |label: &str, losses: &[f64]| Curve {
            label: label.to_string(),
            eval_losses: losses.iter().enumerate().map(|(i, &loss)| (i as f64, loss)).collect(),
            ..Curve::default()
        };
        let runs = [
            run("none", &[]),
            run("second", &[3.0, 1.6, 1.9]),
            run("nan", &[f64::NAN]),
            run("first", &[1.5]),
        ];
        let picture = Picture::new(&runs).unwrap();
        let labels: Vec<&str> = picture.runs.iter().map(|run| run.label.as_str()).collect();
        assert_eq!(labels, ["first", "second", "none", "nan"]);
        assert_eq!(picture.runs[1].best, Some((1.0, 1.6)));
        assert_eq!(picture.runs[1].legend(), "second eval 1.6000 @ 1");
        assert_eq!(picture.runs[2].legend(), "none no finite loss");
    }

    #[test]
    fn thinning_keeps_ends_and_extremes() {
        for points_len in [0, 1, 2, 1999, 2000, 2001, 5000, 99_999, 100_000] {
            let mut points: Vec<Point> = (0..points_len).map(|i| (i as f64, (i % 7) as f64)).collect();
            if let Some(point) = points.get_mut(points_len / 3) {
                point.1 = 1000.0;
            }
            if let Some(point) = points.get_mut(points_len / 2) {
                point.1 = -1000.0;
            }
            let thin = thinned(points.clone(), 2000);
            assert!(thin.len() <= 2002, "{} of {points_len} points are left", thin.len());
            assert_eq!((thin.first(), thin.last()), (points.first(), points.last()), "{points_len} points");
            assert!(thin.is_sorted_by(|a, b| a.0 < b.0), "{points_len} points");
            let values = |points: &[Point]| span(points.iter().map(|point| point.1));
            assert_eq!(values(&thin), values(&points), "{points_len} points");
        }
    }

    #[test]
    fn noise_has_a_trend() {
        let noisy: Vec<Point> = (0..5000).map(|i| (f64::from(i), 2.0 + f64::from(i % 2))).collect();
        let curve = Curve { train_losses: noisy, ..Curve::default() };
        let picture = Picture::new(std::slice::from_ref(&curve)).unwrap();
        assert!(picture.runs[0].train.iter().all(|&(_, loss)| (loss - 2.5).abs() < 0.05));
        assert!(picture.losses.contains(&2.0) && picture.losses.contains(&3.0), "{:?}", picture.losses);
        let pair = Picture::new(&[curve.clone(), curve]).unwrap();
        assert!(pair.runs.iter().all(|run| run.train_noise.is_empty() && run.train.len() <= TREND_POINTS));
    }

    #[test]
    fn ticks_are_round() {
        let check = |range: Range<f64>, count, step_min, text: fn(f64, f64) -> String, want: &[&str]| {
            let (ticks, step) = ticks(&range, count, step_min);
            let got: Vec<String> = ticks.into_iter().map(|tick| text(tick, step)).collect();
            assert_eq!(got, want, "{range:?}");
        };
        let steps = |step, _| step_tick(step);
        check(1.37..2.13, 5, 0.0, loss_tick, &["1.4", "1.6", "1.8", "2.0"]);
        check(1.461..1.479, 5, 0.0, loss_tick, &["1.465", "1.470", "1.475"]);
        check(0.0..1.1e-3, 4, 0.0, rate_tick, &["0", "5e-4", "1e-3"]);
        check(0.0..3.3e-4, 4, 0.0, rate_tick, &["0", "1e-4", "2e-4", "3e-4"]);
        check(9.8e-4..1.03e-3, 3, 0.0, rate_tick, &["9.8e-4", "1e-3", "1.02e-3"]);
        check(0.0..25_000.0, 5, 1.0, steps, &["0", "5,000", "10,000", "15,000", "20,000", "25,000"]);
        check(9.0..11.0, 8, 1.0, steps, &["9", "10", "11"]);
        check(-1.0..1.0, 8, 1.0, steps, &["-1", "0", "1"]);
        check(0.0..1_234_567.0, 2, 1.0, steps, &["0", "1,000,000"]);
    }

    #[test]
    fn ticks_end_for_any_range() {
        for range in [0.0..1e-300, 1e12..1e12 + 1e-4, -1e12..1e12, 0.0..5e-324, 3.0..3.0] {
            assert!(ticks(&range, 8, 0.0).0.len() <= 17, "{range:?}");
        }
    }

    #[test]
    fn text_is_cleaned_and_cut_in_its_middle() {
        assert_eq!(clean_text("a\x1b[31m\nb\u{ffff}", 20), "a [31m b ");
        assert_eq!(clean_text("lr 0.001, dropout 0.2", 9), "lr 0… 0.2");
        assert_eq!(clean_text("ßßß", 3), "ßßß");
    }
}
