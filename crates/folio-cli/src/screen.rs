//! Everything the program prints goes through here: lines, or the whole terminal for the dashboard.
//!
//! - Results ([`out`]) return an error if stdout is closed or full; the command then ends.
//! - Progress and notes ([`err`]) are dropped if stderr is closed or full.
//! - A training run's results ([`report`]) are dropped too, counted, and reported by [`lost`] at the end: training never
//!   depends on its output.
//!
//! While the dashboard has the terminal, lines are held back; they are printed when it closes, panics and signals included.

use std::fmt::{self, Display};
use std::io::{self, IsTerminal, StdoutLock, Write};
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};

/// The terminal as the dashboard has it.
pub(crate) type Screen = Terminal<CrosstermBackend<io::Stdout>>;

/// Lines that wait for the dashboard to close; none while there is no dashboard.
static HELD: Mutex<Option<Vec<(Stream, String)>>> = Mutex::new(None);

/// Whether the dashboard may be drawn.
static OPEN: AtomicBool = AtomicBool::new(false);

/// Held by whoever draws it.
static DRAWING: Mutex<()> = Mutex::new(());

#[derive(Clone, Copy)]
enum Stream {
    Out,
    Err,
}

/// Lines that could not be printed on stdout.
static LOST: Mutex<Option<Lost>> = Mutex::new(None);

/// Output of a training run that could not be printed.
#[derive(Clone, Debug)]
pub(crate) struct Lost {
    lines: u64,
    /// The first error.
    reason: String,
}

impl Display for Lost {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = if self.lines == 1 { "1 line".to_owned() } else { format!("{} lines", self.lines) };
        write!(formatter, "{lines} could not be printed: {}", self.reason)
    }
}

/// Prints a line on stdout.
///
/// # Errors
/// What the system says if stdout is closed or full.
pub(crate) fn out(line: impl Display) -> io::Result<()> {
    match held().as_mut() {
        Some(lines) => lines.push((Stream::Out, line.to_string())),
        // In one write, so that lines of several threads do not mix.
        None => stdout().write_all(format!("{line}\n").as_bytes())?,
    }
    Ok(())
}

/// Stdout for results longer than a line.
pub(crate) fn stdout() -> Stdout {
    Stdout(io::stdout().lock())
}

/// Stdout, with errors that name it.
pub(crate) struct Stdout(StdoutLock<'static>);

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(name_stdout)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(name_stdout)
    }
}

/// An error of writing to stdout, which says so.
pub(crate) fn name_stdout(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot write to stdout: {error}"))
}

/// Prints a line of a training run on stdout. If that fails, the run goes on and [`lost`] remembers the line.
pub(crate) fn report(line: impl Display) {
    if let Err(error) = out(line) {
        remember(&error);
    }
}

/// What [`report`] could not print, if anything.
pub(crate) fn lost() -> Option<Lost> {
    LOST.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn remember(error: &io::Error) {
    let mut lost = LOST.lock().unwrap_or_else(PoisonError::into_inner);
    lost.get_or_insert_with(|| Lost { lines: 0, reason: error.to_string() }).lines += 1;
}

/// Prints a line on stderr. If that fails, there is nobody to tell.
pub(crate) fn err(line: impl Display) {
    match held().as_mut() {
        Some(lines) => lines.push((Stream::Err, line.to_string())),
        None => _ = io::stderr().write_all(format!("{line}\n").as_bytes()),
    }
}

/// Whether there is a terminal for the dashboard.
pub(crate) fn is_there() -> bool {
    io::stdout().is_terminal() && io::stderr().is_terminal()
}

/// Takes the terminal for the dashboard.
///
/// # Errors
/// What the system says; the terminal is then as before.
pub(crate) fn open() -> io::Result<Screen> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let told = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            // Before it is told, so that it can be read.
            close();
            told(panic);
        }));
    });
    *held() = Some(Vec::new());
    let enter = || {
        enable_raw_mode()?;
        execute!(io::stdout(), EnterAlternateScreen)?;
        Terminal::new(CrosstermBackend::new(io::stdout()))
    };
    let screen = enter().inspect_err(|_| close())?;
    OPEN.store(true, Ordering::Relaxed);
    Ok(screen)
}

/// Lets `draw` write to the terminal, unless it was given back.
pub(crate) fn with_drawing<R>(draw: impl FnOnce() -> R) -> Option<R> {
    let _drawing = DRAWING.lock().unwrap_or_else(PoisonError::into_inner);
    OPEN.load(Ordering::Relaxed).then(draw)
}

/// Gives the terminal back, if the dashboard has it, and prints the lines that were held. May be called from any thread, at
/// any time; whoever calls it second waits for the first.
pub(crate) fn close() {
    let mut held = held();
    if held.is_none() {
        return;
    }
    OPEN.store(false, Ordering::Relaxed);
    // A drawing that is under way ends first. That may be never, if it has panicked and this is its own thread, or if the
    // terminal takes nothing.
    for _ in 0..100 {
        if !matches!(DRAWING.try_lock(), Err(TryLockError::WouldBlock)) {
            break;
        }
        thread::sleep(Duration::from_millis(2));
    }
    // If the terminal is gone there is nothing to restore, and nobody to tell.
    let _ = disable_raw_mode();
    let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
    let lines = held.take();
    drop(held);
    for (stream, line) in lines.into_iter().flatten() {
        match stream {
            Stream::Out => report(line),
            Stream::Err => err(line),
        }
    }
}

fn held() -> MutexGuard<'static, Option<Vec<(Stream, String)>>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}
