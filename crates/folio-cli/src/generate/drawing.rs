//! How tokens are drawn, as flags of every command that writes.

use clap::Args;
use folio::generate::{PastContext, Request, Sampling};
use folio::model::WeightFormat;

use crate::options::{real, whole};

#[derive(Args, Clone)]
#[command(rename_all = "snake_case")]
pub(crate) struct DrawingArgs {
    /// Lower is more predictable, higher more random; 0 always takes the likeliest token
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = real::<f64>)]
    pub(crate) temperature: f64,
    /// Draw from so many of the likeliest tokens only
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    pub(crate) top_k: Option<usize>,
    /// Draw from the likeliest tokens that together reach this probability only
    #[arg(long, value_name = "X", value_parser = real::<f64>)]
    pub(crate) top_p: Option<f64>,
    /// Draw from tokens with at least this share of the likeliest one's probability only
    #[arg(long, value_name = "X", value_parser = real::<f64>)]
    pub(crate) min_p: Option<f64>,
    /// Above 1, tokens that the text has already become less likely
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = real::<f64>)]
    pub(crate) repetition_penalty: f64,
    /// The same seed writes the same text [default: another at every call]
    #[arg(long, value_name = "N", value_parser = whole::<u64>)]
    pub(crate) seed: Option<u64>,
    /// End before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// When the model's context is full: exact (the last block_size tokens are read anew for each, as in the ancestor),
    /// rolling (its older half is given up: faster, other text) or stop
    #[arg(long, value_name = "NAME", default_value = "exact")]
    pub(crate) past_context: PastContext,
    /// Numbers that the weights are in: f32, bf16 or int8 [default: as they were trained]
    #[arg(long, value_name = "NAME")]
    pub(crate) precision: Option<WeightFormat>,
    /// Threads to compute with [default: all cores]
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    pub(crate) threads: Option<usize>,
}

impl DrawingArgs {
    pub(crate) fn sampling(&self) -> Sampling {
        let Self { repetition_penalty, temperature, top_k, top_p, min_p, .. } = *self;
        Sampling { repetition_penalty, temperature, top_k, top_p, min_p }
    }

    /// The seed that was given, or one that differs from call to call.
    pub(crate) fn seed(&self) -> u64 {
        let clock = || {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(0, |elapsed| elapsed.as_nanos() as u64)
        };
        self.seed.unwrap_or_else(clock)
    }

    /// What to write after a prompt.
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
