//! The type of a setting's declaration, and the macro that declares settings.

use std::ops::Bound;

use serde_json::Value;

use super::Settings;
use super::choice::Choice;
use super::kind::Kind;
use crate::error::{Error, Result};
use crate::model::Frozen;
use crate::names::Named;
use crate::text::TextFiles;
use crate::tokenizer::TokenizerKind;

/// A setting's declaration. [`SETTINGS`](super::SETTINGS) lists those of a run.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its name in `hyperparameters.json`.
    pub name: &'static str,
    /// What it does, as lines of text without a final period.
    pub help: &'static [&'static str],
    /// What its values are.
    pub kind: Kind,
    /// Its section in the help; none if the program records the setting and users cannot give it.
    pub section: Option<Section>,
    /// Its name as a flag and as a key of a config file, if that differs from `name`.
    pub key: &'static str,
    /// Other names as a flag and as a key.
    pub aliases: &'static [&'static str],
    /// The placeholder for its value in the help, if it differs from the usual one of its kind.
    pub value_name: Option<&'static str>,
    /// The default in words, if it is not simply the value in `Settings::default()`.
    pub default_text: Option<&'static str>,
    /// The help in a few words, if the short help shows the setting.
    pub short_help: Option<&'static str>,
    /// Its place in its section of the help. Settings with the same place keep the order of the table.
    pub order: i8,
    /// The numbers it accepts.
    pub range: Range,
    /// Whether a search may try several values of it, and its level in the nested loops of a grid: the setting with the
    /// highest level varies fastest.
    pub search_level: Option<u8>,
    /// Whether it may change when the run is resumed, because it does not decide how the run learns.
    pub may_change: bool,
    /// Whether a run that continues from a checkpoint of another run takes its value from that run.
    pub inherited: bool,
    /// Whether it is a property of an imported model. Such settings are not given; a run that continues from a
    /// checkpoint inherits them.
    pub of_model: bool,
    /// Whether it controls what is saved, and so makes no sense for a run that is not saved.
    pub saves: bool,
    /// Its name in labels of runs; empty for settings that do not affect how good a run is.
    pub label: &'static str,
    /// Its value in a run's settings, if that is a number.
    pub number: fn(&Settings) -> Option<f64>,
    /// Its value in a run's settings, as in `hyperparameters.json`.
    pub get: fn(&Settings) -> Value,
    /// Changes it in a run's settings; panics if the value is of the wrong type.
    pub set: fn(&mut Settings, &Value),
}

/// A section of the help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// The text and its tokens.
    Text,
    /// The model.
    Model,
    /// How it is trained.
    Training,
    /// The learning rate over time.
    Schedule,
    /// What is saved.
    Files,
    /// Search over several settings.
    Search,
}

impl Section {
    /// Its heading.
    pub fn heading(self) -> &'static str {
        match self {
            Self::Text => "Text",
            Self::Model => "Model",
            Self::Training => "Training",
            Self::Schedule => "Learning-rate schedule",
            Self::Files => "Files",
            Self::Search => "Search",
        }
    }
}

/// A type that a setting can have.
pub trait SettingType {
    /// What its values are.
    const KIND: Kind;

    /// The value, if it is a number.
    fn number(&self) -> Option<f64> {
        None
    }
}

impl SettingType for bool {
    const KIND: Kind = Kind::Switch;
}

impl SettingType for usize {
    const KIND: Kind = Kind::Integer;

    fn number(&self) -> Option<f64> {
        Some(*self as f64)
    }
}

impl SettingType for u64 {
    const KIND: Kind = Kind::Integer;

    fn number(&self) -> Option<f64> {
        Some(*self as f64)
    }
}

impl SettingType for f64 {
    const KIND: Kind = Kind::Real;

    fn number(&self) -> Option<f64> {
        Some(*self)
    }
}

impl SettingType for String {
    const KIND: Kind = Kind::Path;
}

/// Paths of models.
impl SettingType for Vec<String> {
    const KIND: Kind = Kind::Files;
}

impl SettingType for TextFiles {
    const KIND: Kind = Kind::Files;
}

impl SettingType for Frozen {
    const KIND: Kind = Kind::Name(|name| name.parse::<Self>().map(drop));
}

impl SettingType for TokenizerKind {
    const KIND: Kind = Kind::Name(|name| name.parse::<Self>().map(drop));
}

impl<T: Named> SettingType for T {
    const KIND: Kind = Kind::Name(|name| T::from_name(name).map(drop));
}

impl<T: SettingType> SettingType for Option<T> {
    const KIND: Kind = T::KIND;

    fn number(&self) -> Option<f64> {
        self.as_ref().and_then(T::number)
    }
}

