//! The training loop.
//!
//! [`Trainer`] neither prints nor parses arguments. It reports [`Event`]s to a callback.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::checkpoint::{CutShort, TrainingState};
use crate::data::{BatchBuffer, Dataset, TokenStream};
use crate::distributed::{Communicator, Division, Reduction, SingleProcess, Timed, any};
use crate::error::{Error, Result};
use crate::generate::{Generator, Request};
use crate::history::{EpochReport, History};
use crate::model::{
    Backend, CpuBackend, InferenceModel, ModelConfig, Parameters, Precision, StepBatch, WeightFormat,
};
use crate::optim::AdamW;
use crate::rng::Rng;
use crate::run_dir::RunDir;
use crate::settings::Settings;
use crate::teachers::Teachers;
use crate::text::TextPerToken;
use crate::tokenizer::Tokenizer;

mod continuing;
mod evaluating;
mod event;
mod length;
mod load;
mod prepared;
pub(crate) mod ranks;
mod rates;
mod saver;
mod sharing;
mod teaching;

pub use continuing::{check_same, check_start};
use evaluating::EvalLosses;
pub use event::{Event, Outcome, RankReport, Requests, StepReport};
use load::RankLoad;
use prepared::Prepared;
use saver::Saver;
pub use teaching::SharedTable;
use teaching::Teaching;

/// Tokens of an epoch's sample unless set.
const SAMPLE_TOKENS: usize = 100;

/// Makes a model with given weights on some device.
pub type NewBackend = dyn Fn(ModelConfig, Precision, Parameters) -> Box<dyn Backend>;

/// A model on the CPU of this process: a [`NewBackend`].
pub fn on_cpu(config: ModelConfig, precision: Precision, parameters: Parameters) -> Box<dyn Backend> {
    Box::new(CpuBackend::from_parameters(config, precision, parameters))
}

/// Where a run begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Start {
    /// With random weights.
    Fresh,
    /// From a checkpoint of a run, for further epochs.
    Checkpoint {
        /// The run.
        run: RunDir,
        /// The epoch of the checkpoint.
        number: u64,
        /// Whether the schedule restarts here.
        restart_schedule: bool,
    },
    /// From its own newest checkpoint, or from the beginning if it has none.
    Resume {
        /// The run.
        run: RunDir,
        /// Whether to fall back on an earlier checkpoint if the newest is damaged.
        skip_damaged: bool,
    },
}

/// One run.
pub struct Trainer {
    settings: Settings,
    dataset: Dataset,
    /// `None` on ranks other than 0, which neither save nor generate.
    tokenizer: Option<Arc<Tokenizer>>,
    /// `None` without teachers, and on ranks other than 0.
    teachers: Option<Teachers>,
    shared_table: SharedTable,
    /// `None` without teachers, and before training starts.
    teaching: Option<Teaching>,
    backend: Box<dyn Backend>,
    communicator: Timed,
    load: RankLoad,
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
    /// Prepares a run on the CPU, in a single process.
    ///
    /// # Errors
    /// If the settings are not valid, the text is too short for them, or the checkpoint is missing, damaged or
    /// of another model, text or split.
    pub fn new(
        settings: Settings,
        stream: Arc<TokenStream>,
        tokenizer: Arc<Tokenizer>,
        start: &Start,
    ) -> Result<Self> {
        Self::on(&on_cpu, Box::new(SingleProcess), settings, stream, tokenizer, start)
    }

    /// Prepares a run on some device. Of several ranks that train it together, rank 0 calls this; the others call
    /// [`Trainer::follow`], and receive settings, text and weights from it.
    ///
    /// # Errors
    /// As [`Trainer::new`]; also if there are more ranks than sequences in a batch, or another rank has another version of folio or
    /// another instruction set.
    pub fn on(
        new_backend: &NewBackend,
        communicator: Box<dyn Communicator>,
        settings: Settings,
        stream: Arc<TokenStream>,
        tokenizer: Arc<Tokenizer>,
        start: &Start,
    ) -> Result<Self> {
        assert_eq!(communicator.rank(), 0, "the other ranks follow");
        let prepared = ranks::check_enough_sequences(&*communicator, &settings)
            .and_then(|()| Prepared::new(new_backend, settings, stream, tokenizer, start));
        if communicator.world_size() == 1 {
            return prepared.map(|prepared| Self::begin(communicator, prepared));
        }
        let prepared = prepared.and_then(|prepared| Ok((sharing::header(&prepared)?, prepared)));
        let (header, mut prepared) = ranks::all_succeed(&*communicator, prepared, "prepare the run")?;
        ranks::check_agreement(&*communicator)?;
        sharing::send(&*communicator, &header, &prepared);
        sharing::shard(&*communicator, &prepared.settings, &mut *prepared.backend);
        Ok(Self::begin(communicator, prepared))
    }

