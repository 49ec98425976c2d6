//! The figure: where the panels, the lines, the axes and the legend go on a sheet.

use std::ops::Range;

use plotters::backend::DrawingBackend;
use plotters::style::{RGBColor, WHITE};

use super::picture::{LEGEND_RUNS_MAX, Picture, Point, Run, clean_text, loss_text, loss_tick, rate_tick};
use super::picture::{step_tick, ticks};
use super::sheet::{Anchor, DrawResult, Figure, HEIGHT, Lettering, Sheet, Spot, WIDTH, crisp};

const MARGIN: f64 = 28.0;
const TITLE_HEIGHT: f64 = 62.0;
/// Left of the panels: the name of the axis and the labels of its ticks.
const Y_LABELS_WIDTH: f64 = 70.0;
/// Below the panels.
const X_LABELS_HEIGHT: f64 = 52.0;
const RATE_PANEL_HEIGHT: f64 = 150.0;
const PANEL_GAP: f64 = 22.0;
const LEGEND_ROW_HEIGHT: f64 = 23.0;
const LEGEND_SWATCH_WIDTH: f64 = 36.0;
const LEGEND_PADDING: f64 = 12.0;
/// Whatever the labels are, the curves keep half of the sheet.
const LEGEND_WIDTH_MAX: f64 = 560.0;
/// The font with which a viewer draws the SVG may be wider than the embedded one.
const LEGEND_TEXT_SLACK: f64 = 1.1;

const EVAL_WIDTH: f64 = 2.4;
const TRAIN_WIDTH: f64 = 1.4;
const NOISE_WIDTH: f64 = 1.0;
const RATE_WIDTH: f64 = 1.8;

/// Lines of at most this many points mark each of them.
const MARKED_POINTS_MAX: usize = 40;

const INK: RGBColor = RGBColor(34, 34, 34);
const GRID: RGBColor = RGBColor(230, 230, 230);
const FRAME: RGBColor = RGBColor(150, 150, 150);

/// Okabe and Ito, 'Color Universal Design' (2008): hues that colour-blind eyes tell apart. Without black, which is
/// ink here, and yellow, which is lost on white.
const PALETTE: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
];

/// Viridis (van der Walt and Smith, 2015) at 0, 2/9, 4/9, 6/9 and 8/9, from the best run to the last that has a name:
/// for more runs than the palette has hues, an order that any eye sees. Its yellow end is lost on white.
const RAMP: [RGBColor; 5] = [
    RGBColor(68, 1, 84),
    RGBColor(62, 73, 137),
    RGBColor(38, 130, 142),
    RGBColor(53, 183, 121),
    RGBColor(181, 222, 43),
];

/// Runs that the legend does not name.
const UNNAMED: RGBColor = RGBColor(200, 200, 200);

/// A picture and its title, laid out on a sheet of `WIDTH` by `HEIGHT`.
pub(super) struct CurvesFigure<'a> {
    picture: &'a Picture,
    title: &'a str,
}

/// The colours of a run's two lines.
#[derive(Clone, Copy)]
struct Hue {
    train: RGBColor,
    eval: RGBColor,
}

/// A pair of axes: where it is on the sheet, and the values at its edges.
struct Panel {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    steps: Range<f64>,
    values: Range<f64>,
}

/// One line of the legend, with a piece of the line that it explains.
struct LegendRow {
    text: String,
    color: RGBColor,
    line_width: f64,
}

impl<'a> CurvesFigure<'a> {
    pub(super) fn new(picture: &'a Picture, title: &'a str) -> Self {
        Self { picture, title }
    }

