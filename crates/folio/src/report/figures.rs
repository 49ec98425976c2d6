//! The figures of a report, in the JSON format of Plotly.js.

use serde::Serialize;
use serde_json::{Value, json};

use super::summary::RunSummary;
use crate::sweep::{short_name, short_number};

/// A longer curve is reduced to the minimum and maximum of this many pieces.
const PIECES: usize = 2_000;

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PlotlyFigure {
    /// The id of the element it is drawn in.
    pub(super) id: String,
    pub(super) caption: String,
    data: Vec<Value>,
    layout: Value,
}

/// The figures of one run.
pub(super) fn of_run(run: &RunSummary) -> Vec<PlotlyFigure> {
    let (steps, epochs) = (&run.steps, &run.epochs);
    let losses = vec![
        faint(curve(steps, "loss", "each step")),
        curve(epochs, "train_loss", "train"),
        curve(&run.evaluations, "eval_loss", "eval"),
    ];
    let bits = vec![
        curve(epochs, "train_bits_per_character", "train"),
        curve(&run.evaluations, "eval_bits_per_character", "eval"),
    ];
    [
        ("loss", "Loss per step, in nats per token", losses),
        ("bits", "Loss per epoch, in bits per character", bits),
        ("rate", "Learning rate per step", vec![curve(steps, "lr", "learning rate")]),
        ("norm", "Gradient norm per step, before clipping", vec![curve(steps, "gradient_norm", "norm")]),
        (
            "speed",
            "Training speed per step, in tokens per second",
            vec![curve(steps, "tokens_per_s", "tokens per second")],
        ),
    ]
    .into_iter()
    .map(|(id, caption, data)| {
        let mut layout = json!({ "xaxis": { "title": { "text": "step" } }, "showlegend": data.len() > 1 });
        if id == "rate" {
            layout["yaxis"] = rate_axis(steps);
        }
        PlotlyFigure { id: format!("figure-{id}"), caption: caption.to_owned(), layout, data }
    })
    .collect()
}

/// The axis of the learning rate starts at zero, so that a constant rate looks constant and the depth of a cosine shows.
fn rate_axis(steps: &[Value]) -> Value {
    let highest = steps.iter().filter_map(|line| line["lr"].as_f64()).fold(0.0, f64::max);
    let top = if highest > 0.0 { 1.08 * highest } else { 1.0 };
    json!({ "range": [0, top], "exponentformat": "e" })
}

/// The figures of a sweep. `varying` names the settings in which its runs differ.
pub(super) fn of_sweep(ranked: &[&RunSummary], varying: &[String]) -> Vec<PlotlyFigure> {
    let curves = ranked.iter().map(|run| {
        let epochs: Vec<usize> = (1..=run.eval_losses.len()).collect();
        json!({ "x": epochs, "y": run.eval_losses, "name": run.label, "mode": "lines+markers" })
    });
    let mut figures = vec![PlotlyFigure {
        id: "figure-runs".to_owned(),
        caption: "Evaluation loss of every run per epoch, in nats per token".to_owned(),
        data: curves.collect(),
        layout: json!({ "xaxis": { "title": { "text": "epoch" } }, "showlegend": true }),
    }];
    let trained: Vec<&RunSummary> = ranked.iter().copied().filter(|run| run.best.is_some()).collect();
    let numeric = varying.iter().filter(|name| trained.iter().all(|run| run.settings[*name].is_number()));
    let numeric: Vec<&String> = numeric.collect();
    if trained.len() > 1 && !numeric.is_empty() {
        figures.push(parallel(&trained, &numeric));
        figures.extend(numeric.iter().map(|name| scatter(&trained, name)));
    }
    figures
}

