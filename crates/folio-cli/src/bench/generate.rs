//! `folio bench generate`: measures generation speed.

use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use folio::generate::{Generator, PastContext, Request};
use folio::model::{InferenceModel, Parameters, PrecisionChoice, WeightFormat, resolve_precision};
use folio::rng::{Rng, Stream};
use folio::tokenizer::Tokenizer;
use folio_kernels::isa::Isa;

use super::peak::reading;
use super::{ModelArgs, in_own_flags, median, peak_mib};
use crate::options::whole;
use crate::screen;
use crate::threads::join_threads;
use crate::usage::Usage;

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
Every step reads all weights, and for each sequence the keys and values of all previous tokens. gb_per_s counts both.
share_of_memory is its percentage of the memory read bandwidth; above 100, the data came from a cache.

Example:
  folio bench generate --block 256 --vocab 65 --emb 384 --blocks 6 --heads 6 \\
      --tokens 256 --streams 16")]
pub(super) struct BenchGenerateArgs {
    #[command(flatten)]
    sizes: ModelArgs,
    /// Tokens to generate, from an empty prompt
    #[arg(long, default_value_t = 200, value_parser = whole::<usize>)]
    tokens: usize,
    /// Sequences to generate in parallel
    #[arg(long, default_value_t = 1, value_parser = whole::<usize>)]
    streams: usize,
    /// Number format of the weights: f32, bf16, int8, or auto for what training would choose
    #[arg(long, default_value = "auto")]
    precision: FormatChoice,
    /// How to continue beyond the context: exact, rolling or stop
    #[arg(long, default_value = "exact")]
    past_context: PastContext,
    /// Repetitions, after one warm-up; the median is reported
    #[arg(long, default_value_t = 5, value_parser = whole::<usize>)]
    rounds: usize,
    /// Number of threads [default: all cores]
    #[arg(long, value_parser = whole::<usize>)]
    threads: Option<usize>,
}

/// A format of weights, or the training format that `--precision auto` chooses.
#[derive(Clone, Copy, Debug)]
enum FormatChoice {
    Auto,
    Given(WeightFormat),
}

impl std::str::FromStr for FormatChoice {
    type Err = folio::error::Error;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if name == "auto" { Ok(Self::Auto) } else { name.parse().map(Self::Given) }
    }
}

pub(super) fn run(args: &BenchGenerateArgs) -> anyhow::Result<()> {
    let sizes = &args.sizes;
    let config = sizes.config(0.0)?;
    if args.tokens == 0 || args.streams == 0 || args.rounds == 0 {
        return Err(Usage("--tokens, --streams and --rounds must be at least 1".into()).into());
    }
    let format = match args.precision {
        FormatChoice::Given(format) => format,
        FormatChoice::Auto => WeightFormat::of(resolve_precision(PrecisionChoice::Auto, &config)),
    };
    format.check(&config).map_err(in_own_flags)?;
    join_threads(args.threads)?;
    let parameters = Parameters::random(&config, &mut Rng::new(0, Stream::Init));
    let model = Arc::new(InferenceModel::new(config, format, &parameters));
    drop(parameters);
    let mut generator = Generator::new(Arc::clone(&model), Arc::new(vocabulary(sizes.vocab)?));
    let mut times = Vec::new();
    for round in 0..=args.rounds {
        for stream in 0..args.streams {
            generator.begin(Request {
                max_new_tokens: args.tokens,
                seed: stream as u64,
                past_context: args.past_context,
                ..Request::default()
            })?;
        }
        let start = Instant::now();
        while generator.active() > 0 {
            generator.step(|_, _| {});
        }
        if round > 0 {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    let fastest = times.iter().copied().fold(f64::INFINITY, f64::min);
    let seconds = median(times);
    // Within the context, a step reads the weights once, and all previous keys and values of each sequence.
    let steps = args.tokens as f64;
    let seen = (args.tokens.min(sizes.block) + 1) as f64 / 2.0;
    let cached = model.cache_bytes() as f64 / sizes.block as f64 * seen * args.streams as f64;
    let is_within = args.tokens <= sizes.block;
    let gb_per_s = (model.weight_bytes() as f64 + cached) * steps / seconds / 1e9;
    let memory = reading();
    screen::out(serde_json::json!({
        "what": "generate", "block": sizes.block, "vocab": sizes.vocab, "emb": sizes.emb, "blocks": sizes.blocks,
        "heads": sizes.heads, "tokens": args.tokens, "streams": args.streams, "precision": format.name(),
        "past_context": args.past_context.name(), "threads": rayon::current_num_threads(),
        "isa": Isa::detected().name(), "tokens_per_s": (args.tokens * args.streams) as f64 / seconds,
        "tokens_per_s_max": (args.tokens * args.streams) as f64 / fastest,
        "weights_mb": model.weight_bytes() as f64 / 1e6, "gb_per_s": is_within.then_some(gb_per_s),
        "memory_gb_per_s": memory, "share_of_memory": is_within.then_some(100.0 * gb_per_s / memory),
        "peak_mib": peak_mib(),
    }))?;
    Ok(())
}

/// A vocabulary of `size` arbitrary characters.
fn vocabulary(size: usize) -> anyhow::Result<Tokenizer> {
    let text: String = ('\u{21}'..=char::MAX).take(size).collect();
    if text.chars().count() < size {
        return Err(Usage(format!("--vocab {size} exceeds the number of Unicode characters")).into());
    }
    Ok(Tokenizer::chars(&text))
}
