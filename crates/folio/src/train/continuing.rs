//! What a run takes over from a checkpoint: its own, or that of the run that it continues.

use std::path::Path;

use crate::checkpoint::{Checkpoint, CutShort, Identity, ScheduleStart, TrainingState};
use crate::error::{Error, Result};
use crate::model::{AddedTokens, Gpt2, ModelConfig};
use crate::optim::AdamW;
use crate::rng::{Rng, Stream};
use crate::settings::Settings;
use crate::tokenizer::Tokenizer;

/// A run as its checkpoint has it.
pub(super) fn load(
    checkpoint: &Checkpoint,
    settings: &Settings,
    tokenizer: &Tokenizer,
) -> Result<(Gpt2, AdamW, TrainingState)> {
    let mut state = checkpoint.state().clone();
    let identity = Identity::of(settings, tokenizer);
    let at_start = is_start(&state, settings);
    if at_start {
        check_start(checkpoint.directory(), &state.identity, settings, tokenizer)?;
    } else {
        check_same(checkpoint.directory(), &state.identity, &identity)?;
    }
    let (saved, config) = (std::mem::replace(&mut state.identity, identity.clone()), identity.model);
    // Dropout may have changed, and for a branch any setting.
    state.settings = Some(settings.decisive());
    let new_text = settings.new_text && saved.data_sha256 != identity.data_sha256;
    if at_start && (new_text || settings.weights_only) {
        // Its epoch cannot be taken up again: it has ended.
        state.cut_short = None;
        state.skipped_in_a_row = 0;
    }
    if at_start && new_text {
        state.history.best_eval_loss = None;
    }
    if saved.seed != identity.seed {
        state.order = Rng::new(identity.seed, Stream::Order);
        state.dropout = Rng::new(identity.seed, Stream::Dropout);
    }
    let goes_further = settings.max_steps.is_none_or(|limit| limit > state.global_step);
    if let Some(CutShort { order, sums }) = state.cut_short.take_if(|_| goes_further) {
        state.order = order;
        state.under_way = sums;
        state.epoch -= 1;
        state.history.pop(settings.first_epoch_of_text());
    }
    if at_start && (settings.restart_schedule || settings.weights_only) {
        state.schedule_start = ScheduleStart { epoch: state.epoch, step: state.global_step };
    }
    let mut parameters = checkpoint.parameters()?;
    let mut optimizer = if takes_optimizer(checkpoint, settings) {
        checkpoint.optimizer(parameters.specs(), settings.adamw())?
    } else {
        state.optimizer_steps = 0;
        AdamW::new(settings.adamw(), parameters.values().len())
    };
    if config.vocab_size > saved.model.vocab_size {
        let added = AddedTokens::between(&saved.model, &config);
        parameters = added.of_parameters(&parameters, &config, settings.seed);
        let (mean, square) = (added.of_moment(optimizer.mean()), added.of_moment(optimizer.square()));
        optimizer = AdamW::from_state(settings.adamw(), optimizer.steps(), mean, square);
    }
    Ok((Gpt2::from_parameters(config, settings.precision, parameters), optimizer, state))
}

/// Whether a run that continues another begins with this state.
pub(super) fn is_start(state: &TrainingState, settings: &Settings) -> bool {
    Some(state.epoch) == settings.from_checkpoint_step && state.under_way.batches == 0
}

/// Whether the optimizer's state is taken over from a checkpoint.
pub(super) fn takes_optimizer(checkpoint: &Checkpoint, settings: &Settings) -> bool {
    checkpoint.is_resumable() && !(settings.weights_only && is_start(checkpoint.state(), settings))
}

/// Checks that a checkpoint is of the same model, text and split; dropout may change.
///
/// # Errors
/// [`Error::Checkpoint`] that names the flag that differs.
pub fn check_same(checkpoint: &Path, saved: &Identity, wanted: &Identity) -> Result<()> {
    check_sizes(checkpoint, &saved.model, &wanted.model)?;
    check_tokenizer(checkpoint, saved.tokenizer_sha256 == wanted.tokenizer_sha256)?;
    check_text(checkpoint, saved, wanted)
}

/// Checks that a run with these settings can begin with a checkpoint of another run: the model and the tokenizer are the
/// same, or larger by the characters that `extend_vocab` adds; the text and its split are the same, or the text is said to
/// be another.
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
    // Text of its own to evaluate on is apart from all that the run trains on, whatever its split was before.
    let has_own_eval =
        wanted.eval_data_sha256.is_some() && wanted.eval_data_sha256 != saved.eval_data_sha256 && !is_another;
    if has_own_eval || (is_another && settings.new_text) {
        return Ok(());
    }
    check_text(checkpoint, saved, &wanted)
}

fn check_sizes(checkpoint: &Path, saved: &ModelConfig, wanted: &ModelConfig) -> Result<()> {
    let ModelConfig { vocab_size, n_blocks, n_emb, n_heads, block_size, dropout: _ } = *saved;
    let sizes = [
        ("the vocabulary", vocab_size, wanted.vocab_size),
        ("--n_blocks", n_blocks, wanted.n_blocks),
        ("--n_emb", n_emb, wanted.n_emb),
        ("--n_heads", n_heads, wanted.n_heads),
        ("--block_sizes", block_size, wanted.block_size),
    ];
    match sizes.iter().find(|(_, saved, wanted)| saved != wanted) {
        None => Ok(()),
        Some((name, saved, wanted)) => wrong(
            checkpoint,
            format!(
                "{name} is {saved} there, but {wanted} was asked for: leave the flag out or give {saved}"
            ),
        ),
    }
}

fn check_tokenizer(checkpoint: &Path, is_same: bool) -> Result<()> {
    if is_same {
        return Ok(());
    }
    wrong(checkpoint, "it was written with another tokenizer: continue with the run's own".to_owned())
}

fn check_text(checkpoint: &Path, saved: &Identity, wanted: &Identity) -> Result<()> {
    let facts = [
        ("text", saved.data_sha256 == wanted.data_sha256),
        ("evaluation text", saved.eval_data_sha256 == wanted.eval_data_sha256),
        ("reading of special tokens", saved.special_tokens == wanted.special_tokens),
        ("split", saved.split == wanted.split),
        ("seed", saved.seed == wanted.seed),
    ];
    match facts.iter().find(|(_, same)| !same) {
        None => Ok(()),
        Some((what, _)) => wrong(
            checkpoint,
            format!(
                "it was written with another {what}, and its training and evaluation text must stay apart: continue with \
                 the run's own"
            ),
        ),
    }
}

fn wrong(checkpoint: &Path, reason: String) -> Result<()> {
    Err(Error::Checkpoint { path: checkpoint.to_path_buf(), reason })
}
