//! Every mistake is reported in one line: what is wrong and how to fix it. No file changes.

mod resuming;
mod tokenizers;

use crate::place::{Place, Ran, TINY, plays};

/// Wrong usage: the command cannot work, whatever the files are.
pub(crate) const USAGE: i32 = 2;
/// A file, a directory or a text is unusable.
pub(crate) const FAILURE: i32 = 1;

/// A short text, so that a command that is accepted by mistake does not train for hours.
const DATA: &str = "--data plays.txt";

/// Runs a command that must be refused: this exit code, one line on stderr that contains all of `expected`, nothing on
/// stdout, and all files unchanged.
#[track_caller]
pub(crate) fn check_refused(place: &Place, line: &str, code: i32, expected: &[&str]) -> Ran {
    let before = place.files("");
    let ran = place.run(line);
    let said = format!("folio {line}\n{}", ran.stderr);
    assert_eq!(ran.code, Some(code), "{said}");
    assert!(ran.stderr.starts_with("error: ") && ran.stderr.lines().count() == 1, "one line: {said}");
    for part in expected {
        assert!(ran.stderr.contains(part), "lacks '{part}': {said}");
    }
    assert_eq!(ran.stdout, "", "{said}");
    assert!(place.files("") == before, "files were touched: {said}");
    ran
}

/// [`check_refused`] for a table of commands. `{TINY}` stands for the flags of a tiny run, `{DATA}` for its text.
#[track_caller]
pub(crate) fn check_all(place: &Place, mistakes: &[(&str, i32, &[&str])]) {
    for (line, code, expected) in mistakes {
        check_refused(place, &line.replace("{TINY}", TINY).replace("{DATA}", DATA), *code, expected);
    }
}

/// A place with a run of two epochs in `run`.
pub(crate) fn place_with_run() -> Place {
    let place = Place::new();
    place.ok(&format!("train {TINY} --save_losses --save_checkpoint --run_dir run"));
    place
}

/// The first of the instruction sets that are listed.
const NARROWEST: &str =
    if cfg!(target_arch = "aarch64") { "this machine has neon" } else { "this machine has portable" };

#[test]
fn texts_that_cannot_be_trained_on() {
    let place = Place::new();
    place.write("empty.txt", "");
    place.write("latin.txt", b"caf\xe9 noir");
    let mistakes: &[(&str, i32, &[&str])] = &[
        ("train --run_dir x --data none.txt", FAILURE, &["none.txt", "does not exist", "check the spelling"]),
        ("train --run_dir x --data empty.txt", FAILURE, &["empty.txt", "is empty", "give a file"]),
        ("train --run_dir x --data latin.txt", FAILURE, &["latin.txt", "not UTF-8", "offset 3", "iconv -f"]),
        ("train --run_dir x --data .", FAILURE, &["latin.txt", "not UTF-8"]),
        ("train --run_dir x --data ''", USAGE, &["--data <FILE>", "value is required"]),
    ];
    check_all(&place, mistakes);
}

/// Checks that a text too short for blocks of 64 is refused, with the largest block that fits: `largest` fits, the next
/// size does not.
fn check_too_short(split: &str, text: &str, largest: usize) {
    let place = Place::new();
    place.write("short.txt", text);
    let line = |size: usize| {
        format!(
            "train --data short.txt --split {split} --n_emb 16 --n_heads 2 --n_blocks 1 --num_epochs 1 \
             --run_dir x --block_sizes {size}"
        )
    };
    let tokens = format!("{} tokens", text.len());
    let way_out = format!("the largest that fits is `--block_sizes {largest}`");
    for size in [64, largest + 1] {
        check_refused(&place, &line(size), USAGE, &["--block_sizes", &size.to_string(), &tokens, &way_out]);
    }
    place.ok(&line(largest));
}

