//! The learning rate over time.
//!
//! With e counting from 0 in epochs (or in optimizer steps, see [`Unit`]):
//!
//! ```text
//! const                 lr
//! cosine                final + (lr - final) (1 + cos(pi e / T_max)) / 2
//! cosine_warm_restarts  decay^restarts (final + (lr - final) (1 + cos(pi T_cur / T)) / 2)
//! wsd                   lr; from T_max - D on final + (lr - final) (T_max - e) / D, with D = decay_share T_max; then final
//! ```
//! Loshchilov and Hutter 2017, "SGDR", equation 5; T_cur counts since the last restart and T, first T_max,
//! grows by T_mult at each. PyTorch's `CosineAnnealingLR` and `CosineAnnealingWarmRestarts`. wsd: warm-up, stable, decay (Hu et al.
//! 2024, "MiniCPM", arXiv 2404.06395), with the linear decay of Hägele et al. 2024 (arXiv 2405.18392).

use std::f64::consts::PI;

use crate::named_enum;

/// The shape of the learning rate over time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScheduleKind {
    /// Constant.
    #[default]
    Const,
    /// Half a cosine down to the final rate in T_max, and up again if training continues.
    Cosine,
    /// Half cosines that restart at the peak, which decays at each restart.
    CosineWarmRestarts,
    /// Constant, then linear to the final rate, which is reached at T_max.
    Wsd,
}

/// The unit of a schedule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unit {
    /// Epochs: one rate per epoch, as in the original project.
    #[default]
    Epoch,
    /// Optimizer steps: a new rate at every step.
    Step,
}

named_enum!(ScheduleKind, "schedule", {
    Const => "const",
    Cosine => "cosine",
    CosineWarmRestarts => "cosine_warm_restarts",
    Wsd => "wsd",
});
named_enum!(Unit, "schedule unit", { Epoch => "epoch", Step => "step" });

/// A learning-rate schedule.
///
/// ```
/// use folio::schedule::{Schedule, ScheduleKind};
/// let schedule = Schedule {
///     kind: ScheduleKind::CosineWarmRestarts,
///     learning_rate: 1.0,
///     final_rate: 0.0,
///     period: 2,
///     period_growth: 2,
///     restart_decay: 0.5,
///     decay_share: 0.2,
/// };
/// // Two epochs from the full peak, then four from half of it.
/// assert_eq!([0, 1, 2, 4].map(|e| schedule.rate(e)), [1.0, 0.5, 0.5, 0.25]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Its shape.
    pub kind: ScheduleKind,
    /// lr: the peak.
    pub learning_rate: f64,
    /// final: the floor of the cosine, and the last rate of wsd.
    pub final_rate: f64,
    /// T_max: half a period, or the length of wsd.
    pub period: u64,
    /// T_mult: the factor by which the period grows at each restart.
    pub period_growth: u64,
    /// The factor on the learning rate at each restart.
    pub restart_decay: f64,
    /// The share of T_max in which wsd decays, above 0.
    pub decay_share: f64,
}

impl Schedule {
    /// The rate at e = `now`.
    ///
    /// # Panics
    /// If `period` or `period_growth` is 0.
    pub fn rate(&self, now: u64) -> f64 {
        assert!(self.period > 0 && self.period_growth > 0, "a period of 0: {self:?}");
        match self.kind {
            ScheduleKind::Const => self.learning_rate,
            ScheduleKind::Cosine => self.cosine(now, self.period),
            ScheduleKind::CosineWarmRestarts => {
                let (mut since_restart, mut period, mut restarts) = (now, self.period, 0i32);
                while since_restart >= period {
                    since_restart -= period;
                    period = period.saturating_mul(self.period_growth);
                    restarts += 1;
                }
                self.restart_decay.powi(restarts) * self.cosine(since_restart, period)
            }
            ScheduleKind::Wsd => self.wsd(now),
        }
    }

    fn wsd(&self, now: u64) -> f64 {
        let left = self.period.saturating_sub(now) as f64 / (self.decay_share * self.period as f64);
        linear(self.final_rate, self.learning_rate, left)
    }

    fn cosine(&self, now: u64, period: u64) -> f64 {
        let phase = PI * now as f64 / period as f64;
        self.final_rate + (self.learning_rate - self.final_rate) * (1.0 + phase.cos()) / 2.0
    }
}

/// The number at `progress` on a straight line from `first`, at 0, to `last`, at 1; from there on `last`.
pub fn linear(first: f64, last: f64, progress: f64) -> f64 {
    if progress < 1.0 { first + (last - first) * progress } else { last }
}