    fn named(&self) -> &'a [Run] {
        &self.picture.runs[..self.picture.runs.len().min(LEGEND_RUNS_MAX)]
    }

    /// `rank` counts from the best run.
    fn hue(&self, rank: usize) -> Hue {
        let runs = &self.picture.runs;
        if runs.len() == 1 {
            return Hue { train: PALETTE[1], eval: PALETTE[0] };
        }
        let eval = if runs.len() <= PALETTE.len() {
            PALETTE[runs[rank].index] // its own even when the ranks change
        } else if rank < LEGEND_RUNS_MAX {
            ramp(rank as f64 / (self.named().len() - 1) as f64)
        } else {
            UNNAMED
        };
        Hue { train: mixed(eval, WHITE, 0.45), eval }
    }

    fn legend(&self) -> Vec<LegendRow> {
        let row = |text: String, color, line_width| LegendRow { text, color, line_width };
        let mut rows = Vec::new();
        for (rank, run) in self.named().iter().enumerate() {
            let hue = self.hue(rank);
            let color = if run.eval.is_empty() { hue.train } else { hue.eval };
            rows.push(row(run.legend(), color, EVAL_WIDTH));
        }
        let unnamed_len = self.picture.runs.len() - rows.len();
        if unnamed_len > 0 {
            rows.push(row(format!("+{unnamed_len} more"), UNNAMED, EVAL_WIDTH));
        }
        let runs = &self.picture.runs;
        if runs.iter().any(|run| !run.train.is_empty()) && runs.iter().any(|run| !run.eval.is_empty()) {
            match &runs[..] {
                [_] => rows.push(row("train".to_string(), self.hue(0).train, TRAIN_WIDTH)),
                _ => rows.push(row("thin: train".to_string(), FRAME, TRAIN_WIDTH)),
            }
        }
        rows
    }

    /// The panel of the losses and, if there are learning rates, theirs below it.
    fn panels(&self, right: f64) -> (Panel, Option<Panel>) {
        let (left, bottom) = (MARGIN + Y_LABELS_WIDTH, f64::from(HEIGHT) - X_LABELS_HEIGHT - MARGIN / 2.0);
        // Room for the dot at the end of the best run.
        let steps = &self.picture.steps;
        let steps = &(steps.start..steps.end + 0.015 * (steps.end - steps.start));
        let rates = self.picture.rates.clone().map(|values| {
            let top = bottom - RATE_PANEL_HEIGHT;
            Panel { left, right, top, bottom, steps: steps.clone(), values }
        });
        let bottom = rates.as_ref().map_or(bottom, |rates| rates.top - PANEL_GAP);
        let values = self.picture.losses.clone();
        (Panel { left, right, top: TITLE_HEIGHT, bottom, steps: steps.clone(), values }, rates)
    }
}

impl Figure for CurvesFigure<'_> {
    fn draw<DB: DrawingBackend>(&self, sheet: &Sheet<DB>) -> DrawResult<(), DB> {
        let rows = self.legend();
        let right = f64::from(WIDTH) - MARGIN;
        let legend_width = legend_width(sheet, &rows)?;
        let (mut losses, mut rates) = self.panels(right);
        let legend_left = losses.right - legend_width;
        if losses.is_crossed(&self.picture.runs, (legend_left, legend_bottom(&losses, &rows))) {
            // No room in the corner: the legend gets a column of its own.
            (losses, rates) = self.panels(right - legend_width);
        }

        let title = clean_text(self.title, 90);
        let lettering = Lettering { size: 21.0, color: INK, anchor: Anchor::Left };
        sheet.text(&title, (losses.left, TITLE_HEIGHT / 2.0 + 2.0), lettering)?;
        losses.draw_axes(sheet, rates.is_none(), self.picture.unit.axis(), 7, loss_tick)?;
        self.draw_losses(sheet, &losses)?;
        if let Some(rates) = &rates {
            rates.draw_axes(sheet, true, "learning rate", 4, rate_tick)?;
            for (rank, run) in self.picture.runs.iter().enumerate().rev() {
                rates.draw_line(sheet, &run.rates, self.hue(rank).eval, RATE_WIDTH)?;
            }
        }
        draw_legend(sheet, &rows, (legend_left, losses.top))
    }
}

