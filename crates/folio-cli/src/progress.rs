//! The output of a training run: one line per epoch on stdout, a progress bar on stderr.

use std::fmt;
use std::time::{Duration, Instant};

use folio::history::{EpochReport, StepEvaluation};
use folio::train::{Event, RankReport, StepReport};
use indicatif::{
    HumanBytes, HumanCount, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle,
};
use serde::Serialize;

use crate::screen;

/// How training is displayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Display {
    /// Lines, with progress bars below them.
    Bars,
    /// Lines of JSON.
    Json,
    /// The dashboard. Lines are printed when it closes.
    Dashboard,
}

impl Display {
    /// Where progress bars are drawn.
    pub(crate) fn target(self) -> ProgressDrawTarget {
        match self {
            Self::Bars | Self::Json => ProgressDrawTarget::stderr(),
            Self::Dashboard => ProgressDrawTarget::hidden(),
        }
    }
}

/// Prints the events of a run.
pub(crate) struct Progress {
    bar: ProgressBar,
    json: bool,
    /// Prefix of every line: the run's name, if several runs print at once.
    name: Option<String>,
    start: Instant,
    /// Time spent in optimizer steps.
    step_time: Duration,
    /// Training tokens processed in `step_time`.
    tokens: u64,
    last_event: Instant,
    epoch: String,
    /// The line of the last epoch, held back until its checkpoint is written: a line on stdout is then true even if the
    /// program is killed right after it.
    pending_line: Option<String>,
}

