//! `folio train`: from options to runs.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use clap::Args;
use folio::machine::available_memory;
use folio::model::CpuBackend;
use folio::records::run_recorded;
use folio::run_dir::{RunDir, RunLock};
use folio::settings::Settings;
use folio::sweep::{Context, Sweep, SweepEvent, run_sweep};
use folio::train::{Event, Outcome, Start, Trainer};

use crate::dashboard::{Dashboard, Update};
use crate::destination::{print_destination, print_next_steps, quoted, reserve};
use crate::options::{Options, whole};
use crate::plan::continuing::FRESH_OPTIMIZER;
use crate::plan::{Task, Work, plan};
use crate::presets;
use crate::progress::{Display, Progress, gibibytes};
use crate::screen;
use crate::signals::Signals;
use crate::standings::Standings;
use crate::threads::set_threads;
use crate::usage::Usage;

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
Example:
  folio train --preset quick --lr 1e-3 --run_dir runs/slow")]
#[command(after_long_help = "\
Flags marked * take several values, as in --lr 1e-3 5e-4 or --lr 1e-3,5e-4: every combination is run, the last flag in
the order block_sizes, batch_sizes, learning_rates, weight_decays, dropouts, cosine_final_lr, cosine_T_max,
cosine_T_mult, cosine_lr_restart_decay varying fastest. With --trials they take ranges too, as in 1e-4..3e-3:log.

Every flag is also a key of a --config file, under each of its names, with _ for -.

Every run is saved: in --run_dir, or in a new directory under runs/. It can be resumed from there. Ctrl-C, SIGTERM or a
closed terminal finish the step, save and stop; a second signal stops at once. SIGUSR1 saves and goes on.

Examples:
  folio train --preset quick
  folio train --preset shakespeare-char --n_blocks 4 --run_dir runs/four
  folio corpus > my.txt
  folio train --data my.txt --epochs 20 --lr 1e-3 --save-checkpoint \\
      --run-dir runs/mine
  folio train --tokenizer_type bpe --batch_sizes 32 --block_sizes 128 \\
      --learning_rates 1e-3 5e-4 1e-4 --weight_decays 3 --lr_schedule cosine \\
      --cosine_T_max 100 --num_epochs 100 --save_losses --run_dir runs/bpe
  folio train --tokenizer_type corpus_bpe --vocab_size 1024 --save_losses \\
      --run_dir runs/own_bpe
  folio train --learning_rates 1e-4..3e-3:log --dropouts 0..0.3 \\
      --search halving --trials 27 --run_dir runs/search
  folio train --resume runs/mine
  folio train --resume runs/mine --num_epochs 40
  folio train --from_checkpoint --from_checkpoint_run_dir runs/mine \\
      --from_checkpoint_step 20 --run_dir runs/more
  folio train --from_checkpoint --from_checkpoint_run_dir runs/mine \\
      --from_checkpoint_step 20 --weights_only --data my.txt \\
      --learning_rates 1e-4 --run_dir runs/tuned")]
pub(crate) struct TrainArgs {
    /// A named recipe that the other flags refine
    #[arg(long, value_name = "NAME", value_parser = presets::names())]
    pub(crate) preset: Option<String>,
    /// A TOML file of flags, such as `n_emb = 128`; it wins over the preset
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) options: Options,

    /// Replace the run in the run directory; only files that folio wrote are deleted
    #[arg(long, help_heading = "Files")]
    pub(crate) overwrite: bool,
    /// Save nothing: no losses, no model
    #[arg(long, help_heading = "Files", conflicts_with_all = ["resume", "overwrite"])]
    pub(crate) no_save: bool,
    /// Go on with a run, or a sweep, where it was last saved; its settings are its own, and only what does not touch
    /// what was trained so far may be given, such as --num_epochs for its whole length
    #[arg(long, value_name = "RUN_DIR", help_heading = "Continuing", conflicts_with_all = ["from_checkpoint", "overwrite"])]
    pub(crate) resume: Option<PathBuf>,
    /// Pass over checkpoints that are damaged
    #[arg(long, help_heading = "Continuing", requires = "resume")]
    pub(crate) skip_damaged: bool,
    /// Continue from a checkpoint of another run, or of the same
    #[arg(long, help_heading = "Continuing", requires_all = ["from_checkpoint_run_dir", "from_checkpoint_step"])]
    pub(crate) from_checkpoint: bool,
    /// The run to continue
    #[arg(long, value_name = "DIR", help_heading = "Continuing", requires = "from_checkpoint")]
    pub(crate) from_checkpoint_run_dir: Option<PathBuf>,
    /// The epoch to continue from: N of checkpoint_N
    #[arg(long, value_name = "N", help_heading = "Continuing", requires = "from_checkpoint", value_parser = whole::<u64>)]
    pub(crate) from_checkpoint_step: Option<u64>,
    /// Count the schedule's epochs and steps from the checkpoint, not from the run's beginning
    #[arg(long, help_heading = "Continuing", requires = "from_checkpoint")]
    pub(crate) restart_schedule: bool,
    /// Take nothing but the weights from the checkpoint: AdamW is new, and the schedule counts from there
    #[arg(long, help_heading = "Continuing", requires = "from_checkpoint")]
    pub(crate) weights_only: bool,
    /// Add rows to the model for characters of a new --data that its vocabulary lacks
    #[arg(long, help_heading = "Continuing", requires = "from_checkpoint")]
    pub(crate) extend_vocab: bool,

    /// Threads to compute with [default: all cores]
    #[arg(long, value_name = "N", help_heading = "Machine", value_parser = whole::<usize>)]
    threads: Option<usize>,
    /// Runs of a sweep to train at a time; they share threads and memory [default: 1]
    #[arg(long, value_name = "N", help_heading = "Machine", value_parser = whole::<usize>)]
    jobs: Option<usize>,
    /// One JSON object per epoch on stdout
    #[arg(long, help_heading = "Machine", conflicts_with = "tui")]
    json: bool,
    /// Watch the run on the whole terminal: its curves, newest sample and time left, and a sweep's runs in order; q
    /// saves and stops, s saves
    #[arg(long, help_heading = "Machine")]
    tui: bool,
}

