//! Both spellings of every flag; explicit flags override presets and config files.

use std::collections::BTreeSet;

use serde_json::json;

use crate::importing::golden;
use crate::place::{MODEL, Place, TINY, plays, words};

/// Every flag with an underscore that a fresh run takes, none at its default.
const ALL_FLAGS: &str = "--eval_data eval.txt --special_tokens --tokenizer_type corpus_bpe --vocab_size 260 --n_emb 16 --n_heads 4 --n_blocks 2 --block_sizes 8 --batch_sizes 3 --block_offset random --gradient_accumulation_steps 2 --freeze embeddings,blocks:1 --label_smoothing 0.1 --distill_weight 0.5 --ema_decay 0.9 --eval_every 1 --patience 9 --test_fraction 0.5 --muon_learning_rate 1e-3 --muon_momentum 0.9 --dropout_final 0.1 --weight_decay_final 0.1 --wsd_decay 0.5 \
    --num_epochs 3 --max_steps 2 --learning_rates 2e-3 --weight_decays 0.5 --decay_all_parameters --grad_clip 0.5 \
    --lr_schedule cosine_warm_restarts --lr_schedule_unit step --warmup_steps 1 --cosine_final_lr 1e-5 \
    --cosine_T_max 4 --cosine_T_mult 2 --cosine_lr_restart_decay 0.5 --run_dir run --save_losses --save_checkpoint \
    --sample_tokens 3 --save_every 1 --max_skipped_steps 3 --reduce_precision bf16";
/// Every flag with an underscore that only a run that begins with an imported model takes.
const BEGINNING: &str = "--init_from imported";
/// Every flag with an underscore that only successive halving takes.
const SEARCHING: &str = "--search halving --halving_factor 2 --trials 2";
/// The flag that turns off saving.
const UNSAVED: &str = "--no_save";
/// Every flag with an underscore that only a resumed run takes.
const RESUMING: &str = "--resume run --skip_damaged";
/// Every flag with an underscore that only a continued run takes.
const CONTINUING: &str = "--from_checkpoint --from_checkpoint_run_dir run --from_checkpoint_step 1 --restart_schedule \
     --weights_only --extend_vocab";

fn kebab(line: &str) -> String {
    let spell = |word: &str| if word.starts_with("--") { word.replace('_', "-") } else { word.to_owned() };
    line.split_whitespace().map(spell).collect::<Vec<_>>().join(" ")
}

#[test]
fn both_spellings_of_a_flag_mean_the_same() {
    let snake = Place::new();
    let other = Place::new();
    [&snake, &other].into_iter().for_each(|place| place.write("eval.txt", plays().to_uppercase()));
    // Both use the same file, so that the recorded path is the same.
    let data = snake.path("plays.txt").display().to_string();
    let (first, more) = (
        format!("train --data '{data}' {ALL_FLAGS}"),
        format!("train {CONTINUING} --max_steps 4 --save_losses --run_dir more"),
    );
    let search =
        format!("train --data '{data}' --num_epochs 1 --n_emb 16 --n_heads 2 {SEARCHING} --run_dir search");
    let resume = format!("train {RESUMING} --max_steps 5");
    let model = golden("hf").display().to_string();
    let import = format!("import '{model}' --run_dir imported");
    let begin = format!("train --data '{data}' --max_steps 1 --batch_sizes 2 {BEGINNING} --run_dir tuned");
    let unsaved = format!("train --data '{data}' --max_steps 1 --n_emb 16 --n_heads 2 {UNSAVED}");
    for line in [&first, &more, &search, &resume, &import, &begin, &unsaved] {
        snake.ok(line);
        let (command, flags) = line.split_once(' ').expect("a command");
        other.ok(&format!("{command} {}", kebab(flags)));
    }
    let relative = |place: &Place| -> Vec<(String, String)> {
        let path = |place: &Place| place.path("").display().to_string();
        let (own, data) = (path(place), path(&snake));
        let text = |content: Vec<u8>| String::from_utf8_lossy(&content).replace(&own, "").replace(&data, "");
        let files = place.names("").into_iter().zip(place.files("").into_values().map(text));
        // Metrics contain times. A run of an imported model records the path of its tokenizer, which its manifest hashes.
        let differs =
            |name: &str| name.ends_with("metrics.jsonl") || name == "tuned/checkpoint_1/manifest.json";
        files.filter(|(name, _)| !differs(name)).collect()
    };
    assert_eq!(snake.names(""), other.names(""));
    for ((name, snake), (_, other)) in relative(&snake).into_iter().zip(relative(&other)) {
        assert!(snake == other, "{name} differs: {snake:.2000}\n\n{other:.2000}");
    }
    assert_eq!(snake.json("run/hyperparameters.json")["cosine_T_mult"], json!(2));
}