/// Parallel coordinates: each run is a line through its settings to its loss.
fn parallel(runs: &[&RunSummary], names: &[&String]) -> PlotlyFigure {
    let losses: Vec<f64> = runs.iter().map(|run| run.best_loss()).collect();
    let mut axes: Vec<Value> = names
        .iter()
        .map(|name| {
            let values = values(runs, name);
            parallel_axis(&short_name(name), &values, is_wide(&values), short_number)
        })
        .collect();
    axes.push(parallel_axis("best eval loss", &losses, false, |loss| format!("{loss:.4}")));
    let line = json!({ "color": losses, "colorscale": "Viridis", "showscale": true });
    PlotlyFigure {
        id: "figure-parallel".to_owned(),
        caption: "Settings and best evaluation loss of every run; drag along an axis to filter runs"
            .to_owned(),
        data: vec![json!({ "type": "parcoords", "dimensions": axes, "line": line })],
        layout: json!({ "margin": { "l": 80, "r": 80, "t": 60, "b": 30 } }),
    }
}

/// The minimum distance between ticks, as a fraction of the axis: the height of a line of text.
const TICK_DISTANCE: f64 = 0.06;

/// One axis of parallel coordinates. Its ticks are at values of runs, left out where their labels would overlap.
fn parallel_axis(label: &str, values: &[f64], is_log: bool, text: impl Fn(f64) -> String) -> Value {
    let place = |value: f64| if is_log { value.log10() } else { value };
    let ticks = ticks(values, place);
    let places: Vec<f64> = values.iter().map(|&value| place(value)).collect();
    let tick_places: Vec<f64> = ticks.iter().map(|&tick| place(tick)).collect();
    let texts: Vec<String> = ticks.into_iter().map(text).collect();
    json!({ "label": label, "values": places, "tickvals": tick_places, "ticktext": texts })
}

/// Distinct values in ascending order, at least [`TICK_DISTANCE`] apart, including the lowest and the highest.
fn ticks(values: &[f64], place: impl Fn(f64) -> f64) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.dedup();
    let (Some(&low), Some(&high)) = (sorted.first(), sorted.last()) else { return Vec::new() };
    let distance = TICK_DISTANCE * (place(high) - place(low));
    let mut ticks = vec![low];
    for &value in &sorted[1..] {
        let is_near = |other: f64| (place(value) - place(other)).abs() < distance;
        if value == high || !(is_near(high) || ticks.last().is_some_and(|&last| is_near(last))) {
            ticks.push(value);
        }
    }
    ticks
}

/// The best loss of every run against one setting.
fn scatter(runs: &[&RunSummary], name: &str) -> PlotlyFigure {
    let values = values(runs, name);
    let kind = if is_wide(&values) { "log" } else { "linear" };
    let losses: Vec<f64> = runs.iter().map(|run| run.best_loss()).collect();
    let names: Vec<&str> = runs.iter().map(|run| run.label.as_str()).collect();
    PlotlyFigure {
        id: format!("figure-by-{}", name.to_lowercase()),
        caption: format!("Best evaluation loss of every run, by {name}"),
        data: vec![
            json!({ "x": values, "y": losses, "text": names, "mode": "markers", "marker": { "size": 10 } }),
        ],
        layout: json!({ "xaxis": { "type": kind, "title": { "text": name } }, "showlegend": false }),
    }
}

fn values(runs: &[&RunSummary], name: &str) -> Vec<f64> {
    runs.iter().map(|run| run.settings[name].as_f64().unwrap_or_default()).collect()
}

/// Whether a logarithmic axis suits the values: all are positive, and the highest is at least 10 times the lowest.
fn is_wide(values: &[f64]) -> bool {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(0.0, f64::max);
    low > 0.0 && high >= 10.0 * low
}

/// A value of the records against the step.
fn curve(lines: &[Value], key: &str, name: &str) -> Value {
    let points: Vec<(u64, f64)> =
        lines.iter().filter_map(|line| Some((line["step"].as_u64()?, line[key].as_f64()?))).collect();
    let few = points.len() < 60;
    let (x, y): (Vec<u64>, Vec<f64>) = thinned(&points, PIECES).into_iter().unzip();
    json!({ "x": x, "y": y, "name": name, "mode": if few { "lines+markers" } else { "lines" } })
}

