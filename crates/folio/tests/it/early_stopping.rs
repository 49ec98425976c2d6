//! Evaluations inside epochs, and stopping when they no longer improve.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use folio::checkpoint::CheckpointName;
use folio::data::{BatchBuffer, Dataset, Part, TokenStream};
use folio::distributed::SingleProcess;
use folio::evaluate::{EvaluationBatches, mean_batch_loss};
use folio::model::CpuBackend;
use folio::rng::{Rng, Stream};
use folio::run_dir::{Pick, RunDir, RunState, find};
use folio::settings::{Keep, Settings};
use folio::tokenizer::Tokenizer;
use folio::train::{Event, Outcome, Requests, Start, Trainer};

use crate::ranks;
use crate::support::CPU;

/// A run that soon overfits its few random letters, and is evaluated twice per epoch of four steps.
fn settings() -> Settings {
    Settings {
        n_emb: 16,
        n_heads: 2,
        n_blocks: 1,
        block_size: 8,
        batch_size: 10,
        dropout: 0.0,
        learning_rate: 1e-2,
        num_epochs: 30,
        eval_every: Some(2),
        patience: Some(5),
        save_checkpoint: true,
        keep: Keep::All,
        ..Settings::default()
    }
}

fn data(settings: &Settings) -> (Arc<TokenStream>, Arc<Tokenizer>) {
    let mut rng = Rng::new(3, Stream::Sampling);
    let text: String = (0..50 * 8 + 1).map(|_| char::from(b'a' + rng.below(20) as u8)).collect();
    let tokenizer = Tokenizer::chars(&text);
    let stream = TokenStream::encode(&text, &tokenizer, settings.text_split()).expect("its own characters");
    (Arc::new(stream), Arc::new(tokenizer))
}

/// Trains, and stops after the first event for which `stops` returns true.
fn train(
    settings: &Settings,
    start: &Start,
    directory: &Path,
    mut stops: impl FnMut(&Event) -> bool,
) -> (RunDir, Outcome, Vec<Event>) {
    let run = RunDir::new(directory);
    let (stream, tokenizer) = data(settings);
    let mut trainer = Trainer::new(settings.clone(), stream, tokenizer, start).expect("valid settings");
    let (requests, mut events) = (Requests::default(), Vec::new());
    let stop = Arc::clone(&requests.stop);
    let outcome = trainer.run(Some(&run), &requests, &mut |event| {
        if stops(event) {
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        }
        events.push(event.clone());
    });
    (run, outcome.expect("it trains"), events)
}

/// The steps and losses of all evaluations.
fn evaluations(run: &RunDir) -> Vec<(u64, f64)> {
    run.history().expect("readable").expect("saved").all_evaluations()
}

/// The evaluation loss of a checkpoint's model, as training computes it.
fn loss_of(run: &RunDir, name: CheckpointName) -> f64 {
    let checkpoint = run.open_checkpoint(name).expect("saved");
    let settings = run.settings().expect("saved");
    let config = checkpoint.state().identity.model;
    let parameters = checkpoint.parameters().expect("saved");
    let mut model = CpuBackend::from_parameters(config, settings.precision, parameters);
    let dataset = Dataset::new(data(&settings).0, settings.block_size, settings.seed).expect("long enough");
    let blocks = dataset.blocks(Part::Eval);
    let batches =
        EvaluationBatches { dataset: &dataset, blocks, batch_size: settings.batch_size, micro_batches: 1 };
    let mut buffer = BatchBuffer::default();
    mean_batch_loss(&mut model, &SingleProcess, batches, &mut buffer, || true).expect("not stopped")
}

fn lowest(evaluations: &[(u64, f64)]) -> (u64, f64) {
    *evaluations.iter().min_by(|one, other| one.1.total_cmp(&other.1)).expect("evaluated")
}

