//! `folio export --to csv`: the records of runs as a table.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use folio::files::write_atomic;
use folio::records;
use folio::run_dir::RunDir;
use folio::sweep::Sweep;
use serde_json::Value;

use crate::screen;

const STEP_COLUMNS: [&str; 7] = ["step", "epoch", "loss", "lr", "gradient_norm", "tokens_per_s", "skipped"];
const EPOCH_COLUMNS: [&str; 13] = [
    "epoch",
    "step",
    "train_loss",
    "eval_loss",
    "train_bits_per_character",
    "eval_bits_per_character",
    "train_bits_per_byte",
    "eval_bits_per_byte",
    "lr",
    "gradient_norm",
    "clipped_steps",
    "skipped_steps",
    "event",
];

/// Writes one row per evaluation, at the end of an epoch (event `epoch`) or inside it (event `evaluation`), or one per step, to a
/// file or to stdout.
pub(super) fn export(directory: &RunDir, steps: bool, out: Option<&Path>) -> anyhow::Result<()> {
    let varying = Sweep::read(directory.path())?.map_or(Vec::new(), |sweep| sweep.varying);
    let runs = directory.runs()?;
    let (events, columns) = match steps {
        true => (&["step"][..], &STEP_COLUMNS[..]),
        false => (&["epoch", "evaluation"][..], &EPOCH_COLUMNS[..]),
    };
    let mut table = csv::Writer::from_writer(Vec::new());
    let names = varying.iter().map(String::as_str);
    table.write_record(["run"].into_iter().chain(names).chain(columns.iter().copied()))?;
    for run in runs {
        let settings = serde_json::to_value(run.settings()?)?;
        let name = run.name();
        let values: Vec<String> = varying.iter().map(|key| cell(&settings[key])).collect();
        let is_row = |line: &&Value| line["event"].as_str().is_some_and(|event| events.contains(&event));
        for line in records::read(&run)?.iter().filter(is_row) {
            let cells = columns.iter().map(|column| cell(&line[*column]));
            table.write_record([name.clone()].into_iter().chain(values.iter().cloned()).chain(cells))?;
        }
    }
    let bytes = table.into_inner().context("writing CSV in memory")?;
    match out {
        Some(path) => write_atomic(path, &bytes)?,
        None => screen::stdout().write_all(&bytes)?,
    }
    Ok(())
}

/// A value as a CSV cell; empty if unknown or not finite.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}
