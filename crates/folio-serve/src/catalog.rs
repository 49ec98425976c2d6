//! Finds the runs and checkpoints to serve and gives them names.
//!
//! The name that a client sends is looked up in a list made from the directories. It never becomes part of a path.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use folio::run_dir::{Found, Pick, Place, RunDir, RunLock, Saved, locate};

use crate::errors::Error;

/// The served directories, and the listing from when they were last read.
pub(crate) struct Catalog {
    roots: Vec<PathBuf>,
    may_be_empty: bool,
    refresh_time: Duration,
    cached: Mutex<Option<CachedListing>>,
}

struct CachedListing {
    read_at: Instant,
    listing: Arc<Listing>,
}

/// All runs, in the order of the given directories, then by name.
#[derive(Default)]
pub(crate) struct Listing {
    pub(crate) runs: Vec<Run>,
}

/// A run and its checkpoints.
#[derive(Clone)]
pub(crate) struct Run {
    /// The name of its directory; for a run of a sweep, `SWEEP/RUN`.
    pub(crate) id: String,
    pub(crate) directory: RunDir,
    /// Checkpoints of completed epochs, ascending, then the one inside an epoch.
    pub(crate) checkpoints: Vec<Saved>,
    /// The index of the checkpoint that the run's name alone refers to: the one that the served path names, else the one
    /// with the lowest evaluation loss, else the newest.
    pub(crate) default: usize,
    pick: Pick,
}

impl Catalog {
    pub(crate) fn new(roots: Vec<PathBuf>, may_be_empty: bool, refresh_time: Duration) -> Self {
        Self { roots, may_be_empty, refresh_time, cached: Mutex::default() }
    }

    /// Checks that every directory has something to serve, unless they may be empty.
    ///
    /// # Errors
    /// If a directory holds no run that has a checkpoint or is training, or if two runs have the same name.
    pub(crate) fn check(&self) -> Result<Arc<Listing>, Error> {
        let mut all: Vec<Run> = Vec::new();
        for root in &self.roots {
            let runs = match runs_at(root) {
                Err(_) if self.may_be_empty => continue,
                runs => runs?,
            };
            if !self.may_be_empty
                && runs.iter().all(|run| run.checkpoints.is_empty() && !RunLock::is_held(&run.directory))
            {
                let reason = "holds no checkpoint: none was saved yet, or they were removed".to_owned();
                return Err(Error::NoRuns { path: root.display().to_string(), reason });
            }
            if let [Run { directory, checkpoints, pick: Pick::Named(name), .. }] = &runs[..]
                && !checkpoints.iter().any(|saved| saved.name == *name)
            {
                directory.open_checkpoint(*name)?;
            }
            for run in runs {
                if let Some(first) = all.iter().find(|first| first.id == run.id) {
                    let [first, second] = [first, &run].map(|run| run.directory.path().display().to_string());
                    return Err(Error::SameName { name: run.id, first, second });
                }
                all.push(run);
            }
        }
        Ok(Arc::new(Listing { runs: all }))
    }

    /// The current listing, at most `refresh_time` old. Reads the directories if it is older.
    pub(crate) fn listing(&self) -> Arc<Listing> {
        // The lock is held while reading, so that concurrent requests read the directories once.
        let mut cached = self.cached.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(CachedListing { read_at, listing }) = &*cached
            && read_at.elapsed() < self.refresh_time
        {
            return Arc::clone(listing);
        }
        let mut names = HashSet::new();
        let mut runs: Vec<Run> =
            self.roots.iter().flat_map(|root| runs_at(root).unwrap_or_default()).collect();
        // A later run with a name that is already in use is not served.
        runs.retain(|run| names.insert(run.id.clone()));
        let listing = Arc::new(Listing { runs });
        *cached = Some(CachedListing { read_at: Instant::now(), listing: Arc::clone(&listing) });
        listing
    }
}

impl Listing {
    /// The name of the run with the most recently saved checkpoint.
    pub(crate) fn newest(&self) -> Option<&str> {
        let saved = |run: &Run| run.checkpoints.iter().map(|saved| saved.modified).max();
        let runs = self.runs.iter().filter_map(|run| Some((saved(run)?, run)));
        runs.max_by_key(|(time, _)| *time).map(|(_, run)| run.id.as_str())
    }

    /// The checkpoint with this name, and its run.
    pub(crate) fn find(&self, id: &str) -> Option<(&Run, &Saved)> {
        self.runs.iter().find_map(|run| {
            let rest = id.strip_prefix(&run.id)?;
            if rest.is_empty() {
                return Some((run, run.checkpoints.get(run.default)?));
            }
            let name = rest.strip_prefix(':')?;
            run.checkpoints.iter().find(|saved| saved.name.to_string() == name).map(|saved| (run, saved))
        })
    }
}

impl Run {
    /// Lists the checkpoints of a run.
    fn read(id: String, directory: RunDir, pick: Pick) -> Self {
        let checkpoints = directory.saved().unwrap_or_default();
        // If the picked checkpoint has been removed, fall back to the best of the others.
        let default = pick.place(&checkpoints).or_else(|| Pick::Best.place(&checkpoints)).unwrap_or_default();
        Self { id, directory, checkpoints, default, pick }
    }

    /// The run's default checkpoint.
    pub(crate) fn found(&self) -> Option<Found> {
        let checkpoint = self.checkpoints.get(self.default)?.clone();
        let (directory, run) = (self.directory.clone(), self.directory.clone());
        Some(Found { directory, run, checkpoint, pick: self.pick })
    }
}

/// The runs at a path: one run, those of a sweep, or those of every run and sweep in a directory.
fn runs_at(root: &Path) -> folio::error::Result<Vec<Run>> {
    Ok(match locate(root)? {
        Place::Run(directory) | Place::Sweep(directory) => runs_of(&directory),
        Place::Checkpoint(run, pick) => vec![Run::read(run.name(), run, pick)],
        Place::Directory(children) => children.iter().flat_map(runs_of).collect(),
    })
}

/// The run in a directory, or the runs of the sweep there.
fn runs_of(directory: &RunDir) -> Vec<Run> {
    let name = directory.name();
    let sub_runs = directory.sub_runs().unwrap_or_default().into_iter();
    let sub_runs = sub_runs.map(|run| (format!("{name}/{}", run.name()), run));
    let own = (name.clone(), directory.clone());
    let all = std::iter::once(own).chain(sub_runs).filter(|(_, run)| run.is_run());
    all.map(|(id, run)| Run::read(id, run, Pick::Best)).collect()
}
