//! `folio export`: models in the formats of other programs, and the records of runs as CSV.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;
use folio::export::{TrainedModel, WeightType, gguf, hf, onnx};
use folio::named_enum;
use folio::run_dir::{Place, RunDir, locate_or_newest};

use crate::model_args::{CheckpointArgs, ChosenCheckpoints};
use crate::screen;
use crate::usage::Usage;

mod losses;

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
gguf: llama.cpp, ollama, LM Studio. hf: transformers. onnx: onnxruntime.
csv: losses, learning rates and other records, of a run or a sweep.

Examples:
  folio export runs/quick --to gguf --type q8_0
  folio export runs/quick/checkpoint_5 --to hf --out my-model
  folio export runs/search --to csv --steps --out steps.csv")]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    checkpoint: CheckpointArgs,
    /// The format: hf, gguf, onnx or csv
    #[arg(long, value_name = "FORMAT")]
    to: Option<Format>,
    /// The type of the weights: f32, f16, bf16, or q8_0 for gguf [default: f16 for gguf, f32 for hf and onnx]
    #[arg(long = "type", value_name = "TYPE")]
    weight_type: Option<WeightType>,
    /// File to write, or directory for hf [default: named after the run, here; stdout for csv]
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// Replace an earlier export
    #[arg(long)]
    overwrite: bool,
    /// For csv, write one row per step instead of one per epoch
    #[arg(long)]
    steps: bool,
}

/// A format to export to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Hf,
    Gguf,
    Onnx,
    Csv,
}

named_enum!(Format, "format", { Hf => "hf", Gguf => "gguf", Onnx => "onnx", Csv => "csv" });

pub(crate) fn run(args: &ExportArgs) -> anyhow::Result<()> {
    let format = args.to.unwrap_or(Format::Csv);
    check_flags(args, format)?;
    if format != Format::Csv {
        screen::out(export_model(args, format)?.display())?;
        return Ok(());
    }
    let directory = match &args.checkpoint.run_dir {
        Some(path) => RunDir::new(path),
        None => match locate_or_newest(None)? {
            Place::Run(run) | Place::Sweep(run) | Place::Checkpoint(run, _) => run,
            Place::Directory(_) => unreachable!("one of its runs was chosen"),
        },
    };
    losses::export(&directory, args.steps, args.out.as_deref())?;
    if args.to.is_none() {
        screen::err(
            "note: a later version of folio will need --to csv here; models are exported with --to hf, gguf or onnx",
        );
    }
    Ok(())
}

/// Refuses flags that the format has no use for.
fn check_flags(args: &ExportArgs, format: Format) -> Result<(), Usage> {
    let is_csv = format == Format::Csv;
    let chooses = !args.checkpoint.checkpoint_step.is_empty() || args.checkpoint.best_eval_loss_model;
    let refused = |reason: &str| Err(Usage(reason.to_owned()));
    match args.weight_type {
        _ if args.steps && !is_csv => refused("--steps is for --to csv"),
        _ if is_csv && chooses => {
            refused("--to csv exports the records of all epochs: remove the choice of a checkpoint")
        }
        _ if is_csv && args.overwrite => {
            refused("--overwrite is for models: --to csv always replaces its file")
        }
        _ if args.checkpoint.checkpoint_step.len() > 1 => {
            refused("one checkpoint is exported at a time: give one --checkpoint_step")
        }
        Some(_) if is_csv => refused("--type is for models: add --to gguf or --to hf"),
        Some(WeightType::Q8_0) if format == Format::Hf => {
            refused("q8_0 is a type of gguf only: give f32, f16 or bf16")
        }
        Some(other) if format == Format::Onnx && other != WeightType::F32 => {
            refused(&format!("onnx files have f32 weights: remove --type {other}"))
        }
        _ => Ok(()),
    }
}

/// Exports the checkpoint that `path` refers to, as the command does.
pub(crate) fn export(
    path: &Path,
    format: &str,
    weight_type: Option<&str>,
    out: &Path,
    overwrite: bool,
) -> anyhow::Result<()> {
    let format: Format = format.parse()?;
    let args = ExportArgs {
        checkpoint: CheckpointArgs {
            run_dir: Some(path.to_path_buf()),
            checkpoint_step: Vec::new(),
            best_eval_loss_model: false,
        },
        to: Some(format),
        weight_type: weight_type.map(str::parse).transpose()?,
        out: Some(out.to_path_buf()),
        overwrite,
        steps: false,
    };
    check_flags(&args, format)?;
    if format == Format::Csv {
        return Err(
            Usage("--to csv is for records, not for models: choose hf, gguf or onnx".to_owned()).into()
        );
    }
    export_model(&args, format).map(drop)
}

