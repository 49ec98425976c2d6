//! Which tokenizer a run asks for: a name, or a file.

use std::fmt::{self, Display};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};

/// Which tokenizer to make for a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizerKind {
    /// One token a character; the vocabulary is the sorted distinct characters of the text.
    Chrs,
    /// GPT-2's byte-level BPE with its 50,257 tokens, whatever the text.
    Bpe,
    /// A byte-level BPE that is learned from the training part of the text.
    CorpusBpe,
    /// The one in a `tokenizer.json`.
    File(PathBuf),
}

impl TokenizerKind {
    /// The kinds that have a name, in the order in which messages list them.
    const NAMED: [(Self, &'static str); 3] =
        [(Self::Chrs, Self::NAMES[0]), (Self::Bpe, Self::NAMES[1]), (Self::CorpusBpe, Self::NAMES[2])];
    /// Their names.
    pub const NAMES: [&str; 3] = ["chrs", "bpe", "corpus_bpe"];
}

impl Display for TokenizerKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::File(path) = self {
            return path.display().fmt(formatter);
        }
        let (_, name) =
            Self::NAMED.into_iter().find(|(kind, _)| kind == self).expect("every other kind has a name");
        formatter.pad(name)
    }
}

/// A name, or the path of a file: what ends in `.json` or has a separator in it.
impl FromStr for TokenizerKind {
    type Err = Error;

    fn from_str(given: &str) -> Result<Self> {
        if let Some((kind, _)) = Self::NAMED.into_iter().find(|(_, name)| *name == given) {
            return Ok(kind);
        }
        let is_path = given.ends_with(".json") || given.contains(['/', '\\']);
        if is_path {
            Ok(Self::File(given.into()))
        } else {
            Err(Error::unknown_name("tokenizer", given, &Self::NAMES))
        }
    }
}

impl Serialize for TokenizerKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TokenizerKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_print_and_serialize_alike() {
        for name in TokenizerKind::NAMES.into_iter().chain(["my.json", "runs/a/tokenizer.json", "runs/a"]) {
            let kind: TokenizerKind = name.parse().unwrap();
            assert_eq!(kind.to_string(), name);
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{name}\""));
            assert_eq!(serde_json::from_str::<TokenizerKind>(&format!("\"{name}\"")).unwrap(), kind);
        }
        assert_eq!("my.json".parse::<TokenizerKind>().unwrap(), TokenizerKind::File("my.json".into()));
    }

    #[track_caller]
    fn check_unknown(given: &str, nearest: Option<&str>) {
        let error = given.parse::<TokenizerKind>().unwrap_err();
        match &error {
            Error::UnknownName { nearest: found, names, .. } => {
                assert_eq!((found.as_deref(), names.as_str()), (nearest, "chrs, bpe, corpus_bpe"));
            }
            other => panic!("{other:?}"),
        }
        assert!(error.to_string().contains(given), "{error}");
    }

    #[test]
    fn unknown_names_suggest_the_nearest() {
        check_unknown("chars", Some("chrs"));
        check_unknown("BPE", Some("bpe"));
        check_unknown("corpus-bpe", Some("corpus_bpe"));
        check_unknown("sentencepiece", None);
        check_unknown("", None);
    }
}
