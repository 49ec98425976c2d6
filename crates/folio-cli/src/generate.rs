//! `folio generate`: text from a trained model.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use folio::checkpoint::CheckpointName;
use folio::generate::{Finish, Generator};
use folio::memory::{check_generation, parallel_sequences};
use folio::model::{Gpt2, Predictor, WeightFormat};
use folio::run_dir::{Found, Pick, Place, RUNS, RunDir, find, locate_or_newest};
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
#[command(after_long_help = "\
Examples:
  folio generate --prompt 'ROMEO:'
  folio generate runs/quick --prompt 'ROMEO:' --max_new_tokens 300
  folio generate runs/search --temperature 0.8 --top-k 20 \\
      --num-samples 3 --seed 7
  folio generate runs/mine --all_checkpoints --prompt 'The '
  folio generate runs/mine --checkpoint_step 5 10 --write_to_file samples.txt
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
    /// One JSON object per text
    #[arg(long, conflicts_with = "show_probabilities")]
    json: bool,
    /// Append the text to this file in the run directory
    #[arg(long, value_name = "NAME")]
    write_to_file: Option<PathBuf>,
}

/// Which model is meant.
#[derive(Args, Clone)]
#[command(rename_all = "snake_case")]
pub(crate) struct WhichModel {
    /// A run, a sweep, or a checkpoint such as RUN/latest or RUN/checkpoint_5 [default: the newest run in runs/]
    #[arg(value_name = "RUN_DIR")]
    pub(crate) run_dir: Option<PathBuf>,
    /// The epochs whose models to take [default: the one with the lowest eval loss]
    #[arg(long, value_name = "N", num_args = 1.., value_delimiter = ',', value_parser = whole::<u64>)]
    pub(crate) checkpoint_step: Vec<u64>,
    /// Take the model with the lowest eval loss of the run and its sub-runs; fails if no losses were saved
    #[arg(long, conflicts_with = "checkpoint_step")]
    pub(crate) best_eval_loss_model: bool,
}

/// The checkpoints that were asked for, all of which exist.
pub(crate) struct Chosen {
    /// The run or sweep that was named.
    pub(crate) directory: RunDir,
    pub(crate) run: RunDir,
    pub(crate) names: Vec<CheckpointName>,
    /// Each of them in words.
    descriptions: Vec<String>,
}

impl Chosen {
    /// Says on stderr which checkpoints are used: once nothing is left that could be refused.
    pub(crate) fn announce(&self) {
        for description in &self.descriptions {
            screen::err(format_args!("using {description}"));
        }
    }
}

impl WhichModel {
    /// Finds the checkpoints.
    pub(crate) fn find(&self) -> anyhow::Result<Chosen> {
        if !self.checkpoint_step.is_empty() {
            return self.find_epochs();
        }
        let found =
            if self.best_eval_loss_model { self.find_by_loss()? } else { find(self.run_dir.as_deref())? };
        found.run.open_checkpoint(found.checkpoint.name)?;
        let (names, descriptions) = (vec![found.checkpoint.name], vec![found.describe()]);
        Ok(Chosen { directory: found.directory, run: found.run, names, descriptions })
    }

    /// The checkpoint of `--best_eval_loss_model`.
    fn find_by_loss(&self) -> anyhow::Result<Found> {
        let directory = match locate_or_newest(self.run_dir.as_deref())? {
            Place::Run(run) | Place::Sweep(run) => run,
            Place::Checkpoint(..) | Place::Directory(_) => {
                return Err(self.names_a_checkpoint("--best_eval_loss_model"));
            }
        };
        let (run, epoch) = directory.best()?;
        let found = find(Some(&run.checkpoint(CheckpointName::Epoch(epoch))))?;
        Ok(Found { directory, pick: Pick::Best, ..found })
    }

