//! The output of a sweep: the progress of each run, and the runs ranked by loss.

use std::collections::HashMap;

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use folio::run_dir::{RunState, sub_run_name};
use folio::sweep::{RunResult, Sweep, SweepEvent};
use folio::train::{Event, Outcome};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::progress::{Display, Progress};
use crate::screen;

/// Number of runs in the table during training.
const MAX_ROWS: usize = 12;

/// Prints the events of a sweep.
pub(crate) struct Standings<'a> {
    sweep: &'a Sweep,
    json: bool,
    /// Whether several runs train at the same time.
    parallel: bool,
    bars: MultiProgress,
    /// The table, below the bars of the runs.
    table: ProgressBar,
    /// The runs that are training.
    running: HashMap<usize, Progress>,
    /// All runs, best first, with their results so far.
    ranked: Vec<RunResult>,
}

impl<'a> Standings<'a> {
    pub(crate) fn new(sweep: &'a Sweep, display: Display, jobs: usize) -> Self {
        let bars = MultiProgress::with_draw_target(display.target());
        let table = bars.add(ProgressBar::no_length());
        table.set_style(ProgressStyle::with_template("{msg}").expect("a valid template"));
        let ranked = (0..sweep.runs.len()).map(RunResult::before).collect();
        let json = display == Display::Json;
        Self { sweep, json, parallel: jobs > 1, bars, table, running: HashMap::new(), ranked }
    }

    /// Prints an event of the sweep.
    pub(crate) fn on_event(&mut self, event: SweepEvent) {
        match event {
            SweepEvent::RunStarted { run } => {
                if !self.json {
                    let line = format!(
                        "Experiment {}/{}: {}",
                        run + 1,
                        self.sweep.runs.len(),
                        self.values_text(run)
                    );
                    self.bars.suspend(|| screen::report(&line));
                }
                let bar = self.bars.insert_before(&self.table, ProgressBar::new(0));
                // JSON lines name their run even if the runs train one at a time.
                let named = self.parallel || self.json;
                let progress =
                    if named { Progress::named(name(run), bar, self.json) } else { Progress::unnamed(bar) };
                self.running.insert(run, progress);
                if let Some(result) = self.ranked.iter_mut().find(|result| result.run == run) {
                    result.state = Some(RunState::Running);
                }
            }
            SweepEvent::Run { run, event } => {
                if let Some(progress) = self.running.get_mut(&run) {
                    progress.on_event(event);
                }
                match event {
                    Event::EpochEnded { report, .. } => self.note(run, |result| {
                        result.epochs += 1;
                        result.eval_losses.push(report.eval_loss);
                    }),
                    Event::Evaluated { evaluation, .. } => self.note(run, |result| {
                        result.step_losses.push((evaluation.step, evaluation.eval_loss));
                    }),
                    _ => {}
                }
            }
            SweepEvent::RunEnded { result, ranked, trained } => {
                self.ranked = ranked.to_vec();
                if let Some(mut progress) = self.running.remove(&result.run) {
                    progress.finish();
                }
                self.print_end(result, trained);
                self.show_table();
            }
            SweepEvent::RungEnded { survivors, epochs } => {
                let names: Vec<String> = survivors.iter().map(|&run| name(run)).collect();
                self.print_note(&format!("continuing to epoch {epochs}: {}", names.join(", ")));
            }
        }
    }

    /// Removes the bars and prints the table.
    pub(crate) fn finish(&mut self, ranked: &[RunResult], outcome: Outcome) {
        self.table.finish_and_clear();
        self.ranked = ranked.to_vec();
        if !self.json && outcome == Outcome::Finished {
            screen::report(format_args!("\n{}", self.table()));
        }
    }

    /// The table of all runs, best first.
    pub(crate) fn table(&self) -> String {
        table(self.sweep, &self.ranked).to_string()
    }

    fn print_end(&self, result: &RunResult, trained: bool) {
        let name = name(result.run);
        match (&result.error, trained) {
            (Some(error), _) => self.print_note(&format!("warning: {name} failed: {error}")),
            (None, false) => self.print_note(&format!("{name} is already trained")),
            (None, true) => {}
        }
    }

    fn print_note(&self, line: &str) {
        self.bars.suspend(|| screen::err(line));
    }

    /// Adds the result of an evaluation, and ranks and shows the runs again.
    fn note(&mut self, run: usize, change: impl FnOnce(&mut RunResult)) {
        if let Some(result) = self.ranked.iter_mut().find(|result| result.run == run) {
            change(result);
        }
        self.ranked.sort_by(|a, b| a.best().total_cmp(&b.best()).then(a.run.cmp(&b.run)));
        self.show_table();
    }

    fn show_table(&self) {
        if !self.json && !self.table.is_hidden() {
            let shown = &self.ranked[..self.ranked.len().min(MAX_ROWS)];
            self.table.set_message(table(self.sweep, shown).to_string());
        }
    }

    fn values_text(&self, run: usize) -> String {
        let values = self.sweep.values(run).into_iter();
        values.map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
    }
}

fn name(run: usize) -> String {
    sub_run_name(run)
}

/// Columns: rank, run, state, loss, epochs, and the settings in which the runs differ.
fn table(sweep: &Sweep, ranked: &[RunResult]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    let fixed = ["rank", "run", "state", "best eval loss", "epochs"].map(str::to_owned);
    table.set_header(fixed.into_iter().chain(sweep.varying.iter().cloned()));
    for (index, result) in ranked.iter().enumerate() {
        let best = result.best();
        let loss = if best.is_finite() { format!("{best:.4}") } else { "-".to_owned() };
        let state = result.state.map_or("waiting", RunState::name);
        let row =
            [(index + 1).to_string(), name(result.run), state.to_owned(), loss, result.epochs.to_string()];
        table.add_row(row.into_iter().chain(sweep.values(result.run).into_iter().map(|(_, value)| value)));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        if !matches!(index, 1 | 2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
