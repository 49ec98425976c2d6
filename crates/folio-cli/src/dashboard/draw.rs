//! Draws the dashboard on a terminal of any size.

use std::time::{Duration, Instant};

use folio::run_dir::sub_run_name;
use indicatif::{HumanCount, HumanDuration};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Chart, Dataset, GraphType, Paragraph, Wrap};

use super::curve::DownsampledCurve;
use super::state::{Best, LastSave, Phase, Run, State};

/// Charts are side by side on terminals with at least this many columns.
const WIDE: u16 = 76;
/// Fewest rows in which a chart is readable.
const CHART_ROWS_MIN: u16 = 4;
/// Terminals with at least this many rows show a progress bar and all warnings.
const TALL: u16 = 16;

const TRAIN: Color = Color::LightYellow;
const EVAL: Color = Color::LightBlue;
const RATE: Color = Color::LightGreen;
const WARNING: Color = Color::LightRed;

/// Everything besides [`State`] that a frame depends on.
#[derive(Clone, Copy)]
pub(super) struct View {
    pub(super) now: Instant,
    /// Whether the run is stopping.
    pub(super) stopping: bool,
    pub(super) color: bool,
}

impl View {
    fn style(self, color: Color) -> Style {
        if self.color { Style::new().fg(color) } else { Style::new() }
    }
}

/// Draws a frame.
pub(super) fn draw(frame: &mut Frame, state: &State, view: View) {
    let Some(run) = state.runs.get(&state.shown) else { return };
    let area = frame.area();
    let notes = notes(state, view);
    let table: Vec<&str> = state.table.as_deref().map_or(Vec::new(), |table| table.lines().collect());

    // Rows are granted in order of importance; the charts and the sample get the rest.
    let mut left = area.height;
    let mut grant = |wanted: u16| {
        let granted = wanted.min(left);
        left -= granted;
        granted
    };
    let [place_rows, numbers_rows, keys_rows, best_rows, title_rows] = [(); 5].map(|()| grant(1));
    let notes_rows = grant(if area.height < TALL { 1 } else { notes.len() as u16 }.min(notes.len() as u16));
    let bar_rows = grant(u16::from(area.height >= TALL));
    let room = left;
    let table_rows = (table.len() as u16).min(if room >= 3 * CHART_ROWS_MIN { room / 2 } else { room });
    let rows = [title_rows, place_rows, bar_rows, numbers_rows, best_rows, table_rows];
    let constraints = rows.map(Constraint::Length).into_iter();
    let constraints = constraints.chain([Constraint::Fill(1), Constraint::Length(notes_rows)]);
    let areas: [Rect; 9] = Layout::vertical(constraints.chain([Constraint::Length(keys_rows)])).areas(area);
    let [title, place, bar, numbers, best, table_area, body, notes_area, keys] = areas;

    frame.render_widget(title_line(state, run), title);
    frame.render_widget(Line::raw(fitting(&place_parts(run, view.now), place.width)), place);
    frame.render_widget(bar_line(run, bar.width, view), bar);
    frame.render_widget(Line::raw(fitting(&numbers_parts(run), numbers.width)), numbers);
    frame.render_widget(Line::raw(fitting(&best_parts(run.best), best.width)), best);
    frame.render_widget(Paragraph::new(table.into_iter().map(Line::raw).collect::<Vec<_>>()), table_area);
    draw_body(frame, run, body, view);
    frame.render_widget(Paragraph::new(notes), notes_area);
    frame.render_widget(Line::styled(keys_text(state, view), Modifier::DIM), keys);
}

fn title_line(state: &State, run: &Run) -> Line<'static> {
    let mut title = vec![Span::styled(format!("folio {}", state.title), Modifier::BOLD)];
    if state.table.is_some() {
        title.push(Span::raw(format!(" · {}", sub_run_name(state.shown))));
    }
    if run.parameters > 0 {
        let parameters = HumanCount(run.parameters);
        title.push(Span::raw(format!(" · {parameters} parameters in {}", run.precision.name())));
    }
    Line::from(title)
}

