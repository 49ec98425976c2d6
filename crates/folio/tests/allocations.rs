//! A training step allocates nothing, nor does a token that is written: a binary of its own, since an allocator is one for the whole process.

use std::sync::Arc;

use folio::distributed::RankCount;
use folio::generate::{Generator, PastContext, Request, Sampling};
use folio::model::{
    Backend, Batch, CpuBackend, Frozen, InferenceModel, ModelConfig, Parameters, Precision, SoftTargets,
    StepBatch, WeightFormat,
};
use folio::optim::{AdamW, AdamWConfig, MuonConfig};
use folio::rng::{Rng, Stream};
use folio::tokenizer::Tokenizer;
use rayon::{ThreadPool, ThreadPoolBuilder};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const MUON: MuonConfig = MuonConfig { momentum: 0.95, relative_rate: 1.0 };

#[test]
fn a_training_step_and_a_token_allocate_nothing() {
    let config = ModelConfig {
        vocab_size: 65,
        n_blocks: 2,
        n_emb: 64,
        n_heads: 2,
        block_size: 32,
        dropout: 0.1,
        ..ModelConfig::GPT2
    };
    let adamw = AdamWConfig::default();
    let tokens: Vec<u32> = (0..5 * 32).map(|i| i % 65).collect();
    let batch = Batch { inputs: &tokens, targets: &tokens, time: 32 };
    let probabilities = vec![0; tokens.len() * config.vocab_size];
    // One pool throughout: the threads of a pool that is dropped allocate when they end, which may be later.
    let pool = ThreadPoolBuilder::new().num_threads(2).build().expect("threads");
    // Each thread allocates scratch of its own for its first matmul, which may be late on a busy machine.
    pool.broadcast(|_| {
        for precision in [Precision::F32, Precision::Bf16] {
            CpuBackend::new(config, precision, &mut Rng::new(1, Stream::Init)).loss_and_gradients(batch, 0);
        }
    });
    let profiler = dhat::Profiler::builder().testing().build();
    for (precision, muon) in [
        (Precision::F32, None),
        (Precision::Bf16, None),
        (Precision::F32, Some(MUON)),
        (Precision::Bf16, Some(MUON)),
    ] {
        pool.install(|| {
            let mut model = CpuBackend::new(config, precision, &mut Rng::new(1, Stream::Init));
            let mut optimizer = AdamW::new(adamw).with_muon(muon);
            let soft_targets = Some(SoftTargets { probabilities: &probabilities, weight: 0.5 });
            let mut step = |number| {
                let before = dhat::HeapStats::get().total_blocks;
                model.forward_backward(StepBatch { soft_targets, ..StepBatch::whole(batch, number) });
                optimizer.step(&mut model, 1e-3);
                dhat::HeapStats::get().total_blocks - before
            };
            assert!(step(0) > 0, "the first step allocates its buffers");
            // The threads' own bookkeeping may still grow in the first steps.
            (1..20).for_each(|number| {
                step(number);
            });
            let blocks: u64 = (20..40).map(step).sum();
            assert_eq!(blocks, 0, "blocks allocated by 20 steps in {precision:?}, {muon:?}");
        });
    }
    check_writing(&pool, config);
    drop(profiler);
    check_memory(&pool, adamw);
}

/// A token allocates nothing, once the first have found their buffers. In the one test of this file, since the allocator
/// counts for the whole process.
fn check_writing(pool: &ThreadPool, config: ModelConfig) {
    let parameters = Parameters::random(&config, &mut Rng::new(1, Stream::Init));
    let vocabulary: String = ('!'..).take(config.vocab_size).collect();
    let sampling = Sampling {
        repetition_penalty: 1.1,
        temperature: 0.9,
        top_k: Some(40),
        top_p: Some(0.95),
        min_p: Some(0.01),
    };
    let request = Request {
        max_new_tokens: 200,
        sampling,
        stop: vec!["!!!!".to_owned()],
        logprobs: Some(5),
        ..Request::default()
    };
    for (format, past_context) in [
        (WeightFormat::F32, PastContext::Exact),
        (WeightFormat::Bf16, PastContext::Rolling),
        (WeightFormat::Int8, PastContext::Rolling),
    ] {
        pool.install(|| {
            let model = Arc::new(InferenceModel::new(config, format, &parameters));
            let mut generator = Generator::new(model, Arc::new(Tokenizer::chars(&vocabulary)));
            for seed in 0..5 {
                generator.begin(Request { seed, past_context, ..request.clone() }).expect("can be met");
            }
            let mut step = || {
                let before = dhat::HeapStats::get().total_blocks;
                generator.step(|_, drawn| assert_eq!(drawn.alternatives.len(), 5));
                dhat::HeapStats::get().total_blocks - before
            };
            assert!(step() > 0, "the first step allocates its buffers");
            (1..40).for_each(|_| {
                step();
            });
            // Well past the context of 32.
            let blocks: u64 = (40..100).map(|_| step()).sum();
            assert_eq!(blocks, 0, "blocks allocated by 60 steps of 5 texts in {format:?}");
            assert_eq!(generator.active(), 5);
        });
    }
}

/// The estimate by which runs are trained at one time is near what a training step takes. In the one test of this
/// file, since the allocator counts for the whole process.
fn check_memory(pool: &ThreadPool, adamw: AdamWConfig) {
    // Where the activations weigh most, and where the weights do.
    for (n_emb, batch_size, block_size, muon) in
        [(128, 16, 128, None), (128, 64, 32, None), (256, 1, 16, None), (256, 1, 16, Some(MUON))]
    {
        let config = ModelConfig {
            vocab_size: 65,
            n_blocks: 4,
            n_emb,
            n_heads: 4,
            block_size,
            dropout: 0.1,
            ..ModelConfig::GPT2
        };
        let tokens: Vec<u32> = (0..(batch_size * block_size) as u32).map(|i| i % 65).collect();
        let batch = Batch { inputs: &tokens, targets: &tokens, time: block_size };
        for precision in [Precision::F32, Precision::Bf16] {
            let profiler = dhat::Profiler::builder().testing().build();
            pool.install(|| {
                let mut model = CpuBackend::new(config, precision, &mut Rng::new(1, Stream::Init));
                let mut optimizer = AdamW::new(adamw).with_muon(muon);
                model.loss_and_gradients(batch, 0);
                optimizer.step(&mut model, 1e-3);
            });
            let taken = dhat::HeapStats::get().max_bytes as f64;
            drop(profiler);
            let (frozen, ranks) = (Frozen::NOTHING, RankCount::ONE);
            let mut estimate =
                CpuBackend::training_bytes(&config, precision, batch_size, 1, frozen, ranks, 0) as f64;
            if muon.is_some() {
                estimate += pool.install(|| CpuBackend::muon_bytes(&config, precision)) as f64;
            }
            // What it leaves out, the scratch of threads and of the head, takes up to 4 % here.
            let ratio = estimate / taken;
            assert!((0.9..1.1).contains(&ratio), "{precision:?}, {config:?}: {estimate} for {taken}");
        }
    }
}
