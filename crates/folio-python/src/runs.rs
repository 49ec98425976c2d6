//! The files of runs and sweeps.

use std::path::{Path, PathBuf};

use folio::run_dir::{self, Place, RunDir, Saved, Sweep};
use folio_cli::session;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::errors::raise;
use crate::values::to_python;

/// What a path refers to: run, sweep, checkpoint or directory.
#[pyfunction]
pub(crate) fn locate(path: PathBuf) -> PyResult<&'static str> {
    Ok(match run_dir::locate(&path).map_err(raise)? {
        Place::Run(_) => "run",
        Place::Sweep(_) => "sweep",
        Place::Checkpoint(..) => "checkpoint",
        Place::Directory(_) => "directory",
    })
}

/// The settings of a run.
#[pyfunction]
pub(crate) fn settings(py: Python<'_>, path: PathBuf) -> PyResult<Bound<'_, PyAny>> {
    let settings = RunDir::new(path).settings().map_err(raise)?;
    to_python(py, &serde_json::to_value(settings).expect("settings are JSON"))
}

/// The epochs of a run, one list per figure.
#[pyfunction]
pub(crate) fn history(py: Python<'_>, path: PathBuf) -> PyResult<Bound<'_, PyDict>> {
    let epochs = RunDir::new(path).history().map_err(raise)?.unwrap_or_default().epochs;
    let lists = PyDict::new(py);
    lists.set_item("epoch", (1..=epochs.len()).collect::<Vec<_>>())?;
    lists.set_item("step", epochs.iter().map(|epoch| epoch.step).collect::<Vec<_>>())?;
    let figure = |name, of: fn(&folio::history::EpochReport) -> f64| {
        lists.set_item(name, epochs.iter().map(of).collect::<Vec<_>>())
    };
    figure("train_loss", |epoch| epoch.train_loss)?;
    figure("eval_loss", |epoch| epoch.eval_loss)?;
    if epochs.iter().any(|epoch| epoch.raw_eval_loss.is_some()) {
        figure("raw_eval_loss", |epoch| epoch.raw_eval_loss.unwrap_or(f64::NAN))?;
    }
    figure("train_bits_per_character", |epoch| epoch.train_bits.per_character)?;
    figure("eval_bits_per_character", |epoch| epoch.eval_bits.per_character)?;
    figure("learning_rate", |epoch| epoch.learning_rate)?;
    figure("gradient_norm", |epoch| epoch.gradient_norm)?;
    lists.set_item("clipped_steps", epochs.iter().map(|epoch| epoch.clipped_steps).collect::<Vec<_>>())?;
    lists.set_item("skipped_steps", epochs.iter().map(|epoch| epoch.skipped_steps).collect::<Vec<_>>())?;
    Ok(lists)
}

/// The evaluations of a run, at the end of an epoch or inside it: the step and the loss of each.
#[pyfunction]
pub(crate) fn evaluations(path: PathBuf) -> PyResult<Vec<(u64, f64)>> {
    Ok(RunDir::new(path).history().map_err(raise)?.unwrap_or_default().all_evaluations())
}

/// The state of a run: running, stopped, finished, averaged, diverged, failed, killed, or unknown if no status was written.
#[pyfunction]
pub(crate) fn status(path: PathBuf) -> &'static str {
    let run = RunDir::new(path);
    run.status().map_or("unknown", |status| run.state_name(&status))
}

/// The checkpoints of a run: the path and the evaluation loss of each.
#[pyfunction]
pub(crate) fn checkpoints(path: PathBuf) -> PyResult<Vec<(PathBuf, Option<f64>)>> {
    let saved = RunDir::new(path).saved().map_err(raise)?;
    Ok(saved.into_iter().map(|Saved { path, eval_loss, .. }| (path, eval_loss)).collect())
}

/// The directories of a sweep's runs.
#[pyfunction]
pub(crate) fn sub_runs(path: PathBuf) -> PyResult<Vec<PathBuf>> {
    let runs = RunDir::new(path).runs().map_err(raise)?;
    Ok(runs.iter().map(RunDir::path).map(Path::to_path_buf).collect())
}

/// Writes the checkpoint that a path refers to in the format of other programs. Returns notes.
#[pyfunction]
#[pyo3(signature = (path, format, weight_type, out, overwrite))]
pub(crate) fn export(
    py: Python<'_>,
    path: PathBuf,
    format: &str,
    weight_type: Option<&str>,
    out: PathBuf,
    overwrite: bool,
) -> PyResult<Vec<String>> {
    py.detach(|| session::export(&path, format, weight_type, &out, overwrite)).map_err(raise)
}

/// The names of the settings in which a sweep's runs differ.
#[pyfunction]
pub(crate) fn varying(path: PathBuf) -> PyResult<Vec<String>> {
    let sweep = Sweep::read(&path).map_err(raise)?;
    Ok(sweep.map(|sweep| sweep.varying).unwrap_or_default())
}
