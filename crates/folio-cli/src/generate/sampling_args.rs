//! Sampling flags, shared by `folio generate` and `folio chat`.

use clap::Args;
use folio::generate::{PastContext, Request, Sampling};
use folio::model::WeightFormat;

use crate::options::{real, whole};

#[derive(Args, Clone)]
#[command(rename_all = "snake_case")]
pub(crate) struct SamplingArgs {
    /// Sampling temperature: below 1 is more predictable, above 1 more random, 0 always takes the likeliest token
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = real::<f64>)]
    pub(crate) temperature: f64,
    /// Sample only from the N likeliest tokens
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    pub(crate) top_k: Option<usize>,
    /// Sample only from the likeliest tokens whose probabilities add up to X (nucleus sampling)
    #[arg(long, value_name = "X", value_parser = real::<f64>)]
    pub(crate) top_p: Option<f64>,
    /// Sample only from tokens at least X times as likely as the likeliest one
    #[arg(long, value_name = "X", value_parser = real::<f64>)]
    pub(crate) min_p: Option<f64>,
    /// Penalty on tokens already in the text; above 1 makes them less likely
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = real::<f64>)]
    pub(crate) repetition_penalty: f64,
    /// Random seed; the same seed gives the same text [default: a new seed every time]
    #[arg(long, value_name = "N", value_parser = whole::<u64>)]
    pub(crate) seed: Option<u64>,
    /// Stop before this text; repeatable
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// What to do when the context is full: exact (re-evaluate the last block_size tokens for each new token, as
    /// the original project does), rolling (drop the older half: faster, different text) or stop
    #[arg(long, value_name = "NAME", default_value = "exact")]
    pub(crate) past_context: PastContext,
    /// Weight format: f32, bf16 or int8 [default: the precision of training]
    #[arg(long, value_name = "NAME")]
    pub(crate) precision: Option<WeightFormat>,
    /// Number of threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    pub(crate) threads: Option<usize>,
}

impl SamplingArgs {
    pub(crate) fn sampling(&self) -> Sampling {
        let Self { repetition_penalty, temperature, top_k, top_p, min_p, .. } = *self;
        Sampling { repetition_penalty, temperature, top_k, top_p, min_p }
    }

    /// The seed from the command line, or one from the clock.
    pub(crate) fn seed(&self) -> u64 {
        let clock = || {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(0, |elapsed| elapsed.as_nanos() as u64)
        };
        self.seed.unwrap_or_else(clock)
    }

    /// A generation request that continues `prompt`.
    pub(crate) fn request(&self, prompt: Vec<u32>, max_new_tokens: usize, seed: u64) -> Request {
        Request {
            prompt,
            max_new_tokens,
            sampling: self.sampling(),
            seed,
            stop: self.stop.clone(),
            past_context: self.past_context,
            logprobs: None,
            given: Vec::new(),
        }
    }
}
