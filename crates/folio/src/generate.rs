//! Writing text: the model's prediction, a draw from it, and again.

use crate::error::{Error, Result};
use crate::model::Gpt2;
use crate::rng::Rng;

/// How a token is drawn from the model's logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by this: below 1 bolder, above 1 wilder; 0 always takes the likeliest token.
    pub temperature: f64,
    /// Only so many of the likeliest tokens are drawn from (Fan, Lewis and Dauphin 2018).
    pub top_k: Option<usize>,
    /// Only the likeliest tokens that together reach this probability are drawn from (Holtzman et al. 2020,
    /// "The Curious Case of Neural Text Degeneration": nucleus sampling).
    pub top_p: Option<f64>,
}

impl Default for Sampling {
    /// The ancestor's: the softmax as it is.
    fn default() -> Self {
        Self { temperature: 1.0, top_k: None, top_p: None }
    }
}

impl Sampling {
    /// Checks every number.
    pub fn validate(&self) -> Result<()> {
        if !self.temperature.is_finite() || self.temperature < 0.0 {
            let reason = format!("{} will not do: give 0 (the likeliest token) or more", self.temperature);
            return Err(Error::setting("--temperature", reason));
        }
        if self.top_k == Some(0) {
            return Err(Error::setting("--top_k", "0 leaves no token to draw: give at least 1"));
        }
        if let Some(top_p) = self.top_p
            && !(top_p > 0.0 && top_p <= 1.0)
        {
            return Err(Error::setting("--top_p", format!("{top_p} is outside (0, 1]")));
        }
        Ok(())
    }

    /// Draws a token from logits.
    ///
    /// ```
    /// use folio::generate::Sampling;
    /// use folio::rng::{Rng, Stream};
    /// let mut rng = Rng::new(1, Stream::Sampling);
    /// let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    /// assert_eq!(greedy.draw(&[0.5, 2.0, 1.0], &mut rng), 1);
    /// ```
    ///
    /// # Panics
    /// If there are no logits.
    pub fn draw(&self, logits: &[f32], rng: &mut Rng) -> u32 {
        let mut candidates: Vec<(u32, f64)> =
            (0..).zip(logits.iter().map(|&logit| f64::from(logit))).collect();
        let greatest = candidates.iter().map(|c| c.1).fold(f64::NEG_INFINITY, f64::max);
        if self.temperature == 0.0 {
            let best = candidates.iter().find(|c| c.1 == greatest);
            return best.expect("some logit is the greatest").0;
        }
        for (_, logit) in &mut candidates {
            *logit = ((*logit - greatest) / self.temperature).exp();
        }
        if self.top_k.is_some() || self.top_p.is_some() {
            // Equal probabilities keep the order of the vocabulary, since the sort is stable.
            candidates.sort_by(|a, b| b.1.total_cmp(&a.1));
            candidates.truncate(self.top_k.unwrap_or(usize::MAX));
        }
        if let Some(top_p) = self.top_p {
            let total: f64 = candidates.iter().map(|c| c.1).sum();
            let mut reached = 0.0;
            let needed = candidates.iter().take_while(|candidate| {
                let wanted = reached < top_p * total;
                reached += candidate.1;
                wanted
            });
            let needed = needed.count();
            candidates.truncate(needed.max(1));
        }
        let total: f64 = candidates.iter().map(|c| c.1).sum();
        let mut left = rng.next_f64() * total;
        for &(token, probability) in &candidates {
            left -= probability;
            if left < 0.0 {
                return token;
            }
        }
        candidates.last().expect("a candidate").0
    }
}

/// Writes `count` tokens after `context`, which must hold at least one, and appends them to it. `on_token` is
/// told of each as it is drawn. The model sees the last `block_size` tokens, as in the ancestor.
///
/// # Panics
/// If `context` is empty.
pub fn generate(
    model: &mut Gpt2,
    context: &mut Vec<u32>,
    count: usize,
    sampling: &Sampling,
    rng: &mut Rng,
    mut on_token: impl FnMut(u32),
) {
    assert!(!context.is_empty(), "generation starts from at least one token");
    let longest = model.config().block_size;
    for _ in 0..count {
        let seen = &context[context.len().saturating_sub(longest)..];
        let token = sampling.draw(model.next_logits(seen), rng);
        context.push(token);
        on_token(token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    /// How often each of four tokens with probabilities 0.1, 0.2, 0.3, 0.4 is drawn in 10,000.
    fn frequencies(sampling: Sampling) -> [u32; 4] {
        let logits = [0.1f32.ln(), 0.2f32.ln(), 0.3f32.ln(), 0.4f32.ln()];
        let mut rng = Rng::new(5, Stream::Sampling);
        let mut counts = [0; 4];
        for _ in 0..10_000 {
            counts[sampling.draw(&logits, &mut rng) as usize] += 1;
        }
        counts
    }

    /// Six deviations of a binomial count: 6 sqrt(10,000 / 4).
    fn assert_near(counts: [u32; 4], want: [u32; 4]) {
        for (count, want) in counts.into_iter().zip(want) {
            let slack = if want == 0 || want == 10_000 { 0 } else { 300 };
            assert!(count.abs_diff(want) <= slack, "{counts:?}");
        }
    }

    #[test]
    fn temperature_one_draws_from_the_softmax() {
        assert_near(frequencies(Sampling::default()), [1_000, 2_000, 3_000, 4_000]);
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let top_2 = Sampling { top_k: Some(2), ..Sampling::default() };
        assert_near(frequencies(top_2), [0, 0, 4_286, 5_714]);
        // 0.4 + 0.3 reaches 0.6.
        let nucleus = Sampling { top_p: Some(0.6), ..Sampling::default() };
        assert_near(frequencies(nucleus), [0, 0, 4_286, 5_714]);
        let one = Sampling { top_p: Some(1e-9), ..Sampling::default() };
        assert_near(frequencies(one), [0, 0, 0, 10_000]);
    }

    #[test]
    fn low_temperature_sharpens() {
        // Probabilities squared: 1, 4, 9, 16 of 30.
        let sharper = Sampling { temperature: 0.5, ..Sampling::default() };
        assert_near(frequencies(sharper), [333, 1_333, 3_000, 5_333]);
        assert_near(frequencies(Sampling { temperature: 0.0, ..Sampling::default() }), [0, 0, 0, 10_000]);
    }
}
