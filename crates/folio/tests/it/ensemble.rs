//! Several models as one: the mean of their probabilities, and the mean of their weights.

use std::path::Path;
use std::sync::Arc;

use folio::average::{average, write_run};
use folio::checkpoint::{Checkpoint, CheckpointName};
use folio::data::{Dataset, Part, SplitKind, TokenStream};
use folio::ensemble::{Ensemble, check_checkpoints};
use folio::evaluate::{evaluate, evaluate_ensemble};
use folio::generate::{Generator, PastContext, Request};
use folio::model::{
    Backend, Batch, CpuBackend, InferenceModel, ModelConfig, Parameters, Precision, WeightFormat,
};
use folio::rng::{Rng, Stream};
use folio::run_dir::{RunDir, RunState, find};
use folio::settings::{Keep, Settings};
use folio::tokenizer::Tokenizer;
use folio::train::{Requests, Start, Trainer};

const VOCAB: usize = 77;
const CONFIG: ModelConfig = ModelConfig {
    vocab_size: VOCAB,
    n_blocks: 2,
    n_emb: 24,
    n_heads: 2,
    block_size: 19,
    dropout: 0.0,
    ..ModelConfig::GPT2
};
/// Another size with the same vocabulary and context.
const OTHER: ModelConfig = ModelConfig { n_blocks: 1, n_emb: 16, ..CONFIG };

/// Ten times the initial weights, so that the models disagree.
fn parameters(config: &ModelConfig, seed: u64) -> Parameters {
    let mut parameters = Parameters::random(config, &mut Rng::new(seed, Stream::Init));
    parameters.values_mut().iter_mut().for_each(|value| *value *= 10.0);
    parameters
}

fn model(config: ModelConfig, seed: u64, precision: Precision) -> CpuBackend {
    CpuBackend::from_parameters(config, precision, parameters(&config, seed))
}

fn tokens(count: usize, seed: u64) -> Vec<u32> {
    let mut rng = Rng::new(seed, Stream::Sampling);
    (0..count).map(|_| rng.below(VOCAB as u64) as u32).collect()
}

/// ln softmax of logits, in double precision.
fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|&logit| f64::from(logit - highest).exp()).sum();
    logits.iter().map(|&logit| f64::from(logit) - f64::from(highest) - total.ln()).collect()
}

#[test]
fn probabilities_are_averaged() {
    for precision in [Precision::F32, Precision::Bf16] {
        let (inputs, targets) = (tokens(3 * 11, 1), tokens(3 * 11, 2));
        let batch = Batch { inputs: &inputs, targets: &targets, time: 11 };
        let members =
            || vec![model(CONFIG, 1, precision), model(OTHER, 2, precision), model(CONFIG, 3, precision)];
        let mut logs: Vec<Vec<f64>> = Vec::new();
        let mut member_losses = Vec::new();
        for mut member in members() {
            let of_sequence = |tokens: &[u32], member: &mut CpuBackend| {
                member.logits(tokens).chunks_exact(VOCAB).flat_map(log_softmax).collect::<Vec<f64>>()
            };
            logs.push(inputs.chunks_exact(11).flat_map(|tokens| of_sequence(tokens, &mut member)).collect());
            member_losses.push(member.losses(batch).to_vec());
        }
        let want = |index: usize| (logs.iter().map(|logs| logs[index].exp()).sum::<f64>() / 3.0).ln();

        let mut ensemble = Ensemble::new(members()).expect("they agree");
        let got = ensemble.log_probabilities(batch).to_vec();
        assert_eq!(got.len(), 3 * 11 * VOCAB);
        for (index, &got) in got.iter().enumerate() {
            // Both sides work in double precision from the same logits; the result is rounded once.
            let (got, want) = (f64::from(got), want(index));
            assert!((got - want).abs() <= f64::from(f32::EPSILON) * want.abs(), "{index}: {got} {want}");
        }
        for (index, &loss) in ensemble.losses(batch).iter().enumerate() {
            // A kernel's loss sums V exponentials in single precision, and rounds logits and sums of about that size.
            let want = -want(index * VOCAB + targets[index] as usize);
            let largest = member_losses.iter().map(|losses| f64::from(losses[index])).fold(want, f64::max);
            let tolerance = f64::from(f32::EPSILON) * (VOCAB as f64 + 4.0 * largest);
            assert!((loss - want).abs() <= tolerance, "{index}: {loss} {want}");
            let mean = member_losses.iter().map(|losses| f64::from(losses[index])).sum::<f64>() / 3.0;
            assert!(loss <= mean + 1e-12, "-ln is convex: {loss} {mean}");
        }
    }
}

