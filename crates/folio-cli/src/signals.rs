//! What the system asks of a run that trains.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;
use folio::train::Requests;
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
    /// From now on Ctrl-C and SIGTERM ask the run to stop, and a second one ends the program at once; SIGUSR1 asks it to
    /// save. With a dashboard the second gives the terminal back first.
    pub(crate) fn install(dashboard: bool) -> anyhow::Result<Self> {
        let requests = Requests::default();
        let stopped_by = Arc::new(AtomicUsize::new(0));
        let install = || {
            #[cfg(unix)]
            if dashboard {
                listen(requests.clone(), Arc::clone(&stopped_by))?;
            }
            let by_flags: &[i32] = if cfg!(unix) && dashboard { &[] } else { &[SIGINT, SIGTERM] };
            for &signal in by_flags {
                // In this order: the first finds the request not made yet. Files are whole at any time, so that
                // stopping at once does no harm.
                flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&requests.stop))?;
                flag::register_usize(signal, Arc::clone(&stopped_by), signal as usize)?;
                flag::register(signal, Arc::clone(&requests.stop))?;
            }
            #[cfg(unix)]
            {
                use signal_hook::consts::{SIGUSR1, SIGXFSZ};
                flag::register(SIGUSR1, Arc::clone(&requests.save))?;
                // A file that grows over the system's limit is a write that fails, as on a full disk, not the end.
                flag::register(SIGXFSZ, Arc::default())?;
            }
            std::io::Result::Ok(())
        };
        install().context("listening to signals")?;
        Ok(Self { requests, stopped_by })
    }

    /// The exit code of a program that was stopped: 130 after Ctrl-C, 143 after SIGTERM, as a shell has it.
    pub(crate) fn exit_code(&self) -> ExitCode {
        let signal = match self.stopped_by.load(Ordering::Relaxed) {
            0 => SIGINT as usize,
            signal => signal,
        };
        ExitCode::from(128 + signal as u8)
    }
}

/// Starts a thread that does what [`Signals::install`] says, which is more than a signal's handler may do.
#[cfg(unix)]
fn listen(requests: Requests, stopped_by: Arc<AtomicUsize>) -> std::io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    let obey = move || {
        for signal in signals.forever() {
            if requests.stop.swap(true, Ordering::Relaxed) {
                crate::screen::close();
                std::process::exit(128 + signal);
            }
            stopped_by.store(signal as usize, Ordering::Relaxed);
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(obey).map(drop)
}
