//! `folio train --tui`: a run or a sweep as it trains, on the whole of the terminal.
//!
//! A thread of its own owns the terminal, so that neither drawing nor a terminal that is slow holds up a step: training
//! does no more than put its events on a queue.

use std::process;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context;
use folio::train::{Event, Requests};
use ratatui::crossterm::event::{self, Event as Input, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use crate::screen::{self, Screen};

mod curve;
mod draw;
mod state;

use draw::{Look, draw};
use state::State;

/// No two pictures follow each other faster.
const FRAME: Duration = Duration::from_millis(100);
/// The longest that a picture stands, for the sake of what it says about time.
const STALE: Duration = Duration::from_secs(1);

/// The dashboard, which closes when it is dropped.
pub(crate) struct Dashboard {
    /// None when it closes.
    queue: Option<Sender<(Instant, Told)>>,
    thread: Option<JoinHandle<()>>,
}

/// What the dashboard is told.
#[derive(Clone, Debug)]
pub(crate) enum Told {
    /// Epochs that ended before the run goes on: their numbers of steps and evaluation losses.
    History {
        /// The run, counting from 0.
        run: usize,
        /// The first epoch's first.
        epochs: Vec<(u64, f64)>,
    },
    /// Something happened in a run.
    Event {
        /// The run, counting from 0.
        run: usize,
        /// What.
        event: Event,
    },
    /// A run of a sweep has ended.
    Ended {
        /// The run, counting from 0.
        run: usize,
    },
    /// The runs of the sweep in order, a line each.
    Table(String),
}

/// What somebody at the keyboard wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Stop,
    Save,
}

impl Dashboard {
    /// Takes the terminal. What keys ask for is asked of `requests`; `title` says what is trained, and `saves` whether it
    /// has somewhere to save.
    ///
    /// # Errors
    /// If the terminal refuses.
    pub(crate) fn open(title: String, saves: bool, requests: Requests) -> anyhow::Result<Self> {
        let screen = screen::open().context("--tui: the terminal cannot be drawn on")?;
        let (queue, events) = channel();
        let color = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let state = State::new(title, saves, Instant::now());
        let work = move || watch(screen, &events, state, &requests, color);
        let thread = thread::Builder::new().name("dashboard".to_owned()).spawn(work);
        let thread = thread.inspect_err(|_| screen::close()).context("starting the dashboard")?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Tells it something.
    pub(crate) fn tell(&self, told: Told) {
        if let Some(queue) = &self.queue {
            // A dashboard whose terminal is gone listens no more; training goes on.
            let _ = queue.send((Instant::now(), told));
        }
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        self.queue = None;
        // If it has panicked, that was told.
        let _ = self.thread.take().map(JoinHandle::join);
        screen::close();
    }
}

/// Draws what it is told and reads keys, until the queue or the terminal ends.
fn watch(
    mut screen: Screen,
    events: &Receiver<(Instant, Told)>,
    mut state: State,
    requests: &Requests,
    color: bool,
) {
    let (mut news, mut drawn_at) = (true, Instant::now());
    let mut reads_keys = true;
    loop {
        loop {
            match events.try_recv() {
                Ok((at, told)) => {
                    state.take(told, at);
                    news = true;
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return,
            }
        }
        if news || drawn_at.elapsed() >= STALE {
            let look = Look { now: Instant::now(), stopping: requests.stop_asked(), color };
            let drawn = screen::with_drawing(|| screen.draw(|frame| draw(frame, &state, look)).is_ok());
            match drawn {
                Some(true) => {}
                // The terminal is gone, or was given back: what there is to say is printed from now on.
                Some(false) => return screen::close(),
                None => return,
            }
            (news, drawn_at) = (false, Instant::now());
        }
        news |= wait(&mut reads_keys, |command| {
            if !obey(command, requests) {
                screen::close();
                // As after a second Ctrl-C where there is no dashboard. Files are whole at any time.
                process::exit(130);
            }
        });
    }
}

/// Passes a frame's time, or less if there is something to show. Returns whether there is.
fn wait(reads_keys: &mut bool, mut on_command: impl FnMut(Command)) -> bool {
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
                        && let Some(command) = command(key)
                    {
                        on_command(command);
                    }
                }
                Err(_) => *reads_keys = false,
            },
            // Without a keyboard there are still signals.
            Err(_) => *reads_keys = false,
        }
    }
}

/// What a key means.
fn command(key: KeyEvent) -> Option<Command> {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        _ if key.kind == KeyEventKind::Release => None,
        KeyCode::Char('c' | 'C') if control => Some(Command::Stop),
        KeyCode::Char('q' | 'Q') if !control => Some(Command::Stop),
        KeyCode::Char('s' | 'S') if !control => Some(Command::Save),
        _ => None,
    }
}

/// Asks the run for what is wanted; false if it was asked to stop before and is not to be waited for.
fn obey(command: Command, requests: &Requests) -> bool {
    match command {
        Command::Stop => !requests.stop.swap(true, Ordering::Relaxed),
        Command::Save => {
            requests.save.store(true, Ordering::Relaxed);
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_mean_what_the_last_line_says() {
        let plain = |c| KeyEvent::new(KeyCode::Char(c), KeyModifiers::NONE);
        let control = |c| KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL);
        for (key, wanted) in [
            (plain('q'), Some(Command::Stop)),
            (control('c'), Some(Command::Stop)),
            (plain('s'), Some(Command::Save)),
            (plain('c'), None),
            (control('s'), None),
            (control('q'), None),
            (KeyEvent::new(KeyCode::Esc, KeyModifiers::NONE), None),
            (KeyEvent { kind: KeyEventKind::Release, ..plain('q') }, None),
        ] {
            assert_eq!(command(key), wanted, "{key:?}");
        }
    }

    #[test]
    fn the_second_wish_to_stop_is_not_waited_for() {
        let requests = Requests::default();
        assert!(obey(Command::Save, &requests));
        assert!(requests.save.load(Ordering::Relaxed) && !requests.stop_asked());
        assert!(obey(Command::Stop, &requests));
        assert!(requests.stop_asked());
        assert!(obey(Command::Save, &requests));
        assert!(!obey(Command::Stop, &requests));
    }
}
