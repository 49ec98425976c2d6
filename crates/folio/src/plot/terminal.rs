//! The curves in a terminal: charts of ratatui, rendered to lines of text.

use std::ops::Range;

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Chart, Dataset, GraphType, Widget};

use super::TerminalSize;
use super::picture::{Picture, Point, Run, loss_tick, rate_tick, step_tick, ticks};

/// No terminal is larger; what asks for more is a mistake, and would cost memory.
const SIDE_MAX: u16 = 500;

/// The legend names at most this many runs, in a quarter of the rows at most.
const LEGEND_RUNS_MAX: usize = 6;

/// From this many rows on there is room for the learning rates.
const RATE_ROWS_MIN: u16 = 18;

/// In the terminal's own shades, which its user has chosen to be readable.
const COLORS: [Color; LEGEND_RUNS_MAX] = [
    Color::LightBlue,
    Color::LightYellow,
    Color::LightGreen,
    Color::LightMagenta,
    Color::LightCyan,
    Color::LightRed,
];

/// How one line looks.
#[derive(Clone, Copy)]
struct SeriesStyle {
    color: Color,
    marker: Marker,
}

/// The axis of the values, with what tells its ticks: see `loss_tick`.
#[derive(Clone, Copy)]
struct Values<'a> {
    name: &'static str,
    range: &'a Range<f64>,
    tick_text: fn(f64, f64) -> String,
}

/// See [`to_terminal`](super::to_terminal).
pub(super) fn text(picture: &Picture, size: TerminalSize, color: bool) -> String {
    let area = Rect::new(0, 0, size.columns.min(SIDE_MAX), size.rows.min(SIDE_MAX));
    if area.is_empty() {
        return String::new();
    }
    let mut buffer = Buffer::empty(area);
    render(picture, color, &mut buffer);
    to_lines(&buffer)
}

fn render(picture: &Picture, color: bool, buffer: &mut Buffer) {
    let area = buffer.area;
    let named_len = picture.runs.len().min(LEGEND_RUNS_MAX).min(usize::from(area.height) / 4);
    let mut legend: Vec<Line> = picture
        .runs
        .iter()
        .take(named_len)
        .enumerate()
        .map(|(rank, run)| legend_line(picture, rank, run, color))
        .collect();
    if let (Some(last), unnamed @ 1..) = (legend.last_mut(), picture.runs.len() - named_len) {
        last.push_span(format!("  +{unnamed} more"));
    }
    let rate_constraint = match &picture.rates {
        Some(_) if area.height >= RATE_ROWS_MIN => Constraint::Percentage(28),
        _ => Constraint::Length(0),
    };
    let constraints = [Constraint::Length(legend.len() as u16), Constraint::Fill(1), rate_constraint];
    let [legend_area, loss_area, rate_area] = Layout::vertical(constraints).areas(area);

    for (row, line) in legend_area.rows().zip(legend) {
        line.render(row, buffer);
    }
    let mut loss_lines: Vec<(&[Point], SeriesStyle)> = Vec::new();
    let mut rate_lines: Vec<(&[Point], SeriesStyle)> = Vec::new();
    // The best run comes last, above the others.
    for (rank, run) in picture.runs.iter().enumerate().rev() {
        let look = look(picture, rank, named_len, color);
        if picture.runs.len() == 1 {
            loss_lines.push((&run.train, train_look(color)));
        }
        let is_train_shown = run.eval.is_empty() && picture.runs.len() > 1;
        loss_lines.push((if is_train_shown { &run.train } else { &run.eval }, look));
        rate_lines.push((&run.rates, look));
    }
    let losses = Values { name: picture.unit.axis(), range: &picture.losses, tick_text: loss_tick };
    render_chart(&loss_lines, &picture.steps, losses, loss_area, buffer);
    if let Some(range) = &picture.rates {
        let rates = Values { name: "learning rate", range, tick_text: rate_tick };
        render_chart(&rate_lines, &picture.steps, rates, rate_area, buffer);
    }
}

fn look(picture: &Picture, rank: usize, named_len: usize, color: bool) -> SeriesStyle {
    let is_named = rank < named_len;
    match (color, picture.runs.len()) {
        (true, _) => SeriesStyle {
            color: if is_named { COLORS[rank] } else { Color::DarkGray },
            marker: Marker::Braille,
        },
        (false, 1) => SeriesStyle { color: Color::Reset, marker: Marker::Braille },
        (false, _) => {
            let letter = if is_named { char::from(b'a' + rank as u8) } else { '·' };
            SeriesStyle { color: Color::Reset, marker: Marker::Custom(letter) }
        }
    }
}

