//! Names for runs without `--run_dir`.

use std::path::{Path, PathBuf};

use folio::settings::Settings;
use folio::text::EMBEDDED_NAME;
use folio::train::Start;

use crate::options::Options;

/// The directory name of a run without `--run_dir`: its text and its size. `run` is `None` for a sweep.
pub(super) fn new_run_name(options: &Options, run: Option<&Settings>, start: &Start) -> String {
    if let Start::Checkpoint { run, .. } = start {
        return format!("{}-continued", plain_name(run.path()));
    }
    if let Some(model) = options.0.get::<PathBuf>("init_from") {
        return format!("{}-tuned", plain_name(&model));
    }
    let data = options.texts().data.unwrap_or_default();
    let text = plain_name(data.first().map_or(Path::new(EMBEDDED_NAME), PathBuf::as_path));
    match run {
        Some(settings) => format!("{text}-{}x{}", settings.n_blocks, settings.n_emb),
        None => format!("{text}-sweep"),
    }
}

/// The name of a file without its extension, in characters that are safe in shells and file systems.
pub(crate) fn plain_name(path: &Path) -> String {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let plain = |c: char| if c.is_alphanumeric() || matches!(c, '-' | '_') { c } else { '-' };
    let name: String = name.chars().map(plain).take(40).collect();
    if name.trim_matches('-').is_empty() { "text".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for (path, name) in [
            ("my text.txt", "my-text"),
            ("/a/b/Фауст.v2.txt", "Фауст-v2"),
            ("$(x);.txt", "--x--"),
            ("..", "text"),
            ("\u{1b}[2J", "--2J"),
        ] {
            assert_eq!(plain_name(Path::new(path)), name, "{path}");
        }
    }
}
