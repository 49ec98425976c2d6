//! Plots of training: losses and learning rates of one run, or of all runs of a sweep in one figure.
//!
//! A figure can be drawn as SVG, PNG or terminal text. The font is embedded, so the result is the same on every machine.
//! Writing files is up to the caller.
//!
//! Runs are ranked by their best eval loss. Each run has its own color: strong for eval losses, thin and pale for train
//! losses, with a dot on the best eval loss. The legend names the 12 best runs; the others are gray. Train losses of single
//! batches are smoothed; for a single run the raw values are drawn behind. The loss axis spans the eval losses and the train
//! losses after their first 2 %. Losses above 12.5 nats, which is worse than a uniform guess with any tokenizer, count as
//! divergence and are cut off.
//!
//! ```
//! use folio::plot::{Curve, LossUnit, TerminalSize, to_png, to_svg, to_terminal};
//!
//! let curve = Curve {
//!     label: "lr 0.001".to_string(),
//!     unit: LossUnit::NatsPerToken,
//!     train_losses: vec![(100.0, 2.41), (200.0, 1.93), (300.0, 1.71)],
//!     eval_losses: vec![(100.0, 2.38), (200.0, 1.99), (300.0, 1.82)],
//!     learning_rates: vec![(100.0, 1e-3), (200.0, 1e-3), (300.0, 1e-3)],
//! };
//! let curves = [curve];
//! assert!(to_svg(&curves, "tiny Shakespeare")?.contains("lr 0.001"));
//! assert!(to_png(&curves, "tiny Shakespeare")?.starts_with(b"\x89PNG"));
//! let text = to_terminal(&curves, TerminalSize { columns: 80, rows: 24 }, false);
//! assert_eq!(text.lines().count(), 24);
//! # Ok::<(), folio::error::Error>(())
//! ```

mod figure;
mod picture;
mod sheet;
mod terminal;

use crate::error::Result;

/// The curves of one run.
///
/// Points are in the order of steps. Any of the three lists may be empty. Non-finite points, as of a run that diverged, are
/// skipped.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curve {
    /// The label in the legend, such as `lr 0.001`.
    pub label: String,
    /// The unit of the losses. A figure uses the unit of its first curve.
    pub unit: LossUnit,
    /// (global optimizer step, loss)
    pub train_losses: Vec<(f64, f64)>,
    /// (global optimizer step, loss)
    pub eval_losses: Vec<(f64, f64)>,
    /// (global optimizer step, learning rate)
    pub learning_rates: Vec<(f64, f64)>,
}

/// The unit of a loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LossUnit {
    /// The loss that training minimizes.
    #[default]
    NatsPerToken,
    /// Comparable across tokenizers.
    BitsPerCharacter,
    /// Comparable across tokenizers and scripts.
    BitsPerByte,
}

impl LossUnit {
    /// The title of the loss axis.
    fn axis(self) -> &'static str {
        match self {
            Self::NatsPerToken => "loss (nats per token)",
            Self::BitsPerCharacter => "loss (bits per character)",
            Self::BitsPerByte => "loss (bits per byte)",
        }
    }
}

/// The size of the plot in character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns; at most 500 are used.
    pub columns: u16,
    /// Rows; at most 500 are used.
    pub rows: u16,
}

/// The curves as an SVG document of 1200 by 900 user units.
///
/// # Errors
/// [`Error::Plot`](crate::error::Error::Plot) if no curve has a finite point.
pub fn to_svg(curves: &[Curve], title: &str) -> Result<String> {
    sheet::svg(&figure::CurvesFigure::new(&picture::Picture::new(curves)?, title))
}

/// The curves as the bytes of a PNG file of 1200 by 900 pixels.
///
/// # Errors
/// [`Error::Plot`](crate::error::Error::Plot) if no curve has a finite point.
pub fn to_png(curves: &[Curve], title: &str) -> Result<Vec<u8>> {
    sheet::png(&figure::CurvesFigure::new(&picture::Picture::new(curves)?, title))
}

