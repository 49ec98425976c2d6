//! Disks that are full, directories that are read-only, and two runs in one directory.
#![cfg(unix)]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Signal, geteuid};

use crate::place::{MODEL, Place, TINY, words};
use crate::running::{start, start_command};

const SAVED: &str = "--save_losses --save_checkpoint";
/// Runs for longer than any test.
const LONG: &str = "--block_sizes 16 --batch_sizes 4 --num_epochs 1000000 --keep best";

/// Runs `folio` in a shell with a file size limit of 4 KiB, less than a checkpoint needs.
fn on_a_full_disk(place: &Place, line: &str) -> (Option<i32>, String) {
    // `ulimit -f` counts blocks of 512 bytes, or of 1,024 in some shells.
    limited(place, "ulimit -f 8", line)
}

/// Runs `folio` in a shell with a memory limit of 3 GiB.
fn with_little_memory(place: &Place, line: &str) -> (Option<i32>, String) {
    limited(place, "ulimit -v 3145728", line)
}

/// Runs `folio` in a shell with a limit. Returns its exit code and stderr.
fn limited(place: &Place, limit: &str, line: &str) -> (Option<i32>, String) {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{limit}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_folio")]);
    let output = command.args(words(line)).current_dir(place.path("")).output().expect("a shell");
    (output.status.code(), String::from_utf8(output.stderr).expect("UTF-8"))
}

#[test]
fn a_full_disk_costs_what_could_not_be_saved_and_nothing_else() {
    let place = Place::new();
    let three = TINY.replace("--num_epochs 2", "--num_epochs 3");
    place.ok(&format!("train {three} {SAVED} --run_dir whole"));
    let one = TINY.replace("--num_epochs 2", "--num_epochs 1");
    place.ok(&format!("train {one} {SAVED} --run_dir run"));
    let before = place.files("run/checkpoint_1");

    let (code, reported) = on_a_full_disk(&place, "train --resume run --num_epochs 3");
    assert_eq!(code, Some(1), "{reported}");
    // Two epochs, each with a save that failed.
    assert_eq!(reported.matches("training continues and retries at the next save").count(), 2, "{reported}");
    let last = reported.lines().last().expect("a message");
    assert!(last.starts_with("error: ") && last.contains("could not be saved"), "{last}");
    assert_eq!(place.files("run/checkpoint_1"), before);
    assert!(place.names("run").iter().all(|name| !name.contains(".folio-")), "{:?}", place.names("run"));
    assert_eq!(place.json("run/status.json")["state"], "failed");

    // With free disk again it resumes.
    place.ok("train --resume run --num_epochs 3");
    for name in
        ["checkpoint_3/model.safetensors", "checkpoint_3/optimizer.safetensors", "losses.json", "status.json"]
    {
        assert!(place.read(&format!("run/{name}")) == place.read(&format!("whole/{name}")), "{name}");
    }
}

#[test]
fn a_disk_without_room_for_a_description_refuses_at_once() {
    let place = Place::new();
    // The vocabulary of two thousand tokens alone is larger than the limit.
    let text: String = (0..2_000).filter_map(|index| char::from_u32(0x4E00 + index)).collect();
    place.write("signs.txt", text.repeat(2));
    let line = format!("train {} {SAVED} --run_dir run", TINY.replace("plays.txt", "signs.txt"));
    let (code, reported) = on_a_full_disk(&place, &line);
    assert_eq!(code, Some(1), "{reported}");
    let last = reported.lines().last().expect("a message");
    assert!(
        last.contains("cannot write run/tokenizer.json") || last.contains("cannot write run/vocab.json"),
        "{last}"
    );
}

/// A copy of folio that an ordinary user may run, in a place that such a user may write to: for the system's first user
/// nothing is read-only.
fn as_ordinary_user(place: &Place, line: &str) -> Command {
    let program = place.path("folio");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_folio"), &program).expect("room");
        make_mode(place, "", 0o777);
    }
    let mut command = Command::new(program);
    command.args(words(line)).current_dir(place.path("")).env("RAYON_NUM_THREADS", "1");
    if geteuid().is_root() {
        // The user without rights of most systems.
        command.uid(65_534).gid(65_534);
    }
    command
}

fn make_mode(place: &Place, name: &str, mode: u32) {
    fs::set_permissions(place.path(name), Permissions::from_mode(mode)).expect("a directory of our own");
}

