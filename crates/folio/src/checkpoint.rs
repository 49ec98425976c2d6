//! Checkpoints: directories with the complete state of a run.
//!
//! - `model.safetensors`: the weights under Hugging Face's GPT-2 names;
//! - `config.json`, `generation_config.json`, `tokenizer.json`, `tokenizer_config.json`: what transformers needs to load
//!   the directory as it is, with `AutoTokenizer`, `AutoModelForCausalLM` or `pipeline` (transformers.rs). Checkpoints of
//!   earlier versions have only the first of them;
//! - `optimizer.safetensors`: AdamW's moments, `mean.NAME` (exp_avg) and `square.NAME` (exp_avg_sq); absent if only the weights
//!   are kept. If `model.safetensors` has the moving average of the weights, the weights themselves are `weight.NAME` here;
//! - `state.json`: the position in the run, random streams and losses;
//! - `manifest.json`: length and SHA-256 of each file, verified whenever one is read.
//!
//! A checkpoint is written under a temporary name and then renamed, so an existing checkpoint is complete.

use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::data::SplitKind;
use crate::error::{Error, Result};
use crate::files::{remove_rubbish, write_directory_atomic, write_json};
use crate::history::{EpochSums, History};
use crate::model::{ModelConfig, Moments, ParameterSpec, Parameters};
use crate::rng::{Rng, Stream};
use crate::settings::Settings;
use crate::tokenizer::Tokenizer;

mod manifest;
mod name;
pub(crate) mod tensors;
pub(crate) mod transformers;

use manifest::{MANIFEST_FILE, Manifest};
pub use name::{CheckpointName, lowest_eval_loss};

/// The versions that can be read. The last one is written for models that are not a plain GPT-2, so that a folio that
/// would compute them wrongly refuses them; the one before for all others.
const FORMATS: RangeInclusive<u32> = 2..=4;

pub(crate) const MODEL_FILE: &str = "model.safetensors";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const STATE_FILE: &str = "state.json";

/// Prefixes of the tensor names in [`OPTIMIZER_FILE`].
const EXP_AVG: &str = "mean.";
const EXP_AVG_SQ: &str = "square.";
const WEIGHT: &str = "weight.";

/// The state of a run besides weights and moments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingState {
    /// What must be equal for a run to resume from here.
    pub identity: Identity,
    /// [`Settings::decisive`]; `None` in checkpoints of format 2.
    #[serde(default)]
    pub settings: Option<Map<String, Value>>,
    /// Completed epochs.
    pub epoch: u64,
    /// Steps taken, including skipped ones.
    pub global_step: u64,
    /// Updates by the optimizer.
    pub optimizer_steps: u64,
    /// The number of successive steps skipped up to now.
    pub skipped_in_a_row: u64,
    /// Where the schedule starts: at 0 unless it was restarted.
    pub schedule_start: ScheduleStart,
    /// The random stream that shuffles the blocks, before it shuffled those of the current epoch.
    pub order: Rng,
    /// The random stream of dropout keys, before the next step.
    pub dropout: Rng,
    /// The current epoch.
    #[serde(rename = "under_way")]
    pub epoch_progress: EpochSums,
    /// If `max_steps` cut the last epoch short: how to complete it.
    pub cut_short: Option<CutShort>,
    /// Losses and learning rates so far.
    pub history: History,
    /// Whether the checkpoint's model is the moving average of the weights.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub averaged: bool,
    /// The step at which the run began: 0 unless it continues another.
    #[serde(default, skip_serializing_if = "is_first")]
    pub start_step: u64,
    /// The step from which on all evaluations are on the present text: 0 unless a run continued on another.
    #[serde(default, skip_serializing_if = "is_first")]
    pub text_start_step: u64,
}