/// The curves as text: `size.rows` lines, none wider than `size.columns`, drawn in Braille dots.
///
/// With `color`, runs have ANSI colors. Without, the text has no escape codes, and the runs of a sweep are marked by
/// letters. For a single run, train and eval losses are shown; for several, only eval losses where there are any. If no
/// curve has a finite point, the text is one line that says so.
pub fn to_terminal(curves: &[Curve], size: TerminalSize, color: bool) -> String {
    match picture::Picture::new(curves) {
        Ok(picture) => terminal::text(&picture, size, color),
        Err(error) => format!("{error}\n"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    const WIDTH: u32 = 1200;
    const HEIGHT: u32 = 900;

    /// The blue, vermilion and green of Okabe and Ito.
    const HUES: [[u8; 3]; 3] = [[0, 114, 178], [213, 94, 0], [0, 158, 115]];

    /// A run of 5000 steps whose eval loss falls to about `floor` and then rises by `overfit`.
    fn run(label: &str, floor: f64, overfit: f64) -> Curve {
        let loss = |step: f64| floor + 2.5 * (-step / 400.0).exp();
        let sampled = |every: usize, value: &dyn Fn(f64) -> f64| {
            (0..=5000).step_by(every).map(|step| (step as f64, value(step as f64))).collect()
        };
        Curve {
            label: label.to_string(),
            unit: LossUnit::NatsPerToken,
            train_losses: sampled(5, &|step| loss(step) - 0.1 + 0.05 * (step * 0.7).sin()),
            eval_losses: sampled(100, &|step| loss(step) + overfit * (step / 5000.0)),
            learning_rates: sampled(50, &|step| 1e-3 * (1.0 - step / 6000.0)),
        }
    }

    fn runs(len: usize) -> Vec<Curve> {
        (0..len).map(|i| run(&format!("run {i:03}"), 1.4 + 0.01 * i as f64, 0.0)).collect()
    }

    fn decoded(png: &[u8]) -> Vec<[u8; 3]> {
        let mut reader = png::Decoder::new(Cursor::new(png)).read_info().unwrap();
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut bytes).unwrap();
        assert_eq!((info.width, info.height, info.color_type), (WIDTH, HEIGHT, png::ColorType::Rgb));
        bytes.chunks_exact(3).map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect()
    }

    /// An attribute and the text of all elements with this name.
    fn elements(svg: &str, name: &str, attribute: &str) -> Vec<(String, String)> {
        let document = roxmltree::Document::parse(svg).unwrap();
        let elements =
            document.descendants().filter(|node| node.has_tag_name(("http://www.w3.org/2000/svg", name)));
        elements
            .map(|node| {
                let text = node.text().unwrap_or_default().trim().to_string();
                (node.attribute(attribute).unwrap_or_default().to_string(), text)
            })
            .collect()
    }

    /// The x coordinate of the text with this beginning, in pixels of the figure.
    fn text_left(svg: &str, start: &str) -> f64 {
        let texts = elements(svg, "text", "x");
        let (x, _) = texts.iter().find(|(_, text)| text.starts_with(start)).unwrap();
        x.parse::<f64>().unwrap() / 3.0
    }

    /// All points of all lines, in pixels of the figure.
    fn corners(svg: &str) -> Vec<(f64, f64)> {
        let lines = elements(svg, "polyline", "points");
        let pairs = lines.iter().flat_map(|(points, _)| points.split_whitespace());
        let corner = |pair: &str| {
            let (x, y) = pair.split_once(',').unwrap();
            (x.parse::<f64>().unwrap() / 3.0, y.parse::<f64>().unwrap() / 3.0)
        };
        pairs.map(corner).collect()
    }

    #[test]
    fn png_shows_every_run_in_its_color() {
        let shown = |len: usize| {
            let pixels = decoded(&to_png(&runs(len), "title").unwrap());
            let white_len = pixels.iter().filter(|&&pixel| pixel == [255; 3]).count();
            assert!(
                white_len > pixels.len() / 2 && white_len < pixels.len() * 99 / 100,
                "{white_len} white pixels"
            );
            HUES.map(|hue| pixels.iter().filter(|&&pixel| pixel == hue).count() > 100)
        };
        assert_eq!(shown(1), [true, true, false], "eval and train of one run");
        assert_eq!(shown(2), [true, true, false]);
        assert_eq!(shown(3), [true, true, true]);
    }

    #[test]
    fn svg_is_well_formed_and_has_all_texts() {
        let curves = [run("a < b && \"c\" > 'd'", 1.4697, 0.0), run("two\u{1b}[0m", 1.6, 0.0)];
        let svg = to_svg(&curves, "<title> & co").unwrap();
        let root = elements(&svg, "svg", "viewBox");
        assert_eq!(root[0].0, "0 0 3600 2700");
        assert_eq!(elements(&svg, "svg", "width")[0].0, "1200");
        assert!(elements(&svg, "text", "font-family").iter().all(|(family, _)| family == "sans-serif"));
        let texts: Vec<String> = elements(&svg, "text", "x").into_iter().map(|(_, text)| text).collect();
        for want in [
            "<title> & co",
            "a < b && \"c\" > 'd' eval 1.4697 @ 5000",
            "two [0m eval 1.6000 @ 5000",
            "1.4697",
            "thin: train",
            "loss (nats per token)",
            "learning rate",
            "optimizer step",
            "1e-3",
            "5,000",
        ] {
            assert!(texts.iter().any(|text| text == want), "{want:?} is not among {texts:?}");
        }
    }

    #[test]
    fn lines_stay_within_their_panel() {
        let mut curve = run("", 1.5, 0.0);
        curve.train_losses[..5].iter_mut().for_each(|point| point.1 = 1e9);
        curve.learning_rates.clear();
        let svg = to_svg(&[curve], "").unwrap();
        let corners = corners(&svg);
        assert!(corners.len() > 1000, "{} corners", corners.len());
        for (x, y) in corners {
            assert!((90.0..=1172.5).contains(&x) && (61.5..=840.0).contains(&y), "({x}, {y})");
        }
    }

    #[test]
    fn legend_does_not_hide_curves() {
        let inside = to_svg(&runs(3), "").unwrap();
        let right = |svg: &str| corners(svg).iter().fold(0.0f64, |right, corner| right.max(corner.0));
        assert!(text_left(&inside, "run 000") < 1000.0);
        assert!(right(&inside) > 1150.0, "the panel takes the whole width");
        // The curve rises into the corner: the panel ends left of the legend, and only the legend has lines right of it.
        let beside = to_svg(&[run("overfit", 1.5, 4.0)], "").unwrap();
        let legend_left = text_left(&beside, "overfit") - 36.0;
        let loss_lines = corners(&beside).into_iter().filter(|&(x, _)| x < legend_left);
        assert!(loss_lines.fold(0.0f64, |right, corner| right.max(corner.0)) > 800.0);
        assert!(
            corners(&beside).iter().filter(|&&(x, _)| x >= legend_left - 0.5).count() == 4,
            "two samples"
        );
    }

    #[test]
    fn legend_names_the_best_and_counts_the_rest() {
        let mut curves = runs(20);
        curves.reverse();
        let svg = to_svg(&curves, "").unwrap();
        let texts: Vec<String> = elements(&svg, "text", "x").into_iter().map(|(_, text)| text).collect();
        let named: Vec<&String> = texts.iter().filter(|text| text.starts_with("run ")).collect();
        assert_eq!(named.len(), 12);
        assert!(named[0].starts_with("run 000 eval 1.4000") && named[11].starts_with("run 011"), "{named:?}");
        assert!(texts.iter().any(|text| text == "+8 more"), "{texts:?}");
    }

    #[test]
    fn nothing_to_draw_is_an_error() {
        let check = |curves: &[Curve], want: &str| {
            for error in [to_svg(curves, "").unwrap_err(), to_png(curves, "").unwrap_err()] {
                assert!(error.to_string().contains(want), "{error}");
            }
            let text = to_terminal(curves, TerminalSize { columns: 80, rows: 24 }, true);
            assert!(text.contains(want) && text.lines().count() == 1, "{text}");
        };
        check(&[], "at least one run");
        check(&[Curve::default()], "no run has a finite");
        let diverged = Curve { eval_losses: vec![(1.0, f64::NAN), (f64::INFINITY, 1.0)], ..Curve::default() };
        check(&[diverged.clone(), diverged], "no run has a finite");
    }

    #[test]
    fn odd_inputs_are_drawn() {
        let of = |losses: &[(f64, f64)]| Curve {
            label: "odd".to_string(),
            unit: LossUnit::BitsPerByte,
            train_losses: losses.to_vec(),
            eval_losses: losses.to_vec(),
            learning_rates: losses.to_vec(),
        };
        let long: Vec<(f64, f64)> =
            (0..100_000).map(|i| (f64::from(i), 4.0 + f64::from(i * 7919 % 101))).collect();
        let cases: [(&str, Vec<Curve>); 12] = [
            ("one point", vec![of(&[(10.0, 2.0)])]),
            ("zero", vec![of(&[(0.0, 0.0)])]),
            ("constant", vec![of(&[(1.0, 2.0), (2.0, 2.0), (3.0, 2.0)])]),
            ("one step", vec![of(&[(5.0, 2.0), (5.0, 3.0)])]),
            ("negative", vec![of(&[(-5.0, -2.0), (5.0, -3.0)])]),
            (
                "not finite",
                vec![of(&[(1.0, f64::NAN), (2.0, 3.0), (f64::NAN, 1.0), (4.0, f64::INFINITY), (5.0, 2.0)])],
            ),
            ("huge", vec![of(&[(1.0, 1e11), (1e11, 2.0), (3e11, -1e12), (4e11, f64::MAX)])]),
            ("tiny", vec![of(&[(1.0, 1e-300), (2.0, 5e-324)])]),
            (
                "rates only",
                vec![Curve { learning_rates: vec![(1.0, 1e-3), (2.0, 1e-4)], ..Curve::default() }],
            ),
            ("backwards", vec![of(&[(9.0, 2.0), (4.0, 2.5), (7.0, 1.0)])]),
            ("long", vec![of(&long)]),
            ("many", runs(200)),
        ];
        for (name, curves) in cases {
            let svg = to_svg(&curves, name).unwrap();
            assert!(elements(&svg, "text", "x").iter().any(|(_, text)| text == name), "{name}");
            assert!(
                corners(&svg).iter().all(|(x, y)| (0.0..=1200.0).contains(x) && (0.0..=900.0).contains(y)),
                "{name}"
            );
            assert!(svg.len() < 4_000_000, "{name}: {} bytes", svg.len());
            assert!(
                decoded(&to_png(&curves, name).unwrap()).iter().any(|&pixel| pixel != [255; 3]),
                "{name}"
            );
            let text = to_terminal(&curves, TerminalSize { columns: 60, rows: 20 }, false);
            assert_eq!(text.lines().count(), 20, "{name}");
        }
    }

    #[test]
    fn long_and_foreign_labels_leave_room_for_the_curves() {
        let curves = [run(&"長い名前".repeat(50), 1.4, 5.0), run(&"W".repeat(500), 1.5, 5.0)];
        let svg = to_svg(&curves, &"title ".repeat(100)).unwrap();
        assert!(text_left(&svg, "optimizer step") > 300.0);
        assert!(to_terminal(&curves, TerminalSize { columns: 30, rows: 12 }, true).lines().count() == 12);
    }

    #[test]
    fn terminal_text_has_the_size_asked_for() {
        for curves in [runs(1), runs(3), runs(20)] {
            for (columns, rows) in (0..=40).flat_map(|columns| (0..=26).map(move |rows| (columns, rows))) {
                let text = to_terminal(&curves, TerminalSize { columns, rows }, false);
                let rows_want = if columns == 0 { 0 } else { usize::from(rows) };
                assert_eq!(text.lines().count(), rows_want, "{columns} by {rows}");
                let widest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
                assert!(widest <= usize::from(columns), "{columns} by {rows}: a line of {widest}");
                assert!(!text.contains('\x1b'), "{columns} by {rows}");
            }
        }
        let text = to_terminal(&runs(1), TerminalSize { columns: u16::MAX, rows: u16::MAX }, false);
        assert_eq!(text.lines().count(), 500);
    }

    #[test]
    fn terminal_text_names_the_runs() {
        let size = TerminalSize { columns: 100, rows: 30 };
        let plain = to_terminal(&runs(9), size, false);
        for want in
            ["a run 000 eval 1.4000 @ 5000", "f run 005", "+3 more", "loss (nats per token)", "learning rate"]
        {
            assert!(plain.contains(want), "{want:?} is not in\n{plain}");
        }
        assert!(plain.contains("aaaa") && plain.contains('·'), "{plain}");
        let apart = [run("run 000", 1.4, 0.0), run("run 001", 2.0, 0.0), run("run 002", 2.6, 0.0)];
        let colored = to_terminal(&apart, size, true);
        for (code, label) in [("\x1b[94m", "run 000"), ("\x1b[93m", "run 001"), ("\x1b[92m", "run 002")] {
            let line = colored.lines().find(|line| line.contains(label)).unwrap();
            assert!(line.starts_with(code), "{line:?}");
            assert!(colored.matches(code).count() > 3, "{label} has no line of its color");
        }
        assert!(
            colored
                .lines()
                .all(|line| !line.contains('\x1b') || line.rfind("\x1b[39m") == line.rfind('\x1b'))
        );
    }
}
