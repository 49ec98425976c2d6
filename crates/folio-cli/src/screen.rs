//! All output of the program: lines on stdout and stderr, or the whole terminal for the dashboard.
//!
//! - Results ([`out`]) return an error if stdout is closed or full; the command then ends.
//! - Progress and notes ([`err`]) are dropped if stderr is closed or full.
//! - Results of a training run ([`report`]) are dropped too, so that training never depends on its output. [`lost`] returns
//!   how many lines were dropped.
//!
//! While the dashboard is open, lines are held back. They are printed when it closes, even after a panic or a signal.

use std::cell::RefCell;
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

/// The terminal while the dashboard is open.
pub(crate) type Screen = Terminal<CrosstermBackend<io::Stdout>>;

/// Lines held back until the dashboard closes; `None` if it is not open.
static HELD: Mutex<Option<Vec<HeldLine>>> = Mutex::new(None);

/// Whether the dashboard may draw.
static OPEN: AtomicBool = AtomicBool::new(false);

/// Locked while the dashboard draws.
static DRAWING: Mutex<()> = Mutex::new(());

/// A line to print when the dashboard closes.
enum HeldLine {
    Out(String),
    Err(String),
}

/// Lines that [`report`] could not print.
static LOST: Mutex<Option<LostOutput>> = Mutex::new(None);

/// Output of a training run that could not be printed.
#[derive(Clone, Debug)]
pub(crate) struct LostOutput {
    lines: u64,
    /// The first error.
    reason: String,
}

impl Display for LostOutput {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = if self.lines == 1 { "1 line".to_owned() } else { format!("{} lines", self.lines) };
        write!(formatter, "{lines} could not be printed: {}", self.reason)
    }
}

/// Prints a line on stdout.
///
/// # Errors
/// If stdout is closed or full.
pub(crate) fn out(line: impl Display) -> io::Result<()> {
    match held().as_mut() {
        Some(lines) => lines.push(HeldLine::Out(line.to_string())),
        // In one write, so that lines of different threads do not interleave.
        None => stdout().write_all(format!("{line}\n").as_bytes())?,
    }
    Ok(())
}

/// Stdout, for results longer than a line.
pub(crate) fn stdout() -> Stdout {
    Stdout(io::stdout().lock())
}

/// Stdout whose errors say that they come from stdout.
pub(crate) struct Stdout(StdoutLock<'static>);

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(name_stdout)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(name_stdout)
    }
}

/// Adds to an I/O error that it comes from stdout.
pub(crate) fn name_stdout(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot write to stdout: {error}"))
}

/// Prints a line of a training run on stdout. If that fails, the line is counted for [`lost`] and training continues.
pub(crate) fn report(line: impl Display) {
    if let Err(error) = out(line) {
        count_lost(&error);
    }
}

/// The output that [`report`] could not print, if any.
pub(crate) fn lost() -> Option<LostOutput> {
    LOST.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn count_lost(error: &io::Error) {
    let mut lost = LOST.lock().unwrap_or_else(PoisonError::into_inner);
    lost.get_or_insert_with(|| LostOutput { lines: 0, reason: error.to_string() }).lines += 1;
}

thread_local! {
    /// The lines of this thread that [`collect`] collects.
    static COLLECTED: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Collects the lines that `work` would print on stderr, from this thread.
pub(crate) fn collect<R>(work: impl FnOnce() -> R) -> (R, Vec<String>) {
    COLLECTED.set(Some(Vec::new()));
    let result = work();
    (result, COLLECTED.take().unwrap_or_default())
}

/// Prints a line on stderr. Errors are ignored: there is nowhere left to report them.
pub(crate) fn err(line: impl Display) {
    let is_collected =
        COLLECTED.with_borrow_mut(|lines| lines.as_mut().map(|lines| lines.push(line.to_string())).is_some());
    if is_collected {
        return;
    }
    match held().as_mut() {
        Some(lines) => lines.push(HeldLine::Err(line.to_string())),
        None => _ = io::stderr().write_all(format!("{line}\n").as_bytes()),
    }
}

/// Whether stdout and stderr are terminals, as the dashboard needs.
pub(crate) fn has_terminal() -> bool {
    io::stdout().is_terminal() && io::stderr().is_terminal()
}

/// Switches the terminal to the alternate screen for the dashboard.
///
/// # Errors
/// If the terminal cannot be switched; it is then restored.
pub(crate) fn open() -> io::Result<Screen> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            // Restore the terminal first, so that the message is visible.
            close();
            previous(panic);
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

/// Calls `draw` if the dashboard is open.
pub(crate) fn with_drawing<R>(draw: impl FnOnce() -> R) -> Option<R> {
    let _drawing = DRAWING.lock().unwrap_or_else(PoisonError::into_inner);
    OPEN.load(Ordering::Relaxed).then(draw)
}

/// Closes the dashboard, if it is open: restores the terminal and prints the lines held back. May be called from any thread
/// at any time; a second caller waits for the first.
pub(crate) fn close() {
    let mut held = held();
    if held.is_none() {
        return;
    }
    OPEN.store(false, Ordering::Relaxed);
    // Wait for a drawing in progress, but not forever: it never ends if this thread panicked while drawing, or if the
    // terminal accepts no output.
    for _ in 0..100 {
        if !matches!(DRAWING.try_lock(), Err(TryLockError::WouldBlock)) {
            break;
        }
        thread::sleep(Duration::from_millis(2));
    }
    // These fail only if the terminal is gone.
    let _ = disable_raw_mode();
    let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
    let lines = held.take();
    drop(held);
    for line in lines.into_iter().flatten() {
        match line {
            HeldLine::Out(line) => report(line),
            HeldLine::Err(line) => err(line),
        }
    }
}

fn held() -> MutexGuard<'static, Option<Vec<HeldLine>>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}