/// Joins as many parts as fit in the columns, and always the first.
fn fitting(parts: &[String], columns: u16) -> String {
    let joined = (1..=parts.len()).rev().flat_map(|count| {
        // A narrower separator is better than fewer parts.
        [" · ", "  "].map(|between| parts[..count].join(between))
    });
    let mut joined = joined.skip_while(|text| text.chars().count() > usize::from(columns));
    joined.next().or_else(|| parts.first().cloned()).unwrap_or_default()
}

fn place_parts(run: &Run, now: Instant) -> Vec<String> {
    let phase = match run.phase {
        Phase::Starting => return vec!["starting".to_owned()],
        Phase::Training => None,
        Phase::Teaching => Some("computing the teachers' probabilities"),
        Phase::Evaluating => Some("evaluating"),
        Phase::Saving => Some("saving"),
        Phase::Ended => Some("ended"),
    };
    let (step, last_step) = (HumanCount(run.step), HumanCount(run.step - run.taken + run.steps));
    let place = [format!("epoch {}/{}", run.epoch, run.last_epoch), format!("step {step}/{last_step}")];
    let time = run.time_left(now).map(|left| format!("{} left", clock(left)));
    place.into_iter().chain(time).chain(phase.map(str::to_owned)).collect()
}

/// A time as `1:02:03`, or `2:03` without an hour; days make many hours.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

fn bar_line(run: &Run, columns: u16, view: View) -> Line<'static> {
    let done = (f64::from(columns) * run.fraction_done()) as usize;
    let rest = usize::from(columns).saturating_sub(done);
    Line::from(vec![
        Span::styled("━".repeat(done), view.style(Color::Cyan)),
        Span::styled("─".repeat(rest), Modifier::DIM),
    ])
}

fn numbers_parts(run: &Run) -> Vec<String> {
    if run.taken == 0 {
        return Vec::new();
    }
    let Run { loss, gradient_norm, learning_rate, .. } = run;
    let mut parts = vec![format!("loss {loss:.4}")];
    if let Some(rate) = run.tokens_per_second() {
        let rate = HumanCount(rate as u64);
        parts.push(format!("{rate} tokens/s"));
    }
    parts.extend([format!("lr {learning_rate:.2e}"), format!("gradient norm {gradient_norm:.2}")]);
    parts
}

fn best_parts(best: Option<Best>) -> Vec<String> {
    let Some(Best { loss, epoch, step }) = best else { return vec!["no epoch finished yet".to_owned()] };
    let step = HumanCount(step);
    vec![format!("best eval loss {loss:.4} at epoch {epoch}"), format!("step {step}")]
}

/// The latest warnings, newest first, and the latest checkpoint.
fn notes(state: &State, view: View) -> Vec<Line<'static>> {
    let warnings = state.warnings.iter();
    let warnings =
        warnings.map(|warning| Line::styled(format!("warning: {}", clean(warning)), view.style(WARNING)));
    let saved = state.last_save.iter().map(|LastSave { checkpoint, at }| {
        let ago = HumanDuration(view.now.saturating_duration_since(*at));
        Line::raw(format!("saved {checkpoint} {ago} ago"))
    });
    warnings.chain(saved).collect()
}

fn keys_text(state: &State, view: View) -> &'static str {
    match (view.stopping, state.saves) {
        (true, _) => "stopping after this step; q: quit now without saving",
        (false, true) => "q: save and quit   s: save now",
        (false, false) => "q: quit (--no_save: nothing is saved)",
    }
}

/// Draws the curves and the newest sample.
fn draw_body(frame: &mut Frame, run: &Run, area: Rect, view: View) {
    if area.height < CHART_ROWS_MIN {
        return draw_sample(frame, run, area);
    }
    let rates_too = area.height >= 3 * CHART_ROWS_MIN;
    if area.width >= WIDE {
        let [losses, side] =
            Layout::horizontal([Constraint::Percentage(60), Constraint::Fill(1)]).areas(area);
        let rates_rows = if rates_too { area.height * 2 / 5 } else { 0 };
        let [rates, sample] =
            Layout::vertical([Constraint::Length(rates_rows), Constraint::Fill(1)]).areas(side);
        draw_losses(frame, run, losses, view);
        draw_rates(frame, run, rates, view);
        draw_sample(frame, run, sample);
    } else {
        let sample_rows = if area.height >= 2 * CHART_ROWS_MIN { area.height / 4 } else { 0 };
        let rates_rows = if rates_too { area.height / 4 } else { 0 };
        let lengths = [Constraint::Length(rates_rows), Constraint::Length(sample_rows)];
        let [losses, rates, sample] =
            Layout::vertical([Constraint::Fill(1)].into_iter().chain(lengths)).areas(area);
        draw_losses(frame, run, losses, view);
        draw_rates(frame, run, rates, view);
        draw_sample(frame, run, sample);
    }
}

