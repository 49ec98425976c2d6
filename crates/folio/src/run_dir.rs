//! The files of a run, and of a sweep of runs.
//!
//! ```text
//! RUN_DIR/hyperparameters.json  model_hyperparameters.json  losses.json  lrs.json
//!         tokenizer.json  tokenizer_config.json  vocab.json
//!         status.json           whether it trains, has ended, was stopped or failed
//!         metrics.jsonl         the records of every step and epoch
//!         events.out.tfevents.N.folio   the same for TensorBoard, a file for each start
//!         checkpoint_N/         after epoch N
//!         step_N/               after step N: one at most, and only while no later checkpoint is there
//!         latest  best          links to the newest checkpoint and to the one with the lowest evaluation loss
//!         .lock                 held by the process that writes here
//!         run_1/ run_2/ …       the runs of a sweep, each laid out like a run
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use crate::checkpoint::{self, Checkpoint, CheckpointName, TrainingState};
use crate::error::{Error, Result};
use crate::files::{
    create_directory, read_json, remove_directory, remove_rubbish, update_symlink, write_json,
};
use crate::history::{History, LossLists, lowest_loss};
use crate::model::{ModelConfig, Moments, Parameters};
use crate::settings::{Keep, Settings};
use crate::tokenizer::Tokenizer;

mod event_files;
mod find;
mod lock;
mod ownership;
mod status;

#[cfg(test)]
pub(crate) use event_files::event_files;
use event_files::is_event_file;
#[cfg(feature = "tensorboard")]
pub(crate) use event_files::next_event_file;
pub use find::{Found, Pick, Place, RUNS, Saved, find, locate, locate_or_newest};
use lock::LOCK_FILE;
pub use lock::RunLock;
pub use status::{RunState, Status};

