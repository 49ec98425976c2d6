//! A run that is stopped and resumed from its checkpoint has the same bits as one that was never
//! stopped: losses, rates, weights, optimizer and random streams, in any number of threads.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use folio::checkpoint::CheckpointName;
use folio::data::{BlockOffset, Part, SplitKind, TokenStream};
use folio::distributed::SingleProcess;
use folio::model::{Activation, Precision};
use folio::optim::OptimizerKind;
use folio::rng::{Rng, Stream};
use folio::run_dir::RunDir;
use folio::schedule::{ScheduleKind, Unit};
use folio::settings::{Keep, Settings};
use folio::tokenizer::Tokenizer;
use folio::train::{Event, Outcome, Requests, Start, Trainer};
use rayon::ThreadPoolBuilder;

use crate::support::{CPU, New, REFERENCE};

const EPOCHS: u64 = 6;
/// The epochs after which runs stop: inside the first period of the warm restarts, and after a restart.
const STOPS: [u64; 2] = [1, 4];
/// Threads before the stop and after it.
const THREADS: [(usize, usize); 5] = [(1, 1), (2, 2), (3, 3), (1, 3), (3, 2)];

/// Sizes at which every parallel part has work for several threads: 13 sequences; weights of 32 rows, more than
/// the smallest piece of 24; a vocabulary of several panels and of more than AdamW's piece of 16,384 numbers.
fn settings() -> Settings {
    Settings {
        n_emb: 32,
        n_heads: 2,
        n_blocks: 1,
        block_size: 16,
        batch_size: 13,
        dropout: 0.2,
        num_epochs: EPOCHS,
        learning_rate: 3e-3,
        cosine_final_lr: 1e-4,
        save_losses: true,
        save_checkpoint: true,
        keep: Keep::All,
        ..Settings::default()
    }
}

/// Fifty blocks of random characters, enough different ones that the embedding too is worked on in pieces.
fn data(split: SplitKind) -> (Arc<TokenStream>, Arc<Tokenizer>) {
    let mut rng = Rng::new(11, Stream::Sampling);
    let draw = |_| char::from_u32(0x4E00 + rng.below(2_000) as u32).expect("an ideograph");
    let text: String = (0..50 * 16 + 1).map(draw).collect();
    let tokenizer = Tokenizer::chars(&text);
    assert!(tokenizer.vocab_size() * 32 > 16 * 1024, "{} characters", tokenizer.vocab_size());
    let stream = TokenStream::encode(&text, &tokenizer, split).expect("its own characters");
    (Arc::new(stream), Arc::new(tokenizer))
}

/// Trains on the processor with this many threads.
fn train(settings: &Settings, start: &Start, directory: &Path, threads: usize) -> RunDir {
    train_on(CPU, settings, start, directory, threads)
}

/// Trains on a backend with this many threads.
fn train_on(new: New, settings: &Settings, start: &Start, directory: &Path, threads: usize) -> RunDir {
    let run_dir = RunDir::new(directory);
    let (stream, tokenizer) = data(settings.split);
    let pool = ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    pool.install(|| {
        let settings = settings.clone();
        let mut trainer = Trainer::on(&new, Box::new(SingleProcess), settings, stream, tokenizer, start)
            .expect("valid settings");
        trainer.run(Some(&run_dir), &Requests::default(), &mut |_event| {}).expect("a run without mishap");
    });
    run_dir
}

fn after(run: &RunDir, number: u64) -> Start {
    Start::Checkpoint { run: run.clone(), number, restart_schedule: false }
}

