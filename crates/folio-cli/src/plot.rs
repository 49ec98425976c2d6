//! `folio plot`: loss and learning-rate curves.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use folio::files::write_atomic;
use folio::history::{EpochReport, History, StepEvaluation};
use folio::plot::{Curve, LossUnit, TerminalSize, to_png, to_svg, to_terminal};
use folio::records;
use folio::run_dir::RunDir;
use folio::sweep::{Sweep, differing, labels};
use folio::text::Bits;
use serde::Deserialize;
use serde_json::Value;

use crate::screen;
use crate::terminal;
use crate::usage::Usage;

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
Examples:
  folio plot runs/quick
  folio plot runs/search --out search.png
  folio plot runs/quick runs/mine --unit bits_per_character --out both.svg")]
pub(crate) struct PlotArgs {
    /// Runs or sweeps, all plotted in one figure
    #[arg(value_name = "RUN_DIR", required = true)]
    run_dirs: Vec<PathBuf>,
    /// Unit of the losses; use bits to compare runs with different tokenizers
    #[arg(long, value_name = "NAME", value_enum, default_value = "nats_per_token")]
    unit: Unit,
    /// Files to write, with the extension .svg or .png [default: losses.svg and losses.png in RUN_DIR]
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
            return Err(Usage("several runs need an output file: add --out FILE.svg".to_owned()).into());
        };
        outputs = vec![run_dir.join("losses.svg"), run_dir.join("losses.png")];
    }
    if let Some(path) = outputs.iter().find(|path| !has_figure_extension(path)) {
        return Err(Usage(format!("--out {}: the file name must end in .svg or .png", path.display())).into());
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
    screen::out(to_terminal(&curves, chart_size(outputs.len()), terminal::use_color()))?;
    for path in &outputs {
        screen::err(format_args!("wrote {}", path.display()));
    }
    Ok(())
}

fn has_figure_extension(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "svg" || ending == "png")
}

/// The size of the chart on the terminal, leaving room below it for `lines` lines and the shell's prompt.
fn chart_size(lines: usize) -> TerminalSize {
    match terminal::size() {
        Some(TerminalSize { columns, rows }) => {
            TerminalSize { columns, rows: rows.saturating_sub(lines as u16 + 2).max(12) }
        }
        None => TerminalSize { columns: 80, rows: 24 },
    }
}

/// The curves of every run in a directory that has losses, with an optional prefix in their labels.
fn curves(run_dir: &RunDir, prefix: Option<&str>, unit: Unit) -> anyhow::Result<Vec<Curve>> {
    let runs = run_dir.runs()?;
    let settings: Vec<Value> =
        runs.iter().map(|run| Ok(serde_json::to_value(run.settings()?)?)).collect::<anyhow::Result<_>>()?;
    let settings: Vec<&Value> = settings.iter().collect();
    let varying = Sweep::read(run_dir.path())?.map_or_else(|| differing(&settings), |sweep| sweep.varying);
    let mut curves = Vec::new();
    for (run, label) in runs.iter().zip(labels(&settings, &varying)) {
        let Some(curve) = curve(run, unit)? else { continue };
        let own = if label.is_empty() { run.name() } else { label };
        let parts = [prefix.map(str::to_owned), (runs.len() > 1).then_some(own)];
        curves.push(Curve { label: parts.into_iter().flatten().collect::<Vec<_>>().join(": "), ..curve });
    }
    if curves.is_empty() {
        let path = run_dir.path().display();
        return Err(Usage(format!("{path} has no losses to plot yet; train for at least one step")).into());
    }
    Ok(curves)
}

