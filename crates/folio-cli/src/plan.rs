//! All that is settled before anything is written: `folio train` up to its first step.

use std::path::Path;
use std::sync::Arc;

use folio::data::{Dataset, Encoding, Part, Texts, TokenStream};
use folio::error::Error;
use folio::memory::check_training;
use folio::model::{precision_reason, resolve_precision};
use folio::run_dir::{RunDir, RunState};
use folio::settings::{Keep, Settings};
use folio::sweep::{Plan, Sweep};
use folio::tokenizer::{Tokenizer, TokenizerKind};
use folio::train::Start;

use crate::destination::new_run_name;
use crate::options::Options;
use crate::presets;
use crate::progress::encoding_bar;
use crate::texts;
use crate::train::TrainArgs;
use crate::usage::Usage;

pub(crate) mod continuing;

/// What is to be trained.
pub(crate) struct Task {
    pub(crate) work: Work,
    pub(crate) start: Start,
    pub(crate) stream: Arc<TokenStream>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// Where the run is saved; none with `--no_save`.
    pub(crate) run_dir: Option<RunDir>,
    /// What a directory of the run's own would be called, if no `--run_dir` is given.
    pub(crate) new_name: Option<String>,
    /// A prompt for the trained model: the first words of its text.
    pub(crate) prompt: Option<String>,
    /// Tokens to write when training has ended.
    pub(crate) sample_tokens: usize,
    /// What `--precision auto` chose, and why; nothing if it was not asked.
    pub(crate) chosen_precision: Option<String>,
}

/// One run or several.
pub(crate) enum Work {
    Run(Box<Settings>),
    Sweep(Sweep),
}

impl Work {
    pub(crate) fn runs(&self) -> &[Settings] {
        match self {
            Self::Run(settings) => std::slice::from_ref(settings),
            Self::Sweep(sweep) => &sweep.runs,
        }
    }
}

/// Checks everything and reads the text; writes nothing.
pub(crate) fn plan(args: &TrainArgs) -> anyhow::Result<Task> {
    if let Some(directory) = &args.resume {
        return plan_resumption(args, RunDir::new(directory));
    }
    let start = match (args.from_checkpoint, &args.from_checkpoint_run_dir, args.from_checkpoint_step) {
        (true, Some(run), Some(number)) => {
            Start::Checkpoint { run: RunDir::new(run), number, restart_schedule: args.restart_schedule }
        }
        _ => Start::Fresh,
    };
    let mut explicit = given_options(args)?;
    if args.no_save {
        refuse_no_save(&args.options)?;
        explicit = explicit.without_saving();
    }
    if explicit.eval_data.is_some() && explicit.split.is_some() {
        let reason = "--split: with --eval_data the whole of --data is trained on: leave one of them out";
        return Err(Usage(reason.to_owned()).into());
    }
    let (options, saved) = continuing::inherit(&explicit, &start)?;
    let (mut base, space) = options.settings();
    let chosen_precision = precision_reason(options.precision.unwrap_or_default(), base.n_emb, base.n_heads);
    if let Start::Checkpoint { run, number, restart_schedule } = &start {
        base.continue_from(run.path(), *number, *restart_schedule);
        base.weights_only = args.weights_only;
        base.extend_vocab = args.extend_vocab;
    }
    let (kind, runs) = options.search(&base, &space)?;
    runs.iter().try_for_each(Settings::validate)?;
    if matches!(kind, Plan::Halving { .. }) && args.no_save {
        let reason =
            "--no_save: halving resumes the runs that it stops early, so they have to be saved: leave it out";
        return Err(Usage(reason.to_owned()).into());
    }

    if let TokenizerKind::File(path) = &mut base.tokenizer_type {
        *path = std::path::absolute(&path).unwrap_or_else(|_| path.clone());
    }
    let mut texts = texts::read(&options, &mut base, saved.as_ref())?;
    if let Some(saved) = &saved {
        continuing::choose_text(saved, &explicit, &mut base, &mut texts)?;
    }
    let tokenizer = Arc::new(match &start {
        Start::Checkpoint { run, .. } => continuing::tokenizer(run.tokenizer()?, &texts, args)?,
        _ => base.tokenizer(&texts)?,
    });
    // Once more, now that the base knows its text.
    let (_, runs) = options.search(&base, &space)?;
    for settings in &runs {
        continuing::check(settings, &start, &tokenizer)?;
    }
    let work = match <[Settings; 1]>::try_from(runs) {
        Ok([run]) => Work::Run(Box::new(run)),
        Err(runs) => Work::Sweep(Sweep::new(kind, runs)),
    };
    let new_name = options.run_dir.is_none().then(|| new_run_name(&options, &work, &start));
    let task = Task {
        stream: encode(&texts, &tokenizer, &work)?,
        run_dir: options.run_dir.map(RunDir::new),
        new_name: new_name.filter(|_| !args.no_save),
        prompt: first_words(&texts.data.text),
        sample_tokens: options.sample_tokens.unwrap_or(0),
        work,
        start,
        tokenizer,
        chosen_precision,
    };
    check_run_dir(&task, args.overwrite)?;
    if let Some(saved) = &saved {
        continuing::announce(saved, &base, &task.start);
    }
    Ok(task)
}

