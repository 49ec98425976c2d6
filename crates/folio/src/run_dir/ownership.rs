//! Verifies which files folio wrote. Only those are ever deleted.
//!
//! A name is not enough. A file must be next to the settings of a run or sweep, and its content must match its name. A
//! checkpoint must contain the files of its manifest and no others, and a run of a sweep must contain only such files.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::sweep_file::{SWEEP_FILE, Sweep};
use super::{
    BEST, LATEST, LOCK_FILE, LOSSES_FILE, METRICS_FILE, MODEL_FILE, RATES_FILE, RunDir, SETTINGS_FILE,
    STATUS_FILE, Status, is_event_file, number_of_run,
};
use crate::checkpoint::{self, CheckpointName};
use crate::error::{Error, Result};
use crate::files::{GENERATOR, is_temporary};
use crate::history::LossLists;
use crate::model::ModelConfig;
use crate::tokenizer::Tokenizer;

/// The files and directories of an earlier run or sweep, all verified, which a new run may replace. Files with other names
/// are not included.
///
/// # Errors
/// [`Error::RunDirectory`] with the first path that has a name of folio's but cannot be verified.
pub(super) fn removable(run: &RunDir) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for path in entries(run.path())? {
        if is_in_the_way(&path) {
            check_described(run.path(), &path)?;
            check(&path)?;
            paths.push(path);
        }
    }
    Ok(paths)
}

/// Whether runs or sweeps use this name.
pub(super) fn is_in_the_way(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    if path.is_dir() && !path.is_symlink() {
        return CheckpointName::parse(name).is_some() || number_of_run(name).is_some();
    }
    proof(name).is_some() || is_event_file(path)
}

/// Verifies that folio wrote a path and everything below it.
fn check(path: &Path) -> Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if !path.is_dir() || path.is_symlink() {
        let proof = proof(name).unwrap_or(is_event_log);
        // Deleting an empty file loses nothing.
        let is_empty = fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() == 0);
        return if is_empty || proof(path) { Ok(()) } else { Err(foreign(path)) };
    }
    let inside = entries(path)?;
    if CheckpointName::parse(name).is_some() && !inside.is_empty() {
        return check_checkpoint(path);
    }
    for inside in inside {
        check_described(path, &inside)?;
        match inside.file_name().and_then(|name| name.to_str()) {
            Some(LOCK_FILE) => {}
            Some(name) if is_temporary(name) => {}
            _ if is_in_the_way(&inside) => check(&inside)?,
            _ => return Err(foreign(&inside)),
        }
    }
    Ok(())
}

/// Checks that a file is next to the settings of a run or sweep.
fn check_described(directory: &Path, path: &Path) -> Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_described = [SETTINGS_FILE, SWEEP_FILE].iter().any(|name| {
        let settings = directory.join(name);
        proof(name).is_some_and(|proof| proof(&settings))
    });
    let is_proof = [SETTINGS_FILE, SWEEP_FILE].contains(&name);
    let counts = path.is_file() && !is_proof && name != LOCK_FILE && !is_temporary(name);
    if counts && !is_described { Err(foreign(path)) } else { Ok(()) }
}

/// Checks that a checkpoint contains the files that its manifest lists, and no others.
///
/// # Errors
/// [`Error::RunDirectory`] with the first file that cannot be verified.
pub(super) fn check_checkpoint(path: &Path) -> Result<()> {
    let Ok(listed) = checkpoint::listed_files(path) else {
        // Without a valid manifest no file can be verified; report the first one.
        return Err(foreign(entries(path)?.first().map_or(path, PathBuf::as_path)));
    };
    let is_ours = |file: &PathBuf| {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        listed.iter().any(|known| known == name) || is_temporary(name)
    };
    entries(path)?.into_iter().find(|file| !is_ours(file)).map_or(Ok(()), |file| Err(foreign(&file)))?;
    // Other programs use the same file names, so compare lengths, too.
    checkpoint::check_lengths(path).map_err(|file| foreign(&file))
}

/// The check of a file's content, by its name; none if folio writes no such file.
fn proof(name: &str) -> Option<fn(&Path) -> bool> {
    Some(match name {
        SETTINGS_FILE => |path| {
            let settings: Option<Value> = parsed(path);
            settings.is_some_and(|value| value.get("tokenizer_type").is_some() && value.get("seed").is_some())
        },
        MODEL_FILE => |path| parsed::<ModelConfig>(path).is_some(),
        LOSSES_FILE => |path| parsed::<LossLists>(path).is_some(),
        RATES_FILE => |path| parsed::<Vec<f64>>(path).is_some(),
        STATUS_FILE => |path| parsed::<Status>(path).is_some(),
        METRICS_FILE => |path| first_line(path).is_some_and(|value| value.get("event").is_some()),
        SWEEP_FILE => |path| parsed::<Sweep>(path).is_some(),
        "vocab.json" => |path| parsed::<Vec<char>>(path).is_some(),
        "tokenizer.json" => |path| Tokenizer::read(path).is_ok(),
        "tokenizer_config.json" => |path| {
            let config: Option<Value> = parsed(path);
            config.is_some_and(|value| value["tokenizer_class"] == "PreTrainedTokenizerFast")
        },
        "report.html" | "losses.svg" | "losses.png" => says_who_made_it,
        LATEST | BEST => |path| {
            let target = fs::read_link(path).ok();
            target.and_then(|target| CheckpointName::parse(target.to_str()?)).is_some()
        },
        _ => return None,
    })
}

/// The value in a JSON file, if it has this type.
fn parsed<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// The first record of a JSON Lines file.
fn first_line(path: &Path) -> Option<Value> {
    let text = fs::read(path).ok()?;
    serde_json::from_slice(text.split(|&byte| byte == b'\n').next()?).ok()
}

/// Whether a figure or page contains the name of its generator, folio.
fn says_who_made_it(path: &Path) -> bool {
    let text = fs::read(path).unwrap_or_default();
    text.windows(GENERATOR.len()).any(|part| part == GENERATOR.as_bytes())
}

/// Whether a file begins like a TensorBoard event file: a short record with the format version.
fn is_event_log(path: &Path) -> bool {
    let mut start = [0; 64];
    let count = File::open(path).and_then(|mut file| file.read(&mut start)).unwrap_or(0);
    start[..count].windows(12).any(|part| part == b"brain.Event:")
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::file("read", directory)(error)),
    };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    Ok(paths)
}

fn foreign(path: &Path) -> Error {
    let reason = "would be overwritten, but folio cannot verify that it wrote it: move it away, or give another \
                  --run_dir";
    Error::RunDirectory { path: path.to_path_buf(), reason: reason.to_owned() }
}
