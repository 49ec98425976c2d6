//! The state that the dashboard displays, built from updates.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use folio::model::Precision;
use folio::run_dir::sub_run_name;
use folio::train::Event;

use super::Update;
use super::curve::DownsampledCurve;

/// Number of warnings that are kept.
const WARNINGS_MAX: usize = 3;

/// The state of a run or a sweep.
pub(super) struct State {
    pub(super) title: String,
    /// False with `--no_save`.
    pub(super) saves: bool,
    pub(super) runs: BTreeMap<usize, Run>,
    /// The run that is displayed: the one that started last among those that train.
    pub(super) shown: usize,
    /// The ranked table of a sweep.
    pub(super) table: Option<String>,
    /// The latest warnings, newest first.
    pub(super) warnings: VecDeque<String>,
    pub(super) last_save: Option<LastSave>,
}

/// The latest checkpoint.
pub(super) struct LastSave {
    pub(super) checkpoint: String,
    pub(super) at: Instant,
}

/// One run.
pub(super) struct Run {
    pub(super) phase: Phase,
    pub(super) parameters: u64,
    pub(super) precision: Precision,
    pub(super) epoch: u64,
    pub(super) last_epoch: u64,
    /// Optimizer steps since the beginning of the run, including those before it was resumed.
    pub(super) step: u64,
    /// Steps taken since this process started, out of `steps`.
    pub(super) taken: u64,
    pub(super) steps: u64,
    pub(super) start: Instant,
    last_event: Instant,
    /// Time spent in optimizer steps.
    step_time: Duration,
    /// Training tokens processed in `step_time`.
    tokens: u64,
    pub(super) loss: f64,
    pub(super) gradient_norm: f64,
    pub(super) learning_rate: f64,
    pub(super) train_losses: DownsampledCurve,
    pub(super) eval_losses: DownsampledCurve,
    pub(super) learning_rates: DownsampledCurve,
    pub(super) best: Option<Best>,
    pub(super) sample: Option<String>,
}

/// The current activity of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Starting,
    /// The teachers' probabilities are being computed.
    Teaching,
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
            last_save: None,
        }
    }

    /// Applies an update that was sent at a time.
    pub(super) fn apply(&mut self, update: Update, at: Instant) {
        match update {
            Update::History { run, evaluations } => {
                let run = self.run(run, at);
                evaluations.into_iter().for_each(|(epoch, step, loss)| run.note_eval(epoch, step, loss));
            }
            Update::Event { run, event } => self.apply_event(run, &event, at),
            Update::Ended { run: ended } => {
                self.run(ended, at).phase = Phase::Ended;
                let trains = self.runs.iter().rev().find(|(_, run)| run.phase != Phase::Ended);
                self.shown = trains.map_or(self.shown, |(&run, _)| run);
            }
            Update::Table(table) => self.table = Some(table),
        }
    }

    fn apply_event(&mut self, number: usize, event: &Event, at: Instant) {
        let name = if self.table.is_some() { format!("{}: ", sub_run_name(number)) } else { String::new() };
        match event {
            Event::Started { .. } => self.shown = number,
            Event::Saved { checkpoint, .. } => {
                let checkpoint = checkpoint.file_name().unwrap_or_default().to_string_lossy();
                self.last_save = Some(LastSave { checkpoint: format!("{name}{checkpoint}"), at });
            }
            Event::Warning { message } => self.warn(format!("{name}{message}")),
            Event::Step(report) if report.skipped => {
                let (step, loss) = (report.step, report.loss);
                self.warn(format!("{name}skipped step {step}: loss {loss}"));
            }
            _ => {}
        }
        self.run(number, at).apply_event(event, at);
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
            start: now,
            last_event: now,
            step_time: Duration::ZERO,
            tokens: 0,
            loss: f64::NAN,
            gradient_norm: f64::NAN,
            learning_rate: f64::NAN,
            train_losses: DownsampledCurve::default(),
            eval_losses: DownsampledCurve::default(),
            learning_rates: DownsampledCurve::default(),
            best: None,
            sample: None,
        }
    }

    fn apply_event(&mut self, event: &Event, at: Instant) {
        let elapsed = at.saturating_duration_since(self.last_event);
        self.last_event = at;
        match event {
            Event::Started { step, steps, parameters, precision, .. } => {
                (self.step, self.steps, self.parameters, self.precision) =
                    (*step, *steps, *parameters, *precision);
                (self.taken, self.start, self.step_time, self.tokens) = (0, at, Duration::ZERO, 0);
                let curves = [&mut self.train_losses, &mut self.eval_losses, &mut self.learning_rates];
                curves.into_iter().for_each(|curve| curve.truncate(*step));
                self.phase = Phase::Training;
            }
            Event::EpochStarted { epoch, last_epoch, .. } => {
                (self.epoch, self.last_epoch, self.phase) = (*epoch, *last_epoch, Phase::Training);
            }
            Event::Step(report) => {
                self.phase = Phase::Training;
                self.step_time += elapsed;
                self.tokens += report.tokens;
                (self.step, self.taken) = (report.step, self.taken + 1);
                self.loss = f64::from(report.loss);
                (self.gradient_norm, self.learning_rate) = (report.gradient_norm, report.learning_rate);
                self.train_losses.push(report.step, self.loss);
                self.learning_rates.push(report.step, report.learning_rate);
            }
            Event::Teachers { .. } => self.phase = Phase::Teaching,
            Event::Evaluating => self.phase = Phase::Evaluating,
            Event::EpochEnded { epoch, report, sample, .. } => {
                self.note_eval(*epoch, report.step, report.eval_loss);
                if sample.is_some() {
                    self.sample.clone_from(sample);
                }
            }
            Event::Evaluated { epoch, evaluation } => {
                self.note_eval(*epoch, evaluation.step, evaluation.eval_loss);
            }
            Event::Saving => self.phase = Phase::Saving,
            Event::Saved { .. } | Event::Warning { .. } | Event::StoppedEarly { .. } => {
                self.phase = Phase::Training;
            }
            Event::Ranks { .. } => {}
        }
    }

    fn note_eval(&mut self, epoch: u64, step: u64, loss: f64) {
        self.eval_losses.push(step, loss);
        if self.best.is_none_or(|best| loss < best.loss) {
            self.best = Some(Best { loss, epoch, step });
        }
    }

    /// Training tokens per second, not counting evaluation and saving; `None` before the first step.
    pub(super) fn tokens_per_second(&self) -> Option<f64> {
        let seconds = self.step_time.as_secs_f64();
        (seconds > 0.0).then(|| self.tokens as f64 / seconds)
    }

    /// Estimated time until the last step, from the mean time per step so far.
    pub(super) fn time_left(&self, now: Instant) -> Option<Duration> {
        let passed = now.saturating_duration_since(self.start).as_secs_f64();
        let left = self.steps.saturating_sub(self.taken) as f64;
        let seconds = passed / self.taken as f64 * left;
        Duration::try_from_secs_f64(seconds).ok().filter(|_| self.taken > 0)
    }

    /// The fraction of steps that are done.
    pub(super) fn fraction_done(&self) -> f64 {
        if self.steps == 0 { 1.0 } else { (self.taken as f64 / self.steps as f64).min(1.0) }
    }
}
