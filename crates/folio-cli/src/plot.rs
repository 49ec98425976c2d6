//! `folio plot`: the curves of a run or a sweep.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use folio::files::write_atomic;
use folio::plot::{Curve, LossUnit, TerminalSize, to_png, to_svg, to_terminal};
use folio::run_dir::RunDir;

use crate::screen;
use crate::usage::Usage;

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
Examples:
  folio plot runs/quick                       losses.svg and losses.png in runs/quick
  folio plot runs/search --out search.png     all runs of a sweep in one figure
  folio plot runs/chrs runs/bpe --unit bits_per_character --out both.svg")]
pub(crate) struct PlotArgs {
    /// The run, or the directory of a sweep; several are drawn in one figure
    #[arg(value_name = "RUN_DIR", required = true)]
    run_dirs: Vec<PathBuf>,
    /// What the losses are drawn in; runs of different tokenizers compare in bits
    #[arg(long, value_name = "NAME", value_enum, default_value = "nats_per_token")]
    unit: Unit,
    /// Files to write, by their ending .svg or .png [default: losses.svg and losses.png in RUN_DIR]
    #[arg(long, value_name = "FILE", num_args = 1..)]
    out: Vec<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Unit {
    NatsPerToken,
    BitsPerCharacter,
    BitsPerByte,
}

pub(crate) fn run(args: &PlotArgs) -> anyhow::Result<()> {
    let mut outputs = args.out.clone();
    if outputs.is_empty() {
        let [run_dir] = args.run_dirs.as_slice() else {
            return Err(
                Usage("several runs need a place for their figure: add --out FILE.svg".to_owned()).into()
            );
        };
        outputs = vec![run_dir.join("losses.svg"), run_dir.join("losses.png")];
    }
    if let Some(path) = outputs.iter().find(|path| !is_picture(path)) {
        return Err(Usage(format!("--out {}: the name must end in .svg or .png", path.display())).into());
    }
    let several = args.run_dirs.len() > 1;
    let mut curves = Vec::new();
    for path in &args.run_dirs {
        let prefix = if several { Some(path.display().to_string()) } else { None };
        curves.extend(self::curves(&RunDir::new(path), prefix.as_deref(), args.unit)?);
    }
    let titles: Vec<String> = args.run_dirs.iter().map(|path| path.display().to_string()).collect();
    let title = titles.join(", ");
    for path in &outputs {
        let is_svg = path.extension().is_some_and(|ending| ending == "svg");
        let bytes = if is_svg { to_svg(&curves, &title)?.into_bytes() } else { to_png(&curves, &title)? };
        write_atomic(path, &bytes)?;
    }
    let color =
        std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    screen::out(to_terminal(&curves, TerminalSize { columns: 80, rows: 24 }, color))?;
    for path in &outputs {
        screen::err(format_args!("wrote {}", path.display()));
    }
    Ok(())
}

fn is_picture(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "svg" || ending == "png")
}

/// The curves of every run below a directory that saved its losses, named with a prefix if there is one.
fn curves(run_dir: &RunDir, prefix: Option<&str>, unit: Unit) -> anyhow::Result<Vec<Curve>> {
    let runs = run_dir.runs()?;
    let several = runs.len() > 1;
    let mut curves = Vec::new();
    for run in runs {
        let Some(losses) = run.losses()? else { continue };
        let rates = run.learning_rates()?.unwrap_or_default();
        let against_steps = |values: &[f64]| -> Vec<(f64, f64)> {
            losses.steps.iter().map(|&step| step as f64).zip(values.iter().copied()).collect()
        };
        let name = run.path().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let parts = [prefix.map(str::to_owned), several.then_some(name)];
        let (train_losses, eval_losses, unit) = match unit {
            Unit::NatsPerToken => (&losses.train_losses, &losses.eval_losses, LossUnit::NatsPerToken),
            Unit::BitsPerCharacter => {
                let (train, eval) = (&losses.train_bits_per_character, &losses.eval_bits_per_character);
                (train, eval, LossUnit::BitsPerCharacter)
            }
            Unit::BitsPerByte => {
                (&losses.train_bits_per_byte, &losses.eval_bits_per_byte, LossUnit::BitsPerByte)
            }
        };
        curves.push(Curve {
            label: parts.into_iter().flatten().collect::<Vec<_>>().join("/"),
            unit,
            train_losses: against_steps(train_losses),
            eval_losses: against_steps(eval_losses),
            learning_rates: against_steps(&rates),
        });
    }
    if curves.is_empty() {
        let path = run_dir.path().display();
        return Err(Usage(format!(
            "{path} has no losses.json to draw: it was stopped before the end of its first epoch"
        ))
        .into());
    }
    Ok(curves)
}
