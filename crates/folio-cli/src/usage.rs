//! What a user is told who has mistyped, and the second spelling of every flag.

use std::process::ExitCode;

use clap::Command;
use clap::error::ErrorKind;

use crate::screen;

pub(crate) const EXAMPLES: &str = "\
Examples:
  folio train --preset quick                       a first model in three minutes
  folio train --preset quick --data my.txt         the same on your own text
  folio generate runs/quick --prompt 'ROMEO:'      let it write
  folio serve runs                                 a playground and training in the browser
  folio eval runs/quick                            loss, perplexity, bits per character
  folio plot runs/quick                            losses.svg and losses.png, and in the terminal
  folio train --learning_rates 1e-3 3e-4 --dropouts 0.1 0.2 --save_losses --run_dir runs/search
  folio tokenizer train --data my.txt --vocab_size 4096 --out my.json
  folio runs runs/search                           the four of them, ranked

Every flag has two spellings: --learning_rates and --learning-rates.";

/// A mistake in the arguments that the parser cannot see.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Gives every flag that has an underscore its spelling with hyphens, at every level.
pub(crate) fn with_kebab_case(command: Command) -> Command {
    command
        .mut_args(|arg| {
            // `--n_emb -3` is a wrong size, not an unknown flag.
            let arg = if arg.get_action().takes_values() { arg.allow_negative_numbers(true) } else { arg };
            let Some(long) = arg.get_long().filter(|long| long.contains('_')).map(str::to_owned) else {
                return arg;
            };
            let kebab = long.replace('_', "-");
            let mut aliases = vec![kebab.to_lowercase(), long.to_lowercase(), kebab];
            aliases.retain(|alias| *alias != long);
            aliases.dedup();
            arg.aliases(aliases)
        })
        .mut_subcommands(with_kebab_case)
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
