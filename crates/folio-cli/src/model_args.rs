//! The arguments that choose a trained model, and loading it.

use std::path::{Path, PathBuf};

use clap::Args;
use folio::checkpoint::{Checkpoint, CheckpointName};
use folio::ensemble::check_checkpoints;
use folio::memory::check_generation;
use folio::model::{CpuBackend, InferenceModel, WeightFormat};
use folio::run_dir::{Found, Pick, Place, RUNS, RunDir, find, locate_or_newest};
use folio::tokenizer::Tokenizer;

use crate::options::whole;
use crate::screen;
use crate::usage::Usage;

/// Which checkpoints to use.
#[derive(Args, Clone)]
#[command(rename_all = "snake_case")]
pub(crate) struct CheckpointArgs {
    /// Run, sweep, or checkpoint such as RUN/latest or RUN/checkpoint_5 [default: the newest run in runs/]
    #[arg(value_name = "RUN_DIR")]
    pub(crate) run_dir: Option<PathBuf>,
    /// Use the checkpoints of these epochs [default: the checkpoint with the lowest eval loss]
    #[arg(long, value_name = "N", num_args = 1.., value_delimiter = ',', value_parser = whole::<u64>)]
    pub(crate) checkpoint_step: Vec<u64>,
    /// Use the checkpoint with the lowest eval loss of the run and its sub-runs; fails if no losses were saved
    #[arg(long, conflicts_with = "checkpoint_step")]
    pub(crate) best_eval_loss_model: bool,
}

/// The models of an ensemble.
#[derive(Args, Clone)]
#[command(rename_all = "snake_case")]
pub(crate) struct EnsembleArgs {
    /// Average the probabilities of several models: runs, sweeps or checkpoints, each as RUN_DIR
    #[arg(long, value_name = "RUN_DIR", num_args = 2..,
        conflicts_with_all = ["run_dir", "checkpoint_step", "best_eval_loss_model"])]
    ensemble: Vec<PathBuf>,
}

/// The checkpoints that the arguments choose. All of them exist.
pub(crate) struct ChosenCheckpoints {
    /// The run or sweep named on the command line.
    pub(crate) directory: RunDir,
    pub(crate) run: RunDir,
    pub(crate) names: Vec<CheckpointName>,
    /// The other models of an ensemble, whose first is the only one of `names`.
    others: Vec<(RunDir, CheckpointName)>,
    /// One line per checkpoint.
    descriptions: Vec<String>,
}

impl ChosenCheckpoints {
    /// Prints on stderr which checkpoints are used. Called after all arguments have been checked.
    pub(crate) fn announce(&self) {
        for description in &self.descriptions {
            screen::err(format_args!("using {description}"));
        }
    }

    /// The models to use together: one of `names`, and the others of an ensemble.
    pub(crate) fn members(&self, name: CheckpointName) -> Vec<(RunDir, CheckpointName)> {
        let mut members = vec![(self.run.clone(), name)];
        members.extend_from_slice(&self.others);
        members
    }

    /// Whether this is an ensemble.
    pub(crate) fn is_ensemble(&self) -> bool {
        !self.others.is_empty()
    }

    /// The paths of the models to use together.
    pub(crate) fn label(&self, name: CheckpointName) -> String {
        let paths =
            self.members(name).into_iter().map(|(run, name)| run.checkpoint(name).display().to_string());
        paths.collect::<Vec<_>>().join(" + ")
    }
}

impl EnsembleArgs {
    /// Whether there is one.
    pub(crate) fn is_given(&self) -> bool {
        !self.ensemble.is_empty()
    }

    /// Finds the models, and checks that they have one tokenizer and context length. With `same_text` they must also share
    /// their texts and their split.
    pub(crate) fn find(&self, same_text: bool) -> anyhow::Result<ChosenCheckpoints> {
        let found: Vec<Found> =
            self.ensemble.iter().map(|path| find(Some(path))).collect::<folio::error::Result<_>>()?;
        let open = |found: &Found| found.run.open_checkpoint(found.checkpoint.name);
        let checkpoints: Vec<Checkpoint> = found.iter().map(open).collect::<folio::error::Result<_>>()?;
        check_checkpoints(&checkpoints, same_text)?;
        let descriptions = found.iter().map(Found::describe).collect();
        let others = found[1..].iter().map(|other| (other.run.clone(), other.checkpoint.name)).collect();
        let Found { directory, run, checkpoint, .. } = found[0].clone();
        Ok(ChosenCheckpoints { directory, run, names: vec![checkpoint.name], others, descriptions })
    }
}

