//! Closed or full stdout and stderr.
#![cfg(unix)]

use std::fs::OpenOptions;
use std::process::{Command, Stdio};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::place::{Place, TINY, words};

/// Where output goes.
#[derive(Clone, Copy, Debug)]
enum Sink {
    /// A pipe whose reading end is closed.
    Closed,
    /// A terminal that was closed.
    Gone,
    /// A full disk.
    Full,
    /// A pipe that is read.
    Kept,
}

impl Sink {
    fn open(self) -> Stdio {
        match self {
            Self::Closed => {
                let (reader, writer) = std::io::pipe().expect("a pipe");
                drop(reader);
                writer.into()
            }
            Self::Gone => {
                let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
                grantpt(&terminal).and_then(|()| unlockpt(&terminal)).expect("a terminal of our own");
                let name = ptsname(&terminal, Vec::new()).expect("a name").into_string().expect("UTF-8");
                OpenOptions::new().read(true).write(true).open(name).expect("a terminal").into()
            }
            Self::Full => OpenOptions::new().write(true).open("/dev/full").expect("a device").into(),
            Self::Kept => Stdio::piped(),
        }
    }
}

/// Runs `folio` and returns its exit code and stderr.
fn run(place: &Place, line: &str, stdout: Sink, stderr: Sink) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_folio"));
    command.args(words(line)).current_dir(place.path("")).env("RAYON_NUM_THREADS", "1");
    let input = std::fs::File::open(place.path("plays.txt")).expect("there");
    command.stdin(input).stdout(stdout.open()).stderr(stderr.open());
    let output = command.output().expect("the program starts");
    (output.status.code(), String::from_utf8(output.stderr).expect("UTF-8"))
}

/// Every command that prints results, besides `train`.
const COMMANDS: [&str; 22] = [
    "--help",
    "train --help",
    "--version",
    "corpus",
    "generate run",
    "generate run --json",
    "generate run --show_probabilities --num_samples 2",
    "chat run --max_new_tokens 5",
    "eval run",
    "eval run --json",
    "runs run",
    "runs run --json",
    "plot run",
    "report run",
    "export run",
    "export run --steps",
    "tokenizer encode --tokenizer_type run",
    "completions bash",
    "tokenizer inspect --tokenizer_type run --text First",
    "tokenizer inspect --tokenizer_type run --data plays.txt",
    "bench step --steps 1 --emb 16 --heads 2 --blocks 1 --block 8 --batch 2 --vocab 11",
    "bench generate --tokens 4 --emb 16 --heads 2 --blocks 1 --block 8 --vocab 11",
];

#[test]
fn commands_end_quietly_on_a_closed_pipe_and_with_one_line_on_a_full_disk() {
    let place = Place::new();
    place.ok(&format!("train {TINY} --run_dir run"));
    for line in COMMANDS {
        let (code, stderr) = run(&place, line, Sink::Closed, Sink::Kept);
        assert_eq!(code, Some(0), "{line}: {stderr}");
        assert!(!stderr.contains("error") && !stderr.contains("panicked"), "{line}: {stderr}");

        let (code, stderr) = run(&place, line, Sink::Full, Sink::Kept);
        assert_eq!(code, Some(1), "{line}: {stderr}");
        let last = stderr.lines().last().unwrap_or_default();
        assert!(last.starts_with("error: cannot write to stdout: No space left"), "{line}: {stderr}");
        assert!(!stderr.contains("panicked"), "{line}: {stderr}");

        for stderr in [Sink::Closed, Sink::Full] {
            let (code, _) = run(&place, line, Sink::Kept, stderr);
            assert_eq!(code, Some(0), "{line} with stderr {stderr:?}");
        }
    }
}

#[test]
fn exit_codes_of_errors_do_not_depend_on_stderr() {
    let place = Place::new();
    for (line, expected) in [("train --n_emb x", 2), ("train --n_emb 7", 2), ("eval nowhere", 1)] {
        for stderr in [Sink::Closed, Sink::Full] {
            assert_eq!(run(&place, line, Sink::Kept, stderr).0, Some(expected), "{line} {stderr:?}");
        }
    }
}

#[test]
fn training_never_depends_on_its_output() {
    let place = Place::new();
    place.ok(&format!("train {TINY} --sample_tokens 5 --run_dir whole"));
    let sweep = format!("train {TINY} --learning_rates 1e-3 1e-4 --run_dir");
    for (index, (stdout, stderr)) in [
        (Sink::Closed, Sink::Kept),
        (Sink::Full, Sink::Kept),
        (Sink::Kept, Sink::Closed),
        (Sink::Kept, Sink::Full),
        (Sink::Closed, Sink::Closed),
        (Sink::Gone, Sink::Gone),
    ]
    .into_iter()
    .enumerate()
    {
        let context = format!("stdout {stdout:?}, stderr {stderr:?}");
        for json in ["", "--json"] {
            let run_dir = format!("run{index}{json}");
            let line = format!("train {TINY} --sample_tokens 5 {json} --run_dir {run_dir}");
            let (code, reported) = run(&place, &line, stdout, stderr);
            let is_lost = !matches!(stdout, Sink::Kept);
            assert_eq!(code, Some(i32::from(is_lost)), "{context}: {reported}");
            let status = place.json(&format!("{run_dir}/status.json"));
            assert_eq!(status["state"], "finished", "{context}");
            assert_eq!(status["lost_output"].is_string(), is_lost, "{context}: {status}");
            if is_lost && matches!(stderr, Sink::Kept) {
                // Two epochs and, for people, a sample.
                let lines = if json.is_empty() { 3 } else { 2 };
                let expected =
                    format!("warning: {lines} lines could not be printed: cannot write to stdout: ");
                assert!(reported.contains(&expected), "{context}: {reported}");
                assert!(!reported.contains("panicked"), "{context}: {reported}");
            }
            let model = |run: &str| place.read(&format!("{run}/latest/model.safetensors"));
            assert!(model(&run_dir) == model("whole"), "{context}");
        }
        let search = format!("search{index}");
        let (code, reported) = run(&place, &format!("{sweep} {search}"), stdout, stderr);
        let is_lost = !matches!(stdout, Sink::Kept);
        assert_eq!(code, Some(i32::from(is_lost)), "{context}: {reported}");
        for run in ["run_1", "run_2"] {
            let status = place.json(&format!("{search}/{run}/status.json"));
            assert_eq!(status["state"], "finished", "{context}");
            assert_eq!(status["lost_output"].is_string(), is_lost, "{context}: {status}");
        }
    }
}