#[test]
fn texts_shorter_than_two_blocks() {
    check_too_short("blocks", &plays()[..60], 29);
    check_too_short("blocks", "abcde", 2);
    check_too_short("contiguous", &plays()[..105], 10);
    let place = Place::new();
    place.write("short.txt", "a");
    let line = "train --run_dir x --data short.txt";
    check_refused(&place, line, USAGE, &["--block_sizes", "1 tokens", "use a longer text"]);
    // One size of a sweep suffices.
    let sweep = TINY.replace("--block_sizes 16", "--block_sizes 16 600");
    check_refused(&place, &format!("train {sweep} --run_dir x"), USAGE, &["600", "`--block_sizes 499`"]);
}

#[test]
fn numbers_out_of_range() {
    let place = Place::new();
    let sizes = ["n_emb", "n_heads", "n_blocks", "block_sizes", "batch_sizes", "num_epochs", "max_steps"];
    let counts = ["cosine_T_max", "cosine_T_mult"];
    for flag in sizes.iter().chain(&counts) {
        let flag = format!("--{flag}");
        let line = |value: &str| format!("train {DATA} --run_dir x {flag} {value}");
        check_refused(&place, &line("0"), USAGE, &[&format!("`{flag} 0` is out of range; use")]);
        for value in ["-3", "2.5", "many", "9223372036854775808"] {
            check_refused(&place, &line(value), USAGE, &[&flag, value, "give a whole number"]);
        }
    }
    for flag in ["learning_rates", "weight_decays", "dropouts", "cosine_final_lr", "cosine_lr_restart_decay"]
    {
        let flag = format!("--{flag}");
        for value in ["-0.5", "nan", "inf"] {
            check_refused(&place, &format!("train {DATA} --run_dir x {flag} {value}"), USAGE, &[&flag]);
        }
        let line = format!("train {DATA} --run_dir x {flag} much");
        check_refused(&place, &line, USAGE, &[&flag, "'much'", "give a number such as 0.2"]);
    }
    let mistakes: &[(&str, i32, &[&str])] = &[
        (
            "train {DATA} --run_dir x --learning_rates 0",
            USAGE,
            &["`--learning_rates 0` is out of range; use a number greater than 0"],
        ),
        (
            "train {DATA} --run_dir x --dropouts 1",
            USAGE,
            &["`--dropouts 1` is out of range", "from 0 to less than 1"],
        ),
        ("train {DATA} --run_dir x --dropouts 0.1 1.5", USAGE, &["`--dropouts 1.5` is out of range"]),
        (
            "train {DATA} --run_dir x --beta2 1",
            USAGE,
            &["`--beta2 1` is out of range", "from 0 to less than 1"],
        ),
        ("train {DATA} --run_dir x --seed -1", USAGE, &["--seed", "'-1'", "give a whole number"]),
        (
            "train {DATA} --run_dir x --grad_clip -1",
            USAGE,
            &["`--grad_clip -1` is out of range", "of at least 0"],
        ),
        ("generate x --temperature -.5", USAGE, &["temperature", "-0.5"]),
        ("train {DATA} --threads 0", USAGE, &["`--threads 0` is out of range; use at least 1"]),
        ("train {DATA} --threads -3", USAGE, &["--threads", "'-3'", "give a whole number"]),
        ("serve . --port 80000", USAGE, &["--port", "'80000'", "give a whole number from 0 to 65535"]),
        ("train {DATA} --run_dir x --lr 1e-3,much", USAGE, &["'much'", "give a number such as 0.2"]),
        ("train {DATA} --run_dir --overwrite", USAGE, &["--run_dir <DIR>", "value is required"]),
        (
            "train {DATA} --run_dir x --n_emb 9999999",
            USAGE,
            &["`--n_emb 9999999` is out of range", "1048576"],
        ),
        ("train {DATA} --run_dir x --n_emb 300000", USAGE, &["--n_emb", "300000", "parameters", "give less"]),
        (
            "train {DATA} --run_dir x --freeze blocks:7",
            USAGE,
            &["`--freeze blocks:7` is more than `--n_blocks 6`; use at most 6"],
        ),
        (
            "train {DATA} --run_dir x --n_emb 16 --n_heads 3",
            USAGE,
            &["error: `--n_emb 16` is not divisible by `--n_heads 3`; use 15 or 18"],
        ),
    ];
    check_all(&place, mistakes);
}

