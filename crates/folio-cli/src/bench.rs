//! `folio bench`: measures training and generation speed, and the kernels and hardware limits behind it.

mod generate;
mod kernels;
mod peak;
mod step;
mod tokenizer;

use clap::{Args, Subcommand, ValueEnum};
use folio::error::Error;
use folio::model::{ModelConfig, PrecisionChoice, resolve_precision};
use folio_kernels::isa::{Isa, Missing};

use crate::options::whole;
use crate::screen;
use crate::threads::set_threads;
use kernels::Sizes;
use peak::Peak;
use step::StepArgs;

#[derive(Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    what: What,
    /// Instruction set of the kernels [default: the widest]
    #[arg(long, global = true, value_parser = available_isa)]
    isa: Option<Isa>,
}

/// The instruction set of this name.
fn available_isa(name: &str) -> Result<Isa, String> {
    let available = Isa::available();
    let names: Vec<_> = available.iter().map(|isa| isa.name()).collect();
    let found = available.iter().find(|isa| isa.name() == name);
    found.copied().ok_or_else(|| format!("this machine has {}", names.join(", ")))
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
    if args.isa.is_some() {
        Isa::force(args.isa);
    }
    match &args.what {
        What::Step(args) => step::run(args),
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
