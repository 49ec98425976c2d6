//! The settings of `folio train` as flags, and as keys of a preset or config file.
//!
//! The library declares the settings of a run ([`SETTINGS`]); [`PROGRAM_SETTINGS`] adds those of the command line alone.
//! Where several sources give a setting, the first of these wins: flags, `--config`, `--preset`, the run that is
//! continued, the default.

use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{ArgAction, BoolValueParser, NonEmptyStringValueParser, TypedValueParser, ValueParser};
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, ValueHint};
use folio::error::Error;
use folio::named_enum;
use folio::settings::{Choice, Given, Kind, Range, SETTINGS, Section, Setting, Settings, Space};
use folio::sweep::{Plan, shown};

/// What can be given beside the settings of a run.
static PROGRAM_SETTINGS: [Setting; 4] = [
    Setting {
        help: &["Directory to save the run in; a sweep uses run_1, run_2, … inside it"],
        section: Some(Section::Files),
        order: -1,
        default_text: Some("a new one in runs/"),
        short_help: Some("Directory to save the run in"),
        saves: true,
        ..Setting::new("run_dir", Kind::Path)
    },
    Setting {
        help: &["Search method: grid (every combination), random, or halving, which stops poor runs early"],
        section: Some(Section::Search),
        default_text: Some("grid"),
        ..Setting::new("search", Kind::Name(|name| name.parse::<Search>().map(drop)))
    },
    Setting {
        help: &["Number of random points; without it, halving starts from every combination"],
        section: Some(Section::Search),
        range: Range::at_least(1.0),
        ..Setting::new("trials", Kind::Integer)
    },
    Setting {
        help: &["Reduction factor N: each stage keeps 1/N of the runs and trains them N times as long"],
        section: Some(Section::Search),
        range: Range::at_least(2.0),
        default_text: Some("3"),
        ..Setting::new("halving_factor", Kind::Integer)
    },
];

/// The texts that are given, if any.
#[derive(Clone, Debug, Default)]
pub(crate) struct GivenTexts {
    /// To train on.
    pub(crate) data: Option<Vec<PathBuf>>,
    /// To evaluate on.
    pub(crate) eval_data: Option<Vec<PathBuf>>,
}

/// The default of `--halving_factor`.
const HALVING_FACTOR: u64 = 3;

/// How to search.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Search {
    /// Every combination.
    #[default]
    Grid,
    /// Random points.
    Random,
    /// Either of them, by successive halving.
    Halving,
}

named_enum!(Search, "search", { Grid => "grid", Random => "random", Halving => "halving" });

/// All settings that can be given, in the order of the help.
pub(crate) fn all() -> Vec<&'static Setting> {
    let mut all: Vec<&Setting> = PROGRAM_SETTINGS.iter().chain(SETTINGS).collect();
    all.retain(|setting| setting.section.is_some());
    all.sort_by_key(|setting| (setting.section, setting.order));
    all
}

/// The setting that a flag or a key gives, under any of its names.
pub(crate) fn setting_of_key(key: &str) -> Option<&'static Setting> {
    all().into_iter().find(|setting| setting.keys().any(|known| known == key))
}

/// The setting with this name in `hyperparameters.json`, or of the command line.
pub(crate) fn setting(name: &str) -> Option<&'static Setting> {
    folio::settings::setting(name).or_else(|| PROGRAM_SETTINGS.iter().find(|setting| setting.name == name))
}

/// A setting's flag: `--block_sizes` for `block_size`. Other flags are spelled like the field.
pub(crate) fn flag(name: &str) -> String {
    format!("--{}", setting(name).map_or(name, |setting| setting.key))
}

/// The names of all keys of a config file, for suggestions.
pub(crate) fn keys() -> Vec<&'static str> {
    all().into_iter().flat_map(Setting::keys).collect()
}

/// The keys of the settings that a search can vary, in the order in which a grid nests them.
pub(crate) fn search_order() -> Vec<&'static str> {
    let mut searchable = all();
    searchable.retain(|setting| setting.search_level.is_some());
    searchable.sort_by_key(|setting| setting.search_level);
    searchable.into_iter().map(|setting| setting.key).collect()
}

/// A setting as a flag.
fn argument(setting: &'static Setting) -> Arg {
    let section = setting.section.expect("settings without a section are not given");
    let arg = Arg::new(setting.key)
        .long(setting.key)
        .visible_aliases(setting.aliases)
        .value_name(setting.value_name())
        .help_heading(section.heading())
        .action(if setting.takes_several() { ArgAction::Append } else { ArgAction::Set })
        .value_parser(value_parser(setting));
    let arg = match setting.kind {
        Kind::Switch => {
            arg.num_args(0..=1).require_equals(true).default_missing_value("true").hide_possible_values(true)
        }
        // So that `--n_emb -3` is a wrong size, not an unknown flag.
        Kind::Integer | Kind::Real if !setting.takes_several() => arg.allow_hyphen_values(true),
        Kind::Path | Kind::Files => arg.value_hint(ValueHint::AnyPath),
        _ => arg,
    };
    let arg = if setting.takes_several() { arg.num_args(1..) } else { arg };
    let arg = if setting.search_level.is_some() { arg.value_delimiter(',') } else { arg };
    let several = if setting.search_level.is_some() { " *" } else { "" };
    let default = default_text(setting).map_or(String::new(), |default| format!(" [default: {default}]"));
    let long = format!("{}{several}{default}", setting.help());
    match setting.short_help {
        Some(short) => arg.help(format!("{short}{default}")).long_help(long),
        None => arg.help(long),
    }
}