#[test]
fn names_that_do_not_exist() {
    let mistakes: &[(&str, i32, &[&str])] = &[
        (
            "train {DATA} --lr_schedule cosin",
            USAGE,
            &["--lr_schedule", "unknown schedule 'cosin'", "mean 'cosine'?"],
        ),
        (
            "train {DATA} --lr_schedule tree",
            USAGE,
            &["unknown schedule 'tree'", "const, cosine, cosine_warm_restarts, wsd"],
        ),
        (
            "train {DATA} --tokenizer_type bp",
            USAGE,
            &["--tokenizer_type", "unknown tokenizer 'bp'", "mean 'bpe'?"],
        ),
        (
            "train {DATA} --tokenizer_type chars",
            USAGE,
            &["unknown tokenizer 'chars'", "mean 'chrs'?", "chrs, bpe"],
        ),
        ("train {DATA} --split block", USAGE, &["--split", "unknown split 'block'", "mean 'blocks'?"]),
        ("train {DATA} --lr_schedule_unit steps", USAGE, &["--lr_schedule_unit", "'steps'", "mean 'step'?"]),
        (
            "train {DATA} --freeze wte,blocks:1",
            USAGE,
            &["--freeze", "unknown part of the model 'wte'", "embeddings, blocks:N, none"],
        ),
        ("train {DATA} --preset quik", USAGE, &["--preset", "'quik'", "'quick'", "shakespeare-char"]),
        ("train {DATA} --learning_rte 3", USAGE, &["'--learning_rte'", "'--learning_rates'"]),
        ("train {DATA} --learning-rte 3", USAGE, &["'--learning-rte'", "--learning"]),
        ("train plays.txt", USAGE, &["'plays.txt'", "--help"]),
        ("trian", USAGE, &["'trian'", "'train'"]),
        ("eval run --split tst", USAGE, &["--part", "unknown part 'tst'", "mean 'test'?"]),
        ("bench step --isa avx3", USAGE, &["--isa", "'avx3'", NARROWEST]),
        ("bench stp", USAGE, &["'stp'", "'step'"]),
    ];
    check_all(&Place::new(), mistakes);
}

#[test]
fn flags_that_need_another() {
    let mistakes: &[(&str, i32, &[&str])] = &[
        (
            "train {TINY} --no_save --save_losses",
            USAGE,
            &["--no_save contradicts --save_losses", "leave one"],
        ),
        ("train {TINY} --no_save --save_checkpoint", USAGE, &["--no_save contradicts --save_checkpoint"]),
        ("train {TINY} --no_save --run_dir x", USAGE, &["--no_save contradicts --run_dir"]),
        ("train {TINY} --no_save --save_every 3", USAGE, &["--no_save contradicts --save_every"]),
        ("train {TINY} --no_save --tensorboard", USAGE, &["--no_save contradicts --tensorboard"]),
        ("train {TINY} --no_save --keep all", USAGE, &["--no_save contradicts --keep"]),
        ("train --resume run --no_save", USAGE, &["--no_save", "--resume"]),
        (
            "train {TINY} --from_checkpoint",
            USAGE,
            &["--from_checkpoint_run_dir <DIR>", "--from_checkpoint_step <N>"],
        ),
        (
            "train {DATA} --from_checkpoint --from_checkpoint_run_dir run",
            USAGE,
            &["--from_checkpoint_step <N>"],
        ),
        (
            "train {DATA} --from_checkpoint --from_checkpoint_step 1",
            USAGE,
            &["--from_checkpoint_run_dir <DIR>"],
        ),
        ("train {DATA} --from_checkpoint_run_dir run", USAGE, &["--from_checkpoint"]),
        ("train {DATA} --restart_schedule", USAGE, &["--from_checkpoint"]),
        ("train {DATA} --run_dir", USAGE, &["--run_dir <DIR>", "value is required"]),
        ("train {DATA} --seed 1 --seed 2", USAGE, &["--seed", "multiple times"]),
    ];
    check_all(&Place::new(), mistakes);
}

