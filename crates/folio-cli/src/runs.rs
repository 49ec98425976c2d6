//! `folio runs`: a sweep as a ranked table.

use std::path::PathBuf;

use clap::Args;
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use folio::run_dir::{RunDir, RunLock, RunState, Status};
use serde_json::{Map, Value};

use crate::screen;

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
Examples:
  folio runs runs/search
  folio runs runs/search --json
  folio runs runs/chrs runs/bpe                 across tokenizers, by bits a character")]
pub(crate) struct RunsArgs {
    /// The directory of a sweep, or of one run; the runs of several are ranked together
    #[arg(value_name = "RUN_DIR", required = true)]
    run_dirs: Vec<PathBuf>,
    /// One JSON object a run, with all its settings
    #[arg(long)]
    json: bool,
}

/// One line of the table.
struct Row {
    name: String,
    settings: Map<String, Value>,
    /// The lowest eval loss and the epoch it was reached in.
    best: Option<(f64, u64)>,
    /// The same loss in bits a character and a byte, if the run saves its losses.
    bits: Option<(f64, f64)>,
    epochs: usize,
    /// How it fares, in a word.
    state: &'static str,
}

pub(crate) fn run(args: &RunsArgs) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    let several = args.run_dirs.len() > 1;
    let mut runs = Vec::new();
    for path in &args.run_dirs {
        runs.extend(RunDir::new(path).runs()?);
    }
    for run in runs {
        let name = run.path().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let name = if several { run.path().display().to_string() } else { name };
        let Value::Object(settings) = serde_json::to_value(run.settings()?)? else {
            unreachable!("a struct")
        };
        let losses = run.losses()?.unwrap_or_default();
        let status = run.status();
        // A run that saves no losses says at least how it fares.
        let told = status.as_ref().map_or(&[][..], |status| &status.eval_losses);
        let eval_losses = if losses.eval_losses.is_empty() { told } else { &losses.eval_losses };
        let lowest = eval_losses
            .iter()
            .copied()
            .zip(1..)
            .reduce(|best, next| if next.0 < best.0 { next } else { best });
        let bits = lowest.and_then(|(_, epoch)| {
            let at = |values: &[f64]| values.get(epoch as usize - 1).copied();
            at(&losses.eval_bits_per_character).zip(at(&losses.eval_bits_per_byte))
        });
        let epochs = eval_losses.len();
        rows.push(Row { name, settings, best: lowest, bits, epochs, state: state(&run, status.as_ref()) });
    }
    // Bits compare whatever the tokenizers; where some run has none, the losses have to do.
    let by_bits = rows.iter().all(|row| row.bits.is_some() || row.best.is_none());
    let rank = |row: &Row| if by_bits { bits(row) } else { loss(row) };
    rows.sort_by(|a, b| rank(a).total_cmp(&rank(b)).then(loss(a).total_cmp(&loss(b))));
    if args.json {
        rows.iter().try_for_each(print_json)?;
    } else {
        screen::out(table(&rows))?;
    }
    Ok(())
}

/// Bits a character; runs without losses come last.
fn bits(row: &Row) -> f64 {
    row.bits.map_or(f64::INFINITY, |(per_character, _)| per_character)
}

/// The lowest eval loss; runs without losses come last.
fn loss(row: &Row) -> f64 {
    row.best.map_or(f64::INFINITY, |(loss, _)| loss)
}

/// How a run fares: one that says that it trains, though nobody holds its lock, was killed.
fn state(run: &RunDir, status: Option<&Status>) -> &'static str {
    match status.map(|status| status.state) {
        None => "-",
        Some(RunState::Running) if !RunLock::is_held(run) => "killed",
        Some(state) => state.name(),
    }
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

/// Rank, run, loss, and whatever settings the runs differ in.
fn table(rows: &[Row]) -> Table {
    let first = &rows[0].settings;
    let differs = |key: &&String| rows.iter().any(|row| row.settings.get(*key) != first.get(*key));
    let varying: Vec<&String> = first.keys().filter(differs).collect();
    let mut table = Table::new();
    table.load_style(NOTHING);
    let fixed = ["rank", "run", "state", "best eval loss", "bits/char", "at epoch"].map(str::to_owned);
    table.set_header(fixed.into_iter().chain(varying.iter().map(|key| (*key).clone())));
    for (index, row) in rows.iter().enumerate() {
        let (loss, epoch) = row.best.map_or(("-".to_owned(), "-".to_owned()), |(loss, epoch)| {
            (format!("{loss:.4}"), format!("{epoch}/{}", row.epochs))
        });
        let values = varying.iter().map(|key| match &row.settings[*key] {
            Value::String(text) => text.clone(),
            value => value.to_string(),
        });
        let bits = row.bits.map_or("-".to_owned(), |(per_character, _)| format!("{per_character:.4}"));
        table.add_row(
            [(index + 1).to_string(), row.name.clone(), row.state.to_owned(), loss, bits, epoch]
                .into_iter()
                .chain(values),
        );
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        if !matches!(index, 1 | 2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
