//! `folio bench`: measures training and generation speed, and the kernels and hardware limits behind it.

mod generate;
mod kernels;
mod peak;
mod tokenizer;

use std::time::Instant;

use clap::{Args, Subcommand, ValueEnum};
use folio::error::Error;
use folio::model::{Backend, Batch, CpuBackend, ModelConfig, PrecisionChoice, resolve_precision};
use folio::optim::{AdamW, AdamWConfig, MuonConfig, OptimizerKind};
use folio::rng::{Rng, Stream};
use folio_kernels::isa::{Isa, Missing};

use crate::options::{real, whole};
use crate::screen;
use crate::threads::set_threads;
use crate::usage::Usage;
use kernels::Sizes;
use peak::Peak;

#[derive(Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Time training steps on random tokens; prints one JSON line
    Step(StepArgs),
    /// Time text generation with random weights; prints one JSON line
    Generate(generate::BenchGenerateArgs),
    /// Time every kernel of a training step, relative to the peak of this machine
    Kernels(KernelsArgs),
    /// Measure the peak arithmetic throughput and memory bandwidth of this machine
    Peak(PeakArgs),
    /// Time tokenizer training and encoding, and encoding with GPT-2's tokenizer; prints one JSON line
    Tokenizer(tokenizer::BenchTokenizerArgs),
}

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
Settings: char (batch 64, block 256, vocab 65, emb 384), bpe (32, 128, 50257, 384), nanogpt-cpu (12, 64, 65, 128),
gpt2-124m (4, 64, 50257, 768).

Example:
  folio bench kernels char bpe --precision bf16")]