#[test]
fn an_ensemble_of_one_is_the_model() {
    let (inputs, targets) = (tokens(22, 1), tokens(22, 2));
    let batch = Batch { inputs: &inputs, targets: &targets, time: 11 };
    let want = model(CONFIG, 1, Precision::F32).losses(batch).to_vec();
    for members in [1, 2] {
        let models = (0..members).map(|_| model(CONFIG, 1, Precision::F32)).collect();
        let mut ensemble = Ensemble::new(models).expect("they agree");
        let want: Vec<f64> = want.iter().map(|&loss| f64::from(loss)).collect();
        assert_eq!(ensemble.losses(batch), want, "{members} equal models");
    }
}

#[test]
fn models_that_cannot_be_averaged_are_refused() {
    let refused = |config: ModelConfig, part: &str| {
        let models = vec![model(CONFIG, 1, Precision::F32), model(config, 2, Precision::F32)];
        let error = Ensemble::new(models).err().expect("they differ").to_string();
        assert!(error.contains(part) && !error.contains('\n'), "{error}");
    };
    refused(ModelConfig { vocab_size: 78, ..CONFIG }, "model 2 has vocab_size 78 and the first has 77");
    refused(ModelConfig { block_size: 20, ..CONFIG }, "model 2 has block_size 20 and the first has 19");
    let error = Ensemble::new(Vec::new()).err().expect("none").to_string();
    assert!(error.contains("at least one model"), "{error}");
}

/// The log probabilities of given tokens, as a generator reports them.
fn scored(models: &[Arc<InferenceModel>], given: &[u32], past_context: PastContext) -> Vec<f32> {
    let text: String = ('a'..='z').chain('A'..='Z').chain('\u{e0}'..='\u{f8}').collect();
    let mut generator =
        Generator::ensemble(models.to_vec(), Arc::new(Tokenizer::chars(&text))).expect("they agree");
    let request = Request {
        prompt: tokens(7, 9),
        max_new_tokens: given.len(),
        given: given.to_vec(),
        logprobs: Some(0),
        past_context,
        ..Request::default()
    };
    let mut scores = Vec::new();
    generator
        .generate(request, |token| scores.push(token.logprob.expect("requested")))
        .expect("a valid request");
    scores
}

#[test]
fn generation_samples_from_the_mean_in_every_format_and_beyond_the_context() {
    let given = tokens(40, 4);
    for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8] {
        for past_context in [PastContext::Exact, PastContext::Rolling] {
            let [one, two] = [(CONFIG, 1), (OTHER, 2)].map(|(config, seed)| {
                Arc::new(InferenceModel::new(config, format, &parameters(&config, seed)))
            });
            let alone = [&one, &two].map(|model| scored(std::slice::from_ref(model), &given, past_context));
            let together = scored(&[one, two], &given, past_context);
            assert_eq!(together.len(), 40);
            for (index, got) in together.into_iter().enumerate() {
                let mean =
                    alone.each_ref().map(|scores| f64::from(scores[index]).exp()).iter().sum::<f64>() / 2.0;
                let (got, want) = (f64::from(got), mean.ln());
                // Each member's score is rounded from a softmax in single precision, whose sum has V terms.
                let largest = alone.each_ref().map(|scores| f64::from(scores[index]).abs());
                let largest = largest.into_iter().fold(want.abs(), f64::max);
                let tolerance = f64::from(f32::EPSILON) * (VOCAB as f64 + 4.0 * largest);
                assert!((got - want).abs() <= tolerance, "{format:?} {past_context:?} {index}: {got} {want}");
            }
        }
    }
}

