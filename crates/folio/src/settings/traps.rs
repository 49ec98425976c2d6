//! Settings that are valid but rarely intended.

use super::Settings;
use crate::optim::OptimizerKind;
use crate::schedule::{ScheduleKind, Unit};

/// A valid setting that has an unexpected effect, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trap {
    /// The setting's name, such as `warmup_steps`.
    pub field: &'static str,
    /// What happens and what to do. Other settings are in backticks.
    pub reason: String,
}

impl Trap {
    fn new(field: &'static str, reason: String) -> Self {
        Self { field, reason }
    }
}

/// The settings that a constant schedule ignores. The last two are used by lines to a final dropout or weight decay.
const OF_A_SCHEDULE: [&str; 6] = [
    "cosine_final_lr",
    "cosine_T_mult",
    "cosine_lr_restart_decay",
    "wsd_decay",
    "cosine_T_max",
    "lr_schedule_unit",
];
/// Those that a cosine without restarts ignores.
const OF_OTHERS: [&str; 3] = ["cosine_T_mult", "cosine_lr_restart_decay", WSD_DECAY];
/// Those that wsd ignores.
const OF_RESTARTS: [&str; 2] = ["cosine_T_mult", "cosine_lr_restart_decay"];
/// The one that only wsd uses.
const WSD_DECAY: &str = "wsd_decay";
/// The setting that has no effect without teachers.
const OF_TEACHERS: &str = "distill_weight";
/// The settings that AdamW ignores.
const OF_MUON: [&str; 2] = ["muon_learning_rate", "muon_momentum"];

impl Settings {
    /// The traps in these settings, at most one of each kind.
    ///
    /// `steps_per_epoch` comes from [`Dataset::steps_per_epoch`](crate::data::Dataset::steps_per_epoch).
    ///
    /// ```
    /// use folio::schedule::{ScheduleKind, Unit};
    /// use folio::settings::Settings;
    /// let by_step =
    ///     Settings { lr_schedule: ScheduleKind::Cosine, lr_schedule_unit: Unit::Step, ..Settings::default() };
    /// assert_eq!(by_step.traps(100)[0].field, "cosine_T_max");
    /// assert_eq!(Settings { cosine_t_max: 1000, ..by_step }.traps(100), []);
    /// ```
    pub fn traps(&self, steps_per_epoch: u64) -> Vec<Trap> {
        let steps = self.scheduled_steps(steps_per_epoch);
        let falls = self.lr_schedule != ScheduleKind::Const;
        let mut traps = Vec::new();
        traps.extend(self.short_period(steps, steps_per_epoch));
        if self.warmup_steps > 0 && self.warmup_steps >= steps {
            let reason = format!(
                "{} warm-up steps in a run of {steps}: the learning rate does not reach its peak before the last step; \
                 use fewer",
                self.warmup_steps
            );
            traps.push(Trap::new("warmup_steps", reason));
        }
        if falls && self.cosine_final_lr > self.learning_rate {
            let (floor, peak) = (self.cosine_final_lr, self.learning_rate);
            let reason = format!(
                "the floor {floor:e} is above the peak `learning_rate {peak:e}`, so the learning rate rises; use a lower \
                 floor"
            );
            traps.push(Trap::new("cosine_final_lr", reason));
        }
        traps
    }