struct KernelsArgs {
    /// Model sizes to time
    #[arg(value_enum, default_value = "char")]
    settings: Vec<ModelSize>,
    /// Number format: f32, bf16, or auto for the faster
    #[arg(long, default_value = "auto")]
    precision: PrecisionChoice,
    /// Number of threads [default: all cores]
    #[arg(long, value_parser = whole::<usize>)]
    threads: Option<usize>,
    /// Print one JSON object per kernel
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(rename_all = "snake_case")]
struct PeakArgs {
    /// Number of threads [default: all cores]
    #[arg(long, value_parser = whole::<usize>)]
    threads: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Named model sizes.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ModelSize {
    Char,
    Bpe,
    NanogptCpu,
    #[value(name = "gpt2-124m")]
    Gpt2Small,
}

impl ModelSize {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn sizes(self) -> Sizes {
        let [batch, time, vocab, channels, heads] = match self {
            Self::Char => [64, 256, 65, 384, 6],
            Self::Bpe => [32, 128, 50_257, 384, 6],
            Self::NanogptCpu => [12, 64, 65, 128, 4],
            Self::Gpt2Small => [4, 64, 50_257, 768, 12],
        };
        let dropout = if matches!(self, Self::Char | Self::Bpe) { 0.2 } else { 0.0 };
        Sizes { batch, time, vocab, channels, heads, dropout }
    }
}

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
Example:
  folio bench step --batch 64 --block 256 --vocab 65 --emb 384 --blocks 6 \\
      --heads 6 --dropout 0.2")]
struct StepArgs {
    /// Sequences per step
    #[arg(long, default_value_t = 64, value_parser = whole::<usize>)]
    batch: usize,
    #[command(flatten)]
    sizes: ModelArgs,
    /// Dropout rate
    #[arg(long, default_value_t = 0.2, value_parser = real::<f32>)]
    dropout: f32,
    /// Number format: f32, bf16, or auto for the faster
    #[arg(long, default_value = "auto")]
    precision: PrecisionChoice,
    /// What updates the blocks' matrices: adamw or muon
    #[arg(long, default_value = "adamw")]
    optimizer: OptimizerKind,
    /// Steps to time, after two warm-up steps
    #[arg(long, default_value_t = 5, value_parser = whole::<usize>)]
    steps: usize,
    /// Number of threads [default: all cores]
    #[arg(long, value_parser = whole::<usize>)]
    threads: Option<usize>,
}

/// The sizes of a model.
#[derive(Args)]
#[command(rename_all = "snake_case")]
struct ModelArgs {
    /// Context length in tokens
    #[arg(long, default_value_t = 256, value_parser = whole::<usize>)]
    block: usize,
    /// Vocabulary size
    #[arg(long, default_value_t = 65, value_parser = whole::<usize>)]
    vocab: usize,
    /// Embedding width
    #[arg(long, default_value_t = 384, value_parser = whole::<usize>)]
    emb: usize,
    /// Transformer blocks
    #[arg(long, default_value_t = 6, value_parser = whole::<usize>)]
    blocks: usize,
    /// Attention heads
    #[arg(long, default_value_t = 6, value_parser = whole::<usize>)]
    heads: usize,
}

impl ModelArgs {
    fn config(&self, dropout: f32) -> folio::error::Result<ModelConfig> {
        let config = ModelConfig {
            vocab_size: self.vocab,
            n_blocks: self.blocks,
            n_emb: self.emb,
            n_heads: self.heads,
            block_size: self.block,
            dropout,
            ..ModelConfig::GPT2
        };
        config.validate().map(|()| config).map_err(in_own_flags)
    }
}

/// An invalid size of a model, reported with the flags of `bench` instead of those of `train`.
fn in_own_flags(error: Error) -> Error {
    /// The setting and the flag of `bench`.
    const FLAGS: [(&str, &str); 6] = [
        ("block_size", "block"),
        ("n_blocks", "blocks"),
        ("n_heads", "heads"),
        ("n_emb", "emb"),
        ("dropout", "dropout"),
        ("vocab_size", "vocab"),
    ];
    let Error::Setting { field, reason } = error else { return error };
    let own = FLAGS.iter().find(|(name, _)| *name == field).map_or(field, |(_, own)| own);
    let spelled =
        |reason: String, name: &str, own: &str| reason.replace(&format!("`{name}"), &format!("`--{own}"));
    let reason = FLAGS.iter().fold(reason, |reason, (name, own)| spelled(reason, name, own));
    Error::Setting { field: own, reason }
}

pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    match &args.what {
        What::Step(args) => step(args),
        What::Generate(args) => generate::run(args),
        What::Kernels(args) => kernels(args),
        What::Peak(args) => peak(args),
        What::Tokenizer(args) => tokenizer::run(args),
    }
}

fn peak(args: &PeakArgs) -> anyhow::Result<()> {
    set_threads(args.threads)?;
    let peak = Peak::measure();
    if args.json {
        screen::out(serde_json::to_string(&peak)?)?;
    } else {
        print_peak(peak)?;
    }
    Ok(())
}

fn print_peak(peak: Peak) -> std::io::Result<()> {
    for (set, why) in Isa::missing() {
        let why = match why {
            Missing::Absent => "not supported by this processor",
            Missing::Refused => "the processor has it, but this process is not permitted to use it",
        };
        screen::out(format_args!("{set} is not used: {why}"))?;
    }
    screen::out(format_args!(
        "{} threads, {}: f32 {:.0} GFLOP/s, bf16 {:.0} GFLOP/s, memory copy {:.1} GB/s, memory read {:.1} GB/s",
        rayon::current_num_threads(),
        Isa::detected().name(),
        peak.f32_gflop_per_s,
        peak.bf16_gflop_per_s,
        peak.copy_gb_per_s,
        peak.read_gb_per_s,
    ))
}

