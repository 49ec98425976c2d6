//! `folio runs`: a ranked table of runs.

use std::path::{Path, PathBuf};

use clap::Args;
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use folio::checkpoint::{CheckpointName, lowest_eval_loss};
use folio::run_dir::{Place, RUNS, RunDir, locate};
use folio::sweep::{differing, shown};
use serde_json::Value;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::screen;
use crate::terminal;
use crate::usage::Usage;

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
Runs are ranked by bits per character, which is comparable across tokenizers, or by eval loss if bits are not known for \
every run. Columns that do not fit the terminal are omitted.

Examples:
  folio runs
  folio runs runs/search
  folio runs runs/search --json
  folio runs runs/quick runs/mine")]
pub(crate) struct RunsArgs {
    /// Runs, sweeps, or directories of them, all ranked together [default: runs/]
    #[arg(value_name = "RUN_DIR")]
    run_dirs: Vec<PathBuf>,
    /// Print one JSON object per run, with all its settings
    #[arg(long)]
    json: bool,
}

/// One line of the table.
struct RunRow {
    name: String,
    settings: Value,
    /// The lowest eval loss and when it was reached.
    best: Option<(f64, CheckpointName)>,
    /// The same loss in bits per character and per byte, if the run saved its losses.
    bits: Option<(f64, f64)>,
    epochs: usize,
    /// The run's state in one word.
    state: &'static str,
}

pub(crate) fn run(args: &RunsArgs) -> anyhow::Result<()> {
    let mut run_dirs = args.run_dirs.clone();
    if run_dirs.is_empty() {
        if !Path::new(RUNS).is_dir() {
            let message =
                "there is no directory runs/ here; give the directory of a run, a sweep, or several runs";
            return Err(Usage(message.to_owned()).into());
        }
        run_dirs.push(RUNS.into());
    }
    let mut rows = Vec::new();
    for path in &run_dirs {
        for run in find(path)? {
            let name = if run_dirs.len() > 1 { run.path().display().to_string() } else { name(&run, path) };
            match RunRow::read(&run, name) {
                Ok(row) => rows.push(row),
                // Skip damaged runs, unless the run was named on the command line.
                Err(error) if run.path() != path => {
                    screen::err(format_args!("warning: skipped a run: {error:#}"));
                }
                Err(error) => return Err(error),
            }
        }
    }
    anyhow::ensure!(!rows.is_empty(), "no run could be read; see the warnings above");
    // Bits are comparable across tokenizers. Fall back to losses if a run has none.
    let by_bits = rows.iter().all(|row| row.bits.is_some() || row.best.is_none());
    let rank = |row: &RunRow| if by_bits { bits(row) } else { loss(row) };
    rows.sort_by(|a, b| rank(a).total_cmp(&rank(b)).then(loss(a).total_cmp(&loss(b))));
    warn_if_incomparable(&rows);
    if args.json {
        rows.iter().try_for_each(print_json)?;
        return Ok(());
    }
    let (table, left_out) = table(&rows, terminal::size().map(|size| size.columns.into()));
    screen::out(table)?;
    if !left_out.is_empty() {
        screen::err(format_args!(
            "columns that did not fit the terminal: {} (see --json)",
            left_out.join(", ")
        ));
    }
    Ok(())
}

/// The runs in a directory, which is a run, a sweep, or a directory of runs and sweeps.
///
/// # Errors
/// If there are none.
fn find(path: &Path) -> anyhow::Result<Vec<RunDir>> {
    let neither = match RunDir::new(path).runs() {
        Ok(runs) => return Ok(runs),
        Err(error) => error,
    };
    match locate(path) {
        Ok(Place::Directory(children)) => {
            Ok(children.iter().filter_map(|child| child.runs().ok()).flatten().collect())
        }
        _ => Err(neither.into()),
    }
}

/// The run's path relative to the given directory, or the name of that directory if it is the run.
fn name(run: &RunDir, given: &Path) -> String {
    let below = run.path().strip_prefix(given).ok().filter(|path| !path.as_os_str().is_empty());
    below.map_or_else(|| run.name(), |path| path.display().to_string())
}

