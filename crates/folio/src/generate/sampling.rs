//! Sampling a token from the model's logits.

use folio_kernels::isa::Isa;
use folio_kernels::vector::{exp, max};

use crate::error::{Error, Result};
use crate::rng::Rng;

/// Sampling parameters. They apply in the order of the fields.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// For tokens that the sequence already contains, positive logits are divided by this and negative ones multiplied
    /// (Keskar et al. 2019, "CTRL", section 4.1). Values above 1 reduce repetition; 1 has no effect.
    pub repetition_penalty: f64,
    /// Logits are divided by this. Lower values are more predictable, higher ones more random; 0 always picks the most
    /// likely token.
    pub temperature: f64,
    /// Sample only from this many of the most likely tokens (Fan, Lewis and Dauphin 2018).
    pub top_k: Option<usize>,
    /// Sample only from the most likely tokens that together reach this probability (nucleus sampling, Holtzman et al. 2020,
    /// "The Curious Case of Neural Text Degeneration").
    pub top_p: Option<f64>,
    /// Sample only from tokens with at least this fraction of the highest probability (Nguyen et al. 2024, "Turning Up the
    /// Heat: Min-p Sampling").
    pub min_p: Option<f64>,
}

impl Default for Sampling {
    /// The plain softmax, as in the original project.
    fn default() -> Self {
        Self { repetition_penalty: 1.0, temperature: 1.0, top_k: None, top_p: None, min_p: None }
    }
}

impl Sampling {
    /// Checks every number.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the parameter that is out of range.
    pub fn validate(&self) -> Result<()> {
        let Self { repetition_penalty, temperature, top_k, top_p, min_p } = *self;
        if !repetition_penalty.is_finite() || repetition_penalty <= 0.0 {
            let reason = format!(
                "must be greater than 0, not {repetition_penalty}: 1 means no penalty, higher values reduce repetition"
            );
            return Err(Error::setting("repetition_penalty", reason));
        }
        if !(f32::MIN_POSITIVE..=f32::MAX).contains(&(repetition_penalty as f32)) {
            let reason = format!(
                "{repetition_penalty:e} is outside the range of single precision: 1 means no penalty"
            );
            return Err(Error::setting("repetition_penalty", reason));
        }
        if !temperature.is_finite() || temperature < 0.0 {
            let reason =
                format!("must be at least 0, not {temperature}: 0 always picks the most likely token");
            return Err(Error::setting("temperature", reason));
        }
        if top_k == Some(0) {
            return Err(Error::setting("top_k", "must be at least 1, not 0"));
        }
        if let Some(top_p) = top_p.filter(|&top_p| !(top_p > 0.0 && top_p <= 1.0)) {
            return Err(Error::setting(
                "top_p",
                format!("must be greater than 0 and at most 1, not {top_p}"),
            ));
        }
        if let Some(min_p) = min_p.filter(|&min_p| !(0.0..=1.0).contains(&min_p)) {
            return Err(Error::setting("min_p", format!("must be between 0 and 1, not {min_p}")));
        }
        Ok(())
    }

    /// Whether sampling always picks the most likely token. Logits are in single precision, so the temperature is rounded
    /// to it first.
    pub fn is_greedy(&self) -> bool {
        self.temperature as f32 == 0.0
    }

    /// Drops the filters that have no effect on a vocabulary of this size.
    fn without_idle_filters(self, vocab_size: usize) -> Self {
        Self {
            top_k: self.top_k.filter(|&top_k| top_k < vocab_size),
            top_p: self.top_p.filter(|&top_p| top_p < 1.0),
            min_p: self.min_p.filter(|&min_p| min_p > 0.0),
            ..self
        }
    }
}

/// Samples tokens. Its buffers are reused.
///
/// ```
/// use folio::generate::{Sampler, Sampling};
/// use folio::rng::{Rng, Stream};
/// let mut rng = Rng::new(1, Stream::Sampling);
/// let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
/// assert_eq!(Sampler::default().sample(&greedy, &[0.5, 2.0, 1.0], &[], &mut rng), 1);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Sampler {
    /// exp((logit - max) / temperature) of each token (V).
    weights: Vec<f32>,
    /// The tokens that the filters have left.
    candidates: Vec<u32>,
}

