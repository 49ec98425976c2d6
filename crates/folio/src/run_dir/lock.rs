//! One process at a time writes to a run's directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::time::Duration;

use super::RunDir;
use crate::error::{Error, Result};

pub(super) const LOCK_FILE: &str = ".lock";

/// The right to write to a run's directory, until it is dropped or its process ends, however it ends: the system keeps
/// it, so that a lock whose holder is gone is none. The file, which stays, tells the holder's number.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

impl RunLock {
    /// Takes the lock of a directory that exists.
    ///
    /// # Errors
    /// [`Error::RunDirectory`] if another process has it; [`Error::File`] if the file cannot be made.
    pub fn take(run: &RunDir) -> Result<Self> {
        let path = run.path().join(LOCK_FILE);
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.map_err(Error::file("write", &path))?;
        match patiently(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Whoever holds it may be just about to write its number.
                let _ = file.read_to_string(&mut holder);
                let holder = if holder.is_empty() {
                    "another process".to_owned()
                } else {
                    format!("process {}", holder.trim())
                };
                let reason =
                    format!("is being written by {holder}: wait for it, stop it, or give another --run_dir");
                return Err(Error::RunDirectory { path: run.path().to_path_buf(), reason });
            }
            // Some network file systems know no locks; training there is better than not training.
            Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(Error::file("lock", &path)(error)),
        }
        let tell = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        tell(&mut file).map_err(Error::file("write", &path))?;
        Ok(Self { _file: file })
    }

    /// Whether some process, this one included, writes to the directory now.
    pub fn is_held(run: &RunDir) -> bool {
        let file = File::open(run.path().join(LOCK_FILE));
        file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }
}

/// Tries again if the lock is taken: it may be by someone who only looks whether it is.
fn patiently(file: &File) -> std::result::Result<(), TryLockError> {
    for _ in 0..5 {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            other => return other,
        }
    }
    file.try_lock()
}