impl CurvesFigure<'_> {
    /// The best run is drawn last, above the others, and all eval losses above all train losses.
    fn draw_losses<DB: DrawingBackend>(&self, sheet: &Sheet<DB>, panel: &Panel) -> DrawResult<(), DB> {
        let worst_first = || self.picture.runs.iter().enumerate().rev();
        for (rank, run) in worst_first() {
            let color = self.hue(rank).train;
            panel.draw_line(sheet, &run.train_noise, mixed(color, WHITE, 0.72), NOISE_WIDTH)?;
            panel.draw_line(sheet, &run.train, color, TRAIN_WIDTH)?;
        }
        for (rank, run) in worst_first() {
            panel.draw_line(sheet, &run.eval, self.hue(rank).eval, EVAL_WIDTH)?;
        }
        for (rank, run) in worst_first().filter(|(rank, _)| *rank < LEGEND_RUNS_MAX) {
            let Some(best) = run.best else { continue };
            if panel.values.contains(&best.1) {
                sheet.dot(panel.spot(best), self.hue(rank).eval, 5.0)?;
            }
        }
        let Some(best) = self.picture.runs[0].best else { return Ok(()) };
        let lettering = Lettering { size: 16.0, color: self.hue(0).eval, anchor: Anchor::Center };
        let text = loss_text(best.1);
        let width = sheet.text_width(&text, lettering)? + 8.0;
        // Below the dot, where its own line is not; above it if the panel ends there.
        let (x, y) = panel.spot(best);
        let x = x.clamp(panel.left + width / 2.0, panel.right - width / 2.0);
        let y = if y + 30.0 < panel.bottom { y + 18.0 } else { y - 18.0 };
        sheet.veil([(x - width / 2.0, y - 9.0), (x + width / 2.0, y + 9.0)])?;
        sheet.text(&text, (x, y), lettering)
    }
}

impl Panel {
    fn spot(&self, (step, value): Point) -> Spot {
        let share = |value: f64, range: &Range<f64>| (value - range.start) / (range.end - range.start);
        let x = self.left + share(step, &self.steps) * (self.right - self.left);
        (x, self.bottom - share(value, &self.values) * (self.bottom - self.top))
    }

    fn draw_axes<DB: DrawingBackend>(
        &self,
        sheet: &Sheet<DB>,
        has_x_labels: bool,
        name: &str,
        ticks_len: usize,
        tick_text: fn(f64, f64) -> String,
    ) -> DrawResult<(), DB> {
        let lettering = |size, anchor| Lettering { size, color: INK, anchor };
        let (step_ticks, _) = ticks(&self.steps, 8, 1.0);
        for step in step_ticks {
            let x = crisp(self.spot((step, 0.0)).0);
            sheet.line(&[(x, self.top), (x, self.bottom)], GRID, 1.0)?;
            if has_x_labels {
                sheet.text(&step_tick(step), (x, self.bottom + 16.0), lettering(15.0, Anchor::Center))?;
            }
        }
        let (value_ticks, distance) = ticks(&self.values, ticks_len, 0.0);
        for value in value_ticks {
            let y = crisp(self.spot((0.0, value)).1);
            sheet.line(&[(self.left, y), (self.right, y)], GRID, 1.0)?;
            let text = tick_text(value, distance);
            sheet.text(&text, (self.left - 8.0, y), lettering(15.0, Anchor::Right))?;
        }
        let (left, bottom) = (crisp(self.left), crisp(self.bottom));
        sheet.line(&[(left, self.top), (left, bottom), (self.right, bottom)], FRAME, 1.0)?;
        let middle = ((self.left + self.right) / 2.0, (self.top + self.bottom) / 2.0);
        sheet.text(name, (MARGIN, middle.1), lettering(16.0, Anchor::Upwards))?;
        if has_x_labels {
            sheet.text("optimizer step", (middle.0, self.bottom + 42.0), lettering(16.0, Anchor::Center))?;
        }
        Ok(())
    }

    /// The part of the line within the panel.
    fn draw_line<DB: DrawingBackend>(
        &self,
        sheet: &Sheet<DB>,
        points: &[Point],
        color: RGBColor,
        width: f64,
    ) -> DrawResult<(), DB> {
        let spots: Vec<Spot> = points.iter().map(|&point| self.spot(point)).collect();
        let mut stroke: Vec<Spot> = Vec::new();
        for pair in spots.windows(2) {
            let Some([start, end]) = clipped([pair[0], pair[1]], [self.top, self.bottom]) else { continue };
            if stroke.last() != Some(&start) {
                sheet.line(&stroke, color, width)?;
                stroke = vec![start];
            }
            stroke.push(end);
        }
        sheet.line(&stroke, color, width)?;
        if spots.len() <= MARKED_POINTS_MAX {
            for spot in spots.into_iter().filter(|(_, y)| (self.top..=self.bottom).contains(y)) {
                sheet.dot(spot, color, width + 0.7)?;
            }
        }
        Ok(())
    }