impl RunRow {
    fn read(run: &RunDir, name: String) -> anyhow::Result<Self> {
        let history = run.history()?.unwrap_or_default();
        let status = run.status();
        // The status of a run without losses.json has its losses.
        let reported = status.as_ref().filter(|_| history.all_evaluations().is_empty());
        let reported = reported.map(|status| (status.eval_losses.clone(), status.step_losses.clone()));
        let (eval_losses, step_losses) =
            reported.unwrap_or_else(|| (history.eval_losses(), history.step_losses()));
        let best = lowest_eval_loss(&eval_losses, &step_losses);
        let bits = best.and_then(|(_, name)| {
            let bits = match name {
                CheckpointName::Epoch(epoch) => history.epochs.get(epoch as usize - 1)?.eval_bits,
                CheckpointName::Step(step) => {
                    history.evaluations.iter().find(|evaluation| evaluation.step == step)?.eval_bits()
                }
            };
            (bits.per_character.is_finite() && bits.per_byte.is_finite())
                .then_some((bits.per_character, bits.per_byte))
        });
        let settings = serde_json::to_value(run.settings()?)?;
        Ok(Self {
            name,
            settings,
            best,
            bits,
            epochs: eval_losses.len(),
            state: status.as_ref().map_or("-", |status| run.state_name(status)),
        })
    }
}

/// Warns if the losses of the runs were not measured on the same text.
fn warn_if_incomparable(rows: &[RunRow]) {
    for (key, name, what) in [
        ("data_sha256", "data", "were trained on different texts"),
        ("split", "split", "split their text differently"),
        ("test_fraction", "test_fraction", "hold out different test parts"),
    ] {
        let mut known: Vec<&RunRow> = Vec::new();
        // An imported model has no text.
        for row in rows.iter().filter(|row| row.settings["data_sha256"] != "") {
            if known.iter().all(|other| other.settings[key] != row.settings[key]) {
                known.push(row);
            }
        }
        if known.len() > 1 {
            let values: Vec<String> = known.iter().map(|row| shown(&row.settings[name])).collect();
            let values = values.join(", ");
            screen::err(format_args!(
                "warning: these runs {what} ({values}), so their losses are not comparable"
            ));
        }
    }
}

/// Bits per character, for ranking; runs without losses come last.
fn bits(row: &RunRow) -> f64 {
    row.bits.map_or(f64::INFINITY, |(per_character, _)| per_character)
}

/// The lowest eval loss, for ranking; runs without losses come last.
fn loss(row: &RunRow) -> f64 {
    row.best.map_or(f64::INFINITY, |(loss, _)| loss)
}

fn print_json(row: &RunRow) -> std::io::Result<()> {
    let loss = row.best.map(|(loss, _)| loss);
    let (epoch, step) = match row.best.map(|(_, name)| name) {
        Some(CheckpointName::Epoch(epoch)) => (Some(epoch), None),
        Some(CheckpointName::Step(step)) => (None, Some(step)),
        None => (None, None),
    };
    let (per_character, per_byte) = row.bits.unzip();
    let value = serde_json::json!({
        "run": row.name, "best_eval_loss": loss, "best_epoch": epoch, "best_step": step, "epochs": row.epochs, "state": row.state,
        "bits_per_character": per_character, "bits_per_byte": per_byte, "settings": row.settings,
    });
    screen::out(value)
}

/// A column of the table.
struct Column {
    header: String,
    cells: Vec<String>,
    is_right: bool,
}

/// Number of columns that are never omitted: rank, run, state and loss.
const MIN_COLUMNS: usize = 4;
/// Names are not shortened below this width.
const MIN_NAME_WIDTH: usize = 8;

/// The table, at most `width` wide, and the headers of the omitted columns.
fn table(rows: &[RunRow], width: Option<usize>) -> (String, Vec<String>) {
    let mut columns = columns(rows);
    let mut left_out = Vec::new();
    let width = width.unwrap_or(usize::MAX);
    loop {
        let (text, needed) = render(&columns);
        if needed <= width {
            return (text, left_out);
        }
        if columns.len() > MIN_COLUMNS {
            left_out.extend(columns.pop().map(|column| column.header));
            continue;
        }
        // Shorten the names in the middle.
        let names = &mut columns[1].cells;
        let longest = names.iter().map(|name| name.width()).max().unwrap_or(0);
        if longest <= MIN_NAME_WIDTH {
            return (text, left_out);
        }
        let room = longest.saturating_sub(needed - width).max(MIN_NAME_WIDTH);
        names.iter_mut().for_each(|name| *name = shorten(name, room));
    }
}