impl CheckpointArgs {
    /// Finds the checkpoints.
    ///
    /// # Errors
    /// If one does not exist or the arguments contradict each other.
    pub(crate) fn find(&self) -> anyhow::Result<ChosenCheckpoints> {
        if !self.checkpoint_step.is_empty() {
            return self.find_epochs();
        }
        let found =
            if self.best_eval_loss_model { self.find_by_loss()? } else { find(self.run_dir.as_deref())? };
        found.run.open_checkpoint(found.checkpoint.name)?;
        let (names, descriptions) = (vec![found.checkpoint.name], vec![found.describe()]);
        let others = Vec::new();
        Ok(ChosenCheckpoints { directory: found.directory, run: found.run, names, others, descriptions })
    }

    /// The checkpoint of `--best_eval_loss_model`.
    fn find_by_loss(&self) -> anyhow::Result<Found> {
        let directory = match locate_or_newest(self.run_dir.as_deref())? {
            Place::Run(run) | Place::Sweep(run) => run,
            Place::Checkpoint(..) | Place::Directory(_) => {
                return Err(self.names_a_checkpoint("--best_eval_loss_model"));
            }
        };
        let (run, name) = directory.best()?;
        let found = find(Some(&run.checkpoint(name)))?;
        Ok(Found { directory, pick: Pick::Best, ..found })
    }

    /// The checkpoints of `--checkpoint_step`.
    fn find_epochs(&self) -> anyhow::Result<ChosenCheckpoints> {
        let run = match locate_or_newest(self.run_dir.as_deref())? {
            Place::Run(run) => run,
            Place::Sweep(sweep) => {
                let path = sweep.path().display();
                let message = format!("{path} is a sweep; name one of its runs, or remove --checkpoint_step");
                return Err(Usage(message).into());
            }
            Place::Checkpoint(..) | Place::Directory(_) => {
                return Err(self.names_a_checkpoint("--checkpoint_step"));
            }
        };
        let names: Vec<_> = self.checkpoint_step.iter().copied().map(CheckpointName::Epoch).collect();
        for &name in &names {
            run.open_checkpoint(name)?;
        }
        let descriptions = names.iter().map(|&name| run.checkpoint(name).display().to_string()).collect();
        Ok(ChosenCheckpoints { directory: run.clone(), run, names, others: Vec::new(), descriptions })
    }

    fn names_a_checkpoint(&self, flag: &str) -> anyhow::Error {
        let path = self.run_dir.as_deref().unwrap_or(Path::new(RUNS)).display();
        Usage(format!("{path} is already a checkpoint; give the run directory, or remove {flag}")).into()
    }
}

/// Loads a model for evaluation, in the precision it was trained in.
pub(crate) fn load_model(
    run: &RunDir,
    name: CheckpointName,
    tokenizer: &Tokenizer,
) -> anyhow::Result<CpuBackend> {
    let checkpoint = run.open_checkpoint(name)?;
    checkpoint.check_tokenizer(tokenizer)?;
    let config = checkpoint.state().identity.model;
    Ok(CpuBackend::from_parameters(config, run.settings()?.precision, checkpoint.parameters()?))
}

/// Loads a model for generation, with weights in `format` or else in the precision it was trained in.
pub(crate) fn load_inference_model(
    run: &RunDir,
    name: CheckpointName,
    tokenizer: &Tokenizer,
    format: Option<WeightFormat>,
) -> anyhow::Result<InferenceModel> {
    let checkpoint = run.open_checkpoint(name)?;
    checkpoint.check_tokenizer(tokenizer)?;
    let config = checkpoint.state().identity.model;
    let trained_in = run.settings()?.precision;
    let format = format.unwrap_or(WeightFormat::of(trained_in));
    format.check(&config)?;
    check_generation(&config, format)?;
    Ok(InferenceModel::new(config, format, &checkpoint.parameters()?))
}
