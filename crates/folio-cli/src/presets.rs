//! Named recipes, and files of options.

use std::path::Path;

use anyhow::Context;
use folio::error::Error;

use crate::options::Options;
use crate::usage::Usage;

/// The presets by name, with their text; `presets/*.toml` of the repository.
const PRESETS: [(&str, &str); 4] = [
    ("quick", include_str!("../../../presets/quick.toml")),
    ("shakespeare-char", include_str!("../../../presets/shakespeare-char.toml")),
    ("shakespeare-bpe", include_str!("../../../presets/shakespeare-bpe.toml")),
    ("nanogpt-cpu", include_str!("../../../presets/nanogpt-cpu.toml")),
];

/// The names of all presets.
pub(crate) fn names() -> [&'static str; PRESETS.len()] {
    PRESETS.map(|(name, _)| name)
}

/// The options of a preset.
pub(crate) fn preset(name: &str) -> anyhow::Result<Options> {
    let found = PRESETS.iter().find(|(known, _)| *known == name);
    let (_, text) = found.expect("the parser lets only known names through");
    toml::from_str(text).with_context(|| format!("preset {name}"))
}

/// The options in a TOML file.
pub(crate) fn config_file(path: &Path) -> anyhow::Result<Options> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("--config: cannot read {}", path.display()))?;
    if let Ok(table) = text.parse::<toml::Table>() {
        let names = Options::names();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        if let Some(key) = table.keys().find(|key| !names.contains(&key.as_str())) {
            return Err(Error::unknown_name("key", key, &names)).context(path.display().to_string());
        }
    }
    toml::from_str(&text).map_err(|error: toml::de::Error| {
        let line_idx = error.span().map_or(0, |span| text[..span.start].matches('\n').count());
        let line = text.lines().nth(line_idx).unwrap_or_default().trim();
        let message = in_plain_words(error.message());
        Usage(format!("{}, line {}, `{line}`: {message}", path.display(), line_idx + 1)).into()
    })
}

/// The parser's complaint in one line, without the names of Rust's types.
fn in_plain_words(message: &str) -> String {
    let types = [("usize", "a whole number"), ("u64", "a whole number"), ("f64", "a number")];
    types.iter().fold(message.trim().replace('\n', "; "), |message, (name, meaning)| {
        message.replace(&format!("expected {name}"), &format!("expected {meaning}"))
    })
}

#[cfg(test)]
mod tests {
    use folio::sweep::Choice;

    use super::*;

    #[test]
    fn every_preset_is_a_valid_run() {
        for name in names() {
            let options = preset(name).unwrap();
            let (base, space) = options.settings();
            for run in space.grid(&base).unwrap() {
                run.validate().unwrap_or_else(|error| panic!("{name}: {error}"));
            }
        }
    }

    proptest::proptest! {
        /// Whatever stands in a file of options is read or refused in one line.
        #[test]
        fn any_file_is_read_or_refused(edits in proptest::collection::vec((0.0..1.0f64, "\\PC{0,6}|[0-9=.\\[\\]\"#\n]{1,4}"), 1..6)) {
            let mut text = PRESETS[0].1.to_owned();
            for (share, piece) in edits {
                let start = text.floor_char_boundary((share * text.len() as f64) as usize);
                let end = text.ceil_char_boundary((start + piece.len() / 2).min(text.len()));
                text.replace_range(start..end, &piece);
            }
            let file = tempfile::NamedTempFile::new().expect("room");
            std::fs::write(file.path(), &text).expect("room");
            match config_file(file.path()) {
                Ok(options) => {
                    let (base, space) = options.settings();
                    let _ = options.search(&base, &space).map(|(_, runs)| runs.iter().try_for_each(folio::settings::Settings::validate));
                }
                Err(error) => {
                    let told: Vec<String> = error.chain().map(ToString::to_string).collect();
                    proptest::prop_assert!(!told.join(": ").contains('\n'), "{told:?}");
                }
            }
        }
    }

    #[test]
    fn a_flag_wins_over_a_preset_and_a_preset_over_the_default() {
        let flags = Options { n_emb: Some(48), ..Options::default() };
        let merged = flags.or(&preset("nanogpt-cpu").unwrap()).unwrap();
        let (base, space) = merged.settings();
        assert_eq!((base.n_emb, base.n_blocks, space.block_sizes), (48, 4, vec![Choice::Value(64)]));
        assert_eq!(base.weight_decay, folio::settings::Settings::default().weight_decay);
    }
}
