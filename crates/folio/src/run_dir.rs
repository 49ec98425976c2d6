//! The files of a run or a sweep.
//!
//! ```text
//! RUN_DIR/hyperparameters.json  model_hyperparameters.json  losses.json  lrs.json
//!         tokenizer.json  tokenizer_config.json  vocab.json
//!         status.json           running, stopped, finished, diverged or failed
//!         metrics.jsonl         the records of every step and epoch
//!         events.out.tfevents.N.folio   the same for TensorBoard, one file per start
//!         checkpoint_N/         after epoch N
//!         step_N/               after step N, inside an epoch; removed when a later checkpoint is saved, unless it is the best
//!         latest  best          links to the newest checkpoint and to the one with the lowest evaluation loss
//!         .lock                 locked by the process that writes here
//!         run_1/ run_2/ …       the runs of a sweep, each with this layout
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::checkpoint::{self, Checkpoint, CheckpointName, Tensors, TrainingState};
use crate::error::{Error, Result};
use crate::files::{create_directory, read_json, remove_rubbish, update_symlink, write_json};
use crate::history::{History, LossLists, lowest_loss};
use crate::model::{ModelConfig, Parameters};
use crate::settings::{Keep, Settings};
use crate::tokenizer::Tokenizer;

mod event_files;
mod find;
mod lock;
mod ownership;
mod retention;
mod status;
mod sweep_file;
mod untrained;

#[cfg(test)]
pub(crate) use event_files::event_files;
use event_files::is_event_file;
#[cfg(feature = "tensorboard")]
pub(crate) use event_files::next_event_file;
pub use find::{Found, Pick, Place, RUNS, Saved, find, locate, locate_or_newest};
use lock::LOCK_FILE;
pub use lock::RunLock;
pub use status::{RunState, Status};
pub use sweep_file::{Plan, Rung, Sweep};
pub(crate) use untrained::UntrainedRun;

const SETTINGS_FILE: &str = "hyperparameters.json";
const MODEL_FILE: &str = "model_hyperparameters.json";
const LOSSES_FILE: &str = "losses.json";
const RATES_FILE: &str = "lrs.json";
const STATUS_FILE: &str = "status.json";
/// One JSON object per step and epoch.
pub(crate) const METRICS_FILE: &str = "metrics.jsonl";
/// Links to checkpoints.
const LATEST: &str = "latest";
const BEST: &str = "best";

