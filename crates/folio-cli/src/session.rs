//! `folio train` inside another program: arguments by name instead of flags; notes, errors and events as values instead
//! of output. The Python package is made of it.
//!
//! Every setting and every flag of `folio train` is an argument, under each of its names. A new one needs no change here.

use std::path::Path;
use std::sync::Mutex;

use clap::{FromArgMatches, Subcommand};
use folio::error::Error;
use folio::records::run_recorded;
use folio::settings::Settings;
use folio::sweep::{Sweep, SweepEvent, SweepListener, run_sweep};
use folio::train::{Outcome, Requests};
use rayon::ThreadPool;
use serde_json::{Map, Value};

use crate::Command;
use crate::destination::{Reserved, reserve};
use crate::options::{self, Options, all, default_text};
use crate::plan::{Task, Work, plan};
use crate::ranks;
use crate::screen;
use crate::threads::thread_pool;
use crate::train::args::TrainArgs;
use crate::train::{affordable_jobs, begin_run, begin_sweep, sweep_context};
use crate::usage::{Usage, in_one_line, parser_message};

/// The flags that decide about output, of which a session has none.
const OUTPUT_FLAGS: [&str; 3] = ["help", "json", "tui"];

/// An argument of a session.
#[derive(Clone, Debug)]
pub struct Argument {
    /// Its name.
    pub name: String,
    /// Its other names.
    pub aliases: Vec<String>,
    /// What it does.
    pub help: String,
    /// The default in words, if there is one.
    pub default: Option<String>,
    /// Whether several values of it make a sweep.
    pub can_vary: bool,
}

/// Every argument, in the order of `folio train --help`.
pub fn arguments() -> Vec<Argument> {
    let settings = all();
    let is_flag = |arg: &&clap::Arg| !settings.iter().any(|setting| setting.key == arg.get_id().as_str());
    let flag = |arg: &clap::Arg| Argument {
        name: arg.get_id().to_string(),
        aliases: Vec::new(),
        help: without_dashes(&arg.get_help().map(ToString::to_string).unwrap_or_default()),
        default: None,
        can_vary: false,
    };
    let setting = |setting: &&folio::settings::Setting| {
        let mut aliases: Vec<String> = setting.aliases.iter().map(|&alias| alias.to_owned()).collect();
        let is_named = setting.keys().any(|key| key == setting.name);
        aliases.extend((!is_named).then(|| setting.name.to_owned()));
        Argument {
            name: setting.key.to_owned(),
            aliases,
            help: without_dashes(&setting.help()),
            default: default_text(setting).map(|text| without_dashes(&text)),
            can_vary: setting.search_level.is_some(),
        }
    };
    let train = train_command();
    let flags =
        train.get_arguments().filter(is_flag).filter(|arg| !OUTPUT_FLAGS.contains(&arg.get_id().as_str()));
    let (mut first, rest): (Vec<_>, Vec<_>) =
        flags.map(flag).partition(|argument| ["preset", "config"].contains(&argument.name.as_str()));
    first.extend(settings.iter().map(setting).chain(rest));
    first
}

/// A training run or a sweep, planned but not started.
pub struct Session {
    args: TrainArgs,
    task: Task,
    notes: Vec<String>,
    /// Runs of a sweep to train at the same time.
    jobs: usize,
    /// The threads of the argument `threads`.
    pool: Option<ThreadPool>,
    /// Removes the new run directory if nothing was saved in it.
    _reserved: Option<Reserved>,
}

impl Session {
    /// Does everything that `folio train` does before the first step: checks the arguments, reads the text, and reserves a
    /// directory if none is given. Nulls count as not given.
    ///
    /// # Errors
    /// What is wrong, in one line, with arguments spelled as names.
    pub fn plan(arguments: &Map<String, Value>) -> Result<Self, String> {
        let (planned, notes) = screen::collect(|| Self::plan_with_notes(arguments));
        let planned = planned.map_err(|error| message(&error))?;
        Ok(Self { notes: notes.iter().map(|note| without_dashes(note)).collect(), ..planned })
    }

    fn plan_with_notes(arguments: &Map<String, Value>) -> anyhow::Result<Self> {
        let args = parse(arguments)?;
        args.check_jobs()?;
        let pool = args.threads.map(|count| anyhow::Ok(thread_pool(Some(count))?.build()?)).transpose()?;
        let mut task = plan(&args)?;
        let reserved = reserve(&mut task)?;
        crate::traps::warn(&args, &task)?;
        if let Some(chosen) = &task.chosen_precision {
            screen::err(format_args!("precision {chosen}"));
        }
        let jobs = match &task.work {
            Work::Run(_) => 1,
            Work::Sweep(sweep) => affordable_jobs(args.jobs.unwrap_or(1), sweep, task.tokenizer.vocab_size()),
        };
        Ok(Self { args, task, notes: Vec::new(), jobs, pool, _reserved: reserved })
    }

