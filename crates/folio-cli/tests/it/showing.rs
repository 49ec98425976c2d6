//! Output on a terminal and in a pipe.

use crate::place::{MODEL, Place, TINY, plays};

/// Runs `folio` on a pseudo-terminal and returns its output.
#[cfg(unix)]
fn on_terminal(place: &Place, line: &str, columns: u16, rows: u16) -> String {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::OwnedFd;

    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::{Winsize, tcsetwinsize};

    let screen = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&screen).and_then(|()| unlockpt(&screen)).expect("our own");
    let name = ptsname(&screen, Vec::new()).expect("a name").into_string().expect("UTF-8");
    let open = || OwnedFd::from(File::options().read(true).write(true).open(&name).expect("our own"));
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(open(), size).expect("a size");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_folio"));
    command.args(crate::place::words(line)).current_dir(place.path(""));
    command.env("RAYON_NUM_THREADS", "1").env("TERM", "xterm").env("NO_COLOR", "1");
    let mut child = command.stdin(open()).stdout(open()).stderr(open()).spawn().expect("the program starts");
    // Close the copy of the terminal that the command holds.
    drop(command);
    let (mut text, mut chunk) = (Vec::new(), [0; 4096]);
    let mut screen = File::from(screen);
    // Reading fails once the other end is closed.
    while let Ok(count @ 1..) = screen.read(&mut chunk) {
        text.extend_from_slice(&chunk[..count]);
    }
    let text = String::from_utf8(text).expect("UTF-8");
    assert!(child.wait().expect("a child of our own").success(), "folio {line}\n{text}");
    text
}

#[test]
#[cfg(unix)]
fn control_characters_in_generated_text_are_replaced_on_a_terminal_only() {
    let place = Place::new();
    place.write("colors.txt", "\x1b[31mred\x1b[0m\x07\u{9b}1m ".repeat(60));
    let train = format!(
        "train {MODEL} --block_sizes 8 --batch_sizes 4 --num_epochs 1 --save_checkpoint --run_dir run"
    );
    place.ok(&train.replace("plays.txt", "colors.txt"));
    let line = "generate run --max_new_tokens 200 --seed 3";
    let piped = place.ok(line).stdout;
    assert!(["\x1b", "\x07", "\u{9b}"].iter().all(|control| piped.contains(control)), "{piped:?}");
    for line in [
        line,
        &format!("{line} --show_probabilities"),
        "train --resume run --num_epochs 2 --sample_tokens 200",
    ] {
        let shown = on_terminal(&place, line, 80, 24);
        assert!(shown.contains('␛') && shown.contains('␇') && shown.contains("\\x9b"), "{line}: {shown:?}");
        assert!(!shown.contains('\x07') && !shown.contains('\u{9b}'), "{line}: {shown:?}");
        // The bars of training move the cursor, but do not change colors.
        assert!(!shown.contains("\x1b[31m"), "{line}: {shown:?}");
    }
}

#[test]
#[cfg(unix)]
fn the_curves_fill_the_terminal() {
    let place = Place::new();
    place
        .ok(&format!("train {TINY} --num_epochs 1 --save_losses --run_dir run")
            .replace(" --num_epochs 2", ""));
    for (columns, rows) in [(120, 50), (60, 30)] {
        let shown = on_terminal(&place, "plot run", columns, rows);
        let lines: Vec<&str> = shown.lines().collect();
        let widest =
            lines.iter().filter(|line| !line.starts_with("wrote")).map(|line| line.chars().count()).max();
        assert!(
            widest.is_some_and(|widest| widest <= columns.into() && widest + 8 > columns.into()),
            "{widest:?}"
        );
        assert!(
            lines.len() < rows.into() && lines.len() + 3 > rows.into(),
            "{} of {rows} lines",
            lines.len()
        );
    }
}

