//! bfloat16 beside f32, which golden.rs holds to PyTorch with errors a thousand times below those allowed here.

use folio::distributed::Division;
use folio::model::{
    Activation, Backend, Batch, CpuBackend, ModelConfig, Parameters, Precision, SoftTargets, StepBatch,
    WeightFormat,
};
use folio::optim::{AdamW, AdamWConfig};
use folio::rng::{Rng, Stream};
use rayon::ThreadPoolBuilder;

/// bfloat16 has 8 significant bits: rounding to the nearest is off by at most 2^-8 of the value.
const ROUNDOFF: f64 = 1.0 / 256.0;

/// Odd sizes: a vocabulary over one panel, heads of 10, widths that are no multiple of a tile.
fn config(dropout: f32) -> ModelConfig {
    ModelConfig {
        vocab_size: 77,
        n_blocks: 2,
        n_emb: 70,
        n_heads: 7,
        block_size: 67,
        dropout,
        ..ModelConfig::GPT2
    }
}

/// The same sizes with every variation: an MLP narrower than qkv, GELU with erf, another epsilon, a separate head.
fn varied(dropout: f32) -> ModelConfig {
    ModelConfig {
        n_inner: Some(90),
        activation: Activation::Gelu,
        layer_norm_epsilon: 1e-6,
        tie_word_embeddings: false,
        ..config(dropout)
    }
}

fn model(config: ModelConfig, precision: Precision) -> CpuBackend {
    CpuBackend::new(config, precision, &mut Rng::new(5, Stream::Init))
}

/// A batch of 3 sequences of 67 tokens: more than one tile of attention, and an odd number.
fn batch() -> (Vec<u32>, Vec<u32>) {
    let mut rng = Rng::new(9, Stream::Sampling);
    let mut draw = || (0..3 * 67).map(|_| rng.below(77) as u32).collect();
    (draw(), draw())
}

fn norm(x: impl Iterator<Item = f32>) -> f64 {
    x.map(|x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

/// The loss, and every gradient.
fn gradients(config: ModelConfig, precision: Precision) -> (f32, Parameters) {
    let mut model = model(config, precision);
    let (inputs, targets) = batch();
    let loss = model.loss_and_gradients(Batch { inputs: &inputs, targets: &targets, time: 67 }, 3);
    (loss, model.gradients().into_owned())
}

/// Between the loss and a gradient of the first block lie, of each of 2 blocks, 8 roundings to bfloat16 in the forward pass
/// (weights, ln_1, qkv, weights of attention, heads, ln_2, fc, GELU) and 7 in the backward pass (the branch, fc, its operand,
/// the branch, the heads, scores, qkv), and 3 in the head: 33 in all, each of at most `ROUNDOFF` of the tensor's
/// norm and independent of the others, so that they add up as the root of their number (Higham 2002, section 4.2).
#[test]
fn gradients_in_bf16_are_those_in_f32_but_for_its_roundings() {
    const ROUNDINGS: f64 = 33.0;
    for config in [config(0.0), config(0.3), varied(0.0), varied(0.3)] {
        let (loss, reference) = gradients(config, Precision::F32);
        let (loss_bf16, got) = gradients(config, Precision::Bf16);
        // The loss of an untrained model is the logarithm of the vocabulary whatever the logits' errors; these are
        // of the order of the logits, 0.2 here, times the roundings, and the loss is a mean over 201 tokens.
        // Six standard deviations of that.
        let tolerance = 6.0 * ROUNDINGS.sqrt() * ROUNDOFF * 0.2 / 201f64.sqrt();
        assert!(f64::from(loss - loss_bf16).abs() <= tolerance, "loss {loss_bf16}, want {loss}");
        let mut worst = 0.0f64;
        for spec in reference.specs() {
            let (got, want) = (got.tensor(spec), reference.tensor(spec));
            let error = norm(got.iter().zip(want).map(|(got, want)| got - want)) / norm(want.iter().copied());
            assert!(error <= ROUNDINGS.sqrt() * ROUNDOFF, "{} is off by {error:.4} of its norm", spec.name);
            worst = worst.max(error);
        }
        println!("largest error of a gradient in bf16: {worst:.4} of its norm");
    }
}

/// Some sequences of a batch, as many and as long as given.
fn part<'a>((inputs, targets): (&'a [u32], &'a [u32]), (sequences, time): (usize, usize)) -> Batch<'a> {
    Batch { inputs: &inputs[..sequences * time], targets: &targets[..sequences * time], time }
}

/// Weights after 3 steps of AdamW with this many threads, on sequences of as many tokens, in as many micro-batches: with label smoothing,
/// and soft targets that differ from token to token.
fn trained(config: ModelConfig, precision: Precision, case: Case, threads: usize) -> Vec<u32> {
    let (inputs, targets) = batch();
    let batch = part((&inputs, &targets), (case.sequences, case.time));
    // 1.0 for the token before.
    let one_hot =
        |&token: &u32| (0..config.vocab_size as u32).map(move |v| if v == token { 0x3C00 } else { 0 });
    let probabilities: Vec<u16> = batch.inputs.iter().flat_map(one_hot).collect();
    let soft_targets = Some(SoftTargets { probabilities: &probabilities, weight: 0.3 });
    let division = Division { micro_batches: case.micro_batches, ..Division::whole(case.sequences) };
    ThreadPoolBuilder::new().num_threads(threads).build().expect("threads").install(|| {
        let mut model = model(config, precision);
        let mut optimizer = AdamW::new(AdamWConfig::default());
        for key in 0..3 {
            let whole = StepBatch::whole(batch, key);
            model.forward_backward(StepBatch { division, soft_targets, label_smoothing: 0.1, ..whole });
            optimizer.step(&mut model, 1e-3);
        }
        model.parameters().values().iter().map(|value| value.to_bits()).collect()
    })
}

#[derive(Clone, Copy, Debug)]
struct Case {
    sequences: usize,
    time: usize,
    micro_batches: usize,
}

/// A thread takes sequences of 67 tokens one at a time. Of 6 sequences of 32, 1, 2, 3 and 5 threads take 3, 3, 2 and 2 at a time
/// (`best_chunk_size`); of 3, they take 3, 1, 1 and 1.
#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for (config, precision) in [
        (config(0.2), Precision::F32),
        (config(0.2), Precision::Bf16),
        (varied(0.2), Precision::F32),
        (varied(0.2), Precision::Bf16),
    ] {
        for case in [
            Case { sequences: 3, time: 67, micro_batches: 1 },
            Case { sequences: 6, time: 32, micro_batches: 1 },
            Case { sequences: 6, time: 32, micro_batches: 2 },
        ] {
            let one = trained(config, precision, case, 1);
            for threads in [2, 3, 5] {
                assert!(
                    trained(config, precision, case, threads) == one,
                    "{threads} threads, {case:?}, in {precision:?}: {config:?}"
                );
            }
        }
    }
}

