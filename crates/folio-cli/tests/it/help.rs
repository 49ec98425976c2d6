//! Help, completions and manual pages.

use std::collections::BTreeSet;

use crate::place::{Place, words};

/// Every command that has help.
const COMMANDS: [&str; 26] = [
    "",
    "train",
    "generate",
    "chat",
    "serve",
    "eval",
    "plot",
    "runs",
    "report",
    "import",
    "average",
    "export",
    "tokenizer",
    "tokenizer train",
    "tokenizer encode",
    "tokenizer decode",
    "tokenizer inspect",
    "bench",
    "bench step",
    "bench generate",
    "bench kernels",
    "bench peak",
    "bench tokenizer",
    "corpus",
    "completions",
    "man",
];

/// The flags that a help text lists.
fn listed(help: &str) -> Vec<&str> {
    let lines = help.lines().map(str::trim_start);
    let flags = lines.filter_map(|line| {
        line.split_once("--").filter(|(before, _)| before.is_empty() || before.ends_with(", "))
    });
    flags.map(|(_, rest)| rest.split([' ', '[', '=']).next().unwrap_or(rest)).collect()
}

#[test]
fn short_help_fits_a_screen_and_long_help_has_all_flags() {
    let place = Place::new();
    let short = place.ok("train -h").stdout;
    let lines = short.lines().count();
    assert!((24..=30).contains(&lines), "{lines} lines:\n{short}");
    let flags = listed(&short);
    let shown = [
        "preset",
        "help",
        "data",
        "tokenizer_type",
        "n_emb",
        "block_sizes",
        "batch_sizes",
        "num_epochs",
        "learning_rates",
        "run_dir",
        "resume",
    ];
    assert_eq!(flags.iter().collect::<BTreeSet<_>>(), shown.iter().collect::<BTreeSet<_>>());
    let long = place.ok("train --help").stdout;
    let all = listed(&long);
    assert!(all.len() > 50 && flags.iter().all(|flag| all.contains(flag)), "{all:?}");
    assert!(long.contains("the path of a tokenizer.json"), "--help has the long description");
    for command in COMMANDS {
        let short = place.ok(&format!("{command} -h")).stdout;
        assert!(
            short.lines().count() <= 30,
            "folio {command} -h has {} lines:\n{short}",
            short.lines().count()
        );
    }
}

/// The commands in the examples of a help text.
fn examples(help: &str) -> Vec<String> {
    let after =
        help.split_once("Examples:\n").or(help.split_once("Example:\n")).map_or("", |(_, after)| after);
    let lines: Vec<&str> = after.split("\\\n").map(str::trim_end).collect();
    let joined = lines.join("\\\n").replace("\\\n      ", " ");
    joined.lines().take_while(|line| line.starts_with("  ")).map(|line| line.trim().to_owned()).collect()
}

#[test]
fn examples_can_be_pasted_into_a_shell() {
    let place = Place::new();
    let mut seen = BTreeSet::new();
    for command in COMMANDS {
        let help = place.ok(&format!("{command} --help")).stdout;
        let mut made = BTreeSet::new();
        // Longer lines would wrap on a terminal of 80 columns.
        let long = help
            .lines()
            .skip_while(|line| !line.starts_with("Example"))
            .find(|line| line.len() > 79 && line.starts_with("  "));
        assert_eq!(long, None, "folio {command} --help");
        for line in examples(&help) {
            seen.insert(line.clone());
            assert!(!line.contains("  "), "a description is no part of a command: {line}");
            for part in line.split(" | ") {
                check_example(&place, part.trim(), &mut made);
            }
        }
    }
    assert!(seen.len() > 30, "{seen:#?}");
}

/// Checks that a command parses, and that earlier examples create the user files it reads.
#[track_caller]
fn check_example(place: &Place, command: &str, made: &mut BTreeSet<String>) {
    let (call, output) = command.split_once(" > ").map_or((command, None), |(call, file)| (call, Some(file)));
    let all = words(call);
    if let Some(place_of_out) = all.iter().position(|word| word == "--out") {
        made.extend(all[place_of_out + 1..].iter().take_while(|word| !word.starts_with('-')).cloned());
    }
    for file in all.iter().filter(|word| word.starts_with("my.")) {
        assert!(made.contains(file), "{command}: nothing has made {file}");
    }
    made.extend(output.map(str::to_owned));
    let Some(folio) = all.iter().position(|word| word == "folio") else { return };
    let input = all.iter().position(|word| word == "<").unwrap_or(all.len());
    // With --help appended, the parser accepts the line or reports an error before it prints help.
    let arguments: Vec<String> = all[folio + 1..input].iter().map(|word| format!("'{word}'")).collect();
    let ran = place.run(&format!("{} --help", arguments.join(" ")));
    assert_eq!(ran.code, Some(0), "{command}: {}", ran.stderr);
}

#[test]
fn every_shell_has_completions() {
    let place = Place::new();
    for (shell, part) in [
        ("bash", "complete -F _folio"),
        ("zsh", "#compdef folio"),
        ("fish", "complete -c folio"),
        ("powershell", "Register-ArgumentCompleter"),
        ("elvish", "edit:completion:arg-completer[folio]"),
    ] {
        let script = place.ok(&format!("completions {shell}")).stdout;
        for part in [part, "tokenizer_type", "generate"] {
            assert!(script.contains(part), "{shell}: lacks {part}");
        }
        let has_values = ["bash", "zsh", "fish"].contains(&shell);
        assert_eq!(script.contains("shakespeare-char"), has_values, "{shell}: names of presets");
    }
    let ran = place.run("completions tcsh");
    assert!(
        ran.code == Some(2) && ran.stderr.contains("'tcsh'") && ran.stderr.contains("bash"),
        "{}",
        ran.stderr
    );
}

#[test]
fn every_command_has_a_manual_page() {
    let place = Place::new();
    place.ok("man pages/man1");
    for name in
        ["folio", "folio-train", "folio-generate", "folio-tokenizer-train", "folio-bench-step", "folio-man"]
    {
        assert!(place.text(&format!("pages/man1/{name}.1")).contains(".TH "), "{name}");
    }
    let page = place.text("pages/man1/folio-train.1");
    for part in
        ["tokenizer_type", "cosine_T_max", "the path of a tokenizer", "folio train \\-\\-preset quick"]
    {
        assert!(page.contains(part), "lacks '{part}'");
    }
}
