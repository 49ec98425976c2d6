//! `folio bench`: how fast this machine trains.

use std::time::Instant;

use clap::{Args, Subcommand};
use folio::model::{Batch, Gpt2, ModelConfig, PrecisionChoice};
use folio::optim::{AdamW, AdamWConfig};
use folio::rng::{Rng, Stream};

use crate::options::{real, whole};
use crate::train::set_threads;
use crate::usage::Usage;

#[derive(Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Time training steps of any size on random tokens; one JSON line
    Step(StepArgs),
}

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
Example:
  folio bench step --batch 64 --block 256 --vocab 65 --emb 384 --blocks 6 --heads 6 --dropout 0.2")]
struct StepArgs {
    /// Sequences a step
    #[arg(long, default_value_t = 64, value_parser = whole::<usize>)]
    batch: usize,
    /// Tokens a sequence
    #[arg(long, default_value_t = 256, value_parser = whole::<usize>)]
    block: usize,
    /// Tokens of the vocabulary
    #[arg(long, default_value_t = 65, value_parser = whole::<usize>)]
    vocab: usize,
    /// Width of the model
    #[arg(long, default_value_t = 384, value_parser = whole::<usize>)]
    emb: usize,
    /// Transformer blocks
    #[arg(long, default_value_t = 6, value_parser = whole::<usize>)]
    blocks: usize,
    /// Attention heads
    #[arg(long, default_value_t = 6, value_parser = whole::<usize>)]
    heads: usize,
    /// Share that dropout drops
    #[arg(long, default_value_t = 0.2, value_parser = real::<f32>)]
    dropout: f32,
    /// Numbers to compute in
    #[arg(long, default_value = "auto")]
    precision: PrecisionChoice,
    /// Steps to time, after two that are not
    #[arg(long, default_value_t = 5, value_parser = whole::<usize>)]
    steps: usize,
    /// Threads to compute with [default: all cores]
    #[arg(long, value_parser = whole::<usize>)]
    threads: Option<usize>,
}

pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    match &args.what {
        What::Step(args) => step(args),
    }
}

fn step(args: &StepArgs) -> anyhow::Result<()> {
    let config = ModelConfig {
        vocab_size: args.vocab,
        n_blocks: args.blocks,
        n_emb: args.emb,
        n_heads: args.heads,
        block_size: args.block,
        dropout: args.dropout,
    };
    config.validate()?;
    let precision = args.precision.resolve(args.emb, args.heads);
    precision.check(&config)?;
    if args.batch == 0 || args.steps == 0 {
        return Err(Usage("--batch and --steps must be at least 1".into()).into());
    }
    set_threads(args.threads)?;
    let mut rng = Rng::new(0, Stream::Init);
    let mut model = Gpt2::new(config, precision, &mut rng);
    let adamw = AdamWConfig {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        decay_all_parameters: true,
        grad_clip: 1.0,
    };
    let mut optimizer = AdamW::new(adamw, model.parameters().values().len());
    let tokens = args.batch * args.block;
    let mut times = Vec::new();
    for step in 0..args.steps + 2 {
        let mut draw = || -> Vec<u32> { (0..tokens).map(|_| rng.below(args.vocab as u64) as u32).collect() };
        let (inputs, targets) = (draw(), draw());
        let start = Instant::now();
        model.train_step(Batch { inputs: &inputs, targets: &targets, time: args.block }, step as u64);
        let (parameters, gradients) = model.parameters_and_gradients();
        optimizer.step(parameters, gradients, 1e-3);
        if step >= 2 {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    times.sort_by(f64::total_cmp);
    let median = (times[(times.len() - 1) / 2] + times[times.len() / 2]) / 2.0;
    println!(
        "{}",
        serde_json::json!({
            "what": "step", "batch": args.batch, "block": args.block, "vocab": args.vocab, "emb": args.emb,
            "blocks": args.blocks, "heads": args.heads, "dropout": args.dropout, "steps": args.steps,
            "precision": precision.name(), "threads": rayon::current_num_threads(), "isa": folio_kernels::isa::Isa::detected().name(),
            "step_s": median, "step_s_min": times[0], "tokens_per_s": tokens as f64 / median,
            "gflop_per_s": flop(&config, tokens) / median / 1e9, "peak_mib": peak_mib(),
        })
    );
    Ok(())
}

/// The arithmetic of a step: forward and backward are three times the forward, two operations a
/// multiply-add, causal attention half of the square.
fn flop(config: &ModelConfig, tokens: usize) -> f64 {
    let ModelConfig { vocab_size, n_blocks, n_emb: c, block_size, .. } = *config;
    3.0 * tokens as f64 * (n_blocks * (2 * 12 * c * c + 2 * block_size * c) + 2 * vocab_size * c) as f64
}

/// The largest resident size so far in MiB, where the system tells (Linux).
fn peak_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}
