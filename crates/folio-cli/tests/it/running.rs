//! A `folio` process that runs in the background of a test.
#![cfg(unix)]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::place::{Place, words};

/// How long a program may take for the line that a test waits for. Only a test that fails takes as long.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running `folio` process and its output lines.
pub(crate) struct Running {
    child: Child,
    lines: Receiver<String>,
}

/// Starts `folio` with the words of a line.
pub(crate) fn start(place: &Place, line: &str) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_folio"));
    command.args(words(line)).current_dir(place.path(""));
    start_command(command)
}

/// Starts a program.
pub(crate) fn start_command(mut command: Command) -> Running {
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let (sender, lines) = channel();
    pass_on(child.stdout.take().expect("a pipe"), sender.clone());
    pass_on(child.stderr.take().expect("a pipe"), sender);
    Running { child, lines }
}

fn pass_on(pipe: impl Read + Send + 'static, sender: Sender<String>) {
    std::thread::spawn(move || {
        let mut lines = BufReader::new(pipe).lines().map_while(Result::ok);
        // Stop reading once the receiver is dropped.
        while lines.next().is_some_and(|line| sender.send(line).is_ok()) {}
    });
}

impl Running {
    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line that contains `part`; false if the program ends without one.
    ///
    /// # Panics
    /// If the program neither writes one nor ends for minutes, as long training does.
    #[track_caller]
    pub(crate) fn until(&self, part: &str) -> bool {
        let deadline = Instant::now() + PATIENCE;
        std::iter::from_fn(|| self.line_before(deadline)).any(|line| line.contains(part))
    }

    /// The next line; `None` if the program ends without one. Kills a program that does neither before the deadline.
    #[track_caller]
    fn line_before(&self, deadline: Instant) -> Option<String> {
        match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Err(RecvTimeoutError::Timeout) => {
                self.signal(Signal::KILL);
                panic!("the program was killed after {PATIENCE:?}")
            }
            line => line.ok(),
        }
    }

    /// The next line, if the program writes one before it ends.
    pub(crate) fn next_line(&self) -> Option<String> {
        self.lines.recv().ok()
    }

    /// Lets the program run for a while, or to its end, then sends it a signal.
    pub(crate) fn signal_after(&mut self, time: Duration, signal: Signal) {
        let deadline = Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        self.signal(signal);
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        // The child has not been waited for, so its process id cannot have been reused.
        kill_process(pid, signal).expect("a process of our own");
    }

    /// Waits for the end and returns the remaining lines.
    ///
    /// # Panics
    /// If the program does not end for minutes, as when it ignores a signal.
    #[track_caller]
    pub(crate) fn end(mut self) -> (ExitStatus, Vec<String>) {
        let deadline = Instant::now() + PATIENCE;
        let rest = std::iter::from_fn(|| self.line_before(deadline)).collect();
        (self.child.wait().expect("a child of our own"), rest)
    }
}
