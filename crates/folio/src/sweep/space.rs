//! The values that a search goes through.

use std::fmt::{self, Display};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};
use crate::rng::{Rng, Stream};
use crate::settings::Settings;

/// A value for a setting, or a range to draw values from, written `1e-4..3e-3`, or `1e-4..3e-3:log` to draw its
/// logarithm evenly.
///
/// ```
/// use folio::sweep::Choice;
/// assert_eq!("1e-3".parse(), Ok(Choice::Value(1e-3)));
/// assert_eq!("8..64:log".parse(), Ok(Choice::Range { low: 8_u64, high: 64, log: true }));
/// assert!("64..8".parse::<Choice<u64>>().is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Choice<T> {
    /// This one.
    Value(T),
    /// Any from `low` to `high`, both included.
    Range {
        /// The lowest.
        low: T,
        /// The highest.
        high: T,
        /// Whether the logarithm is drawn evenly, not the value.
        log: bool,
    },
}

/// A number that a setting may be.
pub trait Number: Copy + PartialOrd + FromStr + Display {
    /// What to say when a text is not one.
    const EXPECTED: &'static str;
    /// The number in floating point.
    fn to_f64(self) -> f64;
    /// The nearest number to `x` that is not below 0; of a real one, four digits.
    fn from_f64(x: f64) -> Self;
}

impl Number for f64 {
    const EXPECTED: &'static str = "give a number such as 0.2 or 1e-3";

    fn to_f64(self) -> f64 {
        self
    }

    fn from_f64(x: f64) -> Self {
        // A setting that a person can read and type again.
        format!("{x:.3e}").parse().expect("a number that was just written")
    }
}

impl Number for u64 {
    const EXPECTED: &'static str = "give a whole number from 0 to 9223372036854775807";

    fn to_f64(self) -> f64 {
        self as f64
    }

    fn from_f64(x: f64) -> Self {
        x.round() as u64
    }
}

impl Number for usize {
    const EXPECTED: &'static str = u64::EXPECTED;

    fn to_f64(self) -> f64 {
        self as f64
    }

    fn from_f64(x: f64) -> Self {
        x.round() as usize
    }
}

impl<T: Number> FromStr for Choice<T> {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        // The largest is TOML's, so that every value can stand in a config file.
        let number = |text: &str| {
            let too_large = text.parse::<u64>().is_ok_and(|whole| i64::try_from(whole).is_err());
            text.parse::<T>().ok().filter(|_| !too_large).ok_or_else(|| T::EXPECTED.to_owned())
        };
        let Some((low, rest)) = text.split_once("..") else { return number(text).map(Self::Value) };
        let (high, log) = rest.strip_suffix(":log").map_or((rest, false), |high| (high, true));
        let (low, high) = (number(low)?, number(high)?);
        let ordered = low < high && low.to_f64().is_finite() && high.to_f64().is_finite();
        if !ordered || (log && low.to_f64() <= 0.0) {
            return Err("a range goes from a lower to a higher number, and from above 0 if it ends in :log"
                .to_owned());
        }
        Ok(Self::Range { low, high, log })
    }
}

impl<T: Number> Display for Choice<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) => value.fmt(formatter),
            Self::Range { low, high, log } => {
                write!(formatter, "{low}..{high}{}", if *log { ":log" } else { "" })
            }
        }
    }
}

impl<T: Number + Serialize> Serialize for Choice<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::Value(value) => value.serialize(serializer),
            range => serializer.collect_str(range),
        }
    }
}