fn settings(seed: u64) -> Settings {
    Settings {
        n_emb: 16,
        n_heads: 2,
        n_blocks: 1,
        block_size: 8,
        batch_size: 8,
        num_epochs: 3,
        seed,
        split: SplitKind::Contiguous,
        save_checkpoint: true,
        keep: Keep::All,
        ..Settings::default()
    }
}

fn data(settings: &Settings) -> (Arc<TokenStream>, Arc<Tokenizer>) {
    let text = "to be, or not to be, that is the question. ".repeat(20);
    let tokenizer = Tokenizer::chars(&text);
    let stream = TokenStream::encode(&text, &tokenizer, settings.text_split()).expect("its own characters");
    (Arc::new(stream), Arc::new(tokenizer))
}

fn train(settings: &Settings, start: &Start, directory: &Path) -> RunDir {
    let run = RunDir::new(directory);
    let (stream, tokenizer) = data(settings);
    let mut trainer = Trainer::new(settings.clone(), stream, tokenizer, start).expect("valid settings");
    trainer.run(Some(&run), &Requests::default(), &mut |_| {}).expect("it trains");
    run
}

fn checkpoint(run: &RunDir, epoch: u64) -> Checkpoint {
    run.open_checkpoint(CheckpointName::Epoch(epoch)).expect("saved")
}

fn backend(checkpoint: &Checkpoint) -> CpuBackend {
    let parameters = checkpoint.parameters().expect("sound");
    CpuBackend::from_parameters(checkpoint.state().identity.model, Precision::F32, parameters)
}

#[test]
fn an_ensemble_is_evaluated_on_the_same_text() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let runs =
        [1, 2].map(|seed| train(&settings(seed), &Start::Fresh, &directory.path().join(seed.to_string())));
    let checkpoints = runs.each_ref().map(|run| checkpoint(run, 3));
    check_checkpoints(&checkpoints, true).expect("a contiguous split does not depend on the seed");
    let (stream, tokenizer) = data(&settings(1));
    let dataset = Dataset::new(stream, 8, 1).expect("long enough");
    let alone = checkpoints.each_ref().map(|checkpoint| {
        evaluate(&mut backend(checkpoint), &dataset, &tokenizer, Part::Eval).expect("a part")
    });
    let mut ensemble = Ensemble::new(checkpoints.iter().map(backend).collect()).expect("they agree");
    let together = evaluate_ensemble(&mut ensemble, &dataset, &tokenizer, Part::Eval).expect("a part");
    assert_eq!(together.tokens, alone[0].tokens);
    assert!(together.loss < (alone[0].loss + alone[1].loss) / 2.0, "{together:?} {alone:?}");
}

#[test]
fn runs_that_may_have_trained_on_the_evaluation_text_are_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut count = 0;
    let mut check = |one: Settings, two: Settings, part: Option<&str>| {
        let mut saved = |settings: &Settings| {
            count += 1;
            let short = Settings { num_epochs: 1, ..settings.clone() };
            checkpoint(&train(&short, &Start::Fresh, &directory.path().join(count.to_string())), 1)
        };
        let both = [saved(&one), saved(&two)];
        let got = check_checkpoints(&both, true).err().map(|error| error.to_string());
        match part {
            None => assert_eq!(got, None),
            Some(part) => assert!(got.as_ref().is_some_and(|error| error.contains(part)), "{part}: {got:?}"),
        }
        let also_average = average(&both).err().map(|error| error.to_string());
        assert!(part.is_none_or(|part| also_average.is_some_and(|error| error.contains(part))), "{part:?}");
    };
    let blocks = |seed: u64| Settings { split: SplitKind::Blocks, ..settings(seed) };
    check(blocks(1), blocks(2), Some("another seed of the split"));
    check(settings(1), blocks(1), Some("another split"));
    check(settings(1), Settings { test_fraction: 0.5, ..settings(1) }, Some("another test part"));
    let other_text = Settings { data_sha256: "0".repeat(64), ..settings(1) };
    check(settings(1), other_text, Some("another text"));
    check(settings(1), settings(2), None);
}

