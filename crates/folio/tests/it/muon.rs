//! Muon: against PyTorch, frozen, resumed, and on other ranks.

use std::path::Path;

use folio::model::{Backend, Batch, CpuBackend, ModelConfig, MuonUpdate, Parameters, Precision};
use folio::optim::{AdamW, AdamWConfig, MuonConfig, OptimizerKind};
use folio::rng::{Rng, Stream};
use folio::run_dir::RunDir;
use folio::schedule::{Schedule, ScheduleKind};
use folio::settings::Settings;
use folio::train::{Start, Trainer};

use crate::golden::{EPS, Golden, assert_close, initial_parameters};
use crate::ranks::{self, check_same, stop_after, train};
use crate::support::{BACKENDS, CPU, New};

const MUON: MuonConfig = MuonConfig { momentum: 0.95, relative_rate: 1.0 };

#[test]
fn ten_steps_equal_pytorch_s() {
    BACKENDS.iter().for_each(|(name, new)| check_ten_steps(name, *new));
}

/// The golden file has values of float64, and by how much PyTorch in float32 differs from them. Other orders of summation may
/// differ by a few times that; what is compared with is rounded to f32.
fn check_ten_steps(backend: &str, new: New) {
    let golden = Golden::read("gpt2_muon.safetensors");
    let config = ModelConfig {
        vocab_size: golden.number("vocab_size"),
        n_blocks: golden.number("n_blocks"),
        n_emb: golden.number("n_emb"),
        n_heads: golden.number("n_heads"),
        block_size: golden.number("block_size"),
        dropout: 0.0,
        layer_norm_epsilon: golden.number("layer_norm_eps"),
        ..ModelConfig::GPT2
    };
    let mut model = new(config, Precision::F32, initial_parameters(&config));
    let rate: f64 = golden.number("lr");
    let adamw = AdamWConfig {
        beta1: golden.number("beta1"),
        beta2: golden.number("beta2"),
        eps: golden.number("eps"),
        weight_decay: golden.number("weight_decay"),
        decay_all_parameters: false,
        grad_clip: golden.number("clip"),
    };
    let relative_rate = golden.number::<f64>("muon_lr") / rate;
    let muon = MuonConfig { momentum: golden.number("muon_momentum"), relative_rate };
    let mut optimizer = AdamW::new(adamw).with_muon(Some(muon));
    let schedule = Schedule {
        kind: ScheduleKind::Cosine,
        learning_rate: rate,
        final_rate: golden.number("final_lr"),
        period: golden.number("steps"),
        period_growth: 1,
        restart_decay: 1.0,
        decay_share: 0.2,
    };
    let tolerance = |kind: &str, largest: f32| 10.0 * golden.number::<f32>(kind) + EPS * largest;
    let (inputs, targets) = (&golden.integers["tokens"], &golden.integers["targets"]);
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for step in 0..schedule.period {
        losses.push(model.loss_and_gradients(Batch { inputs, targets, time: 7 }, 0));
        norms.push(optimizer.step(&mut *model, schedule.rate(step)) as f32);
    }
    for (what, got) in [("losses", losses), ("grad_norms", norms)] {
        let tolerance = tolerance(&format!("deviation.{what}"), got[0]);
        assert_close(&format!("{backend}: {what}"), &got, &golden.floats[what], tolerance);
    }
    let parameters = model.parameters();
    for spec in parameters.specs() {
        let mut got = parameters.tensor(spec).to_vec();
        let mut want = golden.floats[&format!("after.{}", spec.name)].clone();
        if spec.name.ends_with("c_attn.bias") {
            // The keys' part follows the sign of a gradient that is pure rounding.
            let c = config.n_emb;
            got.drain(c..2 * c);
            want.drain(c..2 * c);
        }
        let kind = if MuonUpdate::updates(spec) { "deviation.muon" } else { "deviation.adamw" };
        let largest = want.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        assert_close(&format!("{backend}: {}", spec.name), &got, &want, tolerance(kind, largest));
    }
}

#[test]
fn the_blocks_matrices_are_muon_s_and_have_no_squares() {
    let config = ModelConfig {
        vocab_size: 11,
        n_blocks: 2,
        n_emb: 8,
        n_heads: 2,
        block_size: 6,
        tie_word_embeddings: false,
        ..ModelConfig::GPT2
    };
    let tokens: Vec<u32> = (0..12).map(|token| token % 11).collect();
    for (name, new) in BACKENDS {
        let mut model = new(config, Precision::F32, initial_parameters(&config));
        model.freeze("blocks:1".parse().expect("a part"));
        let mut optimizer = AdamW::new(AdamWConfig::default()).with_muon(Some(MUON));
        for key in 0..3 {
            model.loss_and_gradients(Batch { inputs: &tokens, targets: &tokens, time: 6 }, key);
            optimizer.step(&mut *model, 1e-2);
        }
        let (now, then) = (model.parameters(), initial_parameters(&config));
        let moments = model.moments();
        let is_set = |values: &[f32]| values.iter().any(|&value| value != 0.0);
        for spec in now.specs() {
            let is_frozen = spec.name.starts_with("h.0.");
            let is_muon_s = spec.name.starts_with("h.1.") && spec.shape.len() == 2;
            let found = [
                now.tensor(spec) != then.tensor(spec),
                is_set(&moments.exp_avg[spec.range.clone()]),
                is_set(&moments.exp_avg_sq[spec.range.clone()]),
            ];
            assert_eq!(found, [!is_frozen, !is_frozen, !is_frozen && !is_muon_s], "{name}: {}", spec.name);
        }
    }
}

