//! Loading a checkpoint: the run's own to resume it, or another run's to continue from it.

use std::path::Path;

use serde::Deserialize;

use super::Start;
use crate::checkpoint::{Checkpoint, CheckpointName, CutShort, Identity, ScheduleStart, TrainingState};
use crate::error::{Error, Result};
use crate::model::{AddedTokens, Frozen, ModelConfig, Moments, Parameters};
use crate::optim::OptimizerKind;
use crate::rng::{Rng, Stream};
use crate::run_dir::RunDir;
use crate::settings::{SETTINGS, Setting, Settings};
use crate::tokenizer::Tokenizer;

/// The checkpoint that a run starts from; `None` if it starts with random weights. One to resume is checked against the
/// settings.
pub(super) fn find(start: &Start, settings: &Settings) -> Result<Option<Checkpoint>> {
    if let Start::Resume { run, skip_damaged } = start
        && let (Some(newest), _) = run.newest(*skip_damaged)?
    {
        if newest.directory().parent() == Some(run.path()) {
            check_resumes(&newest, settings)?;
        }
        return Ok(Some(newest));
    }
    // Also for a continued run that was stopped before its first save.
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
    if is_start(checkpoint, settings) {
        // A run that is continued in place may have new settings, and has not saved anything yet.
        return Ok(());
    }
    let Some(saved) = &state.settings else { return Ok(()) };
    // A setting that the checkpoint does not mention had its default; one that this version no longer has is ignored.
    let default = Settings::default();
    let then = |row: &Setting| saved.get(row.name).cloned().unwrap_or_else(|| (row.get)(&default));
    let decisive = SETTINGS.iter().filter(|row| !row.may_change);
    let mut changed = decisive.map(|row| (row.name, then(row), (row.get)(settings)));
    if let Some((name, then, now)) = changed.find(|(_, then, now)| then != now) {
        let reason = format!(
            "was saved with {name} = {then}, but hyperparameters.json now says {now}: put {then} back, or start a \
             new run with --from_checkpoint"
        );
        return Err(Error::Checkpoint { path: checkpoint.directory().to_path_buf(), reason });
    }
    Ok(())
}

/// What a run starts from.
pub(super) struct Loaded {
    pub(super) parameters: Parameters,
    /// `None` if they start at zero.
    pub(super) moments: Option<Moments>,
    /// The moving average of the weights, if the run has one.
    pub(super) average: Option<Parameters>,
    pub(super) state: TrainingState,
}