impl TrainingState {
    /// The state of a run before its first step.
    pub(crate) fn new(identity: Identity, settings: &Settings) -> Self {
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
            epoch_progress: EpochSums::default(),
            cut_short: None,
            history: History::default(),
            averaged: settings.ema_decay > 0.0,
            start_step: 0,
            text_start_step: 0,
        }
    }

    /// Validates the numbers, so that code that uses them need not.
    fn check(&self) -> std::result::Result<(), String> {
        self.identity.model.validate().map_err(|error| error.to_string())?;
        let Self { epoch_progress, schedule_start, history, .. } = self;
        let began = self.global_step.checked_sub(epoch_progress.batches);
        let learned = epoch_progress.batches.checked_sub(epoch_progress.skipped);
        let cut_short = self.cut_short.as_ref();
        let cut = cut_short.is_none_or(|cut| {
            cut.sums.batches <= self.global_step && cut.sums.skipped <= cut.sums.batches && self.epoch > 0
        });
        let streams = [Some(&self.order), Some(&self.dropout), cut_short.map(|cut| &cut.order)];
        let facts = [
            ("more steps in the epoch than in total", began.is_some()),
            ("more skipped steps than steps", learned.is_some() && self.optimizer_steps <= self.global_step),
            ("an impossible shortened epoch", cut),
            ("a schedule that begins later than now", {
                schedule_start.epoch <= self.epoch && schedule_start.step <= self.global_step
            }),
            ("a beginning that is later than now", {
                self.start_step <= self.global_step && self.text_start_step <= self.global_step
            }),
            ("a random stream that is stuck", streams.into_iter().flatten().all(Rng::is_sound)),
            ("evaluations out of order or later than now", {
                let evaluations = &history.evaluations;
                evaluations.is_sorted_by_key(|evaluation| evaluation.step)
                    && evaluations.last().is_none_or(|last| last.step <= self.global_step)
            }),
            ("a history whose length is not the number of epochs", history.epochs.len() as u64 == self.epoch),
        ];
        facts.iter().find(|(_, holds)| !holds).map_or(Ok(()), |(what, _)| Err((*what).to_owned()))
    }
}

/// What identifies a run, and must not change when it resumes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The model's sizes.
    pub model: ModelConfig,
    /// The tokenizer's [`Tokenizer::digest`].
    pub tokenizer_sha256: String,
    /// The SHA-256 of the text.
    pub data_sha256: String,
    /// The SHA-256 of the evaluation text, if there is a separate one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_data_sha256: Option<String>,
    /// Whether special tokens written in the text are encoded as such.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub special_tokens: bool,
    /// How the text is split.
    pub split: SplitKind,
    /// The share of the evaluation text that is held out for a test.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub test_fraction: f64,
    /// The seed, which also determines the split.
    pub seed: u64,
}

fn is_first(step: &u64) -> bool {
    *step == 0
}

fn is_zero(number: &f64) -> bool {
    *number == 0.0
}

impl Identity {
    /// The identity of a run with these settings.
    pub fn of(settings: &Settings, tokenizer: &Tokenizer) -> Self {
        Self {
            model: settings.model_config(tokenizer.vocab_size()),
            tokenizer_sha256: tokenizer.digest(),
            data_sha256: settings.data_sha256.clone(),
            eval_data_sha256: settings.eval_data_sha256.clone(),
            special_tokens: settings.special_tokens,
            split: settings.split,
            test_fraction: settings.test_fraction,
            seed: settings.seed,
        }
    }
}

impl Identity {
    /// What differs between the texts of two runs, so that text which one was evaluated on may have trained the other; none if
    /// nothing does. The tokenizers and the block sizes must be the same.
    pub fn text_difference(&self, other: &Self) -> Option<&'static str> {
        let has_own_eval = self.eval_data_sha256.is_some();
        // A contiguous split does not depend on the seed.
        let is_shuffled = self.split == SplitKind::Blocks && !has_own_eval;
        let facts = [
            ("text", self.data_sha256 == other.data_sha256),
            ("evaluation text", self.eval_data_sha256 == other.eval_data_sha256),
            ("reading of special tokens", self.special_tokens == other.special_tokens),
            ("split", self.split == other.split || has_own_eval),
            ("test part", self.test_fraction == other.test_fraction),
            ("seed of the split", self.seed == other.seed || !is_shuffled),
        ];
        facts.iter().find(|(_, same)| !same).map(|(what, _)| *what)
    }
}

/// Where a schedule starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleStart {
    /// Epochs completed before.
    pub epoch: u64,
    /// Steps taken before.
    pub step: u64,
}

/// An epoch that ended before all its blocks were used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CutShort {
    /// The random stream before it shuffled the epoch's blocks.
    pub order: Rng,
    /// The sums of its steps.
    pub sums: EpochSums,
}