#[test]
fn a_run_stops_when_the_loss_no_longer_improves_and_its_best_moment_is_kept() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (run, outcome, events) = train(&settings(), &Start::Fresh, &directory.path().join("run"), |_| false);
    assert_eq!(outcome, Outcome::Finished);
    let all = evaluations(&run);
    let steps: Vec<u64> = all.iter().map(|(step, _)| *step).collect();
    let every_other: Vec<u64> = (1..=all.len() as u64).map(|index| 2 * index).collect();
    assert_eq!(steps, every_other, "steps 4, 8 … are the ends of epochs, and evaluated once");
    let (best_step, best_loss) = lowest(&all);
    let after = all.iter().filter(|(step, _)| *step > best_step).count();
    assert_eq!(after, 5, "{all:?}");
    assert!(best_step > 2 && best_step % 4 == 2, "the test needs a best moment inside an epoch: {all:?}");
    let last = events.last().expect("events");
    let Event::StoppedEarly { evaluations, best_loss: loss, best_step: step, .. } = *last else {
        panic!("{last:?}")
    };
    assert_eq!((evaluations, loss, step), (5, best_loss, best_step));
    assert_eq!(run.status().expect("written").state, RunState::Finished);

    // `best` is that moment everywhere.
    let name = CheckpointName::Step(best_step);
    assert_eq!(fs::read_link(run.path().join("best")).expect("a link"), Path::new(&name.to_string()));
    let found = find(Some(run.path())).expect("saved");
    assert_eq!((found.checkpoint.name, found.checkpoint.eval_loss), (name, Some(best_loss)));
    assert_eq!(run.best().expect("saved"), (run.clone(), name));
    assert_eq!(loss_of(&run, name), best_loss);
    let (newest, _) = run.newest(false).expect("sound");
    let newest = newest.expect("saved").directory().to_path_buf();
    let listed = run.saved().expect("readable");
    assert_eq!(listed[Pick::Latest.index(&listed).expect("saved")].path, newest);
    // Only two checkpoints inside epochs remain at most: the best and the newest.
    let inside = run.checkpoints().expect("readable").into_iter();
    let inside: Vec<_> = inside.filter(|name| matches!(name, CheckpointName::Step(_))).collect();
    assert!(inside.contains(&name) && inside.len() <= 2, "{inside:?}");
}

#[test]
fn evaluations_inside_epochs_do_not_change_what_is_learned() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let place = |name: &str| directory.path().join(name);
    let short = Settings { num_epochs: 2, patience: None, dropout: 0.2, ..settings() };
    let (often, ..) = train(&short, &Start::Fresh, &place("often"), |_| false);
    let rarely = Settings { eval_every: None, ..short };
    let (rarely, ..) = train(&rarely, &Start::Fresh, &place("rarely"), |_| false);
    let model = |run: &RunDir| fs::read(run.path().join("checkpoint_2/model.safetensors")).expect("saved");
    assert_eq!(model(&often), model(&rarely));
    let epochs = |run: &RunDir| run.history().expect("readable").expect("saved").epochs;
    assert_eq!(epochs(&often), epochs(&rarely));
}

/// All that a run has saved of its state.
fn saved(run: &RunDir) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for name in run.checkpoints().expect("readable") {
        for inside in ["model.safetensors", "optimizer.safetensors", "state.json"] {
            let path = run.checkpoint(name).join(inside);
            files.push((format!("{name}/{inside}"), fs::read(path).expect("saved")));
        }
    }
    files.push(("losses.json".to_owned(), fs::read(run.path().join("losses.json")).expect("saved")));
    files
}

#[track_caller]
fn check_same(got: &RunDir, want: &RunDir, context: &str) {
    let (got, want) = (saved(got), saved(want));
    let names = |files: &[(String, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&got), names(&want), "{context}");
    for ((name, got), (_, want)) in got.iter().zip(&want) {
        assert!(got == want, "{name} differs: {context}");
    }
}

