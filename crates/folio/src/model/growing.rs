//! Adds tokens to the vocabulary of a trained model.

use super::{ModelConfig, Parameters};
use crate::rng::{Rng, Stream};

/// The rows of `wte` that a larger vocabulary adds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AddedTokens {
    /// Their offset in the flat array of all parameters. `wte` (V, C) is the first tensor.
    at: usize,
    /// The number of their elements.
    count: usize,
}

impl AddedTokens {
    /// The rows that `new` has and `old` has not. The models differ in their vocabulary only.
    pub(crate) fn between(old: &ModelConfig, new: &ModelConfig) -> Self {
        assert!(new.vocab_size >= old.vocab_size && new.n_emb == old.n_emb, "{old:?} grows to {new:?}");
        let at = old.vocab_size * old.n_emb;
        Self { at, count: new.vocab_size * new.n_emb - at }
    }

    /// The parameters with the new rows inserted, initialized as in a new model.
    pub(crate) fn of_parameters(self, old: &Parameters, new: &ModelConfig, seed: u64) -> Parameters {
        let mut parameters = Parameters::zeros(new);
        // `wte` is initialized first, so a model without blocks has the same.
        let embedding = ModelConfig { n_blocks: 0, block_size: 1, ..*new };
        let fresh = Parameters::random(&embedding, &mut Rng::new(seed, Stream::Init));
        let fresh = fresh.values()[self.at..].iter().copied();
        let grown = self.inserted(old.values(), fresh);
        parameters.values_mut().copy_from_slice(&grown);
        parameters
    }

    /// A moment of AdamW with zeros for the new rows.
    pub(crate) fn of_moment(self, old: &[f32]) -> Vec<f32> {
        self.inserted(old, std::iter::repeat(0.0))
    }

    fn inserted(self, old: &[f32], new: impl Iterator<Item = f32>) -> Vec<f32> {
        let (before, after) = old.split_at(self.at);
        before.iter().copied().chain(new.take(self.count)).chain(after.iter().copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_rows_are_initialized_and_the_rest_is_unchanged() {
        let old = ModelConfig {
            vocab_size: 5,
            n_blocks: 2,
            n_emb: 64,
            n_heads: 2,
            block_size: 3,
            dropout: 0.1,
            ..ModelConfig::GPT2
        };
        let new = ModelConfig { vocab_size: 45, ..old };
        let before = Parameters::random(&old, &mut Rng::new(7, Stream::Init));
        let added = AddedTokens::between(&old, &new);
        let after = added.of_parameters(&before, &new, 7);
        for (spec, grown) in before.specs().iter().zip(after.specs()) {
            assert_eq!(spec.name, grown.name);
            assert_eq!(after.tensor(grown)[..spec.range.len()], *before.tensor(spec), "{}", spec.name);
        }
        let rows = &after.tensor(&after.specs()[0])[5 * 64..];
        assert_eq!(rows.len(), 40 * 64);
        // N(0, 0.02): the mean and the standard deviation of 2,560 of them within five of their own deviations,
        // 0.02 / sqrt(2560) and 0.02 / sqrt(2 * 2560).
        let count = rows.len() as f64;
        let mean = rows.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
        let deviation = (rows.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / count).sqrt();
        assert!(mean.abs() < 0.002 && (deviation - 0.02).abs() < 0.0014, "{mean} {deviation}");
        let moment = added.of_moment(before.values());
        assert_eq!(moment.len(), after.values().len());
        assert_eq!(moment[5 * 64..45 * 64], [0.0; 40 * 64]);
        assert_eq!((&moment[..5 * 64], &moment[45 * 64..]), before.values().split_at(5 * 64));
    }
}
