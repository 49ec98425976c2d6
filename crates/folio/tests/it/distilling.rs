//! Distillation: the table of the teachers' probabilities, and runs that learn from it.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use folio::checkpoint::Identity;
use folio::data::{BlockOffset, Dataset, Part, SplitKind, TokenStream};
use folio::ensemble::Ensemble;
use folio::model::{Batch, CpuBackend, ModelConfig, Parameters, Precision, SoftTargets, StepBatch};
use folio::rng::{Rng, Stream};
use folio::run_dir::RunDir;
use folio::settings::Settings;
use folio::teachers::{TablePlace, TeacherTable, Teachers};
use folio::tokenizer::Tokenizer;
use folio::train::{Event, Outcome, Requests, Start};
use half::f16;

use crate::golden::{EPS, ROUNDINGS, compare_gradients, initial_parameters, small};
use crate::ranks::{self, check_same, data, stop_after, train};
use crate::support::{BACKENDS, CPU};

#[test]
fn gradients_with_soft_targets_equal_pytorch_s() {
    for (name, new) in BACKENDS {
        let (golden, config, parameters) = small("distill");
        assert_eq!(parameters.values(), initial_parameters(&config).values());
        let mut model = new(config, Precision::F32, parameters);
        let batch =
            Batch { inputs: &golden.integers["tokens"], targets: &golden.integers["targets"], time: 7 };
        let probabilities: Vec<u16> =
            golden.integers["distributions"].iter().map(|&bits| bits as u16).collect();
        let soft_targets =
            Some(SoftTargets { probabilities: &probabilities, weight: golden.number("distill_weight") });
        let label_smoothing = golden.number("label_smoothing");
        let step = StepBatch { label_smoothing, soft_targets, ..StepBatch::whole(batch, 0) };
        let loss = (model.forward_backward(step) / step.total_tokens() as f64) as f32;
        let want = golden.floats["loss"][0];
        assert!((loss - want).abs() <= ROUNDINGS * EPS * want, "{name}: loss {loss}, want {want}");
        compare_gradients(&format!("{name} with soft targets"), &golden, &model.gradients());
    }
}

/// Models that disagree, with a context of `block_size`.
fn ensemble(vocab_size: usize, block_size: usize) -> Ensemble {
    let config = ModelConfig {
        vocab_size,
        block_size,
        n_blocks: 2,
        n_emb: 24,
        n_heads: 2,
        dropout: 0.1,
        ..ModelConfig::GPT2
    };
    let model = |seed| {
        let mut parameters = Parameters::random(&config, &mut Rng::new(seed, Stream::Init));
        parameters.values_mut().iter_mut().for_each(|value| *value *= 10.0);
        CpuBackend::from_parameters(config, Precision::F32, parameters)
    };
    Ensemble::new(vec![model(1), model(2)]).expect("they agree")
}

/// The start of the window that token `i` of a range is read in, by counting windows.
fn window_start(range: &Range<usize>, i: usize, time: usize) -> usize {
    let last = range.end.saturating_sub(time).max(range.start);
    let starts = (range.start..).step_by(time / 2).map(|start| start.min(last));
    starts.into_iter().find(|start| i < start + time).expect("the last window ends with the range")
}

