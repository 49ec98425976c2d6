//! `folio train`: plans the runs, trains them, and reports.

use std::sync::{Arc, Mutex};

use folio::distributed::{Communicator, RankCount};
use folio::error::Error;
use folio::machine::available_memory;
use folio::model::CpuBackend;
use folio::optim::OptimizerKind;
use folio::records::run_recorded;
use folio::run_dir::{RunDir, RunLock};
use folio::settings::Settings;
use folio::sweep::{Context, Parallel, Sweep, SweepEvent, follow_sweep, run_sweep};
use folio::train::{Event, Outcome, Requests, SharedTable, Start, Trainer, on_cpu};

use crate::dashboard::{Dashboard, Update};
use crate::destination::{print_destination, print_next_steps, quoted, reserve};
use crate::plan::continuing::FRESH_OPTIMIZER;
use crate::plan::{Task, Work, plan};
use crate::progress::{Progress, gibibytes};
use crate::ranks;
use crate::screen;
use crate::signals::Signals;
use crate::standings::Standings;
use crate::threads::set_threads;
use crate::usage::{FAILURE, SUCCESS, Usage};

pub(crate) mod args;

use args::TrainArgs;

pub(crate) fn run(args: &TrainArgs) -> anyhow::Result<u8> {
    let communicator: Arc<dyn Communicator> = Arc::from(ranks::join()?);
    set_threads(args.threads.or_else(ranks::threads))?;
    if communicator.rank() == 0 { lead(args, communicator) } else { follow(communicator) }
}

/// Tells all ranks whether the work is a sweep; only rank 0 knows.
fn is_sweep(communicator: &dyn Communicator, work: Option<&Work>) -> bool {
    let mut flag = [u8::from(matches!(work, Some(Work::Sweep(_))))];
    communicator.broadcast(&mut flag);
    flag != [0]
}

/// Trains on a rank that receives everything from rank 0, and leaves files and output to it.
fn follow(communicator: Arc<dyn Communicator>) -> anyhow::Result<u8> {
    let signals = Signals::install(true)?;
    let trained = if is_sweep(&*communicator, None) {
        follow_sweep(communicator, &signals.requests)
    } else {
        Trainer::follow(&on_cpu, Box::new(communicator))
            .and_then(|mut trainer| trainer.run(None, &signals.requests, &mut |_| {}))
    };
    match trained {
        Ok(Outcome::Finished) => Ok(SUCCESS),
        Ok(Outcome::Stopped) => Ok(signals.exit_code()),
        // Rank 0 has the same error or the cause of this one: it reports, and ends this rank.
        Err(Error::Ranks { .. } | Error::Diverged { .. }) => Ok(FAILURE),
        Err(error) => Err(error.into()),
    }
}

/// Trains on the only rank, or on rank 0.
fn lead(args: &TrainArgs, communicator: Arc<dyn Communicator>) -> anyhow::Result<u8> {
    args.check_jobs()?;
    if args.tui && !screen::has_terminal() {
        return Err(Usage(
            "--tui needs a terminal, but stdout or stderr is a file or a pipe; leave it out".into(),
        )
        .into());
    }
    let mut task = plan(args)?;
    args.check_ranks(communicator.world_size(), matches!(task.work, Work::Sweep(_)))?;
    let _reserved = reserve(&mut task)?;
    crate::traps::warn(args, &task)?;
    if let Some(chosen) = &task.chosen_precision {
        screen::err(format_args!("precision {chosen}"));
    }
    let signals = Signals::install(true)?;
    is_sweep(&*communicator, Some(&task.work));
    let outcome = match &task.work {
        Work::Run(settings) => train_run(args, &task, settings, Box::new(communicator), &signals),
        Work::Sweep(sweep) => train_sweep(args, &task, sweep, communicator, &signals),
    };
    let lost = screen::lost();
    if let Some(lost) = &lost {
        screen::err(format_args!("warning: {lost}"));
        // The runs of a sweep record this themselves.
        if let (Some(run_dir), Work::Run(_)) = (&task.run_dir, &task.work) {
            // If the disk is full, saving the run has reported that.
            let _ = run_dir.note_lost_output(&lost.to_string());
        }
    }
    let outcome = outcome?;
    if outcome == Outcome::Stopped {
        match &task.run_dir {
            Some(run_dir) => {
                screen::err(format_args!(
                    "stopped; to resume: folio train --resume {}",
                    quoted(run_dir.path())
                ));
            }
            None => screen::err("stopped; --no_save: nothing was saved"),
        }
        return Ok(signals.exit_code());
    }
    if let Some(run_dir) = &task.run_dir {
        print_next_steps(run_dir, &task);
    }
    Ok(if lost.is_some() { FAILURE } else { SUCCESS })
}

