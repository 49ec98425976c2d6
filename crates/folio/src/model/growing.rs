//! Adds tokens to the vocabulary of a trained model.

use super::{ModelConfig, Parameters};
use crate::rng::{Rng, Stream};

/// The rows that a larger vocabulary adds to `wte` and to a separate head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AddedTokens {
    /// The end of `wte` (V, C), the first tensor, in the flat array of the old parameters.
    at: usize,
    /// The number of elements added to `wte`.
    count: usize,
    /// Whether as many are added to the head (V, C), which is then the last tensor.
    has_separate_head: bool,
}

impl AddedTokens {
    /// The rows that `new` has and `old` has not. The models differ in their vocabulary only.
    pub(crate) fn between(old: &ModelConfig, new: &ModelConfig) -> Self {
        assert!(new.vocab_size >= old.vocab_size && new.n_emb == old.n_emb, "{old:?} grows to {new:?}");
        let at = old.vocab_size * old.n_emb;
        let count = new.vocab_size * new.n_emb - at;
        Self { at, count, has_separate_head: !new.tie_word_embeddings }
    }

    /// The parameters with the new rows inserted, initialized as in a new model.
    pub(crate) fn of_parameters(self, old: &Parameters, new: &ModelConfig, seed: u64) -> Parameters {
        let mut parameters = Parameters::zeros(new);
        // `wte` is initialized first, so a model without blocks has the same.
        let embedding = ModelConfig { n_blocks: 0, block_size: 1, ..*new };
        let fresh = Parameters::random(&embedding, &mut Rng::new(seed, Stream::Init));
        let grown = self.inserted(old.values(), &fresh.wte()[self.at..], &fresh.head()[self.at..]);
        parameters.values_mut().copy_from_slice(&grown);
        parameters
    }

    /// A moment of AdamW with zeros for the new rows.
    pub(crate) fn of_moment(self, old: &[f32]) -> Vec<f32> {
        let zeros = vec![0.0; self.count];
        self.inserted(old, &zeros, &zeros)
    }

    fn inserted(self, old: &[f32], in_wte: &[f32], in_head: &[f32]) -> Vec<f32> {
        let (wte, rest) = old.split_at(self.at);
        let in_head = if self.has_separate_head { in_head } else { &[] };
        [wte, in_wte, rest, in_head].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_separate_head_grows_with_the_vocabulary() {
        let old = ModelConfig {
            vocab_size: 5,
            n_blocks: 1,
            n_emb: 4,
            n_heads: 2,
            block_size: 3,
            tie_word_embeddings: false,
            ..ModelConfig::GPT2
        };
        let new = ModelConfig { vocab_size: 8, ..old };
        let before = Parameters::random(&old, &mut Rng::new(7, Stream::Init));
        let added = AddedTokens::between(&old, &new);
        let after = added.of_parameters(&before, &new, 7);
        for (spec, grown) in before.specs().iter().zip(after.specs()) {
            assert_eq!(after.tensor(grown)[..spec.range.len()], *before.tensor(spec), "{}", spec.name);
        }
        let (wte, head) = (&after.wte()[20..], &after.head()[20..]);
        assert_eq!((wte.len(), head.len()), (12, 12));
        assert!(wte.iter().chain(head).all(|&x| x != 0.0) && wte != head, "{wte:?} {head:?}");
        let moment = added.of_moment(before.values());
        assert_eq!(moment.len(), after.values().len());
        assert_eq!((&moment[20..32], &moment[moment.len() - 12..]), (&[0.0; 12][..], &[0.0; 12][..]));
        assert_eq!(moment[32..moment.len() - 12], before.values()[20..]);
    }

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
