//! A report of a run or a sweep: one self-contained HTML page, which needs no server, no network and no other file.
//!
//! Plotly.js, embedded in the page, draws the figures from JSON that is embedded too.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::Value;

use crate::embedded;
use crate::error::Result;
use crate::files::GENERATOR;
use crate::run_dir::RunDir;
use crate::sweep::{self, Sweep, labels};

mod figures;
mod summary;

use figures::PlotlyFigure;
use summary::RunSummary;

/// The style sheet.
const STYLE: &str = include_str!("report/page.css");
/// Draws the figures and makes the table sortable.
const SCRIPT: &str = include_str!("report/page.js");

/// The page may run its own scripts and styles, and load nothing.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; \
                      img-src data: blob:";

/// The page of a run or a sweep, from its files as they are now.
///
/// # Errors
/// If there is no run, or if a file of a run cannot be read.
pub fn page(run_dir: &RunDir) -> Result<String> {
    let mut runs: Vec<RunSummary> = run_dir.runs()?.iter().map(RunSummary::read).collect::<Result<_>>()?;
    let title = run_dir.name();
    let sweep = Sweep::read(run_dir.path())?;
    let varying = sweep.map_or(Vec::new(), |sweep| sweep.varying);
    let labels = labels(&runs.iter().map(|run| &run.settings).collect::<Vec<_>>(), &varying);
    for (run, label) in runs.iter_mut().zip(labels).filter(|(_, label)| !label.is_empty()) {
        run.label = label;
    }
    let mut ranked: Vec<&RunSummary> = runs.iter().collect();
    ranked.sort_by(|a, b| a.best_loss().total_cmp(&b.best_loss()));
    let best = ranked[0];
    let overview = if runs.len() > 1 { figures::of_sweep(&ranked, &varying) } else { Vec::new() };
    let details = figures::of_run(best);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="generator" content=(GENERATOR);
                meta name="viewport" content="width=device-width, initial-scale=1";
                // The empty icon keeps browsers from requesting one. Plotly.js needs 'unsafe-eval' to draw parallel coordinates.
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                link rel="icon" href="data:,";
                title { (title) " · folio" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    h1 { (title) }
                    @if runs.len() > 1 {
                        p { (runs.len()) " runs. The best is " strong { (best.label) } " (" (best.name) "), shown in detail below." }
                        h2 { "Runs" }
                        (ranking(&ranked, &varying))
                        (placeholders(&overview))
                        h2 { (best.label) }
                    }
                    (facts(best))
                    (placeholders(&details))
                    (samples(best))
                    h3 { "Settings" }
                    (settings(best))
                    (machine(best))
                }
                script type="application/json" id="figures" { (PreEscaped(json_in_html(&[overview, details].concat()))) }
                script { (PreEscaped(plotly_source())) }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    Ok(page.into_string())
}

/// The source of Plotly.js, for servers that deliver it as a file.
pub fn plotly_source() -> String {
    embedded::plotly_js()
}

/// JSON that is safe inside a script element: it contains no `<`, so it cannot end the element.
fn json_in_html(figures: &[PlotlyFigure]) -> String {
    serde_json::to_string(figures).expect("figures are JSON").replace('<', "\\u003c")
}

/// The elements that the figures are drawn into. The caption is also the text for screen readers.
fn placeholders(figures: &[PlotlyFigure]) -> Markup {
    html! {
        @for figure in figures {
            figure {
                figcaption { (figure.caption) }
                div.plot id=(figure.id) role="img" aria-label=(figure.caption) {}
            }
        }
    }
}

fn ranking(ranked: &[&RunSummary], varying: &[String]) -> Markup {
    html! {
        div.wide {
            table.sortable {
                thead {
                    tr {
                        @for name in ["rank", "run", "state", "best eval loss", "bits/char", "best at", "epochs"] {
                            th { button type="button" { (name) } }
                        }
                        @for name in varying { th { button type="button" { (name) } } }
                    }
                }
                tbody {
                    @for (index, run) in ranked.iter().enumerate() {
                        tr {
                            td { (index + 1) }
                            td { (run.name) }
                            td { (run.state) }
                            td { (number(run.best.map(|(loss, _)| loss))) }
                            td { (number(run.best_bits())) }
                            td { (run.best.map_or("–".to_owned(), |(_, name)| name.moment())) }
                            td { (run.eval_losses.len()) }
                            @for name in varying { td { (sweep::shown(&run.settings[name])) } }
                        }
                    }
                }
            }
        }
    }
}

/// The most important numbers.
fn facts(run: &RunSummary) -> Markup {
    let best = run.best.map_or("–".to_owned(), |(loss, name)| format!("{loss:.4} after {}", name.moment()));
    let facts = [
        ("state", run.state.to_owned()),
        ("best eval loss", best),
        ("bits per character", number(run.best_bits())),
        ("epochs", run.eval_losses.len().to_string()),
        ("steps", run.step_count().to_string()),
        ("tokens per second", run.median_speed().map_or("–".to_owned(), |speed| format!("{speed:.0}"))),
    ];
    html! {
        dl.facts {
            @for (name, value) in facts {
                div { dt { (name) } dd { (value) } }
            }
        }
        @if let Some(error) = &run.error { p.error { (error) } }
    }
}

fn samples(run: &RunSummary) -> Markup {
    let samples: Vec<(u64, &str)> = run.samples().collect();
    html! {
        @if !samples.is_empty() {
            h3 { "Samples" }
            p { "One per epoch, newest first, all from the same prompt and seed." }
            @for (index, (epoch, text)) in samples.iter().rev().enumerate() {
                details open[index == 0] {
                    summary { "Epoch " (epoch) }
                    pre { (text) }
                }
            }
        }
    }
}

fn settings(run: &RunSummary) -> Markup {
    let settings = run.settings.as_object();
    html! {
        div.wide {
            table {
                @for (name, value) in settings.into_iter().flatten() {
                    tr { th scope="row" { (name) } td { (shown(value)) } }
                }
            }
        }
    }
}

/// The machine of every start of the run.
fn machine(run: &RunSummary) -> Markup {
    html! {
        @if !run.starts.is_empty() {
            h3 { "Machine" }
            div.wide {
                table {
                    thead {
                        tr { @for name in ["from step", "when", "processor", "cores", "threads", "precision", "memory", "system", "folio"] { th { (name) } } }
                    }
                    @for start in &run.starts {
                        @let machine = &start["machine"];
                        tr {
                            td { (shown(&start["step"])) }
                            td.time data-seconds=(shown(&start["unix_time"])) { (shown(&start["unix_time"])) " s" }
                            td { (shown(&machine["cpu"])) }
                            td { (shown(&machine["cores"])) }
                            td { (shown(&start["threads"])) }
                            td { (shown(&start["precision"])) }
                            td { (gibibytes(&machine["memory"])) }
                            td { (shown(&machine["system"])) }
                            td { (shown(&start["folio"])) }
                        }
                    }
                }
            }
        }
    }
}

fn number(value: Option<f64>) -> String {
    value.map_or("–".to_owned(), |value| format!("{value:.4}"))
}

fn gibibytes(bytes: &Value) -> String {
    bytes.as_f64().map_or("–".to_owned(), |bytes| format!("{:.1} GiB", bytes / f64::from(1 << 30)))
}

/// A JSON value as text, strings without quotes.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}
