//! The training loop.
//!
//! [`Trainer`] neither prints nor parses: it reports [`Event`]s to whoever listens.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::checkpoint::{Checkpoint, CheckpointName, CutShort, Identity, ScheduleStart, TrainingState};
use crate::data::{BatchBuffer, Dataset, Part, TokenStream};
use crate::error::{Error, Result};
use crate::evaluate::mean_batch_loss;
use crate::generate::{Generator, Request};
use crate::history::{EpochReport, EpochSums, History};
use crate::model::{Gpt2, Predictor, WeightFormat};
use crate::optim::AdamW;
use crate::rng::{Rng, Stream};
use crate::run_dir::RunDir;
use crate::schedule::{Unit, warmup_factor};
use crate::settings::Settings;
use crate::text::TextPerToken;
use crate::tokenizer::Tokenizer;

mod continuing;
mod event;
mod saver;

pub use continuing::{check_same, check_start};
pub use event::{Event, Outcome, Requests, StepReport};
use saver::Saver;

/// Tokens of an epoch's sample, if the settings do not say.
const SAMPLE_TOKENS: usize = 100;

/// Where a run begins.
#[derive(Clone, Debug, PartialEq)]
pub enum Start {
    /// With random weights.
    Fresh,
    /// With all that a run was after one of its epochs, for further epochs.
    Checkpoint {
        /// The run.
        run: RunDir,
        /// The epoch.
        number: u64,
        /// Whether the schedule counts from here, not from the run's beginning.
        restart_schedule: bool,
    },
    /// Where it was when it was last saved; at its beginning if it never was.
    Resume {
        /// The run itself.
        run: RunDir,
        /// Whether to pass over checkpoints that are damaged.
        skip_damaged: bool,
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
    resumed_from: Option<PathBuf>,
    has_optimizer: bool,
    /// Reused by every batch.
    buffer: BatchBuffer,
    train_text: TextPerToken,
    eval_text: TextPerToken,
}

impl Trainer {
    /// Prepares a run.
    ///
    /// # Errors
    /// If the settings are not valid, the text is too short for them, or the checkpoint is missing, damaged or
    /// of another model, text or split.
    pub fn new(
        mut settings: Settings,
        stream: Arc<TokenStream>,
        tokenizer: Arc<Tokenizer>,
        start: &Start,
    ) -> Result<Self> {
        settings.validate()?;
        if let Start::Checkpoint { run, number, restart_schedule } = start {
            settings.continue_from(run.path(), *number, *restart_schedule);
        }
        let dataset = Dataset::new(stream, settings.block_size, settings.seed)?;
        let identity = Identity::of(&settings, &tokenizer);
        let checkpoint = find(start, &settings)?;
        if let (Some(checkpoint), Start::Resume { run, .. }) = (&checkpoint, start)
            && checkpoint.directory().parent() == Some(run.path())
        {
            check_resumes(checkpoint, &settings)?;
        }
        let has_optimizer =
            checkpoint.as_ref().is_none_or(|found| continuing::takes_optimizer(found, &settings));
        let resumed_from = checkpoint.as_ref().map(|checkpoint| checkpoint.directory().to_path_buf());
        let (model, optimizer, state) = match checkpoint {
            None => {
                let mut init = Rng::new(settings.seed, Stream::Init);
                let model = Gpt2::new(identity.model, settings.precision, &mut init);
                let optimizer = AdamW::new(settings.adamw(), model.parameters().values().len());
                (model, optimizer, TrainingState::new(identity, &settings))
            }
            Some(checkpoint) => continuing::load(&checkpoint, &settings, &tokenizer)?,
        };
        let [train_text, eval_text] =
            [Part::Train, Part::Eval].map(|part| dataset.text_per_token(part, &tokenizer));
        let buffer = BatchBuffer::default();
        Ok(Self {
            settings,
            dataset,
            tokenizer,
            model,
            optimizer,
            state,
            resumed_from,
            has_optimizer,
            buffer,
            train_text,
            eval_text,
        })
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

    /// The place in the run, and its history.
    pub fn state(&self) -> &TrainingState {
        &self.state
    }

    /// The losses and rates so far.
    pub fn history(&self) -> &History {
        &self.state.history
    }

    /// The checkpoint that the run goes on from, if any.
    pub fn resumed_from(&self) -> Option<&Path> {
        self.resumed_from.as_deref()
    }

    /// Checks that the settings leave no fewer epochs and steps than the run has trained: it would be marked as finished.
    ///
    /// # Errors
    /// [`Error::Setting`] with both numbers.
    pub fn check_length(&self) -> Result<()> {
        let TrainingState { epoch, global_step, ref under_way, .. } = self.state;
        let too_few = |setting, limit, trained: String| {
            let reason = format!(
                "{limit} is fewer than the {trained} that the run has trained: give more, or continue from an earlier \
                 checkpoint with --from_checkpoint"
            );
            Err(Error::setting(setting, reason))
        };
        let last_epoch = self.settings.last_epoch();
        let earlier = last_epoch - self.settings.num_epochs;
        if last_epoch < epoch || (last_epoch == epoch && under_way.batches > 0) {
            let (epochs, steps) = (epoch - earlier, under_way.batches);
            let more = if steps > 0 { format!(" and {steps} steps") } else { String::new() };
            return too_few("--num_epochs", self.settings.num_epochs, format!("{epochs} epochs{more}"));
        }
        match self.settings.max_steps {
            Some(limit) if limit < global_step => {
                too_few("--max_steps", limit, format!("{global_step} steps"))
            }
            _ => Ok(()),
        }
    }

    /// Whether the optimizer's state came with the checkpoint; if not, AdamW starts fresh.
    pub fn has_optimizer(&self) -> bool {
        self.has_optimizer
    }

    /// Trains for the settings' epochs, or to their step limit, or until it is asked to stop. Writes to `run_dir`, if
    /// there is one, what the settings ask for, and what going on from the last epoch's end needs.
    ///
    /// # Errors
    /// If too many losses or gradients in a row are not finite, if the run cannot be described in its directory before
    /// it begins, or if its end could not be saved.
    pub fn run(
        &mut self,
        run_dir: Option<&RunDir>,
        requests: &Requests,
        on_event: &mut dyn FnMut(&Event),
    ) -> Result<Outcome> {
        let mut saver = Saver::begin(run_dir, self)?;
        let outcome = self.train(&mut saver, run_dir.is_some(), requests, on_event);
        saver.end(self, outcome)
    }

    /// The loop itself.
    fn train(
        &mut self,
        saver: &mut Saver,
        keeps_records: bool,
        requests: &Requests,
        on_event: &mut dyn FnMut(&Event),
    ) -> Result<Outcome> {
        let last_epoch = self.last_epoch();
        self.tell_start(on_event);
        while self.state.epoch < last_epoch {
            let epoch = self.state.epoch + 1;
            let (steps, taken) = (self.steps_of_epoch(), self.state.under_way.batches);
            on_event(&Event::EpochStarted { epoch, last_epoch, steps, taken });

            let mut order = self.state.order.clone();
            let mut blocks = self.dataset.blocks(Part::Train).to_vec();
            order.shuffle(&mut blocks);
            let batches = blocks.chunks(self.settings.batch_size).take(steps as usize);
            for starts in batches.skip(taken as usize) {
                on_event(&Event::Step(self.step(starts)));
                self.check_finite(saver)?;
                let due = self
                    .settings
                    .save_every
                    .is_some_and(|every| self.state.global_step.is_multiple_of(every));
                let asked = requests.take_save() || requests.stop_asked();
                if asked || due {
                    saver.save_step(self, asked, on_event);
                }
                if requests.stop_asked() {
                    return Ok(Outcome::Stopped);
                }
            }

            on_event(&Event::Evaluating);
            let Some(eval_loss) = self.eval_loss(|| !requests.stop_asked()) else {
                saver.save_step(self, true, on_event);
                return Ok(Outcome::Stopped);
            };
            let report = self.end_epoch(eval_loss, order, saver)?;
            let tokens = self.settings.sample_tokens.unwrap_or(SAMPLE_TOKENS);
            let sample = keeps_records.then(|| self.sample(tokens));
            on_event(&Event::EpochEnded { epoch, last_epoch, report, sample });
            saver.save_epoch(self, on_event);
            if requests.stop_asked() {
                // The next save is this one.
                if saver.has_failed() {
                    saver.save_epoch(self, on_event);
                }
                return Ok(Outcome::Stopped);
            }
        }
        Ok(Outcome::Finished)
    }

    /// The last epoch of this run, which a limit to the steps may cut short.
    fn last_epoch(&self) -> u64 {
        let most = self.settings.last_epoch();
        let Some(limit) = self.settings.max_steps else { return most };
        let epoch_began = self.state.global_step - self.state.under_way.batches;
        let steps_left = limit.saturating_sub(epoch_began);
        let epochs = steps_left.div_ceil(self.dataset.steps_per_epoch(self.settings.batch_size));
        // An epoch whose last step was taken, but which was not evaluated yet, has still to end.
        most.min(self.state.epoch.saturating_add(epochs))
    }

    /// Steps of the epoch that is under way, those taken included.
    fn steps_of_epoch(&self) -> u64 {
        let epoch_began = self.state.global_step - self.state.under_way.batches;
        let limit = self.settings.max_steps.unwrap_or(u64::MAX);
        self.dataset.steps_per_epoch(self.settings.batch_size).min(limit.saturating_sub(epoch_began))
    }

    /// Steps that are left to take.
    pub fn steps_left(&self) -> u64 {
        let epochs = self.last_epoch().saturating_sub(self.state.epoch);
        let all = epochs.saturating_mul(self.dataset.steps_per_epoch(self.settings.batch_size));
        let limit = self.settings.max_steps.unwrap_or(u64::MAX);
        let left = all.saturating_sub(self.state.under_way.batches);
        left.min(limit.saturating_sub(self.state.global_step))
    }

    fn tell_start(&self, on_event: &mut dyn FnMut(&Event)) {
        let TrainingState { epoch, global_step: step, .. } = self.state;
        let parameters = self.model.parameters().values().len() as u64;
        let (steps, precision) = (self.steps_left(), self.settings.precision);
        on_event(&Event::Started { epoch, step, steps, parameters, precision });
    }

    /// One step on the blocks at `starts`. A step whose loss or gradients are not finite changes nothing but the count.
    fn step(&mut self, starts: &[usize]) -> StepReport {
        let learning_rate = self.learning_rate();
        let batch = self.buffer.fill(&self.dataset, starts, self.settings.block_size);
        let tokens = batch.targets.len() as u64;
        let loss = self.model.train_step(batch, self.state.dropout.next_u64());
        let gradient_norm = if loss.is_finite() {
            let (parameters, gradients) = self.model.parameters_and_gradients();
            self.optimizer.step(parameters, gradients, learning_rate)
        } else {
            f64::NAN
        };
        let skipped = !gradient_norm.is_finite();
        let state = &mut self.state;
        state.global_step += 1;
        state.optimizer_steps = self.optimizer.steps();
        state.skipped_in_a_row = if skipped { state.skipped_in_a_row + 1 } else { 0 };
        let sums = &mut state.under_way;
        sums.batches += 1;
        sums.learning_rate = learning_rate;
        if skipped {
            sums.skipped += 1;
        } else {
            sums.loss += f64::from(loss);
            sums.gradient_norm += gradient_norm;
            sums.clipped +=
                u64::from(self.settings.grad_clip > 0.0 && gradient_norm > self.settings.grad_clip);
        }
        let (epoch, step) = (state.epoch + 1, state.global_step);
        StepReport { epoch, step, tokens, loss, gradient_norm, learning_rate, skipped }
    }

    /// Checks that not too many steps in a row were skipped.
    fn check_finite(&self, saver: &Saver) -> Result<()> {
        match self.state.skipped_in_a_row {
            skipped if skipped < self.settings.max_skipped_steps => Ok(()),
            1 => Err(self.diverged("the loss or a gradient is not finite".to_owned(), saver)),
            skipped => {
                Err(self.diverged(format!("{skipped} losses or gradients in a row are not finite"), saver))
            }
        }
    }

    fn diverged(&self, what: String, saver: &Saver) -> Error {
        let TrainingState { global_step: step, ref under_way, .. } = self.state;
        let last_checkpoint = saver.checkpoint.clone();
        Error::Diverged { what, step, learning_rate: under_way.learning_rate, last_checkpoint }
    }

    /// The evaluation loss; none if `goes_on` says no before it is known.
    fn eval_loss(&mut self, goes_on: impl Fn() -> bool) -> Option<f64> {
        let (dataset, batch_size) = (&self.dataset, self.settings.batch_size);
        let blocks = dataset.blocks(Part::Eval);
        mean_batch_loss(&mut self.model, dataset, blocks, batch_size, &mut self.buffer, goes_on)
    }

    /// Closes the epoch under way, whose blocks were ordered by a stream that is now `order`.
    fn end_epoch(&mut self, eval_loss: f64, order: Rng, saver: &Saver) -> Result<EpochReport> {
        if self.state.under_way.learned() == 0 {
            return Err(self.diverged("no loss or gradient of the epoch is finite".to_owned(), saver));
        }
        if !eval_loss.is_finite() {
            return Err(self.diverged(format!("the evaluation loss is {eval_loss}"), saver));
        }
        let cut_short = self.state.under_way.batches < self.dataset.steps_per_epoch(self.settings.batch_size);
        let state = &mut self.state;
        let before = std::mem::replace(&mut state.order, order);
        let sums = std::mem::take(&mut state.under_way);
        let learned = sums.learned() as f64;
        let train_loss = sums.loss / learned;
        let report = EpochReport {
            train_loss,
            eval_loss,
            train_bits: self.train_text.bits(train_loss),
            eval_bits: self.eval_text.bits(eval_loss),
            learning_rate: sums.learning_rate,
            gradient_norm: sums.gradient_norm / learned,
            clipped_steps: sums.clipped,
            skipped_steps: sums.skipped,
            step: state.global_step,
        };
        state.epoch += 1;
        state.history.push(report);
        state.cut_short = cut_short.then_some(CutShort { order: before, sums });
        Ok(report)
    }

    /// What the model writes now, from token 0, as in the ancestor. The same text whenever it is asked at this step.
    pub fn sample(&mut self, tokens: usize) -> String {
        if tokens == 0 {
            return String::new();
        }
        let (config, format) = (*self.model.config(), WeightFormat::of(self.settings.precision));
        let predictor = Arc::new(Predictor::new(config, format, self.model.parameters()));
        let mut text = String::new();
        let request = Request { max_new_tokens: tokens, seed: self.settings.seed, ..Request::default() };
        let mut generator = Generator::new(predictor, Arc::clone(&self.tokenizer));
        let written = generator.generate(request, |token| text += token.text);
        written.expect("a request without a prompt can be met");
        text
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
}

/// The checkpoint to go on from; none if the run begins at its beginning.
fn find(start: &Start, settings: &Settings) -> Result<Option<Checkpoint>> {
    if let Start::Resume { run, skip_damaged } = start
        && let (Some(newest), _) = run.newest(*skip_damaged)?
    {
        return Ok(Some(newest));
    }
    // Also where a run began that was stopped before it saved anything of its own.
    match (start, &settings.from_checkpoint_run_dir, settings.from_checkpoint_step) {
        (Start::Fresh, ..) => Ok(None),
        (_, Some(run), Some(number)) => {
            RunDir::new(run).open_checkpoint(CheckpointName::Epoch(number)).map(Some)
        }
        _ => Ok(None),
    }
}

/// Checks that a run can be resumed from its own checkpoint with these settings.
fn check_resumes(checkpoint: &Checkpoint, settings: &Settings) -> Result<()> {
    let state = checkpoint.state();
    if continuing::is_start(state, settings) {
        // It is continued in place, with settings of its own, and has saved nothing yet.
        return Ok(());
    }
    let now = settings.decisive();
    let saved = state.settings.iter().flatten();
    // A setting that this version no longer has is no longer decisive.
    let mut changed = saved.filter_map(|(name, then)| Some((name, then, now.get(name)?)));
    if let Some((name, then, now)) = changed.find(|(_, then, now)| then != now) {
        let reason = format!(
            "was saved with {name} = {then}, but hyperparameters.json now says {now}: put {then} back, or branch off \
             with --from_checkpoint"
        );
        return Err(Error::Checkpoint { path: checkpoint.directory().to_path_buf(), reason });
    }
    Ok(())
}

impl TrainingState {
    /// The state of a run before its first step.
    fn new(identity: Identity, settings: &Settings) -> Self {
        let seed = settings.seed;
        Self {
            identity,
            settings: Some(settings.decisive()),
            epoch: 0,
            global_step: 0,
            optimizer_steps: 0,
            skipped_in_a_row: 0,
            schedule_start: ScheduleStart::default(),
            order: Rng::new(seed, Stream::Order),
            dropout: Rng::new(seed, Stream::Dropout),
            under_way: EpochSums::default(),
            cut_short: None,
            history: History::default(),
        }
    }
}
