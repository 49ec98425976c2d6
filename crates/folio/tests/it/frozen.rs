//! Fine-tuning with frozen parameters: against PyTorch with `requires_grad=False`, and against a model that is trained whole.

use std::path::Path;

use folio::distributed::Division;
use folio::model::{Batch, Frozen, ModelConfig, Moments, Parameters, Precision, StepBatch};
use folio::optim::{AdamW, AdamWConfig};
use folio::rng::{Rng, Stream};
use folio::run_dir::RunDir;
use folio::schedule::{Schedule, ScheduleKind};
use folio::settings::Settings;
use folio::train::{Start, Trainer};

use crate::golden::{EPS, Golden, ROUNDINGS, assert_close, initial_parameters};
use crate::ranks::{self, check_same, stop_after, train};
use crate::support::{BACKENDS, New};

/// What can be frozen of a model with two blocks.
const PARTS: [&str; 4] = ["embeddings", "blocks:1", "embeddings,blocks:1", "embeddings,blocks:2"];

fn frozen(parts: &str) -> Frozen {
    parts.parse().expect("parts of the model")
}

/// A model of two blocks in which every weight is different from 0 and 1, and a batch.
struct Small {
    config: ModelConfig,
    parameters: Parameters,
    inputs: Vec<u32>,
    targets: Vec<u32>,
}

impl Small {
    const SEQUENCES: usize = 5;

    fn new(tie_word_embeddings: bool) -> Self {
        let config = ModelConfig {
            vocab_size: 11,
            n_blocks: 2,
            n_emb: 8,
            n_heads: 2,
            block_size: 6,
            dropout: 0.2,
            tie_word_embeddings,
            ..ModelConfig::GPT2
        };
        let mut rng = Rng::new(17, Stream::Sampling);
        let mut tokens = || (0..Self::SEQUENCES * 6).map(|_| rng.below(11) as u32).collect();
        let (inputs, targets) = (tokens(), tokens());
        Self { config, parameters: initial_parameters(&config), inputs, targets }
    }

    /// Five sequences in three micro-batches.
    fn step(&self) -> StepBatch<'_> {
        let batch = Batch { inputs: &self.inputs, targets: &self.targets, time: 6 };
        let division = Division { micro_batches: 3, ..Division::whole(Self::SEQUENCES) };
        StepBatch {
            batch,
            division,
            dropout_key: 7,
            dropout: Some(0.3),
            label_smoothing: 0.1,
            soft_targets: None,
        }
    }
}

/// Calls `check` with each backend, precision, kind of head, and part that can be frozen.
fn on_every_model(check: impl Fn(&str, New, Precision, &Small, Frozen)) {
    for (name, new) in BACKENDS {
        for precision in [Precision::F32, Precision::Bf16] {
            for is_tied in [true, false] {
                for parts in PARTS {
                    let context = format!("{name}, {precision:?}, tied: {is_tied}, {parts} frozen");
                    check(&context, new, precision, &Small::new(is_tied), frozen(parts));
                }
            }
        }
    }
}

#[test]
fn gradients_of_the_rest_are_those_of_the_whole_model() {
    on_every_model(|context, new, precision, small, frozen| {
        let mut whole = new(small.config, precision, small.parameters.clone());
        let mut part = new(small.config, precision, small.parameters.clone());
        part.freeze(frozen);
        assert_eq!(part.forward_backward(small.step()), whole.forward_backward(small.step()), "{context}");
        let (got, want) = (part.gradients(), whole.gradients());
        let mut squares = 0.0;
        for spec in want.specs() {
            let (got, want) = (got.tensor(spec), want.tensor(spec));
            assert!(want.iter().any(|&gradient| gradient != 0.0), "{context}: {} has no gradient", spec.name);
            if frozen.contains(spec) {
                assert!(got.iter().all(|&gradient| gradient == 0.0), "{context}: {}", spec.name);
            } else {
                assert_eq!(got, want, "{context}: {}", spec.name);
                squares += want.iter().map(|&gradient| f64::from(gradient).powi(2)).sum::<f64>();
            }
        }
        drop((got, want));
        // Sums of up to 1,700 squares in f32, of which each pass adds at most 1,024 before it goes on in f64.
        let (got, want) = (part.gradient_norm(), squares.sqrt());
        assert!((got - want).abs() <= 32.0 * f64::from(EPS) * want, "{context}: norm {got}, want {want}");
    });
}

