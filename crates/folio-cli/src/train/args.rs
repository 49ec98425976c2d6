//! The arguments of `folio train`.

use std::path::PathBuf;

use clap::Args;
use folio::sweep::Parallel;

use crate::options::{Options, search_order, whole};
use crate::presets;
use crate::progress::Display;
use crate::usage::Usage;

/// The text below the list of flags.
fn long_help() -> String {
    let nested = search_order().join(", ");
    format!(
        "\
Flags marked * take several values, as in --lr 1e-3 5e-4 or --lr 1e-3,5e-4: folio trains every \
combination. The flags are nested in the order {nested}; the last varies fastest. With --trials they also \
take ranges, as in 1e-4..3e-3:log.

Every flag is also a key of a --config file, under each of its names, spelled with _.

Every run is saved, in --run_dir or in a new directory under runs/, and can be resumed from there. Ctrl-C, SIGTERM or \
closing the terminal finishes the step, saves and stops; a second signal stops at once. SIGUSR1 saves and continues.

{EXAMPLES}"
    )
}

const EXAMPLES: &str = "\
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
      --learning_rates 1e-4 --run_dir runs/tuned";

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
Example:
  folio train --preset quick --lr 1e-3 --run_dir runs/slow")]
#[command(after_long_help = long_help())]
pub(crate) struct TrainArgs {
    /// Named settings to start from; other flags override them
    #[arg(long, value_name = "NAME", value_parser = presets::names())]
    pub(crate) preset: Option<String>,
    /// A TOML file of settings, such as `n_emb = 128`; overrides the preset
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) options: Options,

    /// Replace the run in the run directory; only files written by folio are deleted
    #[arg(long, help_heading = "Files")]
    pub(crate) overwrite: bool,
    /// Save nothing: no losses, no model
    #[arg(long, help_heading = "Files", conflicts_with_all = ["resume", "overwrite"])]
    pub(crate) no_save: bool,
    /// Resume a run or a sweep from its last checkpoint, with its own settings; only settings that do not
    /// affect completed steps can change, such as --num_epochs (the new total)
    #[arg(long, value_name = "RUN_DIR", help_heading = "Continuing", conflicts_with_all = ["from_checkpoint", "overwrite"])]
    pub(crate) resume: Option<PathBuf>,
    /// Skip damaged checkpoints
    #[arg(long, help_heading = "Continuing", requires = "resume")]
    pub(crate) skip_damaged: bool,
    /// Continue from a checkpoint of any run
    #[arg(long, help_heading = "Continuing", requires_all = ["from_checkpoint_run_dir", "from_checkpoint_step"])]
    pub(crate) from_checkpoint: bool,
    /// The run to continue from
    #[arg(long, value_name = "DIR", help_heading = "Continuing", requires = "from_checkpoint")]
    pub(crate) from_checkpoint_run_dir: Option<PathBuf>,
    /// The epoch to continue from: the N of checkpoint_N
    #[arg(long, value_name = "N", help_heading = "Continuing", requires = "from_checkpoint", value_parser = whole::<u64>)]
    pub(crate) from_checkpoint_step: Option<u64>,
    /// Count the schedule's epochs and steps from the checkpoint, not from the start of the run
    #[arg(long, help_heading = "Continuing", requires = "from_checkpoint")]
    pub(crate) restart_schedule: bool,
    /// Load only the weights from the checkpoint: AdamW starts fresh, and the schedule counts from there
    #[arg(long, help_heading = "Continuing", requires = "from_checkpoint")]
    pub(crate) weights_only: bool,
    /// Add the characters of the new --data that the vocabulary lacks
    #[arg(long, help_heading = "Continuing", requires = "from_checkpoint")]
    pub(crate) extend_vocab: bool,

    /// Number of threads, of each rank [default: all cores, divided over the ranks of a machine]
    #[arg(long, value_name = "N", help_heading = "Machine", value_parser = whole::<usize>)]
    pub(crate) threads: Option<usize>,
    /// Runs of a sweep to train at the same time; they share threads and memory [default: 1]
    #[arg(long, value_name = "N", help_heading = "Machine", value_parser = whole::<usize>)]
    pub(crate) jobs: Option<usize>,
    /// How the ranks of mpirun or srun share a sweep: runs (each rank trains runs of its own) or batches (all ranks
    /// train the same run) [default: runs]
    #[arg(long, value_name = "HOW", help_heading = "Machine")]
    parallel: Option<Parallel>,
    /// Print one JSON object per epoch
    #[arg(long, help_heading = "Machine", conflicts_with = "tui")]
    pub(super) json: bool,
    /// Show a full-screen dashboard: curves, the newest sample, time left, and the runs of a sweep, the best first; press
    /// s to save, q to save and stop
    #[arg(long, help_heading = "Machine")]
    pub(super) tui: bool,
}

impl TrainArgs {
    /// Checks the number of runs to train at the same time.
    pub(crate) fn check_jobs(&self) -> anyhow::Result<()> {
        match self.jobs {
            Some(0) => Err(Usage("`--jobs 0` is out of range; use at least 1".into()).into()),
            _ => Ok(()),
        }
    }

    /// How ranks share a sweep.
    pub(crate) fn parallel(&self) -> Parallel {
        self.parallel.unwrap_or_default()
    }

    /// Checks what depends on the number of ranks.
    pub(super) fn check_ranks(&self, ranks: usize, is_sweep: bool) -> anyhow::Result<()> {
        let reason = match (self.jobs, self.parallel()) {
            (Some(2..), Parallel::Runs) => "each rank trains one run at a time",
            (Some(2..), Parallel::Batches) => "all ranks train the same run",
            (None | Some(..2), _) => return Ok(()),
        };
        if ranks == 1 || !is_sweep {
            return Ok(());
        }
        Err(Usage(format!("--jobs: {reason}; leave it out")).into())
    }

    /// Why `--parallel`, if it is given, has no effect.
    pub(crate) fn parallel_is_ignored(&self, ranks: usize, is_sweep: bool) -> Option<&'static str> {
        match (self.parallel, is_sweep) {
            (None, _) => None,
            (Some(_), false) => Some("there is a single run, which all ranks train"),
            (Some(_), true) if ranks == 1 => Some("there is a single rank"),
            (Some(_), true) => None,
        }
    }

    /// How training is shown.
    pub(super) fn display(&self) -> Display {
        match (self.json, self.tui) {
            (true, _) => Display::Json,
            (false, true) => Display::Dashboard,
            (false, false) => Display::Bars,
        }
    }
}