/// The directory of one run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// The run at `path`, which may not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last component of the path, resolved if it is something like `.`; `run` for the root directory.
    pub fn name(&self) -> String {
        let name = |path: &Path| Some(path.file_name()?.to_string_lossy().into_owned());
        name(&self.path).or_else(|| name(&self.path.canonicalize().ok()?)).unwrap_or_else(|| "run".to_owned())
    }

    /// Checks that a new run may be written here, without changing anything.
    ///
    /// # Errors
    /// If the path is not a directory, if it holds a run and `overwrite` is not set, or if a file would be overwritten that
    /// folio cannot verify it wrote.
    pub fn check_free(&self, overwrite: bool) -> Result<()> {
        if self.path.exists() && !self.path.is_dir() {
            return Err(self.error("is not a directory: give another --run_dir"));
        }
        let remains = ownership::removable(self)?;
        if !overwrite && !remains.is_empty() {
            let path = self.path.display();
            return Err(self.error(&format!(
                "already holds a run: continue it with --resume {path}, give another --run_dir, or replace it with --overwrite"
            )));
        }
        Ok(())
    }

    /// Removes the files, checkpoints and sub-runs of an earlier run or sweep, and nothing else.
    ///
    /// # Errors
    /// If folio cannot verify that it wrote one of them; then nothing is removed. Or if one cannot be removed.
    pub fn clear(&self) -> Result<()> {
        ownership::removable(self)?.iter().try_for_each(|path| remove(path))
    }

    /// Removes the checkpoints after the end of epoch `number`.
    ///
    /// # Errors
    /// If one of them contains a file that folio did not write; then nothing is removed. Or if one cannot be removed.
    pub fn clear_after(&self, number: u64) -> Result<()> {
        let later = self.later_than(number)?;
        later.iter().try_for_each(|name| ownership::check_checkpoint(&self.checkpoint(*name)))?;
        later.into_iter().try_for_each(|name| self.remove_checkpoint(name))
    }

    /// The checkpoints after the end of epoch `number`, the newest last.
    pub fn later_than(&self, number: u64) -> Result<Vec<CheckpointName>> {
        let mut names = self.by_age()?;
        names.retain(|&name| match name {
            CheckpointName::Epoch(epoch) => epoch > number,
            // One that cannot be read counts as later.
            CheckpointName::Step(_) => self.epochs_before(name).is_none_or(|epochs| epochs >= number),
        });
        Ok(names)
    }

    /// Creates the directory and its parents, and removes temporary files left by a killed process.
    pub fn create(&self) -> Result<()> {
        create_directory(&self.path)?;
        remove_rubbish(&self.path)
    }

    /// Writes the settings, the model configuration and the tokenizer. Settings come first: a run that has them can be
    /// resumed.
    pub fn write_description(
        &self,
        settings: &Settings,
        model: &ModelConfig,
        tokenizer: &Tokenizer,
    ) -> Result<()> {
        write_json(&self.path.join(SETTINGS_FILE), settings)?;
        write_json(&self.path.join(MODEL_FILE), model)?;
        tokenizer.save(&self.path)
    }

    /// Whether the directory holds the settings of a run.
    pub fn is_run(&self) -> bool {
        self.path.join(SETTINGS_FILE).is_file()
    }

    /// Writes `status.json`.
    pub fn write_status(&self, status: &Status) -> Result<()> {
        write_json(&self.path.join(STATUS_FILE), status)
    }

    /// The status as it was last written. None if the file is missing or damaged, since nothing depends on it. Whether
    /// the run is still training is up to [`RunLock::is_held`].
    pub fn status(&self) -> Option<Status> {
        self.read_if_there(STATUS_FILE).ok().flatten()
    }

    /// The state that `status` records. A run that is marked as running without a process that holds its lock is
    /// `killed`.
    pub fn state_name(&self, status: &Status) -> &'static str {
        match status.state {
            RunState::Running if !RunLock::is_held(self) => "killed",
            state => state.name(),
        }
    }

    /// Records in the status that output could not be printed.
    pub fn note_lost_output(&self, lost: &str) -> Result<()> {
        match self.status() {
            Some(status) => self.write_status(&Status { lost_output: Some(lost.to_owned()), ..status }),
            None => Ok(()),
        }
    }

    /// Writes `losses.json` and `lrs.json`.
    pub fn write_history(&self, history: &History) -> Result<()> {
        write_json(&self.path.join(LOSSES_FILE), &LossLists::of(history))?;
        let rates: Vec<f64> = history.epochs.iter().map(|epoch| epoch.learning_rate).collect();
        write_json(&self.path.join(RATES_FILE), &rates)
    }

    /// The settings of the run.
    pub fn settings(&self) -> Result<Settings> {
        self.check_is_run()?;
        read_json(&self.path.join(SETTINGS_FILE))
    }

    /// The configuration of the run's model.
    pub fn model_config(&self) -> Result<ModelConfig> {
        self.check_is_run()?;
        let config: ModelConfig = read_json(&self.path.join(MODEL_FILE))?;
        config.validate()?;
        Ok(config)
    }

    /// The run's tokenizer.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        self.check_is_run()?;
        Tokenizer::load(&self.path)
    }

    /// The losses and learning rates of the run, if they were saved. Values that the files lack are NaN, such as the
    /// bits per character of runs of older versions.
    pub fn history(&self) -> Result<Option<History>> {
        let Some(losses) = self.read_if_there::<LossLists>(LOSSES_FILE)? else { return Ok(None) };
        let rates: Vec<f64> = self.read_if_there(RATES_FILE)?.unwrap_or_default();
        Ok(Some(losses.into_history(&rates)))
    }

    /// Writes a checkpoint and [applies the retention policy](RunDir::apply_retention). If the process is killed at any point, the
    /// newest complete checkpoint exists and `latest` points to it or to the one before.
    ///
    /// # Errors
    /// If something cannot be written or removed. Earlier checkpoints are kept.
    pub fn save_checkpoint(
        &self,
        name: CheckpointName,
        keep: Keep,
        tensors: Tensors<'_>,
        state: &TrainingState,
        tokenizer: &Tokenizer,
    ) -> Result<PathBuf> {
        let path = self.checkpoint(name);
        checkpoint::save(&path, tensors, state, tokenizer)?;
        self.apply_retention(name, keep, &state.history)?;
        Ok(path)
    }

    /// Writes the checkpoint of a model that was not trained, which has no moments.
    ///
    /// # Errors
    /// If it cannot be written.
    fn save_model(
        &self,
        name: CheckpointName,
        parameters: &Parameters,
        state: &TrainingState,
        tokenizer: &Tokenizer,
    ) -> Result<()> {
        let tensors = Tensors { parameters, moments: None, average: None };
        checkpoint::save(&self.checkpoint(name), tensors, state, tokenizer)?;
        update_symlink(&self.path.join(LATEST), &name.to_string())
    }

    /// The path of a checkpoint, which may not exist yet.
    pub fn checkpoint(&self, name: CheckpointName) -> PathBuf {
        self.path.join(name.to_string())
    }

    /// The saved checkpoints: those after epochs in ascending order, then those inside epochs.
    pub fn checkpoints(&self) -> Result<Vec<CheckpointName>> {
        let mut names: Vec<_> =
            self.directories()?.iter().filter_map(|name| CheckpointName::parse(name)).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// The epochs with a checkpoint, in ascending order.
    pub fn epochs(&self) -> Result<Vec<u64>> {
        let epoch = |name| if let CheckpointName::Epoch(epoch) = name { Some(epoch) } else { None };
        Ok(self.checkpoints()?.into_iter().filter_map(epoch).collect())
    }

    /// Opens a checkpoint.
    ///
    /// # Errors
    /// If it is damaged, or does not exist; then the error lists those that do.
    pub fn open_checkpoint(&self, name: CheckpointName) -> Result<Checkpoint> {
        self.check_is_run()?;
        let path = self.checkpoint(name);
        if path.is_dir() {
            return Checkpoint::open(&path);
        }
        let saved = self.checkpoints()?;
        if saved.is_empty() {
            return Err(self.error("holds no checkpoint: none was saved yet, or they were removed"));
        }
        let list: Vec<String> = saved
            .iter()
            .map(|name| match name {
                CheckpointName::Epoch(epoch) => epoch.to_string(),
                step => step.to_string(),
            })
            .collect();
        let number = name.to_string().replace('_', " ");
        Err(self.error(&format!("holds no {number}: there are {}", list.join(", "))))
    }

    /// The newest resumable checkpoint, with all its files verified; none if there is none. With `skip_damaged`, damaged
    /// checkpoints are skipped and returned as the second value.
    ///
    /// # Errors
    /// If the newest is damaged and `skip_damaged` is not set. The error names the newest intact one.
    pub fn newest(&self, skip_damaged: bool) -> Result<(Option<Checkpoint>, Vec<CheckpointName>)> {
        let mut damage: Vec<(CheckpointName, Error)> = Vec::new();
        let mut found = None;
        for name in self.by_age()?.into_iter().rev() {
            let checkpoint = Checkpoint::open(&self.checkpoint(name)).and_then(|checkpoint| {
                // Verify everything now, rather than fail on a damaged file later.
                if checkpoint.is_resumable() {
                    checkpoint.verify()?
                }
                Ok(checkpoint)
            });
            match checkpoint {
                Ok(checkpoint) if checkpoint.is_resumable() => {
                    found = Some(checkpoint);
                    break;
                }
                Ok(_) => {}
                Err(error) => damage.push((name, error)),
            }
        }
        if skip_damaged || damage.is_empty() {
            return Ok((found, damage.into_iter().map(|(name, _)| name).collect()));
        }
        let (_, error) = damage.swap_remove(0);
        let offer = found
            .map_or("the beginning of the run".to_owned(), |found| found.directory().display().to_string());
        let reason = format!("{error}; --skip_damaged resumes from {offer}");
        Err(Error::RunDirectory { path: self.path.clone(), reason })
    }

    /// The epochs that were completed when a checkpoint was saved; none if it cannot be read.
    fn epochs_before(&self, name: CheckpointName) -> Option<u64> {
        Checkpoint::open(&self.checkpoint(name)).ok().map(|checkpoint| checkpoint.state().epoch)
    }

    /// The runs of this sweep, in order; empty if this is not a sweep.
    pub fn sub_runs(&self) -> Result<Vec<RunDir>> {
        let names = self.directories()?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| number_of_run(name)).collect();
        numbers.sort_unstable();
        Ok(numbers.iter().map(|number| RunDir::new(self.path.join(format!("run_{number}")))).collect())
    }

    /// The directory of a sweep's run, counting from 0.
    pub fn sub_run(&self, index: usize) -> RunDir {
        RunDir::new(self.path.join(sub_run_name(index)))
    }

    /// This run, or the runs of this sweep.
    ///
    /// # Errors
    /// If this is neither a run nor a sweep.
    pub fn runs(&self) -> Result<Vec<RunDir>> {
        let sub_runs = self.sub_runs()?;
        if sub_runs.is_empty() {
            self.check_is_run()?;
            return Ok(vec![self.clone()]);
        }
        Ok(sub_runs)
    }

    /// The checkpoint with the lowest evaluation loss of this run or of all runs of this sweep: its run and its name.
    /// Evaluations without a checkpoint do not count.
    ///
    /// # Errors
    /// If there is no checkpoint, or no run saved its losses.
    pub fn best(&self) -> Result<(RunDir, CheckpointName)> {
        let mut best = Vec::new();
        let mut lacks = "has no losses.json, so the best model is unknown: give --checkpoint_step";
        for run in self.runs()? {
            let Some(history) = run.history()? else { continue };
            lacks = "holds no checkpoint: none was saved yet, or they were removed";
            let Some((loss, name)) = run.best_checkpoint(&history)? else { continue };
            best.push((loss, (run, name)));
        }
        lowest_loss(best).map(|(_, checkpoint)| checkpoint).ok_or_else(|| self.error(lacks))
    }

    /// The lowest evaluation loss of the checkpoints, and its checkpoint.
    fn best_checkpoint(&self, history: &History) -> Result<Option<(f64, CheckpointName)>> {
        let (epochs, steps) = (history.eval_losses(), history.step_losses());
        let with_loss = |name: CheckpointName| Some((name.eval_loss(&epochs, &steps)?, name));
        Ok(lowest_loss(self.checkpoints()?.into_iter().filter_map(with_loss)))
    }

    /// Checks that this is a run.
    fn check_is_run(&self) -> Result<()> {
        if !self.path.exists() {
            return Err(self.error("does not exist: give the --run_dir of a training run"));
        }
        if !self.is_run() {
            return Err(self.error("is not a folio run: it has no hyperparameters.json"));
        }
        Ok(())
    }

    /// The names of the subdirectories.
    fn directories(&self) -> Result<Vec<String>> {
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::file("read", &self.path)(error)),
        };
        let entries = entries.filter_map(std::result::Result::ok);
        let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        Ok(directories.filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }

    fn read_if_there<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.path.join(name);
        if path.is_file() { read_json(&path).map(Some) } else { Ok(None) }
    }

    fn error(&self, reason: &str) -> Error {
        Error::RunDirectory { path: self.path.clone(), reason: reason.to_owned() }
    }
}

/// The name of a sweep's run, counting from 0: `run_1` is the first.
pub fn sub_run_name(index: usize) -> String {
    format!("run_{}", index + 1)
}

/// The number in the name of a sweep's run; none for other names, such as `run_007`.
fn number_of_run(name: &str) -> Option<u64> {
    let number: u64 = name.strip_prefix("run_")?.parse().ok()?;
    (format!("run_{number}") == name).then_some(number)
}

fn remove(path: &Path) -> Result<()> {
    let removed =
        if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map_err(Error::file("remove", path))
}