#[test]
fn the_table_has_the_mean_probabilities_of_the_training_text_alone() {
    let mut rng = Rng::new(5, Stream::Sampling);
    let text: String = (0..700).map(|_| char::from(b'a' + rng.below(26) as u8)).collect();
    let tokenizer = Tokenizer::chars(&text);
    let vocab = tokenizer.vocab_size();
    let tokens = tokenizer.encode(&text).expect("its own characters");
    // The teachers' context may be another than the student's if the split does not depend on it.
    for (split, time) in [(SplitKind::Contiguous, 10), (SplitKind::Contiguous, 17), (SplitKind::Blocks, 12)] {
        let stream = TokenStream::encode(&text, &tokenizer, split).expect("its own characters");
        let dataset = Dataset::new(Arc::new(stream), 12, 3).expect("long enough");
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut calls = Vec::new();
        let mut compute = |place| {
            let mut teachers = ensemble(vocab, time);
            calls.clear();
            let progress = &mut |done, all| {
                calls.push((done, all));
                true
            };
            TeacherTable::compute(&mut teachers, &dataset, place, progress)
                .expect("it fits")
                .expect("it is not stopped")
        };
        let table = compute(TablePlace::Memory);
        let on_disk = compute(TablePlace::Disk(directory.path()));
        assert_eq!(fs::read_dir(directory.path()).expect("a directory").count(), 0, "the file has no name");
        let all: usize = table.ranges().iter().map(ExactSizeIterator::len).sum();
        assert_eq!((calls[0], *calls.last().expect("calls")), ((0, all), (all, all)));

        // Every training block has rows, whatever its offset; no evaluation block has any.
        let holds = |token: usize| table.ranges().iter().any(|range| range.contains(&token));
        let mut order = Rng::new(1, Stream::Order);
        for _ in 0..5 {
            let blocks = dataset.epoch_blocks(BlockOffset::Random, &mut order);
            assert!(blocks.iter().all(|start| (*start..start + 12).all(holds)));
        }
        for part in [Part::Eval, Part::Test] {
            assert!(!dataset.blocks(part).iter().any(|start| (*start..start + 12).any(holds)));
        }

        let mut teachers = ensemble(vocab, time);
        for range in table.ranges() {
            let (mut got, mut same) = (Vec::new(), Vec::new());
            table.read(range.clone(), &mut got).expect("in memory");
            on_disk.read(range.clone(), &mut same).expect("on disk");
            assert!(got == same, "{split:?}");
            for (i, got) in range.clone().zip(got.chunks_exact(vocab)) {
                let inputs = &tokens[window_start(range, i, time)..=i];
                let logs = teachers.log_probabilities(Batch { inputs, targets: inputs, time: inputs.len() });
                let mut sum = 0.0;
                for (&bits, &log) in got.iter().zip(&logs[logs.len() - vocab..]) {
                    let (got, want) = (f16::from_bits(bits).to_f64(), f64::from(log).exp());
                    // The rounding to f16; that of the logarithm, which is at least -20 here, and of the exponential.
                    let tolerance = want * 2f64.powi(-11) + 2f64.powi(-25) + want * 22.0 * f64::from(EPS);
                    assert!((got - want).abs() <= tolerance, "{split:?} {i}: {got} {want}");
                    sum += got;
                }
                let tolerance = 2f64.powi(-11) + vocab as f64 * 2f64.powi(-25) + 22.0 * f64::from(EPS);
                assert!((sum - 1.0).abs() <= tolerance, "{split:?} {i}: {sum}");
            }
        }
        let stopped =
            TeacherTable::compute(&mut teachers, &dataset, TablePlace::Memory, &mut |done, _| done == 0);
        assert_eq!(stopped.expect("no error").is_none(), calls.len() > 2);
    }
}

/// Trains a teacher for an epoch. Returns its directory.
fn teacher(directory: &Path, name: &str, change: Settings) -> PathBuf {
    let path = directory.join(name);
    let settings = Settings { num_epochs: 1, ..change };
    train(CPU, 1, &path, &Start::Fresh, &settings, |_, _, _| {}).remove(0).expect("it trains");
    path
}

/// The settings of a student of two teachers, of which one is wider than the student.
fn student(directory: &Path) -> Settings {
    let wide = teacher(directory, "wide", Settings { n_emb: 24, learning_rate: 1e-2, ..ranks::settings() });
    let like = teacher(directory, "like", Settings { dropout: 0.0, ..ranks::settings() });
    let mut settings = Settings { distill_weight: 0.7, label_smoothing: 0.1, ..ranks::settings() };
    settings.record_teachers(&[wide, like.join("checkpoint_1")]).expect("they have checkpoints");
    settings
}

/// Trains on one rank. Returns the losses of its steps.
fn losses(directory: &Path, settings: &Settings) -> Vec<f32> {
    let losses = std::sync::Mutex::new(Vec::new());
    let note = |_: usize, _: &Requests, event: &Event| {
        if let Event::Step(report) = event {
            losses.lock().expect("no panic").push(report.loss);
        }
    };
    train(CPU, 1, directory, &Start::Fresh, settings, note).remove(0).expect("it trains");
    losses.into_inner().expect("no panic")
}

#[test]
fn a_run_learns_from_its_teachers_and_reports_the_loss_of_the_text() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let settings = student(directory.path());
    let place = |name: &str| directory.path().join(name);
    let with = losses(&place("with"), &settings);
    let alone =
        losses(&place("alone"), &Settings { teachers: None, teachers_sha256: None, ..settings.clone() });
    assert_eq!(with[0], alone[0]);
    assert_ne!(with[1], alone[1]);
    // Without weight the teachers change no bit.
    losses(&place("none"), &Settings { distill_weight: 0.0, ..settings });
    let weights = |name| fs::read(place(name).join("checkpoint_3/model.safetensors")).expect("saved");
    assert!(weights("none") == weights("alone") && weights("with") != weights("alone"));
}