/// `--no_save` beside a flag that says what to save.
fn refuse_no_save(given: &Options) -> anyhow::Result<()> {
    const SAVING: [&str; 6] =
        ["run_dir", "save_losses", "save_checkpoint", "save_every", "keep", "tensorboard"];
    match given.flags()?.iter().find(|flag| SAVING.contains(&flag.as_str())) {
        Some(flag) => Err(Usage(format!("--no_save saves nothing: leave it or --{flag} out")).into()),
        None => Ok(()),
    }
}

/// The first words of a text, of letters that a shell and a terminal show as they are; none if it has no such line.
fn first_words(text: &str) -> Option<String> {
    const LONGEST: usize = 24;
    let is_plain = |line: &&str| !line.is_empty() && !line.contains(char::is_control);
    let line = text.lines().take(100).map(str::trim).find(is_plain)?;
    let end = line.char_indices().nth(LONGEST).map_or(line.len(), |(end, _)| end);
    // Whole words, if there are any.
    let end = if end < line.len() { line[..end].rfind(' ').unwrap_or(end) } else { end };
    Some(line[..end].to_owned())
}

/// Flags, then the config file, then the preset.
fn given_options(args: &TrainArgs) -> anyhow::Result<Options> {
    let mut options = args.options.clone();
    if let Some(path) = &args.config {
        options = options.or(&presets::config_file(path)?)?;
    }
    if let Some(name) = &args.preset {
        options = options.or(&presets::preset(name)?)?;
    }
    Ok(options)
}

/// `--resume`: the settings are the run's, or the sweep's, own.
fn plan_resumption(args: &TrainArgs, run: RunDir) -> anyhow::Result<Task> {
    let given = given_options(args)?;
    if let Some(sweep) = Sweep::read(run.path())? {
        if let Some(flag) = given.flags()?.into_iter().next() {
            let path = run.path().display();
            return Err(Usage(format!(
                "--{flag}: the sweep in {path} goes on as it was begun: leave it out"
            ))
            .into());
        }
        let texts = texts::of_run(&sweep.runs[0], &given)?;
        let tokenizer = match run.sub_runs()?.iter().find(|run| run.is_run()).map(RunDir::tokenizer) {
            Some(Ok(tokenizer)) => tokenizer,
            _ => sweep.runs[0].tokenizer(&texts)?,
        };
        let start = match (&sweep.runs[0].from_checkpoint_run_dir, sweep.runs[0].from_checkpoint_step) {
            (Some(path), Some(number)) => {
                let restart_schedule = sweep.runs[0].restart_schedule;
                Start::Checkpoint { run: RunDir::new(path), number, restart_schedule }
            }
            _ => Start::Fresh,
        };
        return finish_plan(texts, tokenizer, Work::Sweep(sweep), start, run, 0);
    }
    let old = run.settings()?;
    let settings = changed(&run, &old, &given)?;
    settings.validate()?;
    let ended = run.status().is_some_and(|status| status.state == RunState::Finished);
    if ended && run.names()?.is_empty() {
        let reason = "has finished, and its checkpoints were removed: there is nothing to resume from";
        return Err(Error::RunDirectory { path: run.path().to_path_buf(), reason: reason.to_owned() }.into());
    }
    let texts = texts::of_run(&old, &given)?;
    let tokenizer = match run.tokenizer() {
        // It was stopped before it had written it.
        Err(_) if run.names()?.is_empty() && old.from_checkpoint_step.is_none() => old.tokenizer(&texts)?,
        tokenizer => tokenizer?,
    };
    let start = Start::Resume { run: run.clone(), skip_damaged: args.skip_damaged };
    let sample_tokens = settings.sample_tokens.unwrap_or(0);
    finish_plan(texts, tokenizer, Work::Run(Box::new(settings)), start, run, sample_tokens)
}

fn finish_plan(
    texts: Texts,
    tokenizer: Tokenizer,
    work: Work,
    start: Start,
    run: RunDir,
    sample_tokens: usize,
) -> anyhow::Result<Task> {
    let tokenizer = Arc::new(tokenizer);
    Ok(Task {
        stream: encode(&texts, &tokenizer, &work)?,
        run_dir: Some(run),
        new_name: None,
        prompt: first_words(&texts.data.text),
        work,
        start,
        tokenizer,
        sample_tokens,
        chosen_precision: None,
    })
}

