//! Continuing from a checkpoint of another run: on the same text, or on a different one.

use folio::checkpoint::CheckpointName;
use folio::data::Texts;
use folio::error::Error;
use folio::settings::Settings;
use folio::text::Corpus;
use folio::tokenizer::Tokenizer;
use folio::train::{Start, check_start};

use super::same_directory;
use crate::options::Options;
use crate::screen;
use crate::texts;
use crate::train::TrainArgs;
use crate::usage::Usage;

/// Said where a checkpoint has no optimizer state.
pub(crate) const FRESH_OPTIMIZER: &str =
    "the checkpoint holds weights only, so AdamW starts fresh; --keep all keeps its state for every epoch";

/// The options of a run, and the settings of the one that it continues, which it inherits.
///
/// # Errors
/// If that run has no such checkpoint, or its text cannot be read again.
pub(super) fn inherit(explicit: &Options, start: &Start) -> anyhow::Result<(Options, Option<Settings>)> {
    let Start::Checkpoint { run, number, .. } = start else { return Ok((explicit.clone(), None)) };
    run.open_checkpoint(CheckpointName::Epoch(*number))?;
    let saved = run.settings()?;
    check_readable(&saved, explicit)?;
    let mut inherited = Options::inherited(&saved);
    if explicit.data.is_some() && !is_there(&saved) {
        // It belongs to the text that may be replaced; if it does not, its hash says so.
        inherited.eval_data = None;
    }
    let mut options = explicit.clone().or(&inherited)?;
    if explicit.eval_data.is_some() {
        // It replaces the split.
        options.split = None;
    }
    let in_place = options.run_dir.as_ref().is_some_and(|run_dir| same_directory(run_dir, run.path()));
    if in_place && options.save_checkpoint.is_none() && options.keep.is_none() {
        // What the run kept so far stays.
        (options.save_checkpoint, options.keep) = (Some(saved.save_checkpoint), Some(saved.keep));
    }
    Ok((options, Some(saved)))
}

/// Decides whether a run continues on its own text or on a different one, now that it is read. Only a text that was given
/// explicitly can be a different one.
pub(super) fn choose_text(
    saved: &Settings,
    explicit: &Options,
    settings: &mut Settings,
    texts: &mut Texts,
) -> anyhow::Result<()> {
    settings.new_text = explicit.data.is_some() && settings.data_sha256 != saved.data_sha256;
    if settings.new_text && explicit.eval_data.is_none() {
        check_is_different(saved, &texts.data)?;
    }
    if settings.new_text && explicit.eval_data.is_none() {
        // What the other text was evaluated on says nothing of this one.
        texts.eval = None;
        texts::note_eval(settings, None);
    }
    check_flags(saved, explicit, settings)
}

/// Checks that a text is not an edited copy of the one that a run was trained on, as far as that can still be read: parts of
/// the copy would be evaluated that the model was trained on.
fn check_is_different(saved: &Settings, text: &Corpus) -> anyhow::Result<()> {
    let edited = || {
        let reason = format!(
            "has text in common with what the run was trained on ({}), and would be evaluated on it: give text of its own \
             with --eval_data",
            saved.data
        );
        Error::Corpus { path: text.files().to_string(), reason }.into()
    };
    if text.files() == saved.data {
        return Err(edited());
    }
    match texts::of_run(saved, &Options::default()) {
        Ok(old) if text.shares_text_with(&old.data) => Err(edited()),
        // What cannot be read cannot be compared.
        _ => Ok(()),
    }
}

/// Warns that a run continues on a different text, or with a fresh optimizer that nobody asked for.
pub(super) fn announce(saved: &Settings, settings: &Settings, start: &Start) {
    if let Start::Checkpoint { run, number, .. } = start
        && let Ok(checkpoint) = run.open_checkpoint(CheckpointName::Epoch(*number))
        && !checkpoint.is_resumable()
        && !settings.weights_only
    {
        screen::err(FRESH_OPTIMIZER);
    }
    if settings.new_text {
        let (text, other) = (&settings.data, &saved.data);
        screen::err(format_args!(
            "{text} is not the text that the model was trained on ({other}): losses on the two are not comparable"
        ));
    }
}

/// Whether the evaluation text of a run can still be read.
fn is_there(saved: &Settings) -> bool {
    saved.eval_data.as_ref().is_none_or(|files| files.paths().iter().all(|path| path.exists()))
}

