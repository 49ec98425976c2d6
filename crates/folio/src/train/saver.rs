//! What a run writes, and what it does when that fails: it goes on, tries again at the next save, and says so at the
//! end if nothing came of it.

use std::fs;
use std::path::PathBuf;

use super::{Event, Outcome, Trainer};
use crate::checkpoint::{CheckpointName, TrainingState};
use crate::error::{Error, Result};
use crate::run_dir::{RunDir, RunState, Status};

pub(super) struct Saver<'a> {
    run_dir: Option<&'a RunDir>,
    /// The epoch and the step of what was saved last.
    saved: Option<(u64, u64)>,
    /// The checkpoint that was written last.
    pub(super) checkpoint: Option<PathBuf>,
    /// Why the last attempt to save came to nothing.
    failure: Option<Error>,
}

impl<'a> Saver<'a> {
    /// Writes what describes the run.
    pub(super) fn begin(run_dir: Option<&'a RunDir>, trainer: &Trainer) -> Result<Self> {
        if let Some(run_dir) = run_dir {
            run_dir.create()?;
            describe(run_dir, trainer)?;
        }
        let place = (trainer.state.epoch, trainer.state.global_step);
        // A run that was resumed is saved as it is.
        let checkpoint = trainer
            .resumed_from
            .clone()
            .filter(|path| run_dir.is_some_and(|run_dir| path.parent() == Some(run_dir.path())));
        Ok(Self { run_dir, saved: checkpoint.is_some().then_some(place), checkpoint, failure: None })
    }

    /// Saves the run inside an epoch, if there is somewhere to save it and it is not saved yet.
    pub(super) fn save_step(&mut self, trainer: &Trainer, on_event: &mut dyn FnMut(&Event)) {
        let name = CheckpointName::Step(trainer.state.global_step);
        let Some(run_dir) = self.run_dir else { return };
        if self.saved == Some((trainer.state.epoch, trainer.state.global_step)) {
            return;
        }
        if self.attempt(on_event, || write_checkpoint(run_dir, trainer, name))
            && let Some(checkpoint) = self.finish(trainer, name)
        {
            on_event(&Event::Saved { checkpoint });
        }
    }

    /// Saves what an epoch's end has to save. Returns the epoch's checkpoint, if the settings ask for one.
    pub(super) fn save_epoch(
        &mut self,
        trainer: &Trainer,
        on_event: &mut dyn FnMut(&Event),
    ) -> Option<PathBuf> {
        let run_dir = self.run_dir?;
        let settings = &trainer.settings;
        let name = match settings.save_checkpoint {
            true => CheckpointName::Epoch(trainer.state.epoch),
            false => CheckpointName::Step(trainer.state.global_step),
        };
        let write = || {
            restore_directory(run_dir, trainer)?;
            if settings.save_losses {
                run_dir.write_history(&trainer.state.history)?;
            }
            write_checkpoint(run_dir, trainer, name)?;
            run_dir.write_status(&status(trainer, RunState::Running, None))
        };
        if !self.attempt(on_event, write) {
            return None;
        }
        self.finish(trainer, name).filter(|_| settings.save_checkpoint)
    }

    /// Says how the run has ended; an error if its end is not saved.
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
        // A failure is told before the one to write it down.
        outcome.and_then(|outcome| written.map(|()| outcome))
    }

    /// Tries to write; a failure is told and remembered.
    fn attempt(&mut self, on_event: &mut dyn FnMut(&Event), write: impl FnOnce() -> Result<()>) -> bool {
        self.failure = write().err();
        if let Some(error) = &self.failure {
            let message = format!("{error}; training goes on and tries again at the next save");
            on_event(&Event::Warning { message });
        }
        self.failure.is_none()
    }

    fn finish(&mut self, trainer: &Trainer, name: CheckpointName) -> Option<PathBuf> {
        self.saved = Some((trainer.state.epoch, trainer.state.global_step));
        self.checkpoint = self.run_dir.map(|run_dir| run_dir.checkpoint(name));
        self.checkpoint.clone()
    }
}

fn write_checkpoint(run_dir: &RunDir, trainer: &Trainer, name: CheckpointName) -> Result<()> {
    restore_directory(run_dir, trainer)?;
    let Trainer { settings, model, optimizer, state, .. } = trainer;
    run_dir.save_checkpoint(name, settings.keep, model.parameters(), optimizer, state)?;
    Ok(())
}

/// Makes the run's directory again if somebody has removed it, though not those above it: what they were on may be
/// gone.
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
    run_dir.write_description(&trainer.settings, trainer.model.config(), &trainer.tokenizer)?;
    run_dir.write_status(&status(trainer, RunState::Running, None))
}

fn status(trainer: &Trainer, state: RunState, error: Option<String>) -> Status {
    let TrainingState { epoch, global_step: step, ref history, .. } = trainer.state;
    Status { state, epoch, step, eval_losses: history.losses.eval_losses.clone(), error }
}
