//! Everything that happens before anything is written: `folio train` up to its first step.

use std::path::Path;
use std::sync::Arc;

use folio::checkpoint::Identity;
use folio::data::{Dataset, Encoding, Part, Texts, TokenStream};
use folio::distributed::RankCount;
use folio::error::Error;
use folio::memory::check_training;
use folio::model::precision_reason;
use folio::run_dir::{RUNS, RunDir};
use folio::settings::Settings;
use folio::sweep::{Parallel, Plan, Sweep};
use folio::teachers::Teachers;
use folio::tokenizer::{Tokenizer, TokenizerKind};
use folio::train::Start;

use crate::options::{Options, flag};
use crate::presets;
use crate::progress::encoding_bar;
use crate::ranks;
use crate::texts;
use crate::train::args::TrainArgs;
use crate::usage::Usage;

pub(crate) mod continuing;
mod initial;
mod resuming;
mod run_name;

pub(crate) use run_name::plain_name;

/// What to train.
pub(crate) struct Task {
    pub(crate) work: Work,
    pub(crate) start: Start,
    pub(crate) stream: Arc<TokenStream>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// Where to save the run; none with `--no_save`.
    pub(crate) run_dir: Option<RunDir>,
    /// The name of the directory to create if there is no `--run_dir`.
    pub(crate) new_name: Option<String>,
    /// A prompt for the trained model: the first words of its text.
    pub(crate) prompt: Option<String>,
    /// Tokens of sample text to print when training ends.
    pub(crate) sample_tokens: usize,
    /// What `--precision auto` chose, and why; none if the precision was given.
    pub(crate) chosen_precision: Option<String>,
}

/// One run or several.
pub(crate) enum Work {
    Run(Box<Settings>),
    Sweep(Sweep),
}

impl Work {
    fn new(plan: Plan, runs: Vec<Settings>) -> Self {
        match <[Settings; 1]>::try_from(runs) {
            Ok([run]) => Self::Run(Box::new(run)),
            Err(runs) => Self::Sweep(Sweep::new(plan, runs)),
        }
    }

    /// The settings of the run, unless it is a sweep.
    fn single_run(&self) -> Option<&Settings> {
        match self {
            Self::Run(settings) => Some(settings),
            Self::Sweep(_) => None,
        }
    }

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
        return resuming::plan(args, RunDir::new(directory));
    }
    let start = start(args);
    let (explicit, initial) = initial::take_over(args, &explicit_options(args)?)?;
    let (options, saved) = continuing::inherit(&explicit, &start)?;
    let (mut base, space) = options.0.resolve();
    if let Start::Checkpoint { run, number, restart_schedule } = &start {
        base.continue_from(run.path(), *number, *restart_schedule);
        base.weights_only = args.weights_only;
        base.extend_vocab = args.extend_vocab;
    }
    if let Some(model) = &initial {
        initial::record(&mut base, model);
    }
    if let Some(paths) = options.teachers() {
        base.record_teachers(&paths)?;
    }
    if let TokenizerKind::File(path) = &mut base.tokenizer_type {
        *path = std::path::absolute(&path).unwrap_or_else(|_| path.clone());
    }
    let (kind, mut runs) = options.search(&base, &space)?;
    runs.iter().try_for_each(Settings::validate)?;
    if let Some(model) = &initial {
        runs.iter().try_for_each(|run| model.check_block_size(run.block_size))?;
    }
    if matches!(kind, Plan::Halving { .. }) && args.no_save {
        let reason = "--no_save: halving resumes runs that it stopped early, so it has to save them; leave the flag out";
        return Err(Usage(reason.to_owned()).into());
    }

    let mut texts = texts::read(&options.texts(), &mut base, saved.as_ref())?;
    if let Some(saved) = &saved {
        continuing::choose_text(saved, &explicit, &mut base, &mut texts)?;
    }
    let tokenizer = Arc::new(match (&start, initial) {
        (Start::Checkpoint { run, .. }, _) => continuing::tokenizer(run.tokenizer()?, &texts, args)?,
        (_, Some(model)) => initial::tokenizer(model.tokenizer, &texts)?,
        _ => base.tokenizer(&texts)?,
    });
    for run in &mut runs {
        *run = with_text_of(run, &base);
        continuing::check(run, &start, &tokenizer)?;
    }
    let work = Work::new(kind, runs);
    let run_dir = options.run_dir();
    let needs_name = run_dir.is_none() && !args.no_save;
    let new_name = needs_name.then(|| run_name::new_run_name(&options, work.single_run(), &start));
    let task = Task {
        stream: encode(&texts, &tokenizer, &work, args.parallel())?,
        run_dir: run_dir.map(RunDir::new),
        new_name,
        prompt: first_words(&texts.data.text),
        sample_tokens: base.sample_tokens.unwrap_or(0),
        work,
        start,
        tokenizer,
        chosen_precision: precision_reason(options.0.precision(), &base.model_config(1)),
    };
    check_teachers(&task)?;
    check_run_dir(&task, args.overwrite)?;
    if let Some(saved) = &saved {
        continuing::announce(saved, &base, &task.start);
    }
    Ok(task)
}

