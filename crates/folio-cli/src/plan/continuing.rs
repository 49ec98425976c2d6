//! Continuing from a checkpoint of another run: on the same text, or on a different one.

use folio::checkpoint::CheckpointName;
use folio::data::Texts;
use folio::error::Error;
use folio::settings::{Given, Setting, Settings};
use folio::text::Corpus;
use folio::tokenizer::Tokenizer;
use folio::train::{Start, check_start};

use super::same_directory;
use crate::options::GivenTexts;
use crate::options::Options;
use crate::screen;
use crate::texts;
use crate::train::args::TrainArgs;
use crate::usage::Usage;

/// The warning for a checkpoint without optimizer state.
pub(crate) const FRESH_OPTIMIZER: &str =
    "the checkpoint holds weights only, so AdamW starts fresh; --keep all keeps its state for every epoch";

/// The options of a run, with those that it inherits from the run to continue; and that run's settings.
///
/// # Errors
/// If that run has no such checkpoint, or its text cannot be read again.
pub(super) fn inherit(explicit: &Options, start: &Start) -> anyhow::Result<(Options, Option<Settings>)> {
    let Start::Checkpoint { run, number, .. } = start else { return Ok((explicit.clone(), None)) };
    run.open_checkpoint(CheckpointName::Epoch(*number))?;
    let saved = run.settings()?;
    let mut inherited = Options::inherited(&saved);
    if saved.has_text() {
        check_readable(&saved, explicit)?;
    } else {
        // An imported model has no text, and was not trained in any precision.
        ["data", "precision"].iter().for_each(|name| inherited.0.remove(name));
    }
    if explicit.0.has("data") && !eval_data_exists(&saved) {
        // It probably belongs to the text that is replaced; if not, its hash is missed later.
        inherited.0.remove("eval_data");
    }
    let mut options = explicit.clone().or(&inherited);
    if explicit.0.has("eval_data") {
        // It replaces the split.
        options.0.remove("split");
    }
    let in_place = options.run_dir().is_some_and(|run_dir| same_directory(&run_dir, run.path()));
    if in_place && !options.0.has("save_checkpoint") && !options.0.has("keep") {
        // The run keeps as many checkpoints as before.
        let kept = |setting: &Setting| ["save_checkpoint", "keep"].contains(&setting.name);
        options = options.or(&Options(Given::from_settings(&saved, kept)));
    }
    Ok((options, Some(saved)))
}

/// Decides whether a run continues on the original text or on a new one. Only a text that was given explicitly can be new.
pub(super) fn choose_text(
    saved: &Settings,
    explicit: &Options,
    settings: &mut Settings,
    texts: &mut Texts,
) -> anyhow::Result<()> {
    let may_differ = explicit.0.has("data") || !saved.has_text();
    settings.new_text = may_differ && settings.data_sha256 != saved.data_sha256;
    if settings.new_text && !explicit.0.has("eval_data") {
        if saved.has_text() {
            check_is_different(saved, &texts.data)?;
        }
        // The evaluation text belongs to the original text.
        texts.eval = None;
        texts::note_eval(settings, None);
    }
    check_flags(saved, explicit, settings)
}

/// Checks that a new text is not an edited copy of the original, if the original can still be read. The model would be
/// evaluated on text that it was trained on.
fn check_is_different(saved: &Settings, text: &Corpus) -> anyhow::Result<()> {
    let edited = || {
        let reason = format!(
            "shares text with the training text of the run ({}), so part of the training text would be used for evaluation; \
             give a separate evaluation text with `eval_data`",
            saved.data
        );
        Error::Corpus { path: text.files().to_string(), reason }.into()
    };
    if text.files() == saved.data {
        return Err(edited());
    }
    match texts::of_run(saved, &GivenTexts::default()) {
        Ok(old) if text.shares_text_with(&old.data) => Err(edited()),
        _ => Ok(()),
    }
}

