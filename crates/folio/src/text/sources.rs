//! The files of a text: names, directories, patterns and stdin.

use std::collections::HashSet;
use std::fmt::{self, Display};
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{EMBEDDED_NAME, unusable};
use crate::error::{Error, Result};

/// The name of standard input among files.
pub const STDIN: &str = "-";

/// The files of a text, in `hyperparameters.json` a string for one file and a list for several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "the path of a text, or a list of paths")]
pub enum TextFiles {
    /// One file, [`STDIN`], or [`EMBEDDED_NAME`].
    One(String),
    /// Several, in reading order.
    Several(Vec<String>),
}

impl TextFiles {
    /// Makes `One` of a single name, else `Several`.
    pub fn new(mut names: Vec<String>) -> Self {
        match names.len() {
            1 => Self::One(names.remove(0)),
            _ => Self::Several(names),
        }
    }

    /// The names.
    pub fn names(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Several(names) => names,
        }
    }

    /// The paths.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.names().iter().map(PathBuf::from).collect()
    }

    /// Whether this is the embedded text.
    pub fn is_embedded(&self) -> bool {
        self.names() == [EMBEDDED_NAME]
    }

    /// Whether stdin, which cannot be read twice, is among the files.
    pub fn has_stdin(&self) -> bool {
        self.names().iter().any(|name| name == STDIN)
    }
}

impl Display for TextFiles {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.names() {
            [] => formatter.write_str("no file"),
            [name] if name == STDIN => formatter.write_str("stdin"),
            [name] => formatter.write_str(name),
            [first, rest @ ..] => write!(formatter, "{first} and {} more", rest.len()),
        }
    }
}

/// Expands directories to the texts in them and patterns to the files that match, sorted by name.
///
/// # Errors
/// [`Error::Corpus`] if a directory or a pattern yields no file, or a file is given twice.
pub(super) fn expand(given: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in given {
        if path.as_os_str() != STDIN && path.is_dir() {
            files.extend(texts_in(path)?);
        } else if path.as_os_str() != STDIN && !path.exists() && is_pattern(path) {
            files.extend(matching(path)?);
        } else {
            files.push(path.clone());
        }
    }
    let mut seen = HashSet::new();
    let same = |file: &PathBuf| file.canonicalize().unwrap_or_else(|_| file.clone());
    match files.iter().find(|file| !seen.insert(same(file))) {
        Some(twice) => Err(unusable(twice, "it is given twice; give it only once")),
        None => Ok(files),
    }
}

/// Reads a file, or stdin.
///
/// # Errors
/// [`Error::Corpus`] if it does not exist; [`Error::File`] for other errors of the operating system.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    if path.as_os_str() == STDIN {
        let mut bytes = Vec::new();
        let read = io::stdin().lock().read_to_end(&mut bytes);
        return read.map(|_| bytes).map_err(Error::file("read", Path::new("stdin")));
    }
    fs::read(path).map_err(|source| match source.kind() {
        ErrorKind::NotFound => unusable(path, "it does not exist; check the spelling of its path"),
        ErrorKind::IsADirectory => unusable(path, "it is a directory; give the path of a text file"),
        _ => Error::file("read", path)(source),
    })
}

/// The text files directly in a directory, recognized by their names and sorted.
fn texts_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).map_err(Error::file("read", directory))?;
    let mut others = 0;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::file("read", directory))?.path();
        if !path.is_file() {
            continue;
        }
        if is_text_name(&path) { files.push(path) } else { others += 1 }
    }
    files.sort();
    if files.is_empty() {
        let pattern = shell_quoted(&directory.join("*").display().to_string());
        let reason = match others {
            0 => "it is a directory without files; give a text file, or a directory with .txt or .gz files"
                .to_owned(),
            others => format!(
                "it is a directory, and its {others} files are neither .txt nor .gz; to read all of them, give {pattern}"
            ),
        };
        return Err(unusable(directory, reason));
    }
    Ok(files)
}

/// Whether a name ends in `.txt` or `.gz`. Archives and hidden files do not count.
fn is_text_name(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    !name.starts_with('.') && !name.ends_with(".tar.gz") && (name.ends_with(".txt") || name.ends_with(".gz"))
}

