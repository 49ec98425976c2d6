//! The age of checkpoints, and which of them are kept.

use super::{BEST, LATEST, RunDir, ownership};
use crate::checkpoint::{self, Checkpoint, CheckpointName};
use crate::error::{Error, Result};
use crate::files::{remove_directory, update_symlink};
use crate::history::History;
use crate::settings::Keep;

impl RunDir {
    /// The checkpoints, newest last: by their steps, and of two with the same step the one at the end of an epoch last. The
    /// numbers of epochs are not enough: an epoch that `max_steps` cut short has a checkpoint that is older than those inside the
    /// same epoch, once it is completed.
    pub fn by_age(&self) -> Result<Vec<CheckpointName>> {
        let mut names = self.checkpoints()?;
        let inside = names.iter().filter(|name| matches!(name, CheckpointName::Step(_)));
        // An unreadable one counts as the newest, so that its damage is reported.
        let Some(least) = inside.map(|&name| self.epochs_before(name).unwrap_or(u64::MAX)).min() else {
            return Ok(names);
        };
        let history = self.history().ok().flatten().unwrap_or_default();
        let of_epoch = |epoch: u64, name: CheckpointName| {
            let known = Some(history.step_of_epoch(epoch)).filter(|step| *step > 0);
            // Only the last one known, or an unknown one, may be older or newer than the losses.
            if epoch < history.epochs.len() as u64 { known } else { self.step_of(name).or(known) }
        };
        names.sort_by_cached_key(|&name| match name {
            // Before all those inside epochs: need not be read.
            CheckpointName::Epoch(epoch) if epoch <= least => (0, 0, epoch),
            CheckpointName::Epoch(epoch) => (of_epoch(epoch, name).unwrap_or(u64::MAX), 1, epoch),
            CheckpointName::Step(_) => (self.step_of(name).unwrap_or(u64::MAX), 0, 0),
        });
        Ok(names)
    }

    /// The steps taken when a checkpoint was saved; none if it cannot be read.
    fn step_of(&self, name: CheckpointName) -> Option<u64> {
        Checkpoint::open(&self.checkpoint(name)).ok().map(|checkpoint| checkpoint.state().global_step)
    }

    /// Updates the links `latest` and `best`, and removes what `keep` does not keep of the checkpoints other than `newest`.
    /// Also completes an earlier call that was interrupted.
    ///
    /// # Errors
    /// If something cannot be written or removed.
    pub fn apply_retention(&self, newest: CheckpointName, keep: Keep, history: &History) -> Result<()> {
        update_symlink(&self.path().join(LATEST), &newest.to_string())?;
        let best = self.best_checkpoint(history)?.map(|(_, name)| name);
        if let Some(best) = best {
            update_symlink(&self.path().join(BEST), &best.to_string())?;
        }
        let names = self.by_age()?;
        let whole = self.kept_whole(&names, newest, best);
        for other in names {
            let path = self.checkpoint(other);
            // Keeps checkpoints that are later (training resumed from before them), damaged, or contain other files.
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

    /// The checkpoints that keep their optimizer state in any case: the newest, the best, and the newest resumable one before
    /// that, in case the newest gets damaged. `names` are by age.
    fn kept_whole(
        &self,
        names: &[CheckpointName],
        newest: CheckpointName,
        best: Option<CheckpointName>,
    ) -> Vec<CheckpointName> {
        let can_resume = |name: &CheckpointName| {
            Checkpoint::open(&self.checkpoint(*name)).is_ok_and(|checkpoint| checkpoint.is_resumable())
        };
        let before = names.iter().position(|name| *name == newest).unwrap_or(names.len());
        let is_epoch = |name: &CheckpointName| matches!(name, CheckpointName::Epoch(_));
        let mut earlier = names[..before].iter().rev().copied().filter(is_epoch);
        let mut whole = vec![newest];
        whole.extend(best.into_iter().chain(earlier.find(can_resume)));
        whole
    }

    /// Removes a checkpoint, unless it contains files that folio did not write.
    pub(super) fn remove_checkpoint(&self, name: CheckpointName) -> Result<()> {
        let path = self.checkpoint(name);
        ownership::check_checkpoint(&path)?;
        remove_directory(&path).map_err(Error::file("remove", &path))
    }
}
