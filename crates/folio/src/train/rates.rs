//! The next step on the schedule.

use super::Trainer;
use crate::checkpoint::TrainingState;
use crate::schedule::{Unit, warmup_factor};

impl Trainer {
    /// How far the next step is on the way to the schedule's T_max: 0 at its start, 1 and more from T_max on.
    pub(super) fn schedule_progress(&self) -> f64 {
        let TrainingState { epoch, global_step, schedule_start, epoch_progress, .. } = &self.state;
        let now = match self.settings.lr_schedule_unit {
            Unit::Epoch => {
                let steps = self.dataset.steps_per_epoch(self.settings.batch_size);
                (epoch - schedule_start.epoch) as f64 + epoch_progress.batches as f64 / steps as f64
            }
            Unit::Step => (global_step - schedule_start.step) as f64,
        };
        now / self.settings.cosine_t_max as f64
    }

    /// The learning rate of the next step.
    pub(super) fn learning_rate(&self) -> f64 {
        let TrainingState { epoch, global_step, schedule_start, .. } = &self.state;
        let step = global_step - schedule_start.step;
        let now = match self.settings.lr_schedule_unit {
            Unit::Epoch => epoch - schedule_start.epoch,
            Unit::Step => step,
        };
        self.settings.schedule().rate(now) * warmup_factor(step, self.settings.warmup_steps)
    }
}
