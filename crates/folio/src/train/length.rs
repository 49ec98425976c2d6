//! How far a run is to be trained.

use super::Trainer;
use crate::checkpoint::TrainingState;
use crate::error::{Error, Result};

impl Trainer {
    /// Fails if the settings ask for fewer epochs or steps than the run has trained.
    ///
    /// # Errors
    /// [`Error::Setting`] with both numbers.
    pub fn check_length(&self) -> Result<()> {
        let TrainingState { epoch, global_step, ref epoch_progress, .. } = self.state;
        let too_few = |setting, limit, trained: String| {
            let reason = format!(
                "{limit} is fewer than the {trained} that the run has trained; give more, or continue from an earlier \
                 checkpoint with --from_checkpoint"
            );
            Err(Error::setting(setting, reason))
        };
        let last_epoch = self.settings.last_epoch();
        let earlier = last_epoch - self.settings.num_epochs;
        if last_epoch < epoch || (last_epoch == epoch && epoch_progress.batches > 0) {
            let (epochs, steps) = (epoch - earlier, epoch_progress.batches);
            let more = if steps > 0 { format!(" and {steps} steps") } else { String::new() };
            return too_few("num_epochs", self.settings.num_epochs, format!("{epochs} epochs{more}"));
        }
        match self.settings.max_steps {
            Some(limit) if limit < global_step => too_few("max_steps", limit, format!("{global_step} steps")),
            _ => Ok(()),
        }
    }

    /// The last epoch of this run. `max_steps` may cut it short.
    pub(super) fn last_epoch(&self) -> u64 {
        let most = self.settings.last_epoch();
        let Some(limit) = self.settings.max_steps else { return most };
        let epoch_began = self.state.global_step - self.state.epoch_progress.batches;
        let steps_left = limit.saturating_sub(epoch_began);
        let epochs = steps_left.div_ceil(self.dataset.steps_per_epoch(self.settings.batch_size));
        // An epoch that has taken its last step but was not evaluated yet is not over.
        most.min(self.state.epoch.saturating_add(epochs))
    }

    /// Steps of the current epoch, including those taken.
    pub(super) fn steps_of_epoch(&self) -> u64 {
        let epoch_began = self.state.global_step - self.state.epoch_progress.batches;
        let limit = self.settings.max_steps.unwrap_or(u64::MAX);
        self.dataset.steps_per_epoch(self.settings.batch_size).min(limit.saturating_sub(epoch_began))
    }

    /// Steps left. Early stopping may make them fewer.
    pub fn steps_left(&self) -> u64 {
        if self.is_out_of_patience() { 0 } else { self.steps_to_end() }
    }

    /// Steps up to the end of the last epoch, or to `max_steps`.
    pub(super) fn steps_to_end(&self) -> u64 {
        let epochs = self.last_epoch().saturating_sub(self.state.epoch);
        let all = epochs.saturating_mul(self.dataset.steps_per_epoch(self.settings.batch_size));
        let limit = self.settings.max_steps.unwrap_or(u64::MAX);
        let left = all.saturating_sub(self.state.epoch_progress.batches);
        left.min(limit.saturating_sub(self.state.global_step))
    }
}
