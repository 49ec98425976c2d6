//! Checkpoints: directories that hold what a run is at one moment.
//!
//! - `model.safetensors`: the weights under Hugging Face's GPT-2 names;
//! - `config.json`, `generation_config.json`, `tokenizer.json`, `tokenizer_config.json`: what transformers needs to load
//!   the directory as it is, with `AutoTokenizer`, `AutoModelForCausalLM` or `pipeline` (transformers.rs). Checkpoints of
//!   earlier versions have only the first of them;
//! - `optimizer.safetensors`: AdamW's two means, as `mean.NAME` and `square.NAME`; not in one that keeps weights alone;
//! - `state.json`: the place in the run, random streams and histories;
//! - `manifest.json`: length and SHA-256 of each of these, checked whenever one is read.
//!
//! A checkpoint is filled under a temporary name and renamed, so that one that exists is whole.

use std::fmt::{self, Display};
use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::data::SplitKind;
use crate::error::{Error, Result};
use crate::files::{remove_rubbish, write_directory_atomic, write_json};
use crate::history::{EpochSums, History};
use crate::model::{ModelConfig, ParameterSpec, Parameters};
use crate::optim::{AdamW, AdamWConfig};
use crate::rng::Rng;
use crate::settings::Settings;
use crate::tokenizer::Tokenizer;

mod manifest;
mod tensors;
mod transformers;

use manifest::{MANIFEST_FILE, Manifest};

/// The versions of these files that are read; the last is written.
const FORMATS: RangeInclusive<u32> = 2..=3;

const MODEL_FILE: &str = "model.safetensors";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const STATE_FILE: &str = "state.json";

/// What a checkpoint is called in its run's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CheckpointName {
    /// `checkpoint_N`: after epoch N, with its evaluation.
    Epoch(u64),
    /// `step_N`: after step N, in the midst of an epoch or of a run that keeps no other. There is one at most.
    Step(u64),
}

impl Display for CheckpointName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Epoch(epoch) => write!(formatter, "checkpoint_{epoch}"),
            Self::Step(step) => write!(formatter, "step_{step}"),
        }
    }
}

impl CheckpointName {
    /// The name as a directory's, if it is one.
    pub fn parse(name: &str) -> Option<Self> {
        let number = |prefix| name.strip_prefix(prefix)?.parse().ok();
        let found = number("checkpoint_").map(Self::Epoch).or_else(|| number("step_").map(Self::Step))?;
        // `checkpoint_007` is not ours.
        (found.to_string() == name).then_some(found)
    }
}

/// What a run is made of besides weights and optimizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingState {
    /// What must be the same for a run to go on from here.
    pub identity: Identity,
    /// [`Settings::decisive`]; none in checkpoints of format 2.
    #[serde(default)]
    pub settings: Option<Map<String, Value>>,
    /// Epochs ended.
    pub epoch: u64,
    /// Steps taken, those that were skipped included.
    pub global_step: u64,
    /// Steps that the optimizer took.
    pub optimizer_steps: u64,
    /// How many of the last steps were skipped.
    pub skipped_in_a_row: u64,
    /// The epoch and the step at which the schedule began to count: 0 unless it was restarted.
    pub schedule_start: ScheduleStart,
    /// The stream that orders the blocks, before it ordered those of the epoch under way.
    pub order: Rng,
    /// The stream that keys the dropout of the next step.
    pub dropout: Rng,
    /// The epoch under way.
    pub under_way: EpochSums,
    /// If the last epoch was ended early by a limit to the steps: how to take it up again.
    pub cut_short: Option<CutShort>,
    /// The losses and rates so far.
    pub history: History,
}