/// Where training starts.
fn start(args: &TrainArgs) -> Start {
    match (args.from_checkpoint, &args.from_checkpoint_run_dir, args.from_checkpoint_step) {
        (true, Some(run), Some(number)) => {
            Start::Checkpoint { run: RunDir::new(run), number, restart_schedule: args.restart_schedule }
        }
        _ => Start::Fresh,
    }
}

/// The settings that flags, the config file and the preset give.
fn given_options(args: &TrainArgs) -> anyhow::Result<Options> {
    let mut options = args.options.clone();
    if let Some(path) = &args.config {
        options = options.or(&presets::config_file(path)?);
    }
    if let Some(name) = &args.preset {
        options = options.or(&presets::preset(name)?);
    }
    Ok(options)
}

/// [`given_options`] of a new run, checked against `--no_save` and against each other.
fn explicit_options(args: &TrainArgs) -> anyhow::Result<Options> {
    let mut explicit = given_options(args)?;
    if args.no_save {
        if let Some(setting) = args.options.settings().find(|setting| setting.saves) {
            let flag = flag(setting.name);
            return Err(Usage(format!("--no_save contradicts {flag}; leave one of them out")).into());
        }
        explicit = explicit.without_saving();
    }
    if explicit.0.has("eval_data") && explicit.0.has("split") {
        let reason =
            "--split contradicts --eval_data, with which all of --data is trained on; leave one of them out";
        return Err(Usage(reason.to_owned()).into());
    }
    Ok(explicit)
}

/// A run with the text of another.
fn with_text_of(run: &Settings, other: &Settings) -> Settings {
    Settings {
        data: other.data.clone(),
        data_sha256: other.data_sha256.clone(),
        eval_data: other.eval_data.clone(),
        eval_data_sha256: other.eval_data_sha256.clone(),
        new_text: other.new_text,
        ..run.clone()
    }
}

/// The first words of a text, for a prompt; none if no line near its start is free of control characters.
fn first_words(text: &str) -> Option<String> {
    const LONGEST: usize = 24;
    let is_plain = |line: &&str| !line.is_empty() && !line.contains(char::is_control);
    let line = text.lines().take(100).map(str::trim).find(is_plain)?;
    let end = line.char_indices().nth(LONGEST).map_or(line.len(), |(end, _)| end);
    // Whole words, if there are any.
    let end = if end < line.len() { line[..end].rfind(' ').unwrap_or(end) } else { end };
    Some(line[..end].to_owned())
}

