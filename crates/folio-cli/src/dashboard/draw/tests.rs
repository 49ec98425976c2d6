use std::path::PathBuf;

use folio::history::EpochReport;
use folio::model::Precision;
use folio::text::Bits;
use folio::train::{Event, StepReport};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::super::Told;
use super::*;

/// What the terminal shows, a line a row.
fn picture(state: &State, (columns, rows): (u16, u16), look: Look) -> String {
    let mut terminal = Terminal::new(TestBackend::new(columns, rows)).expect("a terminal in memory");
    terminal.draw(|frame| draw(frame, state, look)).expect("memory takes anything");
    terminal.backend().to_string()
}

fn look(now: Instant) -> Look {
    Look { now, stopping: false, color: true }
}

fn step(step: u64, loss: f32) -> Event {
    Event::Step(StepReport {
        epoch: 1 + (step - 1) / 50,
        step,
        tokens: 1000,
        loss,
        gradient_norm: 0.5,
        learning_rate: 1e-3,
        skipped: !loss.is_finite(),
    })
}

fn epoch_ended(epoch: u64, step: u64, eval_loss: f64, sample: &str) -> Event {
    let bits = Bits { per_character: 1.0, per_byte: 1.0 };
    let report = EpochReport {
        train_loss: 2.0,
        eval_loss,
        train_bits: bits,
        eval_bits: bits,
        learning_rate: 1e-3,
        gradient_norm: 0.5,
        clipped_steps: 0,
        skipped_steps: 0,
        step,
    };
    Event::EpochEnded { epoch, last_epoch: 4, report, sample: Some(sample.to_owned()) }
}

/// A run of 200 steps in 4 epochs, a second a step, that is 110 steps on. Returns the time too.
fn half_trained(run: usize, table: Option<&str>) -> (State, Instant) {
    let begun = Instant::now();
    let mut state = State::new("runs/mine".to_owned(), true, begun);
    if let Some(table) = table {
        state.take(Told::Table(table.to_owned()), begun);
    }
    let mut now = begun;
    let mut tell = |event: Event, now: Instant| state.take(Told::Event { run, event }, now);
    let precision = Precision::Bf16;
    tell(Event::Started { epoch: 0, step: 0, steps: 200, parameters: 1_234_567, precision }, now);
    for number in 1..=110 {
        if number % 50 == 1 {
            tell(Event::EpochStarted { epoch: 1 + number / 50, last_epoch: 4, steps: 50, taken: 0 }, now);
        }
        now += Duration::from_secs(1);
        let loss = if number == 70 { f32::NAN } else { 4.0 - number as f32 / 55.0 };
        tell(step(number, loss), now);
        if number % 50 == 0 {
            tell(Event::Evaluating, now);
            let eval_loss = if number == 50 { 2.5 } else { 2.625 };
            tell(epoch_ended(number / 50, number, eval_loss, "ROMEO:\n\tWhat\u{1b}[2J light?"), now);
            tell(Event::Saving, now);
            let checkpoint = PathBuf::from(format!("runs/mine/checkpoint_{}", number / 50));
            tell(Event::Saved { checkpoint, asked: false }, now);
        }
    }
    (state, now)
}

/// Checks that a picture shows all of these.
#[track_caller]
fn check_shows(picture: &str, parts: &[&str]) {
    for part in parts {
        assert!(picture.contains(part), "'{part}' is not in\n{picture}");
    }
}

/// What any picture of [`half_trained`] shows that has ten rows.
const ALWAYS: [&str; 5] =
    ["epoch 3/4 · step 110/200", "loss 2.0000", "best eval loss 2.5000 at epoch 1", "runs/mine", "q save"];

#[test]
fn a_small_terminal_has_the_numbers_and_a_chart() {
    let (state, now) = half_trained(0, None);
    let picture = picture(&state, (40, 10), look(now));
    check_shows(&picture, &ALWAYS);
    check_shows(&picture, &["loss  ── train", "1:30 left", "warning: step 70 is skipped"]);
}

#[test]
fn a_usual_terminal_has_everything() {
    let (state, now) = half_trained(0, None);
    for (size, color) in [((80, 24), true), ((80, 24), false), ((200, 60), true), ((60, 40), true)] {
        let picture = picture(&state, size, Look { color, ..look(now + Duration::from_secs(5)) });
        check_shows(&picture, &ALWAYS);
        let more = [
            "learning rate",
            "1,234,567 parameters in bf16",
            "1,000 tokens/s",
            "warning: step 70 is skipped: loss NaN",
            "saved checkpoint_2 15 seconds ago",
            "newest sample",
            "ROMEO:",
            "3.98",
            "2.00",
        ];
        check_shows(&picture, &more);
        assert!(picture.contains("What [2J light?"), "the sample commands nothing:\n{picture}");
    }
}

