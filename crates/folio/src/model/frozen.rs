//! The parameters that training leaves as they are, for fine-tuning.

use std::fmt::{self, Display};
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{ModelConfig, ParameterSpec, Parameters};
use crate::error::{Error, Result};

/// The parameters that training leaves as they are: they keep their bits, have no gradient, no moments and no part in the
/// gradient norm.
///
/// ```
/// use folio::model::Frozen;
/// let frozen: Frozen = "embeddings,blocks:6".parse()?;
/// assert_eq!(frozen, Frozen { embeddings: true, blocks: 6 });
/// assert_eq!("none".parse::<Frozen>()?, Frozen::NOTHING);
/// # Ok::<(), folio::error::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frozen {
    /// Whether `wte` and `wpe` are frozen. `wte` then is as the head's weights too, unless the head has its own.
    pub embeddings: bool,
    /// How many of the lowest blocks are frozen.
    pub blocks: usize,
}

const NONE: &str = "none";
const EMBEDDINGS: &str = "embeddings";
const BLOCKS: &str = "blocks:";

impl Frozen {
    /// Everything is trained.
    pub const NOTHING: Self = Self { embeddings: false, blocks: 0 };

    /// Whether everything is trained.
    pub fn is_nothing(&self) -> bool {
        *self == Self::NOTHING
    }

    /// Whether a parameter is frozen.
    pub fn contains(&self, spec: &ParameterSpec) -> bool {
        match spec.block() {
            Some(block) => block < self.blocks,
            None => self.embeddings && spec.is_embedding(),
        }
    }

    /// The lowest block that a gradient passes through: below it nothing is trained.
    pub(super) fn lowest_block(&self) -> usize {
        if self.embeddings { self.blocks } else { 0 }
    }

    /// The places of the parameters that are trained: all, or those before and those after the frozen ones.
    pub fn trained(&self, parameters: &Parameters) -> impl Iterator<Item = Range<usize>> + use<> {
        let specs = parameters.specs();
        let start =
            |spec: Option<&ParameterSpec>| spec.map_or(parameters.values().len(), |spec| spec.range.start);
        let is_trained = |spec: &&ParameterSpec| !self.contains(spec);
        let frozen = start(specs.iter().find(|spec| self.contains(spec)));
        let rest = start(specs.iter().skip_while(is_trained).find(is_trained));
        [0..frozen, rest..parameters.values().len()].into_iter().filter(|range| !range.is_empty())
    }

    /// The elements of the matrices that are frozen.
    pub(super) fn matrix_elements(&self, config: &ModelConfig) -> u128 {
        let ModelConfig { vocab_size, block_size, n_emb, .. } = *config;
        let [rows, c, inner, blocks] =
            [vocab_size + block_size, n_emb, config.inner(), self.blocks].map(|size| size as u128);
        let embeddings = if self.embeddings { rows * c } else { 0 };
        embeddings + blocks * (4 * c * c + 2 * c * inner)
    }

    /// Checks that a model has this many blocks.
    ///
    /// # Errors
    /// [`Error::Setting`] with the largest number.
    pub fn check(&self, n_blocks: usize) -> Result<()> {
        if self.blocks <= n_blocks {
            return Ok(());
        }
        let blocks = self.blocks;
        let reason =
            format!("`freeze blocks:{blocks}` is more than `n_blocks {n_blocks}`; use at most {n_blocks}");
        Err(Error::setting("freeze", reason))
    }
}

impl Display for Frozen {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self { embeddings: false, blocks: 0 } => formatter.write_str(NONE),
            Self { embeddings: true, blocks: 0 } => formatter.write_str(EMBEDDINGS),
            Self { embeddings: false, blocks } => write!(formatter, "{BLOCKS}{blocks}"),
            Self { embeddings: true, blocks } => write!(formatter, "{EMBEDDINGS},{BLOCKS}{blocks}"),
        }
    }
}

/// Parts separated by commas, or `none`.
impl FromStr for Frozen {
    type Err = Error;

    fn from_str(given: &str) -> Result<Self> {
        if given == NONE {
            return Ok(Self::NOTHING);
        }
        let mut frozen = Self::NOTHING;
        for part in given.split(',').map(str::trim) {
            match part.strip_prefix(BLOCKS).map(str::parse::<usize>) {
                Some(Ok(blocks)) => frozen.blocks = frozen.blocks.max(blocks),
                None if part == EMBEDDINGS => frozen.embeddings = true,
                _ => {
                    return Err(Error::unknown_name(
                        "part of the model",
                        part,
                        &[EMBEDDINGS, "blocks:N", NONE],
                    ));
                }
            }
        }
        Ok(frozen)
    }
}

impl Serialize for Frozen {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Frozen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_parse_print_and_serialize_alike() {
        for (text, embeddings, blocks) in [
            ("none", false, 0),
            ("embeddings", true, 0),
            ("blocks:6", false, 6),
            ("embeddings,blocks:12", true, 12),
        ] {
            let frozen: Frozen = text.parse().unwrap();
            assert_eq!(frozen, Frozen { embeddings, blocks });
            assert_eq!(frozen.to_string(), text);
            assert_eq!(serde_json::to_string(&frozen).unwrap(), format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<Frozen>(&format!("\"{text}\"")).unwrap(), frozen);
        }
        assert_eq!("blocks:2, embeddings".parse::<Frozen>().unwrap().to_string(), "embeddings,blocks:2");
        for wrong in ["", "blocks", "blocks:", "blocks:-1", "blocks:x", "embeddings,", "none,blocks:1", "wte"]
        {
            let error = wrong.parse::<Frozen>().unwrap_err().to_string();
            assert!(error.contains("choose from embeddings, blocks:N, none"), "{wrong}: {error}");
        }
    }

    #[test]
    fn trained_and_frozen_parameters_are_all_parameters() {
        let config = ModelConfig {
            vocab_size: 5,
            n_blocks: 3,
            n_emb: 4,
            n_heads: 2,
            block_size: 3,
            ..ModelConfig::GPT2
        };
        for tie_word_embeddings in [true, false] {
            let parameters = Parameters::zeros(&ModelConfig { tie_word_embeddings, ..config });
            let all = parameters.values().len();
            for embeddings in [true, false] {
                for blocks in 0..=3 {
                    let frozen = Frozen { embeddings, blocks };
                    let mut expected = vec![true; all];
                    for spec in parameters.specs() {
                        let number = spec.name.strip_prefix("h.").and_then(|rest| rest.split('.').next());
                        let is_frozen = match number {
                            Some(number) => number.parse::<usize>().unwrap() < blocks,
                            None => embeddings && ["wte.weight", "wpe.weight"].contains(&&*spec.name),
                        };
                        assert_eq!(frozen.contains(spec), is_frozen, "{frozen}: {}", spec.name);
                        expected[spec.range.clone()].fill(!is_frozen);
                    }
                    let mut trained = vec![false; all];
                    frozen.trained(&parameters).for_each(|range| trained[range].fill(true));
                    assert_eq!(trained, expected, "{frozen}");
                    let matrices =
                        parameters.specs().iter().filter(|spec| spec.is_matrix() && frozen.contains(spec));
                    let elements: usize = matrices.map(|spec| spec.range.len()).sum();
                    assert_eq!(frozen.matrix_elements(&config), elements as u128, "{frozen}");
                }
            }
        }
    }
}