#[test]
fn config_files_that_cannot_be_used() {
    let place = Place::new();
    let files = [
        ("key.toml", "n_heads = 2\nn_embd = 16\n"),
        ("kebab.toml", "learning-rates = 1e-3\n"),
        ("broken.toml", "n_heads = 2\nn_emb = \n"),
        ("type.toml", "# sizes\n\nn_emb = \"wide\"\n"),
        ("list.toml", "block_sizes = [\"wide\"]\n"),
        ("negative.toml", "n_emb = -1\n"),
        ("name.toml", "lr_schedule = \"cosin\"\n"),
        ("range.toml", "dropouts = [0.1, 1.0]\n"),
    ];
    for (name, content) in files {
        place.write(name, content);
    }
    place.write("latin.toml", b"\xe9");
    let mistakes: &[(&str, i32, &[&str])] = &[
        ("train {TINY} --config none.toml", FAILURE, &["--config", "none.toml", "No such file"]),
        ("train {TINY} --config latin.toml", FAILURE, &["latin.toml", "UTF-8"]),
        ("train {TINY} --config key.toml", USAGE, &["key.toml", "unknown key 'n_embd'", "mean 'n_emb'?"]),
        ("train {TINY} --config kebab.toml", USAGE, &["'learning-rates'", "mean 'learning_rates'?"]),
        ("train {TINY} --config broken.toml", USAGE, &["broken.toml, line 2, `n_emb =`"]),
        (
            "train {TINY} --config type.toml",
            USAGE,
            &["type.toml, line 3, `n_emb = \"wide\"`", "a whole number"],
        ),
        (
            "train {TINY} --config list.toml",
            USAGE,
            &["list.toml, line 1", "give a number, a range", "or several"],
        ),
        ("train {TINY} --config negative.toml", USAGE, &["negative.toml, line 1", "-1", "a whole number"]),
        (
            "train {TINY} --config name.toml",
            USAGE,
            &["name.toml, line 1", "unknown schedule", "mean 'cosine'?"],
        ),
        ("train --data plays.txt --config range.toml", USAGE, &["`--dropouts 1` is out of range"]),
    ];
    check_all(&place, mistakes);
}

#[test]
fn run_directories_that_are_taken() {
    let place = place_with_run();
    place.ok(&format!("train {TINY} --learning_rates 1e-3 1e-4 --run_dir search"));
    let mistakes: &[(&str, i32, &[&str])] = &[
        ("train {TINY} --run_dir run", FAILURE, &["run already holds a run", "--run_dir", "--overwrite"]),
        ("train {TINY} --run_dir run --seed 1 2", USAGE, &["'2'"]),
        ("train {TINY} --weight_decays 0 1 --run_dir run", FAILURE, &["run already holds a run"]),
        ("train {TINY} --run_dir search", FAILURE, &["search already holds a run", "--overwrite"]),
        ("train {TINY} --run_dir plays.txt", FAILURE, &["plays.txt", "not a directory", "--run_dir"]),
        ("train {TINY} --run_dir plays.txt/x", FAILURE, &["plays.txt/x", "Not a directory"]),
    ];
    check_all(&place, mistakes);
}