impl Progress {
    pub(crate) fn new(display: Display) -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), display.target());
        Self::with_bar(bar, display == Display::Json, None)
    }

    /// The output of a sweep that trains one run at a time.
    pub(crate) fn unnamed(bar: ProgressBar) -> Self {
        Self::with_bar(bar, false, None)
    }

    /// The output of one of several runs. Its lines and its bar start with its name.
    pub(crate) fn named(name: String, bar: ProgressBar, json: bool) -> Self {
        Self::with_bar(bar, json, Some(name))
    }

    fn with_bar(bar: ProgressBar, json: bool, name: Option<String>) -> Self {
        let template = "{prefix}{msg} {wide_bar:.cyan/dim} {pos}/{len} steps, {left}";
        let style = ProgressStyle::with_template(template).expect("a valid template").progress_chars("━╸─");
        bar.set_style(with_time_left(style));
        if let Some(name) = &name {
            bar.set_prefix(format!("{name} "));
        }
        let now = Instant::now();
        Self {
            bar,
            json,
            name,
            start: now,
            step_time: Duration::ZERO,
            tokens: 0,
            last_event: now,
            epoch: String::new(),
            pending_line: None,
        }
    }

    /// Prints an event of the run.
    pub(crate) fn on_event(&mut self, event: &Event) {
        let now = Instant::now();
        let elapsed = now - self.last_event;
        self.last_event = now;
        match event {
            Event::Started { steps, parameters, trained, precision, .. } => {
                self.bar.set_length(*steps);
                let unit = if *steps == 1 { "step" } else { "steps" };
                let part = match trained {
                    trained if trained == parameters => String::new(),
                    trained => format!(" of which {} are trained,", HumanCount(*trained)),
                };
                let (parameters, steps, precision) =
                    (HumanCount(*parameters), HumanCount(*steps), precision.name());
                self.print_note(&format!("{parameters} parameters,{part} {steps} {unit} in {precision}"));
            }
            Event::Teachers { count, done, tokens } => {
                if *done == 0 {
                    let unit = if *count == 1 { "teacher" } else { "teachers" };
                    let tokens = HumanCount(*tokens);
                    self.print_note(&format!(
                        "computing the probabilities of {count} {unit} for {tokens} tokens"
                    ));
                }
                self.bar.set_message(format!("teachers {:.0} %", *done as f64 / *tokens as f64 * 100.0));
            }
            Event::EpochStarted { epoch, last_epoch, .. } => {
                self.epoch = format!("epoch {epoch}/{last_epoch}");
            }
            Event::Step(report) => {
                self.step_time += elapsed;
                self.tokens += report.tokens;
                self.bar.inc(1);
                let rate = HumanCount(self.tokens_per_second() as u64);
                self.bar.set_message(format!("{} loss {:.4} {rate} tokens/s", self.epoch, report.loss));
                if report.skipped {
                    let StepReport { step, loss, gradient_norm, .. } = report;
                    self.print_note(&format!(
                        "warning: skipped step {step}: loss {loss}, gradient norm {gradient_norm}"
                    ));
                }
            }
            Event::Evaluating => self.bar.set_message(format!("{} evaluating", self.epoch)),
            Event::EpochEnded { epoch, last_epoch, report, .. } => {
                let line = if self.json {
                    self.json_line(*epoch, report)
                } else {
                    let name = self.name.as_ref().map_or(String::new(), |name| format!("{name} || "));
                    name + epoch_line(*epoch, *last_epoch, *report).as_str()
                };
                self.pending_line = Some(line);
                return;
            }
            Event::Evaluated { epoch, evaluation } => {
                let line = if self.json {
                    self.json_line(*epoch, evaluation)
                } else {
                    let name = self.name.as_ref().map_or(String::new(), |name| format!("{name} || "));
                    name + step_line(*evaluation).as_str()
                };
                self.pending_line = Some(line);
                return;
            }
            Event::StoppedEarly { evaluations, best_loss, best_step, .. } => {
                self.print_pending_line();
                let unit = if *evaluations == 1 { "evaluation" } else { "evaluations in a row" };
                self.print_note(&format!(
                    "stopped early: {evaluations} {unit} without improvement; the best was at step {best_step}, eval loss \
                     {best_loss:.4}"
                ));
            }
            Event::Saving => return,
            Event::Saved { checkpoint, requested: true } => {
                self.print_note(&format!("saved {}", checkpoint.display()))
            }
            Event::Saved { .. } => {}
            Event::Ranks { ranks, .. } => self.print_note(&ranks_line(ranks)),
            Event::Warning { message } => self.print_note(&format!("warning: {message}")),
        }
        self.print_pending_line();
    }

    fn print_pending_line(&mut self) {
        if let Some(line) = self.pending_line.take() {
            self.bar.suspend(|| screen::report(&line));
        }
    }

    /// Prints a line on stderr.
    fn print_note(&self, line: &str) {
        let name = self.name.as_ref().map_or(String::new(), |name| format!("{name}: "));
        // `ProgressBar::println` prints nothing if stderr is a file.
        self.bar.suspend(|| screen::err(format_args!("{name}{line}")));
    }

    /// Removes the bar and prints the totals.
    pub(crate) fn finish(&mut self) {
        self.print_pending_line();
        self.bar.finish_and_clear();
        let (tokens, rate) = (HumanCount(self.tokens), HumanCount(self.tokens_per_second() as u64));
        let time = HumanDuration(self.start.elapsed());
        self.print_note(&format!("trained for {time}: {tokens} tokens, {rate} tokens/s"));
    }

    fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.step_time.as_secs_f64().max(f64::EPSILON)
    }

    fn json_line(&self, epoch: u64, report: &impl Serialize) -> String {
        let mut line = serde_json::json!({ "epoch": epoch });
        if let Some(name) = &self.name {
            line["run"] = name.as_str().into();
        }
        let object = line.as_object_mut().expect("an object");
        let fields = serde_json::to_value(report).expect("numbers are JSON");
        object.extend(fields.as_object().expect("a struct").clone());
        line["seconds"] = self.start.elapsed().as_secs_f64().into();
        line["tokens_per_s"] = self.tokens_per_second().into();
        line.to_string()
    }
}

