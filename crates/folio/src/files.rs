//! Files that are either the old ones or the new ones, never halves.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Writes `bytes` to a temporary sibling of `path`, syncs it, and renames it to `path`.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let directory = parent(path);
    let write = || {
        let mut file = tempfile::Builder::new().prefix(".folio-").tempfile_in(directory)?;
        // A temporary file is private; the one that takes its place is a plain file of this user.
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
        }
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        sync_directory(directory)
    };
    write().map_err(Error::file("write", path))
}

/// Writes a value as indented JSON, with [`write_atomic`].
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).expect("our own values have a JSON form");
    text.push('\n');
    write_atomic(path, text.as_bytes())
}

/// Reads a value from a JSON file.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).map_err(Error::file("read", path))?;
    serde_json::from_str(&text).map_err(|error| Error::RunDirectory {
        path: path.to_path_buf(),
        reason: format!("is damaged or not a file of folio's: {error}"),
    })
}

/// Makes a directory and those above it.
pub fn create_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(Error::file("create", path))
}

/// Fills a new directory under a temporary name, syncs what is in it, and renames it to `path`, in place of
/// what stood there.
pub fn write_directory_atomic(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let directory = parent(path);
    let temporary = tempfile::Builder::new()
        .prefix(".folio-")
        .tempdir_in(directory)
        .map_err(Error::file("write", path))?;
    fill(temporary.path())?;
    let publish = || {
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o755))?;
        }
        sync_directory(temporary.path())?;
        if path.exists() {
            fs::remove_dir_all(path)?;
        }
        fs::rename(temporary.path(), path)?;
        sync_directory(directory)
    };
    publish().map_err(Error::file("write", path))?;
    // The directory has moved: there is nothing left under the temporary name to remove.
    let _ = temporary.keep();
    Ok(())
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(directory) if directory != Path::new("") => directory,
        _ => Path::new("."),
    }
}

/// Makes the names in a directory durable. Only Unix lets a directory be synced.
fn sync_directory(directory: &Path) -> std::io::Result<()> {
    if cfg!(unix) { File::open(directory)?.sync_all() } else { Ok(()) }
}