impl<'de, T: Number + Deserialize<'de>> Deserialize<'de> for Choice<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "give a number, or a range as in \"1e-4..3e-3:log\"")]
        enum Raw<T> {
            Value(T),
            Range(String),
        }
        match Raw::deserialize(deserializer)? {
            Raw::Value(value) => Ok(Self::Value(value)),
            Raw::Range(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

impl<T: Number> Choice<T> {
    fn draw(self, rng: &mut Rng) -> T {
        let (low, high, log) = match self {
            Self::Value(value) => return value,
            Self::Range { low, high, log } => (low.to_f64(), high.to_f64(), log),
        };
        let share = rng.next_f64();
        let x = if log { low * (high / low).powf(share) } else { low + (high - low) * share };
        T::from_f64(x.clamp(low, high))
    }
}

/// The settings that may take several values. The nesting is that of the fields: the last varies fastest.
#[derive(Clone, Debug, PartialEq)]
pub struct Space {
    /// Tokens a sequence.
    pub block_sizes: Vec<Choice<usize>>,
    /// Sequences a step.
    pub batch_sizes: Vec<Choice<usize>>,
    /// Peak learning rates.
    pub learning_rates: Vec<Choice<f64>>,
    /// Decoupled weight decays.
    pub weight_decays: Vec<Choice<f64>>,
    /// Dropout rates.
    pub dropouts: Vec<Choice<f64>>,
    /// Floors of the cosine.
    pub cosine_final_lr: Vec<Choice<f64>>,
    /// Half periods.
    pub cosine_t_max: Vec<Choice<u64>>,
    /// Growths of the period.
    pub cosine_t_mult: Vec<Choice<u64>>,
    /// Factors at a restart.
    pub cosine_lr_restart_decay: Vec<Choice<f64>>,
}

impl Space {
    /// The space whose only point is `base`.
    pub fn of(base: &Settings) -> Self {
        Self {
            block_sizes: vec![Choice::Value(base.block_size)],
            batch_sizes: vec![Choice::Value(base.batch_size)],
            learning_rates: vec![Choice::Value(base.learning_rate)],
            weight_decays: vec![Choice::Value(base.weight_decay)],
            dropouts: vec![Choice::Value(base.dropout)],
            cosine_final_lr: vec![Choice::Value(base.cosine_final_lr)],
            cosine_t_max: vec![Choice::Value(base.cosine_t_max)],
            cosine_t_mult: vec![Choice::Value(base.cosine_t_mult)],
            cosine_lr_restart_decay: vec![Choice::Value(base.cosine_lr_restart_decay)],
        }
    }

    /// Every combination of the values, laid over `base`, in order.
    ///
    /// ```
    /// use folio::settings::Settings;
    /// use folio::sweep::{Choice, Space};
    /// let base = Settings::default();
    /// let dropouts = [0.0, 0.1, 0.2].map(Choice::Value).to_vec();
    /// let space = Space { batch_sizes: vec![Choice::Value(8), Choice::Value(16)], dropouts, ..Space::of(&base) };
    /// let runs = space.grid(&base)?;
    /// assert_eq!(runs.len(), 6);
    /// assert_eq!((runs[1].batch_size, runs[1].dropout), (8, 0.1));
    /// # Ok::<(), folio::error::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Setting`] if there is a range, or a setting without a value.
    pub fn grid(&self, base: &Settings) -> Result<Vec<Settings>> {
        let mut runs = vec![base.clone()];
        vary(&mut runs, "--block_sizes", &self.block_sizes, |run, value| run.block_size = value)?;
        vary(&mut runs, "--batch_sizes", &self.batch_sizes, |run, value| run.batch_size = value)?;
        vary(&mut runs, "--learning_rates", &self.learning_rates, |run, value| run.learning_rate = value)?;
        vary(&mut runs, "--weight_decays", &self.weight_decays, |run, value| run.weight_decay = value)?;
        vary(&mut runs, "--dropouts", &self.dropouts, |run, value| run.dropout = value)?;
        vary(&mut runs, "--cosine_final_lr", &self.cosine_final_lr, |run, value| {
            run.cosine_final_lr = value
        })?;
        vary(&mut runs, "--cosine_T_max", &self.cosine_t_max, |run, value| run.cosine_t_max = value)?;
        vary(&mut runs, "--cosine_T_mult", &self.cosine_t_mult, |run, value| run.cosine_t_mult = value)?;
        vary(&mut runs, "--cosine_lr_restart_decay", &self.cosine_lr_restart_decay, |run, value| {
            run.cosine_lr_restart_decay = value;
        })?;
        Ok(runs)
    }

    /// Points drawn at random, the same for the same seed: of each setting one of its values and ranges, all equally
    /// likely, and of a range a value.
    ///
    /// # Panics
    /// If a setting has no value.
    pub fn draw(&self, base: &Settings, trials: usize) -> Vec<Settings> {
        let mut rng = Rng::new(base.seed, Stream::Search);
        let mut point = || Settings {
            block_size: pick(&self.block_sizes, &mut rng),
            batch_size: pick(&self.batch_sizes, &mut rng),
            learning_rate: pick(&self.learning_rates, &mut rng),
            weight_decay: pick(&self.weight_decays, &mut rng),
            dropout: pick(&self.dropouts, &mut rng),
            cosine_final_lr: pick(&self.cosine_final_lr, &mut rng),
            cosine_t_max: pick(&self.cosine_t_max, &mut rng),
            cosine_t_mult: pick(&self.cosine_t_mult, &mut rng),
            cosine_lr_restart_decay: pick(&self.cosine_lr_restart_decay, &mut rng),
            ..base.clone()
        };
        (0..trials).map(|_| point()).collect()
    }
}

/// Replaces every run by one for each value.
fn vary<T: Number>(
    runs: &mut Vec<Settings>,
    flag: &'static str,
    choices: &[Choice<T>],
    set: impl Fn(&mut Settings, T),
) -> Result<()> {
    if choices.is_empty() {
        return Err(Error::setting(flag, "has no value: give at least one"));
    }
    let value = |choice: &Choice<T>| match choice {
        Choice::Value(value) => Ok(*value),
        range => Err(Error::setting(flag, format!("{range} is a range: draw from it with --search random"))),
    };
    let values: Vec<T> = choices.iter().map(value).collect::<Result<_>>()?;
    let with = |run: &Settings, value| {
        let mut run = run.clone();
        set(&mut run, value);
        run
    };
    *runs = runs.iter().flat_map(|run| values.iter().map(move |&value| with(run, value))).collect();
    Ok(())
}

fn pick<T: Number>(choices: &[Choice<T>], rng: &mut Rng) -> T {
    choices[rng.below(choices.len() as u64) as usize].draw(rng)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<Choice<f64>>) {
        assert_eq!(text.parse().ok(), expected, "{text}");
        if let Some(choice) = expected {
            let json = serde_json::to_string(&choice).unwrap();
            assert_eq!(serde_json::from_str::<Choice<f64>>(&json).unwrap(), choice, "{json}");
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
    }

    #[test]
    fn values_and_ranges_are_read_and_written() {
        check("0.25", Some(Choice::Value(0.25)));
        check("1e-4..3e-3", Some(Choice::Range { low: 1e-4, high: 3e-3, log: false }));
        check("1e-4..3e-3:log", Some(Choice::Range { low: 1e-4, high: 3e-3, log: true }));
        check("-1..1", Some(Choice::Range { low: -1.0, high: 1.0, log: false }));
        for wrong in
            ["", "x", "1..", "..1", "2..1", "1..1", "0..1:log", "1..inf", "1..nan", "1..2:exp", "1..2..3"]
        {
            check(wrong, None);
        }
        assert!("9223372036854775808".parse::<Choice<u64>>().is_err(), "more than TOML's largest");
    }

    fn space(base: &Settings) -> Space {
        Space {
            learning_rates: vec![Choice::Range { low: 1e-5, high: 1e-1, log: true }],
            batch_sizes: vec![Choice::Value(8), Choice::Range { low: 16, high: 18, log: false }],
            dropouts: vec![Choice::Range { low: 0.0, high: 0.5, log: false }],
            ..Space::of(base)
        }
    }

    #[test]
    fn draws_fill_their_ranges_and_depend_on_the_seed_alone() {
        let base = Settings::default();
        let runs = space(&base).draw(&base, 4_000);
        assert_eq!(runs, space(&base).draw(&base, 4_000));
        assert_eq!(runs[..7], space(&base).draw(&base, 7), "more trials begin with the same");
        let other = Settings { seed: 1, ..base.clone() };
        assert_ne!(runs[0].learning_rate, space(&other).draw(&other, 1)[0].learning_rate);
        // Shares of 4,000 draws deviate by at most sqrt(0.25 / 4000) = 0.008: six deviations.
        let near = |inside: &dyn Fn(&Settings) -> bool, share: f64| {
            let found = runs.iter().filter(|run| inside(run)).count() as f64 / 4_000.0;
            assert!((found - share).abs() < 0.048, "{found} for {share}");
        };
        near(&|run| run.learning_rate < 1e-3, 0.5);
        near(&|run| run.dropout < 0.125, 0.25);
        near(&|run| run.batch_size == 8, 0.5);
        near(&|run| run.batch_size == 17, 0.25);
        assert!(runs.iter().all(|run| (1e-5..=1e-1).contains(&run.learning_rate)));
        assert!(runs.iter().all(|run| run.weight_decay == base.weight_decay));
    }

    #[test]
    fn a_setting_without_a_value_is_refused() {
        let base = Settings::default();
        let error = Space { dropouts: Vec::new(), ..Space::of(&base) }.grid(&base).unwrap_err();
        assert_eq!(error.to_string(), "--dropouts: has no value: give at least one");
    }

    #[test]
    fn a_grid_has_no_ranges() {
        let base = Settings::default();
        let error = space(&base).grid(&base).unwrap_err();
        assert!(error.to_string().starts_with("--batch_sizes: 16..18 is a range"), "{error}");
    }
}