#[test]
fn checkpoints_that_cannot_be_continued() {
    let place = place_with_run();
    place.write("other.txt", plays().to_uppercase());
    place.train_bare("bare");
    let from = "train --from_checkpoint --from_checkpoint_run_dir";
    let run = format!("{from} run --from_checkpoint_step");
    let mistakes: [(String, i32, &[&str]); 13] = [
        (format!("{run} 7 --run_dir x"), FAILURE, &["run holds no checkpoint 7", "there are 1, 2"]),
        (
            format!("{from} bare --from_checkpoint_step 1"),
            FAILURE,
            &["bare holds no checkpoint", "they were removed"],
        ),
        (format!("{from} none --from_checkpoint_step 1"), FAILURE, &["none does not exist", "--run_dir"]),
        (format!("{from} . --from_checkpoint_step 1"), FAILURE, &["not a folio run", "hyperparameters.json"]),
        (
            format!("{run} 2 --n_emb 32 --run_dir x"),
            FAILURE,
            &["run/checkpoint_2", "has `--n_emb` 16", "this run has 32", "use 16"],
        ),
        (format!("{run} 2 --block_sizes 8"), FAILURE, &["has `--block_sizes` 16", "use 16"]),
        (format!("{run} 2 --n_heads 4"), FAILURE, &["has `--n_heads` 2", "use 2"]),
        (format!("{run} 2 --seed 3"), USAGE, &["--seed", "run has 1337", "leave the flag out"]),
        (format!("{run} 2 --split contiguous"), USAGE, &["--split", "run has blocks", "leave the flag out"]),
        (
            format!("{run} 2 --data other.txt"),
            FAILURE,
            &["lacks", "characters of other.txt", "--extend_vocab"],
        ),
        (
            format!("{run} 2 --tokenizer_type bpe"),
            USAGE,
            &["--tokenizer_type", "has chrs", "leave the flag out"],
        ),
        (format!("{run} 2 --max_steps 26"), USAGE, &["`--max_steps 26`", "has taken 26", "use more than 26"]),
        (
            format!("{run} 1 --run_dir run"),
            FAILURE,
            &["run holds checkpoint 2", "later than 1", "another --run_dir", "--overwrite"],
        ),
    ];
    for (line, code, expected) in &mistakes {
        check_refused(&place, line, *code, expected);
    }
}

#[test]
fn a_damaged_checkpoint_overwrites_nothing() {
    let place = place_with_run();
    place.ok(&format!("train {TINY} --save_losses --run_dir old"));
    let line = "train --from_checkpoint --from_checkpoint_run_dir run --from_checkpoint_step 2 --overwrite";
    let damages: [(&str, &[&str]); 3] = [
        ("model.safetensors", &["model.safetensors", "is damaged", "take another checkpoint"]),
        ("optimizer.safetensors", &["optimizer.safetensors", "is damaged", "take another checkpoint"]),
        ("state.json", &["state.json", "is damaged"]),
    ];
    for (name, expected) in damages {
        let name = format!("run/checkpoint_2/{name}");
        let whole = place.read(&name);
        place.write(&name, &whole[..whole.len() / 2]);
        for target in ["old", "run"] {
            check_refused(&place, &format!("{line} --run_dir {target}"), FAILURE, expected);
        }
        place.write(&name, whole);
    }
    place.ok(&format!("{line} --run_dir old --num_epochs 1"));
}

#[test]
fn a_text_that_has_changed_since_training() {
    let place = place_with_run();
    place.write("plays.txt", plays().to_uppercase());
    let line = "train --from_checkpoint --from_checkpoint_run_dir run --from_checkpoint_step 2";
    check_refused(&place, line, USAGE, &["--data", "plays.txt"]);
    check_refused(&place, "eval run", FAILURE, &["plays.txt", "has changed"]);
}

