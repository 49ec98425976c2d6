//! A temporary directory in which tests run `folio`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use folio::text::Corpus;
use serde_json::Value;
use tempfile::TempDir;

/// Flags of a model that trains in a few milliseconds.
pub(crate) const MODEL: &str = "--data plays.txt --n_emb 16 --n_heads 2 --n_blocks 1";
/// [`MODEL`] with small batches and two epochs.
pub(crate) const TINY: &str = "--data plays.txt --n_emb 16 --n_heads 2 --n_blocks 1 --block_sizes 16 \
                               --batch_sizes 4 --dropouts 0.1 --num_epochs 2";

/// A temporary directory that holds the text plays.txt.
pub(crate) struct Place {
    directory: TempDir,
}

/// The outcome of a process.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The first 1,000 characters of tiny Shakespeare: 62 blocks of 16.
pub(crate) fn plays() -> String {
    Corpus::embedded().text[..1000].to_owned()
}

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self { directory: tempfile::tempdir().expect("a temporary directory") };
        place.write("plays.txt", plays());
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).expect("the directory can be written to");
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub(crate) fn text(&self, name: &str) -> String {
        String::from_utf8(self.read(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The target of a link.
    pub(crate) fn link(&self, name: &str) -> String {
        let target = fs::read_link(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        target.display().to_string()
    }

    pub(crate) fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&self.read(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// A list of numbers in a JSON file, by the path to it.
    #[track_caller]
    pub(crate) fn numbers(&self, name: &str, pointer: &str) -> Vec<f64> {
        let json = self.json(name);
        let list = json.pointer(pointer).and_then(Value::as_array);
        let list = list.unwrap_or_else(|| panic!("{name} has no list at '{pointer}': {json}"));
        list.iter().map(|number| number.as_f64().expect("a number")).collect()
    }

    /// Runs `folio` with the words of a line as arguments, on one thread, since tests run in parallel.
    pub(crate) fn run(&self, line: &str) -> Ran {
        self.run_with(line, "")
    }

    /// Runs `folio` with these arguments and expects exit code 0.
    #[track_caller]
    pub(crate) fn ok_words(&self, words: &[String]) -> Ran {
        let ran = self.run_words(words, "");
        assert_eq!(ran.code, Some(0), "folio {words:?}\n{}", ran.stderr);
        ran
    }

    /// [`Place::run`] with something on stdin.
    pub(crate) fn run_with(&self, line: &str, stdin: impl AsRef<[u8]>) -> Ran {
        self.run_words(&words(line), stdin)
    }

    fn run_words(&self, words: &[String], stdin: impl AsRef<[u8]>) -> Ran {
        // A file rather than a pipe, so that no thread has to write to it.
        let mut input = tempfile::tempfile().expect("a temporary file");
        input.write_all(stdin.as_ref()).and_then(|()| input.rewind()).expect("room for it");
        let mut command = Command::new(env!("CARGO_BIN_EXE_folio"));
        command.args(words).current_dir(self.directory.path()).env("RAYON_NUM_THREADS", "1");
        let output = command.stdin(input).output().expect("the program starts");
        Ran {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("UTF-8 on stdout"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8 on stderr"),
        }
    }

    /// Runs `folio` and expects exit code 0.
    #[track_caller]
    pub(crate) fn ok(&self, line: &str) -> Ran {
        self.ok_with(line, "")
    }

    /// [`Place::ok`] with something on stdin.
    #[track_caller]
    pub(crate) fn ok_with(&self, line: &str, stdin: impl AsRef<[u8]>) -> Ran {
        let ran = self.run_with(line, stdin);
        assert_eq!(ran.code, Some(0), "folio {line}\n{}", ran.stderr);
        ran
    }

    /// Trains a run and removes its checkpoints and losses.
    pub(crate) fn train_bare(&self, run: &str) {
        self.ok(&format!("train {TINY} --run_dir {run}"));
        for name in ["latest", "best", "losses.json", "lrs.json"] {
            fs::remove_file(self.path(&format!("{run}/{name}"))).expect("there");
        }
        for epoch in [1, 2] {
            fs::remove_dir_all(self.path(&format!("{run}/checkpoint_{epoch}"))).expect("there");
        }
    }

    /// The files below a directory, by their path from it.
    pub(crate) fn names(&self, name: &str) -> Vec<String> {
        let below = |path: &Path| path.strip_prefix(self.path(name)).expect("below it").display().to_string();
        self.files(name).keys().map(|path| below(path)).collect()
    }

    /// The files below a directory with their content. An empty directory counts as an empty file, a link as a file that
    /// contains its target. The lock file, which contains a process id, is left out.
    pub(crate) fn files(&self, name: &str) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut directories = vec![self.path(name)];
        while let Some(directory) = directories.pop() {
            let entries: Vec<PathBuf> = fs::read_dir(&directory)
                .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
                .map(|entry| entry.expect("a readable entry").path())
                .collect();
            if entries.is_empty() {
                files.insert(directory, Vec::new());
            }
            for path in entries {
                if path.ends_with(".lock") {
                    continue;
                }
                if let Ok(target) = fs::read_link(&path) {
                    files.insert(path, target.into_os_string().into_encoded_bytes());
                } else if path.is_dir() {
                    directories.push(path);
                } else {
                    let content = fs::read(&path).expect("a readable file");
                    files.insert(path, content);
                }
            }
        }
        files
    }
}

/// Splits a line at its spaces as a shell does; quotes keep words together.
pub(crate) fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (c, quote) {
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (_, Some(open)) if c == open => quote = None,
            (_, None) if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    assert_eq!(quote, None, "a quote is left open in {line}");
    words.extend(word);
    words
}

/// The keys of a JSON object, sorted.
pub(crate) fn keys(json: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = json.as_object().expect("an object").keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}
