//! The names of TensorBoard event files, one per start of the run.

use std::path::Path;
#[cfg(feature = "tensorboard")]
use std::{fs, io::ErrorKind, path::PathBuf};

#[cfg(feature = "tensorboard")]
use crate::error::{Error, Result};

/// File names are a prefix, a number and a suffix. TensorBoard reads the files in the order of the numbers.
const PREFIX: &str = "events.out.tfevents.";
const SUFFIX: &str = ".folio";

/// The event files of a run, in order.
///
/// # Errors
/// If the directory exists but cannot be read.
#[cfg(test)]
pub(crate) fn event_files(run_dir: &Path) -> Result<Vec<PathBuf>> {
    Ok(numbered_files(run_dir)?.into_iter().map(|(_, path)| path).collect())
}

/// The path of the next event file.
///
/// # Errors
/// If the directory exists but cannot be read.
#[cfg(feature = "tensorboard")]
pub(crate) fn next_event_file(run_dir: &Path) -> Result<PathBuf> {
    let number = numbered_files(run_dir)?.last().map_or(1, |(number, _)| number.saturating_add(1));
    // 10 digits, like the seconds since 1970 in the files of other programs, so that names sort like numbers.
    Ok(run_dir.join(format!("{PREFIX}{number:010}{SUFFIX}")))
}

/// Whether a path has the name of an event file written by folio.
pub(super) fn is_event_file(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).and_then(number_of).is_some()
}

fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok()
}

#[cfg(feature = "tensorboard")]
fn numbered_files(run_dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(run_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::file("read", run_dir)(error)),
    };
    let numbered = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        Some((number_of(path.file_name()?.to_str()?)?, path))
    });
    let mut numbered: Vec<(u64, PathBuf)> = numbered.collect();
    numbered.sort();
    Ok(numbered)
}
