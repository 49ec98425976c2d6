//! `folio train --tui`: a full-screen view of a run or a sweep.
//!
//! A separate thread draws and reads keys, so that a slow terminal never delays a training step. Training only puts events
//! on a queue.

use std::process;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context;
use folio::train::{Event, Requests};
use ratatui::crossterm::event::{self, Event as Input, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use crate::screen::{self, Screen};
use crate::terminal;

mod curve;
mod draw;
mod state;

use draw::{View, draw};
use state::State;

/// Shortest time between two frames.
const FRAME: Duration = Duration::from_millis(100);
/// Longest time between two frames: the times on the screen must not become outdated.
const STALE: Duration = Duration::from_secs(1);

/// The dashboard. It closes when dropped.
pub(crate) struct Dashboard {
    /// `None` while it closes.
    queue: Option<Sender<TimedUpdate>>,
    thread: Option<JoinHandle<()>>,
}

/// News for the dashboard. Runs are numbered from 0.
#[derive(Clone, Debug)]
pub(crate) enum Update {
    /// The evaluations of a resumed run so far, in order: epoch, step and loss.
    History { run: usize, evaluations: Vec<(u64, u64, f64)> },
    /// An event of a run.
    Event { run: usize, event: Event },
    /// A run of a sweep has ended.
    Ended { run: usize },
    /// The table of a sweep's runs, ranked, one line per run.
    Table(String),
}

/// An update and when it was sent.
struct TimedUpdate {
    at: Instant,
    update: Update,
}

/// What a key does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyAction {
    Stop,
    Save,
}

impl Dashboard {
    /// Opens the dashboard. Keys set `requests`; `saves` is false with `--no_save`.
    ///
    /// # Errors
    /// If the terminal cannot be switched to full screen.
    pub(crate) fn open(title: String, saves: bool, requests: Requests) -> anyhow::Result<Self> {
        let screen = screen::open().context("--tui: cannot draw on this terminal")?;
        let (queue, updates) = channel();
        let color = terminal::use_color();
        let state = State::new(title, saves, Instant::now());
        let work = move || watch(screen, &updates, state, &requests, color);
        let thread = thread::Builder::new().name("dashboard".to_owned()).spawn(work);
        let thread = thread.inspect_err(|_| screen::close()).context("starting the dashboard")?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    pub(crate) fn send(&self, update: Update) {
        if let Some(queue) = &self.queue {
            // This fails if the thread ended because the terminal is gone. Training continues.
            let _ = queue.send(TimedUpdate { at: Instant::now(), update });
        }
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        self.queue = None;
        // If the thread panicked, its message has been printed.
        let _ = self.thread.take().map(JoinHandle::join);
        screen::close();
    }
}

/// Draws updates and reads keys until the queue closes or the terminal is gone.
fn watch(
    mut screen: Screen,
    updates: &Receiver<TimedUpdate>,
    mut state: State,
    requests: &Requests,
    color: bool,
) {
    let (mut changed, mut drawn_at) = (true, Instant::now());
    let mut reads_keys = true;
    loop {
        loop {
            match updates.try_recv() {
                Ok(TimedUpdate { at, update }) => {
                    state.apply(update, at);
                    changed = true;
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return,
            }
        }
        if changed || drawn_at.elapsed() >= STALE {
            let view = View { now: Instant::now(), stopping: requests.stop_requested(), color };
            let drawn = screen::with_drawing(|| screen.draw(|frame| draw(frame, &state, view)).is_ok());
            match drawn {
                Some(true) => {}
                // The terminal is gone or was restored: from now on lines are printed.
                Some(false) => return screen::close(),
                None => return,
            }
            (changed, drawn_at) = (false, Instant::now());
        }
        changed |= wait(&mut reads_keys, |action| {
            if !run_action(action, requests) {
                screen::close();
                // The same as a second Ctrl-C without the dashboard. No file is ever half-written.
                process::exit(130);
            }
        });
    }
}

/// Handles keys until the next frame is due. Returns whether there was any input.
fn wait(reads_keys: &mut bool, mut on_action: impl FnMut(KeyAction)) -> bool {
    let deadline = Instant::now() + FRAME;
    let mut seen = false;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if !*reads_keys {
            thread::sleep(left);
            return seen;
        }
        match event::poll(left) {
            Ok(false) => return seen,
            Ok(true) => match event::read() {
                Ok(input) => {
                    seen = true;
                    if let Input::Key(key) = input
                        && let Some(action) = key_action(key)
                    {
                        on_action(action);
                    }
                }
                Err(_) => *reads_keys = false,
            },
            // Signals still work without a keyboard.
            Err(_) => *reads_keys = false,
        }
    }
}

fn key_action(key: KeyEvent) -> Option<KeyAction> {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        _ if key.kind == KeyEventKind::Release => None,
        KeyCode::Char('c' | 'C') if control => Some(KeyAction::Stop),
        KeyCode::Char('q' | 'Q') if !control => Some(KeyAction::Stop),
        KeyCode::Char('s' | 'S') if !control => Some(KeyAction::Save),
        _ => None,
    }
}

/// Passes an action to the run. Returns false on the second request to stop, which ends the program at once.
fn run_action(action: KeyAction, requests: &Requests) -> bool {
    match action {
        KeyAction::Stop => !requests.stop.swap(true, Ordering::Relaxed),
        KeyAction::Save => {
            requests.save.store(true, Ordering::Relaxed);
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_do_what_the_last_line_says() {
        let plain = |c| KeyEvent::new(KeyCode::Char(c), KeyModifiers::NONE);
        let control = |c| KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL);
        for (key, want) in [
            (plain('q'), Some(KeyAction::Stop)),
            (control('c'), Some(KeyAction::Stop)),
            (plain('s'), Some(KeyAction::Save)),
            (plain('c'), None),
            (control('s'), None),
            (control('q'), None),
            (KeyEvent::new(KeyCode::Esc, KeyModifiers::NONE), None),
            (KeyEvent { kind: KeyEventKind::Release, ..plain('q') }, None),
        ] {
            assert_eq!(key_action(key), want, "{key:?}");
        }
    }

    #[test]
    fn a_second_request_to_stop_ends_the_program() {
        let requests = Requests::default();
        assert!(run_action(KeyAction::Save, &requests));
        assert!(requests.save.load(Ordering::Relaxed) && !requests.stop_requested());
        assert!(run_action(KeyAction::Stop, &requests));
        assert!(requests.stop_requested());
        assert!(run_action(KeyAction::Save, &requests));
        assert!(!run_action(KeyAction::Stop, &requests));
    }
}
