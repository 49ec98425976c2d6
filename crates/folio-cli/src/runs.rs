//! `folio runs`: runs as a ranked table.

use std::path::{Path, PathBuf};

use clap::Args;
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use folio::history::lowest_eval_loss;
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
Runs of different tokenizers are ranked by bits per character. Columns that the terminal has no room for are left out.

Examples:
  folio runs
  folio runs runs/search
  folio runs runs/search --json
  folio runs runs/quick runs/mine")]
pub(crate) struct RunsArgs {
    /// Runs, sweeps, or directories of them, all ranked together [default: runs]
    #[arg(value_name = "RUN_DIR")]
    run_dirs: Vec<PathBuf>,
    /// One JSON object per run, with all its settings
    #[arg(long)]
    json: bool,
}

/// One line of the table.
struct Row {
    name: String,
    settings: Value,
    /// The lowest eval loss and the epoch it was reached in.
    best: Option<(f64, u64)>,
    /// The same loss in bits a character and a byte, if the run saves its losses.
    bits: Option<(f64, f64)>,
    epochs: usize,
    /// How it fares, in a word.
    state: &'static str,
}

pub(crate) fn run(args: &RunsArgs) -> anyhow::Result<()> {
    let mut run_dirs = args.run_dirs.clone();
    if run_dirs.is_empty() {
        if !Path::new(RUNS).is_dir() {
            let message =
                "there is no directory runs/ here: give the directory of a run, of a sweep or of several";
            return Err(Usage(message.to_owned()).into());
        }
        run_dirs.push(RUNS.into());
    }
    let mut rows = Vec::new();
    for path in &run_dirs {
        for run in find(path)? {
            let name = if run_dirs.len() > 1 { run.path().display().to_string() } else { name(&run, path) };
            match Row::read(&run, name) {
                Ok(row) => rows.push(row),
                // One damaged run does not hide the others, unless it is what was asked for.
                Err(error) if run.path() != path => {
                    screen::err(format_args!("warning: skipped a run: {error:#}"));
                }
                Err(error) => return Err(error),
            }
        }
    }
    anyhow::ensure!(!rows.is_empty(), "no run could be read: the warnings say why");
    // Bits compare whatever the tokenizers; where some run has none, the losses have to do.
    let by_bits = rows.iter().all(|row| row.bits.is_some() || row.best.is_none());
    let rank = |row: &Row| if by_bits { bits(row) } else { loss(row) };
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
            "left out, as the terminal is narrow: {} (see --json)",
            left_out.join(", ")
        ));
    }
    Ok(())
}

/// The runs in a directory: itself, those of the sweep that it is, or the runs and sweeps right below it.
///
/// # Errors
/// If there is none.
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

/// A run's path from the directory that was given, or the directory's own name.
fn name(run: &RunDir, given: &Path) -> String {
    let below = run.path().strip_prefix(given).ok().filter(|path| !path.as_os_str().is_empty());
    below.map_or_else(|| run.name(), |path| path.display().to_string())
}