/// The numbers that a setting accepts.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    low: Bound<f64>,
    high: Bound<f64>,
}

impl Range {
    /// Any number.
    pub const ANY: Self = Self { low: Bound::Unbounded, high: Bound::Unbounded };
    /// The numbers from 0, less than 1.
    pub const FRACTION: Self = Self { low: Bound::Included(0.0), high: Bound::Excluded(1.0) };

    /// `low` and more.
    pub const fn at_least(low: f64) -> Self {
        Self { low: Bound::Included(low), high: Bound::Unbounded }
    }

    /// From `low` to `high`, both included.
    pub const fn between(low: f64, high: f64) -> Self {
        Self { low: Bound::Included(low), high: Bound::Included(high) }
    }

    /// More than 0, and no more than `high`.
    pub const fn positive_to(high: f64) -> Self {
        Self { low: Bound::Excluded(0.0), high: Bound::Included(high) }
    }

    fn contains(self, x: f64) -> bool {
        // Numbers just below an excluded bound are rounded to it in single precision.
        let is_rounded_up = matches!(self.high, Bound::Excluded(high) if x as f32 >= high as f32);
        x.is_finite() && std::ops::RangeBounds::contains(&(self.low, self.high), &x) && !is_rounded_up
    }

    /// The range in words: `of at least 1`, `from 0 to less than 1`.
    fn in_words(self) -> String {
        match (self.low, self.high) {
            (Bound::Included(low), Bound::Unbounded) => format!("of at least {}", short(low)),
            (Bound::Included(low), Bound::Included(high)) => {
                format!("from {} to {}", short(low), short(high))
            }
            (Bound::Included(low), Bound::Excluded(high)) => {
                format!("from {} to less than {}", short(low), short(high))
            }
            (Bound::Excluded(low), Bound::Included(high)) => {
                format!("greater than {}, at most {}", short(low), short(high))
            }
            _ => "that is finite".to_owned(),
        }
    }
}

/// A number in few characters: in full if it is of everyday size.
fn short(x: f64) -> String {
    let everyday = x == 0.0 || (1e-5..1e16).contains(&x.abs());
    if everyday { x.to_string() } else { format!("{x:e}") }
}

impl Setting {
    /// A setting with nothing special about it.
    pub const fn new(name: &'static str, kind: Kind) -> Self {
        Self {
            name,
            help: &[],
            kind,
            section: None,
            key: name,
            aliases: &[],
            value_name: None,
            default_text: None,
            short_help: None,
            order: 0,
            range: Range::ANY,
            search_level: None,
            may_change: false,
            inherited: true,
            of_model: false,
            saves: false,
            label: name,
            number: |_| None,
            get: |_| Value::Null,
            set: |_, _| {},
        }
    }

    /// The help as one line.
    pub fn help(&self) -> String {
        self.help.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
    }

