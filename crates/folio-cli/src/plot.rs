//! `folio plot`: the curves of a run or a sweep.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::Args;
use folio::files::write_atomic;
use folio::plot::{Curve, TerminalSize, to_png, to_svg, to_terminal};
use folio::run_dir::RunDir;

use crate::usage::Usage;

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
Examples:
  folio plot runs/quick                       losses.svg and losses.png in runs/quick
  folio plot runs/search --out search.png     all runs of a sweep in one figure")]
pub(crate) struct PlotArgs {
    /// The run, or the directory of a sweep
    #[arg(value_name = "RUN_DIR")]
    run_dir: PathBuf,
    /// Files to write, by their ending .svg or .png [default: losses.svg and losses.png in RUN_DIR]
    #[arg(long, value_name = "FILE", num_args = 1..)]
    out: Vec<PathBuf>,
}

pub(crate) fn run(args: &PlotArgs) -> anyhow::Result<()> {
    let mut outputs = args.out.clone();
    if outputs.is_empty() {
        outputs = vec![args.run_dir.join("losses.svg"), args.run_dir.join("losses.png")];
    }
    if let Some(path) = outputs.iter().find(|path| !is_picture(path)) {
        return Err(Usage(format!("--out {}: the name must end in .svg or .png", path.display())).into());
    }
    let curves = curves(&RunDir::new(&args.run_dir))?;
    let title = args.run_dir.display().to_string();
    for path in &outputs {
        let is_svg = path.extension().is_some_and(|ending| ending == "svg");
        let bytes = if is_svg { to_svg(&curves, &title)?.into_bytes() } else { to_png(&curves, &title)? };
        write_atomic(path, &bytes)?;
    }
    let color =
        std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    println!("{}", to_terminal(&curves, TerminalSize { columns: 80, rows: 24 }, color));
    for path in &outputs {
        eprintln!("wrote {}", path.display());
    }
    Ok(())
}

fn is_picture(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "svg" || ending == "png")
}

/// The curves of every run that saved its losses.
fn curves(run_dir: &RunDir) -> anyhow::Result<Vec<Curve>> {
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
        curves.push(Curve {
            label: if several { name } else { String::new() },
            train_losses: against_steps(&losses.train_losses),
            eval_losses: against_steps(&losses.eval_losses),
            learning_rates: against_steps(&rates),
        });
    }
    if curves.is_empty() {
        let path = run_dir.path().display();
        return Err(Usage(format!("{path} has no losses.json to draw: train with --save_losses")).into());
    }
    Ok(curves)
}
