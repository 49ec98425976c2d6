//! `folio eval`: loss, perplexity and bits per character of a trained model.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use folio::data::{Dataset, Encoding, Part, TokenStream};
use folio::ensemble::Ensemble;
use folio::evaluate::{Evaluation, evaluate, evaluate_ensemble};
use folio::run_dir::RunDir;
use folio::settings::Settings;
use folio::tokenizer::Tokenizer;

use crate::model_args::{CheckpointArgs, EnsembleArgs, load_model};
use crate::options::{GivenTexts, whole};
use crate::screen;
use crate::texts;
use crate::threads::set_threads;
use crate::usage::Usage;

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_long_help = "\
The loss is the mean over all tokens. The eval loss that training reports is the mean over batches, as in the \
original project, so the two differ slightly if the last batch is smaller.

Examples:
  folio eval runs/quick
  folio eval runs/quick/latest
  folio corpus > my.txt
  folio eval runs/quick --data my.txt
  folio eval runs/search --part test --json
  folio eval --ensemble runs/seed_1 runs/seed_2 runs/seed_3")]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    checkpoints: CheckpointArgs,
    #[command(flatten)]
    ensemble: EnsembleArgs,
    /// UTF-8 text to evaluate on: files, directories or patterns, as for train --data. The whole text is evaluated. With
    /// --part: the new location of the text the run was trained on [default: the eval part of the run's text]
    #[arg(long, value_name = "FILE", num_args = 1..)]
    data: Option<Vec<PathBuf>>,
    /// New location of the run's --eval_data, if it has moved
    #[arg(long, value_name = "FILE", num_args = 1..)]
    eval_data: Option<Vec<PathBuf>>,
    /// Part of the run's text to evaluate on: eval, test or train [default: eval]
    #[arg(long, alias = "split", value_name = "NAME")]
    part: Option<Part>,
    /// Print one JSON object per checkpoint
    #[arg(long)]
    json: bool,
    /// Number of threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    threads: Option<usize>,
}

pub(crate) fn run(args: &EvalArgs) -> anyhow::Result<()> {
    set_threads(args.threads)?;
    // A text of its own may be evaluated on by models of any texts.
    let is_of_run = args.data.is_none() || args.part.is_some() || args.eval_data.is_some();
    let chosen =
        if args.ensemble.is_given() { args.ensemble.find(is_of_run)? } else { args.checkpoints.find()? };
    let run = &chosen.run;
    let settings = run.settings()?;
    let tokenizer = run.tokenizer()?;
    let dataset = match &args.data {
        Some(given) if !is_of_run => {
            let members = chosen.members(chosen.names[0]);
            dataset_of(given, members.iter().map(|(run, _)| run), &tokenizer)?
        }
        given => {
            let given = GivenTexts { data: given.clone(), eval_data: args.eval_data.clone() };
            dataset_of_run(&settings, &given, &tokenizer)?
        }
    };
    let part = args.part.unwrap_or(Part::Eval);
    // Without blocks, `evaluate` returns an error below.
    if !dataset.blocks(part).is_empty() {
        chosen.announce();
    }
    for &name in &chosen.names {
        let members = chosen.members(name);
        let models = members.iter().map(|(run, name)| load_model(run, *name, &tokenizer));
        let mut models = models.collect::<anyhow::Result<Vec<_>>>()?;
        let evaluation = match &mut models[..] {
            [model] => evaluate(model, &dataset, &tokenizer, part)?,
            _ => evaluate_ensemble(&mut Ensemble::new(models)?, &dataset, &tokenizer, part)?,
        };
        if args.json {
            let mut value = serde_json::to_value(evaluation)?;
            value["checkpoint"] = chosen.label(name).into();
            screen::out(value)?;
        } else {
            print(&chosen.label(name), evaluation)?;
        }
    }
    Ok(())
}

/// A dataset of the texts that a run was trained and evaluated on. `given` has their new paths, if they have moved.
pub(crate) fn dataset_of_run(
    settings: &Settings,
    given: &GivenTexts,
    tokenizer: &Tokenizer,
) -> anyhow::Result<Dataset> {
    let texts = texts::of_run(settings, given)?;
    let stream = TokenStream::of_texts(&texts, encoding(settings, tokenizer), settings.text_split(), |_| ())?;
    Ok(Dataset::new(Arc::new(stream), settings.block_size, settings.seed)?)
}

/// A dataset of the whole text of `--data`, for a model or the models of an ensemble.
fn dataset_of<'a>(
    given: &[PathBuf],
    runs: impl Iterator<Item = &'a RunDir>,
    tokenizer: &Tokenizer,
) -> anyhow::Result<Dataset> {
    let runs = runs.map(|run| Ok((run.path(), run.settings()?))).collect::<anyhow::Result<Vec<_>>>()?;
    let settings = &runs[0].1;
    if let Some((path, _)) = runs.iter().find(|(_, other)| other.special_tokens != settings.special_tokens) {
        let (path, first) = (path.display(), runs[0].0.display());
        let reason = format!(
            "--ensemble: {path} and {first} read special tokens in a text differently (--special_tokens); evaluate them \
             one by one"
        );
        return Err(Usage(reason).into());
    }
    let corpus = texts::read_files(given, Some(&settings.data_sha256))?;
    if let Some((path, _)) = runs.iter().find(|(_, run)| run.data_sha256 == corpus.sha256) {
        screen::err(format_args!(
            "warning: {} was trained on this text; use --part eval to evaluate only on the part it was not trained on",
            path.display()
        ));
    }
    let advice = "remove them from the text";
    tokenizer.check_covers(&corpus.name, &corpus.text, advice)?;
    let stream = TokenStream::for_evaluation(&corpus, encoding(settings, tokenizer))?;
    Ok(Dataset::for_evaluation(Arc::new(stream), settings.block_size)?)
}

/// How the run encoded its text.
fn encoding<'a>(settings: &Settings, tokenizer: &'a Tokenizer) -> Encoding<'a> {
    Encoding { tokenizer, special_tokens: settings.special_tokens }
}

fn print(label: &str, evaluation: Evaluation) -> std::io::Result<()> {
    let Evaluation { tokens, characters, bytes, loss, perplexity, bits_per_character, bits_per_byte } =
        evaluation;
    screen::out(label)?;
    screen::out(format_args!("  loss                {loss:.4} nats per token"))?;
    screen::out(format_args!("  perplexity          {perplexity:.4}"))?;
    screen::out(format_args!("  bits per character  {bits_per_character:.4}"))?;
    screen::out(format_args!("  bits per byte       {bits_per_byte:.4}"))?;
    screen::out(format_args!("  evaluated on        {tokens} tokens, {characters} characters, {bytes} bytes"))
}