/// The arrays of a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Tensors<'a> {
    /// The weights.
    pub parameters: &'a Parameters,
    /// AdamW's moments. A checkpoint without them is not resumable, like that of an imported model.
    pub moments: Option<&'a Moments>,
    /// The moving average of the weights, if there is one. It is then the checkpoint's model.
    pub average: Option<&'a Parameters>,
}

/// Writes a checkpoint, replacing an existing one. `state.averaged` must say whether there is an average.
///
/// # Errors
/// [`Error::File`] if it cannot be written. An existing checkpoint is then unchanged.
pub fn save(
    directory: &Path,
    tensors: Tensors<'_>,
    state: &TrainingState,
    tokenizer: &Tokenizer,
) -> Result<()> {
    let Tensors { parameters, moments, average } = tensors;
    assert_eq!(state.averaged, average.is_some(), "the state describes the tensors");
    write_directory_atomic(directory, |inside| {
        let model = average.unwrap_or(parameters);
        tensors::write(&inside.join(MODEL_FILE), &[("", model.values())], model.specs())?;
        if let Some(Moments { exp_avg, exp_avg_sq }) = moments {
            let mut arrays = vec![(EXP_AVG, &exp_avg[..]), (EXP_AVG_SQ, &exp_avg_sq[..])];
            arrays.extend(average.map(|_| (WEIGHT, parameters.values())));
            tensors::write(&inside.join(OPTIMIZER_FILE), &arrays, parameters.specs())?;
        }
        write_json(&inside.join(STATE_FILE), state)?;
        transformers::write(inside, &state.identity.model, tokenizer)?;
        let own = [MODEL_FILE, STATE_FILE, OPTIMIZER_FILE];
        let own = &own[..if moments.is_some() { 3 } else { 2 }];
        let format = *FORMATS.end() - u32::from(state.identity.model.is_plain());
        Manifest::of(format, inside, own.iter().chain(&transformers::FILES))?.write(inside)
    })
}

/// The files of a checkpoint according to its manifest, including those that [`strip`] removes.
///
/// # Errors
/// If the manifest cannot be read.
pub(crate) fn listed_files(directory: &Path) -> Result<Vec<String>> {
    let manifest = Manifest::read(directory)?;
    Ok(manifest.names().chain([MANIFEST_FILE, OPTIMIZER_FILE]).map(str::to_owned).collect())
}

/// Checks the lengths of a checkpoint's files against its manifest. The error is the first file of another length, or the
/// manifest if it cannot be read. Fast, unlike [`Checkpoint::verify`].
pub(crate) fn check_lengths(directory: &Path) -> std::result::Result<(), PathBuf> {
    let manifest = Manifest::read(directory).map_err(|_| directory.join(MANIFEST_FILE))?;
    manifest.check_lengths(directory).map_err(|name| directory.join(name))
}

/// Removes the optimizer's state from a checkpoint.
///
/// # Errors
/// If it is damaged, or cannot be written.
pub fn strip(directory: &Path) -> Result<()> {
    let mut manifest = Manifest::read(directory)?;
    if manifest.remove(OPTIMIZER_FILE) {
        manifest.write(directory)?;
    }
    // Also completes an interrupted call.
    remove_rubbish(directory)?;
    let optimizer = directory.join(OPTIMIZER_FILE);
    if optimizer.exists() {
        fs::remove_file(&optimizer).map_err(Error::file("remove", &optimizer))?;
    }
    Ok(())
}

/// A checkpoint with a valid manifest and state.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    directory: PathBuf,
    manifest: Manifest,
    state: TrainingState,
}