    /// Joins the run that rank 0 prepares with [`Trainer::on`], as one of the other ranks.
    ///
    /// # Errors
    /// [`Error::Ranks`] if rank 0 could not prepare the run, or ranks differ in the version of folio or in the instruction set.
    pub fn follow(new_backend: &NewBackend, communicator: Box<dyn Communicator>) -> Result<Self> {
        assert_ne!(communicator.rank(), 0, "rank 0 prepares the run");
        ranks::all_succeed(&*communicator, Ok(()), "prepare the run")?;
        ranks::check_agreement(&*communicator)?;
        let prepared = sharing::receive(&*communicator, new_backend)?;
        Ok(Self::begin(communicator, prepared))
    }

    fn begin(communicator: Box<dyn Communicator>, prepared: Prepared) -> Self {
        let Prepared { settings, dataset, tokenizer, teachers, backend, state, .. } = prepared;
        let Prepared { resumed_from, has_optimizer, train_text, eval_text, .. } = prepared;
        let optimizer = AdamW::resume(settings.adamw(), state.optimizer_steps).with_muon(settings.muon());
        let buffer = BatchBuffer::default();
        Self {
            settings,
            dataset,
            tokenizer,
            teachers,
            shared_table: SharedTable::default(),
            teaching: None,
            backend,
            communicator: Timed::new(communicator),
            load: RankLoad::default(),
            optimizer,
            state,
            resumed_from,
            has_optimizer,
            buffer,
            train_text,
            eval_text,
        }
    }

    /// Whether this is rank 0, which writes files and reports.
    pub fn is_primary(&self) -> bool {
        self.communicator.rank() == 0
    }

