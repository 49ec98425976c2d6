//! A run directory of an imported model: a description, a tokenizer and a checkpoint of epoch 0.

use std::fs;
use std::path::Path;

use super::Imported;
use crate::checkpoint::{CheckpointName, Identity, TrainingState};
use crate::error::{Error, Result};
use crate::run_dir::{RunDir, RunLock, RunState, Status};
use crate::settings::Settings;
use crate::text::TextFiles;

/// Writes a run that has a model but no text, no losses and no optimizer state. Returns its checkpoint's name. `overwrite`
/// replaces an earlier run.
///
/// # Errors
/// If the directory holds a run and `overwrite` is not set, or something cannot be written. Nothing is left half-written.
pub fn write_run(imported: &Imported, run_dir: &RunDir, overwrite: bool) -> Result<CheckpointName> {
    run_dir.check_free(overwrite)?;
    let is_new = !run_dir.path().exists();
    run_dir.create()?;
    let written = write(imported, run_dir);
    if written.is_err() && is_new {
        // Fails, as it should, if something else is in it by now.
        let _ = fs::remove_dir(run_dir.path());
    }
    written
}

fn write(imported: &Imported, run_dir: &RunDir) -> Result<CheckpointName> {
    let name = CheckpointName::Epoch(0);
    let _lock = RunLock::take(run_dir)?;
    let settings = settings(imported)?;
    // Everything is complete under a temporary name before an earlier run is removed.
    let aside = tempfile::Builder::new().prefix(".folio-").tempdir_in(run_dir.path());
    let aside = aside.map_err(Error::file("write", run_dir.path()))?;
    let staged = RunDir::new(aside.path());
    let state = TrainingState::new(Identity::of(&settings, &imported.tokenizer), &settings);
    staged.save_imported(name, &imported.parameters, &state, &imported.tokenizer)?;
    staged.write_description(&settings, &imported.config, &imported.tokenizer)?;
    staged.write_status(&Status::imported())?;
    run_dir.clear()?;
    publish(aside.path(), run_dir.path())?;
    Ok(name)
}

/// Moves what is in a directory to another one. The settings come last: with them it is a run.
fn publish(from: &Path, to: &Path) -> Result<()> {
    let names = |entries: fs::ReadDir| entries.map(|entry| Ok(entry?.file_name())).collect();
    let names: std::io::Result<Vec<_>> = fs::read_dir(from).and_then(names);
    let mut names = names.map_err(Error::file("read", from))?;
    names.sort_by_key(|name| name == "hyperparameters.json");
    for name in names {
        fs::rename(from.join(&name), to.join(&name)).map_err(Error::file("write", &to.join(&name)))?;
    }
    crate::files::sync_directory(to).map_err(Error::file("write", to))
}

/// The settings of the run.
fn settings(imported: &Imported) -> Result<Settings> {
    let base = Settings {
        data: TextFiles::Several(Vec::new()),
        data_sha256: String::new(),
        block_size: imported.config.block_size,
        dropout: imported.dropout(),
        ..Settings::default()
    };
    imported.settings(base)
}

impl Status {
    /// The status of an imported model.
    fn imported() -> Self {
        Self::without_training(RunState::Imported)
    }
}