impl Checkpoint {
    /// Opens a checkpoint. Tensors are read and verified on demand.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if something is missing, damaged, or of another version.
    pub fn open(directory: &Path) -> Result<Self> {
        let manifest = Manifest::read(directory)?;
        let bytes = manifest.read_file(directory, STATE_FILE)?;
        let state: TrainingState = serde_json::from_slice(&bytes)
            .map_err(|error| damaged(directory, format!("{STATE_FILE} is not valid: {error}")))?;
        state.check().map_err(|what| damaged(directory, format!("{STATE_FILE}: {what}")))?;
        Ok(Self { directory: directory.to_path_buf(), manifest, state })
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The state of the run.
    pub fn state(&self) -> &TrainingState {
        &self.state
    }

    /// Whether training can resume from here with the optimizer's state.
    pub fn is_resumable(&self) -> bool {
        self.manifest.holds(OPTIMIZER_FILE)
    }

    /// The SHA-256 of the file with the weights, which is verified when they are read.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if it has none.
    pub fn weights_sha256(&self) -> Result<&str> {
        let missing = || damaged(&self.directory, format!("{MODEL_FILE} is not listed"));
        self.manifest.sha256_of(MODEL_FILE).ok_or_else(missing)
    }

    /// Verifies every file, including those that folio does not read.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if one is missing or damaged.
    pub fn verify(&self) -> Result<()> {
        self.manifest.verify(&self.directory)
    }

    /// Checks that the model was trained with this tokenizer.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if it was not.
    pub fn check_tokenizer(&self, tokenizer: &Tokenizer) -> Result<()> {
        if tokenizer.digest() == self.state.identity.tokenizer_sha256 {
            return Ok(());
        }
        let reason =
            "was trained with another tokenizer; tokenizer.json of the run has been changed: restore it";
        Err(self.error(reason.to_owned()))
    }

    /// The weights of the model: their moving average if the run has one.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if they are missing, damaged, or not of the model's shapes.
    pub fn parameters(&self) -> Result<Parameters> {
        let bytes = self.manifest.read_file(&self.directory, MODEL_FILE)?;
        self.check_room(&bytes)?;
        let mut parameters = Parameters::zeros(&self.state.identity.model);
        let specs = parameters.specs().to_vec();
        tensors::read(
            &self.directory.join(MODEL_FILE),
            &bytes,
            &specs,
            &mut [("", parameters.values_mut())],
        )?;
        Ok(parameters)
    }

    /// AdamW's moments of a model with these parameters.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if it was not kept, is damaged, or not of the model's shapes.
    pub fn moments(&self, specs: &[ParameterSpec]) -> Result<Moments> {
        let bytes = self.optimizer_file()?;
        let count = specs.last().map_or(0, |spec| spec.range.end);
        let mut moments = Moments::zeros(count);
        let arrays = &mut [(EXP_AVG, &mut moments.exp_avg[..]), (EXP_AVG_SQ, &mut moments.exp_avg_sq[..])];
        tensors::read(&self.directory.join(OPTIMIZER_FILE), &bytes, specs, arrays)?;
        Ok(moments)
    }

    /// The weights that training resumes with, if the model is their moving average.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if they were not kept, are damaged, or not of the model's shapes.
    pub fn weights_without_averaging(&self) -> Result<Parameters> {
        let bytes = self.optimizer_file()?;
        let mut parameters = Parameters::zeros(&self.state.identity.model);
        let specs = parameters.specs().to_vec();
        let arrays = &mut [(WEIGHT, parameters.values_mut())];
        tensors::read(&self.directory.join(OPTIMIZER_FILE), &bytes, &specs, arrays)?;
        Ok(parameters)
    }

    /// The content of the optimizer's file.
    fn optimizer_file(&self) -> Result<Vec<u8>> {
        if !self.is_resumable() {
            let reason = "keeps the weights alone, without the optimizer's state";
            return Err(self.error(reason.to_owned()));
        }
        self.manifest.read_file(&self.directory, OPTIMIZER_FILE)
    }

    /// Checks that a file is large enough for the model before memory is allocated for it.
    fn check_room(&self, bytes: &[u8]) -> Result<()> {
        let least = 4 * self.state.identity.model.matrix_elements();
        if bytes.len() as u128 >= least {
            return Ok(());
        }
        Err(damaged(&self.directory, format!("{MODEL_FILE} is too small for the model of {STATE_FILE}")))
    }

    fn error(&self, reason: String) -> Error {
        Error::Checkpoint { path: self.directory.clone(), reason }
    }
}

/// The error for a damaged checkpoint.
fn damaged(directory: &Path, what: String) -> Error {
    let reason = format!("is damaged: {what}; take another checkpoint of the run");
    Error::Checkpoint { path: directory.to_path_buf(), reason }
}
