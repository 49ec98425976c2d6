//! `folio completions` and `folio man`: shell completions and manual pages, generated from the argument definitions.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Command};
use clap_complete::Shell;

use crate::screen;

#[derive(Args)]
#[command(after_help = "\
Examples:
  folio completions bash > ~/.local/share/bash-completion/completions/folio
  folio completions fish > ~/.config/fish/completions/folio.fish
  folio completions zsh > _folio

For zsh, put _folio in a directory of $fpath.")]
pub(crate) struct CompletionsArgs {
    /// Shell to generate completions for
    #[arg(value_name = "SHELL", value_enum)]
    shell: Shell,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  folio man man1
  man -l man1/folio-train.1")]
pub(crate) struct ManArgs {
    /// Directory for the pages: folio.1 and one page per command; created if missing
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Prints the completion script for a shell.
pub(crate) fn complete(args: &CompletionsArgs, mut command: Command) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "folio", &mut script);
    screen::stdout().write_all(&script)?;
    Ok(())
}

/// Writes the manual pages.
pub(crate) fn write_pages(args: &ManArgs, command: Command) -> anyhow::Result<()> {
    let directory = &args.directory;
    let shown = directory.display();
    fs::create_dir_all(directory).with_context(|| format!("cannot create {shown}"))?;
    clap_mangen::generate_to(command, directory).with_context(|| format!("cannot write to {shown}"))?;
    screen::err(format_args!("wrote {}", directory.join("folio.1").display()));
    Ok(())
}
