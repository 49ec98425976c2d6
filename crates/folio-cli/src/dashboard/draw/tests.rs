use std::path::PathBuf;

use folio::history::EpochReport;
use folio::model::Precision;
use folio::text::Bits;
use folio::train::{Event, StepReport};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::super::Update;
use super::*;

/// The size of a terminal.
#[derive(Clone, Copy)]
struct Size {
    columns: u16,
    rows: u16,
}

const fn size(columns: u16, rows: u16) -> Size {
    Size { columns, rows }
}

/// A frame as text, one line per row.
fn frame(state: &State, Size { columns, rows }: Size, view: View) -> String {
    let mut terminal = Terminal::new(TestBackend::new(columns, rows)).expect("a terminal in memory");
    terminal.draw(|frame| draw(frame, state, view)).expect("a terminal in memory");
    terminal.backend().to_string()
}

fn view(now: Instant) -> View {
    View { now, stopping: false, color: true }
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
        raw_eval_loss: None,
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

/// A run of 200 steps in 4 epochs, one second per step, after 110 steps. Returns the current time too.
fn half_trained(run: usize, table: Option<&str>) -> (State, Instant) {
    let start = Instant::now();
    let mut state = State::new("runs/mine".to_owned(), true, start);
    if let Some(table) = table {
        state.apply(Update::Table(table.to_owned()), start);
    }
    let mut now = start;
    let mut send = |event: Event, now: Instant| state.apply(Update::Event { run, event }, now);
    let precision = Precision::Bf16;
    send(
        Event::Started {
            epoch: 0,
            step: 0,
            steps: 200,
            parameters: 1_234_567,
            trained: 1_234_567,
            precision,
            evaluated: 0,
        },
        now,
    );
    for number in 1..=110 {
        if number % 50 == 1 {
            send(Event::EpochStarted { epoch: 1 + number / 50, last_epoch: 4, steps: 50, taken: 0 }, now);
        }
        now += Duration::from_secs(1);
        let loss = if number == 70 { f32::NAN } else { 4.0 - number as f32 / 55.0 };
        send(step(number, loss), now);
        if number % 50 == 0 {
            send(Event::Evaluating, now);
            let eval_loss = if number == 50 { 2.5 } else { 2.625 };
            send(epoch_ended(number / 50, number, eval_loss, "ROMEO:\n\tWhat\u{1b}[2J light?"), now);
            send(Event::Saving, now);
            let checkpoint = PathBuf::from(format!("runs/mine/checkpoint_{}", number / 50));
            send(Event::Saved { checkpoint, requested: false }, now);
        }
    }
    (state, now)
}

#[track_caller]
fn check_shows(frame: &str, parts: &[&str]) {
    for part in parts {
        assert!(frame.contains(part), "'{part}' is not in\n{frame}");
    }
}

/// Parts of every frame of [`half_trained`] with at least ten rows.
const ALWAYS: [&str; 5] =
    ["epoch 3/4 · step 110/200", "loss 2.0000", "best eval loss 2.5000 at epoch 1", "runs/mine", "q: save"];

#[test]
fn a_small_terminal_shows_the_numbers_and_a_chart() {
    let (state, now) = half_trained(0, None);
    let frame = frame(&state, size(40, 10), view(now));
    check_shows(&frame, &ALWAYS);
    check_shows(&frame, &["loss  ── train", "1:30 left", "warning: skipped step 70"]);
}

#[test]
fn larger_terminals_show_everything() {
    let (state, now) = half_trained(0, None);
    for (size, color) in
        [(size(80, 24), true), (size(80, 24), false), (size(200, 60), true), (size(60, 40), true)]
    {
        let frame = frame(&state, size, View { color, ..view(now + Duration::from_secs(5)) });
        check_shows(&frame, &ALWAYS);
        let more = [
            "learning rate",
            "1,234,567 parameters in bf16",
            "1,000 tokens/s",
            "warning: skipped step 70: loss NaN",
            "saved checkpoint_2 15 seconds ago",
            "newest sample",
            "ROMEO:",
            "3.98",
            "2.00",
        ];
        check_shows(&frame, &more);
        assert!(frame.contains("What [2J light?"), "control characters are replaced:\n{frame}");
    }
}

#[test]
fn a_sweep_shows_its_table_and_the_run_that_trains() {
    let table = "rank  run    state    best eval loss\n   1  run_2  running          2.5000\n   2  run_1  finished         3.0000";
    let (mut state, now) = half_trained(1, Some(table));
    for size in [size(40, 10), size(80, 24), size(200, 60)] {
        let frame = frame(&state, size, view(now));
        check_shows(&frame, &["epoch 3/4 · step 110/200", "run_2", "   1  run_2  running", "finished"]);
    }
    // The run that started last is shown until it ends.
    let precision = Precision::F32;
    let event =
        Event::Started { epoch: 0, step: 0, steps: 9, parameters: 5, trained: 5, precision, evaluated: 0 };
    state.apply(Update::Event { run: 2, event }, now);
    check_shows(&frame(&state, size(80, 24), view(now)), &["run_3 · 5 parameters in f32"]);
    state.apply(Update::Ended { run: 2 }, now);
    check_shows(&frame(&state, size(80, 24), view(now)), &["run_2 · 1,234,567 parameters"]);
}

#[test]
fn a_line_drops_parts_that_do_not_fit() {
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
fn the_last_line_explains_the_keys() {
    let (mut state, now) = half_trained(0, None);
    let last_line =
        |state: &State, stopping: bool| frame(state, size(80, 24), View { stopping, ..view(now) });
    check_shows(&last_line(&state, false), &["q: save and quit   s: save now"]);
    check_shows(&last_line(&state, true), &["stopping after this step; q: quit now without saving"]);
    state.saves = false;
    check_shows(&last_line(&state, false), &["q: quit (--no_save: nothing is saved)"]);
}

#[test]
fn a_resumed_run_shows_its_best_epoch_so_far() {
    let now = Instant::now();
    let mut state = State::new("runs/mine".to_owned(), true, now);
    check_shows(&frame(&state, size(80, 24), view(now)), &["starting", "no epoch finished yet"]);
    state.apply(
        Update::History { run: 0, evaluations: vec![(1, 50, 2.0), (2, 100, 1.5), (3, 150, 1.75)] },
        now,
    );
    let precision = Precision::F32;
    let event =
        Event::Started { epoch: 3, step: 150, steps: 50, parameters: 5, trained: 5, precision, evaluated: 0 };
    state.apply(Update::Event { run: 0, event }, now);
    let event = Event::EpochStarted { epoch: 4, last_epoch: 4, steps: 50, taken: 0 };
    state.apply(Update::Event { run: 0, event }, now);
    state.apply(Update::Event { run: 0, event: step(151, 1.25) }, now + Duration::from_secs(2));
    let frame = frame(&state, size(80, 24), view(now + Duration::from_secs(2)));
    check_shows(
        &frame,
        &["best eval loss 1.5000 at epoch 2 · step 100", "epoch 4/4 · step 151/200", "1:38 left"],
    );
}

#[test]
fn no_color_means_no_color() {
    let (state, now) = half_trained(0, None);
    let colors = |color: bool| {
        let mut terminal = Terminal::new(TestBackend::new(100, 40)).expect("a terminal in memory");
        terminal
            .draw(|frame| draw(frame, &state, View { color, ..view(now) }))
            .expect("a terminal in memory");
        let cells = terminal.backend().buffer().content().iter();
        cells.filter(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset).count()
    };
    assert!(colors(true) > 0);
    assert_eq!(colors(false), 0);
}

#[test]
fn every_size_can_be_drawn() {
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
                frame(state, size(columns, rows), view(now));
            }
        }
    }
    // The terminal is resized between frames.
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).expect("a terminal in memory");
    for (columns, rows) in [(200, 60), (1, 1), (80, 24), (40, 10)] {
        terminal.backend_mut().resize(columns, rows);
        terminal.draw(|frame| draw(frame, &states[1], view(now))).expect("a terminal in memory");
        assert_eq!(terminal.backend().buffer().area.as_size(), (columns, rows).into());
    }
}
