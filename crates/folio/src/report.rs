//! A run or a sweep as one HTML page that needs nothing else: no server, no network, no other file.
//!
//! The figures are Plotly.js's, which is part of the page; what they show stands beside it as JSON.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use plotly::Plot;
use serde_json::Value;

use crate::error::Result;
use crate::files::GENERATOR;
use crate::run_dir::RunDir;
use crate::sweep::{self, Sweep, labels};

mod figures;
mod story;

use figures::Figure;
use story::Story;

/// What the page looks like.
const STYLE: &str = include_str!("report/page.css");
/// What draws the figures and sorts the table.
const SCRIPT: &str = include_str!("report/page.js");

/// What the page may do.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; \
                      img-src data: blob:";

/// The page of a run, or of a sweep, as its files are now.
///
/// # Errors
/// If there is no run, or a file of one cannot be read.
pub fn page(run_dir: &RunDir) -> Result<String> {
    let mut stories: Vec<Story> = run_dir.runs()?.iter().map(Story::read).collect::<Result<_>>()?;
    let title =
        run_dir.path().file_name().map_or("run".to_owned(), |name| name.to_string_lossy().into_owned());
    let sweep = Sweep::read(run_dir.path())?;
    let varying = sweep.map_or(Vec::new(), |sweep| sweep.varying);
    let labels = labels(&stories.iter().map(|story| &story.settings).collect::<Vec<_>>(), &varying);
    for (story, label) in stories.iter_mut().zip(labels).filter(|(_, label)| !label.is_empty()) {
        story.label = label;
    }
    // The best first; of a single run the only.
    let mut ranked: Vec<&Story> = stories.iter().collect();
    ranked.sort_by(|a, b| a.best_loss().total_cmp(&b.best_loss()));
    let best = ranked[0];
    let overview = if stories.len() > 1 { figures::of_sweep(&ranked, &varying) } else { Vec::new() };
    let details = figures::of_run(best);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="generator" content=(GENERATOR);
                meta name="viewport" content="width=device-width, initial-scale=1";
                // The browser lets the page ask for nothing; the icon is none. Plotly.js makes functions of text to draw
                // parallel coordinates.
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                link rel="icon" href="data:,";
                title { (title) " · folio" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    h1 { (title) }
                    @if stories.len() > 1 {
                        p { (stories.len()) " runs. The best is " strong { (best.label) } ", " (best.name) ", shown in full below." }
                        h2 { "Runs" }
                        (ranking(&ranked, &varying))
                        (drawn(&overview))
                        h2 { (best.label) }
                    }
                    (facts(best))
                    (drawn(&details))
                    (samples(best))
                    h3 { "Settings" }
                    (settings(best))
                    (machine(best))
                }
                script type="application/json" id="figures" { (PreEscaped(json_in_html(&[overview, details].concat()))) }
                (PreEscaped(plotly_js()))
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    Ok(page.into_string())
}

const SCRIPT_END: &str = "</script>";

/// The script element of Plotly.js, without that of MathJax which follows it.
fn plotly_js() -> String {
    let mut scripts = Plot::offline_js_sources();
    let end = scripts.find(SCRIPT_END).expect("a script element ends") + SCRIPT_END.len();
    scripts.truncate(end);
    scripts
}

/// The source of Plotly.js, for a page that loads it as a file.
pub fn plotly_source() -> String {
    let element = plotly_js();
    let begin = element.find('>').expect("a script element begins") + 1;
    element[begin..element.len() - SCRIPT_END.len()].to_owned()
}

/// JSON that can stand in a script element: nothing in it can end the element.
fn json_in_html(figures: &[Figure]) -> String {
    serde_json::to_string(figures).expect("figures are JSON").replace('<', "\\u003c")
}

/// Where figures will be drawn, each with words for those who do not see it.
fn drawn(figures: &[Figure]) -> Markup {
    html! {
        @for figure in figures {
            figure {
                figcaption { (figure.caption) }
                div.plot id=(figure.id) role="img" aria-label=(figure.caption) {}
            }
        }
    }
}

fn ranking(ranked: &[&Story], varying: &[String]) -> Markup {
    html! {
        div.wide {
            table.sortable {
                thead {
                    tr {
                        @for name in ["rank", "run", "state", "best eval loss", "bits/char", "at epoch", "epochs"] {
                            th { button type="button" { (name) } }
                        }
                        @for name in varying { th { button type="button" { (name) } } }
                    }
                }
                tbody {
                    @for (index, story) in ranked.iter().enumerate() {
                        tr {
                            td { (index + 1) }
                            td { (story.name) }
                            td { (story.state) }
                            td { (number(story.best.map(|(loss, _)| loss))) }
                            td { (number(story.best_bits())) }
                            td { (story.best.map_or("–".to_owned(), |(_, epoch)| epoch.to_string())) }
                            td { (story.eval_losses.len()) }
                            @for name in varying { td { (sweep::shown(&story.settings[name])) } }
                        }
                    }
                }
            }
        }
    }
}

/// The few numbers that matter.
fn facts(story: &Story) -> Markup {
    let best = story.best.map_or("–".to_owned(), |(loss, epoch)| format!("{loss:.4} after epoch {epoch}"));
    let facts = [
        ("state", story.state.to_owned()),
        ("best eval loss", best),
        ("bits per character", number(story.best_bits())),
        ("epochs", story.eval_losses.len().to_string()),
        ("steps", story.steps().to_string()),
        ("tokens a second", story.median_speed().map_or("–".to_owned(), |speed| format!("{speed:.0}"))),
    ];
    html! {
        dl.facts {
            @for (name, value) in facts {
                div { dt { (name) } dd { (value) } }
            }
        }
        @if let Some(error) = &story.error { p.error { (error) } }
    }
}

fn samples(story: &Story) -> Markup {
    let samples: Vec<(u64, &str)> = story.samples().collect();
    html! {
        @if !samples.is_empty() {
            h3 { "What it wrote" }
            p { "After each epoch, from the same start and with the same random numbers; the newest first." }
            @for (index, (epoch, text)) in samples.iter().rev().enumerate() {
                details open[index == 0] {
                    summary { "Epoch " (epoch) }
                    pre { (text) }
                }
            }
        }
    }
}

fn settings(story: &Story) -> Markup {
    let settings = story.settings.as_object();
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

/// Every start of the run, and on what.
fn machine(story: &Story) -> Markup {
    html! {
        @if !story.starts.is_empty() {
            h3 { "Machine" }
            div.wide {
                table {
                    thead {
                        tr { @for name in ["from step", "when", "processor", "cores", "threads", "precision", "memory", "system", "folio"] { th { (name) } } }
                    }
                    @for start in &story.starts {
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

/// A value in full.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}
