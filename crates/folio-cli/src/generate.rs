//! `folio generate`: text from a trained model.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use folio::checkpoint::CheckpointName;
use folio::generate::{Finish, Generator};
use folio::memory::parallel_sequences;
use folio::run_dir::RunDir;

use crate::model_args::{CheckpointArgs, EnsembleArgs, load_inference_model};
use crate::options::whole;
use crate::screen;
use crate::threads::join_threads;
use crate::usage::Usage;

mod output;
mod sampling_args;

pub(crate) use output::{SamplePrinter, TokenStyle, legend};
pub(crate) use sampling_args::SamplingArgs;

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
  folio generate runs/mine --show-probabilities --min_p 0.05 --stop 'ROMEO:'
  folio generate --ensemble runs/seed_1 runs/seed_2 --prompt 'ROMEO:'")]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    checkpoints: CheckpointArgs,
    #[command(flatten)]
    ensemble: EnsembleArgs,
    /// Generate with every checkpoint of the run, one after another
    #[arg(long, conflicts_with_all = ["checkpoint_step", "best_eval_loss_model", "ensemble"])]
    all_checkpoints: bool,
    /// Maximum number of tokens to generate
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = whole::<usize>)]
    max_new_tokens: usize,
    /// Text to continue [default: none; generation starts from the first token of the vocabulary]
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Encode special tokens in the prompt, such as <|endoftext|>, as special tokens rather than ordinary text
    #[arg(long)]
    special_tokens: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Number of samples to generate, in parallel; the first uses the seed, the second the seed plus 1, and so on
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole::<usize>)]
    num_samples: usize,
    /// Color each token by its probability; without color, print one token and its probability per line
    #[arg(long)]
    show_probabilities: bool,
    /// Print one JSON object per sample
    #[arg(long, conflicts_with = "show_probabilities")]
    json: bool,
    /// Append the text to this file in the run directory
    #[arg(long, value_name = "NAME", conflicts_with = "ensemble")]
    write_to_file: Option<PathBuf>,
}

pub(crate) fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    args.sampling.sampling().validate()?;
    if args.num_samples == 0 {
        return Err(Usage("--num_samples 0: must be at least 1".into()).into());
    }
    join_threads(args.sampling.threads)?;
    let chosen =
        if args.ensemble.is_given() { args.ensemble.find(false)? } else { args.checkpoints.find()? };
    let run = &chosen.run;
    let names = if args.all_checkpoints { run.by_age()? } else { chosen.names.clone() };
    let tokenizer = Arc::new(run.tokenizer()?);
    let prompt = args.prompt.as_deref().unwrap_or_default();
    let encoded = match args.special_tokens {
        true => tokenizer.encode_special(prompt),
        false => tokenizer.encode(prompt),
    };
    let prompt_ids = encoded.context("--prompt")?;
    let output =
        args.write_to_file.as_deref().map(|name| output_file(chosen.directory.path(), name)).transpose()?;
    let seed = args.sampling.seed();
    let style = if args.show_probabilities { TokenStyle::with_probabilities() } else { TokenStyle::Plain };
    if style == TokenStyle::Colored {
        screen::err(legend());
    }
    for (index, &name) in names.iter().enumerate() {
        let load = |(run, name): &(RunDir, CheckpointName)| {
            load_inference_model(run, *name, &tokenizer, args.sampling.precision).map(Arc::new)
        };
        let models = chosen.members(name).iter().map(load).collect::<anyhow::Result<Vec<_>>>()?;
        if args.all_checkpoints && !args.json {
            screen::out(heading(run, name))?;
        }
        let group = parallel_sequences(models.iter().map(|model| model.cache_bytes()).sum());
        let label = if chosen.is_ensemble() { chosen.label(name) } else { name.to_string() };
        for first in (0..args.num_samples).step_by(group) {
            let samples = first..args.num_samples.min(first + group);
            let announce = || {
                if index == 0 && first == 0 && !args.all_checkpoints {
                    chosen.announce();
                }
            };
            let generator = Generator::ensemble(models.clone(), Arc::clone(&tokenizer))?;
            let first_seed = seed.wrapping_add(first as u64);
            let job = Samples { prompt_ids: &prompt_ids, count: samples.len(), first_seed, style };
            for (sample, text) in generate(args, generator, &job, announce)?.iter().enumerate() {
                if args.json {
                    screen::out(to_json(&label, first_seed.wrapping_add(sample as u64), prompt, text))?;
                }
                if let Some(path) = &output {
                    append(path, name, &format!("{prompt}{}", text.text))?;
                }
            }
            if !args.json && samples.end < args.num_samples {
                screen::out(SEPARATOR)?;
            }
        }
        if !args.json && index + 1 < names.len() {
            screen::out(SEPARATOR)?;
        }
    }
    Ok(())
}

