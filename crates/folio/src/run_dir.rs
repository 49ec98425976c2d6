//! The files of a run, and of a sweep of runs.
//!
//! ```text
//! RUN_DIR/hyperparameters.json  model_hyperparameters.json  tokenizer.json  vocab.json  losses.json  lrs.json
//!         checkpoint_N/         after epoch N
//!         run_1/ run_2/ …       the runs of a sweep, each laid out like a run
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::{create_directory, read_json, write_json};
use crate::history::{History, Losses};
use crate::model::ModelConfig;
use crate::settings::Settings;
use crate::tokenizer::Tokenizer;

const SETTINGS_FILE: &str = "hyperparameters.json";
const MODEL_FILE: &str = "model_hyperparameters.json";
const LOSSES_FILE: &str = "losses.json";
const RATES_FILE: &str = "lrs.json";
/// Every file that a run writes besides its checkpoints; the figures are those of `folio plot`.
const FILES: [&str; 8] = [
    SETTINGS_FILE,
    MODEL_FILE,
    LOSSES_FILE,
    RATES_FILE,
    "vocab.json",
    "tokenizer.json",
    "losses.svg",
    "losses.png",
];

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

    /// Checks that a new run may be written here; touches nothing.
    ///
    /// # Errors
    /// If the path is not a directory, or holds a run and `overwrite` is not set.
    pub fn check_free(&self, overwrite: bool) -> Result<()> {
        if self.path.exists() && !self.path.is_dir() {
            return Err(self.error("is not a directory: give another --run_dir"));
        }
        if !overwrite && !self.remains()?.is_empty() {
            return Err(
                self.error("already holds a run: give another --run_dir, or --overwrite to replace it")
            );
        }
        Ok(())
    }

    /// Removes what an earlier run left here: its files, its checkpoints and its sub-runs, nothing else.
    pub fn clear(&self) -> Result<()> {
        self.remains()?.iter().try_for_each(|path| remove(path))
    }

    /// Removes the checkpoints of later epochs than `number`.
    pub fn clear_checkpoints_after(&self, number: u64) -> Result<()> {
        let later = self.checkpoints()?.into_iter().filter(|&saved| saved > number);
        later.map(|saved| self.checkpoint(saved)).try_for_each(|path| remove(&path))
    }

    /// What there is of a run.
    fn remains(&self) -> Result<Vec<PathBuf>> {
        let files = FILES.iter().map(|name| self.path.join(name)).filter(|path| path.exists());
        let checkpoints = self.checkpoints()?.into_iter().map(|number| self.checkpoint(number));
        let runs = self.sub_runs()?.into_iter().map(|run| run.path);
        Ok(files.chain(checkpoints).chain(runs).collect())
    }

    /// Makes the directory and writes what describes the run.
    pub fn write_description(
        &self,
        settings: &Settings,
        model: &ModelConfig,
        tokenizer: &Tokenizer,
    ) -> Result<()> {
        create_directory(&self.path)?;
        write_json(&self.path.join(SETTINGS_FILE), settings)?;
        write_json(&self.path.join(MODEL_FILE), model)?;
        tokenizer.save(&self.path)
    }

    /// Writes the losses and rates so far.
    pub fn write_history(&self, history: &History) -> Result<()> {
        write_json(&self.path.join(LOSSES_FILE), &history.losses)?;
        write_json(&self.path.join(RATES_FILE), &history.learning_rates)
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

    /// The run's losses, if they were saved.
    pub fn losses(&self) -> Result<Option<Losses>> {
        self.read_if_there(LOSSES_FILE)
    }

    /// The run's learning rates, if they were saved.
    pub fn learning_rates(&self) -> Result<Option<Vec<f64>>> {
        self.read_if_there(RATES_FILE)
    }

    /// Where checkpoint `number` is or will be.
    pub fn checkpoint(&self, number: u64) -> PathBuf {
        self.path.join(format!("checkpoint_{number}"))
    }

    /// The numbers of the checkpoints that were saved, ascending.
    pub fn checkpoints(&self) -> Result<Vec<u64>> {
        self.numbered("checkpoint_")
    }

    /// The path of a checkpoint that exists.
    ///
    /// # Errors
    /// If it was not saved; the error lists those that were.
    pub fn existing_checkpoint(&self, number: u64) -> Result<PathBuf> {
        self.check_is_run()?;
        let path = self.checkpoint(number);
        if path.is_dir() {
            return Ok(path);
        }
        let saved = self.checkpoints()?;
        if saved.is_empty() {
            return Err(self.error("holds no checkpoint: train with --save_checkpoint"));
        }
        let saved: Vec<String> = saved.iter().map(u64::to_string).collect();
        Err(self.error(&format!("holds no checkpoint {number}: there are {}", saved.join(", "))))
    }

    /// The runs of the sweep that is here, in order; empty if this is not a sweep.
    pub fn sub_runs(&self) -> Result<Vec<RunDir>> {
        let numbers = self.numbered("run_")?;
        Ok(numbers.iter().map(|number| RunDir::new(self.path.join(format!("run_{number}")))).collect())
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
        let mut best: Option<(f64, RunDir, u64)> = None;
        let mut lacks = "has no losses.json to find the best model by: train with --save_losses";
        for run in self.runs()? {
            let Some(losses) = run.losses()? else { continue };
            lacks = "holds no checkpoint: train with --save_checkpoint";
            for number in run.checkpoints()? {
                let index = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
                let Some(&loss) = index.and_then(|index| losses.eval_losses.get(index)) else { continue };
                if best.as_ref().is_none_or(|(lowest, ..)| loss < *lowest) {
                    best = Some((loss, run.clone(), number));
                }
            }
        }
        best.map(|(_, run, epoch)| (run, epoch)).ok_or_else(|| self.error(lacks))
    }

    /// Checks that there is a run here.
    fn check_is_run(&self) -> Result<()> {
        if !self.path.exists() {
            return Err(self.error("does not exist: give the --run_dir of a training run"));
        }
        if !self.path.join(SETTINGS_FILE).is_file() {
            return Err(self.error("is not a run of folio's: it has no hyperparameters.json"));
        }
        Ok(())
    }

    /// The numbers N of the directories named `prefix`N, ascending.
    fn numbered(&self, prefix: &str) -> Result<Vec<u64>> {
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::file("read", &self.path)(error)),
        };
        let mut numbers: Vec<u64> = entries
            .filter_map(std::result::Result::ok)
            .filter(|entry| entry.path().is_dir())
            .filter_map(|entry| entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok())
            .collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn read_if_there<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.path.join(name);
        if path.is_file() { read_json(&path).map(Some) } else { Ok(None) }
    }

    fn error(&self, reason: &str) -> Error {
        Error::RunDirectory { path: self.path.clone(), reason: reason.to_owned() }
    }
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map_err(Error::file("remove", path))
}