impl TrainingState {
    /// Checks that the numbers can have been written by a run, so that nothing that uses them need doubt it.
    fn check(&self) -> std::result::Result<(), String> {
        self.identity.model.validate().map_err(|error| error.to_string())?;
        let Self { under_way, schedule_start, history, .. } = self;
        let began = self.global_step.checked_sub(under_way.batches);
        let learned = under_way.batches.checked_sub(under_way.skipped);
        let cut_short = self.cut_short.as_ref();
        let cut = cut_short.is_none_or(|cut| {
            cut.sums.batches <= self.global_step && cut.sums.skipped <= cut.sums.batches && self.epoch > 0
        });
        let streams = [Some(&self.order), Some(&self.dropout), cut_short.map(|cut| &cut.order)];
        let facts = [
            ("more steps in the epoch than in all", began.is_some()),
            ("more skipped steps than steps", learned.is_some() && self.optimizer_steps <= self.global_step),
            ("an epoch cut short that cannot have been", cut),
            ("a schedule that begins later than now", {
                schedule_start.epoch <= self.epoch && schedule_start.step <= self.global_step
            }),
            ("a random stream that is stuck", streams.into_iter().flatten().all(Rng::is_sound)),
            ("a history of other length than its epochs", history.epochs.len() as u64 == self.epoch),
        ];
        facts.iter().find(|(_, holds)| !holds).map_or(Ok(()), |(what, _)| Err((*what).to_owned()))
    }
}

/// What a run is about, and may not change when it goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The model's sizes.
    pub model: ModelConfig,
    /// The tokenizer's [`Tokenizer::digest`].
    pub tokenizer_sha256: String,
    /// The text's.
    pub data_sha256: String,
    /// The evaluation text's, if it is one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_data_sha256: Option<String>,
    /// Whether special tokens that are written in the text count as such.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub special_tokens: bool,
    /// How the text is divided.
    pub split: SplitKind,
    /// The seed, by which it is divided too.
    pub seed: u64,
}

impl Identity {
    /// What a run with these settings is about.
    pub fn of(settings: &Settings, tokenizer: &Tokenizer) -> Self {
        Self {
            model: settings.model_config(tokenizer.vocab_size()),
            tokenizer_sha256: tokenizer.digest(),
            data_sha256: settings.data_sha256.clone(),
            eval_data_sha256: settings.eval_data_sha256.clone(),
            special_tokens: settings.special_tokens,
            split: settings.split,
            seed: settings.seed,
        }
    }
}

/// Where a schedule begins to count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleStart {
    /// Epochs ended by then.
    pub epoch: u64,
    /// Steps taken by then.
    pub step: u64,
}

/// An epoch that ended before all its blocks were drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CutShort {
    /// The stream that ordered its blocks, before it did.
    pub order: Rng,
    /// What its steps had told.
    pub sums: EpochSums,
}

/// Writes the checkpoint `directory`, in place of one that stood there.
///
/// # Errors
/// [`Error::File`] if it cannot be written; what stood there still does.
pub fn save(
    directory: &Path,
    parameters: &Parameters,
    optimizer: &AdamW,
    state: &TrainingState,
    tokenizer: &Tokenizer,
) -> Result<()> {
    write_directory_atomic(directory, |inside| {
        tensors::write(&inside.join(MODEL_FILE), &[("", parameters.values())], parameters.specs())?;
        let means = [("mean.", optimizer.mean()), ("square.", optimizer.square())];
        tensors::write(&inside.join(OPTIMIZER_FILE), &means, parameters.specs())?;
        write_json(&inside.join(STATE_FILE), state)?;
        transformers::write(inside, &state.identity.model, tokenizer)?;
        let own = [MODEL_FILE, OPTIMIZER_FILE, STATE_FILE];
        Manifest::of(inside, own.iter().chain(&transformers::FILES))?.write(inside)
    })
}

/// The files that a checkpoint consists of, by its manifest. Those are listed too that [`strip`] removes.
///
/// # Errors
/// If the manifest cannot be read.
pub(crate) fn listed_files(directory: &Path) -> Result<Vec<String>> {
    let manifest = Manifest::read(directory)?;
    Ok(manifest.names().chain([MANIFEST_FILE, OPTIMIZER_FILE]).map(str::to_owned).collect())
}

/// Checks that the files of a checkpoint have the lengths that its manifest lists; the first that has not, or the manifest if
/// it cannot be read, is returned as the error. Quick, unlike [`Checkpoint::verify`].
pub(crate) fn check_lengths(directory: &Path) -> std::result::Result<(), PathBuf> {
    let manifest = Manifest::read(directory).map_err(|_| directory.join(MANIFEST_FILE))?;
    manifest.check_lengths(directory).map_err(|name| directory.join(name))
}

