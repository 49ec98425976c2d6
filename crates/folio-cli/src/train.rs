//! `folio train`: from options to runs.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use folio::data::{Dataset, TokenStream};
use folio::error::Error;
use folio::generate::{Sampling, generate};
use folio::rng::{Rng, Stream};
use folio::run_dir::RunDir;
use folio::settings::Settings;
use folio::sweep::Grid;
use folio::text::Corpus;
use folio::tokenizer::{Tokenizer, TokenizerKind};
use folio::train::{Start, Trainer, check_same_sizes};

use crate::options::{Options, whole};
use crate::presets;
use crate::progress::Progress;
use crate::tokenizer::bar_for;
use crate::usage::Usage;

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
Flags marked * take several values: every combination is run, the last flag in the order block_sizes,
batch_sizes, learning_rates, weight_decays, dropouts, cosine_final_lr, cosine_T_max, cosine_T_mult,
cosine_lr_restart_decay varying fastest.

Examples:
  folio train --preset quick
  folio train --preset shakespeare-char --n_blocks 4 --run_dir runs/four
  folio train --data my.txt --num-epochs 20 --learning-rates 1e-3 --save-losses --save-checkpoint --run-dir runs/mine
  folio train --tokenizer_type bpe --batch_sizes 32 --block_sizes 128 --learning_rates 1e-3 5e-4 1e-4 \\
      --weight_decays 3 --lr_schedule cosine --cosine_T_max 100 --num_epochs 100 --save_losses --run_dir runs/bpe
  folio train --tokenizer_type corpus_bpe --vocab_size 1024 --save_losses --run_dir runs/own_bpe
  folio train --from_checkpoint --from_checkpoint_run_dir runs/mine --from_checkpoint_step 20 --run_dir runs/more")]
pub(crate) struct TrainArgs {
    /// A named recipe that the other flags refine
    #[arg(long, value_name = "NAME", value_parser = presets::names())]
    preset: Option<String>,
    /// A TOML file of flags, such as `n_emb = 128`; it wins over the preset
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    options: Options,

    /// Replace the run that is in the run directory
    #[arg(long, help_heading = "Files")]
    overwrite: bool,
    /// Continue from a checkpoint of another run, or of the same
    #[arg(long, help_heading = "Continuing", requires_all = ["from_checkpoint_run_dir", "from_checkpoint_step"])]
    from_checkpoint: bool,
    /// The run to continue
    #[arg(long, value_name = "DIR", help_heading = "Continuing", requires = "from_checkpoint")]
    from_checkpoint_run_dir: Option<PathBuf>,
    /// The epoch to continue from: N of checkpoint_N
    #[arg(long, value_name = "N", help_heading = "Continuing", requires = "from_checkpoint", value_parser = whole::<u64>)]
    from_checkpoint_step: Option<u64>,
    /// Count the schedule's epochs and steps from the checkpoint, not from the run's beginning
    #[arg(long, help_heading = "Continuing", requires = "from_checkpoint")]
    restart_schedule: bool,

    /// Threads to compute with [default: all cores]
    #[arg(long, value_name = "N", help_heading = "Machine", value_parser = whole::<usize>)]
    threads: Option<usize>,
    /// One JSON object an epoch on stdout
    #[arg(long, help_heading = "Machine")]
    json: bool,
}

/// All that is settled before anything is written.
struct Plan {
    runs: Vec<Settings>,
    grid: Grid,
    start: Start,
    stream: Arc<TokenStream>,
    tokenizer: Arc<Tokenizer>,
    run_dir: Option<RunDir>,
    sample_tokens: usize,
}

pub(crate) fn run(args: &TrainArgs) -> anyhow::Result<()> {
    set_threads(args.threads)?;
    let plan = plan(args)?;
    let count = plan.runs.len();
    for (index, settings) in plan.runs.iter().enumerate() {
        let run_dir = plan.run_dir.as_ref().map(|parent| match count {
            1 => parent.clone(),
            _ => RunDir::new(parent.path().join(format!("run_{}", index + 1))),
        });
        if count > 1 && !args.json {
            let values: Vec<String> =
                plan.grid.varying(settings).iter().map(|(name, value)| format!("{name} {value}")).collect();
            println!("Experiment {}/{count}: {}", index + 1, values.join(", "));
        }
        let (stream, tokenizer) = (Arc::clone(&plan.stream), Arc::clone(&plan.tokenizer));
        let mut trainer = Trainer::new(settings.clone(), stream, tokenizer, &plan.start)?;
        if index == 0 && args.overwrite {
            // Only now: a checkpoint that cannot be read must cost nothing.
            clear_run_dir(&plan)?;
        }
        let mut progress = Progress::new(args.json);
        let outcome = trainer.run(run_dir.as_ref(), &mut |event| progress.on_event(event));
        progress.finish();
        outcome?;
        if plan.sample_tokens > 0 && !args.json {
            print_sample(&mut trainer, &plan.tokenizer, plan.sample_tokens);
        }
    }
    if let Some(run_dir) = &plan.run_dir {
        print_next_steps(run_dir, &plan.runs);
    }
    Ok(())
}

