//! What a user is told who has mistyped, and the second spelling of every flag.

use std::any::TypeId;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Arg, Command};

use crate::screen;

pub(crate) const FIRST_EXAMPLES: &str = "\
Examples:
  folio train --preset quick
  folio generate runs/quick --prompt 'ROMEO:'";

pub(crate) const EXAMPLES: &str = "\
Examples:
  folio train --preset quick
  folio generate runs/quick --prompt 'ROMEO:'
  folio serve runs
  folio eval runs/quick
  folio plot runs/quick
  folio train --preset quick --lr 1e-3 3e-3 --run_dir runs/search
  folio runs runs/search

Every flag has two spellings, --learning_rates and --learning-rates. Every command has examples of its own, as in
folio train --help.";

/// A mistake in the arguments that the parser cannot see.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Gives every flag that has an underscore its spelling with hyphens, and lets values begin with a hyphen where they may,
/// at every level.
pub(crate) fn with_kebab_case(command: Command) -> Command {
    command
        .mut_args(|arg| {
            let arg = with_hyphens_in_values(arg);
            let names = arg.get_long().into_iter().chain(arg.get_all_aliases().unwrap_or_default());
            let names: Vec<String> = names.map(str::to_owned).collect();
            let mut aliases = Vec::new();
            for name in names.iter().filter(|name| name.contains('_')) {
                let kebab = name.replace('_', "-");
                aliases.extend([kebab.to_lowercase(), name.to_lowercase(), kebab]);
            }
            aliases.sort_unstable();
            aliases.dedup();
            aliases.retain(|alias| !names.contains(alias));
            arg.aliases(aliases)
        })
        .mut_subcommands(with_kebab_case)
}

/// Takes `--prompt '- hello'` for a prompt and `--n_emb -3` for a wrong size, not for unknown flags. A flag that takes a
/// name or a file still asks for its value if a flag follows.
fn with_hyphens_in_values(arg: Arg) -> Arg {
    if !arg.get_action().takes_values() {
        return arg;
    }
    let parsed = arg.get_value_parser().type_id();
    let is_number = [TypeId::of::<usize>(), TypeId::of::<u64>(), TypeId::of::<f64>(), TypeId::of::<f32>()];
    // A flag in the place of a number is still an error: it does not parse.
    let is_text = parsed == TypeId::of::<String>() || is_number.into_iter().any(|number| parsed == number);
    let is_one = arg.get_num_args().is_none_or(|values| values.max_values() == 1);
    let is_free = arg.get_value_parser().possible_values().is_none();
    if is_text && is_one && is_free {
        arg.allow_hyphen_values(true)
    } else {
        arg.allow_negative_numbers(true)
    }
}

/// What `-h` shows of commands that have more flags than fit on a screen, each flag with the words for it; `--help` shows
/// all flags.
const SHORT_HELP: [(&str, &[(&str, &str)]); 4] = [
    (
        "train",
        &[
            ("preset", "A named recipe that other flags refine"),
            ("data", "UTF-8 text [default: tiny Shakespeare]"),
            ("tokenizer_type", "chrs, bpe or corpus_bpe [default: chrs]"),
            ("n_emb", "Width of the model [default: 384]"),
            ("block_sizes", "Tokens per sequence [default: 256]"),
            ("batch_sizes", "Sequences per step [default: 64]"),
            ("num_epochs", "Epochs to train [default: 10]"),
            ("learning_rates", "AdamW's peak rate [default: 1e-3]"),
            ("run_dir", "Directory that the run writes to"),
            ("resume", "Continue a run where it was saved"),
        ],
    ),
    (
        "generate",
        &[
            ("checkpoint_step", "Take the models of these epochs"),
            ("best_eval_loss_model", "Take the model with the lowest eval loss"),
            ("prompt", "Text to continue"),
            ("max_new_tokens", "Tokens to write"),
            ("num_samples", "Texts to write"),
            ("temperature", "Lower is more predictable, higher more random"),
            ("top_k", "Sample from this many likeliest tokens"),
            ("top_p", "Sample from the likeliest share X"),
            ("seed", "The same seed writes the same text"),
            ("stop", "End before this text"),
        ],
    ),
    (
        "chat",
        &[
            ("checkpoint_step", "Take the model of this epoch"),
            ("best_eval_loss_model", "Take the model with the lowest eval loss"),
            ("max_new_tokens", "Tokens to write after each line"),
            ("temperature", "Lower is more predictable, higher more random"),
            ("top_k", "Sample from this many likeliest tokens"),
            ("top_p", "Sample from the likeliest share X"),
            ("seed", "The same seed writes the same text"),
            ("stop", "End before this text"),
        ],
    ),
    (
        "serve",
        &[
            ("host", "The address or name to listen on"),
            ("port", "The port to listen on; 0 takes a free one"),
            ("api_key", "The key that clients must give"),
            ("max_streams", "Texts to write at once"),
        ],
    ),
];

/// Shortens what `-h` shows to one screen.
pub(crate) fn with_short_help(command: Command) -> Command {
    SHORT_HELP.iter().fold(command, |command, (name, shown)| {
        command.mut_subcommand(*name, |command| {
            command.mut_args(|arg| {
                if arg.is_positional() {
                    return arg;
                }
                let Some((_, words)) = shown.iter().find(|(id, _)| arg.get_id().as_str() == *id) else {
                    return arg.hide_short_help(true);
                };
                let in_full = arg.get_long_help().or(arg.get_help()).cloned().unwrap_or_default();
                arg.long_help(in_full).help(*words)
            })
        })
    })
}

/// Prints a failure in one line and chooses the exit code: 2 for wrong usage, 1 for all else.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if let Some(broken_pipe) = error.downcast_ref::<std::io::Error>()
        && broken_pipe.kind() == std::io::ErrorKind::BrokenPipe
    {
        // `folio corpus | head` has had what it wanted.
        return ExitCode::SUCCESS;
    }
    let message = in_one_line(error);
    screen::err(format_args!("error: {message}"));
    let wrong_usage = error.is::<Usage>()
        || matches!(
            error.downcast_ref::<folio::error::Error>(),
            Some(folio::error::Error::Setting { .. } | folio::error::Error::UnknownName { .. })
        );
    ExitCode::from(if wrong_usage { 2 } else { 1 })
}

/// An error and its causes, but for causes that the one before has told already.
fn in_one_line(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain().map(|cause| cause.to_string().replace('\n', " ")) {
        if message.is_empty() {
            message = cause;
        } else if !message.ends_with(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    message
}

/// Prints help where it was asked for, and a mistake as one line with its tip.
pub(crate) fn report_usage(error: &clap::Error) -> ExitCode {
    let asked_for = [
        ErrorKind::DisplayHelp,
        ErrorKind::DisplayVersion,
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
    ];
    if asked_for.contains(&error.kind()) {
        return match error.print() {
            _ if error.use_stderr() => ExitCode::from(2),
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => report(&screen::name_stdout(failure).into()),
        };
    }
    let rendered = error.render().to_string();
    let kept = rendered.lines().map(str::trim);
    let kept = kept.filter(|line| !line.is_empty() && !line.starts_with("For more information"));
    let line: Vec<&str> = kept.take_while(|line| !line.starts_with("Usage:")).collect();
    screen::err(format_args!("{} (see --help)", line.join("; ").replace(":;", ":")));
    ExitCode::from(2)
}