fn kernels(args: &KernelsArgs) -> anyhow::Result<()> {
    set_threads(args.threads)?;
    if !args.json {
        print_peak(Peak::measure())?;
    }
    for setting in &args.settings {
        let sizes = setting.sizes();
        let (n_emb, n_heads) = (sizes.channels, sizes.heads);
        let config = ModelConfig { n_emb, n_heads, ..ModelConfig::GPT2 };
        let precision = resolve_precision(args.precision, &config);
        let rows = kernels::measure(sizes, precision);
        if args.json {
            for row in rows {
                let mut value = serde_json::to_value(row)?;
                value["setting"] = setting.name().into();
                value["precision"] = precision.name().into();
                screen::out(value)?;
            }
            continue;
        }
        screen::out(format_args!("\n{} in {}", setting.name(), precision.name()))?;
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header(["kernel", "shape", "ms", "GFLOP/s", "GB/s", "% of peak"]);
        for row in rows {
            table.add_row([
                row.kernel.to_owned(),
                row.shape,
                format!("{:.2}", row.ms),
                row.gflop_per_s.map_or_else(String::new, |value| format!("{value:.0}")),
                row.gb_per_s.map_or_else(String::new, |value| format!("{value:.1}")),
                format!("{:.0}", row.share_of_peak),
            ]);
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
        screen::out(table)?;
    }
    Ok(())
}

fn step(args: &StepArgs) -> anyhow::Result<()> {
    let sizes = &args.sizes;
    let config = sizes.config(args.dropout)?;
    let precision = resolve_precision(args.precision, &config);
    precision.check(&config).map_err(in_own_flags)?;
    if args.batch == 0 || args.steps == 0 {
        return Err(Usage("--batch and --steps must be at least 1".into()).into());
    }
    set_threads(args.threads)?;
    let mut rng = Rng::new(0, Stream::Init);
    let mut model = CpuBackend::new(config, precision, &mut rng);
    let adamw = AdamWConfig {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        decay_all_parameters: true,
        grad_clip: 1.0,
    };
    let muon = MuonConfig { momentum: 0.95, relative_rate: 1.0 };
    let muon = (args.optimizer == OptimizerKind::Muon).then_some(muon);
    let mut optimizer = AdamW::new(adamw).with_muon(muon);
    let tokens = args.batch * sizes.block;
    let mut times = Vec::new();
    for step in 0..args.steps + 2 {
        let mut random_tokens =
            || -> Vec<u32> { (0..tokens).map(|_| rng.below(sizes.vocab as u64) as u32).collect() };
        let (inputs, targets) = (random_tokens(), random_tokens());
        let start = Instant::now();
        model
            .loss_and_gradients(Batch { inputs: &inputs, targets: &targets, time: sizes.block }, step as u64);
        optimizer.step(&mut model, 1e-3);
        if step >= 2 {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    let fastest = times.iter().copied().fold(f64::INFINITY, f64::min);
    let median = median(times);
    screen::out(serde_json::json!({
        "what": "step", "batch": args.batch, "block": sizes.block, "vocab": sizes.vocab, "emb": sizes.emb,
        "blocks": sizes.blocks, "heads": sizes.heads, "dropout": args.dropout, "steps": args.steps,
        "precision": precision.name(), "optimizer": args.optimizer.name(), "threads": rayon::current_num_threads(), "isa": Isa::detected().name(),
        "step_s": median, "step_s_min": fastest, "tokens_per_s": tokens as f64 / median,
        "gflop_per_s": flop(&config, tokens) / median / 1e9, "peak_mib": peak_mib(),
    }))?;
    Ok(())
}

/// The median: the middle value, or the mean of the two middle values.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
}

/// The floating-point operations of a step. The backward pass costs twice the forward pass; a multiply-add counts as
/// two operations; causal attention computes half of the square.
fn flop(config: &ModelConfig, tokens: usize) -> f64 {
    let ModelConfig { vocab_size, n_blocks, n_emb: c, block_size, .. } = *config;
    3.0 * tokens as f64 * (n_blocks * (2 * 12 * c * c + 2 * block_size * c) + 2 * vocab_size * c) as f64
}

/// The peak resident size in MiB; known on Linux only.
fn peak_mib() -> Option<u64> {
    folio::machine::peak_memory().map(|bytes| bytes >> 20)
}
