//! Random numbers that are the same on every machine, with a state that can be saved.

use serde::{Deserialize, Serialize};

/// xoshiro256++ (Blackman and Vigna 2021, "Scrambled Linear Pseudorandom Number Generators"). Its state is four words.
///
/// Every use of randomness has its own named stream, so that drawing more numbers from one does not change another:
///
/// ```
/// use folio::rng::{Rng, Stream};
/// let mut order = Rng::new(1337, Stream::Order);
/// let mut init = Rng::new(1337, Stream::Init);
/// assert_ne!(order.next_u64(), init.next_u64());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rng {
    state: [u64; 4],
}

/// The uses of random numbers in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// The initial weights.
    Init,
    /// The split into training and evaluation blocks.
    Split,
    /// The order of the training blocks in each epoch.
    Order,
    /// The keys of the dropout masks.
    Dropout,
    /// The tokens of generated text.
    Sampling,
    /// The settings of a random search.
    Search,
}

impl Stream {
    /// The tag that is mixed into the seed. Changing a tag would change the results of every saved run.
    fn tag(self) -> u64 {
        match self {
            Stream::Init => 1,
            Stream::Split => 2,
            Stream::Order => 3,
            Stream::Dropout => 4,
            Stream::Sampling => 5,
            Stream::Search => 6,
        }
    }
}

impl Rng {
    /// The given stream for a seed.
    pub fn new(seed: u64, stream: Stream) -> Self {
        let mut state = split_mix(&mut seed.clone()) ^ stream.tag();
        Self { state: std::array::from_fn(|_| split_mix(&mut state)) }
    }

    /// Whether the state is valid: a state of zeros would only generate zeros.
    pub fn is_sound(&self) -> bool {
        self.state != [0; 4]
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let [s0, s1, s2, s3] = &mut self.state;
        let result = s0.wrapping_add(*s3).rotate_left(23).wrapping_add(*s0);
        let shifted = *s1 << 17;
        *s2 ^= *s0;
        *s3 ^= *s1;
        *s1 ^= *s2;
        *s0 ^= *s3;
        *s2 ^= shifted;
        *s3 = s3.rotate_left(45);
        result
    }

    /// A number in [0, 1), one of 2^53 equally spaced values.
    pub fn next_f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * 2f64.powi(-53)
    }

    /// A uniformly distributed integer below `bound` (Lemire 2019, "Fast Random Integer Generation in an
    /// Interval").
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "the bound must be greater than 0");
        let rejected = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(bound);
            if product as u64 >= rejected {
                return (product >> 64) as u64;
            }
        }
    }

    /// A sample from the standard normal distribution (Box and Muller 1958).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.next_f64()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.next_f64()).cos()
    }

    /// Shuffles `items`; every order is equally likely (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014), which expands a seed into the state.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first output of xoshiro256++ from the state 1, 2, 3, 4, by its definition:
    /// rotl(1 + 4, 23) + 1 = 5 * 2^23 + 1.
    #[test]
    fn first_output_follows_from_the_definition() {
        assert_eq!(Rng { state: [1, 2, 3, 4] }.next_u64(), 5 * (1 << 23) + 1);
    }

    #[test]
    fn shuffle_is_uniform() {
        let mut rng = Rng::new(7, Stream::Order);
        let mut places = [0u32; 8];
        for _ in 0..8_000 {
            let mut items: Vec<usize> = (0..8).collect();
            rng.shuffle(&mut items);
            places[items.iter().position(|&item| item == 0).expect("kept")] += 1;
        }
        // Each count is binomial with mean 1,000 and standard deviation 30; the tolerance is six standard deviations.
        assert!(places.iter().all(|&count| count.abs_diff(1_000) < 180), "{places:?}");
    }

    #[test]
    fn normal_has_mean_zero_and_variance_one() {
        let mut rng = Rng::new(1, Stream::Init);
        let draws: Vec<f64> = (0..100_000).map(|_| rng.normal()).collect();
        let mean = draws.iter().sum::<f64>() / 1e5;
        let variance = draws.iter().map(|x| x * x).sum::<f64>() / 1e5;
        // The standard deviation of the mean is 1 / sqrt(1e5) = 0.0032, of the variance sqrt(2 / 1e5) = 0.0045; the
        // tolerances are five of each.
        assert!(mean.abs() < 0.016 && (variance - 1.0).abs() < 0.023, "mean {mean}, variance {variance}");
    }

    #[test]
    fn state_survives_json() {
        let mut rng = Rng::new(u64::MAX, Stream::Split);
        rng.next_u64();
        let mut copy: Rng = serde_json::from_str(&serde_json::to_string(&rng).unwrap()).unwrap();
        assert_eq!(copy.next_u64(), rng.next_u64());
    }
}
