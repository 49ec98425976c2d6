//! What the system asks of a run that trains.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
#[cfg(unix)]
use std::time::{Duration, Instant};

use anyhow::Context;
use folio::train::Requests;
#[cfg(unix)]
use signal_hook::consts::{SIGHUP, SIGUSR1, SIGXFSZ};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// Signals, as requests to a run.
pub(crate) struct Signals {
    /// Set by them.
    pub(crate) requests: Requests,
    /// The one that asked to stop.
    stopped_by: Arc<AtomicUsize>,
}

impl Signals {
    /// From now on Ctrl-C, SIGTERM and SIGHUP (a closed terminal) ask the run to stop, and a second one ends the program
    /// at once; SIGUSR1 asks it to save. In training the second restores the terminal first, and does not count if it only
    /// repeats the first. SIGHUP stays ignored under `nohup`.
    pub(crate) fn install(training: bool) -> anyhow::Result<Self> {
        let requests = Requests::default();
        let stopped_by = Arc::new(AtomicUsize::new(0));
        let install = || {
            #[cfg(unix)]
            if training {
                listen(requests.clone(), Arc::clone(&stopped_by))?;
            }
            let by_flags = if cfg!(unix) && training { Vec::new() } else { stopping_signals() };
            for signal in by_flags {
                // In this order: the first finds the request not made yet. Files are whole at any time, so that
                // stopping at once does no harm.
                flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&requests.stop))?;
                flag::register_usize(signal, Arc::clone(&stopped_by), signal as usize)?;
                flag::register(signal, Arc::clone(&requests.stop))?;
            }
            #[cfg(unix)]
            {
                flag::register(SIGUSR1, Arc::clone(&requests.save))?;
                // A file that grows over the system's limit is a write that fails, as on a full disk, not the end.
                flag::register(SIGXFSZ, Arc::default())?;
            }
            std::io::Result::Ok(())
        };
        install().context("listening to signals")?;
        Ok(Self { requests, stopped_by })
    }

    /// The exit code of a program that was stopped, 128 and the signal's number: 130 after Ctrl-C, 143 after SIGTERM, 129
    /// after SIGHUP.
    pub(crate) fn exit_code(&self) -> ExitCode {
        let signal = match self.stopped_by.load(Ordering::Relaxed) {
            0 => SIGINT as usize,
            signal => signal,
        };
        ExitCode::from(128 + signal as u8)
    }
}

/// How long the same signal again is taken for the first: `timeout` sends each to the program and to its process group.
#[cfg(unix)]
const ECHO: Duration = Duration::from_millis(500);

/// The signals that ask a run to stop.
fn stopping_signals() -> Vec<i32> {
    #[allow(unused_mut)]
    let mut signals = vec![SIGINT, SIGTERM];
    #[cfg(unix)]
    if !is_hangup_ignored() {
        signals.push(SIGHUP);
    }
    signals
}

/// Whether whoever started the program wants it to outlive the terminal, as `nohup` does.
#[cfg(unix)]
pub(crate) fn is_hangup_ignored() -> bool {
    // Linux shows the mask of ignored signals (proc_pid_status(5), SigIgn), of which the lowest bit is signal 1, SIGHUP.
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        return mask.is_some_and(|mask| mask & 1 << (SIGHUP - 1) != 0);
    }
    // Elsewhere: nohup leaves no terminal to lose.
    use std::io::IsTerminal;
    !std::io::stdout().is_terminal() && !std::io::stderr().is_terminal()
}

/// Starts a thread that does what [`Signals::install`] says, which is more than a signal's handler may do.
#[cfg(unix)]
fn listen(requests: Requests, stopped_by: Arc<AtomicUsize>) -> std::io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new(stopping_signals())?;
    let obey = move || {
        let mut first: Option<(i32, Instant)> = None;
        for signal in signals.forever() {
            if first.is_some_and(|(first, at)| first == signal && at.elapsed() < ECHO) {
                continue;
            }
            first.get_or_insert((signal, Instant::now()));
            if requests.stop.swap(true, Ordering::Relaxed) {
                crate::screen::close();
                std::process::exit(128 + signal);
            }
            stopped_by.store(signal as usize, Ordering::Relaxed);
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(obey).map(drop)
}