    /// Whether a loss shows in the panel's top right corner, right of and above `corner`.
    fn is_crossed(&self, runs: &[Run], corner: Spot) -> bool {
        let in_corner = |[start, end]: [Spot; 2]| {
            let above = clipped([start, end], [self.top, corner.1]);
            above.is_some_and(|[start, end]| start.0.max(end.0) >= corner.0)
        };
        runs.iter().flat_map(|run| [&run.train, &run.train_noise, &run.eval]).any(|line| {
            let spots: Vec<Spot> = line.iter().map(|&point| self.spot(point)).collect();
            spots.iter().any(|&spot| in_corner([spot, spot]))
                || spots.windows(2).any(|pair| in_corner([pair[0], pair[1]]))
        })
    }
}

/// The part of a segment between two heights.
fn clipped([start, end]: [Spot; 2], [top, bottom]: [f64; 2]) -> Option<[Spot; 2]> {
    let inside = |spot: Spot| (top..=bottom).contains(&spot.1);
    if start.1.max(end.1) < top || start.1.min(end.1) > bottom {
        return None;
    }
    let at_height = |y: f64| (start.0 + (y - start.1) / (end.1 - start.1) * (end.0 - start.0), y);
    let moved = |spot: Spot| if inside(spot) { spot } else { at_height(spot.1.clamp(top, bottom)) };
    Some([moved(start), moved(end)])
}

const LEGEND_LETTERING: Lettering = Lettering { size: 15.0, color: INK, anchor: Anchor::Left };

fn legend_width<DB: DrawingBackend>(sheet: &Sheet<DB>, rows: &[LegendRow]) -> DrawResult<f64, DB> {
    let mut width = 0.0f64;
    for row in rows {
        width = width.max(sheet.text_width(&row.text, LEGEND_LETTERING)?);
    }
    Ok((width * LEGEND_TEXT_SLACK + LEGEND_SWATCH_WIDTH + 2.0 * LEGEND_PADDING).min(LEGEND_WIDTH_MAX))
}

fn legend_bottom(panel: &Panel, rows: &[LegendRow]) -> f64 {
    panel.top + rows.len() as f64 * LEGEND_ROW_HEIGHT + 2.0 * LEGEND_PADDING
}

fn draw_legend<DB: DrawingBackend>(
    sheet: &Sheet<DB>,
    rows: &[LegendRow],
    corner: Spot,
) -> DrawResult<(), DB> {
    let left = corner.0 + LEGEND_PADDING;
    // Over the grid.
    let height = rows.len() as f64 * LEGEND_ROW_HEIGHT;
    let bottom_right = (f64::from(WIDTH) - MARGIN + 1.0, corner.1 + LEGEND_PADDING + height);
    sheet.veil([(corner.0, corner.1 + LEGEND_PADDING), bottom_right])?;
    for (i, row) in rows.iter().enumerate() {
        let y = corner.1 + LEGEND_PADDING + (i as f64 + 0.5) * LEGEND_ROW_HEIGHT;
        sheet.line(&[(left, y), (left + LEGEND_SWATCH_WIDTH - 10.0, y)], row.color, row.line_width)?;
        sheet.text(&row.text, (left + LEGEND_SWATCH_WIDTH, y), LEGEND_LETTERING)?;
    }
    Ok(())
}

/// `share` from 0 to 1.
fn ramp(share: f64) -> RGBColor {
    let position = share * (RAMP.len() - 1) as f64;
    let i = (position as usize).min(RAMP.len() - 2);
    mixed(RAMP[i], RAMP[i + 1], position - i as f64)
}

/// `share` of `b`, the rest of `a`.
fn mixed(a: RGBColor, b: RGBColor, share: f64) -> RGBColor {
    let mix = |a: u8, b: u8| (f64::from(a) * (1.0 - share) + f64::from(b) * share).round() as u8;
    RGBColor(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
}