/// Checks that the text of the run that is continued can be read.
///
/// # Errors
/// If it came from stdin and is not given again.
fn check_readable(saved: &Settings, explicit: &Options) -> anyhow::Result<()> {
    let gone = [
        ("--data", saved.data.has_stdin() && explicit.data.is_none()),
        (
            "--eval_data",
            saved.eval_data.as_ref().is_some_and(|files| files.has_stdin())
                && explicit.eval_data.is_none()
                && explicit.data.is_none(),
        ),
    ];
    let Some((flag, _)) = gone.iter().find(|(_, gone)| *gone) else { return Ok(()) };
    Err(texts::gone(flag))
}

/// The run's tokenizer, with the characters that its vocabulary lacks if `--extend_vocab` is given.
///
/// # Errors
/// If it lacks some and the flag is not given.
pub(super) fn tokenizer(own: Tokenizer, texts: &Texts, args: &TrainArgs) -> anyhow::Result<Tokenizer> {
    let corpora = || [Some(&texts.data), texts.eval.as_ref()].into_iter().flatten();
    if args.extend_vocab {
        return Ok(corpora().fold(own, |tokenizer, corpus: &Corpus| tokenizer.extended(&corpus.text)));
    }
    let way_out = "leave them out of the text, or give --extend_vocab to add rows for them to the model";
    corpora().try_for_each(|corpus| own.check_covers(&corpus.name, &corpus.text, way_out))?;
    Ok(own)
}

/// Checks that a run continues with the same tokenizer, and on the same text in the same parts, since otherwise it would be
/// evaluated on what it was trained on; or on a text that was given as a different one.
fn check_flags(saved: &Settings, explicit: &Options, settings: &Settings) -> anyhow::Result<()> {
    let path = settings.from_checkpoint_run_dir.as_deref().unwrap_or_default();
    let none = || "none".to_owned();
    let own = [
        (
            "--tokenizer_type",
            saved.tokenizer_type == settings.tokenizer_type,
            saved.tokenizer_type.to_string(),
        ),
        (
            "--vocab_size",
            saved.vocab_size == settings.vocab_size,
            saved.vocab_size.map_or_else(none, |size| size.to_string()),
        ),
    ];
    if let Some((flag, _, value)) = own.iter().find(|(_, same, _)| !same) {
        let reason = format!("the run in {path} has {value}, and keeps its tokenizer: leave the flag out");
        return Err(Usage(format!("{flag}: {reason}")).into());
    }
    let has_own_eval = explicit.eval_data.is_some();
    let split = format!("{:?}", saved.split).to_lowercase();
    let same = [
        ("--data", saved.data_sha256 == settings.data_sha256, saved.data.to_string()),
        (
            "--eval_data",
            has_own_eval || saved.eval_data_sha256 == settings.eval_data_sha256,
            saved.eval_data.as_ref().map_or_else(none, ToString::to_string),
        ),
        (
            "--special_tokens",
            has_own_eval || saved.special_tokens == settings.special_tokens,
            saved.special_tokens.to_string(),
        ),
        ("--split", has_own_eval || saved.split == settings.split, split),
        ("--seed", has_own_eval || saved.seed == settings.seed, saved.seed.to_string()),
    ];
    if let Some((flag, _, value)) = same.iter().find(|(_, same, _)| !same && !settings.new_text) {
        let reason = format!(
            "the run in {path} has {value}, and its training and evaluation text must stay apart: leave the flag out, \
             or give a different text with --data"
        );
        return Err(Usage(format!("{flag}: {reason}")).into());
    }
    Ok(())
}

/// Checks that a run can continue from its checkpoint: the same model, and steps left to take.
pub(super) fn check(settings: &Settings, start: &Start, tokenizer: &Tokenizer) -> anyhow::Result<()> {
    let Start::Checkpoint { run, number, .. } = start else { return Ok(()) };
    let checkpoint = run.open_checkpoint(CheckpointName::Epoch(*number))?;
    let state = checkpoint.state();
    check_start(checkpoint.directory(), &state.identity, settings, tokenizer)?;
    match settings.max_steps {
        Some(limit) if limit <= state.global_step => {
            let taken = state.global_step;
            let reason = format!(
                "{limit} steps in all leave none: the checkpoint has taken {taken}, so give more than {taken}"
            );
            Err(Error::Setting { setting: "--max_steps", reason }.into())
        }
        _ => Ok(()),
    }
}