/// Loads a checkpoint that a run starts from.
pub(super) fn load(checkpoint: &Checkpoint, settings: &Settings, tokenizer: &Tokenizer) -> Result<Loaded> {
    let mut state = checkpoint.state().clone();
    let identity = Identity::of(settings, tokenizer);
    let at_start = is_start(checkpoint, settings);
    if at_start {
        check_start(checkpoint.directory(), &state.identity, settings, tokenizer)?;
    } else {
        check_same(checkpoint.directory(), &state.identity, &identity)?;
    }
    let (saved, config) = (std::mem::replace(&mut state.identity, identity.clone()), identity.model);
    // Dropout may have changed; a run that continues another may have changed any setting.
    state.settings = Some(settings.decisive());
    let is_other_text = saved.text_difference(&identity).is_some();
    if at_start {
        state.start_step = state.global_step;
    }
    if at_start && (is_other_text || settings.weights_only) {
        // An epoch that was cut short by `max_steps` is not completed on another text or with fresh moments.
        state.cut_short = None;
        state.skipped_in_a_row = 0;
    }
    if at_start && is_other_text {
        state.history.best_eval_loss = None;
        state.text_start_step = state.global_step;
    }
    if saved.seed != identity.seed {
        state.order = Rng::new(identity.seed, Stream::Order);
        state.dropout = Rng::new(identity.seed, Stream::Dropout);
    }
    let goes_further = settings.max_steps.is_none_or(|limit| limit > state.global_step);
    if let Some(CutShort { order, sums }) = state.cut_short.take_if(|_| goes_further) {
        state.order = order;
        state.epoch_progress = sums;
        state.epoch -= 1;
        state.history.pop(state.text_start_step);
    }
    if at_start && (settings.restart_schedule || settings.weights_only) {
        state.schedule_start = ScheduleStart { epoch: state.epoch, step: state.global_step };
    }
    let mut parameters = checkpoint.parameters()?;
    let mut moments = None;
    if takes_optimizer(checkpoint, settings) {
        moments = Some(checkpoint.moments(parameters.specs())?);
    } else {
        state.optimizer_steps = 0;
    }
    let mut average = None;
    if takes_optimizer(checkpoint, settings) && state.averaged {
        average = Some(std::mem::replace(&mut parameters, checkpoint.weights_without_averaging()?));
    }
    if config.vocab_size > saved.model.vocab_size {
        let added = AddedTokens::between(&saved.model, &config);
        parameters = added.of_parameters(&parameters, &config, settings.seed);
        moments = moments.map(|Moments { exp_avg, exp_avg_sq }| Moments {
            exp_avg: added.of_moment(&exp_avg),
            exp_avg_sq: added.of_moment(&exp_avg_sq),
        });
        average = average.map(|average| added.of_parameters(&average, &config, settings.seed));
    }
    state.averaged = settings.ema_decay > 0.0;
    Ok(Loaded { parameters, moments, average, state })
}

/// Whether this is the checkpoint of another run, or of itself, that a run continues from. A run that completes an epoch that
/// the other one left incomplete saves the same epoch itself.
fn is_start(checkpoint: &Checkpoint, settings: &Settings) -> bool {
    let state = checkpoint.state();
    let is_there = || {
        let directory = checkpoint.directory().parent();
        let from = settings.from_checkpoint_run_dir.as_deref().map(Path::new);
        let resolved = |path: Option<&Path>| path.and_then(|path| path.canonicalize().ok());
        directory == from || resolved(directory) == resolved(from)
    };
    Some(state.epoch) == settings.from_checkpoint_step && state.epoch_progress.batches == 0 && is_there()
}

/// Whether the optimizer's moments are loaded from a checkpoint. A run that continues another starts them fresh if other parameters
/// are frozen now: those that were frozen have none. So does one with another optimizer: Muon's parameters have no `exp_avg_sq`.
pub(super) fn takes_optimizer(checkpoint: &Checkpoint, settings: &Settings) -> bool {
    let state = checkpoint.state();
    let frozen = state.settings.as_ref().and_then(|saved| saved.get("freeze"));
    let frozen = frozen.and_then(|saved| Frozen::deserialize(saved).ok()).unwrap_or_default();
    let optimizer = state.settings.as_ref().and_then(|saved| saved.get("optimizer"));
    let optimizer = optimizer.and_then(|saved| OptimizerKind::deserialize(saved).ok()).unwrap_or_default();
    let starts_fresh = settings.weights_only || frozen != settings.freeze || optimizer != settings.optimizer;
    checkpoint.is_resumable() && !(starts_fresh && is_start(checkpoint, settings))
}

/// Checks that a checkpoint has the same model, text and split. Dropout may differ.
///
/// # Errors
/// [`Error::Checkpoint`] that names the flag that differs.
pub fn check_same(checkpoint: &Path, saved: &Identity, wanted: &Identity) -> Result<()> {
    check_sizes(checkpoint, &saved.model, &wanted.model)?;
    check_tokenizer(checkpoint, saved.tokenizer_sha256 == wanted.tokenizer_sha256)?;
    check_text(checkpoint, saved, wanted)
}