    /// All names under which it can be given.
    pub fn keys(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.key).chain(self.aliases.iter().copied())
    }

    /// Whether several values of it can be given.
    pub fn takes_several(&self) -> bool {
        self.search_level.is_some() || matches!(self.kind, Kind::Files)
    }

    /// What stands for a value in the help.
    pub fn value_name(&self) -> &'static str {
        self.value_name.unwrap_or(match self.kind {
            Kind::Switch => "BOOL",
            Kind::Integer => "N",
            Kind::Real => "X",
            Kind::Name(_) => "NAME",
            Kind::Path => "DIR",
            Kind::Files => "FILE",
        })
    }

    /// Checks that a number is in range.
    ///
    /// # Errors
    /// [`Error::Setting`] with the range.
    pub fn check(&self, x: f64) -> Result<()> {
        if self.range.contains(x) {
            return Ok(());
        }
        let noun = if matches!(self.kind, Kind::Integer) { "an integer" } else { "a number" };
        let (name, value, range) = (self.name, short(x), self.range.in_words());
        Err(Error::setting(name, format!("`{name} {value}` is out of range; use {noun} {range}")))
    }

    /// Reads a value, or a range to search, as typed on a command line.
    ///
    /// # Errors
    /// What to type instead.
    pub fn parse(&self, text: &str) -> std::result::Result<Choice, String> {
        if self.search_level.is_some() && text.contains("..") {
            return Choice::parse_range(text, self.kind);
        }
        let value: Option<Value> = match self.kind {
            Kind::Switch => text.parse::<bool>().ok().map(Value::from),
            Kind::Integer => text.parse::<u64>().ok().filter(|&integer| integer <= LARGEST).map(Value::from),
            Kind::Real => text.parse().ok().and_then(serde_json::Number::from_f64).map(Value::from),
            Kind::Name(check) => return check_name(check, text),
            Kind::Path | Kind::Files => (!text.is_empty()).then(|| Value::from(text)),
        };
        value.map(Choice::Value).ok_or_else(|| self.expected())
    }

    /// Reads the value of a key in a config file: one value or, if [`takes_several`](Self::takes_several), a list.
    ///
    /// # Errors
    /// What to write instead.
    pub fn read(&self, value: &Value) -> std::result::Result<Vec<Choice>, String> {
        match value {
            Value::Array(values) if values.is_empty() && self.takes_several() => {
                Err("an empty list: give at least one value, or leave the key out".to_owned())
            }
            Value::Array(values) if self.takes_several() => {
                values.iter().map(|value| self.read_one(value)).collect()
            }
            value => Ok(vec![self.read_one(value)?]),
        }
    }

    fn read_one(&self, value: &Value) -> std::result::Result<Choice, String> {
        let is_range = |text: &str| self.search_level.is_some() && text.contains("..");
        match (self.kind, value) {
            (Kind::Switch, Value::Bool(_)) => Ok(Choice::Value(value.clone())),
            (Kind::Integer, Value::Number(number)) if number.as_u64().is_some_and(|n| n <= LARGEST) => {
                Ok(Choice::Value(value.clone()))
            }
            (Kind::Real, Value::Number(number)) => {
                number.as_f64().map(|x| Choice::Value(x.into())).ok_or_else(|| self.expected())
            }
            (Kind::Integer | Kind::Real, Value::String(text)) if is_range(text) => self.parse(text),
            (Kind::Name(_) | Kind::Path | Kind::Files, Value::String(text)) => self.parse(text),
            _ if self.search_level.is_some() => {
                Err("give a number, a range as in \"8..64:log\", or several as in [1, 2]".to_owned())
            }
            _ => Err(self.expected()),
        }
    }

    fn expected(&self) -> String {
        match self.kind {
            Kind::Switch => "give true or false".to_owned(),
            Kind::Integer => {
                let least = if matches!(self.range.low, Bound::Included(low) if low >= 1.0) { 1 } else { 0 };
                format!("give a whole number from {least} to {LARGEST}")
            }
            Kind::Real => "give a number such as 0.2 or 1e-3".to_owned(),
            Kind::Name(_) => "give a name in quotes".to_owned(),
            Kind::Path => "give a path in quotes".to_owned(),
            Kind::Files => "give a path, or several as in [\"a.txt\", \"b.txt\"]".to_owned(),
        }
    }
}

/// The largest integer of a setting: TOML's, so that every value can be written in a config file, or the machine's.
const LARGEST: u64 = if usize::BITS < 64 { usize::MAX as u64 } else { i64::MAX as u64 };

fn check_name(check: fn(&str) -> Result<()>, name: &str) -> std::result::Result<Choice, String> {
    check(name).map(|()| Choice::Value(name.into())).map_err(|error| error.to_string())
}

/// Declares the settings of a run, one row each:
///
/// ```text
/// /// What it does, for the documentation and the help
/// name: Type = default => { attribute: value, … }
/// ```
/// The attributes are fields of [`Setting`]; those left out are as in [`Setting::new`]. A row may begin with a `serde`
/// attribute, and `as "NAME"` after the name gives the setting another name in `hyperparameters.json`.
///
/// The rows become the struct [`Settings`], its `Default`, and the table [`SETTINGS`](super::SETTINGS).
macro_rules! declare_settings {
    ($(
        $(#[doc = $help:literal])+
        $(#[serde($($serde:tt)*)])?
        $field:ident $(as $name:literal)?: $type:ty = $default:expr => { $($attributes:tt)* }
    )+) => {
        /// The settings of one run: the content of `hyperparameters.json`. Where the command line takes several values
        /// of a setting, this holds the one of this run.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Settings {
            $(
                $(#[doc = $help])+
                $(#[serde($($serde)*)])?
                $(#[serde(rename = $name)])?
                pub $field: $type,
            )+
        }

        impl Default for Settings {
            fn default() -> Self {
                Self { $($field: $default),+ }
            }
        }

        /// Every setting of a run, in the order of `hyperparameters.json`.
        pub static SETTINGS: &[Setting] = &[$(
            Setting {
                help: &[$($help),+],
                number: |settings| settings.$field.number(),
                get: |settings| serde_json::to_value(&settings.$field).expect("a value of a setting is JSON"),
                set: |settings, value| {
                    settings.$field = <$type>::deserialize(value).expect("a value of the setting's type");
                },
                $($attributes)*
                ..Setting::new(declare_settings!(@name $field $($name)?), <$type as SettingType>::KIND)
            }
        ),+];
    };
    (@name $field:ident) => { stringify!($field) };
    (@name $field:ident $name:literal) => { $name };
}

pub(super) use declare_settings;