#[test]
fn frozen_parameters_and_their_moments_keep_their_bits() {
    on_every_model(|context, new, precision, small, frozen| {
        let mut model = new(small.config, precision, small.parameters.clone());
        model.freeze(frozen);
        let config = AdamWConfig { weight_decay: 0.5, decay_all_parameters: true, ..AdamWConfig::default() };
        let mut optimizer = AdamW::new(config);
        for _ in 0..3 {
            model.forward_backward(small.step());
            optimizer.step(&mut *model, 1e-2);
        }
        let (parameters, moments) = (model.parameters(), model.moments());
        let Moments { exp_avg, exp_avg_sq } = &*moments;
        for spec in parameters.specs() {
            let (now, then) = (parameters.tensor(spec), small.parameters.tensor(spec));
            let moments = [&exp_avg[spec.range.clone()], &exp_avg_sq[spec.range.clone()]].concat();
            let has_moments = moments.iter().any(|&moment| moment != 0.0);
            let is_frozen = frozen.contains(spec);
            let keeps = now.iter().zip(then).all(|(now, then)| now.to_bits() == then.to_bits());
            assert_eq!((keeps, has_moments), (is_frozen, !is_frozen), "{context}: {}", spec.name);
        }
    });
}

#[test]
fn a_frozen_part_can_be_trained_again() {
    let small = Small::new(true);
    for (name, new) in BACKENDS {
        let mut whole = new(small.config, Precision::F32, small.parameters.clone());
        let mut other = new(small.config, Precision::F32, small.parameters.clone());
        whole.forward_backward(small.step());
        other.freeze(frozen("embeddings,blocks:2"));
        other.forward_backward(small.step());
        other.freeze(Frozen::NOTHING);
        other.forward_backward(small.step());
        assert_eq!(other.gradients().values(), whole.gradients().values(), "{name}");
        // And the other way round: nothing is left of the gradients of a part that is frozen now.
        other.freeze(frozen("embeddings,blocks:2"));
        other.forward_backward(small.step());
        let gradients = other.gradients();
        let ln_f = &gradients.specs()[gradients.specs().len() - 2..];
        let (first, len) = (ln_f[0].range.start, gradients.values().len());
        assert!(gradients.values()[..first].iter().all(|&gradient| gradient == 0.0), "{name}");
        assert_eq!(gradients.values()[first..len], whole.gradients().values()[first..len], "{name}");
    }
}

/// Ten steps of AdamW with clipping against `reference/frozen.py`.
#[test]
fn ten_steps_of_fine_tuning_equal_pytorch_s() {
    for (name, new) in BACKENDS {
        PARTS.iter().for_each(|parts| check_ten_steps(name, new, parts));
    }
}

fn check_ten_steps(backend: &str, new: New, parts: &str) {
    let golden = Golden::read("gpt2_frozen.safetensors");
    let config = ModelConfig {
        vocab_size: golden.number("vocab_size"),
        n_blocks: golden.number("n_blocks"),
        n_emb: golden.number("n_emb"),
        n_heads: golden.number("n_heads"),
        block_size: golden.number("block_size"),
        dropout: 0.0,
        ..ModelConfig::GPT2
    };
    let before = initial_parameters(&config);
    let mut model = new(config, Precision::F32, before.clone());
    model.freeze(frozen(parts));
    let mut optimizer = AdamW::new(AdamWConfig {
        beta1: golden.number("beta1"),
        beta2: golden.number("beta2"),
        eps: golden.number("eps"),
        weight_decay: golden.number("weight_decay"),
        decay_all_parameters: false,
        grad_clip: golden.number("clip"),
    });
    let schedule = Schedule {
        kind: ScheduleKind::Cosine,
        learning_rate: golden.number("lr"),
        final_rate: golden.number("final_lr"),
        period: golden.number("steps"),
        period_growth: 1,
        restart_decay: 1.0,
        decay_share: 0.2,
    };
    let (inputs, targets) = (&golden.integers["tokens"], &golden.integers["targets"]);
    let of_run = |what: &str| &golden.floats[&format!("{parts}.{what}")];
    for step in 0..schedule.period as usize {
        let loss = model.loss_and_gradients(Batch { inputs, targets, time: 7 }, 0);
        let norm = optimizer.step(&mut *model, schedule.rate(step as u64)) as f32;
        // Each step adds the roundings of its pass, as in golden.rs.
        let tolerance = (step + 1) as f32 * ROUNDINGS * EPS;
        for (what, got, want) in
            [("loss", loss, of_run("losses")[step]), ("norm", norm, of_run("grad_norms")[step])]
        {
            let is_close = (got - want).abs() <= tolerance * want;
            assert!(is_close, "{backend}, {parts}, step {step}: {what} {got}, want {want}");
        }
    }
    let parameters = model.parameters();
    for spec in parameters.specs() {
        if frozen(parts).contains(spec) {
            assert_eq!(parameters.tensor(spec), before.tensor(spec), "{backend}, {parts}: {}", spec.name);
            continue;
        }
        let mut got = parameters.tensor(spec).to_vec();
        let mut want = of_run(&format!("after.{}", spec.name)).clone();
        if spec.name.ends_with("c_attn.bias") {
            // The keys' part follows the sign of a gradient that is pure rounding.
            let c = config.n_emb;
            got.drain(c..2 * c);
            want.drain(c..2 * c);
        }
        // As in golden.rs: ten updates of at most 1e-2, whose relative error is ten times that of the gradient.
        let tolerance = 10.0 * 1e-2 * 10.0 * ROUNDINGS * EPS;
        assert_close(&format!("{backend}, {parts}: {}", spec.name), &got, &want, tolerance);
    }
}