    /// The run's settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The tokenizer.
    ///
    /// # Panics
    /// On ranks other than 0.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        self.tokenizer.as_ref().expect("rank 0 has the tokenizer")
    }

    /// The text in blocks.
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// The model in its current state.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// The model, mutable.
    pub fn backend_mut(&mut self) -> &mut dyn Backend {
        &mut *self.backend
    }

    /// The position in the run, and its history.
    pub fn state(&self) -> &TrainingState {
        &self.state
    }

    /// The losses and rates so far.
    pub fn history(&self) -> &History {
        &self.state.history
    }

    /// The checkpoint that the run starts from, if any.
    pub fn resumed_from(&self) -> Option<&Path> {
        self.resumed_from.as_deref()
    }

    /// Whether AdamW's moments were in the checkpoint. If not, they start at zero.
    pub fn has_optimizer(&self) -> bool {
        self.has_optimizer
    }

    /// Trains for the settings' epochs, to their step limit, until the evaluation loss stops improving, or until a stop is
    /// requested. Saves losses and checkpoints in `run_dir`, if there is one; of several ranks only rank 0 does.
    ///
    /// # Errors
    /// If the losses or gradients of too many successive steps are not finite, if nothing can be written to `run_dir` before
    /// the first step, or if the last state could not be saved.
    pub fn run(
        &mut self,
        run_dir: Option<&RunDir>,
        requests: &Requests,
        on_event: &mut dyn FnMut(&Event),
    ) -> Result<Outcome> {
        let run_dir = run_dir.filter(|_| self.is_primary());
        let saver = Saver::begin(run_dir, self);
        let mut saver = ranks::all_succeed(&self.communicator, saver, "start the run")?;
        let outcome = self.train(&mut saver, run_dir, requests, on_event);
        if outcome.is_ok() {
            self.report_ranks(on_event);
        }
        let outcome = saver.end(self, outcome);
        ranks::all_succeed(&self.communicator, outcome, "save the run")
    }

    /// The loop itself.
    fn train(
        &mut self,
        saver: &mut Saver,
        run_dir: Option<&RunDir>,
        requests: &Requests,
        on_event: &mut dyn FnMut(&Event),
    ) -> Result<Outcome> {
        let last_epoch = self.last_epoch();
        self.report_start(on_event);
        if !self.meet_teachers(run_dir, requests, on_event)? {
            return Ok(Outcome::Stopped);
        }
        while self.state.epoch < last_epoch && !self.is_out_of_patience() {
            let epoch = self.state.epoch + 1;
            let (steps, taken) = (self.steps_of_epoch(), self.state.epoch_progress.batches);
            on_event(&Event::EpochStarted { epoch, last_epoch, steps, taken });

            let mut order = self.state.order.clone();
            let blocks = self.dataset.epoch_blocks(self.settings.block_offset, &mut order);
            let batches = blocks.chunks(self.settings.batch_size).take(steps as usize);
            // The run may have been stopped during an evaluation, or `max_steps` may have ended the epoch here.
            if self.is_evaluation_due()
                && let Some(outcome) = self.end_step(saver, requests, on_event)?
            {
                return Ok(outcome);
            }
            for starts in batches.skip(taken as usize) {
                on_event(&Event::Step(self.step(starts)?));
                self.check_finite(saver)?;
                if let Some(outcome) = self.end_step(saver, requests, on_event)? {
                    return Ok(outcome);
                }
            }

            on_event(&Event::Evaluating);
            let Some(losses) = self.eval_losses(|| !requests.stop_requested()) else {
                saver.save_last_step(self, true, on_event);
                return Ok(Outcome::Stopped);
            };
            let report = self.end_epoch(losses, order, saver)?;
            let tokens = self.settings.sample_tokens.unwrap_or(SAMPLE_TOKENS);
            let sample = run_dir.is_some().then(|| self.sample(tokens));
            on_event(&Event::EpochEnded { epoch, last_epoch, report, sample });
            saver.save_epoch(self, on_event);
            let [stop] = any(&self.communicator, [requests.stop_requested()]);
            if stop || self.is_out_of_patience() {
                // Retried here, because there is no next save.
                let [has_failed] = any(&self.communicator, [saver.has_failed()]);
                if has_failed {
                    saver.save_epoch(self, on_event);
                }
            }
            if stop {
                return Ok(Outcome::Stopped);
            }
        }
        self.report_early_stop(on_event);
        Ok(Outcome::Finished)
    }

    /// What follows a step inside an epoch: evaluates and saves, if either is due. Returns how training ends, if it does.
    fn end_step(
        &mut self,
        saver: &mut Saver,
        requests: &Requests,
        on_event: &mut dyn FnMut(&Event),
    ) -> Result<Option<Outcome>> {
        let (mut is_best, mut is_over) = (false, false);
        if self.is_evaluation_due() {
            on_event(&Event::Evaluating);
            let Some(losses) = self.eval_losses(|| !requests.stop_requested()) else {
                saver.save_last_step(self, true, on_event);
                return Ok(Some(Outcome::Stopped));
            };
            let evaluation = self.note_evaluation(losses, saver)?;
            on_event(&Event::Evaluated { epoch: self.state.epoch + 1, evaluation });
            is_best = self.own_best().is_some_and(|(_, step)| step == evaluation.step);
            is_over = self.is_out_of_patience();
        }
        let step = self.state.global_step;
        let due = self.settings.save_every.is_some_and(|every| step.is_multiple_of(every));
        let [save, stop] = any(&self.communicator, [requests.take_save(), requests.stop_requested()]);
        if stop || is_over {
            saver.save_last_step(self, save || stop, on_event);
        } else if save || due || is_best {
            saver.save_step(self, save, on_event);
        }
        if is_over {
            self.report_early_stop(on_event);
            return Ok(Some(Outcome::Finished));
        }
        Ok(stop.then_some(Outcome::Stopped))
    }

    fn report_start(&self, on_event: &mut dyn FnMut(&Event)) {
        let TrainingState { epoch, global_step: step, .. } = self.state;
        let weights = self.backend.parameters();
        let parameters = weights.values().len() as u64;
        let trained = self.settings.freeze.trained(&weights).map(|range| range.len() as u64).sum();
        let (steps, precision) = (self.steps_left(), self.settings.precision);
        let evaluated = self.history().evaluations.last().map_or(0, |last| last.step);
        on_event(&Event::Started { epoch, step, steps, parameters, trained, precision, evaluated });
    }

    /// One optimizer step on the blocks at `starts`. If the loss or the gradients are not finite, the weights stay as they are.
    fn step(&mut self, starts: &[usize]) -> Result<StepReport> {
        let (learning_rate, progress) = (self.learning_rate(), self.schedule_progress());
        let communicator = &self.communicator;
        let started = self.load.begin_step(communicator);
        let division = Division::of(communicator, starts.len(), self.settings.gradient_accumulation_steps);
        let (own, time) = (&starts[division.own()], self.settings.block_size);
        let batch = self.buffer.fill(&self.dataset, own, time);
        let teaching = self.teaching.as_mut();
        let soft_targets = teaching.map(|teaching| teaching.soft_targets(own, time)).transpose()?;
        let dropout_key = self.state.dropout.next_u64();
        let label_smoothing = self.settings.label_smoothing as f32;
        let dropout = Some(self.settings.dropout_at(progress) as f32);
        let step = StepBatch { batch, division, dropout_key, dropout, label_smoothing, soft_targets };
        let reduction = Reduction { communicator, precision: self.settings.reduce_precision };
        let mut losses = [self.backend.reduced_forward_backward(step, reduction)];
        communicator.all_reduce_f64(&mut losses);
        let tokens = step.total_tokens() as u64;
        let loss = (losses[0] / tokens as f64) as f32;
        let gradient_norm = if loss.is_finite() {
            self.optimizer.set_weight_decay(self.settings.weight_decay_at(progress));
            self.optimizer.step(&mut *self.backend, learning_rate)
        } else {
            f64::NAN
        };
        let skipped = !gradient_norm.is_finite();
        if !skipped {
            self.backend.share_weights(communicator);
        }
        if !skipped && self.state.averaged {
            self.backend.update_average(self.settings.ema_decay_at(self.optimizer.steps()));
        }
        let own_tokens = step.batch.inputs.len();
        self.load.end_step(started, communicator, own_tokens);
        let state = &mut self.state;
        state.global_step += 1;
        state.optimizer_steps = self.optimizer.steps();
        state.skipped_in_a_row = if skipped { state.skipped_in_a_row + 1 } else { 0 };
        let sums = &mut state.epoch_progress;
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
        Ok(StepReport { epoch, step, tokens, loss, gradient_norm, learning_rate, skipped })
    }

    /// Fails if too many successive steps were skipped.
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
        let TrainingState { global_step: step, ref epoch_progress, .. } = self.state;
        let last_checkpoint = saver.checkpoint.clone();
        Error::Diverged { what, step, learning_rate: epoch_progress.learning_rate, last_checkpoint }
    }

    /// Ends the current epoch. `order` is the random stream after it has shuffled the epoch's blocks.
    fn end_epoch(&mut self, losses: EvalLosses, order: Rng, saver: &Saver) -> Result<EpochReport> {
        let EvalLosses { model: eval_loss, weights: raw_eval_loss } = losses;
        if self.state.epoch_progress.learned() == 0 {
            return Err(self.diverged("no loss or gradient of the epoch is finite".to_owned(), saver));
        }
        if !eval_loss.is_finite() {
            return Err(self.diverged(format!("the evaluation loss is {eval_loss}"), saver));
        }
        let cut_short =
            self.state.epoch_progress.batches < self.dataset.steps_per_epoch(self.settings.batch_size);
        let state = &mut self.state;
        let before = std::mem::replace(&mut state.order, order);
        let sums = std::mem::take(&mut state.epoch_progress);
        let learned = sums.learned() as f64;
        let train_loss = sums.loss / learned;
        let report = EpochReport {
            train_loss,
            eval_loss,
            raw_eval_loss,
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

    /// Text generated by the model in its current state from token 0, as in the original project. The same for the same weights.
    pub fn sample(&mut self, tokens: usize) -> String {
        if tokens == 0 {
            return String::new();
        }
        let (config, format) = (*self.backend.config(), WeightFormat::of(self.settings.precision));
        let weights = self.backend.average().unwrap_or_else(|| self.backend.parameters());
        let model = Arc::new(InferenceModel::new(config, format, &weights));
        let mut text = String::new();
        let request = Request { max_new_tokens: tokens, seed: self.settings.seed, ..Request::default() };
        let mut generator = Generator::new(model, Arc::clone(self.tokenizer()));
        let written = generator.generate(request, |token| text += token.text);
        written.expect("a request without a prompt can be met");
        text
    }
}