fn is_pattern(path: &Path) -> bool {
    path.to_string_lossy().contains(['*', '?', '['])
}

/// The files that match a pattern that the shell did not expand.
fn matching(pattern: &Path) -> Result<Vec<PathBuf>> {
    let paths = glob::glob(&pattern.to_string_lossy());
    let paths = paths.map_err(|error| unusable(pattern, format!("it is not a pattern: {}", error.msg)))?;
    // Skips directories without read permission.
    let mut files: Vec<PathBuf> =
        paths.filter_map(std::result::Result::ok).filter(|path| path.is_file()).collect();
    files.sort();
    if files.is_empty() {
        return Err(unusable(pattern, "no file matches it; check its spelling"));
    }
    Ok(files)
}

/// A word for a POSIX shell, quoted if necessary.
///
/// ```
/// # use folio::text::shell_quoted;
/// assert_eq!(shell_quoted("runs/quick"), "runs/quick");
/// assert_eq!(shell_quoted("my run"), "'my run'");
/// ```
pub fn shell_quoted(word: &str) -> String {
    // Only a NUL cannot be quoted. Paths contain none.
    shlex::try_quote(word).map_or_else(|_| word.to_owned(), |quoted| quoted.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names that `given` expands to in a directory with these files.
    fn expanded(files: &[&str], given: &[&str]) -> Result<Vec<String>> {
        let directory = tempfile::tempdir().unwrap();
        for file in files {
            let path = directory.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "text").unwrap();
        }
        let given: Vec<PathBuf> = given.iter().map(|name| directory.path().join(name)).collect();
        let name = |path: &PathBuf| path.strip_prefix(directory.path()).unwrap().display().to_string();
        Ok(expand(&given)?.iter().map(name).collect())
    }

    #[test]
    fn directories_and_patterns_expand_in_order() {
        let files = [
            "b.txt",
            "a.TXT",
            "c.txt.gz",
            "d.gz",
            "e.tar.gz",
            ".h.txt",
            "notes.md",
            "inner/f.txt",
            "odd[1].txt",
        ];
        let all = ["a.TXT", "b.txt", "c.txt.gz", "d.gz", "odd[1].txt"];
        assert_eq!(expanded(&files, &[""]).unwrap(), all);
        assert_eq!(expanded(&files, &["inner", "b.txt"]).unwrap(), ["inner/f.txt", "b.txt"]);
        assert_eq!(expanded(&files, &["?.txt*"]).unwrap(), ["b.txt", "c.txt.gz"]);
        assert_eq!(expanded(&files, &["*/*.txt", "*.md"]).unwrap(), ["inner/f.txt", "notes.md"]);
        assert_eq!(expanded(&files, &["[ab].[tT][xX][tT]"]).unwrap(), ["a.TXT", "b.txt"]);
        // An existing file is not a pattern.
        assert_eq!(expanded(&files, &["odd[1].txt"]).unwrap(), ["odd[1].txt"]);
    }

    #[test]
    fn empty_expansions_and_duplicates_are_refused() {
        let refused = |files: &[&str], given: &[&str], part: &str| {
            let message = expanded(files, given).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        };
        refused(&["a.md", "b.rst"], &[""], "2 files are neither .txt nor .gz");
        refused(&["inner/a.txt"], &[""], "a directory without files");
        refused(&["a.txt"], &["*.md"], "*.md: no file matches it");
        refused(&["a.txt"], &["[a.txt"], "not a pattern");
        refused(&["a.txt"], &["a.txt", "*.txt"], "a.txt: it is given twice");
        refused(&["a.txt", "inner/b"], &["a.txt", "inner/../a.txt"], "given twice");
    }

    #[test]
    fn one_file_is_a_string_and_several_are_a_list() {
        let one = TextFiles::new(vec!["a.txt".into()]);
        let two = TextFiles::new(vec!["a.txt".into(), "b.txt".into()]);
        assert_eq!(serde_json::to_string(&one).unwrap(), "\"a.txt\"");
        assert_eq!(serde_json::to_string(&two).unwrap(), "[\"a.txt\",\"b.txt\"]");
        for files in [one, two] {
            let json = serde_json::to_string(&files).unwrap();
            assert_eq!(serde_json::from_str::<TextFiles>(&json).unwrap(), files);
        }
    }
}