/// Checks that two runs agree in every bit that they saved from `epoch` on. JSON numbers are written in full,
/// so equal text is equal bits.
#[track_caller]
fn check_same(got: &RunDir, want: &RunDir, epoch: u64, context: &str) {
    let inside = ["model.safetensors", "optimizer.safetensors", "state.json"];
    let checkpoints = (epoch..=EPOCHS).flat_map(|n| inside.map(|name| format!("checkpoint_{n}/{name}")));
    for name in checkpoints.chain(["losses.json".to_owned(), "lrs.json".to_owned()]) {
        let bytes = |run: &RunDir| fs::read(run.path().join(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        if name.ends_with("state.json") {
            // A run that continues another began later.
            let state = |run: &RunDir| {
                let mut state: serde_json::Value = serde_json::from_slice(&bytes(run)).expect("JSON");
                state.as_object_mut().expect("an object").remove("start_step");
                state.to_string()
            };
            assert_eq!(state(got), state(want), "{name} differs: {context}");
            continue;
        }
        assert!(bytes(got) == bytes(want), "{name} differs: {context}");
    }
}

/// Checks that a resumed run has the same bits wherever it stops, with any number of threads.
#[track_caller]
fn check_resumes(settings: Settings) {
    check_resumes_on(CPU, &THREADS, settings);
}

#[track_caller]
fn check_resumes_on(new: New, threads: &[(usize, usize)], settings: Settings) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let place = |name: &str| directory.path().join(name);
    let whole = train_on(new, &settings, &Start::Fresh, &place("whole"), 1);
    let history = whole.history().expect("readable").expect("saved");
    let losses: Vec<f64> = history.epochs.iter().map(|epoch| epoch.train_loss).collect();
    assert!(losses.windows(2).all(|pair| pair[0] != pair[1]), "it learns in every epoch: {losses:?}");
    for (index, &(before, then)) in threads.iter().enumerate() {
        let stop = STOPS[index % STOPS.len()];
        let context = format!("{before} threads for {stop} epochs, then {then}: {settings:?}");
        let first = Settings { num_epochs: stop, ..settings.clone() };
        let rest = Settings { num_epochs: EPOCHS - stop, ..settings.clone() };
        let first = train_on(new, &first, &Start::Fresh, &place(&format!("first_{index}")), before);
        let rest = train_on(new, &rest, &after(&first, stop), &place(&format!("rest_{index}")), then);
        check_same(&rest, &whole, stop + 1, &context);
    }
}

#[test]
fn a_constant_rate_resumes_bit_for_bit() {
    check_resumes(Settings { lr_schedule: ScheduleKind::Const, ..settings() });
}

#[test]
fn a_cosine_resumes_bit_for_bit() {
    check_resumes(Settings { lr_schedule: ScheduleKind::Cosine, cosine_t_max: EPOCHS, ..settings() });
}

#[test]
fn warm_restarts_resume_bit_for_bit() {
    check_resumes(Settings {
        lr_schedule: ScheduleKind::CosineWarmRestarts,
        cosine_t_max: 2,
        cosine_t_mult: 2,
        cosine_lr_restart_decay: 0.5,
        ..settings()
    });
}

#[test]
fn the_reference_backend_resumes_bit_for_bit() {
    let settings = Settings {
        n_emb: 8,
        lr_schedule: ScheduleKind::Cosine,
        cosine_t_max: EPOCHS,
        gradient_accumulation_steps: 3,
        ..settings()
    };
    check_resumes_on(REFERENCE, &THREADS[..2], settings);
}

#[test]
fn a_run_with_gradient_accumulation_resumes_bit_for_bit() {
    // The last batch of an epoch has a single sequence, so that two of its micro-batches are empty.
    check_resumes(Settings { gradient_accumulation_steps: 3, ..settings() });
}

#[test]
fn a_run_with_an_average_of_its_weights_resumes_bit_for_bit() {
    check_resumes(Settings { ema_decay: 0.9, ..settings() });
}

#[test]
fn muon_resumes_bit_for_bit() {
    let muon = Settings { optimizer: OptimizerKind::Muon, muon_learning_rate: Some(1e-2), ..settings() };
    check_resumes(muon.clone());
    check_resumes_on(CPU, &THREADS[3..], Settings { precision: Precision::Bf16, ..muon });
}

#[test]
fn wsd_and_lines_to_final_rates_resume_bit_for_bit() {
    let settings = Settings {
        lr_schedule: ScheduleKind::Wsd,
        wsd_decay: 0.6,
        dropout_final: Some(0.0),
        weight_decay_final: Some(0.5),
        cosine_t_max: EPOCHS,
        ..settings()
    };
    check_resumes(settings.clone());
    let by_step = Settings { lr_schedule_unit: Unit::Step, cosine_t_max: 21, ..settings };
    check_resumes_on(CPU, &THREADS[3..], by_step);
}

#[test]
fn a_run_in_bf16_resumes_bit_for_bit() {
    check_resumes(Settings {
        precision: Precision::Bf16,
        lr_schedule: ScheduleKind::Cosine,
        cosine_t_max: EPOCHS,
        ..settings()
    });
}

#[test]
fn a_schedule_by_steps_with_a_warm_up_resumes_bit_for_bit() {
    check_resumes(Settings {
        lr_schedule: ScheduleKind::Cosine,
        lr_schedule_unit: Unit::Step,
        cosine_t_max: 24,
        // Longer than the first epoch of 4 steps.
        warmup_steps: 7,
        split: SplitKind::Contiguous,
        ..settings()
    });
}

/// Trains, stops at each event for which `stops_at` returns true, and resumes, until the run is finished.
fn train_in_pieces(
    new: New,
    settings: &Settings,
    directory: &Path,
    mut stops_at: impl FnMut(&Event) -> bool + Send,
) -> RunDir {
    let run = RunDir::new(directory);
    for piece in 0.. {
        assert!(piece < 100, "it does not come to an end");
        let start = match piece {
            0 => Start::Fresh,
            _ => Start::Resume { run: run.clone(), skip_damaged: false },
        };
        let (stream, tokenizer) = data(settings.split);
        let pool = ThreadPoolBuilder::new().num_threads(1 + piece % 3).build().expect("threads");
        let outcome = pool.install(|| {
            let mut trainer =
                Trainer::on(&new, Box::new(SingleProcess), settings.clone(), stream, tokenizer, &start)
                    .expect("a sound checkpoint");
            let requests = Requests::default();
            trainer.run(Some(&run), &requests, &mut |event| {
                if stops_at(event) {
                    requests.stop.store(true, Ordering::Relaxed);
                }
            })
        });
        if outcome.expect("a run without mishap") == Outcome::Finished {
            return run;
        }
    }
    unreachable!("the loop ends above")
}

#[test]
fn a_run_that_stops_inside_epochs_resumes_bit_for_bit() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let place = |name: &str| directory.path().join(name);
    let cases = [(CPU, "f32", 32), (CPU, "bf16", 32), (REFERENCE, "f32", 8)];
    for (index, (new, precision, n_emb)) in cases.into_iter().enumerate() {
        let precision = precision.parse().expect("a precision");
        let settings = Settings {
            precision,
            n_emb,
            lr_schedule: ScheduleKind::Cosine,
            cosine_t_max: EPOCHS,
            ema_decay: if n_emb == 8 { 0.0 } else { 0.9 },
            block_offset: if n_emb == 8 { BlockOffset::Fixed } else { BlockOffset::Random },
            optimizer: if precision == Precision::Bf16 { OptimizerKind::Muon } else { OptimizerKind::AdamW },
            dropout_final: Some(0.1),
            // Steps 12 and 24 end epochs.
            eval_every: Some(3),
            ..settings()
        };
        let whole = train_on(new, &settings, &Start::Fresh, &place(&format!("whole_{index}")), 2);
        // An epoch has four steps: the first, one in the midst, the last before its evaluation.
        let stops = [1, 6, 7, 12, 15, 24];
        let mut next = stops.into_iter().peekable();
        let at_steps = |event: &Event| match event {
            Event::Step(report) => next.next_if_eq(&report.step).is_some(),
            _ => false,
        };
        let pieces = train_in_pieces(new, &settings, &place(&format!("steps_{index}")), at_steps);
        check_same(&pieces, &whole, 1, "stopped after steps");

        let mut evaluations = 0;
        let in_evaluations = |event: &Event| {
            evaluations += u64::from(matches!(event, Event::Evaluating));
            matches!(event, Event::Evaluating) && evaluations % 2 == 1
        };
        let pieces = train_in_pieces(new, &settings, &place(&format!("evaluations_{index}")), in_evaluations);
        check_same(&pieces, &whole, 1, "stopped while evaluating");
    }
}

