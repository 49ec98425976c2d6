//! Help texts, the second spelling of every flag, and messages about mistakes.

use std::any::TypeId;

use clap::error::ErrorKind;
use clap::{Arg, Command};
use folio::error::Error;

use crate::options::{flag, setting};
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

Every flag has two spellings, --learning_rates and --learning-rates. Every command has its own examples, as in
folio train --help.";

/// The exit code of a command that succeeded.
pub(crate) const SUCCESS: u8 = 0;
/// The exit code of a command that failed.
pub(crate) const FAILURE: u8 = 1;
/// The exit code of a command with wrong arguments.
const WRONG_USAGE: u8 = 2;

/// A mistake in the arguments that the parser cannot detect.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Adds the spelling with hyphens to every flag with an underscore, and lets values begin with a hyphen where that is
/// unambiguous, in every subcommand.
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

/// Makes `--prompt '- hello'` a prompt and `--threads -3` a wrong number, not unknown flags. A flag that takes a name or a
/// file still reports a missing value if another flag follows.
fn with_hyphens_in_values(arg: Arg) -> Arg {
    if !arg.get_action().takes_values() {
        return arg;
    }
    let parsed = arg.get_value_parser().type_id();
    let is_number = [TypeId::of::<usize>(), TypeId::of::<u64>(), TypeId::of::<f64>(), TypeId::of::<f32>()];
    // A flag in place of a number is still an error: it does not parse.
    let is_text = parsed == TypeId::of::<String>() || is_number.into_iter().any(|number| parsed == number);
    let is_one = arg.get_num_args().is_none_or(|values| values.max_values() == 1);
    let is_free = arg.get_value_parser().possible_values().is_none();
    if is_text && is_one && is_free {
        arg.allow_hyphen_values(true)
    } else {
        arg.allow_negative_numbers(true)
    }
}

/// The flags that `-h` shows of commands with more flags than fit on a screen, each with a shorter help text. The settings
/// of `train` declare theirs themselves. `--help` shows all flags.
const SHORT_HELP: [(&str, &[(&str, &str)]); 4] = [
    ("train", &[("preset", "Settings to start from"), ("resume", "Resume a run from its last checkpoint")]),
    (
        "generate",
        &[
            ("checkpoint_step", "Use the models of these epochs"),
            ("best_eval_loss_model", "Use the model with the lowest eval loss"),
            ("prompt", "Text to continue"),
            ("max_new_tokens", "Tokens to generate"),
            ("num_samples", "Texts to generate"),
            ("temperature", "Lower is more predictable, higher more random"),
            ("top_k", "Sample from the N likeliest tokens"),
            ("top_p", "Sample from the likeliest tokens that together have probability X"),
            ("seed", "The same seed generates the same text"),
            ("stop", "End before this text"),
        ],
    ),
    (
        "chat",
        &[
            ("checkpoint_step", "Use the model of this epoch"),
            ("best_eval_loss_model", "Use the model with the lowest eval loss"),
            ("max_new_tokens", "Tokens to generate after each line"),
            ("temperature", "Lower is more predictable, higher more random"),
            ("top_k", "Sample from the N likeliest tokens"),
            ("top_p", "Sample from the likeliest tokens that together have probability X"),
            ("seed", "The same seed generates the same text"),
            ("stop", "End before this text"),
        ],
    ),
    (
        "serve",
        &[
            ("host", "The address or name to listen on"),
            ("port", "The port to listen on; 0 picks a free one"),
            ("api_key", "The key that clients must send"),
            ("max_streams", "Sequences to generate in parallel"),
        ],
    ),
];

/// Shortens what `-h` shows to one screen.
pub(crate) fn with_short_help(command: Command) -> Command {
    SHORT_HELP.iter().fold(command, |command, (name, shown)| {
        command.mut_subcommand(*name, |command| {
            command.mut_args(|arg| {
                // A flag that already has both texts declared its own.
                if arg.is_positional() || arg.get_long_help().is_some() {
                    return arg;
                }
                let Some((_, words)) = shown.iter().find(|(id, _)| arg.get_id().as_str() == *id) else {
                    return arg.hide_short_help(true);
                };
                let in_full = arg.get_help().cloned().unwrap_or_default();
                arg.long_help(in_full).help(*words)
            })
        })
    })
}