impl Sampler {
    /// Samples a token from logits (V). `seen` says for each token whether the sequence already contains it (V), or is
    /// empty.
    ///
    /// # Panics
    /// If `logits` is empty.
    pub fn sample(&mut self, sampling: &Sampling, logits: &[f32], seen: &[bool], rng: &mut Rng) -> u32 {
        assert!(!logits.is_empty(), "no logits to sample from");
        self.weights.clear();
        self.weights.extend_from_slice(logits);
        if sampling.repetition_penalty != 1.0 {
            let penalty = sampling.repetition_penalty as f32;
            for (logit, _) in self.weights.iter_mut().zip(seen).filter(|(_, seen)| **seen) {
                let penalized = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
                *logit = penalized.clamp(f32::MIN, f32::MAX);
            }
        }
        if sampling.is_greedy() {
            return argmax(&self.weights);
        }
        exponentials(&mut self.weights, (sampling.temperature as f32).min(f32::MAX));
        let sampling = sampling.without_idle_filters(logits.len());
        if sampling.top_k.is_none() && sampling.top_p.is_none() && sampling.min_p.is_none() {
            return pick((0..).zip(self.weights.iter().copied()), rng);
        }
        self.candidates.clear();
        self.candidates.extend(0..logits.len() as u32);
        self.filter(&sampling);
        // In vocabulary order, so that a filter that removes only tokens that would not have been sampled does not change
        // the result for the same random number.
        self.candidates.sort_unstable();
        pick(self.candidates.iter().map(|&token| (token, self.weights[token as usize])), rng)
    }

    /// Applies the filters to the candidates.
    fn filter(&mut self, sampling: &Sampling) {
        let Self { weights, candidates } = self;
        let weight = |token: &u32| weights[*token as usize];
        if let Some(top_k) = sampling.top_k {
            sort_first(candidates, weights, top_k);
            candidates.truncate(top_k);
        }
        if let Some(top_p) = sampling.top_p {
            let total: f64 = candidates.iter().map(|token| f64::from(weight(token))).sum();
            let (mut needed, mut reached, mut sorted) = (0, 0.0, 0);
            while needed < candidates.len() && reached < top_p * total {
                if needed == sorted {
                    // Usually few tokens are needed, so sort in growing portions.
                    let further = (3 * sorted).max(64);
                    sort_first(&mut candidates[sorted..], weights, further);
                    sorted += further;
                }
                reached += f64::from(weight(&candidates[needed]));
                needed += 1;
            }
            candidates.truncate(needed.max(1));
        }
        if let Some(min_p) = sampling.min_p {
            // The highest weight is 1.
            candidates.retain(|token| f64::from(weight(token)) >= min_p);
        }
    }

    /// The log softmax of logits (V): returns the value of `token`, and overwrites `alternatives` with the `count` most
    /// likely tokens and their values, in descending order.
    pub fn log_probabilities(
        &mut self,
        logits: &[f32],
        token: u32,
        count: usize,
        alternatives: &mut Vec<(u32, f32)>,
    ) -> f32 {
        self.weights.clear();
        self.weights.extend_from_slice(logits);
        let highest = exponentials(&mut self.weights, 1.0);
        let total: f64 = self.weights.iter().copied().map(f64::from).sum();
        let log_probability =
            |token: u32| (f64::from(logits[token as usize]) - f64::from(highest) - total.ln()) as f32;
        self.candidates.clear();
        self.candidates.extend(0..logits.len() as u32);
        sort_first(&mut self.candidates, logits, count);
        alternatives.clear();
        alternatives.extend(self.candidates.iter().take(count).map(|&token| (token, log_probability(token))));
        log_probability(token)
    }
}

/// The token with the highest logit, the first of several equal ones.
fn argmax(logits: &[f32]) -> u32 {
    let highest = max(logits);
    logits.iter().position(|&logit| logit == highest).unwrap_or(0) as u32
}

/// `logits = exp((logits - max) / temperature)`, in place. Returns the maximum.
fn exponentials(logits: &mut [f32], temperature: f32) -> f32 {
    Isa::detected().run(
        #[inline(always)]
        || {
            let highest = max(logits);
            for logit in logits {
                // `exp` clamps its argument from below. Without this, a large vocabulary of tokens that are 100 below the
                // maximum would be sampled now and then.
                let scaled = (*logit - highest) / temperature;
                *logit = if scaled < -87.0 { 0.0 } else { exp(scaled) };
            }
            highest
        },
    )
}

/// Moves the `count` candidates with the highest weights to the front, in descending order; equal weights are in
/// vocabulary order.
fn sort_first(candidates: &mut [u32], weights: &[f32], count: usize) {
    let order = |a: &u32, b: &u32| weights[*b as usize].total_cmp(&weights[*a as usize]).then(a.cmp(b));
    if count < candidates.len() {
        candidates.select_nth_unstable_by(count, order);
    }
    let count = count.min(candidates.len());
    candidates[..count].sort_unstable_by(order);
}