impl TrainArgs {
    fn display(&self) -> Display {
        match (self.json, self.tui) {
            (true, _) => Display::Json,
            (false, true) => Display::Dashboard,
            (false, false) => Display::Bars,
        }
    }
}

pub(crate) fn run(args: &TrainArgs) -> anyhow::Result<ExitCode> {
    set_threads(args.threads)?;
    if args.jobs == Some(0) {
        return Err(Usage("--jobs: 0 is too few: give at least 1".into()).into());
    }
    if args.tui && !screen::has_terminal() {
        return Err(Usage(
            "--tui needs a terminal: leave it out where stdout or stderr is a file or a pipe".into(),
        )
        .into());
    }
    let mut task = plan(args)?;
    let _reserved = reserve(&mut task)?;
    crate::traps::warn(args, &task)?;
    if let Some(chosen) = &task.chosen_precision {
        screen::err(format_args!("precision {chosen}"));
    }
    let signals = Signals::install(true)?;
    let outcome = match &task.work {
        Work::Run(settings) => train_run(args, &task, settings, &signals),
        Work::Sweep(sweep) => train_sweep(args, &task, sweep, &signals),
    };
    let lost = screen::lost();
    if let Some(lost) = &lost {
        screen::err(format_args!("warning: {lost}"));
        // The sweep's runs have their own.
        if let (Some(run_dir), Work::Run(_)) = (&task.run_dir, &task.work) {
            // If the disk is full too, the run's own saves have said so.
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
    Ok(if lost.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Trains a single run.
fn train_run(
    args: &TrainArgs,
    task: &Task,
    settings: &Settings,
    signals: &Signals,
) -> anyhow::Result<Outcome> {
    let (stream, tokenizer) = (Arc::clone(&task.stream), Arc::clone(&task.tokenizer));
    let early_lock = early_lock(task)?;
    let mut trainer = Trainer::new(settings.clone(), stream, tokenizer, &task.start)?;
    if matches!(task.start, Start::Resume { .. }) {
        trainer.check_length()?;
    }
    let _lock = claim(args, task, early_lock)?;
    if let Start::Resume { run, .. } = &task.start {
        print_resumption(run, &trainer);
        if trainer.steps_left() == 0 {
            screen::err("nothing is left to train: give a larger --num_epochs or --max_steps for more");
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
        let losses = &trainer.history().losses;
        let epochs = losses.steps.iter().copied().zip(losses.eval_losses.iter().copied()).collect();
        dashboard.send(Update::History { run: 0, epochs });
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

/// Trains the runs of a sweep.
fn train_sweep(args: &TrainArgs, task: &Task, sweep: &Sweep, signals: &Signals) -> anyhow::Result<Outcome> {
    let early_lock = early_lock(task)?;
    if args.overwrite {
        // A checkpoint that cannot be read must cost nothing.
        let (stream, tokenizer) = (Arc::clone(&task.stream), Arc::clone(&task.tokenizer));
        Trainer::new(sweep.runs[0].clone(), stream, tokenizer, &task.start)?;
    }
    let _lock = claim(args, task, early_lock)?;
    if let Some(run_dir) = task.run_dir.as_ref().filter(|_| args.resume.is_none()) {
        sweep.write(run_dir.path())?;
    }
    let parameters = sweep.runs.iter().map(|run| run.model_config(task.tokenizer.vocab_size()).parameters());
    print_destination(task, parameters.max().unwrap_or(0), 0);
    let jobs = affordable_jobs(args.jobs.unwrap_or(1), sweep, task.tokenizer.vocab_size());
    let context = Context {
        stream: Arc::clone(&task.stream),
        tokenizer: Arc::clone(&task.tokenizer),
        start: task.start.clone(),
        directory: task.run_dir.clone(),
        skip_damaged: args.skip_damaged,
        jobs,
        threads: rayon::current_num_threads(),
        requests: signals.requests.clone(),
    };
    let dashboard = open_dashboard(args, task, signals)?;
    let mut standings = Standings::new(sweep, args.display(), jobs);
    let mut listener = |event: SweepEvent| {
        if let SweepEvent::RunEnded { standing, trained: true, .. } = &event {
            note_lost_output(task, standing.run);
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
        let error = ranked[0].error.as_deref().unwrap_or("for no known reason");
        return Err(anyhow::anyhow!("every run has failed, the first so: {error}"));
    }
    Ok(outcome)
}

/// Adds to the status of a sweep's run what could not be printed of it.
fn note_lost_output(task: &Task, run: usize) {
    if let (Some(lost), Some(sweep)) = (screen::lost(), &task.run_dir) {
        let run_dir = RunDir::new(sweep.path().join(format!("run_{}", run + 1)));
        // If the disk is full too, the run's own saves have said so.
        let _ = run_dir.note_lost_output(&lost.to_string());
    }
}

/// The dashboard, if it is asked for.
fn open_dashboard(args: &TrainArgs, task: &Task, signals: &Signals) -> anyhow::Result<Option<Dashboard>> {
    let open = || {
        let title = task.run_dir.as_ref().map_or("train".to_owned(), |run| run.path().display().to_string());
        Dashboard::open(title, task.run_dir.is_some(), signals.requests.clone())
    };
    args.tui.then(open).transpose()
}

/// Tells the dashboard of an event that the standings know already.
fn watch_sweep(dashboard: &Dashboard, standings: &Standings, event: SweepEvent) {
    let moves = match event {
        SweepEvent::Run { run, event } => {
            dashboard.send(Update::Event { run, event: event.clone() });
            matches!(event, Event::EpochEnded { .. })
        }
        SweepEvent::RunEnded { standing, .. } => {
            dashboard.send(Update::Ended { run: standing.run });
            true
        }
        SweepEvent::RunStarted { .. } => true,
        SweepEvent::RungEnded { .. } => false,
    };
    if moves {
        dashboard.send(Update::Table(standings.table()));
    }
}

/// The lock of a directory that was there before: it is locked before it is read, and one that is new when all else is
/// well.
fn early_lock(task: &Task) -> anyhow::Result<Option<RunLock>> {
    let existing = task.run_dir.as_ref().filter(|run| task.new_name.is_none() && run.path().is_dir());
    Ok(existing.map(RunLock::take).transpose()?)
}

/// Takes the task's directory, making it if it is not there, and removes what is to be overwritten.
fn claim(args: &TrainArgs, task: &Task, lock: Option<RunLock>) -> anyhow::Result<Option<RunLock>> {
    let Some(run_dir) = &task.run_dir else { return Ok(None) };
    run_dir.create()?;
    let lock = lock.map_or_else(|| RunLock::take(run_dir), Ok)?;
    if args.overwrite {
        task.clear()?;
    }
    Ok(Some(lock))
}

/// So many runs at a time as memory is free for.
fn affordable_jobs(asked: usize, sweep: &Sweep, vocab_size: usize) -> usize {
    let bytes = sweep.runs.iter().map(|run| {
        let config = run.model_config(vocab_size);
        CpuBackend::training_bytes(&config, run.precision, run.batch_size, run.gradient_accumulation_steps)
    });
    let largest = bytes.max().unwrap_or(1);
    let room = available_memory().map_or(usize::MAX, |free| (free / largest) as usize).max(1);
    if asked > room {
        let (gib, free) = (gibibytes(largest), gibibytes(available_memory().unwrap_or(0)));
        screen::err(format_args!(
            "--jobs {room} instead of {asked}: a run takes up to {gib}, and {free} of memory are free"
        ));
    }
    asked.min(room)
}

/// Says where a run goes on.
fn print_resumption(run: &RunDir, trainer: &Trainer) {
    let state = trainer.state();
    let from = trainer.resumed_from().and_then(|path| path.file_name());
    match from {
        Some(name) => {
            let name = name.to_string_lossy();
            screen::err(format_args!(
                "{} goes on from {name}: epoch {}, step {}",
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