#[test]
fn models_that_cannot_be_used() {
    let place = place_with_run();
    place.train_bare("bare");
    place.ok(&format!("train {TINY} --learning_rates 1e-3 1e-4 --run_dir search"));
    place.ok(&format!("train {TINY} --split contiguous --save_checkpoint --run_dir contiguous"));
    std::fs::create_dir(place.path("empty")).expect("room");
    let mistakes: &[(&str, i32, &[&str])] = &[
        (
            "generate run --prompt 'We are\nmany € ways'",
            FAILURE,
            &["--prompt", "'€' (U+20AC) at line 2, column 6", "leave it out"],
        ),
        ("generate run --checkpoint_step 9", FAILURE, &["run holds no checkpoint 9", "there are 1, 2"]),
        ("generate run --checkpoint_step 1 9", FAILURE, &["run holds no checkpoint 9"]),
        ("generate bare", FAILURE, &["bare holds no checkpoint", "they were removed"]),
        ("generate bare --best_eval_loss_model", FAILURE, &["bare has no losses.json", "--checkpoint_step"]),
        ("generate search --checkpoint_step 1", USAGE, &["search is a sweep", "one of its runs"]),
        ("generate run --temperature -1", USAGE, &["--temperature", "must be at least 0, not -1"]),
        ("generate run --top_k 0", USAGE, &["--top_k", "at least 1"]),
        ("generate run --top_p 2", USAGE, &["--top_p", "must be greater than 0 and at most 1, not 2"]),
        ("generate run --min_p 2", USAGE, &["--min_p", "must be between 0 and 1, not 2"]),
        (
            "generate run --repetition_penalty 0",
            USAGE,
            &["--repetition_penalty", "must be greater than 0, not 0"],
        ),
        ("generate run --num_samples 0", USAGE, &["--num_samples", "at least 1"]),
        ("generate run --max_new_tokens 0", USAGE, &["--max_new_tokens", "at least 1"]),
        ("generate run --stop ''", USAGE, &["--stop", "empty"]),
        ("generate run --precision int4", USAGE, &["'int4'", "int8"]),
        ("generate run --past_context wrap", USAGE, &["'wrap'", "exact", "rolling", "stop"]),
        (
            "generate run --all_checkpoints --checkpoint_step 1",
            USAGE,
            &["--all_checkpoints", "--checkpoint_step"],
        ),
        ("generate run --write_to_file ../x", USAGE, &["--write_to_file", "../x", "without directories"]),
        ("generate run --threads 0", USAGE, &["`--threads 0`", "at least 1"]),
        (
            "generate run --checkpoint_step 1 --best_eval_loss_model",
            USAGE,
            &["--best_eval_loss_model", "cannot"],
        ),
        ("eval none", FAILURE, &["none does not exist"]),
        (
            "eval contiguous --split test",
            USAGE,
            &["--part", "no such part", "choose eval", "--test_fraction 0.5"],
        ),
        ("plot none", FAILURE, &["none does not exist"]),
        ("plot plays.txt", FAILURE, &["plays.txt", "Not a directory"]),
        ("plot run --out curves.gif", USAGE, &["--out", "curves.gif", ".svg or .png"]),
        ("plot run --out none/curves.svg", FAILURE, &["none/curves.svg", "No such file or directory"]),
        ("runs none", FAILURE, &["none does not exist"]),
        ("runs", USAGE, &["no directory runs/", "give the directory of a run"]),
        ("runs empty", FAILURE, &["not a folio run"]),
        (
            "bench step --emb 10 --heads 3",
            USAGE,
            &["`--emb 10` is not divisible by `--heads 3`; use 9 or 12"],
        ),
        ("bench step --vocab 0", USAGE, &["`--vocab 0` is out of range"]),
        ("bench step --batch 0", USAGE, &["--batch", "at least 1"]),
        ("bench step --steps 0", USAGE, &["--steps", "at least 1"]),
    ];
    check_all(&place, mistakes);
}

#[test]
fn a_cause_is_reported_once() {
    let place = Place::new();
    for line in ["plot plays.txt".to_owned(), format!("train {TINY} --run_dir plays.txt/x")] {
        let reported = place.run(&line).stderr;
        assert_eq!(reported.matches("Not a directory").count(), 1, "{reported}");
    }
    let reported = place.run(&format!("train {DATA} --n_emb -3")).stderr;
    assert_eq!(reported.matches("--help").count(), 1, "{reported}");
}

#[test]
fn a_loss_that_is_not_finite_ends_the_run_with_advice() {
    let place = Place::new();
    // The number of steps of this many epochs must not overflow.
    let line = TINY.replace("--num_epochs 2", "--num_epochs 9223372036854775807");
    let ran = place.run(&format!("train {line} --learning_rates 1e30"));
    assert_eq!(ran.code, Some(FAILURE), "{}", ran.stderr);
    let last = ran.stderr.lines().last().expect("a message");
    for part in [
        "error: training diverged: 10 losses",
        "at step 11",
        "1.000e30",
        "lower `--learning_rates`",
        "`--grad_clip`",
    ] {
        assert!(last.contains(part), "lacks '{part}': {last}");
    }
}