/// The curve of a run: from its records of every step, or from its losses of every epoch where there are no records.
fn curve(run: &RunDir, unit: Unit) -> anyhow::Result<Option<Curve>> {
    let records = records::read(run)?;
    let (epochs, evaluations) = match run.history()? {
        Some(History { epochs, evaluations, .. }) => (epochs, evaluations),
        None => (epochs_of(&records), evaluations_of(&records)),
    };
    let of_steps = |key: &str| -> Vec<(f64, f64)> {
        let steps = records.iter().filter(|record| record["event"] == "step");
        steps.filter_map(|record| Some((record["step"].as_f64()?, record[key].as_f64()?))).collect()
    };
    let (step_losses, step_rates) = (of_steps("loss"), of_steps("lr"));
    if epochs.is_empty() && evaluations.is_empty() && step_losses.is_empty() {
        return Ok(None);
    }
    // A run that continues another has the epochs of that run, but not its steps.
    let first = step_losses.first().map_or(f64::INFINITY, |(step, _)| *step);
    let of_epochs = |value: &dyn Fn(&EpochReport) -> f64| -> Vec<(f64, f64)> {
        let points = epochs.iter().map(|epoch| (epoch.step as f64, value(epoch)));
        points.filter(|(_, value)| value.is_finite()).collect()
    };
    let joined = |epochs: Vec<(f64, f64)>, steps: Vec<(f64, f64)>| -> Vec<(f64, f64)> {
        epochs.into_iter().filter(|(step, _)| *step < first).chain(steps).collect()
    };
    // Losses in this unit, from nats and bits.
    let (unit, in_unit): (LossUnit, fn(f64, Bits) -> f64) = match unit {
        Unit::NatsPerToken => (LossUnit::NatsPerToken, |nats, _| nats),
        Unit::BitsPerCharacter => (LossUnit::BitsPerCharacter, |_, bits| bits.per_character),
        Unit::BitsPerByte => (LossUnit::BitsPerByte, |_, bits| bits.per_byte),
    };
    let train = |epoch: &EpochReport| in_unit(epoch.train_loss, epoch.train_bits);
    let eval = |epoch: &EpochReport| in_unit(epoch.eval_loss, epoch.eval_bits);
    let inside =
        evaluations.iter().map(|inside| (inside.step as f64, in_unit(inside.eval_loss, inside.eval_bits())));
    let mut eval_losses = of_epochs(&eval);
    eval_losses.extend(inside.filter(|(_, loss)| loss.is_finite()));
    eval_losses.sort_by(|one, other| one.0.total_cmp(&other.0));
    // The records are in nats per token. The tokens of a run have the same mean length in every epoch.
    let per_nat = match unit {
        LossUnit::NatsPerToken => Some(1.0),
        _ => epochs.last().map(|epoch| train(epoch) / epoch.train_loss).filter(|ratio| ratio.is_finite()),
    };
    let steps = per_nat.map_or(Vec::new(), |per_nat| {
        step_losses.into_iter().map(|(step, loss)| (step, loss * per_nat)).collect()
    });
    let train_losses = if steps.is_empty() { of_epochs(&train) } else { joined(of_epochs(&train), steps) };
    Ok(Some(Curve {
        label: String::new(),
        unit,
        train_losses,
        eval_losses,
        learning_rates: joined(of_epochs(&|epoch| epoch.learning_rate), step_rates),
    }))
}

/// The evaluations inside epochs of a run's records.
fn evaluations_of(records: &[Value]) -> Vec<StepEvaluation> {
    let evaluations = records.iter().filter(|record| record["event"] == "evaluation");
    evaluations.filter_map(|record| StepEvaluation::deserialize(record).ok()).collect()
}

/// The epochs of a run's records.
fn epochs_of(records: &[Value]) -> Vec<EpochReport> {
    let epochs = records.iter().filter(|record| record["event"] == "epoch");
    let report = |epoch: &Value| {
        let number = |key: &str| epoch[key].as_f64().unwrap_or(f64::NAN);
        let count = |key: &str| epoch[key].as_u64().unwrap_or(0);
        let bits = |part: &str| Bits {
            per_character: number(&format!("{part}_bits_per_character")),
            per_byte: number(&format!("{part}_bits_per_byte")),
        };
        EpochReport {
            train_loss: number("train_loss"),
            eval_loss: number("eval_loss"),
            raw_eval_loss: None,
            train_bits: bits("train"),
            eval_bits: bits("eval"),
            learning_rate: number("lr"),
            gradient_norm: number("gradient_norm"),
            clipped_steps: count("clipped_steps"),
            skipped_steps: count("skipped_steps"),
            step: count("step"),
        }
    };
    epochs.map(report).collect()
}
