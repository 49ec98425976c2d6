//! `folio bench step`: the speed of a training step, on one rank or on several.

use std::time::Instant;

use clap::Args;
use folio::distributed::{Communicator, Division, Reduction, Timed};
use folio::model::{Backend, Batch, CpuBackend, Precision, PrecisionChoice, StepBatch, resolve_precision};
use folio::optim::{AdamW, AdamWConfig, MuonConfig, OptimizerKind};
use folio::rng::{Rng, Stream};
use folio_kernels::isa::Isa;

use super::{ModelArgs, flop, in_own_flags, median, peak_mib};
use crate::options::{real, whole};
use crate::ranks;
use crate::screen;
use crate::threads::set_threads;
use crate::usage::Usage;

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
Examples:
  folio bench step --batch 64 --block 256 --vocab 65 --emb 384 --blocks 6 \\
      --heads 6 --dropout 0.2
  mpirun -n 2 folio bench step --threads 1")]
pub(super) struct StepArgs {
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
    /// What is divided over ranks: 0 (the batch) or 1 (the batch, and AdamW's moments and update)
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=1))]
    zero: u8,
    /// Number format in which ranks send gradients
    #[arg(long, default_value = "f32", value_name = "FORMAT")]
    reduce_precision: Precision,
    /// Threads of each rank [default: all cores, shared by a machine's ranks]
    #[arg(long, value_parser = whole::<usize>)]
    threads: Option<usize>,
}

/// What is the same in every program that is compared.
const ADAMW: AdamWConfig = AdamWConfig {
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weight_decay: 0.01,
    decay_all_parameters: true,
    grad_clip: 1.0,
};

/// The times of steps in seconds.
#[derive(Default)]
struct Times {
    steps: Vec<f64>,
    /// The part of each in communication on this rank: sending, waiting and adding.
    communication: Vec<f64>,
}

pub(super) fn run(args: &StepArgs) -> anyhow::Result<()> {
    let communicator = Timed::new(ranks::join()?);
    let world_size = communicator.world_size();
    // What `auto` chooses depends on the processor. If rank 0 fails, the others wait here for their end.
    let mut is_bf16 = [0];
    if communicator.rank() == 0 {
        is_bf16 = [u8::from(check(args, world_size)? == Precision::Bf16)];
    }
    communicator.broadcast(&mut is_bf16);
    let precision = if is_bf16 == [0] { Precision::F32 } else { Precision::Bf16 };
    let config = args.sizes.config(args.dropout)?;
    set_threads(args.threads.or_else(ranks::threads))?;
    let mut model = CpuBackend::new(config, precision, &mut Rng::new(0, Stream::Init));
    if args.zero > 0 && world_size > 1 {
        model.shard(communicator.rank(), world_size);
    }
    let Times { steps, communication } = measure(args, &mut model, &communicator);
    if communicator.rank() > 0 {
        return Ok(());
    }
    let fastest = steps.iter().copied().fold(f64::INFINITY, f64::min);
    let (median_step, tokens) = (median(steps), args.batch * args.sizes.block);
    let sizes = &args.sizes;
    screen::out(serde_json::json!({
        "what": "step", "batch": args.batch, "block": sizes.block, "vocab": sizes.vocab, "emb": sizes.emb,
        "blocks": sizes.blocks, "heads": sizes.heads, "dropout": args.dropout, "steps": args.steps,
        "precision": precision.name(), "optimizer": args.optimizer.name(), "ranks": world_size, "zero": args.zero,
        "reduce_precision": args.reduce_precision.name(), "threads": rayon::current_num_threads(),
        "isa": Isa::detected().name(), "step_s": median_step, "step_s_min": fastest,
        "communication_s": median(communication), "tokens_per_s": tokens as f64 / median_step,
        "gflop_per_s": flop(&config, tokens) / median_step / 1e9, "peak_mib": peak_mib(),
    }))?;
    Ok(())
}

/// Checks the arguments. Returns the precision.
fn check(args: &StepArgs, world_size: usize) -> anyhow::Result<Precision> {
    let config = args.sizes.config(args.dropout)?;
    let precision = resolve_precision(args.precision, &config);
    precision.check(&config).map_err(in_own_flags)?;
    if args.batch == 0 || args.steps == 0 {
        return Err(Usage("--batch and --steps must be at least 1".into()).into());
    }
    if args.zero > 0 && args.optimizer == OptimizerKind::Muon {
        return Err(
            Usage("--zero 1 divides AdamW, and Muon needs whole matrices; use --zero 0".into()).into()
        );
    }
    if world_size > args.batch {
        return Err(Usage(format!(
            "{world_size} ranks share a batch of {}; use a larger --batch",
            args.batch
        ))
        .into());
    }
    Ok(precision)
}

/// Takes the steps on this rank's part of random batches, the first two untimed.
fn measure(args: &StepArgs, model: &mut CpuBackend, communicator: &Timed) -> Times {
    let muon = MuonConfig { momentum: 0.95, relative_rate: 1.0 };
    let muon = (args.optimizer == OptimizerKind::Muon).then_some(muon);
    let mut optimizer = AdamW::new(ADAMW).with_muon(muon);
    let division = Division::of(communicator, args.batch, 1);
    let reduction = Reduction { communicator, precision: args.reduce_precision };
    let time = args.sizes.block;
    let mut rng = Rng::new(1, Stream::Sampling);
    let mut times = Times::default();
    for step in 0..args.steps + 2 {
        let mut random_tokens = || -> Vec<u32> {
            (0..args.batch * time).map(|_| rng.below(args.sizes.vocab as u64) as u32).collect()
        };
        let (inputs, targets) = (random_tokens(), random_tokens());
        let batch = Batch { inputs: &inputs, targets: &targets, time }.select(division.own());
        let (start, spent) = (Instant::now(), communicator.spent());
        let step_batch = StepBatch { batch, division, ..StepBatch::whole(batch, step as u64) };
        let mut losses = [model.reduced_forward_backward(step_batch, reduction)];
        communicator.all_reduce_f64(&mut losses);
        optimizer.step(model, 1e-3);
        model.share_weights(communicator);
        if step >= 2 {
            times.steps.push(start.elapsed().as_secs_f64());
            times.communication.push((communicator.spent() - spent).as_secs_f64());
        }
    }
    times
}