/// A bar for encoding a text of this many bytes; hidden if the text is short.
pub(crate) fn encoding_bar(bytes: usize) -> ProgressBar {
    /// Encoding a shorter text is quick enough without a bar.
    const MIN_BYTES: usize = 32 << 20;
    if bytes < MIN_BYTES {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(bytes as u64);
    let template = "encoding {wide_bar:.cyan/dim} {bytes} of {total_bytes}, {left}";
    let style = ProgressStyle::with_template(template).expect("a valid template").progress_chars("━╸─");
    bar.set_style(with_time_left(style));
    bar
}

/// A number of bytes with its unit, such as `1.50 GiB`.
pub(crate) fn gibibytes(bytes: u64) -> String {
    HumanBytes(bytes).to_string()
}

/// Adds the key `{left}` to a style: the time left.
fn with_time_left(style: ProgressStyle) -> ProgressStyle {
    style.with_key("left", |state: &ProgressState, text: &mut dyn fmt::Write| {
        text.write_str(&time_left(state.pos(), state.eta())).expect("writing to a String cannot fail");
    })
}

/// The text of the time left. It is unknown before the first step.
fn time_left(steps: u64, estimate: Duration) -> String {
    if steps == 0 { "estimating".to_owned() } else { format!("{:#} left", HumanDuration(estimate)) }
}

/// The line of the original project, followed by the two losses in bits per character.
fn epoch_line(epoch: u64, last_epoch: u64, report: EpochReport) -> String {
    let EpochReport { train_loss, eval_loss, raw_eval_loss, train_bits, eval_bits, learning_rate, .. } =
        report;
    let lr = scientific(learning_rate);
    let (train, eval) = (train_bits.per_character, eval_bits.per_character);
    let raw = raw_eval_loss.map_or(String::new(), |raw| format!(" (without averaging {raw:.4})"));
    format!(
        "Epoch: {epoch}/{last_epoch} || Train loss: {train_loss:.4} || Eval loss: {eval_loss:.4}{raw} || lr: {lr} || \
         bits per character: {train:.4}, {eval:.4}"
    )
}

/// What the ranks of a run took.
fn ranks_line(ranks: &[RankReport]) -> String {
    let count = ranks.len();
    let memory = ranks.iter().filter_map(|rank| rank.peak_memory).max();
    let memory =
        memory.map_or(String::new(), |bytes| format!(" {} of memory each at most,", gibibytes(bytes)));
    let sum = |of: fn(&RankReport) -> f64| ranks.iter().map(of).sum::<f64>();
    let share = sum(|rank| rank.communication_seconds) / sum(|rank| rank.seconds).max(f64::EPSILON);
    format!("{count} ranks:{memory} communication {:.0} % of the time", 100.0 * share)
}

/// The line of an evaluation inside an epoch.
fn step_line(evaluation: StepEvaluation) -> String {
    let StepEvaluation { step, eval_loss, raw_eval_loss, eval_bits_per_character: bits, .. } = evaluation;
    let raw = raw_eval_loss.map_or(String::new(), |raw| format!(" (without averaging {raw:.4})"));
    format!("Step: {step} || Eval loss: {eval_loss:.4}{raw} || bits per character: {bits:.4}")
}

/// Formats a number as C's `%.4e` does, such as `1.0000e-03`.
fn scientific(x: f64) -> String {
    let text = format!("{x:.4e}");
    let (mantissa, exponent) = text.split_once('e').expect("{:e} writes an e");
    let exponent: i32 = exponent.parse().expect("{:e} writes a whole exponent");
    format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

#[cfg(test)]
mod tests {
    use folio::text::Bits;

    use super::*;

    #[test]
    fn the_time_left_is_not_0_before_the_first_step() {
        assert_eq!(time_left(0, Duration::ZERO), "estimating");
        assert_eq!(time_left(1, Duration::from_secs(45)), "45s left");
        assert_eq!(time_left(7, Duration::ZERO), "0s left");
    }

    #[test]
    fn the_line_about_ranks_has_the_largest_memory_and_the_mean_share() {
        let rank = |peak_memory, communication_seconds| RankReport {
            peak_memory,
            tokens_per_s: 1000.0,
            seconds: 10.0,
            communication_seconds,
        };
        let want = "2 ranks: 1.50 GiB of memory each at most, communication 8 % of the time";
        assert_eq!(ranks_line(&[rank(Some(1 << 30), 1.0), rank(Some(3 << 29), 0.6)]), want);
        let unknown = "2 ranks: communication 0 % of the time";
        assert_eq!(ranks_line(&[rank(None, 0.0), rank(None, 0.0)]), unknown);
    }

    #[test]
    fn epoch_lines_have_the_format_of_the_original_project() {
        let bits = |per_character| Bits { per_character, per_byte: 9.0 };
        let (train_bits, eval_bits) = (bits(1.78102), bits(2.10156));
        let report = EpochReport {
            train_loss: 1.23454,
            eval_loss: 1.45666,
            raw_eval_loss: None,
            train_bits,
            eval_bits,
            learning_rate: 1e-3,
            gradient_norm: 0.3,
            clipped_steps: 0,
            skipped_steps: 0,
            step: 9,
        };
        let want = "Epoch: 3/100 || Train loss: 1.2345 || Eval loss: 1.4567 || lr: 1.0000e-03 || \
                    bits per character: 1.7810, 2.1016";
        assert_eq!(epoch_line(3, 100, report), want);
        let averaged = EpochReport { raw_eval_loss: Some(1.5), ..report };
        let want = want.replace("1.4567", "1.4567 (without averaging 1.5000)");
        assert_eq!(epoch_line(3, 100, averaged), want);
    }
}
