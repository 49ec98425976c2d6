//! Which runs and checkpoints there are, and what they are called.
//!
//! A client names a model by a text that is looked for in a list which was made from the directories; what it sends
//! never becomes part of a path.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use folio::run_dir::{Found, Pick, Place, RunDir, RunLock, Saved, locate};

use crate::errors::Error;

/// The directories that are served, and what was in them when they were last read.
pub(crate) struct Catalogue {
    roots: Vec<PathBuf>,
    may_be_empty: bool,
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
    /// The place of the one that the run's name alone means: the one with the lowest evaluation loss, else the newest,
    /// unless the path that is served names another.
    pub(crate) default: usize,
    pick: Pick,
}

impl Catalogue {
    pub(crate) fn new(roots: Vec<PathBuf>, may_be_empty: bool, refresh_time: Duration) -> Self {
        Self { roots, may_be_empty, refresh_time, listing: Mutex::default() }
    }

    /// Checks that there is something to serve in every directory, unless they may be empty.
    ///
    /// # Errors
    /// If one holds no run, or none with a checkpoint and none that trains; or if two runs have one name.
    pub(crate) fn check(&self) -> Result<Arc<Listing>, Error> {
        let mut taken: Vec<Run> = Vec::new();
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
        let mut runs: Vec<Run> =
            self.roots.iter().flat_map(|root| runs_at(root).unwrap_or_default()).collect();
        // A run that began later under a name that is taken is left out.
        runs.retain(|run| names.insert(run.id.clone()));
        let listing = Arc::new(Listing { runs });
        *known = Some((Instant::now(), Arc::clone(&listing)));
        listing
    }
}

impl Listing {
    /// The name of the run that saved a checkpoint last.
    pub(crate) fn newest(&self) -> Option<&str> {
        let saved = |run: &Run| run.checkpoints.iter().map(|saved| saved.modified).max();
        let runs = self.runs.iter().filter_map(|run| Some((saved(run)?, run)));
        runs.max_by_key(|(time, _)| *time).map(|(_, run)| run.id.as_str())
    }

    /// The checkpoint of this name, and its run.
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
    /// Reads what there is of a run.
    fn read(id: String, directory: RunDir, pick: Pick) -> Self {
        let checkpoints = directory.saved().unwrap_or_default();
        // A checkpoint that was removed since leaves the best of the others.
        let default = pick.index(&checkpoints).or_else(|| Pick::Best.index(&checkpoints)).unwrap_or_default();
        Self { id, directory, checkpoints, default, pick }
    }

    /// What the run's name alone means.
    pub(crate) fn found(&self) -> Option<Found> {
        let checkpoint = self.checkpoints.get(self.default)?.clone();
        let (directory, run) = (self.directory.clone(), self.directory.clone());
        Some(Found { directory, run, checkpoint, pick: self.pick })
    }
}

/// The runs at a path: that run, those of that sweep, or of every run and sweep in that directory.
fn runs_at(root: &Path) -> folio::error::Result<Vec<Run>> {
    Ok(match locate(root)? {
        Place::Run(directory) | Place::Sweep(directory) => runs_of(&directory),
        Place::Checkpoint(run, pick) => vec![Run::read(run.name(), run, pick)],
        Place::Directory(children) => children.iter().flat_map(runs_of).collect(),
    })
}

/// The run in a directory, and those of the sweep there.
fn runs_of(directory: &RunDir) -> Vec<Run> {
    let name = directory.name();
    let sub_runs = directory.sub_runs().unwrap_or_default().into_iter();
    let sub_runs = sub_runs.map(|run| (format!("{name}/{}", run.name()), run));
    let own = (name.clone(), directory.clone());
    let all = std::iter::once(own).chain(sub_runs).filter(|(_, run)| run.is_run());
    all.map(|(id, run)| Run::read(id, run, Pick::Best)).collect()
}
