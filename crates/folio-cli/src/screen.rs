//! The terminal, which there is one of: lines that are printed, or the whole of it for the dashboard.
//!
//! While the dashboard has it, lines are held back; they are printed when it gives the terminal back, however that comes.

use std::io::{self, IsTerminal, Write};
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

/// A line on stdout.
pub(crate) fn out(line: &str) {
    tell(Stream::Out, line);
}

/// A line on stderr.
pub(crate) fn err(line: &str) {
    tell(Stream::Err, line);
}

fn tell(stream: Stream, line: &str) {
    if let Some(lines) = held().as_mut() {
        lines.push((stream, line.to_owned()));
        return;
    }
    match stream {
        Stream::Out => println!("{line}"),
        // If stderr is gone there is nobody left to tell.
        Stream::Err => _ = writeln!(io::stderr(), "{line}"),
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
    for (stream, line) in held.take().into_iter().flatten() {
        _ = match stream {
            Stream::Out => writeln!(io::stdout(), "{line}"),
            Stream::Err => writeln!(io::stderr(), "{line}"),
        };
    }
}

fn held() -> MutexGuard<'static, Option<Vec<(Stream, String)>>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}