/// Checks everything and reads the text; writes nothing.
fn plan(args: &TrainArgs) -> anyhow::Result<Plan> {
    let start = match (args.from_checkpoint, &args.from_checkpoint_run_dir, args.from_checkpoint_step) {
        (true, Some(run), Some(number)) => {
            Start::Checkpoint { run: RunDir::new(run), number, restart_schedule: args.restart_schedule }
        }
        _ => Start::Fresh,
    };
    let options = merged_options(args, &start)?;
    let (mut base, grid) = options.settings();
    let needs_directory = [("--save_losses", base.save_losses), ("--save_checkpoint", base.save_checkpoint)];
    if let Some((flag, _)) = needs_directory.iter().find(|(_, set)| *set && options.run_dir.is_none()) {
        return Err(Usage(format!("{flag} needs a place to write to: add --run_dir DIR")).into());
    }
    for settings in grid.combinations(&base) {
        settings.validate()?;
    }

    let corpus = match &options.data {
        Some(path) => {
            let corpus = Corpus::from_file(path)?;
            base.data = std::path::absolute(path).unwrap_or_else(|_| path.clone()).display().to_string();
            corpus
        }
        None => Corpus::embedded(),
    };
    base.data_sha256.clone_from(&corpus.sha256);
    if let TokenizerKind::File(path) = &mut base.tokenizer_type {
        *path = std::path::absolute(&path).unwrap_or_else(|_| path.clone());
    }
    let tokenizer = Arc::new(match &start {
        Start::Fresh => base.tokenizer(&corpus.text)?,
        Start::Checkpoint { run, .. } => run.tokenizer()?,
    });
    let runs = grid.combinations(&base);
    for settings in &runs {
        check_continues(settings, &start, &tokenizer)?;
    }
    let bar = bar_for(corpus.text.len());
    let stream = TokenStream::encode_telling(&corpus.text, &tokenizer, base.split, |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    let stream = Arc::new(stream);
    for settings in &runs {
        Dataset::new(Arc::clone(&stream), settings.block_size, settings.seed)?;
    }
    let run_dir = options.run_dir.map(RunDir::new);
    let sample_tokens = options.sample_tokens.unwrap_or(0);
    let plan = Plan { runs, grid, start, stream, tokenizer, run_dir, sample_tokens };
    check_run_dir(&plan, args.overwrite)?;
    Ok(plan)
}

/// Flags, then the config file, then the preset, then the run that is continued.
fn merged_options(args: &TrainArgs, start: &Start) -> anyhow::Result<Options> {
    let mut options = args.options.clone();
    if let Some(path) = &args.config {
        options = options.or(&presets::config_file(path)?)?;
    }
    if let Some(name) = &args.preset {
        options = options.or(&presets::preset(name)?)?;
    }
    if let Start::Checkpoint { run, number, .. } = start {
        run.existing_checkpoint(*number)?;
        options = options.or(&Options::inherited(&run.settings()?))?;
    }
    Ok(options)
}

/// Checks that a run can go on from its checkpoint: the same model, and the same text in the same parts, since
/// otherwise it would be evaluated on what it was trained on.
fn check_continues(settings: &Settings, start: &Start, tokenizer: &Tokenizer) -> anyhow::Result<()> {
    let Start::Checkpoint { run, number, .. } = start else { return Ok(()) };
    let wanted = settings.model_config(tokenizer.vocab_size());
    let saved = run.settings()?;
    let same = [
        (
            "--tokenizer_type",
            saved.tokenizer_type == settings.tokenizer_type,
            saved.tokenizer_type.to_string(),
        ),
        (
            "--vocab_size",
            saved.vocab_size == settings.vocab_size,
            saved.vocab_size.map_or_else(|| "none".to_owned(), |size| size.to_string()),
        ),
        ("--data", saved.data_sha256 == settings.data_sha256, saved.data.clone()),
        ("--split", saved.split == settings.split, format!("{:?}", saved.split).to_lowercase()),
        ("--seed", saved.seed == settings.seed, saved.seed.to_string()),
    ];
    if let Some((flag, _, value)) = same.iter().find(|(_, same, _)| !same) {
        let reason = format!(
            "the run in {} has {value}, and its training and evaluation text must stay apart: leave the flag out",
            run.path().display()
        );
        return Err(Usage(format!("{flag}: {reason}")).into());
    }
    check_same_sizes(&run.checkpoint(*number), &run.model_config()?, &wanted)?;
    Ok(())
}

/// Checks that nothing that exists would be lost.
fn check_run_dir(plan: &Plan, overwrite: bool) -> anyhow::Result<()> {
    let Some(run_dir) = &plan.run_dir else { return Ok(()) };
    if continues_in_place(plan) {
        let Start::Checkpoint { run, number, .. } = &plan.start else { unreachable!("it continues") };
        let later = run.checkpoints()?.into_iter().find(|later| later > number);
        if let Some(later) = later.filter(|_| !overwrite) {
            let reason = format!(
                "holds checkpoint {later}, later than {number}: continue from the last, give another --run_dir, or \
                 --overwrite to replace what came after {number}"
            );
            return Err(Error::RunDirectory { path: run.path().to_path_buf(), reason }.into());
        }
        return Ok(());
    }
    if let Start::Checkpoint { run, .. } = &plan.start
        && let (Ok(source), Ok(target)) = (run.path().canonicalize(), run_dir.path().canonicalize())
        && source.starts_with(&target)
    {
        let path = run_dir.path().display();
        return Err(Usage(format!("--run_dir {path} holds the run that is continued: give another")).into());
    }
    Ok(run_dir.check_free(overwrite)?)
}

/// Removes what `--overwrite` gives up: the run that is there, or what came after the checkpoint it goes on from.
fn clear_run_dir(plan: &Plan) -> anyhow::Result<()> {
    match (&plan.run_dir, &plan.start) {
        (Some(run_dir), Start::Checkpoint { number, .. }) if continues_in_place(plan) => {
            run_dir.clear_checkpoints_after(*number)?;
        }
        (Some(run_dir), _) => run_dir.clear()?,
        (None, _) => {}
    }
    Ok(())
}

/// Whether a single run goes on in its own directory.
fn continues_in_place(plan: &Plan) -> bool {
    let (Start::Checkpoint { run, .. }, Some(run_dir), 1) = (&plan.start, &plan.run_dir, plan.runs.len())
    else {
        return false;
    };
    match (run.path().canonicalize(), run_dir.path().canonicalize()) {
        (Ok(source), Ok(target)) => source == target,
        _ => false,
    }
}

/// Sizes the thread pool under every kernel.
pub(crate) fn set_threads(threads: Option<usize>) -> anyhow::Result<()> {
    if threads == Some(0) {
        return Err(
            Usage("--threads: 0 is too few: give at least 1, or leave it out for all cores".into()).into()
        );
    }
    // The library reads 0 as all cores.
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.unwrap_or(0))
        .build_global()
        .context("starting threads")
}

/// Lets the model that has just been trained write.
fn print_sample(trainer: &mut Trainer, tokenizer: &Tokenizer, tokens: usize) {
    let mut rng = Rng::new(trainer.settings().seed, Stream::Sampling);
    let mut context = vec![0];
    generate(trainer.model(), &mut context, tokens, &Sampling::default(), &mut rng, |_| {});
    println!("\n{}\n", tokenizer.decode(&context[1..]).trim());
}

/// Says where the files are and what to type next.
fn print_next_steps(run_dir: &RunDir, runs: &[Settings]) {
    let path = run_dir.path().display();
    let first = &runs[0];
    eprintln!("the run is in {path}");
    let mut next = Vec::new();
    if first.save_checkpoint {
        let best = if first.save_losses { " --best_eval_loss_model" } else { "" };
        if runs.len() == 1 || first.save_losses {
            next.push(format!("folio generate {path}{best} --prompt 'ROMEO:'"));
        }
        if runs.len() == 1 {
            next.push(format!("folio eval {path}{best}"));
        }
    }
    if first.save_losses {
        next.push(format!("folio plot {path}"));
        next.push(format!("folio runs {path}"));
    }
    if !next.is_empty() {
        eprintln!("next: {}", next.join("\n      "));
    }
}