#[test]
fn auto_reports_once_which_precision_it_chose_and_why() {
    let place = Place::new();
    let chosen = |line: &str| {
        let said = place.ok(line).stderr;
        said.lines().find_map(|line| line.strip_prefix("precision ")).map(str::to_owned)
    };
    let train = format!("train {TINY} --max_steps 2 --save_losses --save_checkpoint");
    let line = chosen(&format!("{train} --run_dir auto")).expect("a line about the precision");
    let taken = place.json("auto/hyperparameters.json")["precision"].clone();
    let (precision, why) = line.split_once(": ").expect("a reason");
    assert_eq!(taken, json!(precision));
    assert!(why.contains("bf16"), "{line}");
    // A given precision and a resumed run involve no choice.
    assert_eq!(chosen(&format!("{train} --precision f32 --run_dir given")), None);
    assert_eq!(chosen("train --resume auto --max_steps 3"), None);
    assert_eq!(place.json("auto/hyperparameters.json")["precision"], taken);
}

#[test]
fn no_flag_is_missing_from_the_test_of_spellings() {
    let help = Place::new().ok("train --help").stdout;
    // The examples below the list show both spellings.
    let list = help.split("Examples:").next().expect("a list of flags");
    let is_part = |c: char| c == '-' || c == '_' || c.is_ascii_alphanumeric();
    // Aliases have their own test.
    let list: String = list
        .split("[alias")
        .enumerate()
        .map(
            |(index, part)| if index == 0 { part } else { part.split_once(']').map_or("", |(_, rest)| rest) },
        )
        .collect();
    let listed: BTreeSet<&str> =
        list.split(|c| !is_part(c)).filter(|word| word.starts_with("--") && word.contains('_')).collect();
    let tested = words(&format!("{ALL_FLAGS} {BEGINNING} {CONTINUING} {SEARCHING} {RESUMING} {UNSAVED}"));
    let tested: BTreeSet<&str> =
        tested.iter().map(String::as_str).filter(|word| word.contains("--") && word.contains('_')).collect();
    assert_eq!(listed, tested);
}

#[test]
fn capital_letters_in_a_flag_may_be_lowercase() {
    let place = Place::new();
    place.ok(&format!("train {TINY} --max_steps 1 --cosine-t-max 3 --cosine_t_mult 2 --run_dir run"));
    let settings = place.json("run/hyperparameters.json");
    assert_eq!((&settings["cosine_T_max"], &settings["cosine_T_mult"]), (&json!(3), &json!(2)));
}

#[test]
fn a_flag_wins_over_a_config_file_over_a_preset_over_the_default() {
    let place = Place::new();
    place.write(
        "mine.toml",
        "n_emb = 24\nn_heads = 2\nn_blocks = 1\nbatch_sizes = 5\nblock_sizes = 16\ncosine_T_max = 7\n",
    );
    let flags = "--n_emb 16 --data plays.txt --max_steps 1 --run_dir run";
    place.ok(&format!("train --preset quick --config mine.toml {flags}"));
    let settings = place.json("run/hyperparameters.json");
    let expected = json!({
        "n_emb": 16,                                                    // the flag's, before 24 and 128
        "n_heads": 2, "n_blocks": 1, "batch_size": 5, "cosine_T_max": 7, // the file's, before the preset's
        "split": "contiguous", "weight_decay": 0.1, "warmup_steps": 100, // the preset's
        "beta1": 0.9, "tokenizer_type": "chrs", "max_steps": 1,          // the default, and a flag of neither
    });
    for (key, value) in expected.as_object().expect("an object") {
        assert_eq!(settings[key], *value, "{key}");
    }
    assert!(!place.path("runs").exists(), "the flag overrides the preset's run_dir too");
}

#[test]
fn every_preset_runs_with_smaller_sizes() {
    for preset in ["quick", "shakespeare-best", "shakespeare-char", "shakespeare-bpe", "nanogpt-cpu"] {
        let place = Place::new();
        let smaller =
            "--block_sizes 8 --batch_sizes 2 --max_steps 1 --save_checkpoint=false --sample_tokens 4";
        place.ok(&format!("train --preset {preset} {MODEL} {smaller}"));
        let run = format!("runs/{preset}");
        let settings = place.json(&format!("{run}/hyperparameters.json"));
        assert_eq!(settings["save_losses"], true, "{preset} says so");
        assert_eq!(settings["save_checkpoint"], false, "a switch of a preset can be turned off");
        place.ok(&format!(
            "train --preset {preset} {MODEL} --block_sizes 8 --batch_sizes 2 --max_steps 1 --no_save"
        ));
    }
}