#[test]
fn patience_is_part_of_the_state() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let place = |name: &str| directory.path().join(name);
    let averaged = Settings { dropout: 0.2, ema_decay: 0.8, ..settings() };
    for (index, settings) in [settings(), averaged].into_iter().enumerate() {
        let (whole, ..) = train(&settings, &Start::Fresh, &place(&format!("whole_{index}")), |_| false);
        for what in ["steps", "evaluations"] {
            let path = place(&format!("{what}_{index}"));
            let run = train_in_pieces(&settings, Start::Fresh, &path, what);
            check_same(&run, &whole, &format!("{what}, run {index}"));
        }
    }
}

/// Trains and resumes until it is finished: stopped after every step, or in every other evaluation.
fn train_in_pieces(settings: &Settings, start: Start, path: &Path, what: &str) -> RunDir {
    let (mut settings, mut start, mut rounds) = (settings.clone(), start, 0);
    loop {
        let mut is_first = true;
        let (run, outcome, _) = train(&settings, &start, path, |event| match event {
            Event::Step(_) => what == "steps",
            Event::Evaluating => what == "evaluations" && std::mem::take(&mut is_first) && rounds % 2 == 0,
            _ => false,
        });
        settings = run.settings().expect("saved");
        start = Start::Resume { run: run.clone(), skip_damaged: false };
        rounds += 1;
        assert!(rounds < 200, "it ends");
        if outcome == Outcome::Finished {
            return run;
        }
    }
}

/// Where to cut a run of [`settings`] inside an epoch, so that its last evaluations are without improvement.
fn cut_when_patience_is_over(directory: &Path) -> u64 {
    let (run, ..) = train(&settings(), &Start::Fresh, &directory.join("first"), |_| false);
    let (last, _) = *evaluations(&run).last().expect("evaluated");
    // An epoch has four steps, and every second is evaluated.
    if last % 4 == 0 { last + 2 } else { last }
}

#[test]
fn a_run_that_completes_a_cut_epoch_of_another_counts_its_own_evaluations() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let place = |name: &str| directory.path().join(name);
    let cut = cut_when_patience_is_over(directory.path());
    let parent = Settings { patience: None, max_steps: Some(cut), ..settings() };
    let (parent, ..) = train(&parent, &Start::Fresh, &place("parent"), |_| false);
    let number = parent.epochs().expect("readable").pop().expect("an epoch");
    let start = Start::Checkpoint { run: parent, number, restart_schedule: false };
    let (whole, _, events) = train(&settings(), &start, &place("whole"), |_| false);
    let own: Vec<_> = evaluations(&whole).into_iter().filter(|(step, _)| *step > cut).collect();
    let (best, _) = lowest(&own);
    assert_eq!(own.iter().filter(|(step, _)| *step > best).count(), 5, "{own:?}");
    assert!(
        matches!(events.last(), Some(Event::StoppedEarly { evaluations: 5, best_step, .. }) if *best_step == best),
        "{events:?}"
    );
    for what in ["steps", "evaluations"] {
        let run = train_in_pieces(&settings(), start.clone(), &place(what), what);
        if what == "steps" {
            check_same(&run, &whole, what);
        }
        // Stopped in the evaluation at the cut, a run also saves the model that it begins with.
        assert_eq!(evaluations(&run), evaluations(&whole), "{what}");
    }
}

#[test]
fn a_run_that_completes_its_own_cut_epoch_resumes_from_the_newest_step() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let place = |name: &str| directory.path().join(name);
    // Cut at step 6, inside the second epoch; stopped after step 7.
    let (run, ..) =
        train(&Settings { max_steps: Some(6), ..settings() }, &Start::Fresh, &place("run"), |_| false);
    let resume = Start::Resume { run: run.clone(), skip_damaged: false };
    train(&settings(), &resume, run.path(), |event| matches!(event, Event::Step(_)));
    let [one, two, step] = [CheckpointName::Epoch(1), CheckpointName::Epoch(2), CheckpointName::Step(7)];
    let by_age = run.by_age().expect("readable");
    assert_eq!(by_age.last(), Some(&step), "{by_age:?}");
    let position = |name| by_age.iter().position(|other| *other == name);
    assert!(position(one) < position(two) && position(two).is_some(), "{by_age:?}");
    let (newest, _) = run.newest(false).expect("sound");
    assert_eq!(newest.expect("saved").directory(), run.checkpoint(step));

    // The best moment inside the epoch survives, and so on to the end.
    let (whole, ..) = train(&settings(), &Start::Fresh, &place("whole"), |_| false);
    train_in_pieces(&settings(), resume, run.path(), "steps");
    assert_eq!(evaluations(&run), evaluations(&whole));
    assert_eq!(fs::read_link(run.path().join("best")).ok(), fs::read_link(whole.path().join("best")).ok());
}

