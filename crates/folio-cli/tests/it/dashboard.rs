//! `--tui`: it displays the run, handles keys, and restores the terminal however it ends.
#![cfg(unix)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, channel};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::place::{MODEL, Place, TINY, words};

/// Runs for longer than any test.
const LONG: &str = "--block_sizes 16 --batch_sizes 4 --num_epochs 1000000 --keep best";
/// Escape sequences that enter and leave the alternate screen.
const ENTER: &str = "\x1b[?1049h";
const LEAVE: &str = "\x1b[?1049l";

/// A `folio` process on a pseudo-terminal.
struct Watched {
    child: Child,
    /// The end of the pseudo-terminal that the test writes keys to.
    keyboard: File,
    /// The end that `folio` uses.
    terminal: OwnedFd,
    modes: [u64; 4],
    chunks: Receiver<Vec<u8>>,
    text: String,
}

fn modes(terminal: &OwnedFd) -> [u64; 4] {
    let Termios { input_modes, output_modes, control_modes, local_modes, .. } =
        tcgetattr(terminal).expect("a terminal");
    [input_modes.bits(), output_modes.bits(), control_modes.bits(), local_modes.bits()].map(u64::from)
}

fn watch(place: &Place, line: &str) -> Watched {
    let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&keyboard).and_then(|()| unlockpt(&keyboard)).expect("our own");
    let name = ptsname(&keyboard, Vec::new()).expect("a name").into_string().expect("UTF-8");
    let open = || OwnedFd::from(File::options().read(true).write(true).open(&name).expect("our own"));
    let terminal = open();
    let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&terminal, size).expect("a size");
    let mut command = Command::new(env!("CARGO_BIN_EXE_folio"));
    command.args(words(line)).current_dir(place.path("")).env("RAYON_NUM_THREADS", "1").env("TERM", "xterm");
    let child = command.stdin(open()).stdout(open()).stderr(open()).spawn().expect("the program starts");
    // Close the copies of the terminal that the command holds.
    drop(command);
    let modes = modes(&terminal);
    let keyboard = File::from(keyboard);
    let mut screen = keyboard.try_clone().expect("a descriptor");
    let (sender, chunks) = channel();
    std::thread::spawn(move || {
        let mut chunk = [0; 4096];
        // Reading fails once the other end is closed.
        while let Ok(1..) = screen.read(&mut chunk).inspect(|&count| _ = sender.send(chunk[..count].to_vec()))
        {
        }
    });
    Watched { child, keyboard, terminal, modes, chunks, text: String::new() }
}

impl Watched {
    /// Waits until the output contains a word.
    #[track_caller]
    fn until(&mut self, word: &str) {
        while !self.text.contains(word) {
            let chunk = self.chunks.recv().unwrap_or_else(|_| panic!("'{word}' is not in {:?}", self.text));
            self.text += &String::from_utf8_lossy(&chunk);
        }
    }

    fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).expect("the terminal is there");
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("a process of our own");
    }

    /// Waits for the process to end and checks that it restored the terminal. Returns the output after the last frame.
    #[track_caller]
    fn end(mut self, code: i32) -> String {
        let status = self.child.wait().expect("a child of our own");
        let modes_after = modes(&self.terminal);
        drop(self.terminal);
        self.chunks.iter().for_each(|chunk| self.text += &String::from_utf8_lossy(&chunk));
        let text = self.text;
        assert_eq!(status.code(), Some(code), "{text:?}");
        assert_eq!(modes_after, self.modes, "the terminal modes are restored");
        assert_eq!((text.matches(ENTER).count(), text.matches(LEAVE).count()), (1, 1), "{text:?}");
        let (_, after) = text.split_once(LEAVE).expect("one");
        // The cursor is visible, and nothing more is drawn.
        assert!(after.starts_with("\x1b[?25h"), "{after:?}");
        let after = after.replace("\x1b[?25h", "");
        assert!(!after.contains('\x1b'), "{after:?}");
        after.replace("\r\n", "\n")
    }
}

#[test]
fn the_usual_lines_are_printed_at_the_end() {
    let place = Place::new();
    let usual = place.ok(&format!("train {TINY} --threads 1 --save_losses --run_dir usual"));
    let watched = watch(&place, &format!("train {TINY} --threads 1 --save_losses --tui --run_dir run"));
    let printed = watched.end(0);
    assert!(printed.contains(&usual.stdout), "{printed}\n{}", usual.stdout);
    let epoch = printed.find("Epoch: 2/2").expect("its line");
    assert!(epoch < printed.find("trained for ").expect("its line"));
    assert!(printed.contains("next: folio generate run "), "{printed}");
}