/// Reduces a checkpoint to its weights.
///
/// # Errors
/// If it is damaged, or cannot be written.
pub fn strip(directory: &Path) -> Result<()> {
    let mut manifest = Manifest::read(directory)?;
    if manifest.remove(OPTIMIZER_FILE) {
        manifest.write(directory)?;
    }
    // Also what a stop in the midst of this has left.
    remove_rubbish(directory)?;
    let optimizer = directory.join(OPTIMIZER_FILE);
    if optimizer.exists() {
        fs::remove_file(&optimizer).map_err(Error::file("remove", &optimizer))?;
    }
    Ok(())
}

/// A checkpoint whose manifest and state have been read and are sound.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    directory: PathBuf,
    manifest: Manifest,
    state: TrainingState,
}

impl Checkpoint {
    /// Opens a checkpoint. Its tensors are read, and checked, when they are asked for.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if something is missing, damaged, or of another version.
    pub fn open(directory: &Path) -> Result<Self> {
        let manifest = Manifest::read(directory)?;
        let bytes = manifest.read_file(directory, STATE_FILE)?;
        let state: TrainingState = serde_json::from_slice(&bytes).map_err(|error| {
            damaged(directory, format!("{STATE_FILE} is not as this folio writes it, {error}"))
        })?;
        state.check().map_err(|what| damaged(directory, format!("{STATE_FILE}: {what}")))?;
        Ok(Self { directory: directory.to_path_buf(), manifest, state })
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The state of the run.
    pub fn state(&self) -> &TrainingState {
        &self.state
    }

    /// Whether training can go on from here: whether the optimizer was kept.
    pub fn is_resumable(&self) -> bool {
        self.manifest.holds(OPTIMIZER_FILE)
    }

    /// Checks every file, those too that would not be read.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if one is missing or damaged.
    pub fn verify(&self) -> Result<()> {
        self.manifest.verify(&self.directory)
    }

    /// Checks that this tokenizer is the one that the model was trained with.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if it is another.
    pub fn check_tokenizer(&self, tokenizer: &Tokenizer) -> Result<()> {
        if tokenizer.digest() == self.state.identity.tokenizer_sha256 {
            return Ok(());
        }
        let reason = "was trained with another tokenizer than the run's tokenizer.json, which has been changed: put \
                      the old one back";
        Err(self.error(reason.to_owned()))
    }

    /// The weights.
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

    /// The optimizer of a model with these parameters.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if it was not kept, is damaged, or not of the model's shapes.
    pub fn optimizer(&self, specs: &[ParameterSpec], config: AdamWConfig) -> Result<AdamW> {
        if !self.is_resumable() {
            let reason = "keeps the weights alone, without the optimizer's state";
            return Err(self.error(reason.to_owned()));
        }
        let bytes = self.manifest.read_file(&self.directory, OPTIMIZER_FILE)?;
        let count = specs.last().map_or(0, |spec| spec.range.end);
        let (mut mean, mut square) = (vec![0.0; count], vec![0.0; count]);
        let means = &mut [("mean.", &mut mean[..]), ("square.", &mut square[..])];
        tensors::read(&self.directory.join(OPTIMIZER_FILE), &bytes, specs, means)?;
        Ok(AdamW::from_state(config, self.state.optimizer_steps, mean, square))
    }

    /// Checks that a file is large enough for the model, before memory is taken for it.
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

/// What to say of a checkpoint that is not as it was written.
fn damaged(directory: &Path, what: String) -> Error {
    let reason = format!("is damaged: {what}; take another checkpoint of the run");
    Error::Checkpoint { path: directory.to_path_buf(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_directories_and_nothing_else() {
        for name in [CheckpointName::Epoch(1), CheckpointName::Epoch(u64::MAX), CheckpointName::Step(120)] {
            assert_eq!(CheckpointName::parse(&name.to_string()), Some(name));
        }
        for other in
            ["checkpoint_", "checkpoint_01", "checkpoint_-1", "checkpoint_+1", "step_x", "run_1", "step_1~"]
        {
            assert_eq!(CheckpointName::parse(other), None, "{other}");
        }
    }
}