fn draw_losses(frame: &mut Frame, run: &Run, area: Rect, view: View) {
    // Without colors the curves differ in their markers.
    let (train_marker, eval_marker) =
        if view.color { (Marker::Braille, Marker::Braille) } else { (Marker::Custom('·'), Marker::Braille) };
    let (train_sign, eval_sign) = if view.color { ("── ", "── ") } else { ("·· ", "⠒⠒ ") };
    let title = Line::from(vec![
        Span::raw("loss  "),
        Span::styled(train_sign, view.style(TRAIN)),
        Span::raw("train  "),
        Span::styled(eval_sign, view.style(EVAL)),
        Span::raw("eval"),
    ]);
    let curves = [
        (&run.train_losses, view.style(TRAIN), train_marker),
        (&run.eval_losses, view.style(EVAL), eval_marker),
    ];
    draw_chart(frame, title, &curves, area, |loss| format!("{loss:.2}"));
}

fn draw_rates(frame: &mut Frame, run: &Run, area: Rect, view: View) {
    let curves = [(&run.learning_rates, view.style(RATE), Marker::Braille)];
    draw_chart(frame, Line::raw("learning rate"), &curves, area, |rate| format!("{rate:.1e}"));
}

/// Draws curves over steps, on axes that fit them.
fn draw_chart(
    frame: &mut Frame,
    title: Line,
    curves: &[(&DownsampledCurve, Style, Marker)],
    area: Rect,
    value_text: fn(f64) -> String,
) {
    if area.is_empty() {
        return;
    }
    let points = || curves.iter().flat_map(|(curve, ..)| curve.points());
    let steps = range(points().map(|&(step, _)| step));
    let values = range(points().map(|&(_, value)| value));
    let (Some([first, last]), Some([low, high])) = (steps, values) else {
        return frame.render_widget(Block::new().title(title), area);
    };
    let datasets = curves.iter().map(|(curve, style, marker)| {
        let dataset = Dataset::default().data(curve.points()).graph_type(GraphType::Line);
        dataset.marker(*marker).style(*style)
    });
    let step_axis =
        Axis::default().bounds([first, last]).labels([first, last].map(|step| format!("{step:.0}")));
    let value_axis = Axis::default().bounds([low, high]).labels([low, high].map(value_text));
    let chart = Chart::new(datasets.collect()).block(Block::new().title(title));
    frame.render_widget(chart.x_axis(step_axis).y_axis(value_axis).legend_position(None), area);
}

/// The smallest and the largest value, widened if they are equal; `None` if there are no values.
fn range(values: impl Iterator<Item = f64>) -> Option<[f64; 2]> {
    let range = values.fold(None, |range: Option<[f64; 2]>, value| {
        let [low, high] = range.unwrap_or([value, value]);
        Some([low.min(value), high.max(value)])
    });
    range.map(|[low, high]| if low < high { [low, high] } else { [low * 0.99, high * 1.01 + f64::EPSILON] })
}

fn draw_sample(frame: &mut Frame, run: &Run, area: Rect) {
    let Some(sample) = &run.sample else { return };
    let [title, text] = Layout::vertical([Constraint::Max(1), Constraint::Fill(1)]).areas(area);
    if area.height > 1 {
        frame.render_widget(Line::styled("newest sample", Modifier::DIM), title);
        frame.render_widget(Paragraph::new(clean(sample.trim())).wrap(Wrap { trim: false }), text);
    }
}

/// Replaces control characters, which the terminal would interpret.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests;