/// Of the only run.
fn train_look(color: bool) -> SeriesStyle {
    if color {
        SeriesStyle { color: COLORS[1], marker: Marker::Braille }
    } else {
        SeriesStyle { color: Color::Reset, marker: Marker::Custom('·') }
    }
}

fn legend_line(picture: &Picture, rank: usize, run: &Run, color: bool) -> Line<'static> {
    let sample = |look: SeriesStyle| {
        let text = match look.marker {
            Marker::Custom(letter) => format!("{letter} "),
            _ => "── ".to_string(),
        };
        Span::styled(text, Style::new().fg(look.color))
    };
    let has_train_line = picture.runs.len() == 1 && !run.train.is_empty();
    let look = match has_train_line && run.eval.is_empty() {
        true => train_look(color),
        false => look(picture, rank, rank + 1, color),
    };
    let mut line = Line::from(vec![sample(look), Span::raw(run.legend())]);
    if has_train_line && !run.eval.is_empty() {
        line.push_span("   ");
        line.push_span(sample(train_look(color)));
        line.push_span("train");
    }
    line
}

/// An axis for `rows` lines of text, whose ends are ticks, as ratatui spreads the labels evenly.
fn value_axis(values: Values, rows: u16) -> Axis<'static> {
    let ticks_len = usize::from(rows / 2).clamp(3, 8);
    let (_, distance) = ticks(values.range, ticks_len, 0.0);
    let (first, last) = ((values.range.start / distance).floor(), (values.range.end / distance).ceil());
    let labels_len = (last - first).clamp(1.0, 2.0 * ticks_len as f64) as usize;
    let label = |i: usize| (values.tick_text)((first + i as f64) * distance, distance);
    // Of one width, so that the charts stand exactly one above the other.
    let labels = (0..=labels_len).map(|i| format!("{:>6}", label(i)));
    Axis::default().bounds([first * distance, last * distance]).labels(labels)
}

fn render_chart(
    lines: &[(&[Point], SeriesStyle)],
    steps: &Range<f64>,
    values: Values,
    area: Rect,
    buffer: &mut Buffer,
) {
    if area.is_empty() {
        return;
    }
    let datasets = lines.iter().map(|(points, look)| {
        let dataset = Dataset::default().data(points).graph_type(GraphType::Line);
        dataset.marker(look.marker).style(Style::new().fg(look.color))
    });
    let [first, middle, last] = [steps.start, (steps.start + steps.end) / 2.0, steps.end].map(step_tick);
    let step_axis =
        Axis::default().bounds([steps.start, steps.end]).labels([first, middle, format!("step {last}")]);
    Chart::new(datasets.collect())
        .block(Block::new().title(values.name))
        .x_axis(step_axis)
        .y_axis(value_axis(values, area.height))
        .legend_position(None)
        .render(area, buffer);
}

/// One line a row, without the blanks at its end; escape codes only where a cell has a colour.
fn to_lines(buffer: &Buffer) -> String {
    let mut text = String::new();
    for row in buffer.area.rows() {
        let mut cells: Vec<(&str, Color)> = Vec::new();
        let mut column = row.left();
        while column < row.right() {
            let cell = &buffer[(column, row.y)];
            cells.push((cell.symbol(), cell.fg));
            // A wide character takes the cells after its own.
            column += Span::raw(cell.symbol()).width().max(1) as u16;
        }
        while cells.last().is_some_and(|(symbol, _)| symbol.trim().is_empty()) {
            cells.pop();
        }
        let mut pen = Color::Reset;
        for (symbol, fg) in cells {
            if fg != pen {
                text.push_str(escape_code(fg));
                pen = fg;
            }
            text.push_str(symbol);
        }
        if pen != Color::Reset {
            text.push_str(escape_code(Color::Reset));
        }
        text.push('\n');
    }
    text
}

/// ECMA-48, Select Graphic Rendition, with the common codes from 90 on for the light colours.
fn escape_code(color: Color) -> &'static str {
    match color {
        Color::LightBlue => "\x1b[94m",
        Color::LightYellow => "\x1b[93m",
        Color::LightGreen => "\x1b[92m",
        Color::LightMagenta => "\x1b[95m",
        Color::LightCyan => "\x1b[96m",
        Color::LightRed => "\x1b[91m",
        Color::DarkGray => "\x1b[90m",
        _ => "\x1b[39m",
    }
}
