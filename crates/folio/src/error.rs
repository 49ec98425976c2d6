//! What can go wrong, said to the person who can mend it.

use std::io;
use std::path::{Path, PathBuf};

/// The result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// A user's mistake or a failure of the machine. Every message is one line that names the culprit and the way
/// out.
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
        /// What the system said.
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
    /// A text or a file does not fit the tokenizer.
    #[error("{reason}")]
    Tokenizer {
        /// What is wrong and what to do.
        reason: String,
    },
    /// A name that is not among those known.
    #[error("unknown {what} '{given}'{}: choose from {names}", did_you_mean(nearest.as_deref()))]
    UnknownName {
        /// The kind of thing, with its article left out: `tokenizer`.
        what: &'static str,
        /// The name as given.
        given: String,
        /// The known name closest to it, if one is close.
        nearest: Option<String>,
        /// The known names, separated by commas.
        names: String,
    },
    /// A setting outside its range, or two that contradict each other.
    #[error("{setting}: {reason}")]
    Setting {
        /// The flag, such as `--n_emb`.
        setting: &'static str,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A run directory that cannot be used as asked.
    #[error("{}: {reason}", path.display())]
    RunDirectory {
        /// The directory.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A checkpoint that is missing, damaged or of another model.
    #[error("checkpoint {}: {reason}", path.display())]
    Checkpoint {
        /// The checkpoint's directory or file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Training left the range of finite numbers.
    #[error(
        "training diverged: {what} at step {step} (learning rate {learning_rate:.3e}); lower --learning_rates, add \
         --warmup_steps or clip harder with --grad_clip, from {}",
        last_checkpoint.as_ref().map_or("the beginning".to_owned(), |path| path.display().to_string())
    )]
    Diverged {
        /// What is not finite, and how often.
        what: String,
        /// The step, counting from 1.
        step: u64,
        /// The rate of that step.
        learning_rate: f64,
        /// The last checkpoint that was written before.
        last_checkpoint: Option<PathBuf>,
    },
    /// Training went on to its end, or to where it was stopped, but this could not be saved.
    #[error("{}: what was trained last could not be saved: {source}", path.display())]
    Unsaved {
        /// The run's directory.
        path: PathBuf,
        /// The last attempt.
        source: Box<Error>,
    },
    /// The ranks of a run cannot train together.
    #[error(
        "rank {rank} has another {what} than rank 0: start all ranks with the same program, arguments and files"
    )]
    Ranks {
        /// The rank.
        rank: usize,
        /// What differs.
        what: String,
    },
    /// A figure could not be drawn.
    #[error("cannot draw the figure: {reason}")]
    Plot {
        /// What stood in the way.
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

    /// A setting that cannot be.
    pub(crate) fn setting(setting: &'static str, reason: impl Into<String>) -> Error {
        Error::Setting { setting, reason: reason.into() }
    }

    /// A name that is not one of `names`, with the nearest of them if it is near.
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
