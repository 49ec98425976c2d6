//! The training loop.
//!
//! [`Trainer`] neither prints nor parses: it reports [`Event`]s to whoever listens.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::checkpoint::{self, ScheduleStart, TrainingState};
use crate::data::{BatchBuffer, Dataset, Part, TokenStream};
use crate::error::{Error, Result};
use crate::evaluate::mean_batch_loss;
use crate::history::{EpochReport, History};
use crate::model::{Gpt2, ModelConfig, Precision};
use crate::optim::AdamW;
use crate::rng::{Rng, Stream};
use crate::run_dir::RunDir;
use crate::schedule::{Unit, warmup_factor};
use crate::settings::Settings;
use crate::tokenizer::Tokenizer;

/// What happens while a run trains.
#[derive(Clone, Debug)]
pub enum Event {
    /// The run begins.
    Started {
        /// Optimizer steps that it will take.
        steps: u64,
        /// Parameters of the model.
        parameters: u64,
        /// In what numbers it computes.
        precision: Precision,
    },
    /// An epoch begins.
    EpochStarted {
        /// Counting from 1.
        epoch: u64,
        /// The last epoch of this run.
        last_epoch: u64,
        /// Optimizer steps that the epoch takes.
        steps: u64,
    },
    /// An optimizer step was taken.
    Step {
        /// Tokens it learned from.
        tokens: u64,
        /// The batch's loss, nats a token.
        loss: f32,
    },
    /// Evaluation has begun.
    Evaluating,
    /// An epoch has ended and everything that it had to save is saved.
    EpochEnded {
        /// Counting from 1.
        epoch: u64,
        /// The last epoch of this run.
        last_epoch: u64,
        /// What it has to tell.
        report: EpochReport,
        /// The checkpoint it wrote, if any.
        checkpoint: Option<PathBuf>,
    },
}

/// Where a run begins.
#[derive(Clone, Debug, PartialEq)]
pub enum Start {
    /// With random weights.
    Fresh,
    /// With all that a run was after one of its epochs.
    Checkpoint {
        /// The run.
        run: RunDir,
        /// The epoch.
        number: u64,
        /// Whether the schedule counts from here, not from the run's beginning.
        restart_schedule: bool,
    },
}

/// One run, ready to go.
pub struct Trainer {
    settings: Settings,
    dataset: Dataset,
    tokenizer: Arc<Tokenizer>,
    model: Gpt2,
    optimizer: AdamW,
    state: TrainingState,
}

impl Trainer {
    /// Prepares a run.
    ///
    /// # Errors
    /// If the settings are not valid, the text is too short for them, or the checkpoint is missing, damaged or
    /// of another model.
    pub fn new(
        settings: Settings,
        stream: Arc<TokenStream>,
        tokenizer: Arc<Tokenizer>,
        start: &Start,
    ) -> Result<Self> {
        settings.validate()?;
        let dataset = Dataset::new(stream, settings.block_size, settings.seed)?;
        let config = settings.model_config(tokenizer.vocab_size());
        let (model, optimizer, state) = match start {
            Start::Fresh => {
                let model = Gpt2::new(config, settings.precision, &mut Rng::new(settings.seed, Stream::Init));
                let optimizer = AdamW::new(settings.adamw(), model.parameters().values().len());
                (model, optimizer, TrainingState::new(settings.seed))
            }
            Start::Checkpoint { run, number, restart_schedule } => {
                let directory = run.existing_checkpoint(*number)?;
                check_same_sizes(&directory, &run.model_config()?, &config)?;
                let parameters = checkpoint::load_parameters(&directory, &config)?;
                let (optimizer, mut state) =
                    checkpoint::load_training(&directory, parameters.specs(), settings.adamw())?;
                check_steps_left(&settings, &state)?;
                if *restart_schedule {
                    state.schedule_start = ScheduleStart { epoch: state.epoch, step: state.global_step };
                }
                (Gpt2::from_parameters(config, settings.precision, parameters), optimizer, state)
            }
        };
        Ok(Self { settings, dataset, tokenizer, model, optimizer, state })
    }

    /// The run's settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The data, in its parts.
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// The model as it is now.
    pub fn model(&mut self) -> &mut Gpt2 {
        &mut self.model
    }

    /// The losses and rates so far.
    pub fn history(&self) -> &History {
        &self.state.history
    }

