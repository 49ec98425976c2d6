//! Presets, and config files.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use folio::error::Error;
use toml::Spanned;

use crate::options::{Options, keys, setting_of_key};
use crate::usage::Usage;

/// The presets by name, with their text: `presets/*.toml` of this package.
const PRESETS: [(&str, &str); 6] = [
    ("quick", include_str!("../presets/quick.toml")),
    ("shakespeare-best", include_str!("../presets/shakespeare-best.toml")),
    ("shakespeare-char", include_str!("../presets/shakespeare-char.toml")),
    ("shakespeare-bpe", include_str!("../presets/shakespeare-bpe.toml")),
    ("nanogpt-cpu", include_str!("../presets/nanogpt-cpu.toml")),
    (FINE_TUNING, include_str!("../presets/finetune-shakespeare.toml")),
];

/// The preset that needs a model to begin with.
pub(crate) const FINE_TUNING: &str = "finetune-shakespeare";

/// The names of all presets.
pub(crate) fn names() -> [&'static str; PRESETS.len()] {
    PRESETS.map(|(name, _)| name)
}

/// The settings of a preset.
pub(crate) fn preset(name: &str) -> anyhow::Result<Options> {
    let found = PRESETS.iter().find(|(known, _)| *known == name);
    let (_, text) = found.expect("the parser accepts only known names");
    parse(text, &format!("preset {name}"))
}

/// The settings in a TOML file.
pub(crate) fn config_file(path: &Path) -> anyhow::Result<Options> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("--config: cannot read {}", path.display()))?;
    parse(&text, &path.display().to_string())
}

/// Reads settings from TOML. `source` names the text in messages.
fn parse(text: &str, source: &str) -> anyhow::Result<Options> {
    let wrong = |start: usize, message: &str| -> anyhow::Error {
        let line_idx = text[..start].matches('\n').count();
        let line = text.lines().nth(line_idx).unwrap_or_default().trim();
        let message = message.trim().replace('\n', "; ");
        Usage(format!("{source}, line {}, `{line}`: {message}", line_idx + 1)).into()
    };
    let table: BTreeMap<String, Spanned<toml::Value>> =
        toml::from_str(text).map_err(|error: toml::de::Error| {
            wrong(error.span().map_or(0, |span| span.start), error.message())
        })?;
    let mut options = Options::default();
    for (key, value) in table {
        let Some(setting) = setting_of_key(&key) else {
            return Err(Error::unknown_name("key", &key, &keys())).context(source.to_owned());
        };
        let start = value.span().start;
        if options.0.has(setting.name) {
            return Err(wrong(start, &format!("{} is set twice; remove one", setting.key)));
        }
        let value = serde_json::to_value(value.into_inner()).expect("TOML's values are JSON's");
        options.0.insert(setting, setting.read(&value).map_err(|reason| wrong(start, &reason))?);
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use folio::settings::{Choice, Settings};

    use super::*;
    use crate::options::setting;

    #[test]
    fn every_preset_is_a_valid_run() {
        for name in names() {
            let options = preset(name).unwrap();
            let (base, space) = options.0.resolve();
            for run in space.grid(&base).unwrap() {
                run.validate().unwrap_or_else(|error| panic!("{name}: {error}"));
            }
        }
    }

    proptest::proptest! {
        /// Any config file is read, or refused in one line.
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
                    let (base, space) = options.0.resolve();
                    let _ = options.search(&base, &space).map(|(_, runs)| runs.iter().try_for_each(Settings::validate));
                }
                Err(error) => {
                    let messages: Vec<String> = error.chain().map(ToString::to_string).collect();
                    proptest::prop_assert!(!messages.join(": ").contains('\n'), "{messages:?}");
                }
            }
        }
    }

    #[test]
    fn a_flag_wins_over_a_preset_and_a_preset_over_the_default() {
        let mut flags = Options::default();
        flags.0.insert(setting("n_emb").unwrap(), vec![Choice::from(48)]);
        let merged = flags.or(&preset("nanogpt-cpu").unwrap());
        let (base, space) = merged.0.resolve();
        assert_eq!((base.n_emb, base.n_blocks, space.grid(&base).unwrap()[0].block_size), (48, 4, 64));
        assert_eq!(merged.0.values("weight_decay"), [Choice::from(0.1)]);
        assert_eq!(base.beta1, Settings::default().beta1);
    }
}
