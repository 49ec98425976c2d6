//! Files that are either the old ones or the new ones, never halves.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// How the names of files begin that are not finished: what is left of them after a crash is rubbish.
const TEMPORARY: &str = ".folio-";

/// Writes `bytes` to a temporary sibling of `path`, syncs it, and renames it to `path`.
///
/// # Errors
/// [`Error::File`]; `path` is then what it was.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let directory = parent(path);
    let write = || {
        let mut file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(directory)?;
        file.write_all(bytes)?;
        make_public(file.path(), 0o644)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        sync_directory(directory)
    };
    write().map_err(Error::file("write", path))
}

/// Writes a value as indented JSON, with [`write_atomic`].
///
/// # Errors
/// As [`write_atomic`].
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    write_atomic(path, json(value).as_bytes())
}

/// A value as it stands in a file: indented JSON and a line's end.
pub fn json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("our own values have a JSON form") + "\n"
}

/// Reads a value from a JSON file.
///
/// # Errors
/// [`Error::File`] if it cannot be read, [`Error::RunDirectory`] if it is not of this form.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).map_err(Error::file("read", path))?;
    serde_json::from_str(&text).map_err(|error| Error::RunDirectory {
        path: path.to_path_buf(),
        reason: format!("is damaged or not a file of folio's: {error}"),
    })
}

/// Makes a directory and those above it.
///
/// # Errors
/// [`Error::File`] if the system refuses.
pub fn create_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(Error::file("create", path))
}

/// Fills a new directory under a temporary name, syncs every file in it, and renames it to `path`, in place of what
/// stood there.
///
/// # Errors
/// [`Error::File`], or what `fill` says; `path` is then what it was.
pub fn write_directory_atomic(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let directory = parent(path);
    let temporary = tempfile::Builder::new().prefix(TEMPORARY).tempdir_in(directory);
    let temporary = temporary.map_err(Error::file("write", path))?;
    fill(temporary.path())?;
    let publish = || {
        for entry in fs::read_dir(temporary.path())? {
            let file = entry?.path();
            make_public(&file, 0o644)?;
            File::open(file)?.sync_all()?;
        }
        make_public(temporary.path(), 0o755)?;
        sync_directory(temporary.path())?;
        replace(temporary.path(), path)?;
        sync_directory(directory)
    };
    publish().map_err(Error::file("write", path))
    // What is under the temporary name now, nothing or what was replaced, goes with it.
}

/// Renames a directory to `path`, where an old one may stand; that one is then under the first name.
fn replace(new: &Path, path: &Path) -> io::Result<()> {
    if !path.exists() {
        return fs::rename(new, path);
    }
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        // At once, so that there is never neither. Not every file system can.
        if renameat_with(CWD, new, CWD, path, RenameFlags::EXCHANGE).is_ok() {
            return Ok(());
        }
    }
    remove_directory(path)?;
    fs::rename(new, path)
}

/// Removes a directory so that it is there in full or not at all.
///
/// # Errors
/// What the system says.
pub fn remove_directory(path: &Path) -> io::Result<()> {
    let mut name = OsString::from(TEMPORARY);
    name.push(path.file_name().unwrap_or_default());
    let aside = parent(path).join(name);
    if aside.exists() {
        fs::remove_dir_all(&aside)?;
    }
    // Under a name that counts for nothing, and without a new directory, for which a full disk has no room.
    fs::rename(path, &aside)?;
    fs::remove_dir_all(aside)
}

/// Points the name `link` at a sibling, in place of what it pointed at; never at nothing in between. Systems without
/// symbolic links go without.
///
/// # Errors
/// [`Error::File`] if the system refuses.
pub fn point(link: &Path, sibling: &str) -> Result<()> {
    if !cfg!(unix) || fs::read_link(link).is_ok_and(|old| old == Path::new(sibling)) {
        return Ok(());
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::symlink;
        let make = || {
            let make_link = |path: &Path| symlink(sibling, path);
            let temporary = tempfile::Builder::new().prefix(TEMPORARY).make_in(parent(link), make_link)?;
            temporary.into_temp_path().persist(link)?;
            sync_directory(parent(link))
        };
        make().map_err(Error::file("write", link))?;
    }
    Ok(())
}

/// Removes what a process that was killed has left half-written in a directory.
///
/// # Errors
/// [`Error::File`] if something cannot be removed.
pub fn remove_rubbish(directory: &Path) -> Result<()> {
    for path in rubbish(directory)? {
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(Error::file("remove", &path))?;
    }
    Ok(())
}

/// What is half-written in a directory.
fn rubbish(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).map_err(Error::file("read", directory))?;
    let entries = entries.filter_map(io::Result::ok);
    let unfinished = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(TEMPORARY));
    Ok(unfinished.map(|entry| entry.path()).collect())
}

/// The length and the SHA-256, in lower-case hexadecimal, of a file's content.
///
/// # Errors
/// What the system says.
pub fn digest_of_file(path: &Path) -> io::Result<(u64, String)> {
    let (mut file, mut hash, mut bytes) = (File::open(path)?, Sha256::new(), 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((bytes, hexadecimal(&hash.finalize()))),
            count => {
                hash.update(&buffer[..count]);
                bytes += count as u64;
            }
        }
    }
}

/// The SHA-256 of `bytes` in lower-case hexadecimal.
///
/// ```
/// # use folio::files::digest;
/// assert!(digest(b"abc").starts_with("ba7816bf"));
/// ```
pub fn digest(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(directory) if directory != Path::new("") => directory,
        _ => Path::new("."),
    }
}

/// Temporary files are private; what takes their place is for whoever may look into the directory.
fn make_public(path: &Path, mode: u32) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    let _ = (path, mode);
    Ok(())
}

/// Makes the names in a directory durable. Only Unix lets a directory be synced.
fn sync_directory(directory: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(directory)?.sync_all() } else { Ok(()) }
}