/// Trains a single run.
fn train_run(
    args: &TrainArgs,
    task: &Task,
    settings: &Settings,
    communicator: Box<dyn Communicator>,
    signals: &Signals,
) -> anyhow::Result<Outcome> {
    let (mut trainer, _lock) = begin_run(args, task, settings, communicator)?;
    if let Start::Resume { run, .. } = &task.start {
        print_resumption(run, &trainer);
        if trainer.steps_left() == 0 {
            let larger =
                if trainer.is_out_of_patience() { "--patience" } else { "--num_epochs or --max_steps" };
            screen::err(format_args!("nothing is left to train; use a larger {larger} to continue"));
        }
    }
    if matches!(task.start, Start::Resume { .. }) && !trainer.has_optimizer() {
        screen::err(FRESH_OPTIMIZER);
    }
    let is_resumed = matches!(task.start, Start::Resume { .. });
    let trained = if is_resumed { trainer.state().epoch } else { 0 };
    print_destination(task, trainer.backend().parameters().values().len() as u64, trained);
    let dashboard = open_dashboard(args, task, signals)?;
    if let Some(dashboard) = &dashboard {
        let history = trainer.history();
        let epoch_of = |step| 1 + history.epochs.iter().filter(|epoch| epoch.step < step).count() as u64;
        let all = history.all_evaluations().into_iter();
        let evaluations = all.map(|(step, loss)| (epoch_of(step), step, loss)).collect();
        dashboard.send(Update::History { run: 0, evaluations });
    }
    let mut progress = Progress::new(args.display());
    let outcome = run_recorded(&mut trainer, task.run_dir.as_ref(), &signals.requests, &mut |event| {
        progress.on_event(event);
        if let Some(dashboard) = &dashboard {
            dashboard.send(Update::Event { run: 0, event: event.clone() });
        }
    });
    progress.finish();
    drop(dashboard);
    let outcome = outcome?;
    if outcome == Outcome::Finished && task.sample_tokens > 0 && !args.json {
        let sample = trainer.sample(task.sample_tokens);
        screen::report(format_args!("\n{}\n", crate::terminal::shown(sample.trim())));
    }
    Ok(outcome)
}

/// Prepares a single run, and locks its directory.
pub(crate) fn begin_run(
    args: &TrainArgs,
    task: &Task,
    settings: &Settings,
    communicator: Box<dyn Communicator>,
) -> anyhow::Result<(Trainer, Option<RunLock>)> {
    let (stream, tokenizer) = (Arc::clone(&task.stream), Arc::clone(&task.tokenizer));
    let early_lock = early_lock(task)?;
    let settings = settings.clone();
    let trainer = Trainer::on(&on_cpu, communicator, settings, stream, tokenizer, &task.start)?;
    if matches!(task.start, Start::Resume { .. }) {
        trainer.check_length()?;
    }
    Ok((trainer, claim(args, task, early_lock)?))
}

/// Trains the runs of a sweep.
fn train_sweep(
    args: &TrainArgs,
    task: &Task,
    sweep: &Sweep,
    communicator: Arc<dyn Communicator>,
    signals: &Signals,
) -> anyhow::Result<Outcome> {
    let _lock = begin_sweep(args, task, sweep)?;
    let parameters = sweep.runs.iter().map(|run| run.model_config(task.tokenizer.vocab_size()).parameters());
    print_destination(task, parameters.max().unwrap_or(0), 0);
    let jobs = affordable_jobs(args.jobs.unwrap_or(1), sweep, task.tokenizer.vocab_size());
    let trains_runs = if args.parallel() == Parallel::Runs { communicator.world_size() } else { 1 };
    let context = sweep_context(args, task, jobs, communicator, &signals.requests);
    let dashboard = open_dashboard(args, task, signals)?;
    let mut standings = Standings::new(sweep, args.display(), jobs.max(trains_runs));
    let mut listener = |event: SweepEvent| {
        if let SweepEvent::RunEnded { result, trained: true, .. } = &event {
            note_lost_output(task, result.run);
        }
        standings.on_event(event.clone());
        if let Some(dashboard) = &dashboard {
            watch_sweep(dashboard, &standings, event);
        }
    };
    let trained = run_sweep(sweep, &context, &Mutex::new(&mut listener));
    drop(dashboard);
    let (outcome, ranked) = trained?;
    standings.finish(&ranked, outcome);
    if outcome == Outcome::Finished
        && ranked.iter().all(|run| run.state.is_some_and(|state| state.has_failed()))
    {
        let error = ranked[0].error.as_deref().unwrap_or("unknown");
        return Err(anyhow::anyhow!("every run has failed; the first error: {error}"));
    }
    Ok(outcome)
}

/// Locks the directory of a sweep, and lists its runs there.
pub(crate) fn begin_sweep(args: &TrainArgs, task: &Task, sweep: &Sweep) -> anyhow::Result<Option<RunLock>> {
    let early_lock = early_lock(task)?;
    if args.overwrite {
        // Fail before overwriting anything if the checkpoint cannot be read.
        let (stream, tokenizer) = (Arc::clone(&task.stream), Arc::clone(&task.tokenizer));
        Trainer::new(sweep.runs[0].clone(), stream, tokenizer, &task.start)?;
    }
    let lock = claim(args, task, early_lock)?;
    if let Some(run_dir) = task.run_dir.as_ref().filter(|_| args.resume.is_none()) {
        sweep.write(run_dir.path())?;
    }
    Ok(lock)
}