#[test]
fn saving_inside_epochs_changes_nothing() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let whole = train(&settings(), &Start::Fresh, &directory.path().join("whole"), 2);
    let often = Settings { save_every: Some(1), ..settings() };
    let often = train(&often, &Start::Fresh, &directory.path().join("often"), 2);
    check_same(&often, &whole, 1, "saved after every step");
    assert_eq!(often.checkpoints().expect("readable").last(), Some(&CheckpointName::Epoch(EPOCHS)));
}

#[test]
fn an_epoch_cut_short_by_a_limit_is_taken_up_again() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let place = |name: &str| directory.path().join(name);
    let settings = Settings {
        lr_schedule: ScheduleKind::CosineWarmRestarts,
        cosine_t_max: 2,
        save_every: Some(3),
        eval_every: Some(3),
        ..settings()
    };
    let whole = train(&settings, &Start::Fresh, &place("whole"), 1);
    // Four steps per epoch: after the first of the third, before the last of the fifth, after the last of the sixth.
    for (index, limits) in [[9, 19], [10, 24], [1, 2]].into_iter().enumerate() {
        let path = place(&format!("limited_{index}"));
        let limited = Settings { max_steps: Some(limits[0]), ..settings.clone() };
        let run = train(&limited, &Start::Fresh, &path, 2);
        let cut = run.history().expect("readable").expect("saved");
        assert_eq!(
            cut.epochs.last().map(|epoch| epoch.step),
            Some(limits[0]),
            "the last epoch ends at the limit"
        );
        let resume = Start::Resume { run: run.clone(), skip_damaged: false };
        train(&Settings { max_steps: Some(limits[1]), ..settings.clone() }, &resume, &path, 1);
        train(&settings, &resume, &path, 3);
        check_same(&run, &whole, 1, &format!("limits {limits:?}"));
    }
}