#[test]
fn a_read_only_directory_refuses_at_once() {
    let place = Place::new();
    fs::create_dir(place.path("closed")).expect("room");
    make_mode(&place, "closed", 0o555);
    for run_dir in ["closed", "closed/run"] {
        let line = format!("train {TINY} {SAVED} --run_dir {run_dir}");
        let output = as_ordinary_user(&place, &line).output().expect("the program starts");
        let reported = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(1), "{reported}");
        let last = reported.lines().last().expect("a message");
        assert!(last.contains(run_dir) && last.contains("Permission denied"), "{last}");
        assert_eq!(output.stdout, b"", "nothing is trained in vain");
    }
    make_mode(&place, "closed", 0o755);
    assert_eq!(place.names("closed"), [""; 1], "nothing is left there");
}

#[test]
fn a_directory_that_becomes_read_only_is_waited_for() {
    let place = Place::new();
    let line = format!("train {MODEL} {LONG} {SAVED} --run_dir run");
    let running = start_command(as_ordinary_user(&place, &line));
    assert!(running.until("Epoch: 1/"));
    // Its directories are another user's now, if this is the first user; only the mode is changed.
    make_mode(&place, "run", 0o555);
    assert!(running.until("retries at the next save"), "it warns and goes on");
    make_mode(&place, "run", 0o755);
    // Not before one more epoch has begun and was saved.
    let epoch = place.json("run/status.json")["epoch"].as_u64().expect("a number");
    assert!(running.until("Epoch: "));
    running.signal(Signal::INT);
    let (status, lines) = running.end();
    assert_eq!(status.code(), Some(130), "{lines:?}");
    assert!(place.json("run/status.json")["epoch"].as_u64().expect("a number") >= epoch);
    place.ok("generate run --max_new_tokens 3");
}

#[test]
fn a_second_process_in_a_directory_is_refused() {
    let place = Place::new();
    let running = start(&place, &format!("train {MODEL} {LONG} {SAVED} --run_dir run"));
    assert!(running.until("Epoch: 1/"));
    for line in [
        "train --resume run".to_owned(),
        format!("train {TINY} --run_dir run --overwrite"),
        format!("train {TINY} --learning_rates 1e-3 1e-4 --run_dir run --overwrite"),
    ] {
        let ran = place.run(&line);
        assert_eq!(ran.code, Some(1), "{line}: {}", ran.stderr);
        let expected = format!("run is in use by process {}: wait for it, stop it", running.id());
        assert!(ran.stderr.contains(&expected), "{line}: {}", ran.stderr);
    }
    // Commands that only read are not locked out.
    assert!(place.ok("runs run").stdout.contains("running"));
    running.signal(Signal::KILL);
    running.end();
    assert!(place.ok("runs run").stdout.contains("killed"));
    let epochs = place.json("run/status.json")["epoch"].as_u64().expect("a number") + 1;
    place.ok(&format!("train --resume run --num_epochs {epochs}"));
}

#[test]
fn what_does_not_fit_in_memory_is_refused_with_what_does() {
    let place = Place::new();
    let before = place.files("");
    for (flags, flag) in [
        ("--batch_sizes 2048 --precision f32", "--batch_sizes: training with 2048 needs "),
        ("--n_blocks 2000 --block_sizes 8", "--n_blocks: training with 2000 needs "),
        ("--batch_sizes 64 2048 --precision f32", "--batch_sizes: training with 2048 needs "),
        (
            "--data plays.txt --block_sizes 8 --batch_sizes 1 --n_blocks 1 --n_heads 1 --n_emb 16384",
            "--n_emb: training with 16384 needs ",
        ),
    ] {
        let (code, reported) = with_little_memory(&place, &format!("train {flags}"));
        assert_eq!(code, Some(2), "{flags}: {reported}");
        let last = reported.lines().last().expect("a message");
        assert!(last.starts_with(&format!("error: {flag}")), "{flags}: {reported}");
        assert!(
            last.contains("of memory, but ") && last.contains("the largest value that fits is "),
            "{reported}"
        );
        assert!(place.files("") == before, "{flags}: nothing is written");
    }
}

#[test]
fn more_threads_than_processors_cause_a_warning() {
    let place = Place::new();
    let processors = std::thread::available_parallelism().expect("known");
    let said = place.ok(&format!("train {TINY} --threads 100000 --run_dir run")).stderr;
    assert!(
        said.contains(&format!(
            "warning: --threads 100000 is more than the {processors} available processors"
        )),
        "{said}"
    );
    let start = place.text("run/metrics.jsonl").lines().next().map(str::to_owned).expect("a record");
    assert!(start.contains(&format!("\"threads\":{processors},")), "{start}");
    let said = place.ok("generate run --threads 100000 --max_new_tokens 3").stderr;
    assert!(said.contains("warning: --threads 100000"), "{said}");
}