#[test]
fn keys_save_and_stop() {
    let place = Place::new();
    // An epoch on this text is so long that only the requested checkpoint is saved.
    let long = "--n_emb 16 --n_heads 2 --n_blocks 1 --block_sizes 16 --batch_sizes 4";
    let mut watched = watch(&place, &format!("train {long} --tui --run_dir run"));
    watched.until("tokens/s");
    watched.press(b"s");
    watched.until("step_");
    watched.press(b"q");
    let printed = watched.end(130);
    assert!(printed.contains("saved run/step_"), "{printed}");
    assert!(printed.ends_with("stopped; to resume: folio train --resume run\n"), "{printed}");
    assert_eq!(place.json("run/status.json")["state"], "stopped");
    let mut watched = watch(&place, "train --resume run --tui");
    watched.until("tokens/s");
    // Ctrl-C arrives as a key.
    watched.press(b"\x03");
    watched.end(130);
}

/// Steps so long that two keys arrive during one.
const SLOW: &str = "--n_emb 256 --n_heads 4 --n_blocks 4 --block_sizes 128 --batch_sizes 64 --precision f32";

#[test]
fn a_second_q_ends_at_once() {
    let place = Place::new();
    let mut watched = watch(&place, &format!("train {SLOW} --tui --threads 1 --run_dir run"));
    watched.until("parameters");
    watched.press(b"qq");
    watched.end(130);
    assert_eq!(place.json("run/status.json")["state"], "running", "the run did not stop in order");
}

#[test]
fn signals_restore_the_terminal() {
    let place = Place::new();
    let mut watched = watch(&place, &format!("train {MODEL} {LONG} --tui --run_dir run"));
    watched.until("tokens/s");
    watched.signal(Signal::TERM);
    let printed = watched.end(143);
    assert!(printed.contains("Epoch: 1/"), "{printed}");
    assert!(printed.ends_with("stopped; to resume: folio train --resume run\n"), "{printed}");
}

#[test]
fn a_second_signal_ends_at_once() {
    let place = Place::new();
    let mut watched = watch(&place, &format!("train {SLOW} --tui --threads 1 --run_dir run"));
    watched.until("parameters");
    watched.signal(Signal::INT);
    watched.until("stopping");
    watched.signal(Signal::TERM);
    watched.end(143);
    assert_eq!(place.json("run/status.json")["state"], "running", "the run did not stop in order");
}

#[test]
fn errors_are_printed_after_the_dashboard_closes() {
    let place = Place::new();
    let line = format!("train {TINY} --learning_rates 1e30 --max_skipped_steps 1 --tui");
    let printed = watch(&place, &line).end(1);
    assert!(
        printed.lines().last().is_some_and(|line| line.starts_with("error: training diverged")),
        "{printed}"
    );
}

#[test]
fn a_sweep_shows_its_runs_and_ends_with_their_table() {
    let place = Place::new();
    let line = format!("train {MODEL} {LONG} --learning_rates 1e-3 1e-4 --tui --run_dir search");
    let mut watched = watch(&place, &line);
    for word in ["waiting", "tokens/s", "sample"] {
        watched.until(word);
    }
    watched.press(b"q");
    let printed = watched.end(130);
    assert!(printed.starts_with("Experiment 1/2: learning_rate 0.001\n"), "{printed}");
    let line = format!("train {TINY} --learning_rates 1e-3 1e-4 --tui --run_dir other");
    let printed = watch(&place, &line).end(0);
    let table = printed.find("rank  run").expect("a table");
    assert!(printed.find("Experiment 2/2").expect("its line") < table, "{printed}");
}

#[test]
fn tui_needs_a_terminal() {
    let place = Place::new();
    let ran = place.run(&format!("train {TINY} --tui --run_dir run"));
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    assert!(ran.stderr.starts_with("error: --tui needs a terminal"), "{}", ran.stderr);
    assert!(!place.path("run").exists());
    let ran = place.run(&format!("train {TINY} --tui --json"));
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("'--json' cannot be used with '--tui'")
            || ran.stderr.contains("'--tui' cannot be used with '--json'"),
        "{}",
        ran.stderr
    );
}