/// What the runs of a sweep share.
pub(crate) fn sweep_context(
    args: &TrainArgs,
    task: &Task,
    jobs: usize,
    ranks: Arc<dyn Communicator>,
    requests: &Requests,
) -> Context {
    Context {
        stream: Arc::clone(&task.stream),
        tokenizer: Arc::clone(&task.tokenizer),
        start: task.start.clone(),
        directory: task.run_dir.clone(),
        skip_damaged: args.skip_damaged,
        jobs,
        threads: rayon::current_num_threads(),
        requests: requests.clone(),
        ranks,
        parallel: args.parallel(),
        table: SharedTable::default(),
    }
}

/// Records in the status of a sweep's run that output was lost.
fn note_lost_output(task: &Task, run: usize) {
    if let (Some(lost), Some(sweep)) = (screen::lost(), &task.run_dir) {
        let run_dir = sweep.sub_run(run);
        // If the disk is full, saving the run has reported that.
        let _ = run_dir.note_lost_output(&lost.to_string());
    }
}

/// The dashboard, if `--tui` is given.
fn open_dashboard(args: &TrainArgs, task: &Task, signals: &Signals) -> anyhow::Result<Option<Dashboard>> {
    let open = || {
        let title = task.run_dir.as_ref().map_or("train".to_owned(), |run| run.path().display().to_string());
        Dashboard::open(title, task.run_dir.is_some(), signals.requests.clone())
    };
    args.tui.then(open).transpose()
}

/// Passes an event, which the standings have already seen, to the dashboard.
fn watch_sweep(dashboard: &Dashboard, standings: &Standings, event: SweepEvent) {
    let moves = match event {
        SweepEvent::Run { run, event } => {
            dashboard.send(Update::Event { run, event: event.clone() });
            matches!(event, Event::EpochEnded { .. } | Event::Evaluated { .. })
        }
        SweepEvent::RunEnded { result, .. } => {
            dashboard.send(Update::Ended { run: result.run });
            true
        }
        SweepEvent::RunStarted { .. } => true,
        SweepEvent::RungEnded { .. } => false,
    };
    if moves {
        dashboard.send(Update::Table(standings.table()));
    }
}

/// The lock of an existing run directory, taken before the directory is read. A new directory is locked when it is
/// created.
fn early_lock(task: &Task) -> anyhow::Result<Option<RunLock>> {
    let existing = task.run_dir.as_ref().filter(|run| task.new_name.is_none() && run.path().is_dir());
    Ok(existing.map(RunLock::take).transpose()?)
}

/// Locks the task's directory, after creating it if necessary, and deletes what is to be overwritten.
fn claim(args: &TrainArgs, task: &Task, lock: Option<RunLock>) -> anyhow::Result<Option<RunLock>> {
    let Some(run_dir) = &task.run_dir else { return Ok(None) };
    run_dir.create()?;
    let lock = lock.map_or_else(|| RunLock::take(run_dir), Ok)?;
    if args.overwrite {
        task.clear()?;
    }
    Ok(Some(lock))
}

/// The number of runs to train at the same time: as requested, or as many as fit in free memory.
pub(crate) fn affordable_jobs(requested: usize, sweep: &Sweep, vocab_size: usize) -> usize {
    let bytes = sweep.runs.iter().map(|run| {
        let config = run.model_config(vocab_size);
        let Settings { precision, batch_size, gradient_accumulation_steps: parts, freeze, zero, .. } = *run;
        let muon = match run.optimizer {
            OptimizerKind::AdamW => 0,
            OptimizerKind::Muon => CpuBackend::muon_bytes(&config, precision),
        };
        CpuBackend::training_bytes(&config, precision, batch_size, parts, freeze, RankCount::ONE, zero)
            .saturating_add(muon)
    });
    let largest = bytes.max().unwrap_or(1);
    let room = available_memory().map_or(usize::MAX, |free| (free / largest) as usize).max(1);
    if requested > room {
        let (gib, free) = (gibibytes(largest), gibibytes(available_memory().unwrap_or(0)));
        screen::err(format_args!(
            "--jobs {room} instead of {requested}: a run needs up to {gib} of memory, and {free} are free"
        ));
    }
    requested.min(room)
}

/// Prints where a run resumes.
fn print_resumption(run: &RunDir, trainer: &Trainer) {
    let state = trainer.state();
    let from = trainer.resumed_from().and_then(|path| path.file_name());
    match from {
        Some(name) => {
            let name = name.to_string_lossy();
            screen::err(format_args!(
                "{} resumes from {name}: epoch {}, step {}",
                run.path().display(),
                state.epoch,
                state.global_step
            ));
        }
        None => screen::err(format_args!(
            "{} has no checkpoint yet: it starts from the beginning",
            run.path().display()
        )),
    }
}