/// The line between two samples.
const SEPARATOR: &str = "----";

/// Samples to generate in parallel.
struct Samples<'a> {
    prompt_ids: &'a [u32],
    count: usize,
    /// Sample i has this seed plus i.
    first_seed: u64,
    style: TokenStyle,
}

/// A generated sample.
#[derive(Clone, Default)]
struct Sample {
    text: String,
    tokens: usize,
    finish: Option<Finish>,
}

/// Generates samples in parallel and returns them. Prints them as they are generated, except with `--json`. Calls
/// `announce` once every request has been accepted.
fn generate(
    args: &GenerateArgs,
    mut generator: Generator,
    job: &Samples,
    announce: impl FnOnce(),
) -> anyhow::Result<Vec<Sample>> {
    for index in 0..job.count {
        let seed = job.first_seed.wrapping_add(index as u64);
        let mut request = args.sampling.request(job.prompt_ids.to_vec(), args.max_new_tokens, seed);
        request.logprobs = args.show_probabilities.then_some(0);
        generator.begin(request)?;
    }
    announce();
    let prompt = job.style.show_prompt(args.prompt.as_deref().unwrap_or_default());
    let mut printer = SamplePrinter::new(vec![prompt; job.count]);
    let mut samples = vec![Sample::default(); job.count];
    while generator.active() > 0 {
        generator.step(|id, sampled| {
            let index = id.number() as usize;
            let sample = &mut samples[index];
            sample.text += sampled.text;
            sample.tokens += 1;
            sample.finish = sampled.finish;
            printer.push(index, &job.style.show(&sampled), sampled.finish.is_some());
        });
        if !args.json {
            printer.flush(&format!("{SEPARATOR}\n"))?;
        }
    }
    Ok(samples)
}

/// One line of `--json`.
fn to_json(label: &str, seed: u64, prompt: &str, sample: &Sample) -> serde_json::Value {
    let finish = match sample.finish {
        Some(Finish::Stop) => "stop",
        _ => "length",
    };
    serde_json::json!({
        "checkpoint": label, "seed": seed, "prompt": prompt, "text": sample.text,
        "tokens": sample.tokens, "finish": finish,
    })
}

/// The heading above each checkpoint's text with `--all_checkpoints`.
fn heading(run: &RunDir, name: CheckpointName) -> String {
    let history = run.history().ok().flatten();
    let loss = history.and_then(|history| name.eval_loss(&history.eval_losses(), &history.step_losses()));
    let loss = loss.map_or(String::new(), |loss| format!(", eval loss {loss:.4}"));
    format!("== after {}{loss}", name.moment())
}

/// The path of `--write_to_file`, which must be directly in the run directory.
fn output_file(run_dir: &Path, name: &Path) -> anyhow::Result<PathBuf> {
    let path = run_dir.join(name);
    if name.components().count() != 1 || name.file_name().is_none() {
        return Err(Usage(format!(
            "--write_to_file {}: must be a file name without directories",
            name.display()
        ))
        .into());
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