/// Prints an error in one line and chooses the exit code: 2 for wrong usage, 1 for anything else.
pub(crate) fn report(error: &anyhow::Error) -> u8 {
    if let Some(broken_pipe) = error.downcast_ref::<std::io::Error>()
        && broken_pipe.kind() == std::io::ErrorKind::BrokenPipe
    {
        // As in `folio corpus | head`.
        return SUCCESS;
    }
    let message = in_one_line(error, in_flags);
    screen::err(format_args!("error: {message}"));
    let wrong_usage = error.is::<Usage>()
        || matches!(error.downcast_ref::<Error>(), Some(Error::Setting { .. } | Error::UnknownName { .. }));
    if wrong_usage { WRONG_USAGE } else { FAILURE }
}

/// An error and its causes, without causes that the message before them repeats.
pub(crate) fn in_one_line(
    error: &anyhow::Error,
    spell: impl Fn(&(dyn std::error::Error + 'static)) -> String,
) -> String {
    let mut message = String::new();
    for cause in error.chain().map(|cause| spell(cause).replace('\n', " ")) {
        if message.is_empty() {
            message = cause;
        } else if !message.ends_with(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    message
}

/// An error of the library with flags in place of fields: `--block_sizes` for `block_size`.
fn in_flags(error: &(dyn std::error::Error + 'static)) -> String {
    let message = error.to_string();
    match error.downcast_ref::<Error>() {
        Some(Error::Setting { field, .. }) => match message.strip_prefix(&format!("{field}: ")) {
            Some(reason) => format!("{}: {}", flag(field), with_flags(reason)),
            None => with_flags(&message),
        },
        Some(_) => with_flags(&message),
        None => message,
    }
}

/// A message with flags in place of the settings that stand in backticks.
///
/// `` `n_emb 385` `` becomes `` `--n_emb 385` ``.
pub(crate) fn with_flags(message: &str) -> String {
    let mut parts = message.split('`');
    let mut spelled = parts.next().unwrap_or_default().to_owned();
    for (index, part) in parts.enumerate() {
        spelled.push('`');
        let (name, value) = part.split_at(part.find(' ').unwrap_or(part.len()));
        if index.is_multiple_of(2) && setting(name).is_some() {
            spelled.push_str(&flag(name));
            spelled.push_str(value);
        } else {
            spelled.push_str(part);
        }
    }
    spelled
}

/// Prints help if it was requested, and a mistake as one line with its tip.
pub(crate) fn report_usage(error: &clap::Error) -> u8 {
    let requested = [
        ErrorKind::DisplayHelp,
        ErrorKind::DisplayVersion,
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
    ];
    if requested.contains(&error.kind()) {
        return match error.print() {
            _ if error.use_stderr() => WRONG_USAGE,
            Ok(()) => SUCCESS,
            Err(failure) => report(&screen::name_stdout(failure).into()),
        };
    }
    screen::err(format_args!("{} (see --help)", parser_message(error)));
    WRONG_USAGE
}

/// A mistake that the parser found, in one line.
pub(crate) fn parser_message(error: &clap::Error) -> String {
    let rendered = error.render().to_string();
    let kept = rendered.lines().map(str::trim);
    let kept = kept.filter(|line| !line.is_empty() && !line.starts_with("For more information"));
    let line: Vec<&str> = kept.take_while(|line| !line.starts_with("Usage:")).collect();
    line.join("; ").replace(":;", ":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_become_flags() {
        let check = |message: &str, want: &str| assert_eq!(with_flags(message), want);
        check("`n_emb 385` and `n_heads 6`", "`--n_emb 385` and `--n_heads 6`");
        check("lower `learning_rate`", "lower `--learning_rates`");
        check("use `search random`; `block_size 8`", "use `--search random`; `--block_sizes 8`");
        check("`x` seed `y` dropout", "`x` seed `y` dropout");
        check("plain", "plain");
    }
}