/// The default as the help shows it; none for a switch, which is off, and for settings without a value.
pub(crate) fn default_text(setting: &Setting) -> Option<String> {
    if let Some(text) = setting.default_text {
        return Some(text.to_owned());
    }
    let default = (setting.get)(&Settings::default());
    (!default.is_null() && !default.is_boolean()).then(|| shown(&default))
}

fn value_parser(setting: &'static Setting) -> ValueParser {
    match setting.kind {
        Kind::Switch => BoolValueParser::new().map(Choice::from).into(),
        Kind::Path | Kind::Files => {
            NonEmptyStringValueParser::new().try_map(|text| setting.parse(&text)).into()
        }
        _ => ValueParser::new(|text: &str| setting.parse(text)),
    }
}

/// The settings that flags, a file or another run give.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options(pub(crate) Given);

impl Args for Options {
    fn augment_args(command: Command) -> Command {
        command.args(all().into_iter().map(argument))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Options {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut options = Self::default();
        options.update_from_arg_matches(matches)?;
        Ok(options)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for setting in all() {
            if let Some(values) = matches.get_many::<Choice>(setting.key) {
                self.0.insert(setting, values.cloned().collect());
            }
        }
        Ok(())
    }
}

impl Options {
    /// The settings given, each once.
    pub(crate) fn settings(&self) -> impl Iterator<Item = &'static Setting> {
        self.0.names().map(|name| setting(name).expect("only known settings are inserted"))
    }

    /// These options, and those of `fallback` that are not among them.
    pub(crate) fn or(self, fallback: &Options) -> Options {
        Self(self.0.or(&fallback.0))
    }

    /// These options without those that say what to save.
    pub(crate) fn without_saving(mut self) -> Self {
        let saving: Vec<_> = self.settings().filter(|setting| setting.saves).collect();
        saving.iter().for_each(|setting| self.0.remove(setting.name));
        self
    }

    /// What a run that continues from a checkpoint of another takes over from it: text, model, optimizer, schedule.
    pub(crate) fn inherited(settings: &Settings) -> Options {
        Self(Given::from_settings(settings, |setting| setting.inherited))
    }

    /// All settings of a run.
    pub(crate) fn of(settings: &Settings) -> Options {
        Self(Given::from_settings(settings, |_| true))
    }

    /// The texts to train and evaluate on.
    pub(crate) fn texts(&self) -> GivenTexts {
        GivenTexts { data: self.paths("data"), eval_data: self.paths("eval_data") }
    }

    /// The teachers.
    pub(crate) fn teachers(&self) -> Option<Vec<PathBuf>> {
        self.paths("teachers")
    }

    fn paths(&self, name: &str) -> Option<Vec<PathBuf>> {
        let paths = self.0.values(name).iter().map(|path| PathBuf::from(path.to_string()));
        self.0.has(name).then(|| paths.collect())
    }

    /// The run's directory.
    pub(crate) fn run_dir(&self) -> Option<PathBuf> {
        self.0.get("run_dir")
    }

    /// How far to train the runs of a search, and their settings, from a base and a space of [`Given::resolve`].
    ///
    /// # Errors
    /// If the settings of the search contradict each other.
    pub(crate) fn search(&self, base: &Settings, space: &Space) -> Result<(Plan, Vec<Settings>), Error> {
        let wrong = |field, reason: &str| Err(Error::Setting { field, reason: reason.to_owned() });
        let search = self.0.get::<Search>("search").unwrap_or_default();
        let (trials, factor) = (self.0.get::<usize>("trials"), self.0.get::<u64>("halving_factor"));
        for (name, value) in
            [("trials", trials.map(|n| n as f64)), ("halving_factor", factor.map(|n| n as f64))]
        {
            value.map_or(Ok(()), |value| setting(name).expect("it is declared above").check(value))?;
        }
        match search {
            Search::Grid if trials.is_some() => {
                return wrong("trials", "needs a random search; add `search random` or `search halving`");
            }
            Search::Random if trials.is_none() => {
                return wrong("search", "`search random` needs the number of points; add `trials`");
            }
            Search::Grid | Search::Random if factor.is_some() => {
                return wrong("halving_factor", "needs `search halving`");
            }
            Search::Halving if self.0.has("max_steps") => {
                return wrong("max_steps", "halving counts epochs, not steps; use `num_epochs` instead");
            }
            _ => {}
        }
        let plan = match search {
            Search::Grid | Search::Random => Plan::Full,
            Search::Halving => Plan::Halving { factor: factor.unwrap_or(HALVING_FACTOR) },
        };
        let runs = trials.map_or_else(|| space.grid(base), |trials| Ok(space.sample(base, trials)))?;
        Ok((plan, runs))
    }
}

/// Parses an integer from the command line, up to TOML's largest or the type's, whichever is smaller.
pub(crate) fn whole<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    const LARGEST: [u64; 3] = [i64::MAX as u64, u32::MAX as u64, u16::MAX as u64];
    let largest = LARGEST.into_iter().find(|&number| T::try_from(number).is_ok()).unwrap_or(u8::MAX.into());
    let number = text.parse().ok().filter(|&number| number <= largest);
    let number = number.and_then(|number| T::try_from(number).ok());
    number.ok_or_else(|| format!("give a whole number from 0 to {largest}"))
}

/// Parses a number from the command line.
pub(crate) fn real<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "give a number such as 0.2 or 1e-3".to_owned())
}