#[test]
fn json_reports_are_one_object_per_line_and_nothing_else() {
    let place = Place::new();
    let ran = place.ok(&format!("train {TINY} --learning_rates 1e-3 1e-4 --json --sample_tokens 5"));
    let reports: Vec<serde_json::Value> =
        ran.stdout.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect();
    let reported: Vec<_> =
        reports.iter().map(|report| (report["epoch"].clone(), report["lr"].clone())).collect();
    let expected = [(1, 1e-3), (2, 1e-3), (1, 1e-4), (2, 1e-4)].map(|(epoch, lr)| (json!(epoch), json!(lr)));
    assert_eq!(reported, expected);
    for key in ["step", "train_loss", "eval_loss", "seconds", "tokens_per_s"] {
        assert!(reports.iter().all(|report| report[key].is_number()), "{key}: {reports:?}");
    }
}

#[test]
fn the_names_that_other_programs_use_mean_the_same_as_flags_and_in_config_files() {
    let place = Place::new();
    let model = "--data plays.txt --n_emb 16 --n_heads 2 --n_blocks 1 --max_steps 1";
    place.ok(&format!(
        "train {model} --lr 2e-3 --dropout 0.3 --batch_size 3 --block_size 8 --epochs 4 --run_dir flags"
    ));
    let kebab = "--lr=2e-3 --dropout 0.3 --batch-size 3 --block-size 8 --epochs 4";
    place.ok(&format!("train {model} {kebab} --run_dir kebab"));
    place.write("mine.toml", "lr = 2e-3\ndropout = 0.3\nbatch_size = 3\nblock_size = [8]\nepochs = 4\n");
    place.ok(&format!("train {model} --config mine.toml --run_dir file"));
    let expected = json!({
        "learning_rate": 2e-3, "dropout": 0.3, "batch_size": 3, "block_size": 8, "num_epochs": 4,
    });
    for run in ["flags", "kebab", "file"] {
        let settings = place.json(&format!("{run}/hyperparameters.json"));
        for (key, value) in expected.as_object().expect("an object") {
            assert_eq!(settings[key], *value, "{run}: {key}");
        }
    }
    // Setting one value under two names is a mistake.
    place.write("twice.toml", "lr = 2e-3\nlearning_rates = 1e-3\n");
    let ran = place.run(&format!("train {model} --config twice.toml"));
    assert!(ran.code == Some(2) && ran.stderr.contains("learning_rates is set twice"), "{}", ran.stderr);
}

#[test]
fn values_may_be_separated_by_commas() {
    let place = Place::new();
    place
        .ok(&format!("train {TINY} --max_steps 1 --lr 1e-3,5e-4 --weight_decays 0,0.1 0.2 --run_dir search"));
    let sweep = place.json("search/sweep.json");
    assert_eq!(sweep["varying"], json!(["learning_rate", "weight_decay"]));
    assert_eq!(sweep["runs"].as_array().map(Vec::len), Some(6));
}

#[test]
fn texts_may_begin_with_hyphens() {
    let place = Place::new();
    place.write("dashes.txt", "- hello, --x and -7: \n".repeat(50));
    place.ok(&format!("train {TINY} --data dashes.txt --num_epochs 1 --save_checkpoint --run_dir run")
        .replace("--data plays.txt", "")
        .replace("--num_epochs 2", ""));
    for prompt in ["- hello", "--x", "-7", "-", "--"] {
        for line in [
            format!("generate run --max_new_tokens 3 --seed 1 --prompt '{prompt}'"),
            format!("generate run --max_new_tokens 3 --seed 1 --prompt='{prompt}'"),
        ] {
            let ran = place.ok(&line);
            assert!(ran.stdout.starts_with(prompt), "{line}: {}", ran.stdout);
        }
        place.ok(&format!("generate run --max_new_tokens 3 --stop '{prompt}' --stop -x"));
    }
    let ran = place.ok_with("chat run --max_new_tokens 2 --stop --x --stop '- '", "hello\n");
    assert!(!ran.stdout.is_empty());
}