/// All columns, the most important first: the last ones are omitted first.
fn columns(rows: &[RunRow]) -> Vec<Column> {
    let column = |header: &str, is_right: bool, cell: &dyn Fn(usize, &RunRow) -> String| Column {
        header: header.to_owned(),
        cells: rows.iter().enumerate().map(|(index, row)| cell(index, row)).collect(),
        is_right,
    };
    let none = || "-".to_owned();
    let mut columns = vec![
        column("rank", true, &|index, _| (index + 1).to_string()),
        column("run", false, &|_, row| row.name.clone()),
        column("state", false, &|_, row| row.state.to_owned()),
        column("best eval loss", true, &|_, row| {
            row.best.map_or_else(none, |(loss, _)| format!("{loss:.4}"))
        }),
        column("bits/char", true, &|_, row| row.bits.map_or_else(none, |(bits, _)| format!("{bits:.4}"))),
        column("best at", true, &|_, row| row.best.map_or_else(none, |(_, name)| name.moment())),
    ];
    let settings: Vec<&Value> = rows.iter().map(|row| &row.settings).collect();
    for key in differing(&settings) {
        columns.push(column(&key, true, &|_, row| shown(&row.settings[&key])));
    }
    columns
}

/// Renders the table. Returns it with the width of its longest line.
fn render(columns: &[Column]) -> (String, usize) {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(columns.iter().map(|column| column.header.clone()));
    for row in 0..columns[0].cells.len() {
        table.add_row(columns.iter().map(|column| column.cells[row].clone()));
    }
    for (column, cells) in columns.iter().zip(table.column_iter_mut()) {
        if column.is_right {
            cells.set_cell_alignment(CellAlignment::Right);
        }
    }
    let text = table.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let needed = lines.iter().map(|line| line.width()).max().unwrap_or(0);
    (lines.join("\n"), needed)
}

/// Shortens a name in the middle to at most `columns` terminal columns.
fn shorten(name: &str, columns: usize) -> String {
    if name.width() <= columns {
        return name.to_owned();
    }
    let head: String = fitting(name.chars(), (columns - 1).div_ceil(2)).into_iter().collect();
    let tail: String = fitting(name.chars().rev(), (columns - 1) / 2).into_iter().rev().collect();
    format!("{head}…{tail}")
}

/// The longest prefix that fits in this many terminal columns.
fn fitting(characters: impl Iterator<Item = char>, columns: usize) -> Vec<char> {
    let mut used = 0;
    let fits = |character: &char| {
        used += character.width().unwrap_or(0);
        used <= columns
    };
    characters.take_while(fits).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(name: &str, settings: Value) -> RunRow {
        RunRow {
            name: name.to_owned(),
            settings,
            best: Some((1.5, CheckpointName::Epoch(2))),
            bits: Some((2.1, 2.1)),
            epochs: 3,
            state: "finished",
        }
    }

    #[test]
    fn tables_fit_every_width() {
        let settings =
            |lr: f64| json!({ "learning_rate": lr, "vocab_size": null, "data_sha256": lr.to_string() });
        let name = "experiments/of/the/last/week/run_1";
        // Each of these characters is two columns wide.
        let wide = "上周的实验室运行记录".repeat(2);
        let rows = [row(name, settings(1e-3)), row("short", settings(2e-3)), row(&wide, settings(3e-3))];
        let (whole, left_out) = table(&rows, None);
        assert!(whole.contains(name) && whole.contains("learning_rate") && whole.contains("1e-3"), "{whole}");
        assert!(left_out.is_empty() && !whole.contains("null") && !whole.contains("sha256"), "{whole}");
        for width in 44..120 {
            let (text, left_out) = table(&rows, Some(width));
            assert!(text.lines().all(|line| line.width() <= width), "{width}:\n{text}");
            assert_eq!(
                text.contains("learning_rate"),
                !left_out.contains(&"learning_rate".to_owned()),
                "{text}"
            );
            assert!(text.contains("run_1") || text.contains("n_1") && text.contains('…'), "{text}");
            assert!(text.contains("1.5000"), "{text}");
        }
    }

    #[test]
    fn names_are_shortened_in_the_middle() {
        assert_eq!(shorten("runs/search/run_12", 9), "runs…n_12");
        assert_eq!(shorten("short", 8), "short");
        assert_eq!(shorten("上周的实验室", 12), "上周的实验室");
        assert_eq!(shorten("上周的实验室", 11), "上周…验室");
        assert_eq!(shorten("上周的实验室", 8), "上周…室");
    }
}
