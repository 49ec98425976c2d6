//! Signals as requests to stop or to save.

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

/// The installed signal handlers.
pub(crate) struct Signals {
    /// Set by the handlers.
    pub(crate) requests: Requests,
    /// The signal that requested the stop; 0 if none did.
    stopped_by: Arc<AtomicUsize>,
}

impl Signals {
    /// Installs the handlers: Ctrl-C, SIGTERM and SIGHUP (a closed terminal) request a stop, a second one ends the program
    /// at once, and SIGUSR1 requests a save. SIGHUP stays ignored under `nohup`.
    ///
    /// In training, the second signal restores the terminal before it ends the program. The same signal again within
    /// [`REPEAT`] counts as the first.
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
                // The order matters: the shutdown is registered first, so that at the first signal `stop` is still unset.
                // Ending at once is safe, since no file is ever half-written.
                flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&requests.stop))?;
                flag::register_usize(signal, Arc::clone(&stopped_by), signal as usize)?;
                flag::register(signal, Arc::clone(&requests.stop))?;
            }
            #[cfg(unix)]
            {
                flag::register(SIGUSR1, Arc::clone(&requests.save))?;
                // With a handler, exceeding the file size limit makes the write fail instead of ending the program.
                flag::register(SIGXFSZ, Arc::default())?;
            }
            std::io::Result::Ok(())
        };
        install().context("installing signal handlers")?;
        Ok(Self { requests, stopped_by })
    }

    /// The exit code of a stopped program, 128 plus the signal's number: 130 after Ctrl-C, 143 after SIGTERM, 129 after
    /// SIGHUP.
    pub(crate) fn exit_code(&self) -> u8 {
        let signal = match self.stopped_by.load(Ordering::Relaxed) {
            0 => SIGINT as usize,
            signal => signal,
        };
        128 + signal as u8
    }
}

/// The same signal again within this time counts as one: `timeout` sends each signal twice, to the program and to its
/// process group.
#[cfg(unix)]
const REPEAT: Duration = Duration::from_millis(500);

/// The signals that request a stop.
fn stopping_signals() -> Vec<i32> {
    #[allow(unused_mut)]
    let mut signals = vec![SIGINT, SIGTERM];
    #[cfg(unix)]
    if !is_hangup_ignored() {
        signals.push(SIGHUP);
    }
    signals
}

/// Whether the parent process set SIGHUP to be ignored, as `nohup` does.
#[cfg(unix)]
pub(crate) fn is_hangup_ignored() -> bool {
    // On Linux, SigIgn in /proc/self/status is the mask of ignored signals; bit 0 is signal 1, SIGHUP.
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        return mask.is_some_and(|mask| mask & 1 << (SIGHUP - 1) != 0);
    }
    // On other systems, assume nohup if no output goes to a terminal.
    use std::io::IsTerminal;
    !std::io::stdout().is_terminal() && !std::io::stderr().is_terminal()
}

#[cfg(unix)]
#[derive(Clone, Copy)]
struct FirstSignal {
    signal: i32,
    at: Instant,
}

/// Handles signals on a thread, as [`Signals::install`] describes: a signal handler itself may not restore the terminal.
#[cfg(unix)]
fn listen(requests: Requests, stopped_by: Arc<AtomicUsize>) -> std::io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new(stopping_signals())?;
    let handle = move || {
        let mut first: Option<FirstSignal> = None;
        for signal in signals.forever() {
            if first.is_some_and(|first| first.signal == signal && first.at.elapsed() < REPEAT) {
                continue;
            }
            first.get_or_insert(FirstSignal { signal, at: Instant::now() });
            if requests.stop.swap(true, Ordering::Relaxed) {
                crate::screen::close();
                std::process::exit(128 + signal);
            }
            stopped_by.store(signal as usize, Ordering::Relaxed);
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(handle).map(drop)
}