/// Warns that a run continues on a new text, or that its optimizer starts fresh unexpectedly.
pub(super) fn announce(saved: &Settings, settings: &Settings, start: &Start) {
    if let Start::Checkpoint { run, number, .. } = start
        && let Ok(checkpoint) = run.open_checkpoint(CheckpointName::Epoch(*number))
        && !checkpoint.is_resumable()
        && !settings.weights_only
    {
        let imported = "an imported model has no optimizer state, so AdamW starts fresh";
        screen::err(if saved.has_text() { FRESH_OPTIMIZER } else { imported });
    } else if settings.freeze != saved.freeze && !settings.weights_only {
        let (now, then) = (settings.freeze, saved.freeze);
        screen::err(format_args!("--freeze is {now} instead of {then}, so AdamW starts fresh"));
    } else if settings.optimizer != saved.optimizer && !settings.weights_only {
        let (now, then) = (settings.optimizer, saved.optimizer);
        screen::err(format_args!("--optimizer is {now} instead of {then}, so it starts fresh"));
    }
    if settings.new_text && saved.has_text() {
        let (text, other) = (&settings.data, &saved.data);
        screen::err(format_args!(
            "{text} is not the text that the model was trained on ({other}); losses on the two are not comparable"
        ));
    }
}

/// Whether the evaluation text of a run still exists.
fn eval_data_exists(saved: &Settings) -> bool {
    saved.eval_data.as_ref().is_none_or(|files| files.paths().iter().all(|path| path.exists()))
}

/// Checks that the text of the run to continue can be read again.
///
/// # Errors
/// If it came from stdin and is not given again.
fn check_readable(saved: &Settings, explicit: &Options) -> anyhow::Result<()> {
    let gone = [
        ("--data", saved.data.has_stdin() && !explicit.0.has("data")),
        (
            "--eval_data",
            saved.eval_data.as_ref().is_some_and(|files| files.has_stdin())
                && !explicit.0.has("eval_data")
                && !explicit.0.has("data"),
        ),
    ];
    let Some((flag, _)) = gone.iter().find(|(_, gone)| *gone) else { return Ok(()) };
    Err(texts::gone(flag))
}

/// The run's tokenizer; with `--extend_vocab`, extended by the characters that it lacks.
///
/// # Errors
/// If it lacks characters and the flag is not given.
pub(super) fn tokenizer(own: Tokenizer, texts: &Texts, args: &TrainArgs) -> anyhow::Result<Tokenizer> {
    let corpora = || [Some(&texts.data), texts.eval.as_ref()].into_iter().flatten();
    if args.extend_vocab {
        return Ok(corpora().fold(own, |tokenizer, corpus: &Corpus| tokenizer.extended(&corpus.text)));
    }
    let way_out = "remove them from the text, or add them to the model with --extend_vocab";
    corpora().try_for_each(|corpus| own.check_covers(&corpus.name, &corpus.text, way_out))?;
    Ok(own)
}

/// Checks that a run continues with the same tokenizer, and either on a new text, or on the same text split the same way:
/// another split would mix training and evaluation text.
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
        let reason = format!(
            "the run in {path} has {value}, and a continued run keeps its tokenizer; leave the flag out"
        );
        return Err(Usage(format!("{flag}: {reason}")).into());
    }
    let has_own_eval = explicit.0.has("eval_data");
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
        ("--split", has_own_eval || saved.split == settings.split, saved.split.to_string()),
        (
            "--test_fraction",
            has_own_eval || saved.test_fraction == settings.test_fraction,
            saved.test_fraction.to_string(),
        ),
        ("--seed", has_own_eval || saved.seed == settings.seed, saved.seed.to_string()),
    ];
    if let Some((flag, _, value)) = same.iter().find(|(_, same, _)| !same && !settings.new_text) {
        let reason = format!(
            "the run in {path} has {value}, and its training and evaluation text must not mix; leave the flag out, or \
             give a different text with --data"
        );
        return Err(Usage(format!("{flag}: {reason}")).into());
    }
    Ok(())
}

/// Checks that a run can start from the checkpoint: the model is the same, and there are steps left to take.
pub(super) fn check(settings: &Settings, start: &Start, tokenizer: &Tokenizer) -> anyhow::Result<()> {
    let Start::Checkpoint { run, number, .. } = start else { return Ok(()) };
    let checkpoint = run.open_checkpoint(CheckpointName::Epoch(*number))?;
    let state = checkpoint.state();
    check_start(checkpoint.directory(), &state.identity, settings, tokenizer)?;
    match settings.max_steps {
        Some(limit) if limit <= state.global_step => {
            let taken = state.global_step;
            let reason = format!(
                "`max_steps {limit}` leaves no steps: the checkpoint has taken {taken}; use more than {taken}"
            );
            Err(Error::Setting { field: "max_steps", reason }.into())
        }
        _ => Ok(()),
    }
}