    /// Trains for the settings' epochs, or to their step limit. Writes to `run_dir`, if there is one, what the
    /// settings ask for, after every epoch.
    ///
    /// # Errors
    /// If the loss stops being finite, or a file cannot be written.
    pub fn run(&mut self, run_dir: Option<&RunDir>, on_event: &mut dyn FnMut(Event)) -> Result<()> {
        if let Some(run_dir) = run_dir {
            run_dir.write_description(&self.settings, self.model.config(), &self.tokenizer)?;
        }
        let steps_per_epoch = self.dataset.steps_per_epoch(self.settings.batch_size);
        let last_step = self.settings.max_steps.unwrap_or(u64::MAX);
        let steps_left = last_step.saturating_sub(self.state.global_step);
        let epochs = self.settings.num_epochs.min(steps_left.div_ceil(steps_per_epoch));
        let last_epoch = self.state.epoch.saturating_add(epochs);
        let parameters = self.model.parameters().values().len() as u64;
        let steps = steps_left.min(epochs.saturating_mul(steps_per_epoch));
        on_event(Event::Started { precision: self.settings.precision, steps, parameters });
        let [train_text, eval_text] =
            [Part::Train, Part::Eval].map(|part| self.dataset.text_per_token(part, &self.tokenizer));
        let mut buffer = BatchBuffer::default();
        while self.state.epoch < last_epoch {
            let epoch = self.state.epoch + 1;
            let steps = steps_per_epoch.min(last_step - self.state.global_step);
            on_event(Event::EpochStarted { epoch, last_epoch, steps });

            let mut blocks = self.dataset.blocks(Part::Train).to_vec();
            self.state.order.shuffle(&mut blocks);
            let (mut loss_sum, mut learning_rate) = (0.0, 0.0);
            for starts in blocks.chunks(self.settings.batch_size).take(steps as usize) {
                learning_rate = self.learning_rate();
                let loss = self.step(&mut buffer, starts, learning_rate)?;
                loss_sum += f64::from(loss);
                let tokens = (starts.len() * self.settings.block_size) as u64;
                on_event(Event::Step { tokens, loss });
            }

            on_event(Event::Evaluating);
            let eval = self.dataset.blocks(Part::Eval);
            let eval_loss =
                mean_batch_loss(&mut self.model, &self.dataset, eval, self.settings.batch_size, &mut buffer);
            let train_loss = loss_sum / steps as f64;
            let report = EpochReport {
                train_loss,
                eval_loss,
                train_bits: train_text.bits(train_loss),
                eval_bits: eval_text.bits(eval_loss),
                learning_rate,
                step: self.state.global_step,
            };
            self.state.epoch = epoch;
            self.state.history.push(report);
            let checkpoint = self.save(run_dir)?;
            on_event(Event::EpochEnded { epoch, last_epoch, report, checkpoint });
        }
        Ok(())
    }

    /// One optimizer step on the blocks at `starts`. Returns the loss before it.
    fn step(&mut self, buffer: &mut BatchBuffer, starts: &[usize], learning_rate: f64) -> Result<f32> {
        let batch = buffer.fill(&self.dataset, starts, self.settings.block_size);
        let loss = self.model.train_step(batch, self.state.dropout.next_u64());
        let step = self.state.global_step + 1;
        if !loss.is_finite() {
            return Err(Error::Diverged { loss, step, learning_rate });
        }
        let (parameters, gradients) = self.model.parameters_and_gradients();
        self.optimizer.step(parameters, gradients, learning_rate);
        self.state.global_step = step;
        Ok(loss)
    }

    /// The rate of the step to come.
    fn learning_rate(&self) -> f64 {
        let TrainingState { epoch, global_step, schedule_start, .. } = &self.state;
        let step = global_step - schedule_start.step;
        let now = match self.settings.lr_schedule_unit {
            Unit::Epoch => epoch - schedule_start.epoch,
            Unit::Step => step,
        };
        self.settings.schedule().rate(now) * warmup_factor(step, self.settings.warmup_steps)
    }

    /// Writes what the settings ask for. Returns the checkpoint's path, if one was written.
    fn save(&self, run_dir: Option<&RunDir>) -> Result<Option<PathBuf>> {
        let Some(run_dir) = run_dir else { return Ok(None) };
        if self.settings.save_losses {
            run_dir.write_history(&self.state.history)?;
        }
        if !self.settings.save_checkpoint {
            return Ok(None);
        }
        let directory = run_dir.checkpoint(self.state.epoch);
        let (config, parameters) = (self.model.config(), self.model.parameters());
        checkpoint::save(&directory, config, parameters, &self.optimizer, &self.state)?;
        Ok(Some(directory))
    }
}

/// Checks that a checkpoint's model has the sizes asked for; dropout may change.
pub fn check_same_sizes(checkpoint: &Path, saved: &ModelConfig, wanted: &ModelConfig) -> Result<()> {
    let sizes = [
        ("the vocabulary", saved.vocab_size, wanted.vocab_size),
        ("--n_blocks", saved.n_blocks, wanted.n_blocks),
        ("--n_emb", saved.n_emb, wanted.n_emb),
        ("--n_heads", saved.n_heads, wanted.n_heads),
        ("--block_sizes", saved.block_size, wanted.block_size),
    ];
    let differs = sizes.iter().find(|(_, saved, wanted)| saved != wanted);
    differs.map_or(Ok(()), |(name, saved, wanted)| {
        let reason = format!(
            "{name} is {saved} there, but {wanted} was asked for: leave the flag out or give {saved}"
        );
        Err(Error::Checkpoint { path: checkpoint.to_path_buf(), reason })
    })
}

/// Checks that a run that is continued has steps left to take.
fn check_steps_left(settings: &Settings, state: &TrainingState) -> Result<()> {
    let taken = state.global_step;
    match settings.max_steps {
        Some(limit) if limit <= taken => {
            let reason = format!(
                "{limit} steps in all leave none: the checkpoint has taken {taken}, so give more than {taken}"
            );
            Err(Error::setting("--max_steps", reason))
        }
        _ => Ok(()),
    }
}

impl TrainingState {
    /// The state of a run before its first step.
    fn new(seed: u64) -> Self {
        Self {
            format: checkpoint::FORMAT,
            epoch: 0,
            global_step: 0,
            schedule_start: ScheduleStart::default(),
            order: Rng::new(seed, Stream::Order),
            dropout: Rng::new(seed, Stream::Dropout),
            history: History::default(),
        }
    }
}