/// Encodes the text, and checks that it is long enough for every run and that every run fits in memory.
fn encode(
    texts: &Texts,
    tokenizer: &Tokenizer,
    work: &Work,
    parallel: Parallel,
) -> anyhow::Result<Arc<TokenStream>> {
    let bar = encoding_bar(texts.len());
    let first = &work.runs()[0];
    let (split, encoding) =
        (first.text_split(), Encoding { tokenizer, special_tokens: first.special_tokens });
    let stream = TokenStream::of_texts(texts, encoding, split, |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    let stream = Arc::new(stream);
    let ranks = ranks_of_a_run(work, parallel, ranks::count());
    for settings in work.runs() {
        let dataset = Dataset::new(Arc::clone(&stream), settings.block_size, settings.seed)?;
        let blocks = dataset.blocks(Part::Train).len();
        check_training(settings, tokenizer.vocab_size(), blocks, ranks)?;
    }
    Ok(stream)
}

/// Checks that every run can learn from its teachers, and that there is room for their probabilities.
fn check_teachers(task: &Task) -> anyhow::Result<()> {
    let new = task.new_name.as_ref().map(|_| Path::new(RUNS));
    let directory = task.run_dir.as_ref().map(RunDir::path).or(new);
    for settings in task.work.runs() {
        let identity = Identity::of(settings, &task.tokenizer);
        if let Some(teachers) = Teachers::open(settings, &identity)? {
            let dataset = Dataset::new(Arc::clone(&task.stream), settings.block_size, settings.seed)?;
            teachers.place(settings, &dataset, ranks::count(), directory)?;
        }
    }
    Ok(())
}

/// The ranks that share a run, and those that share a machine's memory.
fn ranks_of_a_run(work: &Work, parallel: Parallel, ranks: RankCount) -> RankCount {
    match (work, parallel) {
        (Work::Sweep(_), Parallel::Runs) => RankCount { all: 1, ..ranks },
        _ => ranks,
    }
}

/// Checks that no existing files would be lost.
fn check_run_dir(task: &Task, overwrite: bool) -> anyhow::Result<()> {
    let Some(run_dir) = &task.run_dir else { return Ok(()) };
    if let Some((run, number)) = task.continues_in_place() {
        if run.tokenizer()? != *task.tokenizer || task.work.runs()[0].new_text {
            let reason = "holds the run on the original text, and its losses and tokenizer would be mixed with the new ones; \
                          use another --run_dir";
            return Err(
                Error::RunDirectory { path: run.path().to_path_buf(), reason: reason.to_owned() }.into()
            );
        }
        let later = run.later_than(number)?.pop();
        if let Some(later) = later.filter(|_| !overwrite) {
            let later = later.to_string().replace('_', " ");
            let reason = format!(
                "holds {later}, which is later than {number}; continue from the last one, use another --run_dir, or use \
                 --overwrite to replace everything after {number}"
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
        return Err(Usage(format!(
            "--run_dir {path} contains the run to continue from; use another directory"
        ))
        .into());
    }
    let begins_with = task.work.runs()[0].init_from.as_ref();
    if let Some(model) = begins_with
        && let (Ok(source), Ok(target)) = (Path::new(model).canonicalize(), run_dir.path().canonicalize())
        && (source.starts_with(&target) || target.starts_with(&source))
    {
        let path = run_dir.path().display();
        return Err(Usage(format!(
            "--run_dir {path} is where the model of --init_from is; use another directory"
        ))
        .into());
    }
    let is_inside =
        |teacher: &String| match (Path::new(teacher).canonicalize(), run_dir.path().canonicalize()) {
            (Ok(source), Ok(target)) => source.starts_with(target),
            _ => false,
        };
    if task.work.runs()[0].teachers.iter().flatten().any(is_inside) {
        let path = run_dir.path().display();
        return Err(
            Usage(format!("--run_dir {path} contains one of the --teachers; use another directory")).into()
        );
    }
    Ok(run_dir.check_free(overwrite)?)
}

impl Task {
    /// If a single run continues in its own directory: the run, and the epoch it continues from.
    fn continues_in_place(&self) -> Option<(&RunDir, u64)> {
        let (Start::Checkpoint { run, number, .. }, Some(run_dir), Work::Run(_)) =
            (&self.start, &self.run_dir, &self.work)
        else {
            return None;
        };
        same_directory(run.path(), run_dir.path()).then_some((run, *number))
    }

    /// Deletes what `--overwrite` replaces: the existing run, or everything after the checkpoint to continue from.
    pub(crate) fn clear(&self) -> anyhow::Result<()> {
        match (self.continues_in_place(), &self.run_dir) {
            (Some((run, number)), _) => run.clear_after(number)?,
            (None, Some(run_dir)) => run_dir.clear()?,
            (None, None) => {}
        }
        Ok(())
    }
}

/// Whether two paths are the same directory.
fn same_directory(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runs_of_a_sweep_have_the_memory_of_a_rank_each_but_no_others_to_share_their_batches() {
        let ranks = RankCount { all: 8, per_machine: 4 };
        let runs = |count| Work::new(Plan::Full, vec![Settings::default(); count]);
        let own = RankCount { all: 1, per_machine: 4 };
        assert_eq!(ranks_of_a_run(&runs(2), Parallel::Runs, ranks), own);
        assert_eq!(ranks_of_a_run(&runs(2), Parallel::Batches, ranks), ranks);
        assert_eq!(ranks_of_a_run(&runs(1), Parallel::Runs, ranks), ranks);
    }
}
