//! `--resume`: a run or a sweep continues with its own settings.

use std::path::PathBuf;
use std::sync::Arc;

use folio::data::Texts;
use folio::error::Error;
use folio::model::resolve_precision;
use folio::run_dir::{RunDir, RunState};
use folio::settings::{Keep, Kind, Settings};
use folio::sweep::Sweep;
use folio::tokenizer::Tokenizer;
use folio::train::Start;

use super::{Task, Work, check_teachers, encode, first_words, given_options, initial, same_directory};
use crate::options::{Options, flag};
use crate::texts;
use crate::train::args::TrainArgs;
use crate::usage::Usage;

/// Plans to resume the run or the sweep in a directory.
pub(super) fn plan(args: &TrainArgs, run: RunDir) -> anyhow::Result<Task> {
    let given = given_options(args)?;
    if let Some(sweep) = Sweep::read(run.path())? {
        return plan_sweep(args, sweep, &given, run);
    }
    let old = run.settings()?;
    if !old.has_text() {
        let path = run.path().display();
        let reason = format!(
            "was imported and never trained, so there is nothing to resume: train it with --init_from {path}"
        );
        return Err(Error::RunDirectory { path: run.path().to_path_buf(), reason }.into());
    }
    if old.averaged_from.is_some() {
        let path = run.path().display();
        let reason = format!(
            "is an average of checkpoints and was never trained, so there is nothing to resume: continue it with \
             --from_checkpoint --from_checkpoint_run_dir {path} --from_checkpoint_step 0 --weights_only"
        );
        return Err(Error::RunDirectory { path: run.path().to_path_buf(), reason }.into());
    }
    let settings = changed(&run, &old, &given)?;
    settings.validate()?;
    let ended = run.status().is_some_and(|status| status.state == RunState::Finished);
    if ended && run.checkpoints()?.is_empty() {
        let reason = "has finished, and its checkpoints were removed, so there is nothing to resume from";
        return Err(Error::RunDirectory { path: run.path().to_path_buf(), reason: reason.to_owned() }.into());
    }
    let texts = texts::of_run(&old, &given.texts())?;
    let tokenizer = match run.tokenizer() {
        // The run was stopped before it had written its tokenizer.
        Err(_) if run.checkpoints()?.is_empty() && old.from_checkpoint_step.is_none() => {
            initial::tokenizer_again(&settings, &texts)?
        }
        tokenizer => tokenizer?,
    };
    let start = Start::Resume { run: run.clone(), skip_damaged: args.skip_damaged };
    task(args, &texts, tokenizer, Work::Run(Box::new(settings)), start, run)
}

/// Plans to resume a sweep, whose settings are fixed.
fn plan_sweep(args: &TrainArgs, sweep: Sweep, given: &Options, directory: RunDir) -> anyhow::Result<Task> {
    if let Some(setting) = given.settings().next() {
        let (flag, path) = (flag(setting.name), directory.path().display());
        return Err(
            Usage(format!("{flag}: the sweep in {path} keeps its settings; leave the flag out")).into()
        );
    }
    let first = &sweep.runs[0];
    let texts = texts::of_run(first, &given.texts())?;
    let tokenizer = match directory.sub_runs()?.iter().find(|run| run.is_run()).map(RunDir::tokenizer) {
        Some(Ok(tokenizer)) => tokenizer,
        _ => initial::tokenizer_again(first, &texts)?,
    };
    let start = match (&first.from_checkpoint_run_dir, first.from_checkpoint_step) {
        (Some(path), Some(number)) => {
            let restart_schedule = first.restart_schedule;
            Start::Checkpoint { run: RunDir::new(path), number, restart_schedule }
        }
        _ => Start::Fresh,
    };
    task(args, &texts, tokenizer, Work::Sweep(sweep), start, directory)
}

fn task(
    args: &TrainArgs,
    texts: &Texts,
    tokenizer: Tokenizer,
    work: Work,
    start: Start,
    run: RunDir,
) -> anyhow::Result<Task> {
    let tokenizer = Arc::new(tokenizer);
    let sample_tokens = match &work {
        Work::Run(settings) => settings.sample_tokens.unwrap_or(0),
        Work::Sweep(_) => 0,
    };
    let task = Task {
        stream: encode(texts, &tokenizer, &work, args.parallel())?,
        run_dir: Some(run),
        new_name: None,
        prompt: first_words(&texts.data.text),
        work,
        start,
        tokenizer,
        sample_tokens,
        chosen_precision: None,
    };
    check_teachers(&task)?;
    Ok(task)
}

/// A run's settings with the changes that resuming allows.
///
/// # Errors
/// If a setting that may not change is given with another value.
fn changed(run: &RunDir, old: &Settings, given: &Options) -> anyhow::Result<Settings> {
    let own = Options::of(old);
    let path = run.path().display();
    let mut settings = old.clone();
    for setting in given.settings() {
        let (values, old_values) = (given.0.values(setting.name), own.0.values(setting.name));
        let is_same = values == old_values
            || (setting.name == "precision"
                && resolve_precision(given.0.precision(), &old.model_config(1)) == old.precision);
        // The text is compared by its hash, since its path may change.
        let is_path = matches!(setting.kind, Kind::Files | Kind::Path);
        if setting.may_change && !is_path {
            (setting.set)(&mut settings, &given.0.get(setting.name).expect("these settings take one value"));
        } else if !is_same && !is_path {
            let has: Vec<String> = old_values.iter().map(ToString::to_string).collect();
            let has = if has.is_empty() { "none".to_owned() } else { has.join(", ") };
            let flag = flag(setting.name);
            let way_out = "leave the flag out, or start a new run with --from_checkpoint";
            return Err(Usage(format!("{flag}: the run in {path} has {has}; {way_out}")).into());
        }
    }
    if let Some(path) = given.0.get::<PathBuf>("init_from") {
        if settings.init_from.is_none() {
            let reason = format!(
                "--init_from: the run in {path} does not begin with a model; leave the flag out",
                path = run.path().display()
            );
            return Err(Usage(reason).into());
        }
        // Its content is compared by its hash, since its path may change.
        settings.init_from = Some(initial::absolute(&path));
    }
    if let Some(paths) = given.teachers() {
        let count = settings.teachers.as_ref().map_or(0, Vec::len);
        if count != paths.len() {
            let reason = format!(
                "--teachers: the run in {path} has {count} teachers, and keeps them; leave the flag out, or give the new paths of all"
            );
            return Err(Usage(reason).into());
        }
        // Their weights are compared by their hashes, since their paths may change.
        let recorded = settings.teachers_sha256.take();
        settings.record_teachers(&paths)?;
        settings.teachers_sha256 = recorded;
    }
    if let Some(other) = given.run_dir().filter(|other| !same_directory(other, run.path())) {
        let other = other.display();
        let reason = format!("--run_dir {other}: a resumed run stays in {path}; leave the flag out");
        return Err(Usage(reason).into());
    }
    if given.0.get::<Keep>("keep").is_some_and(|keep| keep != Keep::Best) && !given.0.has("save_checkpoint") {
        // As in a new run, `--keep` implies `--save_checkpoint`.
        settings.save_checkpoint = true;
    }
    Ok(settings)
}
