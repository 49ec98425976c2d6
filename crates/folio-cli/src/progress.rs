//! A run as it is told to a person: one line an epoch on stdout, a bar on stderr.

use std::fmt;
use std::time::{Duration, Instant};

use folio::history::EpochReport;
use folio::train::{Event, StepReport};
use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::screen;

/// How training is shown while it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Display {
    /// By lines, and bars below them.
    Bars,
    /// By lines of JSON.
    Json,
    /// By the dashboard, which holds the lines back.
    Dashboard,
}

impl Display {
    /// Where bars are drawn.
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
    /// The run's name, where several are told of at a time.
    name: Option<String>,
    begun: Instant,
    /// Time spent in optimizer steps, and tokens learned from in it.
    training: Duration,
    tokens: u64,
    last_event: Instant,
    epoch: String,
    /// The line of an epoch that has ended and may not be saved yet: what stands on stdout stays true if the program is
    /// killed.
    untold: Option<String>,
}

impl Progress {
    pub(crate) fn new(display: Display) -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), display.target());
        Self::with_bar(bar, display == Display::Json, None)
    }

    /// The only run of several that trains now, above whatever is below its bar.
    pub(crate) fn over(bar: ProgressBar) -> Self {
        Self::with_bar(bar, false, None)
    }

    /// One of several runs, whose lines and bar begin with its name.
    pub(crate) fn of(name: String, bar: ProgressBar, json: bool) -> Self {
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
            begun: now,
            training: Duration::ZERO,
            tokens: 0,
            last_event: now,
            epoch: String::new(),
            untold: None,
        }
    }

    /// Takes one event of the run.
    pub(crate) fn on_event(&mut self, event: &Event) {
        let now = Instant::now();
        let elapsed = now - self.last_event;
        self.last_event = now;
        match event {
            Event::Started { steps, parameters, precision, .. } => {
                self.bar.set_length(*steps);
                let (parameters, steps) = (HumanCount(*parameters), HumanCount(*steps));
                self.say(&format!("{parameters} parameters, {steps} steps in {}", precision.name()));
            }
            Event::EpochStarted { epoch, last_epoch, .. } => {
                self.epoch = format!("epoch {epoch}/{last_epoch}");
            }
            Event::Step(report) => {
                self.training += elapsed;
                self.tokens += report.tokens;
                self.bar.inc(1);
                let rate = HumanCount(self.tokens_per_second() as u64);
                self.bar.set_message(format!("{} loss {:.4} {rate} tokens/s", self.epoch, report.loss));
                if report.skipped {
                    let StepReport { step, loss, gradient_norm, .. } = report;
                    let what = format!("loss {loss}, norm of the gradients {gradient_norm}");
                    self.say(&format!("warning: step {step} is skipped: {what}"));
                }
            }
            Event::Evaluating => self.bar.set_message(format!("{} evaluating", self.epoch)),
            Event::EpochEnded { epoch, last_epoch, report, .. } => {
                let line = if self.json {
                    self.json_line(*epoch, *report)
                } else {
                    let name = self.name.as_ref().map_or(String::new(), |name| format!("{name} || "));
                    name + &line(*epoch, *last_epoch, *report)
                };
                self.untold = Some(line);
                return;
            }
            Event::Saving => return,
            Event::Saved { checkpoint, asked: true } => self.say(&format!("saved {}", checkpoint.display())),
            Event::Saved { .. } => {}
            Event::Warning { message } => self.say(&format!("warning: {message}")),
        }
        self.tell();
    }

    /// Prints the line of the epoch that has ended, if it has not been told.
    fn tell(&mut self) {
        if let Some(line) = self.untold.take() {
            self.bar.suspend(|| screen::report(&line));
        }
    }

    /// A line on stderr.
    fn say(&self, line: &str) {
        let name = self.name.as_ref().map_or(String::new(), |name| format!("{name}: "));
        // Not the bar's own printing, which is silent where stderr is a file.
        self.bar.suspend(|| screen::err(format_args!("{name}{line}")));
    }

    /// Takes the bar away and says how long it took.
    pub(crate) fn finish(&mut self) {
        self.tell();
        self.bar.finish_and_clear();
        let (tokens, rate) = (HumanCount(self.tokens), HumanCount(self.tokens_per_second() as u64));
        let time = HumanDuration(self.begun.elapsed());
        self.say(&format!("trained for {time}: {tokens} tokens, {rate} a second"));
    }

    fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.training.as_secs_f64().max(f64::EPSILON)
    }

    fn json_line(&self, epoch: u64, report: EpochReport) -> String {
        let mut line = serde_json::json!({ "epoch": epoch });
        if let Some(name) = &self.name {
            line["run"] = name.as_str().into();
        }
        let object = line.as_object_mut().expect("an object");
        let told = serde_json::to_value(report).expect("numbers are JSON");
        object.extend(told.as_object().expect("a struct").clone());
        line["seconds"] = self.begun.elapsed().as_secs_f64().into();
        line["tokens_per_s"] = self.tokens_per_second().into();
        line.to_string()
    }
}

/// A style in whose template `{left}` is the time left.
pub(crate) fn with_time_left(style: ProgressStyle) -> ProgressStyle {
    style.with_key("left", |state: &ProgressState, text: &mut dyn fmt::Write| {
        text.write_str(&time_left(state.pos(), state.eta())).expect("a String takes all");
    })
}

/// What a bar says about the time left: before the first step nothing is known of it.
fn time_left(steps: u64, estimate: Duration) -> String {
    if steps == 0 { "estimating".to_owned() } else { format!("{:#} left", HumanDuration(estimate)) }
}

/// The ancestor's line, and the two losses once more in bits a character.
fn line(epoch: u64, last_epoch: u64, report: EpochReport) -> String {
    let EpochReport { train_loss, eval_loss, train_bits, eval_bits, learning_rate, .. } = report;
    let lr = scientific(learning_rate);
    let (train, eval) = (train_bits.per_character, eval_bits.per_character);
    format!(
        "Epoch: {epoch}/{last_epoch} || Train loss: {train_loss:.4} || Eval loss: {eval_loss:.4} || lr: {lr} || \
         bits per character: {train:.4}, {eval:.4}"
    )
}

/// A number as `1.0000e-03`, with two digits of exponent at least.
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
    fn an_epoch_is_told_as_the_ancestor_tells_it() {
        let bits = |per_character| Bits { per_character, per_byte: 9.0 };
        let (train_bits, eval_bits) = (bits(1.78102), bits(2.10156));
        let report = EpochReport {
            train_loss: 1.23454,
            eval_loss: 1.45666,
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
        assert_eq!(line(3, 100, report), want);
    }
}
