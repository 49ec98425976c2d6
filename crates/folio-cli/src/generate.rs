//! `folio generate`: text from a trained model.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use folio::checkpoint::CheckpointName;
use folio::generate::{Sampling, generate};
use folio::model::Gpt2;
use folio::rng::{Rng, Stream};
use folio::run_dir::RunDir;
use folio::text::TextStream;
use folio::tokenizer::Tokenizer;

use crate::options::{real, whole};
use crate::train::set_threads;
use crate::usage::Usage;

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
Examples:
  folio generate runs/quick --prompt 'ROMEO:' --max_new_tokens 300
  folio generate runs/search --best_eval_loss_model --temperature 0.8 --top-k 20 --num-samples 3 --seed 7
  folio generate runs/mine --checkpoint_step 5 10 15 --write_to_file samples.txt")]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    which: WhichModel,
    /// Tokens to write
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = whole::<usize>)]
    max_new_tokens: usize,
    /// Text to go on from [default: the vocabulary's first token]
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Below 1 bolder, above 1 wilder; 0 always takes the likeliest token
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = real::<f64>)]
    temperature: f64,
    /// Draw from so many of the likeliest tokens only
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    top_k: Option<usize>,
    /// Draw from the likeliest tokens that together reach this probability only
    #[arg(long, value_name = "X", value_parser = real::<f64>)]
    top_p: Option<f64>,
    /// The same seed writes the same text [default: another at every call]
    #[arg(long, value_name = "N", value_parser = whole::<u64>)]
    seed: Option<u64>,
    /// Texts to write
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole::<usize>)]
    num_samples: usize,
    /// Append the text to this file in the run directory
    #[arg(long, value_name = "NAME")]
    write_to_file: Option<PathBuf>,
    /// Threads to compute with [default: all cores]
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    threads: Option<usize>,
}

/// Which model of a run is meant.
#[derive(Args, Clone)]
#[command(rename_all = "snake_case")]
pub(crate) struct WhichModel {
    /// The run, or the directory of a sweep
    #[arg(value_name = "RUN_DIR")]
    pub(crate) run_dir: PathBuf,
    /// The epochs whose models to take [default: the last saved]
    #[arg(long, value_name = "N", num_args = 1.., value_parser = whole::<u64>)]
    pub(crate) checkpoint_step: Vec<u64>,
    /// Take the model with the lowest eval loss of the run and its sub-runs
    #[arg(long, conflicts_with = "checkpoint_step")]
    pub(crate) best_eval_loss_model: bool,
}

impl WhichModel {
    /// The run and the checkpoints that are meant, all of which exist.
    pub(crate) fn find(&self) -> anyhow::Result<(RunDir, Vec<CheckpointName>)> {
        let run = RunDir::new(&self.run_dir);
        if self.best_eval_loss_model {
            let (run, epoch) = run.best()?;
            return Ok((run, vec![CheckpointName::Epoch(epoch)]));
        }
        if !run.sub_runs()?.is_empty() && run.names()?.is_empty() {
            let path = run.path().display();
            return Err(
                Usage(format!("{path} is a sweep: give one of its runs, or --best_eval_loss_model")).into()
            );
        }
        let mut names: Vec<_> = self.checkpoint_step.iter().copied().map(CheckpointName::Epoch).collect();
        if names.is_empty() {
            // The last epoch, or what a run has that keeps none. Without any checkpoint the error says so.
            let epoch = run.epochs()?.pop().map(CheckpointName::Epoch);
            names.push(epoch.or(run.names()?.pop()).unwrap_or(CheckpointName::Epoch(0)));
        }
        for &name in &names {
            run.open_checkpoint(name)?;
        }
        Ok((run, names))
    }
}

/// Reads a model from a checkpoint of a run; it computes in the numbers that it was trained in.
pub(crate) fn load_model(run: &RunDir, name: CheckpointName, tokenizer: &Tokenizer) -> anyhow::Result<Gpt2> {
    let checkpoint = run.open_checkpoint(name)?;
    checkpoint.check_tokenizer(tokenizer)?;
    let config = checkpoint.state().identity.model;
    Ok(Gpt2::from_parameters(config, run.settings()?.precision, checkpoint.parameters()?))
}

pub(crate) fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    let sampling = Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p };
    sampling.validate()?;
    set_threads(args.threads)?;
    let (run, names) = args.which.find()?;
    let tokenizer = run.tokenizer()?;
    let start = start_tokens(args.prompt.as_deref(), &tokenizer)?;
    let output =
        args.write_to_file.as_deref().map(|name| output_file(&args.which.run_dir, name)).transpose()?;
    let seed = args.seed.unwrap_or_else(seed_from_clock);
    for &name in &names {
        let mut model = load_model(&run, name, &tokenizer)?;
        let mut rng = Rng::new(seed, Stream::Sampling);
        for sample in 0..args.num_samples {
            let text = write_sample(args, &mut model, &tokenizer, &start, &sampling, &mut rng)?;
            if let Some(path) = &output {
                append(path, name, &text)?;
            }
            if sample + 1 < args.num_samples || names.len() > 1 {
                println!("----");
            }
        }
    }
    Ok(())
}

/// Writes one text to stdout as it is drawn, and returns it.
fn write_sample(
    args: &GenerateArgs,
    model: &mut Gpt2,
    tokenizer: &Tokenizer,
    start: &[u32],
    sampling: &Sampling,
    rng: &mut Rng,
) -> anyhow::Result<String> {
    let mut stdout = std::io::stdout().lock();
    let mut text = args.prompt.clone().unwrap_or_default();
    write!(stdout, "{text}")?;
    let mut stream = TextStream::default();
    let mut printed = Ok(());
    generate(model, &mut start.to_vec(), args.max_new_tokens, sampling, rng, |token| {
        let piece = stream.push(&tokenizer.decode_bytes(&[token]));
        if printed.is_ok() {
            printed = write!(stdout, "{piece}").and_then(|()| stdout.flush());
        }
        text += &piece;
    });
    printed?;
    let rest = stream.finish();
    writeln!(stdout, "{rest}")?;
    Ok(text + &rest)
}

/// The tokens that generation starts from: the prompt's, or token 0 as in the ancestor.
fn start_tokens(prompt: Option<&str>, tokenizer: &Tokenizer) -> anyhow::Result<Vec<u32>> {
    let Some(prompt) = prompt else { return Ok(vec![0]) };
    let tokens = tokenizer.encode(prompt).context("--prompt")?;
    Ok(if tokens.is_empty() { vec![0] } else { tokens })
}

/// The file that `--write_to_file` names, which must lie directly in the run directory.
fn output_file(run_dir: &Path, name: &Path) -> anyhow::Result<PathBuf> {
    let path = run_dir.join(name);
    if name.components().count() != 1 || name.file_name().is_none() {
        return Err(
            Usage(format!("--write_to_file {}: give a file name without folders", name.display())).into()
        );
    }
    Ok(path)
}

fn append(path: &Path, name: CheckpointName, text: &str) -> anyhow::Result<()> {
    let number = match name {
        CheckpointName::Epoch(number) => number.to_string(),
        step => step.to_string(),
    };
    let open = OpenOptions::new().create(true).append(true).open(path);
    let write = |mut file: std::fs::File| writeln!(file, "Checkpoint {number} output:\n{text}\n");
    open.and_then(write).with_context(|| format!("cannot write {}", path.display()))
}

/// A seed that differs from call to call.
fn seed_from_clock() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |elapsed| elapsed.as_nanos() as u64)
}
