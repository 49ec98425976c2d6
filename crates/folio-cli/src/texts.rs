//! Reads the texts of a run: those given on the command line, or those of an earlier run, verified by their hashes.

use std::path::PathBuf;

use folio::data::Texts;
use folio::error::Error;
use folio::settings::Settings;
use folio::text::{Corpus, STDIN, TextFiles};

use crate::options::GivenTexts;
use crate::screen;
use crate::usage::Usage;

/// Reads the texts given in `options`, or the embedded one, and records them in `settings`.
///
/// `saved` are the settings of the run to continue, if any. A text with the same hash as there is read unchanged.
pub(crate) fn read(
    options: &GivenTexts,
    settings: &mut Settings,
    saved: Option<&Settings>,
) -> anyhow::Result<Texts> {
    let is_stdin =
        |given: &Option<Vec<PathBuf>>| given.iter().flatten().any(|path| path.as_os_str() == STDIN);
    if is_stdin(&options.data) && is_stdin(&options.eval_data) {
        return Err(Usage("--eval_data -: stdin is already used by --data; give a file".to_owned()).into());
    }
    let data = match &options.data {
        Some(given) => read_files(given, saved.map(|saved| saved.data_sha256.as_str()))?,
        None => Corpus::embedded(),
    };
    let eval_sha256 = saved.and_then(|saved| saved.eval_data_sha256.as_deref());
    let eval = options.eval_data.as_deref().map(|given| read_files(given, eval_sha256)).transpose()?;
    settings.data = data.files();
    settings.data_sha256.clone_from(&data.sha256);
    note_eval(settings, eval.as_ref());
    Ok(Texts { data, eval })
}

/// Records the text of `--eval_data` in the settings.
pub(crate) fn note_eval(settings: &mut Settings, eval: Option<&Corpus>) {
    settings.eval_data = eval.map(Corpus::files);
    settings.eval_data_sha256 = eval.map(|eval| eval.sha256.clone());
}

/// Reads a text and converts its line endings, with a note on stderr. A text that has the hash `sha256` is left unchanged.
pub(crate) fn read_files(given: &[PathBuf], sha256: Option<&str>) -> anyhow::Result<Corpus> {
    let corpus = match sha256 {
        Some(sha256) => Corpus::read_known(given, sha256)?,
        None => Corpus::read(given)?,
    };
    announce(&corpus);
    Ok(corpus)
}

fn announce(corpus: &Corpus) {
    if corpus.converted_endings > 0 {
        let (name, count) = (&corpus.name, corpus.converted_endings);
        screen::err(format_args!("{name}: converted {count} line endings (CRLF or CR) to LF"));
    }
}

/// Reads the texts that a run was trained and evaluated on. `given` has their new paths, if they have moved.
///
/// # Errors
/// If a text is missing or has changed.
pub(crate) fn of_run(settings: &Settings, given: &GivenTexts) -> anyhow::Result<Texts> {
    if !settings.has_text() {
        let reason = "the run was imported and has no text of its own; give one with --data FILE";
        return Err(Usage(reason.to_owned()).into());
    }
    let data = known(&settings.data, &settings.data_sha256, given.data.as_deref(), "--data")?;
    let eval = match (&settings.eval_data, &settings.eval_data_sha256) {
        (Some(files), Some(sha256)) => Some(known(files, sha256, given.eval_data.as_deref(), "--eval_data")?),
        _ if given.eval_data.is_some() => {
            let reason = "--eval_data: the run is evaluated on a part of its own text; remove --eval_data, or start a \
                          new run with --from_checkpoint";
            return Err(Usage(reason.to_owned()).into());
        }
        _ => None,
    };
    Ok(Texts { data, eval })
}

/// The error for a text that came from stdin.
pub(crate) fn gone(flag: &str) -> anyhow::Error {
    let reason =
        format!("it came from stdin, which cannot be read again; save it to a file and pass {flag} FILE");
    Error::Corpus { path: "of the run".to_owned(), reason }.into()
}

/// Reads a text and verifies its hash.
fn known(files: &TextFiles, sha256: &str, given: Option<&[PathBuf]>, flag: &str) -> anyhow::Result<Corpus> {
    let embedded = Corpus::embedded();
    let paths = match given {
        Some(given) => given.to_vec(),
        None if embedded.sha256 == sha256 => return Ok(embedded),
        None if files.has_stdin() => return Err(gone(flag)),
        None => files.paths(),
    };
    let corpus = Corpus::read_known(&paths, sha256)?;
    announce(&corpus);
    if corpus.sha256 == sha256 {
        return Ok(corpus);
    }
    let (path, reason) = match given {
        Some(_) => (
            corpus.files(),
            format!(
                "is not the text that the run {}; remove {flag}",
                if flag == "--data" { "was trained on" } else { "is evaluated on" }
            ),
        ),
        None => (
            files.clone(),
            "has changed since the run was trained on it, so its evaluation part would be different"
                .to_owned(),
        ),
    };
    Err(Error::Corpus { path: path.to_string(), reason }.into())
}