#[test]
fn a_run_that_was_never_saved_begins_again_where_it_began() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let place = |name: &str| directory.path().join(name);
    let first = train(&Settings { num_epochs: 2, ..settings() }, &Start::Fresh, &place("first"), 1);
    let rest = Settings { num_epochs: 2, learning_rate: 1e-3, ..settings() };
    let start = Start::Checkpoint { run: first, number: 2, restart_schedule: true };
    let whole = train(&rest, &start, &place("whole"), 1);
    // Of a run that was killed before its first save there is but the description.
    let killed = RunDir::new(place("killed"));
    fs::create_dir(killed.path()).expect("a new directory");
    let settings = whole.settings().expect("readable");
    fs::write(killed.path().join("hyperparameters.json"), serde_json::to_vec(&settings).expect("JSON"))
        .expect("room");
    let again = train(&settings, &Start::Resume { run: killed, skip_damaged: false }, &place("killed"), 2);
    for name in ["losses.json", "lrs.json", "checkpoint_4/model.safetensors", "checkpoint_3/state.json"] {
        let read = |run: &RunDir| fs::read(run.path().join(name)).expect("saved");
        assert!(read(&again) == read(&whole), "{name}");
    }
}

#[test]
fn a_run_can_be_continued_again_and_again() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let whole = train(&settings(), &Start::Fresh, &directory.path().join("whole"), 2);
    let one = Settings { num_epochs: 1, ..settings() };
    let path = directory.path().join("piecemeal");
    let piecemeal = train(&one, &Start::Fresh, &path, 1);
    for stop in 1..EPOCHS {
        train(&one, &after(&piecemeal, stop), &path, 1 + stop as usize % 3);
    }
    check_same(&piecemeal, &whole, 1, "an epoch at a time, in its own directory");
}

#[test]
fn a_checkpoint_s_state_counts_epochs_and_steps() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let run = train(&settings(), &Start::Fresh, directory.path(), 2);
    for epoch in 1..=EPOCHS {
        let checkpoint = run.open_checkpoint(CheckpointName::Epoch(epoch)).expect("whole");
        let parameters = checkpoint.parameters().expect("whole");
        checkpoint.moments(parameters.specs()).expect("whole");
        let state = checkpoint.state();
        // Forty training blocks in batches of 13: three whole ones and a short one.
        assert_eq!((state.epoch, state.global_step, state.optimizer_steps), (epoch, 4 * epoch, 4 * epoch));
        assert_eq!(state.history.epochs.len() as u64, epoch);
    }
}