    /// The checkpoints of `--checkpoint_step`.
    fn find_epochs(&self) -> anyhow::Result<Chosen> {
        let run = match locate_or_newest(self.run_dir.as_deref())? {
            Place::Run(run) => run,
            Place::Sweep(sweep) => {
                let path = sweep.path().display();
                let message =
                    format!("{path} is a sweep: give one of its runs, or leave out --checkpoint_step");
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
        Ok(Chosen { directory: run.clone(), run, names, descriptions })
    }

    fn names_a_checkpoint(&self, flag: &str) -> anyhow::Error {
        let path = self.run_dir.as_deref().unwrap_or(Path::new(RUNS)).display();
        Usage(format!("{path} is a checkpoint already: give the run's directory, or leave out {flag}")).into()
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
    check_generation(&config, format)?;
    Ok(Predictor::new(config, format, &checkpoint.parameters()?))
}

pub(crate) fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    args.drawing.sampling().validate()?;
    if args.num_samples == 0 {
        return Err(Usage("--num_samples: 0 writes nothing: give at least 1".into()).into());
    }
    join_threads(args.drawing.threads)?;
    let chosen = args.which.find()?;
    let run = &chosen.run;
    let names = if args.all_checkpoints { run.checkpoints()? } else { chosen.names.clone() };
    let tokenizer = Arc::new(run.tokenizer()?);
    let prompt = args.prompt.as_deref().unwrap_or_default();
    let encoded = match args.special_tokens {
        true => tokenizer.encode_special(prompt),
        false => tokenizer.encode(prompt),
    };
    let start = encoded.context("--prompt")?;
    let output =
        args.write_to_file.as_deref().map(|name| output_file(chosen.directory.path(), name)).transpose()?;
    let seed = args.drawing.seed();
    let look = if args.show_probabilities { Look::of_probabilities() } else { Look::Plain };
    if look == Look::Coloured {
        screen::err(legend());
    }
    for (place, &name) in names.iter().enumerate() {
        let predictor = load_predictor(run, name, &tokenizer, args.drawing.precision)?;
        if args.all_checkpoints && !args.json {
            screen::out(heading(run, name))?;
        }
        let predictor = Arc::new(predictor);
        let group = parallel_sequences(predictor.cache_bytes());
        for first in (0..args.num_samples).step_by(group) {
            let samples = first..args.num_samples.min(first + group);
            let announce = || {
                if place == 0 && first == 0 && !args.all_checkpoints {
                    chosen.announce();
                }
            };
            let generator = Generator::new(Arc::clone(&predictor), Arc::clone(&tokenizer));
            let first_seed = seed.wrapping_add(first as u64);
            let texts = write(args, generator, &start, samples.len(), (first_seed, look), announce)?;
            for (sample, text) in texts.iter().enumerate() {
                if args.json {
                    screen::out(told(name, first_seed.wrapping_add(sample as u64), prompt, text))?;
                }
                if let Some(path) = &output {
                    append(path, name, &(prompt.to_owned() + &text.text))?;
                }
            }
            if !args.json && samples.end < args.num_samples {
                screen::out(BETWEEN)?;
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

/// Generates this many samples together, the first with `seed`, and returns them; prints them as they are sampled unless JSON
/// is wanted. Calls `announce` before the first.
fn write(
    args: &GenerateArgs,
    mut generator: Generator,
    start: &[u32],
    samples: usize,
    (seed, look): (u64, Look),
    announce: impl FnOnce(),
) -> anyhow::Result<Vec<Written>> {
    for sample in 0..samples {
        let seed = seed.wrapping_add(sample as u64);
        let mut request = args.drawing.request(start.to_vec(), args.max_new_tokens, seed);
        request.logprobs = args.show_probabilities.then_some(0);
        generator.begin(request)?;
    }
    announce();
    let prompt = look.show_prompt(args.prompt.as_deref().unwrap_or_default());
    let mut page = Page::new(vec![prompt; samples]);
    let mut texts = vec![Written::default(); samples];
    while generator.active() > 0 {
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
    let history = run.history().ok().flatten();
    let loss = history.and_then(|history| Some(history.epochs.get(epoch as usize - 1)?.eval_loss));
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
