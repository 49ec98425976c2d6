//! `folio generate`: text from a trained model.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use folio::checkpoint::CheckpointName;
use folio::generate::{Finish, Generator};
use folio::model::{Gpt2, Predictor, WeightFormat};
use folio::run_dir::RunDir;
use folio::tokenizer::Tokenizer;

use crate::options::whole;
use crate::screen;
use crate::train::join_threads;
use crate::usage::Usage;

mod drawing;
mod page;

pub(crate) use drawing::DrawingArgs;
pub(crate) use page::{Look, Page, legend};

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
Examples:
  folio generate runs/quick --prompt 'ROMEO:' --max_new_tokens 300
  folio generate runs/search --best_eval_loss_model --temperature 0.8 --top-k 20 --num-samples 3 --seed 7
  folio generate runs/mine --all_checkpoints --prompt 'The ' --max_new_tokens 60      (to watch it learn)
  folio generate runs/mine --checkpoint_step 5 10 15 --write_to_file samples.txt
  folio generate runs/mine --show-probabilities --min_p 0.05 --stop 'ROMEO:'")]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    which: WhichModel,
    /// Write with every checkpoint of the run, one after the other
    #[arg(long, conflicts_with_all = ["checkpoint_step", "best_eval_loss_model"])]
    all_checkpoints: bool,
    /// Tokens to write
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = whole::<usize>)]
    max_new_tokens: usize,
    /// Text to go on from [default: the vocabulary's first token]
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Read special tokens in the prompt, such as <|endoftext|>, as such rather than as ordinary text
    #[arg(long)]
    special_tokens: bool,
    #[command(flatten)]
    drawing: DrawingArgs,
    /// Texts to write, all at the same time; the second is that of the seed after the first's
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole::<usize>)]
    num_samples: usize,
    /// Colour each token by its probability; without a terminal a line for each
    #[arg(long)]
    show_probabilities: bool,
    /// One JSON object a text
    #[arg(long, conflicts_with = "show_probabilities")]
    json: bool,
    /// Append the text to this file in the run directory
    #[arg(long, value_name = "NAME")]
    write_to_file: Option<PathBuf>,
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

/// The model of a checkpoint of a run, to write with; in the numbers that it was trained in, if no others are asked for.
pub(crate) fn load_predictor(
    run: &RunDir,
    name: CheckpointName,
    tokenizer: &Tokenizer,
    format: Option<WeightFormat>,
) -> anyhow::Result<Predictor> {
    let checkpoint = run.open_checkpoint(name)?;
    checkpoint.check_tokenizer(tokenizer)?;
    let config = checkpoint.state().identity.model;
    let trained_in = run.settings()?.precision;
    let format = format.unwrap_or(WeightFormat::of(trained_in));
    format.check(&config)?;
    Ok(Predictor::new(config, format, &checkpoint.parameters()?))
}

pub(crate) fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    args.drawing.sampling().validate()?;
    if args.num_samples == 0 {
        return Err(Usage("--num_samples: 0 writes nothing: give at least 1".into()).into());
    }
    join_threads(args.drawing.threads)?;
    let (run, mut names) = args.which.find()?;
    if args.all_checkpoints {
        names = run.names()?;
    }
    let tokenizer = Arc::new(run.tokenizer()?);
    let prompt = args.prompt.as_deref().unwrap_or_default();
    let encoded = match args.special_tokens {
        true => tokenizer.encode_special(prompt),
        false => tokenizer.encode(prompt),
    };
    let start = encoded.context("--prompt")?;
    let output =
        args.write_to_file.as_deref().map(|name| output_file(&args.which.run_dir, name)).transpose()?;
    let seed = args.drawing.seed();
    let look = if args.show_probabilities { Look::of_probabilities() } else { Look::Plain };
    if look == Look::Coloured {
        screen::err(legend());
    }
    for (place, &name) in names.iter().enumerate() {
        let predictor = load_predictor(&run, name, &tokenizer, args.drawing.precision)?;
        if args.all_checkpoints && !args.json {
            screen::out(heading(&run, name))?;
        }
        let generator = Generator::new(Arc::new(predictor), Arc::clone(&tokenizer));
        let texts = write(args, generator, &start, (seed, look))?;
        for (sample, text) in texts.iter().enumerate() {
            if args.json {
                screen::out(told(name, seed.wrapping_add(sample as u64), prompt, text))?;
            }
            if let Some(path) = &output {
                append(path, name, &(prompt.to_owned() + &text.text))?;
            }
        }
        if !args.json && place + 1 < names.len() {
            screen::out(BETWEEN)?;
        }
    }
    Ok(())
}

/// Stands between two texts.
const BETWEEN: &str = "----";

/// A text that was written.
#[derive(Clone, Default)]
struct Written {
    text: String,
    tokens: usize,
    finish: Option<Finish>,
}

/// Writes all samples of one model to stdout as they are drawn, unless they are told as JSON, and returns them.
fn write(
    args: &GenerateArgs,
    mut generator: Generator,
    start: &[u32],
    (seed, look): (u64, Look),
) -> anyhow::Result<Vec<Written>> {
    for sample in 0..args.num_samples {
        let seed = seed.wrapping_add(sample as u64);
        let mut request = args.drawing.request(start.to_vec(), args.max_new_tokens, seed);
        request.logprobs = args.show_probabilities.then_some(0);
        generator.begin(request)?;
    }
    let prompt = look.show_prompt(args.prompt.as_deref().unwrap_or_default());
    let mut page = Page::new(vec![prompt; args.num_samples]);
    let mut texts = vec![Written::default(); args.num_samples];
    while generator.texts() > 0 {
        generator.step(|id, drawn| {
            let sample = id.number() as usize;
            let text = &mut texts[sample];
            text.text += drawn.text;
            text.tokens += 1;
            text.finish = drawn.finish;
            page.push(sample, &look.show(&drawn), drawn.finish.is_some());
        });
        if !args.json {
            page.show(&format!("{BETWEEN}\n"))?;
        }
    }
    Ok(texts)
}

/// A text as JSON.
fn told(name: CheckpointName, seed: u64, prompt: &str, written: &Written) -> serde_json::Value {
    let finish = match written.finish {
        Some(Finish::Stop) => "stop",
        _ => "length",
    };
    serde_json::json!({
        "checkpoint": name.to_string(), "seed": seed, "prompt": prompt, "text": written.text,
        "tokens": written.tokens, "finish": finish,
    })
}

/// What stands over the text of one checkpoint of several.
fn heading(run: &RunDir, name: CheckpointName) -> String {
    let CheckpointName::Epoch(epoch) = name else { return format!("== {name}") };
    let losses = run.losses().ok().flatten();
    let loss = losses.and_then(|losses| losses.eval_losses.get(epoch as usize - 1).copied());
    let loss = loss.map_or(String::new(), |loss| format!(", eval loss {loss:.4}"));
    format!("== after epoch {epoch}{loss}")
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
