//! Going on from a checkpoint, in the run's own directory or another.

use serde_json::json;

use crate::place::{Place, TINY};

const SAVED: &str = "--save_losses --save_checkpoint --keep all";
/// Everything at a value that the next run could lose: a schedule with restarts, dropout, a seed.
const SCHEDULE: &str =
    "--lr_schedule cosine_warm_restarts --cosine_T_max 2 --cosine_lr_restart_decay 0.5 --seed 5";

fn from(run: &str, step: u64) -> String {
    format!("--from_checkpoint --from_checkpoint_run_dir {run} --from_checkpoint_step {step}")
}

/// A place with a run of two epochs in `run`.
fn place_with_run() -> Place {
    let place = Place::new();
    place.ok(&format!("train {TINY} {SCHEDULE} {SAVED} --run_dir run"));
    place
}

#[test]
fn a_continued_run_equals_one_that_never_stopped() {
    let place = place_with_run();
    let four = TINY.replace("--num_epochs 2", "--num_epochs 4");
    place.ok(&format!("train {four} {SCHEDULE} {SAVED} --run_dir whole"));
    // Nothing but the checkpoint is named: all else is the run's.
    place.ok(&format!("train {} {SAVED} --num_epochs 2 --run_dir more", from("run", 2)));
    place.ok(&format!("train {} {SAVED} --num_epochs 2 --run_dir run", from("run", 2)));
    let inside = ["model.safetensors", "optimizer.safetensors", "config.json"];
    let checkpoints = [3, 4].map(|n| inside.map(|name| format!("checkpoint_{n}/{name}")));
    let files = checkpoints.concat();
    for name in files.iter().map(String::as_str).chain(["losses.json", "lrs.json", "tokenizer.json"]) {
        let whole = place.read(&format!("whole/{name}"));
        assert!(place.read(&format!("more/{name}")) == whole, "{name} in another directory");
        assert!(place.read(&format!("run/{name}")) == whole, "{name} in the run's own");
    }
    // Its state says in addition where it started.
    let state = |run: &str| {
        let mut state = place.json(&format!("{run}/checkpoint_4/state.json"));
        state.as_object_mut().expect("an object").remove("start_step");
        state
    };
    assert_eq!(state("more"), state("whole"));
    assert_eq!(state("run"), state("whole"));
    assert!(place.path("run/checkpoint_1").exists(), "going on keeps what is there");
}

#[test]
fn a_continued_run_inherits_settings_that_flags_may_change() {
    let place = place_with_run();
    place.ok(&format!("train {} --num_epochs 1 --learning_rates 5e-4 --run_dir more", from("run", 1)));
    let settings = place.json("more/hyperparameters.json");
    let expected = json!({
        "learning_rate": 5e-4, "num_epochs": 1, "seed": 5, "n_emb": 16, "block_size": 16, "dropout": 0.1,
        "lr_schedule": "cosine_warm_restarts", "cosine_T_max": 2,
    });
    for (key, value) in expected.as_object().expect("an object") {
        assert_eq!(settings[key], *value, "{key}");
    }
}

#[test]
fn the_schedule_goes_on_unless_it_is_restarted() {
    let place = place_with_run();
    let more = format!("train {} --save_losses --num_epochs 1", from("run", 1));
    place.ok(&format!("{more} --run_dir on"));
    place.ok(&format!("{more} --run_dir again --restart_schedule"));
    let middle = 1e-6 + (1e-3 - 1e-6) * (1.0 + std::f64::consts::FRAC_PI_2.cos()) / 2.0;
    assert_eq!(place.numbers("on/lrs.json", ""), [1e-3, middle]);
    assert_eq!(place.numbers("again/lrs.json", ""), [1e-3, 1e-3]);
}

#[test]
fn overwriting_what_came_after_removes_all_of_it() {
    let place = place_with_run();
    place.ok(&format!("train {} {SAVED} --num_epochs 2 --run_dir run", from("run", 2)));
    place.ok(&format!("train {} {SAVED} --num_epochs 1 --run_dir run --overwrite", from("run", 1)));
    assert!(place.path("run/checkpoint_2").exists());
    for later in [3, 4] {
        let path = place.path(&format!("run/checkpoint_{later}"));
        assert!(!path.exists(), "checkpoint {later} is of the history that was given up");
    }
}

#[test]
fn overwriting_replaces_a_run_and_leaves_other_files() {
    let place = place_with_run();
    place.write("run/notes.txt", "mine");
    place.ok(&format!("train {TINY} --run_dir run --overwrite"));
    assert_eq!(place.text("run/notes.txt"), "mine");
    let place_with_one = Place::new();
    place_with_one.ok(&format!("train {TINY} --run_dir run"));
    let mut names = place.names("run");
    names.retain(|name| name != "notes.txt");
    assert_eq!(names, place_with_one.names("run"), "nothing is left of the run before");
}

#[test]
fn the_best_model_of_a_continued_run_is_one_that_it_saved() {
    let place = place_with_run();
    // So high a rate makes every further epoch worse than those before, which have no checkpoint here.
    let worse = "--learning_rates 3 --lr_schedule const";
    place.ok(&format!("train {} {SAVED} {worse} --num_epochs 2 --run_dir more", from("run", 2)));
    let eval = place.numbers("more/losses.json", "/eval_losses");
    assert!(eval[2].min(eval[3]) > eval[1], "{eval:?}");
    let best = if eval[3] < eval[2] { 4 } else { 3 };
    let ran = place.ok("eval more --best_eval_loss_model");
    assert!(ran.stdout.starts_with(&format!("more/checkpoint_{best}\n")), "{}", ran.stdout);
}