impl Row {
    fn read(run: &RunDir, name: String) -> anyhow::Result<Self> {
        let history = run.history()?.unwrap_or_default();
        let status = run.status();
        // A run that saves no losses says at least how it fares.
        let told = status.as_ref().map_or(&[][..], |status| &status.eval_losses);
        let eval_losses = if history.epochs.is_empty() { told.to_vec() } else { history.eval_losses() };
        let best = lowest_eval_loss(&eval_losses);
        let bits = best.and_then(|(_, epoch)| {
            let bits = history.epochs.get(epoch as usize - 1)?.eval_bits;
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

/// Says so if the losses of some runs are of other text than those of others.
fn warn_if_incomparable(rows: &[Row]) {
    for (key, told, what) in [
        ("data_sha256", "data", "were trained on different texts"),
        ("split", "split", "divide their text in different ways"),
    ] {
        let mut known: Vec<&Row> = Vec::new();
        for row in rows {
            if known.iter().all(|other| other.settings[key] != row.settings[key]) {
                known.push(row);
            }
        }
        if known.len() > 1 {
            let values: Vec<String> = known.iter().map(|row| shown(&row.settings[told])).collect();
            let values = values.join(", ");
            screen::err(format_args!("warning: these runs {what} ({values}): their losses do not compare"));
        }
    }
}

/// Bits a character; runs without losses come last.
fn bits(row: &Row) -> f64 {
    row.bits.map_or(f64::INFINITY, |(per_character, _)| per_character)
}

/// The lowest eval loss; runs without losses come last.
fn loss(row: &Row) -> f64 {
    row.best.map_or(f64::INFINITY, |(loss, _)| loss)
}

fn print_json(row: &Row) -> std::io::Result<()> {
    let (loss, epoch) = row.best.unzip();
    let (per_character, per_byte) = row.bits.unzip();
    let value = serde_json::json!({
        "run": row.name, "best_eval_loss": loss, "best_epoch": epoch, "epochs": row.epochs, "state": row.state,
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

/// Columns that are never left out: rank, run, state and loss.
const LEAST_COLUMNS: usize = 4;
/// The least part of a run's name that is shown.
const LEAST_NAME: usize = 8;

/// Rank, run, loss, and whatever settings the runs differ in, within a width if there is one; and the names of the
/// columns that it has no room for.
fn table(rows: &[Row], width: Option<usize>) -> (String, Vec<String>) {
    let mut columns = columns(rows);
    let mut left_out = Vec::new();
    let width = width.unwrap_or(usize::MAX);
    loop {
        let (text, needed) = drawn(&columns);
        if needed <= width {
            return (text, left_out);
        }
        if columns.len() > LEAST_COLUMNS {
            left_out.extend(columns.pop().map(|column| column.header));
            continue;
        }
        // The names lose their middle.
        let names = &mut columns[1].cells;
        let longest = names.iter().map(|name| name.width()).max().unwrap_or(0);
        if longest <= LEAST_NAME {
            return (text, left_out);
        }
        let room = longest.saturating_sub(needed - width).max(LEAST_NAME);
        names.iter_mut().for_each(|name| *name = cut(name, room));
    }
}

/// All columns, the dearest first.
fn columns(rows: &[Row]) -> Vec<Column> {
    let column = |header: &str, is_right: bool, cell: &dyn Fn(usize, &Row) -> String| Column {
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
        column("at epoch", true, &|_, row| {
            row.best.map_or_else(none, |(_, epoch)| format!("{epoch}/{}", row.epochs))
        }),
    ];
    let settings: Vec<&Value> = rows.iter().map(|row| &row.settings).collect();
    for key in differing(&settings) {
        columns.push(column(&key, true, &|_, row| shown(&row.settings[&key])));
    }
    columns
}

/// Columns as text, and the terminal columns of its longest line.
fn drawn(columns: &[Column]) -> (String, usize) {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(columns.iter().map(|column| column.header.clone()));
    for row in 0..columns[0].cells.len() {
        table.add_row(columns.iter().map(|column| column.cells[row].clone()));
    }
    for (column, drawn) in columns.iter().zip(table.column_iter_mut()) {
        if column.is_right {
            drawn.set_cell_alignment(CellAlignment::Right);
        }
    }
    let text = table.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let needed = lines.iter().map(|line| line.width()).max().unwrap_or(0);
    (lines.join("\n"), needed)
}

/// A name of at most `columns` columns on a terminal: its middle goes.
fn cut(name: &str, columns: usize) -> String {
    if name.width() <= columns {
        return name.to_owned();
    }
    let head: String = fitting(name.chars(), (columns - 1).div_ceil(2)).into_iter().collect();
    let tail: String = fitting(name.chars().rev(), (columns - 1) / 2).into_iter().rev().collect();
    format!("{head}…{tail}")
}

/// As many of the first characters as these columns have room for.
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

    fn row(name: &str, settings: Value) -> Row {
        Row {
            name: name.to_owned(),
            settings,
            best: Some((1.5, 2)),
            bits: Some((2.1, 2.1)),
            epochs: 3,
            state: "finished",
        }
    }

    #[test]
    fn a_table_fits_any_width_that_a_name_fits() {
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
    fn names_lose_their_middle() {
        assert_eq!(cut("runs/search/run_12", 9), "runs…n_12");
        assert_eq!(cut("short", 8), "short");
        assert_eq!(cut("上周的实验室", 12), "上周的实验室");
        assert_eq!(cut("上周的实验室", 11), "上周…验室");
        assert_eq!(cut("上周的实验室", 8), "上周…室");
    }
}
