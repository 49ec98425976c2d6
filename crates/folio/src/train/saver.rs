//! Saving a run. If a save fails, training continues and the next save is a retry; if the last one fails, so does the run.

use std::borrow::Cow;
use std::fs;
use std::path::PathBuf;

use super::{Event, Outcome, Trainer};
use crate::checkpoint::{CheckpointName, Tensors, TrainingState};
use crate::distributed::any;
use crate::error::{Error, Result};
use crate::model::Moments;
use crate::run_dir::{RunDir, RunState, Status};

pub(super) struct Saver<'a> {
    run_dir: Option<&'a RunDir>,
    /// Whether the run is saved, by rank 0: all ranks then give it their part of AdamW's moments.
    is_saved: bool,
    /// The last successful save.
    last_saved: Option<Position>,
    /// The last checkpoint written.
    pub(super) checkpoint: Option<PathBuf>,
    /// The error of the last save, if it failed.
    failure: Option<Error>,
}

/// What distinguishes the states of a run: epoch, step, and the number of evaluations inside epochs.
type Position = (u64, u64, usize);

fn position(state: &TrainingState) -> Position {
    (state.epoch, state.global_step, state.history.evaluations.len())
}

impl<'a> Saver<'a> {
    /// Writes the run's description, and completes a save that was interrupted.
    pub(super) fn begin(run_dir: Option<&'a RunDir>, trainer: &Trainer) -> Result<Self> {
        let [is_saved] = any(&trainer.communicator, [run_dir.is_some()]);
        let mut saver = Self { run_dir, is_saved, last_saved: None, checkpoint: None, failure: None };
        let Some(run_dir) = run_dir else { return Ok(saver) };
        run_dir.create()?;
        describe(run_dir, trainer)?;
        let Trainer { settings, state, resumed_from, .. } = trainer;
        let own = resumed_from.as_ref().filter(|path| path.parent() == Some(run_dir.path()));
        if let Some(path) = own
            && let Some(name) = path.file_name().and_then(|name| CheckpointName::parse(name.to_str()?))
        {
            run_dir.write_history(&state.history)?;
            run_dir.apply_retention(name, settings.kept(), &state.history)?;
            saver.last_saved = Some(position(state));
            saver.checkpoint = Some(path.clone());
        }
        Ok(saver)
    }

    /// Saves the run within an epoch, unless this state is saved already. All ranks call this at once.
    pub(super) fn save_step(&mut self, trainer: &Trainer, requested: bool, on_event: &mut dyn FnMut(&Event)) {
        let name = CheckpointName::Step(trainer.state.global_step);
        let moments = self.moments(trainer);
        if self.last_saved != Some(position(&trainer.state)) {
            self.save(trainer, name, moments, requested, on_event);
        }
    }

    /// Saves the run within an epoch, as the last thing it does. Retried here, because there is no next save.
    pub(super) fn save_last_step(
        &mut self,
        trainer: &Trainer,
        requested: bool,
        on_event: &mut dyn FnMut(&Event),
    ) {
        self.save_step(trainer, requested, on_event);
        let [has_failed] = any(&trainer.communicator, [self.has_failed()]);
        if has_failed {
            self.save_step(trainer, requested, on_event);
        }
    }

    /// Whether the last save failed.
    pub(super) fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// Saves the run at the end of an epoch. All ranks call this at once.
    pub(super) fn save_epoch(&mut self, trainer: &Trainer, on_event: &mut dyn FnMut(&Event)) {
        let moments = self.moments(trainer);
        self.save(trainer, CheckpointName::Epoch(trainer.state.epoch), moments, false, on_event);
    }

    /// AdamW's moments, on rank 0.
    fn moments<'t>(&self, trainer: &'t Trainer) -> Option<Cow<'t, Moments>> {
        self.is_saved.then(|| trainer.backend.whole_moments(&trainer.communicator)).flatten()
    }

    fn save(
        &mut self,
        trainer: &Trainer,
        name: CheckpointName,
        moments: Option<Cow<Moments>>,
        requested: bool,
        on_event: &mut dyn FnMut(&Event),
    ) {
        let Some(run_dir) = self.run_dir else { return };
        on_event(&Event::Saving);
        match write(run_dir, trainer, name, moments.as_deref()) {
            Ok(checkpoint) => {
                self.failure = None;
                self.last_saved = Some(position(&trainer.state));
                self.checkpoint = Some(checkpoint.clone());
                on_event(&Event::Saved { checkpoint, requested });
            }
            Err(error) => {
                let message = format!("{error}; training continues and retries at the next save");
                on_event(&Event::Warning { message });
                self.failure = Some(error);
            }
        }
    }

    /// Writes how the run ended. An error if its last state is not saved.
    pub(super) fn end(self, trainer: &Trainer, outcome: Result<Outcome>) -> Result<Outcome> {
        let Some(run_dir) = self.run_dir else { return outcome };
        let outcome = match (outcome, self.failure) {
            (Ok(_), Some(failure)) => {
                Err(Error::Unsaved { path: run_dir.path().to_path_buf(), source: Box::new(failure) })
            }
            (outcome, _) => outcome,
        };
        let status = match &outcome {
            Ok(Outcome::Finished) => status(trainer, RunState::Finished, None),
            Ok(Outcome::Stopped) => status(trainer, RunState::Stopped, None),
            Err(error) => status(trainer, RunState::of(error), Some(error.to_string())),
        };
        let written = run_dir.write_status(&status);
        // The run's own error takes precedence over that of writing it.
        outcome.and_then(|outcome| written.map(|()| outcome))
    }
}

/// Writes the history, a checkpoint and the status. Returns the checkpoint.
fn write(
    run_dir: &RunDir,
    trainer: &Trainer,
    name: CheckpointName,
    moments: Option<&Moments>,
) -> Result<PathBuf> {
    restore_directory(run_dir, trainer)?;
    let Trainer { settings, backend, state, .. } = trainer;
    run_dir.write_history(&state.history)?;
    let (parameters, average) = (backend.parameters(), backend.average());
    let tensors = Tensors { parameters: &parameters, moments, average: average.as_deref() };
    let checkpoint = run_dir.save_checkpoint(name, settings.kept(), tensors, state, trainer.tokenizer())?;
    run_dir.write_status(&status(trainer, RunState::Running, None))?;
    Ok(checkpoint)
}

/// Creates the run's directory again if it was removed, but not its parents: their disk may be unmounted.
fn restore_directory(run_dir: &RunDir, trainer: &Trainer) -> Result<()> {
    if run_dir.is_run() {
        return Ok(());
    }
    if !run_dir.path().exists() {
        fs::create_dir(run_dir.path()).map_err(Error::file("create", run_dir.path()))?;
    }
    describe(run_dir, trainer)
}

fn describe(run_dir: &RunDir, trainer: &Trainer) -> Result<()> {
    run_dir.write_description(&trainer.settings, trainer.backend.config(), trainer.tokenizer())?;
    run_dir.write_status(&status(trainer, RunState::Running, None))
}

fn status(trainer: &Trainer, state: RunState, error: Option<String>) -> Status {
    let TrainingState { epoch, global_step: step, ref history, .. } = trainer.state;
    let (eval_losses, step_losses) = (history.eval_losses(), history.step_losses());
    Status { state, epoch, step, eval_losses, step_losses, error, lost_output: None }
}