/// Checks that a run with these settings can continue from a checkpoint of another run. Model and tokenizer must be the same,
/// apart from characters added by `extend_vocab`. Text and split must be the same unless `new_text` is set.
///
/// # Errors
/// [`Error::Checkpoint`] that names what differs.
pub fn check_start(
    checkpoint: &Path,
    saved: &Identity,
    settings: &Settings,
    tokenizer: &Tokenizer,
) -> Result<()> {
    let wanted = Identity::of(settings, tokenizer);
    let (vocab_size, digest) = (saved.model.vocab_size, &saved.tokenizer_sha256);
    if settings.extend_vocab && tokenizer.extends(vocab_size, digest) {
        check_sizes(checkpoint, &saved.model, &ModelConfig { vocab_size, ..wanted.model })?;
    } else {
        check_sizes(checkpoint, &saved.model, &wanted.model)?;
        check_tokenizer(checkpoint, *digest == wanted.tokenizer_sha256)?;
    }
    let is_another = saved.data_sha256 != wanted.data_sha256;
    // A separate evaluation text shares nothing with the training text, whatever the split was before.
    let has_own_eval =
        wanted.eval_data_sha256.is_some() && wanted.eval_data_sha256 != saved.eval_data_sha256 && !is_another;
    if has_own_eval || (is_another && settings.new_text) {
        return Ok(());
    }
    check_text(checkpoint, saved, &wanted)
}

fn check_sizes(checkpoint: &Path, saved: &ModelConfig, wanted: &ModelConfig) -> Result<()> {
    // Every field, so that a new one is not forgotten.
    let ModelConfig {
        vocab_size,
        n_blocks,
        n_emb,
        n_heads,
        block_size,
        dropout: _,
        n_inner: _,
        activation,
        layer_norm_epsilon,
        tie_word_embeddings,
    } = *saved;
    fn both<T: ToString>(name: &'static str, saved: T, wanted: T) -> (&'static str, String, String) {
        (name, saved.to_string(), wanted.to_string())
    }
    let sizes = [
        both("the vocabulary", vocab_size, wanted.vocab_size),
        both("`n_blocks`", n_blocks, wanted.n_blocks),
        both("`n_emb`", n_emb, wanted.n_emb),
        both("`n_heads`", n_heads, wanted.n_heads),
        both("`block_size`", block_size, wanted.block_size),
        both("`n_inner`", saved.inner(), wanted.inner()),
        both("`activation`", activation, wanted.activation),
        both("`layer_norm_epsilon`", layer_norm_epsilon, wanted.layer_norm_epsilon),
        both("`tie_word_embeddings`", tie_word_embeddings, wanted.tie_word_embeddings),
    ];
    match sizes.iter().find(|(_, saved, wanted)| saved != wanted) {
        None => Ok(()),
        Some((name, saved, wanted)) => {
            wrong(checkpoint, format!("has {name} {saved}, but this run has {wanted}; use {saved}"))
        }
    }
}

fn check_tokenizer(checkpoint: &Path, is_same: bool) -> Result<()> {
    if is_same {
        return Ok(());
    }
    wrong(checkpoint, "was written with another tokenizer: continue with the run's own".to_owned())
}

fn check_text(checkpoint: &Path, saved: &Identity, wanted: &Identity) -> Result<()> {
    let facts = [
        ("text", saved.data_sha256 == wanted.data_sha256),
        ("evaluation text", saved.eval_data_sha256 == wanted.eval_data_sha256),
        ("reading of special tokens", saved.special_tokens == wanted.special_tokens),
        ("split", saved.split == wanted.split),
        ("test part", saved.test_fraction == wanted.test_fraction),
        ("seed", saved.seed == wanted.seed),
    ];
    match facts.iter().find(|(_, same)| !same) {
        None => Ok(()),
        Some((what, _)) => wrong(
            checkpoint,
            format!(
                "was written with another {what}, and its training and evaluation text must stay apart: continue with \
                 the run's own"
            ),
        ),
    }
}

fn wrong(checkpoint: &Path, reason: String) -> Result<()> {
    Err(Error::Checkpoint { path: checkpoint.to_path_buf(), reason })
}