fn settings(parts: &str) -> Settings {
    Settings { freeze: frozen(parts), weight_decay: 0.1, ..ranks::settings() }
}

#[test]
fn fine_tuning_gives_the_same_bits_on_one_two_and_four_ranks_and_if_resumed() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (name, new) in BACKENDS {
        for parts in ["blocks:1", "embeddings,blocks:1"] {
            let place =
                |what: &str| directory.path().join(format!("{name}_{parts}_{what}").replace(':', "_"));
            let on = |ranks: usize| Settings { gradient_accumulation_steps: 4 / ranks, ..settings(parts) };
            for ranks in [1, 2, 4] {
                let run = place(&ranks.to_string());
                for outcome in train(new, ranks, &run, &Start::Fresh, &on(ranks), |_, _, _| {}) {
                    outcome.expect("it trains");
                }
                check_same(&run, &place("1"), &format!("{name}, {parts}, {ranks} ranks"));
            }
            let pieces = place("pieces");
            train(new, 1, &pieces, &Start::Fresh, &on(1), stop_after(6));
            let resume = Start::Resume { run: RunDir::new(&pieces), skip_damaged: false };
            for outcome in train(new, 1, &pieces, &resume, &on(1), |_, _, _| {}) {
                outcome.expect("it resumes");
            }
            check_same(&pieces, &place("1"), &format!("{name}, {parts}, resumed"));
        }
    }
}

/// A trainer that continues from the first epoch of a run.
fn continues(run: &Path, settings: Settings) -> Trainer {
    let (stream, tokenizer) = ranks::data();
    let start = Start::Checkpoint { run: RunDir::new(run), number: 1, restart_schedule: false };
    Trainer::new(settings, stream, tokenizer, &start).expect("it continues")
}

#[test]
fn adamw_starts_fresh_only_if_other_parts_are_frozen_than_before() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for parts in ["none", "embeddings"] {
        let run = directory.path().join(parts);
        train(crate::support::CPU, 1, &run, &Start::Fresh, &settings(parts), |_, _, _| {});
        for now in ["none", "embeddings", "embeddings,blocks:1"] {
            let trainer = continues(&run, settings(now));
            let is_same = now == parts;
            assert_eq!(trainer.has_optimizer(), is_same, "{parts}, then {now}");
            let is_fresh = trainer.backend().moments().exp_avg.iter().all(|&moment| moment == 0.0);
            assert_eq!(is_fresh, !is_same, "{parts}, then {now}");
            assert_eq!(trainer.state().optimizer_steps == 0, !is_same, "{parts}, then {now}");
        }
    }
}

#[test]
fn a_run_is_not_resumed_with_other_frozen_parts_nor_with_more_blocks_than_there_are() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let run = directory.path().join("run");
    train(crate::support::CPU, 1, &run, &Start::Fresh, &settings("blocks:1"), stop_after(6));
    let (stream, tokenizer) = ranks::data();
    let resume = Start::Resume { run: RunDir::new(&run), skip_damaged: false };
    let error =
        Trainer::new(settings("none"), stream, tokenizer, &resume).map(drop).expect_err("not the same run");
    assert!(error.to_string().contains("was saved with freeze = \"blocks:1\""), "{error}");
    let error = settings("blocks:3").validate().expect_err("two blocks");
    assert_eq!(error.to_string(), "`freeze blocks:3` is more than `n_blocks 2`; use at most 2");
}
