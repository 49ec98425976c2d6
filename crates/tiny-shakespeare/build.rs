//! Copies the text from a package, restores its canonical bytes, verifies and embeds them.
//!
//! The text is `dataset.txt` of the package `femto-gpt`, a build dependency that is never linked. Only `cargo metadata`
//! knows where cargo unpacks a dependency. For the whole workspace, it needs packages of other platforms and features that
//! a build never downloads. So this script writes a manifest with only this dependency, and runs it for that, offline.

#![forbid(unsafe_code)]

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use sha2::{Digest, Sha256};

const PACKAGE: &str = "femto-gpt";
/// Must be the version in Cargo.toml, which cargo has downloaded.
const VERSION: &str = "0.2.0";
/// The hash of the canonical file, `data/tinyshakespeare/input.txt` of the repository karpathy/char-rnn.
const SHA256: &str = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed";
/// The lines, counting from 1, whose two trailing spaces are missing in the package.
const LINES_ENDING_IN_SPACES: [usize; 2] = [2478, 2479];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-env=TINY_SHAKESPEARE_SHA256={SHA256}");
    if let Err(message) = embed() {
        // Cargo shows each line as an error, and fails the build after the script ends.
        for line in message.lines() {
            println!("cargo::error={line}");
        }
    }
}

fn embed() -> Result<(), String> {
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let package_dir = find_package(&out_dir.join("locate"))?;
    let path = package_dir.join("dataset.txt");
    let packaged =
        fs::read_to_string(&path).map_err(|error| reinstall(&path, &format!("cannot be read: {error}")))?;
    let text = restore_spaces(&packaged);
    let sha256: String = Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect();
    if sha256 != SHA256 {
        let reason = format!("is not tiny Shakespeare: restored, its sha256 is {sha256} instead of {SHA256}");
        return Err(reinstall(&path, &reason));
    }
    write(&out_dir.join("tiny_shakespeare.txt"), text)
}

/// Restores trailing spaces that are missing in the package.
fn restore_spaces(packaged: &str) -> String {
    let mut text = String::with_capacity(packaged.len() + 4);
    for (line_idx, line) in packaged.split_inclusive('\n').enumerate() {
        if LINES_ENDING_IN_SPACES.contains(&(line_idx + 1)) {
            text.push_str(line.trim_end());
            text.push_str("  \n");
        } else {
            text.push_str(line);
        }
    }
    text
}

/// Finds the directory of the package. Writes a manifest to `locate_dir`.
fn find_package(locate_dir: &Path) -> Result<PathBuf, String> {
    fs::create_dir_all(locate_dir)
        .map_err(|error| format!("cannot create {}: {error}", locate_dir.display()))?;
    let manifest = locate_dir.join("Cargo.toml");
    // The empty [workspace] table keeps it out of the workspace that contains `target`.
    let contents = format!(
        "[package]\nname = \"locate\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n[lib]\npath = \"lib.rs\"\n\
         [dependencies]\n{PACKAGE} = {{ version = \"={VERSION}\", default-features = false }}\n"
    );
    write(&manifest, contents)?;
    write(&locate_dir.join("lib.rs"), "")?;
    let lock = locate_dir.join("Cargo.lock");
    let mut metadata = Err(String::new());
    if copy_lock(&lock)? {
        metadata = cargo_metadata(&manifest);
        fs::remove_file(&lock).map_err(|error| format!("cannot delete {}: {error}", lock.display()))?;
    }
    // A published package has the lock file of its release. A project that depends on it can have downloaded other versions.
    // Without a lock file, cargo chooses among the downloaded ones.
    let metadata = metadata.or_else(|_| cargo_metadata(&manifest))?;
    package_dir(&metadata).ok_or_else(|| {
        format!("`cargo metadata` does not list the package {PACKAGE} {VERSION}, which carries the text; update cargo")
    })
}

/// What `cargo metadata` prints for a manifest, of downloaded packages only.
fn cargo_metadata(manifest: &Path) -> Result<Value, String> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let output = Command::new(&cargo)
        .args(["metadata", "--offline", "--format-version=1", "--filter-platform"])
        .arg(variable("HOST")?)
        .arg("--manifest-path")
        .arg(manifest)
        .output()
        .map_err(|error| format!("cannot run {}: {error}", cargo.display()))?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "cargo does not find the package {PACKAGE} {VERSION}, which carries the text; its message is\n{}\n\
             run `cargo fetch` in the workspace while online, then build again",
            reason.trim()
        ));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("`cargo metadata` printed something other than JSON: {error}"))
}

/// Copies the lock file of the workspace or of the published package to `to`. False if there is none.
fn copy_lock(to: &Path) -> Result<bool, String> {
    let crate_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let Some(lock) = crate_dir.ancestors().map(|dir| dir.join("Cargo.lock")).find(|lock| lock.is_file())
    else {
        return Ok(false);
    };
    let contents = fs::read(&lock).map_err(|error| format!("cannot read {}: {error}", lock.display()))?;
    write(to, contents)?;
    Ok(true)
}

fn package_dir(metadata: &Value) -> Option<PathBuf> {
    let packages = metadata["packages"].as_array()?;
    let package =
        packages.iter().find(|package| package["name"] == PACKAGE && package["version"] == VERSION)?;
    Some(Path::new(package["manifest_path"].as_str()?).parent()?.to_owned())
}

/// The error for a damaged package: what is wrong with `path`, and how to reinstall it.
fn reinstall(path: &Path, reason: &str) -> String {
    let package_dir = path.parent().unwrap_or(path);
    format!(
        "{} {reason}\ndelete the folder {} and build again: cargo then unpacks the package anew",
        path.display(),
        package_dir.display()
    )
}

fn variable(name: &str) -> Result<OsString, String> {
    env::var_os(name)
        .ok_or_else(|| format!("the variable {name} is not set; build with cargo, which sets it"))
}

fn write(path: &Path, contents: impl AsRef<[u8]>) -> Result<(), String> {
    fs::write(path, contents).map_err(|error| format!("cannot write {}: {error}", path.display()))
}