/// One thread takes 5 sequences of 32 one by one, but in the buffers of 6 it takes 3, then the other 2.
#[test]
fn a_smaller_batch_in_the_buffers_of_a_larger_one_gives_the_same_bits() {
    let (inputs, targets) = batch();
    let check = |precision, large, small: Batch| {
        let mut fresh = model(config(0.2), precision);
        let mut used = model(config(0.2), precision);
        used.loss_and_gradients(large, 1);
        assert_eq!(fresh.loss_and_gradients(small, 2).to_bits(), used.loss_and_gradients(small, 2).to_bits());
        let bits = |model: &CpuBackend| -> Vec<u32> {
            model.gradients().values().iter().map(|value| value.to_bits()).collect()
        };
        assert!(bits(&fresh) == bits(&used), "gradients in {precision:?}");
        let losses = |model: &mut CpuBackend| model.losses(small).to_vec();
        assert_eq!(losses(&mut fresh), losses(&mut used));
        let logits = |model: &mut CpuBackend| {
            let mut logits = vec![f32::NAN; small.inputs.len() * 77];
            model.batch_logits(small, &mut logits);
            logits
        };
        assert_eq!(logits(&mut fresh), logits(&mut used));
    };
    let pool = ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    for precision in [Precision::F32, Precision::Bf16] {
        for (large, small) in [((3, 67), (2, 30)), ((6, 32), (5, 32))] {
            let part = |sizes| part((&inputs, &targets), sizes);
            pool.install(|| check(precision, part(large), part(small)));
        }
    }
}

#[test]
fn heads_and_mlps_of_odd_size_are_refused_in_bf16() {
    let odd = ModelConfig { n_emb: 63, ..config(0.0) };
    let error = Precision::Bf16.check(&odd).expect_err("heads of 9").to_string();
    assert!(error.contains("precision") && error.contains("even"), "{error}");
    Precision::F32.check(&odd).expect("f32 takes any");
    let odd = ModelConfig { n_inner: Some(91), ..config(0.0) };
    let error = Precision::Bf16.check(&odd).expect_err("an MLP of 91").to_string();
    assert!(error.contains("an MLP of even width, not 91: use `precision f32`"), "{error}");
    Precision::F32.check(&odd).expect("f32 takes any");
}

#[test]
fn layers_whose_sums_exceed_32_bits_are_refused_in_int8() {
    let wide = ModelConfig { n_inner: Some(131_073), ..config(0.0) };
    let error = WeightFormat::Int8.check(&wide).expect_err("131,073 inputs").to_string();
    assert!(
        error.contains("int8 multiplies up to 131072 inputs, not 131073: use `precision f32`"),
        "{error}"
    );
    WeightFormat::F32.check(&wide).expect("f32 takes any");
    WeightFormat::Int8.check(&ModelConfig { n_inner: Some(131_072), ..wide }).expect("the limit");
}
