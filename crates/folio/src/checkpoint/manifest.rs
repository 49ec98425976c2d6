//! The list of a checkpoint's files with their lengths and hashes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{FORMATS, damaged};
use crate::error::{Error, Result};
use crate::files::{digest, digest_of_file, write_json};

pub(super) const MANIFEST_FILE: &str = "manifest.json";

/// The content of `manifest.json`. Every entry is verified against a file, so the manifest needs no hash of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    format: u32,
    files: BTreeMap<String, Entry>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    bytes: u64,
    sha256: String,
}

impl Manifest {
    /// The manifest of the current files of `directory`.
    pub(super) fn of<'n>(
        format: u32,
        directory: &Path,
        names: impl Iterator<Item = &'n &'n str>,
    ) -> Result<Self> {
        let entry = |name: &&str| {
            let path = directory.join(name);
            let (bytes, sha256) = digest_of_file(&path).map_err(Error::file("read", &path))?;
            Ok(((*name).to_owned(), Entry { bytes, sha256 }))
        };
        Ok(Self { format, files: names.map(entry).collect::<Result<_>>()? })
    }

    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        write_json(&directory.join(MANIFEST_FILE), self)
    }

    pub(super) fn read(directory: &Path) -> Result<Self> {
        /// The field that all versions have.
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let text = fs::read(directory.join(MANIFEST_FILE))
            .map_err(|error| damaged(directory, format!("{MANIFEST_FILE} cannot be read, {error}")))?;
        let wrong = |error: serde_json::Error| damaged(directory, format!("{MANIFEST_FILE}: {error}"));
        let Version { format } = serde_json::from_slice(&text).map_err(wrong)?;
        if !FORMATS.contains(&format) {
            let (oldest, newest) = (FORMATS.start(), FORMATS.end());
            let reason = format!(
                "has format {format}, this folio reads {oldest} to {newest}: use the folio that wrote it"
            );
            return Err(Error::Checkpoint { path: directory.to_path_buf(), reason });
        }
        serde_json::from_slice(&text).map_err(wrong)
    }

    /// The names of the files.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// The SHA-256 of a file.
    pub(super) fn sha256_of(&self, name: &str) -> Option<&str> {
        self.files.get(name).map(|entry| entry.sha256.as_str())
    }

    pub(super) fn holds(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// Removes a file from the list. Returns whether it was listed.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        self.files.remove(name).is_some()
    }

    /// The verified content of a file.
    pub(super) fn read_file(&self, directory: &Path, name: &str) -> Result<Vec<u8>> {
        let Some(entry) = self.files.get(name) else {
            return Err(damaged(directory, format!("{MANIFEST_FILE} does not list {name}")));
        };
        let path = directory.join(name);
        let unreadable = |error| damaged(directory, format!("{name} cannot be read, {error}"));
        // Checked before the memory is allocated.
        entry.check_length(directory, name, fs::metadata(&path).map_err(unreadable)?.len())?;
        let bytes = fs::read(&path).map_err(unreadable)?;
        entry.check(directory, name, (bytes.len() as u64, digest(&bytes)))?;
        Ok(bytes)
    }

    /// Checks the length of every existing file. The error is the name of the first that differs.
    pub(super) fn check_lengths(&self, directory: &Path) -> std::result::Result<(), String> {
        let differs = |(name, entry): &(&String, &Entry)| {
            fs::metadata(directory.join(name)).is_ok_and(|file| file.len() != entry.bytes)
        };
        self.files.iter().find(differs).map_or(Ok(()), |(name, _)| Err(name.clone()))
    }

    /// Verifies every file.
    pub(super) fn verify(&self, directory: &Path) -> Result<()> {
        self.files.iter().try_for_each(|(name, entry)| {
            let found = digest_of_file(&directory.join(name))
                .map_err(|error| damaged(directory, format!("{name} cannot be read, {error}")))?;
            entry.check(directory, name, found)
        })
    }
}

impl Entry {
    fn check_length(&self, directory: &Path, name: &str, found: u64) -> Result<()> {
        if found == self.bytes {
            return Ok(());
        }
        Err(damaged(directory, format!("{name} has {found} bytes, {} were written", self.bytes)))
    }

    fn check(&self, directory: &Path, name: &str, (bytes, sha256): (u64, String)) -> Result<()> {
        self.check_length(directory, name, bytes)?;
        if sha256 == self.sha256 {
            return Ok(());
        }
        Err(damaged(
            directory,
            format!("{name} or its line in {MANIFEST_FILE} has changed since it was written"),
        ))
    }
}