/// Writes a model, and returns its path.
fn export_model(args: &ExportArgs, format: Format) -> anyhow::Result<PathBuf> {
    let default = if format == Format::Gguf { WeightType::F16 } else { WeightType::F32 };
    let weight_type = args.weight_type.unwrap_or(default);
    let chosen = args.checkpoint.find()?;
    let name = model_name(args, &chosen)?;
    let out = args.out.clone().unwrap_or_else(|| match format {
        Format::Hf => format!("{name}-hf").into(),
        Format::Gguf => format!("{name}-{weight_type}.gguf").into(),
        Format::Onnx | Format::Csv => format!("{name}.onnx").into(),
    });
    check_free(&out, format, args.overwrite)?;
    let tokenizer = chosen.run.tokenizer()?;
    let checkpoint = chosen.run.open_checkpoint(chosen.names[0])?;
    checkpoint.check_tokenizer(&tokenizer)?;
    let (mut config, mut parameters) = (checkpoint.state().identity.model, checkpoint.parameters()?);
    if config.vocab_size > tokenizer.vocab_size() {
        // An imported model may have more rows than tokens. They stand for nothing.
        config.vocab_size = tokenizer.vocab_size();
        parameters = parameters.first_rows(&config);
    }
    let model = TrainedModel { name: &name, config, parameters: &parameters, tokenizer: &tokenizer };
    chosen.announce();
    match format {
        Format::Hf => hf::write(&model, weight_type, &out)?,
        Format::Gguf => note(&gguf::write(&model, weight_type, &out)?, config.block_size),
        Format::Onnx | Format::Csv => onnx::write(&model, &out)?,
    }
    Ok(out)
}

/// The run's name, with the checkpoint's if one was named.
fn model_name(args: &ExportArgs, chosen: &ChosenCheckpoints) -> anyhow::Result<String> {
    let name = chosen.directory.name();
    let is_named = match args.checkpoint.run_dir.as_deref() {
        Some(path) => matches!(locate_or_newest(Some(path))?, Place::Checkpoint(..)),
        None => false,
    };
    let is_named = is_named || !args.checkpoint.checkpoint_step.is_empty();
    Ok(if is_named { format!("{name}-{}", chosen.names[0]) } else { name })
}

/// llama.cpp rounds the length of a context up to a multiple of this.
const LLAMA_CPP_CONTEXT: usize = 256;

/// Prints in what a file differs from its model, and what to consider.
fn note(differences: &gguf::Differences, block_size: usize) {
    if let Some((token, id)) = &differences.end_token {
        screen::err(format_args!(
            "note: {token} was added as token {id}, since llama.cpp needs an end token; the model does not generate it"
        ));
    }
    if let Some(head_type) = differences.head_type {
        screen::err(format_args!(
            "note: the head is {head_type}: rounding to another type could make the end token likely"
        ));
    }
    if differences.in_f16 > 0 {
        let count = differences.in_f16;
        screen::err(format_args!(
            "note: {count} matrices are f16: their rows cannot be divided into q8_0's blocks of 32"
        ));
    }
    if !block_size.is_multiple_of(LLAMA_CPP_CONTEXT) {
        screen::err(format_args!(
            "note: llama.cpp aborts after {block_size} tokens, the model's context: limit the length, for example with -n"
        ));
    }
    if differences.is_gelu_approximate {
        screen::err(
            "note: the model's activation is gelu with erf, for which llama.cpp computes the tanh form: logits differ slightly",
        );
    }
}

/// Checks that an export may be written to a path.
fn check_free(out: &Path, format: Format, overwrite: bool) -> anyhow::Result<()> {
    let path = out.display();
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !parent.is_dir() {
        bail!(
            "cannot write {path}: {} is not a directory; create it, or give another --out",
            parent.display()
        );
    }
    let data = onnx::data_path(out);
    if format == Format::Onnx && data.exists() && !overwrite {
        bail!("{} exists: give another --out, or replace it with --overwrite", data.display());
    }
    if fs::symlink_metadata(out).is_err() {
        return Ok(());
    }
    if out.is_symlink() {
        bail!("{path} is a symbolic link: give the path that it points to with --out");
    }
    match (format, out.is_dir()) {
        (Format::Hf, false) => bail!("{path} is not a directory: give another --out"),
        (Format::Hf, true) => {}
        (_, true) => bail!("{path} is a directory: give a file with --out"),
        (_, false) => {}
    }
    if format == Format::Hf {
        let mut names =
            fs::read_dir(out)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).peekable();
        if names.peek().is_none() {
            return Ok(());
        }
        if let Some(name) = names.find(|name| !hf::file_names().any(|own| own == name)) {
            bail!("{path} contains {name}, which folio export did not write: give another --out");
        }
    } else if !is_export(out, format) {
        bail!("{path} is not a file of folio export: give another --out");
    }
    if overwrite {
        Ok(())
    } else {
        bail!("{path} exists: give another --out, or replace it with --overwrite")
    }
}

/// Whether a file begins as an export in this format does.
fn is_export(path: &Path, format: Format) -> bool {
    let want: &[u8] = if format == Format::Gguf { &gguf::MAGIC } else { onnx::BEGINNING };
    let mut found = vec![0; want.len()];
    File::open(path).and_then(|mut file| file.read_exact(&mut found)).is_ok() && found == want
}