    /// What a user should know before training starts: warnings, which begin with `warning: `, and choices made for them.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Where the run or the sweep is saved; none with `no_save`.
    pub fn run_dir(&self) -> Option<&Path> {
        self.task.run_dir.as_ref().map(folio::run_dir::RunDir::path)
    }

    /// Whether there are several runs.
    pub fn is_sweep(&self) -> bool {
        matches!(self.task.work, Work::Sweep(_))
    }

    /// The settings of each run.
    pub fn runs(&self) -> &[Settings] {
        self.task.work.runs()
    }

    /// Trains. A single run reports its events as those of run 0.
    ///
    /// # Errors
    /// As [`Session::plan`]. In a sweep, an error of a run is in its result.
    pub fn run(&self, requests: &Requests, on_event: &mut SweepListener) -> Result<Outcome, String> {
        let mut run = || match &self.task.work {
            Work::Run(settings) => self.train_run(settings, requests, on_event),
            Work::Sweep(sweep) => self.train_sweep(sweep, requests, on_event),
        };
        let outcome = match &self.pool {
            Some(pool) => pool.install(run),
            None => run(),
        };
        outcome.map_err(|error| message(&error))
    }

    fn train_run(
        &self,
        settings: &Settings,
        requests: &Requests,
        on_event: &mut SweepListener,
    ) -> anyhow::Result<Outcome> {
        let (mut trainer, _lock) = begin_run(&self.args, &self.task, settings, ranks::alone())?;
        let outcome = run_recorded(&mut trainer, self.task.run_dir.as_ref(), requests, &mut |event| {
            on_event(SweepEvent::Run { run: 0, event });
        })?;
        Ok(outcome)
    }

    fn train_sweep(
        &self,
        sweep: &Sweep,
        requests: &Requests,
        mut on_event: &mut SweepListener,
    ) -> anyhow::Result<Outcome> {
        let _lock = begin_sweep(&self.args, &self.task, sweep)?;
        let context = sweep_context(&self.args, &self.task, self.jobs, ranks::alone().into(), requests);
        let (outcome, _) = run_sweep(sweep, &context, &Mutex::new(&mut on_event))?;
        Ok(outcome)
    }
}

/// Writes the checkpoint that `path` refers to in the format of other programs, as `folio export` does. Returns notes for the
/// user.
///
/// # Errors
/// As [`Session::plan`].
pub fn export(
    path: &Path,
    format: &str,
    weight_type: Option<&str>,
    out: &Path,
    overwrite: bool,
) -> Result<Vec<String>, String> {
    let export = || crate::export::export(path, format, weight_type, out, overwrite);
    let (exported, notes) = screen::collect(export);
    exported.map_err(|error| message(&error))?;
    Ok(notes)
}

/// The command whose flags are the arguments.
fn train_command() -> clap::Command {
    let commands = Command::augment_subcommands(clap::Command::new("folio"));
    commands.find_subcommand("train").expect("the command exists").clone()
}

/// Reads arguments: the settings as a config file has them, the others as flags.
fn parse(arguments: &Map<String, Value>) -> anyhow::Result<TrainArgs> {
    let given = || arguments.iter().filter(|(_, value)| !value.is_null());
    let known = self::arguments();
    let mut settings = Options::default();
    let mut line = vec!["train".to_owned()];
    for (name, value) in given() {
        let Some(argument) = known.iter().find(|known| known.name == *name || known.aliases.contains(name))
        else {
            let names: Vec<&str> = known.iter().map(|known| known.name.as_str()).collect();
            return Err(Error::unknown_name("argument", name, &names).into());
        };
        let Some(setting) = options::setting_of_key(&argument.name) else {
            line.extend(flag(name, value)?);
            continue;
        };
        if settings.0.has(setting.name) {
            return Err(Usage(format!("{name}: {} is given twice; remove one", setting.key)).into());
        }
        let values = setting.read(value).map_err(|reason| Usage(format!("{name}={value}: {reason}")))?;
        settings.0.insert(setting, values);
    }
    let matches = train_command().try_get_matches_from(line);
    let args = matches.and_then(|matches| TrainArgs::from_arg_matches(&matches));
    let mut args =
        args.map_err(|error| Usage(parser_message(&error).trim_start_matches("error: ").to_owned()))?;
    args.options = settings;
    Ok(args)
}