#[test]
fn a_run_of_one_epoch_can_be_plotted() {
    let place = Place::new();
    let one = TINY.replace("--num_epochs 2", "--num_epochs 1");
    place.ok(&format!("train {one} --save_losses --run_dir run"));
    let check_curve = |svg: &str, what: &str| {
        let svg = place.text(svg);
        let document = roxmltree::Document::parse(&svg).expect("XML");
        let longest = document
            .descendants()
            .filter_map(|node| node.attribute("points"))
            .map(|points| points.split_whitespace().count())
            .max();
        assert!(longest.is_some_and(|corners| corners >= 13), "{what}: 13 steps, {longest:?} corners");
    };
    for unit in ["nats_per_token", "bits_per_byte"] {
        place.ok(&format!("plot run --unit {unit} --out run.svg"));
        check_curve("run.svg", unit);
    }
    // Without losses.json, the steps' own records are drawn.
    std::fs::remove_file(place.path("run/losses.json")).expect("there");
    place.ok("plot run --out records.svg");
    check_curve("records.svg", "records");
}

#[test]
fn runs_without_a_directory_lists_those_in_runs() {
    let place = Place::new();
    std::fs::create_dir(place.path("runs")).expect("room");
    place.write("other.txt", plays().to_uppercase());
    let one = TINY.replace("--num_epochs 2", "--max_steps 2");
    place.ok(&format!("train {one} --save_losses --run_dir runs/first"));
    place.ok(&format!("train {one} --lr 1e-3 3e-3 --save_losses --run_dir runs/search"));
    let ran = place.ok("runs");
    for name in ["first", "search/run_1", "search/run_2"] {
        assert!(
            ran.stdout.lines().any(|line| line.split_whitespace().nth(1) == Some(name)),
            "{}",
            ran.stdout
        );
    }
    assert_eq!(ran.stdout, place.ok("runs runs").stdout);
    assert!(!ran.stderr.contains("warning"), "{}", ran.stderr);
    // A text and a split of its own.
    let other = one.replace("plays.txt", "other.txt");
    place.ok(&format!(
        "train {other} --split contiguous --vocab_size 260 --tokenizer_type corpus_bpe --run_dir runs/other"
    ));
    let ran = place.ok("runs");
    assert_eq!(ran.stdout.lines().count(), 5);
    assert!(!ran.stdout.contains("null") && !ran.stdout.contains("sha256"), "{}", ran.stdout);
    let hash = place.json("runs/other/hyperparameters.json")["data_sha256"].as_str().map(str::to_owned);
    assert!(!ran.stdout.contains(&hash.expect("a hash")[..16]), "{}", ran.stdout);
    let warnings: Vec<&str> = ran.stderr.lines().collect();
    let [texts, splits] = &warnings[..] else { panic!("{warnings:#?}") };
    assert!(
        texts.contains("different texts") && texts.contains("plays.txt") && texts.contains("other.txt"),
        "{texts}"
    );
    assert!(splits.contains("blocks") && splits.contains("contiguous"), "{splits}");
}

#[test]
fn a_damaged_run_does_not_hide_others() {
    let place = Place::new();
    let one = TINY.replace("--num_epochs 2", "--max_steps 2");
    for name in ["first", "second"] {
        place.ok(&format!("train {one} --save_losses --run_dir runs/{name}"));
    }
    place.write("runs/first/hyperparameters.json", "{");
    let ran = place.ok("runs");
    assert!(ran.stdout.contains("second") && !ran.stdout.contains("first"), "{}", ran.stdout);
    let [warning] = &ran.stderr.lines().collect::<Vec<_>>()[..] else { panic!("{}", ran.stderr) };
    assert!(warning.starts_with("warning: skipped a run: ") && warning.contains("runs/first"), "{warning}");
    let refused = place.run("runs runs/first");
    assert!(refused.code != Some(0) && refused.stderr.contains("runs/first"), "{}", refused.stderr);
}

#[test]
#[cfg(unix)]
fn a_table_of_runs_fits_the_terminal() {
    let place = Place::new();
    let sweep =
        "--lr 1e-3 3e-3 --weight_decays 0 0.1 --dropouts 0 0.1 --max_steps 1 --save_losses --run_dir search";
    place.ok(&format!("train {} {sweep}", TINY.replace("--dropouts 0.1", "")));
    let wide = on_terminal(&place, "runs search", 200, 24);
    assert!(wide.contains("weight_decay") && !wide.contains("did not fit"), "{wide}");
    let narrow = on_terminal(&place, "runs search", 70, 24);
    let (table, note) = narrow.split_once("columns that did not fit").expect("a note");
    assert!(table.lines().all(|line| line.chars().count() <= 70), "{table}");
    assert!(note.contains("weight_decay") && !table.contains("weight_decay"), "{narrow}");
}

