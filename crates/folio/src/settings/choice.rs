//! A value for a setting, or a range of values to search.

use std::fmt::{self, Display};

use serde_json::Value;

use super::kind::Kind;
use crate::rng::Rng;

/// A value for a setting, or a range to sample values from, written `1e-4..3e-3`, or `1e-4..3e-3:log` to sample evenly
/// on a logarithmic scale.
///
/// ```
/// use folio::settings::{Choice, setting};
/// let rate = setting("learning_rate").unwrap();
/// assert_eq!(rate.parse("1e-3"), Ok(Choice::from(1e-3)));
/// assert_eq!(rate.parse("1e-4..3e-3:log"), Ok(Choice::Range { low: 1e-4, high: 3e-3, log: true }));
/// assert!(rate.parse("3e-3..1e-4").is_err());
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum Choice {
    /// This value, as `hyperparameters.json` has it.
    Value(Value),
    /// Any number from `low` to `high`, both included.
    Range {
        /// The lowest.
        low: f64,
        /// The highest.
        high: f64,
        /// Whether the logarithm is sampled evenly, not the number.
        log: bool,
    },
}

impl<T: Into<Value>> From<T> for Choice {
    fn from(value: T) -> Self {
        Self::Value(value.into())
    }
}

impl Display for Choice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(Value::String(text)) => formatter.write_str(text),
            Self::Value(value) => value.fmt(formatter),
            Self::Range { low, high, log } => {
                write!(formatter, "{low}..{high}{}", if *log { ":log" } else { "" })
            }
        }
    }
}

impl Choice {
    /// Reads a range of numbers.
    pub(super) fn parse_range(text: &str, kind: Kind) -> Result<Self, String> {
        let number = |text: &str| match kind {
            Kind::Integer => text.parse::<u64>().ok().map(|integer| integer as f64),
            _ => text.parse::<f64>().ok().filter(|x| x.is_finite()),
        };
        let ends = text.split_once("..").and_then(|(low, rest)| {
            let (high, log) = rest.strip_suffix(":log").map_or((rest, false), |high| (high, true));
            Some((number(low)?, number(high)?, log))
        });
        match ends {
            Some((low, high, log)) if low < high && (!log || low > 0.0) => Ok(Self::Range { low, high, log }),
            _ => Err("a range goes from a lower to a higher number, and starts above 0 if it ends in :log"
                .to_owned()),
        }
    }

    /// The value itself, or one sampled from the range. A real number has four digits, so that a person can read and type
    /// it.
    pub(crate) fn sample(&self, kind: Kind, rng: &mut Rng) -> Value {
        let (low, high, log) = match self {
            Self::Value(value) => return value.clone(),
            Self::Range { low, high, log } => (*low, *high, *log),
        };
        let share = rng.next_f64();
        let x = if log { low * (high / low).powf(share) } else { low + (high - low) * share };
        let x = x.clamp(low, high);
        match kind {
            Kind::Integer => Value::from(x.round() as u64),
            _ => Value::from(format!("{x:.3e}").parse::<f64>().expect("a number was just written")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::setting;

    #[track_caller]
    fn check(text: &str, expected: Option<Choice>) {
        let setting = setting("learning_rate").unwrap();
        assert_eq!(setting.parse(text).ok(), expected, "{text}");
        if let Some(choice) = expected {
            assert_eq!(setting.parse(&choice.to_string()), Ok(choice), "{text}");
        }
    }

    #[test]
    fn values_and_ranges_are_parsed_and_printed() {
        check("0.25", Some(Choice::from(0.25)));
        check("1e-4..3e-3", Some(Choice::Range { low: 1e-4, high: 3e-3, log: false }));
        check("1e-4..3e-3:log", Some(Choice::Range { low: 1e-4, high: 3e-3, log: true }));
        check("-1..1", Some(Choice::Range { low: -1.0, high: 1.0, log: false }));
        for wrong in
            ["", "x", "1..", "..1", "2..1", "1..1", "0..1:log", "1..inf", "1..nan", "1..2:exp", "1..2..3"]
        {
            check(wrong, None);
        }
        let batch_size = setting("batch_size").unwrap();
        assert_eq!(batch_size.parse("9223372036854775807"), Ok(Choice::from(i64::MAX)));
        assert!(batch_size.parse("9223372036854775808").is_err(), "more than TOML's largest");
    }
}