/// The factor of a linear warm-up over `warmup_steps` at optimizer step `step`, counting from 0: 1 / n, 2 / n,
/// … 1 (Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 2.2).
pub fn warmup_factor(step: u64, warmup_steps: u64) -> f64 {
    if step < warmup_steps { (step + 1) as f64 / warmup_steps as f64 } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition of warm restarts, simulated epoch by epoch with counters.
    fn simulated(schedule: &Schedule, epochs: u64) -> Vec<f64> {
        let Schedule { learning_rate: lr, final_rate: floor, .. } = *schedule;
        let (mut t_cur, mut t, mut restarts) = (0, schedule.period, 0);
        let mut rates = Vec::new();
        for _ in 0..epochs {
            if t_cur == t {
                t_cur = 0;
                t *= schedule.period_growth;
                restarts += 1;
            }
            let wave = floor + (lr - floor) * (1.0 + (PI * t_cur as f64 / t as f64).cos()) / 2.0;
            rates.push(schedule.restart_decay.powi(restarts) * wave);
            t_cur += 1;
        }
        rates
    }

    #[test]
    fn warm_restarts_follow_the_rule_at_every_epoch() {
        for period in [1, 2, 7, 10] {
            for period_growth in [1, 2, 3] {
                for restart_decay in [0.5, 1.0, 2.0] {
                    let schedule = Schedule {
                        kind: ScheduleKind::CosineWarmRestarts,
                        learning_rate: 1e-3,
                        final_rate: 1e-6,
                        period,
                        period_growth,
                        restart_decay,
                        decay_share: 0.2,
                    };
                    let rates: Vec<f64> = (0..200).map(|epoch| schedule.rate(epoch)).collect();
                    // The same operations in the same order give the same bits.
                    assert_eq!(rates, simulated(&schedule, 200), "{schedule:?}");
                }
            }
        }
    }

    #[test]
    fn cosine_falls_from_the_peak_to_the_floor_and_rises_again() {
        let schedule = Schedule {
            kind: ScheduleKind::Cosine,
            learning_rate: 3.0,
            final_rate: 1.0,
            period: 4,
            period_growth: 1,
            restart_decay: 1.0,
            decay_share: 0.2,
        };
        for (epoch, want) in [(0, 3.0), (2, 2.0), (4, 1.0), (8, 3.0)] {
            // The cosine is off by at most EPSILON, the rate by half of that times lr - final.
            assert!((schedule.rate(epoch) - want).abs() <= 4.0 * f64::EPSILON, "epoch {epoch}");
        }
        assert_eq!(Schedule { kind: ScheduleKind::Const, ..schedule }.rate(77), 3.0);
    }

    #[test]
    fn cosine_follows_the_formula_at_every_epoch() {
        for period in [1, 2, 7, 10, 300] {
            let (lr, floor) = (1e-3, 1e-6);
            let schedule = Schedule {
                kind: ScheduleKind::Cosine,
                learning_rate: lr,
                final_rate: floor,
                period,
                period_growth: 3,
                restart_decay: 0.5,
                decay_share: 0.2,
            };
            for e in 0..200 {
                let wave = (1.0 + (PI * e as f64 / period as f64).cos()) / 2.0;
                // The division comes first or last: a difference of one rounding of the peak.
                let difference = schedule.rate(e) - (floor + (lr - floor) * wave);
                assert!(difference.abs() <= f64::EPSILON * lr, "epoch {e} of {period}: {difference:e}");
            }
        }
    }

    #[test]
    fn wsd_is_constant_then_linear_then_final() {
        let schedule = |period, decay_share| Schedule {
            kind: ScheduleKind::Wsd,
            learning_rate: 3.0,
            final_rate: 1.0,
            period,
            period_growth: 1,
            restart_decay: 1.0,
            decay_share,
        };
        let rates = |schedule: Schedule| -> Vec<f64> { (0..7).map(|e| schedule.rate(e)).collect() };
        assert_eq!(rates(schedule(5, 0.8)), [3.0, 3.0, 2.5, 2.0, 1.5, 1.0, 1.0]);
        assert_eq!(rates(schedule(4, 1.0)), [3.0, 2.5, 2.0, 1.5, 1.0, 1.0, 1.0]);
        // The decay is shorter than the unit: the rate falls at once.
        assert_eq!(rates(schedule(4, 0.1)), [3.0, 3.0, 3.0, 3.0, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn a_line_ends_at_its_last_number() {
        assert_eq!([0.0, 0.25, 0.75, 1.0, 2.0].map(|at| linear(0.5, 0.0, at)), [0.5, 0.375, 0.125, 0.0, 0.0]);
        assert_eq!([0.0, 0.5, 1.0, 9.0].map(|at| linear(0.0, 0.3, at)), [0.0, 0.15, 0.3, 0.3]);
    }

    #[test]
    fn warm_up_rises_to_one() {
        assert_eq!([0, 1, 3, 4].map(|step| warmup_factor(step, 4)), [0.25, 0.5, 1.0, 1.0]);
        assert_eq!(warmup_factor(0, 0), 1.0);
    }

    #[test]
    fn a_misspelled_schedule_gets_a_suggestion() {
        let message = "cosin".parse::<ScheduleKind>().unwrap_err().to_string();
        assert!(message.contains("did you mean 'cosine'?"), "{message}");
    }
}
