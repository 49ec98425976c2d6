//! Everything that can go wrong, with messages for the person who can fix it.

use std::io;
use std::path::{Path, PathBuf};

/// The result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// A user's mistake or a failure of the machine. Every message is one line: what is wrong, and how to fix it.
///
/// Messages name settings as fields, in backticks within a sentence: `` `n_emb 385` ``, `` lower `learning_rate` ``. The
/// command line turns these into flags.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The verb: `read`, `write`, `create`.
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The text to train on cannot be used.
    #[error("the text {path}: {reason}")]
    Corpus {
        /// The file, or the name of the embedded text.
        path: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A text or a file that does not fit the tokenizer.
    #[error("{reason}")]
    Tokenizer {
        /// What is wrong and what to do.
        reason: String,
    },
    /// An unknown name.
    #[error("unknown {what} '{given}'{}: choose from {names}", did_you_mean(nearest.as_deref()))]
    UnknownName {
        /// What it should name, without an article: `tokenizer`.
        what: &'static str,
        /// The name as given.
        given: String,
        /// The nearest known name, if one is near.
        nearest: Option<String>,
        /// The known names, separated by commas.
        names: String,
    },
    /// A setting outside its range, or two that contradict each other. The message is the reason, after the field if the
    /// reason does not begin with a setting in backticks.
    #[error("{}{reason}", if reason.starts_with('`') { String::new() } else { format!("{field}: ") })]
    Setting {
        /// The setting's name, such as `n_emb`.
        field: &'static str,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A run directory that cannot be used.
    #[error("{} {reason}", path.display())]
    RunDirectory {
        /// The directory.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A checkpoint that is missing, damaged or of a different model.
    #[error("checkpoint {} {reason}", path.display())]
    Checkpoint {
        /// The checkpoint's directory or file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A model of another program that is missing, damaged or not supported.
    #[error("{} {reason}", path.display())]
    Import {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Training produced numbers that are not finite.
    #[error(
        "training diverged: {what} at step {step} (learning rate {learning_rate:.3e}); lower `learning_rate`, add \
         `warmup_steps` or lower `grad_clip`, and start again from {}",
        last_checkpoint.as_ref().map_or("the beginning".to_owned(), |path| path.display().to_string())
    )]
    Diverged {
        /// What was not finite, and how often.
        what: String,
        /// The step, counting from 1.
        step: u64,
        /// The learning rate of that step.
        learning_rate: f64,
        /// The last checkpoint before that.
        last_checkpoint: Option<PathBuf>,
    },
    /// Training ended or was stopped, and its latest state could not be saved.
    #[error("{}: the latest state could not be saved: {source}", path.display())]
    Unsaved {
        /// The run's directory.
        path: PathBuf,
        /// Why the last attempt failed.
        source: Box<Error>,
    },
    /// The ranks of a run cannot train together.
    #[error("{reason}")]
    Ranks {
        /// What is wrong and what to do.
        reason: String,
    },
    /// The teachers' probabilities could not be read.
    #[error(
        "the teachers' probabilities in the temporary file of this run cannot be read: {reason}; resume the run"
    )]
    Teachers {
        /// The system's error.
        reason: String,
    },
    /// A model that cannot be exported, or an exported file that cannot be read.
    #[error("{reason}")]
    Export {
        /// What is wrong and what to do.
        reason: String,
    },
    /// A figure could not be drawn.
    #[error("cannot draw the figure: {reason}")]
    Plot {
        /// Why not.
        reason: String,
    },
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map(|name| format!(" (did you mean '{name}'?)")).unwrap_or_default()
}

impl Error {
    /// A failed system call on `path`; use with `map_err`.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::File { path, action, source }
    }

    /// A setting with an invalid value.
    pub(crate) fn setting(field: &'static str, reason: impl Into<String>) -> Error {
        debug_assert!(!field.starts_with('-'), "{field} is a flag, not a field");
        Error::Setting { field, reason: reason.into() }
    }

    /// A name that is not one of `names`, with the nearest of them as a suggestion.
    pub fn unknown_name(what: &'static str, given: &str, names: &[&str]) -> Error {
        let nearest = names
            .iter()
            .map(|name| (strsim::damerau_levenshtein(&given.to_lowercase(), name), name))
            .min()
            .filter(|(distance, name)| *distance <= name.len() / 2)
            .map(|(_, name)| (*name).to_owned());
        Error::UnknownName { what, given: given.to_owned(), nearest, names: names.join(", ") }
    }
}