fn faint(mut curve: Value) -> Value {
    curve["opacity"] = json!(0.4);
    curve["line"] = json!({ "width": 1 });
    curve["mode"] = json!("lines");
    curve
}

/// The curve reduced to the lowest and the highest point of each of `pieces` equal pieces, which keeps every peak. A
/// short curve is returned as it is.
fn thinned(points: &[(u64, f64)], pieces: usize) -> Vec<(u64, f64)> {
    if points.len() <= 2 * pieces {
        return points.to_vec();
    }
    let extremes = points.chunks(points.len().div_ceil(pieces)).flat_map(|piece| {
        let order = |a: &&(u64, f64), b: &&(u64, f64)| a.1.total_cmp(&b.1);
        let low = *piece.iter().min_by(order).expect("no piece is empty");
        let high = *piece.iter().max_by(order).expect("no piece is empty");
        if low.0 < high.0 { [low, high] } else { [high, low] }
    });
    let mut kept: Vec<_> = extremes.collect();
    kept.dedup();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_distinct_value_has_one_labeled_tick() {
        let rates = [1e-3, 3e-3, 1e-3, 1e-4, 3e-3, 1e-4];
        let axis = parallel_axis("lr", &rates, true, short_number);
        assert_eq!(axis["ticktext"], json!(["1e-4", "1e-3", "3e-3"]));
        let places = [1e-4_f64, 1e-3, 3e-3].map(f64::log10);
        assert_eq!(axis["tickvals"], json!(places));
        assert_eq!(axis["values"], json!(rates.map(f64::log10)));
        let axis = parallel_axis("dropout", &[0.0, 0.2, 0.0, 0.1], false, short_number);
        assert_eq!(
            (&axis["ticktext"], &axis["tickvals"]),
            (&json!(["0", "0.1", "0.2"]), &json!([0.0, 0.1, 0.2]))
        );
    }

    #[test]
    fn ticks_do_not_overlap_and_include_both_ends() {
        let check = |values: &[f64], want: &[f64]| assert_eq!(ticks(values, |value| value), want);
        check(&[0.0, 0.01, 0.5, 0.53, 0.97, 1.0], &[0.0, 0.5, 1.0]);
        check(&[1.0, 0.99, 0.0], &[0.0, 1.0]);
        check(&[2.0, 2.0], &[2.0]);
        check(&[], &[]);
    }

    #[test]
    fn rate_axis_starts_at_zero() {
        let steps = [json!({ "step": 1, "lr": 1e-3 }), json!({ "step": 2, "lr": 1e-3 })];
        assert_eq!(rate_axis(&steps)["range"], json!([0, 1.08 * 1e-3]));
        assert_eq!(rate_axis(&[])["range"], json!([0, 1.0]));
    }

    #[test]
    fn thinning_keeps_peaks_and_order() {
        let mut points: Vec<(u64, f64)> = (0..100_000).map(|step| (step, (step as f64).sin())).collect();
        points[77_777].1 = 50.0;
        points[33_333].1 = -50.0;
        let kept = thinned(&points, 500);
        assert!(kept.len() <= 1_000, "{}", kept.len());
        assert!(kept.contains(&(77_777, 50.0)) && kept.contains(&(33_333, -50.0)));
        assert!(kept.windows(2).all(|pair| pair[0].0 < pair[1].0));
        let few = &points[..1_000];
        assert_eq!(thinned(few, 500), few);
        assert_eq!(thinned(&[], 500), []);
        // A constant curve has one point per piece.
        let level: Vec<(u64, f64)> = (0..4_000).map(|step| (step, 1.0)).collect();
        assert!(thinned(&level, 100).windows(2).all(|pair| pair[0].0 < pair[1].0));
    }
}