#[test]
fn chat_ignores_lines_that_are_not_utf_8() {
    let place = place_to_chat();
    let line = "chat run --max_new_tokens 3 --seed 1";
    let ran = place.ok_with(line, b"the\n\xff\xfe\nof\n/save damaged.txt\n");
    assert_eq!(ran.stderr.matches("ignored a line that is not valid UTF-8").count(), 1, "{}", ran.stderr);
    place.ok_with(line, b"the\nof\n/save whole.txt\n");
    assert_eq!(place.text("damaged.txt"), place.text("whole.txt"), "the line has no effect");
}

/// A place with a trained run.
fn place_to_chat() -> Place {
    let place = Place::new();
    place
        .ok(&format!("train {TINY} --max_steps 2 --save_checkpoint --run_dir run")
            .replace(" --num_epochs 2", ""));
    place
}

#[test]
fn chat_can_undo_retry_and_save() {
    let place = place_to_chat();
    let texts = |lines: &str| -> Vec<String> {
        // Each /save is of another file, which is read back.
        let saves = lines.matches("/save").count();
        place.ok_with("chat run --max_new_tokens 12 --seed 5", lines);
        let names = (0..saves).map(|index| format!("{index}.txt"));
        names
            .map(|name| (place.text(&name), std::fs::remove_file(place.path(&name)).expect("there")).0)
            .collect()
    };
    let [first, undone, again, retried] =
        &texts("the king\n/save 0.txt\n/undo\n/save 1.txt\nthe king\n/save 2.txt\n/retry\n/save 3.txt\n")[..]
    else {
        panic!("four texts")
    };
    assert!(first.starts_with("the king") && first.chars().count() == 8 + 12, "{first:?}");
    assert_eq!(undone, "");
    assert_eq!(again, first, "an undone line has no effect");
    assert!(retried.starts_with("the king") && retried != first, "another seed: {retried:?}");
    assert_eq!(retried.chars().count(), first.chars().count(), "in place of the first: {retried:?}");
    // /seed replaces the seed of the flag.
    assert_eq!(texts("/seed 99\n/seed 5\nthe king\n/save 0.txt\n"), [first.as_str()]);
    assert_ne!(texts("/seed 99\nthe king\n/save 0.txt\n"), [first.as_str()]);
    // A seed set by /seed applies to the next continuation, even after an /undo.
    let set = texts("the\n/seed 9\nof\n/save 0.txt\n");
    assert_eq!(texts("the\nking\n/seed 9\n/undo\nof\n/save 0.txt\n"), set);
    // Undoing the continuation of that seed makes the seed available again, and so does a second /undo.
    assert_eq!(texts("the\n/seed 9\nking\n/undo\nof\n/save 0.txt\n"), set);
    assert_eq!(texts("the\nking\n/seed 9\na\nb\n/undo\n/undo\n/undo\nof\n/save 0.txt\n"), set);
    // /undo can be repeated.
    let [one, back] = &texts("the\n/save 0.txt\nking\n/undo\n/save 1.txt\n")[..] else { panic!("two texts") };
    assert_eq!(one, back);
}

#[test]
fn chat_reports_wrong_commands_and_continues() {
    let place = place_to_chat();
    let ran = place
        .ok_with("chat run --max_new_tokens 2", "/undo\n/retry\n/seed x\n/save\n/save plays.txt\n/help\n");
    for part in [
        "no line to undo",
        "/seed x: expected a number",
        "/save: missing file name",
        "/save plays.txt: the file already exists; choose another name",
    ] {
        assert!(ran.stderr.contains(part), "lacks '{part}': {}", ran.stderr);
    }
    for command in ["/undo", "/retry", "/seed N", "/save FILE"] {
        assert!(ran.stderr.contains(command), "help lacks {command}: {}", ran.stderr);
    }
    assert_eq!(place.text("plays.txt"), plays());
    // A file of an earlier /save may be overwritten.
    let ran = place.ok_with("chat run --max_new_tokens 2", "a\n/save own.txt\nb\n/save own.txt\n");
    assert_eq!(ran.stderr.matches("wrote own.txt").count(), 2, "{}", ran.stderr);
}
