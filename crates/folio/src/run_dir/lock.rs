//! The lock that lets only one process write to a run's directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::time::Duration;

use super::RunDir;
use crate::error::{Error, Result};

pub(super) const LOCK_FILE: &str = ".lock";

/// An exclusive lock on a run's directory, until it is dropped or the process ends. The operating system releases the
/// lock of a killed process, so locks never go stale. The lock file stays, and contains the process id of its last holder.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

impl RunLock {
    /// Locks a directory, which must exist.
    ///
    /// # Errors
    /// [`Error::RunDirectory`] if another process holds the lock; [`Error::File`] if the file cannot be
    /// created.
    pub fn take(run: &RunDir) -> Result<Self> {
        let path = run.path().join(LOCK_FILE);
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.map_err(Error::file("write", &path))?;
        match try_lock_with_retries(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Empty if the holder has not written its process id yet.
                let _ = file.read_to_string(&mut holder);
                let holder = if holder.is_empty() {
                    "another process".to_owned()
                } else {
                    format!("process {}", holder.trim())
                };
                let reason =
                    format!("is in use by {holder}: wait for it, stop it, or give another --run_dir");
                return Err(Error::RunDirectory { path: run.path().to_path_buf(), reason });
            }
            // Some network file systems do not support locks. Train without one there.
            Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(Error::file("lock", &path)(error)),
        }
        let write_id = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        write_id(&mut file).map_err(Error::file("write", &path))?;
        Ok(Self { _file: file })
    }

    /// Whether a process, possibly this one, holds the lock.
    pub fn is_held(run: &RunDir) -> bool {
        let file = File::open(run.path().join(LOCK_FILE));
        file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }
}

/// Retries for 50 ms: another process may hold the lock for a moment, in [`RunLock::is_held`].
fn try_lock_with_retries(file: &File) -> std::result::Result<(), TryLockError> {
    for _ in 0..5 {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            other => return other,
        }
    }
    file.try_lock()
}
