//! `folio eval`: how good a trained model is.

use std::path::Path;
use std::sync::Arc;

use clap::Args;
use folio::data::{Dataset, Part, TokenStream};
use folio::error::Error;
use folio::evaluate::{Evaluation, evaluate};
use folio::settings::Settings;
use folio::text::Corpus;

use crate::generate::{WhichModel, load_model};
use crate::options::whole;
use crate::screen;
use crate::train::set_threads;

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
The loss is the mean over every token of the part, each counting alike. The eval loss in a training report is the
mean over batches, as in the ancestor: the two differ a little when the last batch is short.

Examples:
  folio eval runs/quick                          its best checkpoint
  folio eval runs/quick/latest                   its newest
  folio eval runs/search --split test --json")]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    which: WhichModel,
    /// The part to evaluate on: eval, test or train
    #[arg(long, value_name = "NAME", default_value = "eval")]
    split: Part,
    /// One JSON object a model
    #[arg(long)]
    json: bool,
    /// Threads to compute with [default: all cores]
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    threads: Option<usize>,
}

pub(crate) fn run(args: &EvalArgs) -> anyhow::Result<()> {
    set_threads(args.threads)?;
    let chosen = args.which.find()?;
    let run = &chosen.run;
    let settings = run.settings()?;
    let tokenizer = run.tokenizer()?;
    let corpus = corpus_of(&settings)?;
    let stream = Arc::new(TokenStream::encode(&corpus.text, &tokenizer, settings.split)?);
    let dataset = Dataset::new(stream, settings.block_size, settings.seed)?;
    // Without any block the evaluation is refused.
    if !dataset.blocks(args.split).is_empty() {
        chosen.announce();
    }
    for &name in &chosen.names {
        let mut model = load_model(run, name, &tokenizer)?;
        let evaluation = evaluate(&mut model, &dataset, &tokenizer, args.split)?;
        let path = run.checkpoint(name);
        if args.json {
            let mut value = serde_json::to_value(evaluation)?;
            value["checkpoint"] = path.display().to_string().into();
            screen::out(value)?;
        } else {
            print(&path, evaluation)?;
        }
    }
    Ok(())
}

/// The text that a run was trained on, known again by its hash.
pub(crate) fn corpus_of(settings: &Settings) -> anyhow::Result<Corpus> {
    let embedded = Corpus::embedded();
    if settings.data_sha256 == embedded.sha256 {
        return Ok(embedded);
    }
    let corpus = Corpus::from_file(Path::new(&settings.data))?;
    if corpus.sha256 != settings.data_sha256 {
        let reason =
            "has changed since the run was trained on it: its evaluation part would be another".to_owned();
        return Err(Error::Corpus { path: settings.data.clone(), reason }.into());
    }
    Ok(corpus)
}

fn print(path: &Path, evaluation: Evaluation) -> std::io::Result<()> {
    let Evaluation { tokens, characters, bytes, loss, perplexity, bits_per_character, bits_per_byte } =
        evaluation;
    screen::out(path.display())?;
    screen::out(format_args!("  loss                {loss:.4} nats a token"))?;
    screen::out(format_args!("  perplexity          {perplexity:.4}"))?;
    screen::out(format_args!("  bits per character  {bits_per_character:.4}"))?;
    screen::out(format_args!("  bits per byte       {bits_per_byte:.4}"))?;
    screen::out(format_args!("  over                {tokens} tokens, {characters} characters, {bytes} bytes"))
}
