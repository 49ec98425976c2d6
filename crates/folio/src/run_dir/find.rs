//! Finds the checkpoint that a path refers to.
//!
//! ```text
//! runs/quick               the checkpoint with the lowest evaluation loss; the newest if no losses were saved
//! runs/quick/best          the same
//! runs/quick/latest        the newest checkpoint
//! runs/quick/checkpoint_5  the checkpoint of epoch 5
//! runs/search              the best checkpoint of all runs of a sweep
//! runs                     the run or sweep in this directory that saved a checkpoint last
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{BEST, LATEST, RunDir};
use crate::checkpoint::CheckpointName;
use crate::error::{Error, Result};
use crate::history::lowest_loss;

/// The directory to search for runs if no path is given.
pub const RUNS: &str = "runs";

/// What a path refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A run.
    Run(RunDir),
    /// A checkpoint of a run.
    Checkpoint(RunDir, Pick),
    /// A sweep of runs.
    Sweep(RunDir),
    /// The runs and sweeps of a directory, sorted by name.
    Directory(Vec<RunDir>),
}

/// Which checkpoint of a run to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pick {
    /// The one with the lowest evaluation loss; the newest if no losses were saved.
    #[default]
    Best,
    /// The newest.
    Latest,
    /// The one with this name.
    Named(CheckpointName),
}

/// A checkpoint of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Saved {
    /// Its name.
    pub name: CheckpointName,
    /// Its directory.
    pub path: PathBuf,
    /// When it was saved.
    pub modified: SystemTime,
    /// The evaluation loss of its moment, if there was an evaluation, nats per token.
    pub eval_loss: Option<f64>,
}

/// The checkpoint that a path refers to.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The run or sweep that the path refers to.
    pub directory: RunDir,
    /// The run of the checkpoint.
    pub run: RunDir,
    /// The checkpoint.
    pub checkpoint: Saved,
    /// How it was selected.
    pub pick: Pick,
}

/// The checkpoint that a path refers to; without a path, the one of the newest run in [`RUNS`].
///
/// # Errors
/// If the path does not exist, or no checkpoint was saved.
pub fn find(path: Option<&Path>) -> Result<Found> {
    let (directory, pick) = match locate_or_newest(path)? {
        Place::Run(run) => (run, Pick::Best),
        Place::Checkpoint(run, pick) => (run, pick),
        Place::Sweep(sweep) => return find_in_sweep(sweep),
        Place::Directory(_) => unreachable!("one of its runs was chosen"),
    };
    let saved = directory.saved()?;
    if let Pick::Named(name) = pick
        && !saved.iter().any(|saved| saved.name == name)
    {
        directory.open_checkpoint(name)?;
    }
    let Some(index) = pick.index(&saved) else {
        return Err(directory.no_checkpoint());
    };
    Ok(Found { run: directory.clone(), directory, checkpoint: saved[index].clone(), pick })
}

/// What a path refers to, where a directory of runs refers to the newest run or sweep in it.
///
/// # Errors
/// If the path does not exist, or no run in the directory has saved a checkpoint.
pub fn locate_or_newest(path: Option<&Path>) -> Result<Place> {
    let runs = path.unwrap_or(Path::new(RUNS));
    let nothing = || {
        let reason = match path {
            Some(_) => {
                "holds no run with a checkpoint: name another directory, or train a model with folio train"
            }
            None => {
                "holds no run with a checkpoint: name a run's directory, or train a model with folio train"
            }
        };
        RunDir::new(runs).error(reason)
    };
    let children = match locate(runs) {
        Ok(Place::Directory(children)) => children,
        Err(_) if path.is_none() => return Err(nothing()),
        other => return other,
    };
    // For equal times, the last by name.
    let saved_last = |directory: &RunDir| {
        let runs = std::iter::once(directory.clone()).chain(directory.sub_runs().unwrap_or_default());
        runs.flat_map(|run| run.saved().unwrap_or_default()).map(|saved| saved.modified).max()
    };
    let newest = children.into_iter().filter_map(|child| Some((saved_last(&child)?, child)));
    let (_, newest) = newest.max_by_key(|(time, _)| *time).ok_or_else(nothing)?;
    run_or_sweep(newest.path()).ok_or_else(nothing)
}

/// What a path refers to.
///
/// # Errors
/// If there is nothing at the path that folio wrote.
pub fn locate(path: &Path) -> Result<Place> {
    if let Some(place) = run_or_sweep(path) {
        return Ok(place);
    }
    if let Some((run, pick)) = checkpoint_of(path) {
        return Ok(Place::Checkpoint(run, pick));
    }
    let directory = RunDir::new(path);
    if !path.exists() {
        return Err(directory.error("does not exist: give the --run_dir of a training run"));
    }
    if !path.is_dir() {
        return Err(directory.error("is not a directory: give the --run_dir of a training run"));
    }
    let entries = fs::read_dir(path).map_err(Error::file("read", path))?.filter_map(std::result::Result::ok);
    let mut children: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    children.sort();
    let children = children.iter().filter(|child| run_or_sweep(child).is_some()).map(RunDir::new);
    let children: Vec<RunDir> = children.collect();
    if children.is_empty() {
        return Err(directory.error(
            "is not a folio run: neither it nor a directory in it has a hyperparameters.json; give the \
             --run_dir of a training run, or a directory of runs",
        ));
    }
    Ok(Place::Directory(children))
}

