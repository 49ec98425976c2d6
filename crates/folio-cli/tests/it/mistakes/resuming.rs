//! Runs that cannot be resumed, and searches with contradictory flags.

use super::{FAILURE, USAGE, check_all, check_refused, place_with_run};
use crate::place::{Place, TINY, plays};

#[test]
fn runs_that_cannot_be_resumed() {
    let place = place_with_run();
    place.train_bare("bare");
    place.ok(&format!("train {TINY} --learning_rates 1e-3 1e-4 --run_dir search"));
    place.write("other.txt", plays().to_uppercase());
    place.write("moved.txt", plays());
    place.write("wide.toml", "n_emb = 32\n");
    let mistakes: &[(&str, i32, &[&str])] = &[
        ("train --resume none", FAILURE, &["none does not exist"]),
        ("train --resume .", FAILURE, &["not a folio run", "hyperparameters.json"]),
        ("train --resume bare", FAILURE, &["bare has finished, and its checkpoints were removed"]),
        (
            "train --resume run --learning_rates 1",
            USAGE,
            &["--learning_rates: the run in run has 0.001", "leave the flag out", "--from_checkpoint"],
        ),
        ("train --resume run --seed 1", USAGE, &["--seed: the run in run has 1337"]),
        ("train --resume run --config wide.toml", USAGE, &["--n_emb: the run in run has 16"]),
        ("train --resume run --preset quick", USAGE, &["the run in run has", "leave the flag out"]),
        ("train --resume run --dropouts 0.1 0.2", USAGE, &["--dropouts: the run in run has 0.1"]),
        ("train --resume run --trials 3", USAGE, &["--trials: the run in run has none"]),
        (
            "train --resume run --data other.txt",
            FAILURE,
            &["other.txt: is not the text that the run was trained on"],
        ),
        ("train --resume run --run_dir x", USAGE, &["--run_dir x: a resumed run stays in run"]),
        ("train --resume run --num_epochs 0", USAGE, &["`--num_epochs 0` is out of range"]),
        ("train --resume run --num_epochs 1", USAGE, &["--num_epochs", "1 is fewer than the 2 epochs"]),
        ("train --resume run --max_steps 20", USAGE, &["--max_steps", "20 is fewer than the 26 steps"]),
        ("train --resume run --overwrite", USAGE, &["--overwrite"]),
        ("train --resume run --from_checkpoint", USAGE, &["--from_checkpoint"]),
        ("train --skip_damaged", USAGE, &["--resume"]),
        (
            "train --resume search --num_epochs 3",
            USAGE,
            &["--num_epochs: the sweep in search keeps its settings"],
        ),
        ("train --resume search --jobs 0", USAGE, &["`--jobs 0`", "at least 1"]),
        ("train {TINY} --run_dir run", FAILURE, &["run already holds a run", "--resume run"]),
        ("export none", FAILURE, &["none does not exist"]),
        ("export run --out none/x.csv", FAILURE, &["none/x.csv", "No such file or directory"]),
    ];
    check_all(&place, mistakes);
    // Flags may repeat the run's settings, and the text may have moved.
    place.ok("train --resume run --seed 1337 --dropouts 0.1 --precision auto --data moved.txt --run_dir run");
    place.write("search/sweep.json", "{\"plan\": {\"kind\": \"full\"}, \"varying\": [], \"runs\": []}");
    check_refused(&place, "train --resume search", FAILURE, &["sweep.json", "is damaged"]);
    // The error names the newest intact checkpoint.
    place.ok("train --resume run --num_epochs 3");
    let name = "run/checkpoint_3/model.safetensors";
    let whole = place.read(name);
    place.write(name, &whole[1..]);
    let expected = ["checkpoint_3", "model.safetensors has", "--skip_damaged resumes from", "checkpoint_2"];
    check_refused(&place, "train --resume run", FAILURE, &expected[..3]);
    check_refused(&place, "generate run", FAILURE, &["checkpoint_3", "is damaged"]);
}

#[test]
fn searches_with_contradictory_flags() {
    let place = Place::new();
    let mistakes: &[(&str, i32, &[&str])] = &[
        ("train {TINY} --trials 3", USAGE, &["--trials", "--search random"]),
        ("train {TINY} --search random", USAGE, &["`--search random`", "add `--trials`"]),
        ("train {TINY} --search random --trials 0", USAGE, &["`--trials 0`", "at least 1"]),
        (
            "train {TINY} --search rand --trials 2",
            USAGE,
            &["unknown search 'rand'", "mean 'random'", "grid, random"],
        ),
        (
            "train {TINY} --search halving --trials 4 --no_save",
            USAGE,
            &["--no_save", "halving resumes", "leave the flag out"],
        ),
        (
            "train {TINY} --search halving --trials 4 --halving_factor 1",
            USAGE,
            &["`--halving_factor 1`", "at least 2"],
        ),
        ("train {TINY} --search halving --trials 4 --max_steps 9", USAGE, &["--max_steps", "--num_epochs"]),
        ("train {TINY} --halving_factor 3", USAGE, &["--halving_factor", "--search halving"]),
        (
            "train {TINY} --learning_rates 1e-4..1e-3",
            USAGE,
            &["--learning_rates", "is a range", "--search random"],
        ),
        ("train {TINY} --learning_rates 1e-3..1e-4", USAGE, &["1e-3..1e-4", "from a lower to a higher"]),
        ("train {TINY} --learning_rates 0..1:log", USAGE, &["0..1:log", "above 0"]),
        (
            "train {DATA} --search random --trials 2 --dropouts 0.5..1.5 --seed 3",
            USAGE,
            &["--dropouts", "from 0 to less than 1"],
        ),
        ("train {TINY} --keep everything --run_dir x", USAGE, &["'everything'", "all, weights, best"]),
        ("train {TINY} --save_every 0 --run_dir x", USAGE, &["`--save_every 0` is"]),
        ("train {TINY} --max_skipped_steps 0", USAGE, &["`--max_skipped_steps 0` is"]),
    ];
    check_all(&place, mistakes);
}
