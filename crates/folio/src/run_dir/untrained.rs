//! Writing a run that has a model but was not trained: a description, a tokenizer and a checkpoint of epoch 0.

use std::fs;
use std::path::Path;

use super::{RunDir, RunLock, RunState, Status};
use crate::checkpoint::{CheckpointName, Identity, TrainingState};
use crate::error::{Error, Result};
use crate::model::{ModelConfig, Parameters};
use crate::settings::Settings;
use crate::tokenizer::Tokenizer;

/// A run without losses and without optimizer state.
pub(crate) struct UntrainedRun<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) config: ModelConfig,
    pub(crate) parameters: &'a Parameters,
    pub(crate) tokenizer: &'a Tokenizer,
    /// Where its model comes from.
    pub(crate) state: RunState,
}

impl RunDir {
    /// Writes a run that was not trained. Returns its checkpoint's name. `overwrite` replaces an earlier run.
    ///
    /// # Errors
    /// If the directory holds a run and `overwrite` is not set, or something cannot be written. Nothing is left half-written.
    pub(crate) fn write_untrained(&self, run: &UntrainedRun, overwrite: bool) -> Result<CheckpointName> {
        self.check_free(overwrite)?;
        let is_new = !self.path().exists();
        self.create()?;
        let written = self.write(run);
        if written.is_err() && is_new {
            // Fails, as it should, if something else is in it by now.
            let _ = fs::remove_dir(self.path());
        }
        written
    }

    fn write(&self, run: &UntrainedRun) -> Result<CheckpointName> {
        let name = CheckpointName::Epoch(0);
        let _lock = RunLock::take(self)?;
        // Everything is complete under a temporary name before an earlier run is removed.
        let aside = tempfile::Builder::new().prefix(".folio-").tempdir_in(self.path());
        let aside = aside.map_err(Error::file("write", self.path()))?;
        let staged = RunDir::new(aside.path());
        let mut state = TrainingState::new(Identity::of(run.settings, run.tokenizer), run.settings);
        // There are no weights beside those of the model.
        state.averaged = false;
        staged.save_model(name, run.parameters, &state, run.tokenizer)?;
        staged.write_description(run.settings, &run.config, run.tokenizer)?;
        staged.write_status(&Status::without_training(run.state))?;
        self.clear()?;
        publish(aside.path(), self.path())?;
        Ok(name)
    }
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