#[test]
fn a_run_that_has_stopped_early_goes_on_with_more_patience() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let place = |name: &str| directory.path().join(name);
    let patient = Settings { patience: Some(8), ..settings() };
    let (whole, ..) = train(&patient, &Start::Fresh, &place("whole"), |_| false);
    let (run, ..) = train(&settings(), &Start::Fresh, &place("run"), |_| false);
    let before = saved(&run);
    let resume = Start::Resume { run: run.clone(), skip_damaged: false };
    let (_, outcome, events) = train(&settings(), &resume, run.path(), |_| false);
    assert_eq!(outcome, Outcome::Finished);
    assert!(!events.iter().any(|event| matches!(event, Event::Step(_))), "{events:?}");
    assert!(matches!(events.last(), Some(Event::StoppedEarly { .. })), "{events:?}");
    assert_eq!(saved(&run), before);
    train(&patient, &resume, run.path(), |_| false);
    assert_eq!(evaluations(&run), evaluations(&whole));
}

#[test]
fn a_continued_run_counts_its_own_evaluations() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let place = |name: &str| directory.path().join(name);
    let (first, ..) = train(&settings(), &Start::Fresh, &place("first"), |_| false);
    let number = first.epochs().expect("readable").pop().expect("an epoch");
    let start = Start::Checkpoint { run: first.clone(), number, restart_schedule: false };
    let (more, _, events) = train(&settings(), &start, &place("more"), |_| false);
    let began = first.open_checkpoint(CheckpointName::Epoch(number)).expect("saved").state().global_step;
    let own: Vec<_> = evaluations(&more).into_iter().filter(|(step, _)| *step > began).collect();
    // Its own best is worse than that of the run before, which overfitted since.
    let (best, loss) = lowest(&own);
    assert!(loss > lowest(&evaluations(&first)).1, "the test needs a run that overfits");
    assert_eq!(own.iter().filter(|(step, _)| *step > best).count(), 5, "{own:?}");
    assert!(
        matches!(events.last(), Some(Event::StoppedEarly { evaluations: 5, best_step, .. }) if *best_step == best),
        "{events:?}"
    );
    let name = if best % 4 == 0 { CheckpointName::Epoch(best / 4) } else { CheckpointName::Step(best) };
    assert_eq!(fs::read_link(more.path().join("best")).expect("a link"), Path::new(&name.to_string()));
}

#[test]
fn ranks_stop_together_and_with_the_same_bits() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let place = |ranks: usize| directory.path().join(format!("{ranks}"));
    for ranks in [1, 2] {
        let settings = Settings {
            batch_size: 13,
            gradient_accumulation_steps: 2 / ranks,
            learning_rate: 3e-2,
            eval_every: Some(3),
            patience: Some(2),
            ..settings()
        };
        let outcomes = ranks::train(CPU, ranks, &place(ranks), &Start::Fresh, &settings, |_, _, _| {});
        assert_eq!(outcomes.len(), ranks);
        for outcome in outcomes {
            assert_eq!(outcome.expect("it trains"), Outcome::Finished);
        }
    }
    let [one, two] = [1, 2].map(|ranks| RunDir::new(place(ranks)));
    let steps = evaluations(&one).last().expect("evaluated").0;
    assert!(steps < 30 * 4, "it stopped early: {steps}");
    check_same(&two, &one, "two ranks");
}