/// The loss of a batch that is learned by heart.
fn loss_after(steps: u64, precision: Precision) -> f32 {
    let config = ModelConfig {
        vocab_size: 65,
        n_blocks: 2,
        n_emb: 32,
        n_heads: 2,
        block_size: 16,
        dropout: 0.0,
        ..ModelConfig::GPT2
    };
    let mut rng = Rng::new(3, Stream::Sampling);
    let tokens: Vec<u32> = (0..65).map(|_| rng.below(65) as u32).collect();
    let batch = Batch { inputs: &tokens[..64], targets: &tokens[1..], time: 16 };
    let parameters = Parameters::random(&config, &mut Rng::new(1, Stream::Init));
    let mut model = CpuBackend::from_parameters(config, precision, parameters);
    let mut optimizer = AdamW::new(AdamWConfig::default()).with_muon(Some(MUON));
    for key in 0..steps {
        model.loss_and_gradients(batch, key);
        optimizer.step(&mut model, 1e-2);
    }
    model.loss_and_gradients(batch, steps)
}

#[test]
fn a_model_learns_in_both_precisions() {
    for precision in [Precision::F32, Precision::Bf16] {
        let (first, last) = (loss_after(0, precision), loss_after(40, precision));
        // ln 65 = 4.17 at first.
        assert!(first > 4.0 && last < 1.0, "{precision:?}: {first} to {last}");
    }
}

fn settings() -> Settings {
    Settings { optimizer: OptimizerKind::Muon, muon_learning_rate: Some(2e-2), ..ranks::settings() }
}

#[test]
fn a_run_gives_the_same_bits_on_one_and_two_ranks_and_if_resumed() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (name, new) in BACKENDS {
        for precision in [Precision::F32, Precision::Bf16] {
            let place = |what: &str| directory.path().join(format!("{name}_{precision:?}_{what}"));
            let on =
                |ranks: usize| Settings { gradient_accumulation_steps: 4 / ranks, precision, ..settings() };
            for ranks in [1, 2] {
                let run = place(&ranks.to_string());
                for outcome in train(new, ranks, &run, &Start::Fresh, &on(ranks), |_, _, _| {}) {
                    outcome.expect("it trains");
                }
                check_same(&run, &place("1"), &format!("{name}, {ranks} ranks"));
            }
            let pieces = place("pieces");
            train(new, 1, &pieces, &Start::Fresh, &on(1), stop_after(6));
            let resume = Start::Resume { run: RunDir::new(&pieces), skip_damaged: false };
            for outcome in train(new, 1, &pieces, &resume, &on(1), |_, _, _| {}) {
                outcome.expect("it resumes");
            }
            check_same(&pieces, &place("1"), &format!("{name}, resumed"));
        }
    }
}

#[test]
fn another_optimizer_starts_fresh_and_is_refused_on_resume() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let with = |optimizer: OptimizerKind| Settings { optimizer, ..settings() };
    let kinds = [OptimizerKind::AdamW, OptimizerKind::Muon];
    for then in kinds {
        let run = directory.path().join(then.name());
        train(CPU, 1, &run, &Start::Fresh, &with(then), |_, _, _| {});
        for now in kinds {
            let trainer = trainer(&run, with(now), false).expect("it continues");
            assert_eq!(trainer.has_optimizer(), now == then, "{then}, then {now}");
        }
        let stopped = directory.path().join(format!("{then}_stopped"));
        train(CPU, 1, &stopped, &Start::Fresh, &with(then), stop_after(6));
        for now in kinds.into_iter().filter(|&now| now != then) {
            let error =
                trainer(&stopped, with(now), true).map(drop).expect_err("another optimizer").to_string();
            assert!(error.contains(&format!("was saved with optimizer = \"{then}\"")), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}

/// A trainer that continues from the first epoch of a run, or resumes it.
fn trainer(run: &Path, settings: Settings, resumes: bool) -> folio::error::Result<Trainer> {
    let (stream, tokenizer) = ranks::data();
    let run = RunDir::new(run);
    let start = match resumes {
        true => Start::Resume { run, skip_damaged: false },
        false => Start::Checkpoint { run, number: 1, restart_schedule: false },
    };
    Trainer::new(settings, stream, tokenizer, &start)
}