/// Samples one of the weighted tokens.
fn pick(weighted: impl Iterator<Item = (u32, f32)> + Clone, rng: &mut Rng) -> u32 {
    let total: f64 = weighted.clone().map(|(_, weight)| f64::from(weight)).sum();
    let mut left = rng.next_f64() * total;
    let mut last = 0;
    for (token, weight) in weighted {
        left -= f64::from(weight);
        if left < 0.0 {
            return token;
        }
        // If rounding leaves a remainder, the last token with a positive weight is picked.
        if weight > 0.0 {
            last = token;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    const PROBABILITIES: [f32; 4] = [0.1, 0.2, 0.3, 0.4];

    /// How often each of four tokens with probabilities 0.1, 0.2, 0.3, 0.4 is sampled in 10,000 samples.
    fn frequencies(sampling: Sampling, seen: &[bool]) -> [u32; 4] {
        let logits = PROBABILITIES.map(f32::ln);
        let mut rng = Rng::new(5, Stream::Sampling);
        let mut sampler = Sampler::default();
        let mut counts = [0; 4];
        for _ in 0..10_000 {
            counts[sampler.sample(&sampling, &logits, seen, &mut rng) as usize] += 1;
        }
        counts
    }

    /// Tolerance: six standard deviations of a binomial count, 6 sqrt(10,000 / 4) = 300.
    #[track_caller]
    fn check(sampling: Sampling, want: [u32; 4]) {
        check_seen(sampling, &[], want);
    }

    #[track_caller]
    fn check_seen(sampling: Sampling, seen: &[bool], want: [u32; 4]) {
        let counts = frequencies(sampling, seen);
        for (count, want) in counts.into_iter().zip(want) {
            let slack = if want == 0 || want == 10_000 { 0 } else { 300 };
            assert!(count.abs_diff(want) <= slack, "{counts:?}");
        }
    }

    #[test]
    fn temperature_one_samples_from_the_softmax() {
        check(Sampling::default(), [1_000, 2_000, 3_000, 4_000]);
    }

    #[test]
    fn filters_cut_the_tail() {
        let with = |top_k, top_p, min_p| Sampling { top_k, top_p, min_p, ..Sampling::default() };
        check(with(Some(2), None, None), [0, 0, 4_286, 5_714]);
        check(with(Some(9), None, None), [1_000, 2_000, 3_000, 4_000]);
        // 0.4 + 0.3 reaches 0.6.
        check(with(None, Some(0.6), None), [0, 0, 4_286, 5_714]);
        check(with(None, Some(1e-9), None), [0, 0, 0, 10_000]);
        check(with(None, Some(1.0), None), [1_000, 2_000, 3_000, 4_000]);
        // 0.2 is half of 0.4, so it passes 0.49.
        check(with(None, None, Some(0.49)), [0, 2_222, 3_333, 4_444]);
        check(with(None, None, Some(1.0)), [0, 0, 0, 10_000]);
        // Of the top three, 0.4 / 0.9 is below 0.5, and 0.7 / 0.9 reaches it.
        check(with(Some(3), Some(0.5), None), [0, 0, 4_286, 5_714]);
        check(with(Some(3), None, Some(0.7)), [0, 0, 4_286, 5_714]);
    }

    #[test]
    fn low_temperature_sharpens() {
        // Probabilities squared: 1, 4, 9, 16 of 30.
        check(Sampling { temperature: 0.5, ..Sampling::default() }, [333, 1_333, 3_000, 5_333]);
        check(Sampling { temperature: 0.0, ..Sampling::default() }, [0, 0, 0, 10_000]);
    }

    /// 200 samples from the four tokens and a fifth whose probability is negligible.
    fn samples(sampling: Sampling) -> Vec<u32> {
        let logits = [0.1_f32.ln(), 0.2_f32.ln(), -1e3, 0.3_f32.ln(), 0.4_f32.ln()];
        let (mut rng, mut sampler) = (Rng::new(8, Stream::Sampling), Sampler::default());
        (0..200).map(|_| sampler.sample(&sampling, &logits, &[], &mut rng)).collect()
    }

    #[test]
    fn filters_that_remove_nothing_change_nothing() {
        let plain = Sampling::default();
        let want = samples(plain);
        for top_k in [4, 5, 6, usize::MAX] {
            assert_eq!(samples(Sampling { top_k: Some(top_k), ..plain }), want, "top_k {top_k}");
        }
        for top_p in [1.0, 1.0 - 1e-12] {
            assert_eq!(samples(Sampling { top_p: Some(top_p), ..plain }), want, "top_p {top_p}");
        }
        for min_p in [0.0, 1e-30, 0.2] {
            assert_eq!(samples(Sampling { min_p: Some(min_p), ..plain }), want, "min_p {min_p}");
        }
        let all = Sampling { top_k: Some(5), top_p: Some(1.0), min_p: Some(0.0), ..plain };
        assert_eq!(samples(all), want);
    }

    #[test]
    fn a_temperature_that_is_0_in_single_precision_is_greedy() {
        for temperature in [1e-300, 1e-60, 7e-46, f64::from(f32::from_bits(1)), 1e-40, 1e-3] {
            let sampling = Sampling { temperature, ..Sampling::default() };
            sampling.validate().unwrap();
            assert_eq!(samples(sampling), [4; 200], "{temperature:e}");
        }
        // At the other extreme all tokens are equally likely.
        for temperature in [1e38, 1e39, f64::MAX] {
            check(Sampling { temperature, ..Sampling::default() }, [2_500; 4]);
        }
    }

    #[test]
    fn penalties_outside_single_precision_are_refused() {
        for repetition_penalty in [1e-300, 1e-39, 1e39, f64::MAX] {
            let refused = Sampling { repetition_penalty, ..Sampling::default() }.validate().unwrap_err();
            assert!(refused.to_string().contains("repetition_penalty"), "{refused}");
        }
        for repetition_penalty in [2e-38, 3e38] {
            let sampling = Sampling { repetition_penalty, ..Sampling::default() };
            sampling.validate().unwrap();
            // The penalized logits are clamped to finite values.
            let mut rng = Rng::new(1, Stream::Sampling);
            let token = Sampler::default().sample(&sampling, &[2.0, 1.0, -1.0], &[true; 3], &mut rng);
            assert!(
                if repetition_penalty < 1.0 { token < 2 } else { token < 3 },
                "{repetition_penalty}: {token}"
            );
        }
    }

    #[test]
    fn penalty_applies_to_seen_tokens() {
        let penalized = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        check_seen(penalized, &[false; 4], [1_000, 2_000, 3_000, 4_000]);
        // The logits are negative. Doubled, the last one has weight 0.16 of 0.76.
        check_seen(penalized, &[false, false, false, true], [1_316, 2_632, 3_947, 2_105]);
        let greedy = Sampling { temperature: 0.0, ..penalized };
        check_seen(greedy, &[false, false, false, true], [0, 0, 10_000, 0]);
        let mut rng = Rng::new(1, Stream::Sampling);
        // A positive logit is divided.
        assert_eq!(Sampler::default().sample(&greedy, &[1.5, 2.0], &[false, true], &mut rng), 0);
    }

    #[test]
    fn top_p_agrees_with_a_full_sort() {
        let mut rng = Rng::new(3, Stream::Sampling);
        let logits: Vec<f32> = (0..5_000).map(|_| rng.normal() as f32).collect();
        let mut weights = logits.clone();
        exponentials(&mut weights, 1.0);
        let mut all: Vec<u32> = (0..5_000).collect();
        all.sort_by(|a, b| weights[*b as usize].total_cmp(&weights[*a as usize]));
        let total: f64 = weights.iter().copied().map(f64::from).sum();
        for top_p in [0.01, 0.3, 0.9, 0.999] {
            let mut sampler = Sampler { weights: weights.clone(), candidates: (0..5_000).collect() };
            sampler.filter(&Sampling { top_p: Some(top_p), ..Sampling::default() });
            let mut reached = 0.0;
            let needed = all.iter().take_while(|&&token| {
                let wanted = reached < top_p * total;
                reached += f64::from(weights[token as usize]);
                wanted
            });
            assert_eq!(sampler.candidates, needed.copied().collect::<Vec<_>>(), "top_p {top_p}");
        }
    }

    #[test]
    fn log_probabilities_match_the_softmax() {
        let logits = PROBABILITIES.map(|probability| probability.ln() + 3.0);
        let mut alternatives = vec![(9, 9.0)];
        let got = Sampler::default().log_probabilities(&logits, 1, 2, &mut alternatives);
        // Two roundings of logits near 3, each at most 2^-22, and a few of smaller numbers.
        let near = |got: f32, want: f32| assert!((got - want.ln()).abs() < 1e-6, "{got} for {}", want.ln());
        near(got, 0.2);
        assert_eq!(alternatives.iter().map(|a| a.0).collect::<Vec<_>>(), [3, 2]);
        near(alternatives[0].1, 0.4);
        near(alternatives[1].1, 0.3);
    }

    #[test]
    fn non_finite_logits_give_a_valid_token() {
        let mut rng = Rng::new(1, Stream::Sampling);
        for sampling in [
            Sampling::default(),
            Sampling { temperature: 0.0, ..Sampling::default() },
            Sampling { top_k: Some(2), top_p: Some(0.5), min_p: Some(0.1), ..Sampling::default() },
        ] {
            for logits in [[f32::NAN; 3], [f32::NEG_INFINITY; 3], [f32::NAN, 1.0, f32::NEG_INFINITY]] {
                assert!(Sampler::default().sample(&sampling, &logits, &[], &mut rng) < 3);
            }
        }
    }
}
