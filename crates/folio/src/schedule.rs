//! The learning rate over time.
//!
//! With e counting from 0 in epochs (or in optimizer steps, see [`Unit`]):
//!
//! ```text
//! const                 lr
//! cosine                final + (lr - final) (1 + cos(pi e / T_max)) / 2
//! cosine_warm_restarts  decay^restarts (final + (lr - final) (1 + cos(pi T_cur / T)) / 2)
//! ```
//! Loshchilov and Hutter 2017, "SGDR", equation 5; T_cur counts since the last restart and T, first T_max,
//! grows by T_mult at each. PyTorch's `CosineAnnealingLR` and `CosineAnnealingWarmRestarts`.

use std::f64::consts::PI;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// How the rate moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", try_from = "String")]
pub enum ScheduleKind {
    /// It does not.
    #[default]
    Const,
    /// Half a cosine down to the final rate in T_max, and up again if training goes on.
    Cosine,
    /// Half cosines that start again at the top, decayed at each restart.
    CosineWarmRestarts,
}

/// What a schedule counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", try_from = "String")]
pub enum Unit {
    /// Epochs: one rate an epoch, as the ancestor has it.
    #[default]
    Epoch,
    /// Optimizer steps: a new rate at every step.
    Step,
}

impl TryFrom<String> for ScheduleKind {
    type Error = Error;

    fn try_from(name: String) -> Result<Self, Error> {
        name.parse()
    }
}

impl FromStr for ScheduleKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "const" => Ok(Self::Const),
            "cosine" => Ok(Self::Cosine),
            "cosine_warm_restarts" => Ok(Self::CosineWarmRestarts),
            _ => Err(Error::unknown_name("schedule", name, &["const", "cosine", "cosine_warm_restarts"])),
        }
    }
}

impl TryFrom<String> for Unit {
    type Error = Error;

    fn try_from(name: String) -> Result<Self, Error> {
        name.parse()
    }
}

impl FromStr for Unit {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "epoch" => Ok(Self::Epoch),
            "step" => Ok(Self::Step),
            _ => Err(Error::unknown_name("schedule unit", name, &["epoch", "step"])),
        }
    }
}

/// A schedule with its numbers.
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
/// };
/// // Two epochs at full height, then four at half of it.
/// assert_eq!([0, 1, 2, 4].map(|e| schedule.rate(e)), [1.0, 0.5, 0.5, 0.25]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// How the rate moves.
    pub kind: ScheduleKind,
    /// lr, the peak.
    pub learning_rate: f64,
    /// final, the floor of the cosine.
    pub final_rate: f64,
    /// T_max, half a period.
    pub period: u64,
    /// T_mult, by which the period grows at each restart.
    pub period_growth: u64,
    /// The factor on the whole rate at each restart.
    pub restart_decay: f64,
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
        }
    }

    fn cosine(&self, now: u64, period: u64) -> f64 {
        let phase = PI * now as f64 / period as f64;
        self.final_rate + (self.learning_rate - self.final_rate) * (1.0 + phase.cos()) / 2.0
    }
}

/// The factor of a linear warm-up over `warmup_steps` at optimizer step `step`, counting from 0: 1 / n, 2 / n,
/// … 1 (Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 2.2).
pub fn warmup_factor(step: u64, warmup_steps: u64) -> f64 {
    if step < warmup_steps { (step + 1) as f64 / warmup_steps as f64 } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rule of the interface, played out epoch by epoch with counters.
    fn played_out(schedule: &Schedule, epochs: u64) -> Vec<f64> {
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
                    };
                    let rates: Vec<f64> = (0..200).map(|epoch| schedule.rate(epoch)).collect();
                    // The same operations in the same order give the same bits.
                    assert_eq!(rates, played_out(&schedule, 200), "{schedule:?}");
                }
            }
        }
    }

    #[test]
    fn cosine_goes_from_the_peak_to_the_floor_and_back() {
        let schedule = Schedule {
            kind: ScheduleKind::Cosine,
            learning_rate: 3.0,
            final_rate: 1.0,
            period: 4,
            period_growth: 1,
            restart_decay: 1.0,
        };
        for (epoch, want) in [(0, 3.0), (2, 2.0), (4, 1.0), (8, 3.0)] {
            // The cosine is off by at most an eps of 1, the rate by lr - final times half of that.
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
            };
            for e in 0..200 {
                let wave = (1.0 + (PI * e as f64 / period as f64).cos()) / 2.0;
                // The formula's product divided late or early: a rounding of the peak.
                let difference = schedule.rate(e) - (floor + (lr - floor) * wave);
                assert!(difference.abs() <= f64::EPSILON * lr, "epoch {e} of {period}: {difference:e}");
            }
        }
    }

    #[test]
    fn warm_up_rises_to_one() {
        assert_eq!([0, 1, 3, 4].map(|step| warmup_factor(step, 4)), [0.25, 0.5, 1.0, 1.0]);
        assert_eq!(warmup_factor(0, 0), 1.0);
    }

    #[test]
    fn a_misspelt_schedule_is_told_its_nearest_name() {
        let message = "cosin".parse::<ScheduleKind>().unwrap_err().to_string();
        assert!(message.contains("did you mean 'cosine'?"), "{message}");
    }
}