#[test]
fn ranks_micro_batches_and_resumed_runs_give_the_same_bits() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let settings = Settings { block_offset: BlockOffset::Random, ..student(directory.path()) };
    let on = |ranks: usize| Settings { gradient_accumulation_steps: 4 / ranks, ..settings.clone() };
    let finished = |outcomes: Vec<folio::error::Result<Outcome>>, want: Outcome| {
        outcomes.into_iter().for_each(|outcome| assert_eq!(outcome.expect("it trains"), want));
    };
    for (name, new) in BACKENDS {
        let place = |what: &str| directory.path().join(format!("{name}_{what}"));
        finished(train(new, 1, &place("whole"), &Start::Fresh, &on(1), |_, _, _| {}), Outcome::Finished);
        finished(train(new, 2, &place("two"), &Start::Fresh, &on(2), |_, _, _| {}), Outcome::Finished);
        check_same(&place("two"), &place("whole"), "2 ranks");
        let pieces = place("pieces");
        let resume = Start::Resume { run: RunDir::new(&pieces), skip_damaged: false };
        // First, a stop while the table is computed.
        let stop_at_once = |_: usize, requests: &Requests, event: &Event| {
            if matches!(event, Event::Teachers { done: 0, .. }) {
                requests.stop.store(true, Ordering::Relaxed);
            }
        };
        finished(train(new, 2, &pieces, &Start::Fresh, &on(2), stop_at_once), Outcome::Stopped);
        finished(train(new, 2, &pieces, &resume, &on(2), stop_after(2)), Outcome::Stopped);
        finished(train(new, 1, &pieces, &resume, &on(1), |_, _, _| {}), Outcome::Finished);
        check_same(&pieces, &place("whole"), "2 ranks, then 1");
    }
}

#[test]
fn unsuitable_changed_and_missing_teachers_are_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let settings = student(directory.path());
    let (_, tokenizer) = data();
    let open = |settings: &Settings| {
        let identity = Identity::of(settings, &tokenizer);
        Teachers::open(settings, &identity).map(|found| found.map_or(0, |teachers| teachers.count()))
    };
    assert_eq!(open(&settings).expect("they suit"), 2);
    assert_eq!(open(&ranks::settings()).expect("none"), 0);
    let check = |settings: &Settings, parts: &[&str]| {
        let error = open(settings).expect_err("it is refused").to_string();
        assert!(!error.contains('\n') && parts.iter().all(|part| error.contains(part)), "{error}");
    };
    let changed = |change: &dyn Fn(&mut Settings)| {
        let mut settings = settings.clone();
        change(&mut settings);
        settings
    };
    check(&changed(&|run| run.seed = 1), &["wide/checkpoint_1", "another seed of the split"]);
    check(&changed(&|run| run.split = SplitKind::Contiguous), &["another split than this run"]);
    check(&changed(&|run| run.data_sha256 = "another".into()), &["another text than this run"]);
    check(&changed(&|run| run.test_fraction = 0.5), &["another test part than this run"]);
    check(&changed(&|run| run.block_size = 8), &["`block_size 16`", "this run has 8", "split contiguous"]);
    check(&changed(&|run| run.embedding_rows = Some(64)), &["rows of token embeddings", "this run has 64"]);
    check(&changed(&|run| run.teachers_sha256 = None), &["2 paths with 0 SHA-256"]);
    let other = Tokenizer::chars("abc");
    let error = Teachers::open(&settings, &Identity::of(&settings, &other)).expect_err("another tokenizer");
    assert!(error.to_string().contains("another tokenizer than this run"), "{error}");

    // A teacher that is trained again has other weights; one that has moved is found again.
    let like = directory.path().join("like");
    let moved = directory.path().join("moved");
    fs::rename(&like, &moved).expect("it can be moved");
    check(&settings, &["teachers: ", "like", "give its new path"]);
    let new_path = moved.join("checkpoint_1").display().to_string();
    assert_eq!(
        open(&changed(&|run| run.teachers.as_mut().expect("two")[1].clone_from(&new_path))).expect("moved"),
        2
    );
    teacher(directory.path(), "like", Settings { dropout: 0.3, ..ranks::settings() });
    check(&settings, &["like/checkpoint_1", "other weights"]);
    assert!(settings.clone().record_teachers(&[directory.path().join("none")]).is_err());
}