/// An argument as a flag; none for a switch that is off.
fn flag(name: &str, value: &Value) -> anyhow::Result<Option<String>> {
    match value {
        Value::Bool(true) => Ok(Some(format!("--{name}"))),
        Value::Bool(false) => Ok(None),
        Value::String(text) => Ok(Some(format!("--{name}={text}"))),
        Value::Number(number) => Ok(Some(format!("--{name}={number}"))),
        other => Err(Usage(format!("{name}={other}: give one value")).into()),
    }
}

/// An error as one line, with arguments in place of flags.
fn message(error: &anyhow::Error) -> String {
    without_dashes(&in_one_line(error, ToString::to_string))
}

/// A message with names in place of flags, except in commands.
///
/// `give another --run_dir` becomes `give another run_dir`; `folio train --resume runs/a` stays.
fn without_dashes(message: &str) -> String {
    let mut in_command = false;
    let words = message.split(' ').map(|word| {
        in_command |= word.trim_matches(|c: char| !c.is_alphanumeric()) == "folio";
        let start = word.find(|c: char| !matches!(c, '`' | '\'' | '"' | '(')).unwrap_or(0);
        let (quote, flag) = word.split_at(start);
        let name =
            flag.strip_prefix("--").filter(|name| name.starts_with(char::is_alphabetic) && !in_command);
        in_command &= !word.ends_with([',', ';', ')', ':', '`']);
        name.map_or_else(|| word.to_owned(), |name| format!("{quote}{name}"))
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check_refused(arguments: Value, part: &str) {
        let Value::Object(arguments) = arguments else { panic!("arguments are an object") };
        let error = Session::plan(&arguments).err().unwrap_or_else(|| panic!("accepted {arguments:?}"));
        assert!(error.contains(part) && !error.contains('\n') && !error.contains("--"), "{error}");
    }

    #[test]
    fn mistakes_are_one_line_in_the_words_of_a_caller() {
        check_refused(json!({ "n_embd": 8 }), "unknown argument 'n_embd' (did you mean 'n_emb'?)");
        check_refused(json!({ "tui": true }), "unknown argument 'tui'");
        check_refused(json!({ "n_emb": "wide" }), "n_emb=\"wide\": give a whole number from 1");
        check_refused(
            json!({ "n_emb": 385, "no_save": true }),
            "`n_emb 385` is not divisible by `n_heads 6`",
        );
        check_refused(json!({ "lr": 1e-3, "learning_rate": 1e-3 }), "learning_rates is given twice");
        check_refused(json!({ "preset": "quik" }), "'quick'");
        check_refused(json!({ "preset": ["quick"] }), "give one value");
        check_refused(json!({ "from_checkpoint": true }), "from_checkpoint_run_dir");
        check_refused(json!({ "jobs": 0 }), "`jobs 0` is out of range");
        check_refused(json!({ "resume": "no/such/run" }), "no/such/run does not exist: give the run_dir");
        check_refused(json!({ "no_save": true, "run_dir": "x" }), "no_save contradicts run_dir");
    }

    #[test]
    fn every_setting_and_flag_is_an_argument() {
        let arguments = arguments();
        let find = |name: &str| arguments.iter().find(|argument| argument.name == name);
        for setting in all() {
            assert!(find(setting.key).is_some_and(|argument| !argument.help.is_empty()), "{}", setting.key);
        }
        for flag in ["preset", "config", "resume", "from_checkpoint_step", "threads", "overwrite"] {
            assert!(find(flag).is_some_and(|argument| !argument.help.contains("--")), "{flag}");
        }
        assert!(OUTPUT_FLAGS.iter().all(|flag| find(flag).is_none()));
        let rates = find("learning_rates").expect("a setting");
        assert_eq!(
            (&rates.aliases[..], rates.can_vary),
            (&["lr".to_owned(), "learning_rate".to_owned()][..], true)
        );
    }

    #[test]
    fn dashes_are_kept_in_commands() {
        let check = |message: &str, want: &str| assert_eq!(without_dashes(message), want);
        check("give another --run_dir, or `--n_emb 8`", "give another run_dir, or `n_emb 8`");
        check(
            "run folio train --resume a, or use --overwrite",
            "run folio train --resume a, or use overwrite",
        );
        check("a -- b", "a -- b");
    }
}