fn run_or_sweep(path: &Path) -> Option<Place> {
    let directory = RunDir::new(path);
    let is_sweep = || directory.sub_runs().is_ok_and(|runs| runs.iter().any(RunDir::is_run));
    if directory.is_run() {
        // If a directory is both a run and a sweep, it counts as a sweep unless the run itself has checkpoints.
        let is_empty = directory.checkpoints().is_ok_and(|names| names.is_empty());
        return Some(if is_empty && is_sweep() { Place::Sweep(directory) } else { Place::Run(directory) });
    }
    is_sweep().then_some(Place::Sweep(directory))
}

/// The run and the checkpoint that a path names; the checkpoint may not exist.
fn checkpoint_of(path: &Path) -> Option<(RunDir, Pick)> {
    let named = |path: &Path| {
        let pick = match path.file_name()?.to_str()? {
            BEST => Pick::Best,
            LATEST => Pick::Latest,
            name => Pick::Named(CheckpointName::parse(name)?),
        };
        let parent = path.parent()?;
        let run = RunDir::new(if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
        run.is_run().then_some((run, pick))
    };
    // `.` inside a checkpoint, or a link from elsewhere, has the name only once resolved.
    named(path).or_else(|| named(&path.canonicalize().ok()?))
}

/// The best checkpoint of all runs of a sweep; the newest if no losses were saved.
fn find_in_sweep(sweep: RunDir) -> Result<Found> {
    let mut all: Vec<(RunDir, Saved)> = Vec::new();
    for run in sweep.sub_runs()? {
        all.extend(run.saved()?.into_iter().map(|saved| (run.clone(), saved)));
    }
    let saved: Vec<Saved> = all.iter().map(|(_, saved)| saved.clone()).collect();
    let newest = || (0..saved.len()).max_by_key(|&index| saved[index].modified);
    let index = best_index(&saved).or_else(newest).ok_or_else(|| sweep.no_checkpoint())?;
    let (run, checkpoint) = all.swap_remove(index);
    Ok(Found { directory: sweep, run, checkpoint, pick: Pick::Best })
}

/// The index of the checkpoint with the lowest evaluation loss.
fn best_index(saved: &[Saved]) -> Option<usize> {
    let losses = saved.iter().enumerate().filter_map(|(index, saved)| Some((saved.eval_loss?, index)));
    lowest_loss(losses).map(|(_, index)| index)
}

impl Pick {
    /// The index of the checkpoint in what [`RunDir::saved`] returns.
    pub fn index(self, saved: &[Saved]) -> Option<usize> {
        let newest = saved.len().checked_sub(1);
        match self {
            Self::Best => best_index(saved).or(newest),
            Self::Latest => newest,
            Self::Named(name) => saved.iter().position(|saved| saved.name == name),
        }
    }
}

impl Found {
    /// A description for people: which checkpoint it is, and why.
    pub fn describe(&self) -> String {
        let path = self.checkpoint.path.display();
        match (self.pick, self.checkpoint.eval_loss) {
            (Pick::Best, Some(loss)) => format!("{path}, the best by evaluation loss ({loss:.4})"),
            (Pick::Best, None) => format!("{path}, the newest; the run has no evaluation losses"),
            (Pick::Latest, _) => format!("{path}, the newest"),
            (Pick::Named(_), _) => format!("{path}"),
        }
    }
}

impl RunDir {
    /// The checkpoints with their evaluation losses, the newest last.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn saved(&self) -> Result<Vec<Saved>> {
        let losses =
            self.history().ok().flatten().map(|history| (history.eval_losses(), history.step_losses()));
        let from_status = || self.status().map(|status| (status.eval_losses, status.step_losses));
        let (epochs, steps) = losses.or_else(from_status).unwrap_or_default();
        let eval_loss = |name: CheckpointName| name.eval_loss(&epochs, &steps);
        let saved = |name| {
            let path = self.checkpoint(name);
            // Leaves out a checkpoint that was removed in the meantime.
            let modified = path.metadata().and_then(|metadata| metadata.modified()).ok()?;
            Some(Saved { name, path, modified, eval_loss: eval_loss(name) })
        };
        Ok(self.by_age()?.into_iter().filter_map(saved).collect())
    }

    fn no_checkpoint(&self) -> Error {
        self.error("holds no checkpoint: none was saved yet, or they were removed")
    }
}
