//! Distillation: `folio train --teachers`.

use std::fs;

use serde_json::json;

use crate::mistakes::{FAILURE, USAGE, check_all};
use crate::place::{Place, TINY};

/// The line about the computation of the teachers' probabilities.
const COMPUTING: &str = "computing the probabilities of";

/// Two teachers, one and two, of a split that does not depend on the seed.
fn place() -> (Place, String) {
    let place = Place::new();
    let train = format!("train {TINY} --split contiguous");
    place.ok(&format!("{train} --seed 1 --run_dir one"));
    place.ok(&format!("{} --seed 2 --run_dir two", train.replace("--n_emb 16", "--n_emb 24")));
    (place, train)
}

#[test]
fn a_run_with_teachers_is_trained_resumed_and_follows_moved_teachers() {
    let (place, train) = place();
    let ran = place.ok(&format!("{train} --teachers one two/latest --distill_weight 0.5 --run_dir student"));
    let said: Vec<&str> = ran.stderr.lines().filter(|line| line.starts_with(COMPUTING)).collect();
    assert_eq!(said.len(), 1, "{}", ran.stderr);
    assert!(said[0].starts_with(&format!("{COMPUTING} 2 teachers for ")), "{said:?}");
    let recorded = place.json("student/hyperparameters.json");
    let paths: Vec<&str> = recorded["teachers"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|path| path.as_str().expect("text"))
        .collect();
    let [one, two] = paths[..] else { panic!("{paths:?}") };
    assert!(one.starts_with('/') && one.contains("one/checkpoint_") && two.ends_with("two/checkpoint_2"));
    assert_eq!(
        (recorded["teachers_sha256"].as_array().map(Vec::len), &recorded["distill_weight"]),
        (Some(2), &json!(0.5))
    );

    // The same bits in two parts.
    place
        .ok(&format!("{train} --teachers one two/latest --distill_weight 0.5 --max_steps 5 --run_dir parts"));
    place.ok("train --resume parts --max_steps 1000");
    let weights =
        |run: &str| fs::read(place.path(&format!("{run}/checkpoint_2/model.safetensors"))).expect("saved");
    assert!(weights("parts") == weights("student"));
    // Nothing is left, so that nothing is computed.
    assert!(!place.ok("train --resume parts").stderr.contains(COMPUTING));

    fs::rename(place.path("one"), place.path("moved")).expect("it can be moved");
    let moved = one.rsplit('/').next().expect("a name");
    check_all(
        &place,
        &[
            ("train --resume student --num_epochs 3", USAGE, &["--teachers", "one/checkpoint_", "new path"]),
            (
                "train --resume student --num_epochs 3 --teachers two",
                USAGE,
                &["--teachers", "has 2 teachers"],
            ),
            (
                "train --resume student --num_epochs 3 --teachers two two/latest",
                FAILURE,
                &["two/checkpoint_", "other weights", "--teachers"],
            ),
        ],
    );
    place.ok(&format!("train --resume student --num_epochs 3 --teachers moved/{moved} two/latest"));
    // A run that continues another has teachers only if they are given again.
    let start =
        "train --from_checkpoint --from_checkpoint_run_dir student --from_checkpoint_step 3 --num_epochs 1";
    assert!(!place.ok(&format!("{start} --run_dir more")).stderr.contains(COMPUTING));
    assert!(place.ok(&format!("{start} --teachers two --run_dir again")).stderr.contains(COMPUTING));
}

#[test]
fn the_runs_of_a_sweep_share_their_teachers() {
    let (place, train) = place();
    let ran = place
        .ok(&format!("{train} --teachers one two --distill_weight 0.5 0.9 --block_sizes 8 --run_dir search"));
    assert_eq!(ran.stderr.matches(COMPUTING).count(), 1, "{}", ran.stderr);
    let weight =
        |run: u64| place.json(&format!("search/run_{run}/hyperparameters.json"))["distill_weight"].clone();
    assert_eq!([weight(1), weight(2)], [json!(0.5), json!(0.9)]);
}

#[test]
fn unsuitable_teachers_are_refused() {
    let (place, train) = place();
    place.ok(&format!("train {TINY} --split blocks --max_steps 1 --run_dir blocks"));
    place.ok(&format!("{train} --tokenizer_type corpus_bpe --vocab_size 260 --max_steps 1 --run_dir bpe"));
    let with = |teachers: &str| format!("{train} --run_dir student --teachers {teachers}");
    let ran = place.ok(&format!("{train} --max_steps 1 --distill_weight 0.5 --run_dir alone"));
    assert!(
        ran.stderr.contains("warning: --distill_weight: has no effect without teachers; add `--teachers`"),
        "{}",
        ran.stderr
    );
    check_all(
        &place,
        &[
            (&with("one none"), FAILURE, &["none does not exist"]),
            (&with("one blocks"), FAILURE, &["blocks/checkpoint_1", "another split"]),
            (&with("bpe"), FAILURE, &["bpe/checkpoint_1", "another tokenizer"]),
            (&with("one --distill_weight 1.5"), USAGE, &["--distill_weight 1.5", "from 0 to 1"]),
            (
                &format!("{train} --teachers one --run_dir one --overwrite"),
                USAGE,
                &["--run_dir one", "one of the --teachers"],
            ),
        ],
    );
    assert!(!place.path("student").exists());
}
