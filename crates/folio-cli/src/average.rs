//! `folio average`: a run with the average of the weights of several checkpoints.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use clap::Args;
use folio::average::{average, write_run};
use folio::checkpoint::{Checkpoint, CheckpointName};
use folio::data::Part;
use folio::evaluate::evaluate;
use folio::model::{CpuBackend, Parameters};
use folio::run_dir::{Place, RunDir, find, locate_or_newest};
use folio::settings::Settings;
use folio::tokenizer::Tokenizer;

use crate::destination::{quoted, reserve_name};
use crate::eval::dataset_of_run;
use crate::options::{GivenTexts, whole};
use crate::plan::plain_name;
use crate::screen;
use crate::threads::set_threads;
use crate::usage::Usage;

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
Averages of the last checkpoints of a run are often better than each of them. So are averages of runs that began with the same \
weights, such as several fine-tunings of one model. Runs with different initial weights do not average well: see \
folio eval --ensemble.

Examples:
  folio average runs/mine --checkpoints 8 9 10
  folio average runs/tuned_1 runs/tuned_2 runs/tuned_3 --run_dir runs/soup
  folio average runs/mine/step_900 runs/mine/latest
  folio eval runs/soup
  folio train --from_checkpoint --from_checkpoint_run_dir runs/soup \\
      --from_checkpoint_step 0 --weights_only")]
pub(crate) struct AverageArgs {
    /// Runs, of which the best checkpoints are averaged, or checkpoints such as RUN/checkpoint_5
    #[arg(value_name = "RUN_DIR", required = true)]
    runs: Vec<PathBuf>,
    /// Average the checkpoints of these epochs of a single run
    #[arg(long, alias = "checkpoint_step", value_name = "N", num_args = 1.., value_delimiter = ',',
        value_parser = whole::<u64>)]
    checkpoints: Vec<u64>,
    /// Directory for the new run [default: a new one in runs/]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Replace the run in the run directory; only files written by folio are deleted
    #[arg(long)]
    overwrite: bool,
    /// Do not evaluate the average and its members on the evaluation text
    #[arg(long)]
    no_eval: bool,
    /// Number of threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    threads: Option<usize>,
}

pub(crate) fn run(args: &AverageArgs) -> anyhow::Result<()> {
    set_threads(args.threads)?;
    let (run, checkpoints) = members(args)?;
    if let Some(path) = &args.run_dir {
        check_target(path, &checkpoints)?;
        // Before large models are read.
        RunDir::new(path).check_free(args.overwrite)?;
    }
    let (settings, tokenizer) = (run.settings()?, run.tokenizer()?);
    checkpoints[0].check_tokenizer(&tokenizer)?;
    let parameters = average(&checkpoints)?;
    let (run_dir, _reserved) = match &args.run_dir {
        Some(path) => (RunDir::new(path), None),
        None => {
            let (path, reserved) = reserve_name(&format!("{}-average", plain_name(run.path())))?;
            (RunDir::new(path), Some(reserved))
        }
    };
    write_run(&parameters, &checkpoints, &settings, &tokenizer, &run_dir, args.overwrite)?;
    for checkpoint in &checkpoints {
        screen::err(format_args!("averaged {}", checkpoint.directory().display()));
    }
    if !args.no_eval {
        print_losses(&settings, &tokenizer, &checkpoints, parameters, &run_dir)?;
    }
    let path = quoted(run_dir.path());
    screen::err(format_args!("next: folio eval {path}\n      folio generate {path}"));
    Ok(())
}

/// The run of the first checkpoint, and all checkpoints.
fn members(args: &AverageArgs) -> anyhow::Result<(RunDir, Vec<Checkpoint>)> {
    let mut members: Vec<(RunDir, CheckpointName)> = Vec::new();
    if args.checkpoints.is_empty() {
        for path in &args.runs {
            let found = find(Some(path))?;
            members.push((found.run, found.checkpoint.name));
        }
    } else {
        let (1, Place::Run(run)) = (args.runs.len(), locate_or_newest(Some(&args.runs[0]))?) else {
            let reason = "--checkpoints: chooses epochs of a single run; name one run, or name checkpoints such as \
                          RUN/checkpoint_5 and leave the flag out";
            return Err(Usage(reason.to_owned()).into());
        };
        members.extend(args.checkpoints.iter().map(|&epoch| (run.clone(), CheckpointName::Epoch(epoch))));
    }
    if members.len() < 2 {
        let reason = "an average needs at least two checkpoints; name more, or give --checkpoints N N";
        return Err(Usage(reason.to_owned()).into());
    }
    let open = |(run, name): &(RunDir, CheckpointName)| run.open_checkpoint(*name);
    let checkpoints: Vec<Checkpoint> = members.iter().map(open).collect::<folio::error::Result<_>>()?;
    check_distinct(&checkpoints)?;
    Ok((members.swap_remove(0).0, checkpoints))
}

/// Checks that no checkpoint is named twice, which would give it twice the weight.
fn check_distinct(checkpoints: &[Checkpoint]) -> anyhow::Result<()> {
    let mut seen = HashSet::new();
    for path in checkpoints.iter().map(Checkpoint::directory) {
        if !seen.insert(path.canonicalize().unwrap_or_else(|_| path.to_path_buf())) {
            let path = path.display();
            return Err(
                Usage(format!("{path} is named twice; name each checkpoint of an average once")).into()
            );
        }
    }
    Ok(())
}

/// Checks that the average would not replace one of its members.
fn check_target(path: &Path, checkpoints: &[Checkpoint]) -> anyhow::Result<()> {
    let Ok(target) = path.canonicalize() else { return Ok(()) };
    let is_inside =
        |member: &&Checkpoint| member.directory().canonicalize().is_ok_and(|own| own.starts_with(&target));
    let Some(member) = checkpoints.iter().find(is_inside) else { return Ok(()) };
    let (path, member) = (path.display(), member.directory().display());
    Err(Usage(format!("--run_dir {path} contains {member}, which is averaged; use another directory")).into())
}

/// Prints the evaluation losses of the members and of the average. Without the text it says why there are none.
fn print_losses(
    settings: &Settings,
    tokenizer: &Tokenizer,
    checkpoints: &[Checkpoint],
    average: Parameters,
    run_dir: &RunDir,
) -> anyhow::Result<()> {
    let dataset = match dataset_of_run(settings, &GivenTexts::default(), tokenizer) {
        Ok(dataset) => dataset,
        Err(error) => {
            screen::err(format_args!("not evaluated: {error}"));
            return Ok(());
        }
    };
    let config = checkpoints[0].state().identity.model;
    let mut model = CpuBackend::from_parameters(config, settings.precision, average);
    let loss =
        |model: &mut CpuBackend| evaluate(model, &dataset, tokenizer, Part::Eval).map(|found| found.loss);
    let of_average = loss(&mut model)?;
    for checkpoint in checkpoints {
        folio::model::Backend::load_parameters(&mut model, checkpoint.parameters()?);
        screen::out(format_args!(
            "{}: loss {:.4} nats per token",
            checkpoint.directory().display(),
            loss(&mut model)?
        ))?;
    }
    screen::out(format_args!("{}: loss {of_average:.4} nats per token", run_dir.path().display()))?;
    Ok(())
}
