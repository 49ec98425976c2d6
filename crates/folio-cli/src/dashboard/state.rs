//! What the dashboard knows.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use folio::model::Precision;
use folio::run_dir::sub_run_name;
use folio::train::Event;

use super::Told;
use super::curve::Curve;

/// Warnings that are remembered.
const WARNINGS_MAX: usize = 3;

/// All that was told.
pub(super) struct State {
    pub(super) title: String,
    /// Whether there is somewhere to save.
    pub(super) saves: bool,
    pub(super) runs: BTreeMap<usize, Run>,
    /// The run that is shown: the one that has begun last of those that train.
    pub(super) shown: usize,
    /// The runs of a sweep in order.
    pub(super) table: Option<String>,
    /// The last warnings, the newest first.
    pub(super) warnings: VecDeque<String>,
    /// The checkpoint that was written last, and when.
    pub(super) saved: Option<(String, Instant)>,
}

/// One run.
pub(super) struct Run {
    pub(super) phase: Phase,
    pub(super) parameters: u64,
    pub(super) precision: Precision,
    pub(super) epoch: u64,
    pub(super) last_epoch: u64,
    /// Steps of its history.
    pub(super) step: u64,
    /// Steps taken here, and those it had to take when it began here.
    pub(super) taken: u64,
    pub(super) steps: u64,
    pub(super) begun: Instant,
    last_event: Instant,
    /// Time spent in steps, and tokens learned from in it.
    training: Duration,
    tokens: u64,
    pub(super) loss: f64,
    pub(super) gradient_norm: f64,
    pub(super) learning_rate: f64,
    pub(super) train_losses: Curve,
    pub(super) eval_losses: Curve,
    pub(super) learning_rates: Curve,
    pub(super) best: Option<Best>,
    pub(super) sample: Option<String>,
}

/// What a run does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Starting,
    Training,
    Evaluating,
    Saving,
    Ended,
}

/// The lowest evaluation loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Best {
    pub(super) loss: f64,
    pub(super) epoch: u64,
    pub(super) step: u64,
}

impl State {
    pub(super) fn new(title: String, saves: bool, now: Instant) -> Self {
        Self {
            title,
            saves,
            runs: BTreeMap::from([(0, Run::new(now))]),
            shown: 0,
            table: None,
            warnings: VecDeque::new(),
            saved: None,
        }
    }

    /// Takes what was told at a time.
    pub(super) fn take(&mut self, told: Told, at: Instant) {
        match told {
            Told::History { run, epochs } => {
                let run = self.run(run, at);
                epochs.iter().zip(1..).for_each(|(&(step, loss), epoch)| run.note_eval(epoch, step, loss));
            }
            Told::Event { run, event } => self.take_event(run, &event, at),
            Told::Ended { run: ended } => {
                self.run(ended, at).phase = Phase::Ended;
                let trains = self.runs.iter().rev().find(|(_, run)| run.phase != Phase::Ended);
                self.shown = trains.map_or(self.shown, |(&run, _)| run);
            }
            Told::Table(table) => self.table = Some(table),
        }
    }

    fn take_event(&mut self, number: usize, event: &Event, at: Instant) {
        let name = if self.table.is_some() { format!("{}: ", sub_run_name(number)) } else { String::new() };
        match event {
            Event::Started { .. } => self.shown = number,
            Event::Saved { checkpoint, .. } => {
                let checkpoint = checkpoint.file_name().unwrap_or_default().to_string_lossy();
                self.saved = Some((format!("{name}{checkpoint}"), at));
            }
            Event::Warning { message } => self.warn(format!("{name}{message}")),
            Event::Step(report) if report.skipped => {
                let (step, loss) = (report.step, report.loss);
                self.warn(format!("{name}step {step} is skipped: loss {loss}"));
            }
            _ => {}
        }
        self.run(number, at).take_event(event, at);
    }

    fn warn(&mut self, warning: String) {
        self.warnings.push_front(warning);
        self.warnings.truncate(WARNINGS_MAX);
    }

    fn run(&mut self, run: usize, at: Instant) -> &mut Run {
        self.runs.entry(run).or_insert_with(|| Run::new(at))
    }
}

impl Run {
    fn new(now: Instant) -> Self {
        Self {
            phase: Phase::Starting,
            parameters: 0,
            precision: Precision::F32,
            epoch: 0,
            last_epoch: 0,
            step: 0,
            taken: 0,
            steps: 0,
            begun: now,
            last_event: now,
            training: Duration::ZERO,
            tokens: 0,
            loss: f64::NAN,
            gradient_norm: f64::NAN,
            learning_rate: f64::NAN,
            train_losses: Curve::default(),
            eval_losses: Curve::default(),
            learning_rates: Curve::default(),
            best: None,
            sample: None,
        }
    }

    fn take_event(&mut self, event: &Event, at: Instant) {
        let elapsed = at.saturating_duration_since(self.last_event);
        self.last_event = at;
        match event {
            Event::Started { step, steps, parameters, precision, .. } => {
                (self.step, self.steps, self.parameters, self.precision) =
                    (*step, *steps, *parameters, *precision);
                (self.taken, self.begun, self.training, self.tokens) = (0, at, Duration::ZERO, 0);
                let curves = [&mut self.train_losses, &mut self.eval_losses, &mut self.learning_rates];
                curves.into_iter().for_each(|curve| curve.go_back_to(*step));
                self.phase = Phase::Training;
            }
            Event::EpochStarted { epoch, last_epoch, .. } => {
                (self.epoch, self.last_epoch, self.phase) = (*epoch, *last_epoch, Phase::Training);
            }
            Event::Step(report) => {
                self.phase = Phase::Training;
                self.training += elapsed;
                self.tokens += report.tokens;
                (self.step, self.taken) = (report.step, self.taken + 1);
                self.loss = f64::from(report.loss);
                (self.gradient_norm, self.learning_rate) = (report.gradient_norm, report.learning_rate);
                self.train_losses.push(report.step, self.loss);
                self.learning_rates.push(report.step, report.learning_rate);
            }
            Event::Evaluating => self.phase = Phase::Evaluating,
            Event::EpochEnded { epoch, report, sample, .. } => {
                self.note_eval(*epoch, report.step, report.eval_loss);
                if sample.is_some() {
                    self.sample.clone_from(sample);
                }
            }
            Event::Saving => self.phase = Phase::Saving,
            Event::Saved { .. } | Event::Warning { .. } => self.phase = Phase::Training,
        }
    }

    fn note_eval(&mut self, epoch: u64, step: u64, loss: f64) {
        self.eval_losses.push(step, loss);
        if self.best.is_none_or(|best| loss < best.loss) {
            self.best = Some(Best { loss, epoch, step });
        }
    }

    /// Tokens a second while it takes steps; none before the first.
    pub(super) fn tokens_per_second(&self) -> Option<f64> {
        let seconds = self.training.as_secs_f64();
        (seconds > 0.0).then(|| self.tokens as f64 / seconds)
    }

    /// The time until its last step, if it goes on as it has gone so far.
    pub(super) fn time_left(&self, now: Instant) -> Option<Duration> {
        let passed = now.saturating_duration_since(self.begun).as_secs_f64();
        let left = self.steps.saturating_sub(self.taken) as f64;
        let seconds = passed / self.taken as f64 * left;
        Duration::try_from_secs_f64(seconds).ok().filter(|_| self.taken > 0)
    }

    /// The share of its steps that it has taken.
    pub(super) fn share(&self) -> f64 {
        if self.steps == 0 { 1.0 } else { (self.taken as f64 / self.steps as f64).min(1.0) }
    }
}