#[test]
fn weights_are_averaged_and_saved_as_a_run() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let place = |name: &str| directory.path().join(name);
    let run = train(&settings(1), &Start::Fresh, &place("run"));
    let members = [1, 2, 3].map(|epoch| checkpoint(&run, epoch));
    let weights = members.each_ref().map(|member| member.parameters().expect("sound"));
    let mean = average(&members).expect("they agree");
    for (index, &got) in mean.values().iter().enumerate() {
        let sum: f64 = weights.iter().map(|weights| f64::from(weights.values()[index])).sum();
        assert_eq!(got, (sum / 3.0) as f32, "weight {index}");
    }

    let target = RunDir::new(place("soup"));
    let (saved, tokenizer) = (run.settings().expect("saved"), run.tokenizer().expect("saved"));
    let name = write_run(&mean, &members, &saved, &tokenizer, &target, false).expect("writable");
    assert_eq!(name, CheckpointName::Epoch(0));
    assert_eq!(target.status().expect("written").state, RunState::Averaged);
    let found = find(Some(target.path())).expect("a model");
    let opened = target.open_checkpoint(found.checkpoint.name).expect("sound");
    opened.check_tokenizer(&target.tokenizer().expect("saved")).expect("the same");
    assert_eq!(opened.parameters().expect("sound").values(), mean.values());
    assert!(!opened.is_resumable());
    let from = target.settings().expect("saved").averaged_from.expect("recorded");
    assert!(from.contains("checkpoint_1") && from.contains("checkpoint_3"), "{from}");
    let again =
        write_run(&mean, &members, &saved, &tokenizer, &target, false).expect_err("taken").to_string();
    assert!(again.contains("already holds a run"), "{again}");
    write_run(&mean, &members, &saved, &tokenizer, &target, true).expect("replaced");

    // Training continues from it, as from weights alone.
    let more = Settings { num_epochs: 1, learning_rate: 1e-300, weights_only: true, ..settings(1) };
    let start = Start::Checkpoint { run: target, number: 0, restart_schedule: false };
    let more = train(&more, &start, &place("more"));
    assert_eq!(checkpoint(&more, 1).parameters().expect("sound").values(), mean.values());
}

#[test]
fn only_checkpoints_of_one_model_are_averaged() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let place = |name: &str| directory.path().join(name);
    let one = train(&settings(1), &Start::Fresh, &place("one"));
    let wide = train(&Settings { n_emb: 24, ..settings(1) }, &Start::Fresh, &place("wide"));
    let error = average(&[checkpoint(&one, 1), checkpoint(&wide, 1)]).expect_err("they differ").to_string();
    assert!(
        error.contains("has n_emb 24 and") && error.contains("has 16: only checkpoints of the same"),
        "{error}"
    );
    // Dropout does not matter once a model is trained.
    let dropout = train(&Settings { dropout: 0.5, ..settings(1) }, &Start::Fresh, &place("dropout"));
    average(&[checkpoint(&one, 1), checkpoint(&dropout, 1)]).expect("the same model");
    // Nor whether a run averages its weights over its steps: its checkpoint's model is that average.
    let ema = train(&Settings { ema_decay: 0.9, ..settings(1) }, &Start::Fresh, &place("ema"));
    let mean = average(&[checkpoint(&ema, 1), checkpoint(&ema, 2)]).expect("the same model");
    let target = RunDir::new(place("mean"));
    let settings = ema.settings().expect("saved");
    let both = [checkpoint(&ema, 1), checkpoint(&ema, 2)];
    write_run(&mean, &both, &settings, &ema.tokenizer().expect("saved"), &target, false).expect("writable");
    assert_eq!(checkpoint(&target, 0).parameters().expect("sound").values(), mean.values());
}