#[test]
fn a_sweep_has_its_table_and_the_run_that_trains() {
    let table = "rank  run    state    best eval loss\n   1  run_2  running          2.5000\n   2  run_1  finished         3.0000";
    let (mut state, now) = half_trained(1, Some(table));
    for size in [(40, 10), (80, 24), (200, 60)] {
        let picture = picture(&state, size, look(now));
        check_shows(&picture, &["epoch 3/4 · step 110/200", "run_2", "   1  run_2  running", "finished"]);
    }
    // The one that has begun last is shown until it ends.
    let precision = Precision::F32;
    let event = Event::Started { epoch: 0, step: 0, steps: 9, parameters: 5, precision };
    state.take(Told::Event { run: 2, event }, now);
    check_shows(&picture(&state, (80, 24), look(now)), &["run_3 · 5 parameters in f32"]);
    state.take(Told::Ended { run: 2 }, now);
    check_shows(&picture(&state, (80, 24), look(now)), &["run_2 · 1,234,567 parameters"]);
}

#[test]
fn a_line_leaves_out_what_has_no_room() {
    let parts = ["epoch 3/4", "step 110/200", "1:30 left", "saving"].map(str::to_owned);
    for (columns, expected) in [
        (45, "epoch 3/4 · step 110/200 · 1:30 left · saving"),
        (44, "epoch 3/4  step 110/200  1:30 left  saving"),
        (41, "epoch 3/4 · step 110/200 · 1:30 left"),
        (35, "epoch 3/4  step 110/200  1:30 left"),
        (3, "epoch 3/4"),
    ] {
        assert_eq!(fitting(&parts, columns), expected, "{columns} columns");
    }
    assert_eq!(fitting(&[], 10), "");
}

#[test]
fn the_last_line_says_what_keys_do_now() {
    let (mut state, now) = half_trained(0, None);
    let last_line = |state: &State, stopping: bool| picture(state, (80, 24), Look { stopping, ..look(now) });
    check_shows(&last_line(&state, false), &["q save and stop   s save"]);
    check_shows(&last_line(&state, true), &["q leave now   stopping after this step"]);
    state.saves = false;
    check_shows(&last_line(&state, false), &["q stop (--no_save: nothing is saved)"]);
}

#[test]
fn a_run_that_goes_on_shows_where_it_was_best() {
    let now = Instant::now();
    let mut state = State::new("runs/mine".to_owned(), true, now);
    check_shows(&picture(&state, (80, 24), look(now)), &["starting", "no epoch has ended yet"]);
    state.take(Told::History { run: 0, epochs: vec![(50, 2.0), (100, 1.5), (150, 1.75)] }, now);
    let precision = Precision::F32;
    let event = Event::Started { epoch: 3, step: 150, steps: 50, parameters: 5, precision };
    state.take(Told::Event { run: 0, event }, now);
    let event = Event::EpochStarted { epoch: 4, last_epoch: 4, steps: 50, taken: 0 };
    state.take(Told::Event { run: 0, event }, now);
    state.take(Told::Event { run: 0, event: step(151, 1.25) }, now + Duration::from_secs(2));
    let picture = picture(&state, (80, 24), look(now + Duration::from_secs(2)));
    check_shows(
        &picture,
        &["best eval loss 1.5000 at epoch 2 · step 100", "epoch 4/4 · step 151/200", "1:38 left"],
    );
}

#[test]
fn without_colours_there_are_none() {
    let (state, now) = half_trained(0, None);
    let colours = |color: bool| {
        let mut terminal = Terminal::new(TestBackend::new(100, 40)).expect("a terminal in memory");
        terminal.draw(|frame| draw(frame, &state, Look { color, ..look(now) })).expect("memory");
        let cells = terminal.backend().buffer().content().iter();
        cells.filter(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset).count()
    };
    assert!(colours(true) > 0);
    assert_eq!(colours(false), 0);
}

#[test]
fn no_size_is_too_small_or_too_large() {
    let now = Instant::now();
    let states = [
        State::new(String::new(), false, now),
        half_trained(0, None).0,
        half_trained(1, Some("rank run\n1 run_1\n2 run_2")).0,
    ];
    let sides = (1..=30).chain([39, 40, 41, 75, 76, 77, 120, 300]);
    for columns in sides.clone() {
        for rows in sides.clone() {
            for state in &states {
                picture(state, (columns, rows), look(now));
            }
        }
    }
    // A terminal that is resized while it is drawn on.
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).expect("a terminal in memory");
    for (columns, rows) in [(200, 60), (1, 1), (80, 24), (40, 10)] {
        terminal.backend_mut().resize(columns, rows);
        terminal.draw(|frame| draw(frame, &states[1], look(now))).expect("memory takes anything");
        assert_eq!(terminal.backend().buffer().area.as_size(), (columns, rows).into());
    }
}
