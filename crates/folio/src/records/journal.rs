//! Bytes that are appended to a file, and wait in memory while they cannot be.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// How long bytes wait to be written together.
const PATIENCE: Duration = Duration::from_secs(1);

/// A file that grows.
pub(super) struct Journal {
    path: PathBuf,
    waiting: Vec<u8>,
    written_at: Instant,
}

impl Journal {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, waiting: Vec::new(), written_at: Instant::now() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes more bytes, and writes what waits if it has waited long enough. If it cannot be written it waits on.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.waiting.extend_from_slice(bytes);
        if self.written_at.elapsed() >= PATIENCE {
            let _ = self.flush();
        }
    }

    /// Appends what waits, all of it or nothing, so that nothing is written twice.
    pub(super) fn flush(&mut self) -> Result<()> {
        self.written_at = Instant::now();
        if self.waiting.is_empty() {
            return Ok(());
        }
        let append = || {
            let mut file = OpenOptions::new().create(true).append(true).open(&self.path)?;
            let length = file.metadata()?.len();
            file.write_all(&self.waiting).inspect_err(|_| _ = file.set_len(length))
        };
        append().map_err(Error::file("write", &self.path))?;
        self.waiting.clear();
        Ok(())
    }
}