/// A run's settings with those changed that may be.
///
/// # Errors
/// If another is given with another value than the run's.
fn changed(run: &RunDir, old: &Settings, given: &Options) -> anyhow::Result<Settings> {
    let own = Options::of(old);
    let mut given = given.clone();
    if given
        .precision
        .is_some_and(|precision| resolve_precision(precision, old.n_emb, old.n_heads) == old.precision)
    {
        given.precision = own.precision;
    }
    let own_table = toml::Table::try_from(&own)?;
    for (flag, value) in toml::Table::try_from(&given)? {
        let may_change = flag == "run_dir" || Settings::MAY_CHANGE.contains(&flag.as_str());
        if may_change || own_table.get(&flag) == Some(&value) {
            continue;
        }
        let (path, has) = (run.path().display(), own_table.get(&flag));
        let has =
            has.map_or("none".to_owned(), |value| value.to_string().trim_matches(['[', ']', '"']).to_owned());
        let reason =
            format!("the run in {path} has {has}: leave it out, or branch off with --from_checkpoint");
        return Err(Usage(format!("--{flag}: {reason}")).into());
    }
    if let Some(other) = given.run_dir.as_deref().filter(|other| !same_directory(other, run.path())) {
        let (path, other) = (run.path().display(), other.display());
        return Err(
            Usage(format!("--run_dir {other}: a run that is resumed stays in {path}: leave it out")).into()
        );
    }
    if given.keep.is_some_and(|keep| keep != Keep::Best) {
        // As in a new run, it says that more is kept than the newest and the best.
        given.save_checkpoint = given.save_checkpoint.or(Some(true));
    }
    let (new, _) = given.or(&own)?.settings();
    Ok(Settings {
        num_epochs: new.num_epochs,
        max_steps: new.max_steps,
        save_every: new.save_every,
        keep: new.keep,
        save_losses: new.save_losses,
        save_checkpoint: new.save_checkpoint,
        max_skipped_steps: new.max_skipped_steps,
        sample_tokens: new.sample_tokens,
        tensorboard: new.tensorboard,
        ..old.clone()
    })
}

/// The text in tokens, long enough for every run, each of which fits in memory.
fn encode(texts: &Texts, tokenizer: &Tokenizer, work: &Work) -> anyhow::Result<Arc<TokenStream>> {
    let bar = encoding_bar(texts.len());
    let Settings { split, special_tokens, .. } = work.runs()[0];
    let encoding = Encoding { tokenizer, special_tokens };
    let stream = TokenStream::of_texts(texts, encoding, split, |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    let stream = Arc::new(stream);
    for settings in work.runs() {
        let dataset = Dataset::new(Arc::clone(&stream), settings.block_size, settings.seed)?;
        check_training(settings, tokenizer.vocab_size(), dataset.blocks(Part::Train).len())?;
    }
    Ok(stream)
}

/// Checks that nothing that exists would be lost.
fn check_run_dir(task: &Task, overwrite: bool) -> anyhow::Result<()> {
    let Some(run_dir) = &task.run_dir else { return Ok(()) };
    if let Some((run, number)) = task.continues_in_place() {
        if run.tokenizer()? != *task.tokenizer || task.work.runs()[0].new_text {
            let reason = "holds the run on the other text, whose losses and tokenizer would be mixed with these: give \
                          another --run_dir";
            return Err(
                Error::RunDirectory { path: run.path().to_path_buf(), reason: reason.to_owned() }.into()
            );
        }
        let later = run.later_than(number)?.pop();
        if let Some(later) = later.filter(|_| !overwrite) {
            let later = later.to_string().replace('_', " ");
            let reason = format!(
                "holds {later}, later than {number}: continue from the last, give another --run_dir, or \
                 --overwrite to replace what came after {number}"
            );
            return Err(Error::RunDirectory { path: run.path().to_path_buf(), reason }.into());
        }
        return Ok(());
    }
    if let Start::Checkpoint { run, .. } = &task.start
        && let (Ok(source), Ok(target)) = (run.path().canonicalize(), run_dir.path().canonicalize())
        && source.starts_with(&target)
    {
        let path = run_dir.path().display();
        return Err(Usage(format!("--run_dir {path} holds the run that is continued: give another")).into());
    }
    Ok(run_dir.check_free(overwrite)?)
}

impl Task {
    /// If a single run goes on in its own directory: it, and the epoch from which.
    fn continues_in_place(&self) -> Option<(&RunDir, u64)> {
        let (Start::Checkpoint { run, number, .. }, Some(run_dir), Work::Run(_)) =
            (&self.start, &self.run_dir, &self.work)
        else {
            return None;
        };
        same_directory(run.path(), run_dir.path()).then_some((run, *number))
    }

    /// Removes what `--overwrite` gives up: the run that is there, or what came after the checkpoint it goes on from.
    pub(crate) fn clear(&self) -> anyhow::Result<()> {
        match (self.continues_in_place(), &self.run_dir) {
            (Some((run, number)), _) => run.clear_after(number)?,
            (None, Some(run_dir)) => run_dir.clear()?,
            (None, None) => {}
        }
        Ok(())
    }
}

/// Whether two paths lead to one directory.
fn same_directory(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}