    /// The settings among those `given`, by name, that this run ignores: without teachers, or else by its schedule, or else by its
    /// optimizer.
    pub fn ignored(&self, given: &[&str]) -> Option<Trap> {
        if self.teachers.is_none() && given.contains(&OF_TEACHERS) {
            let reason = "has no effect without teachers; add `teachers`";
            return Some(Trap::new(OF_TEACHERS, reason.to_owned()));
        }
        let (ignored, way_out): (&[&'static str], _) = match self.lr_schedule {
            ScheduleKind::Const if self.has_lines() => (&OF_A_SCHEDULE[..4], "cosine"),
            ScheduleKind::Const => (&OF_A_SCHEDULE, "cosine"),
            ScheduleKind::Cosine => (&OF_OTHERS, "cosine_warm_restarts"),
            ScheduleKind::CosineWarmRestarts => (&[WSD_DECAY], "wsd"),
            ScheduleKind::Wsd => (&OF_RESTARTS, "cosine_warm_restarts"),
        };
        let schedule = has_no_effect(ignored, given, ("lr_schedule", self.lr_schedule.name()), |first| {
            if first == WSD_DECAY { "wsd" } else { way_out }
        });
        schedule.or_else(|| match self.optimizer {
            OptimizerKind::AdamW => has_no_effect(&OF_MUON, given, ("optimizer", "adamw"), |_| "muon"),
            OptimizerKind::Muon => None,
        })
    }

    /// Whether dropout or weight decay changes over the run.
    fn has_lines(&self) -> bool {
        self.dropout_final.is_some() || self.weight_decay_final.is_some()
    }

    /// The optimizer steps of this run that the schedule counts.
    fn scheduled_steps(&self, steps_per_epoch: u64) -> u64 {
        let restarts = self.restart_schedule || self.weights_only;
        let before = if restarts { self.from_checkpoint_step.unwrap_or(0) } else { 0 };
        let epochs = self.last_epoch().saturating_sub(before);
        let all = epochs.saturating_mul(steps_per_epoch);
        let most = self
            .max_steps
            .map_or(u64::MAX, |most| most.saturating_sub(before.saturating_mul(steps_per_epoch)));
        all.min(most)
    }

    /// A cosine that rises again before the run ends, or that restarts every few steps; other schedules of another length than the
    /// run.
    fn short_period(&self, steps: u64, steps_per_epoch: u64) -> Option<Trap> {
        let (length, unit) = match self.lr_schedule_unit {
            Unit::Epoch => (steps.div_ceil(steps_per_epoch.max(1)), "epochs"),
            Unit::Step => (steps, "steps"),
        };
        let period = self.cosine_t_max;
        let reason = match self.lr_schedule {
            // The last rate is at e = length - 1.
            ScheduleKind::Cosine if period.saturating_add(1) < length => format!(
                "{period}: the learning rate reaches its floor after {period} {unit} and then rises again, in a run of \
                 {length} {unit}; use {length}"
            ),
            ScheduleKind::CosineWarmRestarts
                if self.lr_schedule_unit == Unit::Step
                    && period == Self::default().cosine_t_max
                    && period < length =>
            {
                format!(
                    "{period}, the default, means steps here: the learning rate restarts after {period} of {length} \
                     steps; use more"
                )
            }
            ScheduleKind::Wsd if period.saturating_add(1) < length => format!(
                "{period}: the learning rate stays at its final value after {period} {unit}, in a run of {length} {unit}; use \
                 {length}"
            ),
            ScheduleKind::Wsd if length as f64 <= (1.0 - self.wsd_decay) * period as f64 => format!(
                "{period}: the run ends after {length} {unit}, before the learning rate decays; use {length}"
            ),
            _ => self.other_line(length, unit)?,
        };
        Some(Trap::new("cosine_T_max", reason))
    }
}

impl Settings {
    /// A line to a final dropout or weight decay that is longer or shorter than the run.
    fn other_line(&self, length: u64, unit: &str) -> Option<String> {
        let period = self.cosine_t_max;
        let names = match (self.dropout_final, self.weight_decay_final) {
            (Some(_), Some(_)) => "`dropout_final` and `weight_decay_final` are",
            (Some(_), None) => "`dropout_final` is",
            (None, Some(_)) => "`weight_decay_final` is",
            (None, None) => return None,
        };
        if period == length {
            return None;
        }
        let what = if period < length {
            format!("{period}: {names} reached after {period} {unit}, in a run of {length} {unit}")
        } else {
            format!("{period}: {names} not reached, because the run ends after {length} of {period} {unit}")
        };
        Some(match self.lr_schedule {
            ScheduleKind::CosineWarmRestarts => {
                format!("{what}; use `lr_schedule cosine` and {length}, or leave out what is final")
            }
            _ => format!("{what}; use {length}"),
        })
    }
}

/// The settings among those `given` that have no effect with the `value` of the `setting` that decides it. `way_out` is another value
/// of it, with which the first of them has an effect.
fn has_no_effect(
    ignored: &[&'static str],
    given: &[&str],
    (setting, value): (&str, &str),
    way_out: impl Fn(&str) -> &'static str,
) -> Option<Trap> {
    let mut names = ignored.iter().copied().filter(|name| given.contains(name));
    let first = names.next()?;
    let others: String = names.map(|name| format!(", nor has `{name}`")).collect();
    let way_out = way_out(first);
    let reason = format!("has no effect with `{setting} {value}`{others}; add `{setting} {way_out}`");
    Some(Trap::new(first, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks the fields of the traps of a run of 5 epochs of 100 steps.
    #[track_caller]
    fn check(change: impl FnOnce(&mut Settings), want: &[&str]) {
        let mut settings = Settings { num_epochs: 5, ..Settings::default() };
        change(&mut settings);
        let traps = settings.traps(100);
        let fields: Vec<&str> = traps.iter().map(|trap| trap.field).collect();
        assert_eq!(fields, want, "{traps:?}");
        assert!(traps.iter().all(|trap| !trap.reason.contains('\n')), "{traps:?}");
    }

    fn cosine(settings: &mut Settings, unit: Unit, period: u64) {
        settings.lr_schedule = ScheduleKind::Cosine;
        settings.lr_schedule_unit = unit;
        settings.cosine_t_max = period;
    }

    #[test]
    fn a_cosine_must_not_rise_again() {
        let t_max: &[&str] = &["cosine_T_max"];
        check(|_| {}, &[]);
        check(|run| cosine(run, Unit::Step, 10), t_max);
        check(|run| cosine(run, Unit::Step, 498), t_max);
        for period in [499, 500, 5000] {
            check(|run| cosine(run, Unit::Step, period), &[]);
        }
        check(|run| cosine(run, Unit::Epoch, 10), &[]);
        check(|run| cosine(run, Unit::Epoch, 3), t_max);
        // The run's end counts, whether num_epochs or max_steps sets it.
        check(|run| (cosine(run, Unit::Step, 40), run.max_steps = Some(40)).0, &[]);
        check(|run| (cosine(run, Unit::Step, 40), run.max_steps = Some(50)).0, t_max);
        // A continued run counts the earlier epochs, unless its schedule restarts.
        let continues = |restart: bool| {
            move |run: &mut Settings| {
                cosine(run, Unit::Epoch, 5);
                run.from_checkpoint_step = Some(20);
                run.restart_schedule = restart;
            }
        };
        check(continues(false), t_max);
        check(continues(true), &[]);
    }

    #[test]
    fn restarts_by_step_need_a_longer_period_than_the_default() {
        let restarts = |unit: Unit, period: u64| {
            move |run: &mut Settings| {
                cosine(run, unit, period);
                run.lr_schedule = ScheduleKind::CosineWarmRestarts;
            }
        };
        check(restarts(Unit::Step, 10), &["cosine_T_max"]);
        check(restarts(Unit::Step, 50), &[]);
        check(restarts(Unit::Epoch, 1), &[]);
    }

    #[test]
    fn the_warm_up_must_end_before_the_run() {
        check(|run| run.warmup_steps = 499, &[]);
        check(|run| run.warmup_steps = 500, &["warmup_steps"]);
        check(|run| (run.warmup_steps, run.max_steps) = (50, Some(40)), &["warmup_steps"]);
    }

    #[test]
    fn the_floor_must_not_be_above_the_peak() {
        let floor = |kind: ScheduleKind, floor: f64| {
            move |run: &mut Settings| (run.lr_schedule, run.cosine_final_lr) = (kind, floor)
        };
        check(floor(ScheduleKind::Const, 1.0), &[]);
        check(floor(ScheduleKind::Cosine, 1e-3), &[]);
        check(floor(ScheduleKind::Cosine, 2e-3), &["cosine_final_lr"]);
        check(floor(ScheduleKind::CosineWarmRestarts, 2e-3), &["cosine_final_lr"]);
    }

    #[test]
    fn wsd_and_lines_must_be_as_long_as_the_run() {
        let wsd = |period: u64| {
            move |run: &mut Settings| {
                cosine(run, Unit::Step, period);
                run.lr_schedule = ScheduleKind::Wsd;
            }
        };
        // 625 steps begin to decay after 500.
        for (period, want) in [(498, true), (499, false), (500, false), (624, false), (625, true)] {
            check(wsd(period), if want { &["cosine_T_max"] } else { &[] });
        }
        let line = |period: u64| {
            move |run: &mut Settings| {
                cosine(run, Unit::Step, period);
                run.lr_schedule = ScheduleKind::Const;
                run.dropout_final = Some(0.0);
            }
        };
        for (period, want) in [(498, true), (499, true), (500, false), (501, true)] {
            check(line(period), if want { &["cosine_T_max"] } else { &[] });
        }
        for kind in [ScheduleKind::Cosine, ScheduleKind::CosineWarmRestarts, ScheduleKind::Wsd] {
            let with_line = |period: u64| {
                move |run: &mut Settings| {
                    line(period)(run);
                    run.lr_schedule = kind;
                }
            };
            check(with_line(500), &[]);
            check(with_line(510), &["cosine_T_max"]);
        }
        let both = Settings { num_epochs: 5, weight_decay_final: Some(0.0), ..Settings::default() };
        let reason = |settings: &Settings| settings.traps(100)[0].reason.clone();
        assert_eq!(
            reason(&both),
            "10: `weight_decay_final` is not reached, because the run ends after 5 of 10 epochs; use 5"
        );
        let both = Settings {
            dropout_final: Some(0.0),
            cosine_t_max: 2,
            lr_schedule: ScheduleKind::CosineWarmRestarts,
            ..both
        };
        assert_eq!(
            reason(&both),
            "2: `dropout_final` and `weight_decay_final` are reached after 2 epochs, in a run of 5 epochs; use \
             `lr_schedule cosine` and 5, or leave out what is final"
        );
    }

    #[test]
    fn settings_of_another_optimizer_and_of_lines_are_told_from_others() {
        let check = |settings: Settings, given: &[&str], want: Option<&str>| {
            let trap = settings.ignored(given).map(|trap| format!("{}: {}", trap.field, trap.reason));
            assert_eq!(trap.as_deref(), want);
        };
        let default = Settings::default;
        let of_muon = ["muon_momentum", "muon_learning_rate"];
        check(
            default(),
            &of_muon,
            Some(
                "muon_learning_rate: has no effect with `optimizer adamw`, nor has `muon_momentum`; add `optimizer muon`",
            ),
        );
        check(Settings { optimizer: OptimizerKind::Muon, ..default() }, &of_muon, None);
        let line = Settings { weight_decay_final: Some(0.0), ..default() };
        check(line, &["cosine_T_max", "lr_schedule_unit", "weight_decay_final"], None);
        let wsd = "wsd_decay: has no effect with `lr_schedule const`; add `lr_schedule wsd`";
        check(default(), &["wsd_decay"], Some(wsd));
        check(Settings { lr_schedule: ScheduleKind::Wsd, ..default() }, &["wsd_decay", "cosine_T_max"], None);
    }

    #[test]
    fn settings_without_effect_are_reported_with_a_schedule_that_uses_them() {
        let check = |kind: ScheduleKind, given: &[&str], want: Option<&str>| {
            let settings = Settings { lr_schedule: kind, ..Settings::default() };
            let trap = settings.ignored(given).map(|trap| format!("{}: {}", trap.field, trap.reason));
            assert_eq!(trap.as_deref(), want);
        };
        check(ScheduleKind::Const, &["learning_rate", "seed"], None);
        check(
            ScheduleKind::Const,
            &["cosine_T_max", "cosine_final_lr"],
            Some(
                "cosine_final_lr: has no effect with `lr_schedule const`, nor has `cosine_T_max`; add \
                 `lr_schedule cosine`",
            ),
        );
        check(ScheduleKind::Cosine, &["cosine_T_max"], None);
        check(
            ScheduleKind::Cosine,
            &["cosine_T_mult"],
            Some(
                "cosine_T_mult: has no effect with `lr_schedule cosine`; add `lr_schedule cosine_warm_restarts`",
            ),
        );
        check(ScheduleKind::CosineWarmRestarts, &["cosine_T_mult"], None);
    }
}