#[test]
fn the_rate_of_every_epoch_is_the_schedule_s() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    // Restarts at 1, 4 and 13 epochs.
    let schedule = Settings {
        lr_schedule: ScheduleKind::CosineWarmRestarts,
        cosine_t_max: 1,
        cosine_t_mult: 3,
        cosine_lr_restart_decay: 2.0,
        num_epochs: 15,
        save_checkpoint: false,
        ..settings()
    };
    let run = train(&schedule, &Start::Fresh, directory.path(), 2);
    let wave = |since: f64, period: f64| {
        1e-4 + (3e-3 - 1e-4) * (1.0 + (std::f64::consts::PI * since / period).cos()) / 2.0
    };
    let first = [wave(0.0, 1.0)].into_iter();
    let second = (0..3).map(|since| 2.0 * wave(f64::from(since), 3.0));
    let third = (0..9).map(|since| 4.0 * wave(f64::from(since), 9.0));
    let fourth = (0..2).map(|since| 8.0 * wave(f64::from(since), 27.0));
    let expected: Vec<f64> = first.chain(second).chain(third).chain(fourth).collect();
    let history = run.history().expect("readable").expect("saved");
    let rates: Vec<f64> = history.epochs.iter().map(|epoch| epoch.learning_rate).collect();
    assert_eq!(rates, expected);
}

#[test]
fn a_continued_run_keeps_its_split() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for split in [SplitKind::Blocks, SplitKind::Contiguous] {
        let settings = Settings { num_epochs: 1, split, ..settings() };
        let run = train(&settings, &Start::Fresh, &directory.path().join(format!("{split:?}")), 1);
        let blocks = |start: &Start| {
            let (stream, tokenizer) = data(split);
            let trainer = Trainer::new(settings.clone(), stream, tokenizer, start).expect("valid settings");
            [Part::Train, Part::Eval, Part::Test].map(|part| trainer.dataset().blocks(part).to_vec())
        };
        assert_eq!(blocks(&after(&run, 1)), blocks(&Start::Fresh), "{split:?}");
    }
}

/// An MLP narrower than qkv, GELU with erf, another epsilon and a separate head, as imported models may have them.
fn varied() -> Settings {
    Settings {
        n_inner: Some(50),
        activation: Activation::Gelu,
        layer_norm_epsilon: 1e-6,
        tie_word_embeddings: false,
        ..settings()
    }
}

#[test]
fn a_model_that_differs_from_gpt_2_resumes_bit_for_bit() {
    check_resumes_on(CPU, &[(2, 3)], varied());
    check_resumes_on(CPU, &[(1, 2)], Settings { precision: Precision::Bf16, ..varied() });
}

#[test]
fn checkpoints_of_models_that_differ_from_gpt_2_have_a_format_of_their_own() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (name, settings, format) in
        [("plain", settings(), "\"format\": 3"), ("varied", varied(), "\"format\": 4")]
    {
        let run =
            train(&Settings { num_epochs: 1, ..settings }, &Start::Fresh, &directory.path().join(name), 2);
        let manifest = fs::read_to_string(run.path().join("checkpoint_1/manifest.json")).expect("saved");
        assert!(manifest.contains(format), "{manifest}");
    }
}

#[test]
fn a_run_keeps_the_variations_of_its_model() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let one = Settings { num_epochs: 1, ..varied() };
    let run = train(&one, &Start::Fresh, directory.path(), 2);
    let (stream, tokenizer) = data(one.split);
    let refused = |settings: Settings, start: &Start| {
        let trainer =
            Trainer::on(&CPU, Box::new(SingleProcess), settings, stream.clone(), tokenizer.clone(), start);
        trainer.err().expect("refused").to_string()
    };
    let resume = Start::Resume { run: run.clone(), skip_damaged: false };
    let edited = |activation| Settings { activation, num_epochs: 2, ..varied() };
    let message = refused(edited(Activation::GeluNew), &resume);
    assert!(
        message.contains(r#"saved with activation = "gelu", but hyperparameters.json now says "gelu_new""#),
        "{message}"
    );
    let message = refused(edited(Activation::GeluNew), &after(&run, 1));
    assert!(message.contains("has `activation` gelu, but this run has gelu_new; use gelu"), "{message}");
    let message = refused(Settings { tie_word_embeddings: true, ..varied() }, &after(&run, 1));
    assert!(message.contains("has `tie_word_embeddings` false, but this run has true"), "{message}");
}
