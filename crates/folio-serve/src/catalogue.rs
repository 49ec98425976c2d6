//! Which runs and checkpoints there are, and what they are called.
//!
//! A client names a model by a text that is looked for in a list which was made from the directories; what it sends
//! never becomes part of a path.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use folio::checkpoint::CheckpointName;
use folio::run_dir::{RunDir, RunLock};

use crate::errors::Error;

/// The directories that are served, and what was in them when they were last read.
pub(crate) struct Catalogue {
    roots: Vec<PathBuf>,
    refresh_time: Duration,
    listing: Mutex<Option<(Instant, Arc<Listing>)>>,
}

/// All runs, in the order of the directories given and of their names there.
#[derive(Default)]
pub(crate) struct Listing {
    pub(crate) runs: Vec<Run>,
}

/// A run with its checkpoints.
#[derive(Clone)]
pub(crate) struct Run {
    /// The last component of its directory, after that of its sweep if it is part of one.
    pub(crate) id: String,
    pub(crate) directory: RunDir,
    /// Those after epochs, ascending, then the one inside an epoch.
    pub(crate) checkpoints: Vec<Saved>,
    /// The place of the one with the lowest evaluation loss, else of the newest.
    pub(crate) best: usize,
}

/// A checkpoint.
#[derive(Clone)]
pub(crate) struct Saved {
    pub(crate) name: CheckpointName,
    pub(crate) path: PathBuf,
    /// When it was written.
    pub(crate) modified: SystemTime,
    /// The evaluation loss after its epoch, nats a token.
    pub(crate) eval_loss: Option<f64>,
}

impl Catalogue {
    pub(crate) fn new(roots: Vec<PathBuf>, refresh_time: Duration) -> Self {
        Self { roots, refresh_time, listing: Mutex::default() }
    }

    /// Checks that there is something to serve in every directory.
    ///
    /// # Errors
    /// If one holds no run, or none with a checkpoint and none that trains; or if two runs have one name.
    pub(crate) fn check(&self) -> Result<Arc<Listing>, Error> {
        let mut taken: Vec<Run> = Vec::new();
        for root in &self.roots {
            let runs = runs_at(root);
            if runs.is_empty() {
                // What is wrong with it as a run.
                let told = RunDir::new(root).runs().err().map(|error| error.to_string()).unwrap_or_default();
                let reason = match root.is_dir() {
                    true => {
                        "is neither a run of folio's nor a directory of runs: give the --run_dir of a training run"
                    }
                    false if root.exists() => "is not a directory: give the --run_dir of a training run",
                    false => told.split_once(": ").map_or("does not exist", |(_, reason)| reason),
                };
                return Err(Error::NoRuns { path: root.display().to_string(), reason: reason.to_owned() });
            }
            if runs.iter().all(|run| run.checkpoints.is_empty() && !RunLock::is_held(&run.directory)) {
                let reason = "holds no checkpoint: none was saved yet, or they were removed".to_owned();
                return Err(Error::NoRuns { path: root.display().to_string(), reason });
            }
            for run in runs {
                if let Some(first) = taken.iter().find(|first| first.id == run.id) {
                    let [first, second] = [first, &run].map(|run| run.directory.path().display().to_string());
                    return Err(Error::SameName { name: run.id, first, second });
                }
                taken.push(run);
            }
        }
        Ok(Arc::new(Listing { runs: taken }))
    }

    /// What there is now, or was a moment ago. Reads directories.
    pub(crate) fn listing(&self) -> Arc<Listing> {
        // Whoever comes while another reads waits for what that one finds.
        let mut known = self.listing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((read_at, listing)) = &*known
            && read_at.elapsed() < self.refresh_time
        {
            return Arc::clone(listing);
        }
        let mut names = HashSet::new();
        let mut runs: Vec<Run> = self.roots.iter().flat_map(|root| runs_at(root)).collect();
        // A run that began later under a name that is taken is left out.
        runs.retain(|run| names.insert(run.id.clone()));
        let listing = Arc::new(Listing { runs });
        *known = Some((Instant::now(), Arc::clone(&listing)));
        listing
    }
}

impl Listing {
    /// The checkpoint of this name, and its run.
    pub(crate) fn find(&self, id: &str) -> Option<(&Run, &Saved)> {
        self.runs.iter().find_map(|run| {
            let rest = id.strip_prefix(&run.id)?;
            if rest.is_empty() {
                return Some((run, run.checkpoints.get(run.best)?));
            }
            let name = rest.strip_prefix(':')?;
            run.checkpoints.iter().find(|saved| saved.name.to_string() == name).map(|saved| (run, saved))
        })
    }
}

impl Run {
    /// Reads what there is of a run.
    fn read(id: String, directory: RunDir) -> Self {
        let losses = directory.losses().ok().flatten().map(|losses| losses.eval_losses);
        let told = || Some(directory.status()?.eval_losses);
        let eval_losses = losses.or_else(told).unwrap_or_default();
        let loss = |name| match name {
            CheckpointName::Epoch(epoch) => {
                eval_losses.get(usize::try_from(epoch).ok()?.checked_sub(1)?).copied()
            }
            CheckpointName::Step(_) => None,
        };
        let saved = |name| {
            let path = directory.checkpoint(name);
            // One that was removed just now is none.
            let modified = path.metadata().and_then(|metadata| metadata.modified()).ok()?;
            Some(Saved { name, path, modified, eval_loss: loss(name) })
        };
        let checkpoints: Vec<Saved> =
            directory.names().unwrap_or_default().into_iter().filter_map(saved).collect();
        let losses =
            checkpoints.iter().enumerate().filter_map(|(place, saved)| Some((saved.eval_loss?, place)));
        let best = losses.reduce(|best, next| if next.0 < best.0 { next } else { best });
        let best = best.map_or(checkpoints.len().saturating_sub(1), |(_, place)| place);
        Self { id, directory, checkpoints, best }
    }
}

/// The runs at a path: that run, those of that sweep, or of every run and sweep in that directory.
fn runs_at(root: &Path) -> Vec<Run> {
    // `folio serve .` has a name, too.
    let whole = root.canonicalize().unwrap_or_else(|_| root.to_path_buf());
    let own = runs_of(&name_of(&whole), root);
    if !own.is_empty() {
        return own;
    }
    let entries = fs::read_dir(root).into_iter().flatten().filter_map(Result::ok);
    let mut children: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    children.sort();
    children.iter().flat_map(|child| runs_of(&name_of(child), child)).collect()
}

/// The run in a directory, or those of the sweep there.
fn runs_of(name: &str, path: &Path) -> Vec<Run> {
    let directory = RunDir::new(path);
    let sub_runs = directory.sub_runs().unwrap_or_default().into_iter();
    let sub_runs = sub_runs.map(|run| (format!("{name}/{}", name_of(run.path())), run));
    let own = (name.to_owned(), directory);
    let all = std::iter::once(own).chain(sub_runs).filter(|(_, run)| run.is_run());
    all.map(|(id, run)| Run::read(id, run)).collect()
}

fn name_of(path: &Path) -> String {
    path.file_name().map_or_else(|| "run".to_owned(), |name| name.to_string_lossy().into_owned())
}