const SETTINGS_FILE: &str = "hyperparameters.json";
const MODEL_FILE: &str = "model_hyperparameters.json";
const LOSSES_FILE: &str = "losses.json";
const RATES_FILE: &str = "lrs.json";
const STATUS_FILE: &str = "status.json";
/// One JSON object for every step and epoch.
pub(crate) const METRICS_FILE: &str = "metrics.jsonl";
/// Links to checkpoints.
const LATEST: &str = "latest";
const BEST: &str = "best";
/// The directory of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// The run at `path`, which need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last component of the path, resolved if it is something like `.`; `run` for the root directory.
    pub fn name(&self) -> String {
        let name = |path: &Path| Some(path.file_name()?.to_string_lossy().into_owned());
        name(&self.path).or_else(|| name(&self.path.canonicalize().ok()?)).unwrap_or_else(|| "run".to_owned())
    }

    /// Checks that a new run may be written here; touches nothing.
    ///
    /// # Errors
    /// If the path is not a directory, if it holds a run and `overwrite` is not set, or if something stands in a run's way
    /// that folio cannot prove it wrote.
    pub fn check_free(&self, overwrite: bool) -> Result<()> {
        if self.path.exists() && !self.path.is_dir() {
            return Err(self.error("is not a directory: give another --run_dir"));
        }
        let remains = ownership::removable(self)?;
        if !overwrite && !remains.is_empty() {
            let path = self.path.display();
            return Err(self.error(&format!(
                "already holds a run: go on with --resume {path}, give another --run_dir, or --overwrite to replace it"
            )));
        }
        Ok(())
    }

    /// Removes what an earlier run or sweep left here: its files, its checkpoints and its sub-runs, nothing else.
    ///
    /// # Errors
    /// If folio cannot prove that it wrote one of them; then all are still there. Or if one cannot be removed.
    pub fn clear(&self) -> Result<()> {
        ownership::removable(self)?.iter().try_for_each(|path| remove(path))
    }

    /// Removes the checkpoints after the end of epoch `number`.
    ///
    /// # Errors
    /// If one of them holds what folio did not write; then all are still there. Or if one cannot be removed.
    pub fn clear_after(&self, number: u64) -> Result<()> {
        let later = self.later_than(number)?;
        later.iter().try_for_each(|name| ownership::check_checkpoint(&self.checkpoint(*name)))?;
        later.into_iter().try_for_each(|name| self.remove_checkpoint(name))
    }

    /// The checkpoints after the end of epoch `number`; one inside an epoch always counts as such.
    pub fn later_than(&self, number: u64) -> Result<Vec<CheckpointName>> {
        let mut names = self.checkpoints()?;
        names.retain(|name| !matches!(name, CheckpointName::Epoch(epoch) if *epoch <= number));
        Ok(names)
    }

    /// Makes the directory if its parent is there, and clears it of what a process that was killed left half-written.
    pub fn create(&self) -> Result<()> {
        create_directory(&self.path)?;
        remove_rubbish(&self.path)
    }

    /// Writes what describes the run. The settings come first: where they are, the run can be resumed.
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

    /// Whether the description is there.
    pub fn is_run(&self) -> bool {
        self.path.join(SETTINGS_FILE).is_file()
    }

    /// Says how the run fares.
    pub fn write_status(&self, status: &Status) -> Result<()> {
        write_json(&self.path.join(STATUS_FILE), status)
    }

    /// The run's status when it was last written; none if it is missing or damaged, because nothing depends on it.
    /// [`RunLock::is_held`] says whether the run still trains.
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

    /// Adds to the status what could not be printed.
    pub fn note_lost_output(&self, lost: &str) -> Result<()> {
        match self.status() {
            Some(status) => self.write_status(&Status { lost_output: Some(lost.to_owned()), ..status }),
            None => Ok(()),
        }
    }

    /// Writes the losses and rates so far.
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

    /// The sizes of the run's model.
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

    /// Writes a checkpoint and [applies the retention policy](RunDir::apply_retention). Whenever it is stopped, the newest checkpoint that was
    /// written in full is there and `latest` leads to it or to the one before.
    ///
    /// # Errors
    /// If something cannot be written or removed. The checkpoints that were there still are.
    pub fn save_checkpoint(
        &self,
        name: CheckpointName,
        keep: Keep,
        parameters: &Parameters,
        moments: &Moments,
        state: &TrainingState,
        tokenizer: &Tokenizer,
    ) -> Result<PathBuf> {
        let path = self.checkpoint(name);
        checkpoint::save(&path, parameters, moments, state, tokenizer)?;
        self.apply_retention(name, keep, &state.history.eval_losses())?;
        Ok(path)
    }

    /// Points the links at what is newest and best, and gives up what `keep` does not keep beside a checkpoint that is
    /// the newest. Also finishes what a stop has left undone.
    ///
    /// # Errors
    /// If something cannot be written or removed.
    pub fn apply_retention(&self, newest: CheckpointName, keep: Keep, eval_losses: &[f64]) -> Result<()> {
        update_symlink(&self.path.join(LATEST), &newest.to_string())?;
        let best = self.best_checkpoint(eval_losses)?.map(|(_, epoch)| epoch).map(CheckpointName::Epoch);
        if let Some(best) = best {
            update_symlink(&self.path.join(BEST), &best.to_string())?;
        }
        let names = self.checkpoints()?;
        let whole = self.kept_whole(&names, newest, best);
        for other in names {
            let path = self.checkpoint(other);
            // What is damaged, such as a later checkpoint that was passed over, or holds what folio did not write, stays.
            let is_later = matches!((other, newest), (CheckpointName::Epoch(other), CheckpointName::Epoch(newest)) if other > newest);
            if whole.contains(&other) || is_later || ownership::check_checkpoint(&path).is_err() {
                continue;
            }
            match (other, keep) {
                (CheckpointName::Step(_), _) | (CheckpointName::Epoch(_), Keep::Best) => {
                    self.remove_checkpoint(other)?;
                }
                (CheckpointName::Epoch(_), Keep::Weights) => checkpoint::strip(&path)?,
                (CheckpointName::Epoch(_), Keep::All) => {}
            }
        }
        Ok(())
    }

    /// The checkpoints that always keep their optimizer: the newest, the best, and the newest two that it can be resumed from,
    /// so that there is one if the newest is damaged.
    fn kept_whole(
        &self,
        names: &[CheckpointName],
        newest: CheckpointName,
        best: Option<CheckpointName>,
    ) -> Vec<CheckpointName> {
        let can_resume = |name: &CheckpointName| {
            *name != newest
                && Checkpoint::open(&self.checkpoint(*name)).is_ok_and(|checkpoint| checkpoint.is_resumable())
        };
        let is_epoch = |name: &&CheckpointName| matches!(name, CheckpointName::Epoch(_)) && **name < newest;
        let mut earlier = names.iter().rev().filter(is_epoch).copied();
        let mut whole = vec![newest];
        whole.extend(best.into_iter().chain(earlier.find(can_resume)));
        whole
    }

    /// Removes a checkpoint, unless it holds something that folio did not write.
    fn remove_checkpoint(&self, name: CheckpointName) -> Result<()> {
        let path = self.checkpoint(name);
        ownership::check_checkpoint(&path)?;
        remove_directory(&path).map_err(Error::file("remove", &path))
    }

    /// Where a checkpoint is or will be.
    pub fn checkpoint(&self, name: CheckpointName) -> PathBuf {
        self.path.join(name.to_string())
    }

    /// The checkpoints that were saved: those after epochs, ascending, then the one inside an epoch.
    pub fn checkpoints(&self) -> Result<Vec<CheckpointName>> {
        let mut names: Vec<_> =
            self.directories()?.iter().filter_map(|name| CheckpointName::parse(name)).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// The epochs after which checkpoints were saved, ascending.
    pub fn epochs(&self) -> Result<Vec<u64>> {
        let epoch = |name| if let CheckpointName::Epoch(epoch) = name { Some(epoch) } else { None };
        Ok(self.checkpoints()?.into_iter().filter_map(epoch).collect())
    }

    /// Opens a checkpoint that was saved.
    ///
    /// # Errors
    /// If it was not saved; the error lists those that were. Or if it is damaged.
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

    /// The newest checkpoint that training can go on from, every byte of it checked; none if nothing was saved.
    /// Damaged ones are passed over and returned beside it, if `skip_damaged` says so.
    ///
    /// # Errors
    /// If the newest is damaged and must not be passed over. The error names the newest that is sound.
    pub fn newest(&self, skip_damaged: bool) -> Result<(Option<Checkpoint>, Vec<CheckpointName>)> {
        let mut damage: Vec<(CheckpointName, Error)> = Vec::new();
        let mut found = None;
        for name in self.by_age()? {
            let checkpoint = Checkpoint::open(&self.checkpoint(name)).and_then(|checkpoint| {
                // All of it, now: a file that turns out to be damaged later has cost the time until then.
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
        let offer =
            found.map_or("the run's beginning".to_owned(), |found| found.directory().display().to_string());
        let reason = format!("{error}; --skip_damaged goes on from {offer}");
        Err(Error::RunDirectory { path: self.path.clone(), reason })
    }

    /// The checkpoints, the newest first. One inside an epoch is newer than those of the epochs that had ended by then.
    fn by_age(&self) -> Result<Vec<CheckpointName>> {
        let mut names = self.checkpoints()?;
        names.sort_by_key(|&name| match name {
            CheckpointName::Epoch(epoch) => (epoch, 0),
            CheckpointName::Step(_) => {
                // If it cannot be read, it is looked at first, so that its damage is told.
                let opened = Checkpoint::open(&self.checkpoint(name));
                (opened.map_or(u64::MAX, |checkpoint| checkpoint.state().epoch), 1)
            }
        });
        names.reverse();
        Ok(names)
    }

    /// The runs of the sweep that is here, in order; empty if this is not a sweep.
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

    /// This run, or the runs of the sweep that is here.
    ///
    /// # Errors
    /// If there is neither.
    pub fn runs(&self) -> Result<Vec<RunDir>> {
        let sub_runs = self.sub_runs()?;
        if sub_runs.is_empty() {
            self.check_is_run()?;
            return Ok(vec![self.clone()]);
        }
        Ok(sub_runs)
    }

    /// Of all checkpoints of all runs here, the one with the lowest evaluation loss: its run and its epoch. An
    /// epoch without a checkpoint, such as those before a resumption, does not count.
    ///
    /// # Errors
    /// If there is no checkpoint, or no run saved its losses.
    pub fn best(&self) -> Result<(RunDir, u64)> {
        let mut best = Vec::new();
        let mut lacks = "has no losses.json to find the best model by: give --checkpoint_step";
        for run in self.runs()? {
            let Some(history) = run.history()? else { continue };
            lacks = "holds no checkpoint: none was saved yet, or they were removed";
            let Some((loss, epoch)) = run.best_checkpoint(&history.eval_losses())? else { continue };
            best.push((loss, (run, epoch)));
        }
        lowest_loss(best).map(|(_, checkpoint)| checkpoint).ok_or_else(|| self.error(lacks))
    }

    /// The lowest evaluation loss of the epochs that have a checkpoint, and its epoch.
    fn best_checkpoint(&self, eval_losses: &[f64]) -> Result<Option<(f64, u64)>> {
        let with_loss = |epoch: u64| {
            let index = usize::try_from(epoch).ok()?.checked_sub(1)?;
            Some((*eval_losses.get(index)?, epoch))
        };
        Ok(lowest_loss(self.epochs()?.into_iter().filter_map(with_loss)))
    }

    /// Checks that there is a run here.
    fn check_is_run(&self) -> Result<()> {
        if !self.path.exists() {
            return Err(self.error("does not exist: give the --run_dir of a training run"));
        }
        if !self.is_run() {
            return Err(self.error("is not a run of folio's: it has no hyperparameters.json"));
        }
        Ok(())
    }

    /// The names of the directories in this one.
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

/// The number of a sweep's run, if this is the name of one: `run_7`, not `run_007`.
fn number_of_run(name: &str) -> Option<u64> {
    let number: u64 = name.strip_prefix("run_")?.parse().ok()?;
    (format!("run_{number}") == name).then_some(number)
}

fn remove(path: &Path) -> Result<()> {
    let removed =
        if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map_err(Error::file("remove", path))
}
