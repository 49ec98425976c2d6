//! The command line of folio: arguments and printing, nothing else.
//!
//! [`main`] is the whole program. [`session`] is `folio train` for other programs, such as the Python package.

#![forbid(unsafe_code)]

mod average;
mod bench;
mod chat;
mod corpus;
mod dashboard;
mod destination;
mod eval;
mod export;
mod generate;
mod import;
mod manual;
mod model_args;
mod options;
mod plan;
mod plot;
mod presets;
mod progress;
mod ranks;
mod report;
mod runs;
mod screen;
mod serve;
pub mod session;
mod signals;
mod standings;
mod terminal;
mod texts;
mod threads;
mod tokenizer;
mod train;
mod traps;
mod usage;

use std::ffi::OsString;
use std::io::Write;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

/// Trains GPT-2 from scratch on Shakespeare, or on any text, on your own machine.
#[derive(Parser)]
#[command(name = "folio", version, arg_required_else_help = true, after_help = usage::FIRST_EXAMPLES, after_long_help = usage::EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a model, or search for good settings
    Train(Box<train::args::TrainArgs>),
    /// Generate text with a trained model
    Generate(generate::GenerateArgs),
    /// Write text together with a trained model, line by line
    Chat(chat::ChatArgs),
    /// Serve models over an OpenAI-compatible API, with a web UI that also shows runs
    Serve(serve::ServeArgs),
    /// Evaluate a trained model on text that it was not trained on
    Eval(eval::EvalArgs),
    /// Plot the loss and learning-rate curves of a run or a sweep
    Plot(plot::PlotArgs),
    /// List runs, best first
    Runs(runs::RunsArgs),
    /// Write an HTML report with the curves, samples and settings of a run or a sweep
    Report(report::ReportArgs),
    /// Make a run of another program's model: of transformers, nanoGPT or minGPT
    Import(import::ImportArgs),
    /// Average the weights of several checkpoints
    Average(average::AverageArgs),
    /// Export a model for other programs, or the records of a run as CSV
    Export(export::ExportArgs),
    /// Train, use and inspect tokenizers
    Tokenizer(tokenizer::TokenizerArgs),
    /// Measure the speed of training, of its kernels, of generation, and of the machine
    Bench(bench::BenchArgs),
    /// Print the embedded text, tiny Shakespeare
    Corpus,
    /// Print a completion script for a shell
    Completions(manual::CompletionsArgs),
    /// Write manual pages
    Man(manual::ManArgs),
}

/// The command line, as parsed and as shown in the help.
fn command() -> clap::Command {
    usage::with_short_help(usage::with_kebab_case(Cli::command()))
}

/// The program: runs the command in `args`, whose first item is the program's name, and returns the exit code.
pub fn main(args: impl Iterator<Item = OsString>) -> u8 {
    let result = run(args);
    let has_failed = result.is_err();
    let code = result.unwrap_or_else(|error| usage::report(&error));
    ranks::leave(code, has_failed);
    // A program in another language does not flush Rust's stdout. What cannot be written was reported before.
    let _ = std::io::stdout().flush();
    code
}

/// The name of a command that writes files, and that ranks do not share.
fn written_by(command: &Command) -> Option<&'static str> {
    match command {
        Command::Average(_) => Some("average"),
        Command::Import(_) => Some("import"),
        Command::Export(_) => Some("export"),
        Command::Plot(_) => Some("plot"),
        Command::Report(_) => Some("report"),
        Command::Tokenizer(args) => args.writes().then_some("tokenizer train"),
        _ => None,
    }
}

fn run(args: impl Iterator<Item = OsString>) -> anyhow::Result<u8> {
    let cli = match command().try_get_matches_from(args).and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return Ok(usage::report_usage(&error)),
    };
    if let Some(name) = written_by(&cli.command) {
        ranks::refuse(name)?;
    }
    match cli.command {
        Command::Train(args) => return train::run(&args),
        Command::Generate(args) => generate::run(&args)?,
        Command::Chat(args) => chat::run(&args)?,
        Command::Serve(args) => return serve::run(&args),
        Command::Eval(args) => eval::run(&args)?,
        Command::Plot(args) => plot::run(&args)?,
        Command::Runs(args) => runs::run(&args)?,
        Command::Report(args) => report::run(&args)?,
        Command::Import(args) => import::run(&args)?,
        Command::Average(args) => average::run(&args)?,
        Command::Export(args) => export::run(&args)?,
        Command::Tokenizer(args) => tokenizer::run(&args)?,
        Command::Bench(args) => bench::run(&args)?,
        Command::Corpus => corpus::run()?,
        Command::Completions(args) => manual::complete(&args, command())?,
        Command::Man(args) => manual::write_pages(&args, command())?,
    }
    Ok(usage::SUCCESS)
}
