//! What a user made or trained is never lost.

use std::fs;

use serde_json::{Value, json};

use crate::mistakes::{FAILURE, check_refused, place_with_run};
use crate::place::{Place, TINY};

/// Checks that nothing is overwritten where a file stands in the way that folio did not write, and that all is as before.
#[track_caller]
fn check_stopped_by(place: &Place, name: &str, overwrite: &str) {
    place.write(name, "mine");
    check_refused(place, overwrite, FAILURE, &[name, "folio cannot verify that it wrote it", "move it away"]);
    assert_eq!(place.text(name), "mine");
    fs::remove_file(place.path(name)).expect("there");
}

#[test]
fn overwriting_deletes_only_what_folio_wrote() {
    let place = Place::new();
    let sweep = format!("train {TINY} --learning_rates 1e-3 1e-4 --run_dir search --overwrite");
    place.ok(&sweep);
    place.ok("plot search");
    place.ok("report search");
    for folder in ["search/run_5", "search/checkpoint_7"] {
        fs::create_dir_all(place.path(folder)).expect("room");
    }
    for name in [
        "search/run_5/mine.txt",
        "search/run_2/mine.txt",
        "search/run_2/checkpoint_2/mine.txt",
        "search/checkpoint_7/mine.txt",
    ] {
        check_stopped_by(&place, name, &sweep);
    }
    place.write("search/mine.txt", "mine");
    place.write("search/run_007", "a file that has nothing to do with a run");
    place.ok(&sweep);
    assert!(!place.path("search/report.html").exists(), "folio's own page and figures are gone");
    assert!(!place.path("search/losses.png").exists() && !place.path("search/losses.svg").exists());
    assert_eq!(place.text("search/mine.txt"), "mine");
    assert!(place.path("search/run_007").exists());
}

#[test]
fn files_with_the_names_of_a_run_s_are_not_taken_for_one() {
    let place = Place::new();
    fs::create_dir(place.path("project")).expect("room");
    for name in [
        "hyperparameters.json",
        "model_hyperparameters.json",
        "losses.json",
        "lrs.json",
        "status.json",
        "metrics.jsonl",
        "sweep.json",
        "vocab.json",
        "tokenizer.json",
        "report.html",
        "losses.svg",
        "losses.png",
        "latest",
        "best",
        "events.out.tfevents.0000000001.folio",
    ] {
        let name = format!("project/{name}");
        check_stopped_by(&place, &name, &format!("train {TINY} --run_dir project --overwrite"));
        check_stopped_by(&place, &name, &format!("train {TINY} --run_dir project"));
    }
    place.ok(&format!("train {TINY} --run_dir project"));
}

#[test]
fn what_came_after_a_checkpoint_is_not_removed_with_a_file_of_the_user_s() {
    let place = place_with_run();
    place.write("run/checkpoint_2/mine.txt", "mine");
    let line = "train --from_checkpoint --from_checkpoint_run_dir run --from_checkpoint_step 1 --num_epochs 1 \
                --run_dir run --overwrite";
    let ran = place.run(line);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(ran.stderr.contains("run/checkpoint_2/mine.txt"), "{}", ran.stderr);
    assert_eq!(place.text("run/checkpoint_2/mine.txt"), "mine");
    place.ok("generate run --max_new_tokens 3");
}

#[test]
fn every_saved_epoch_can_be_continued() {
    let place = place_with_run();
    let three = TINY.replace("--num_epochs 2", "--num_epochs 3");
    place.ok(&format!("train {three} --save_checkpoint --run_dir three"));
    assert!(!place.path("three/checkpoint_1/optimizer.safetensors").exists(), "weights alone are kept");
    for epoch in [1, 2, 3] {
        let line = format!(
            "train --from_checkpoint --from_checkpoint_run_dir three --from_checkpoint_step {epoch} --num_epochs 1 \
             --run_dir from_{epoch}"
        );
        let said = place.ok(&line).stderr;
        assert_eq!(said.contains("weights only, so AdamW starts fresh"), epoch == 1, "{said}");
        // An epoch has 13 steps.
        let state = place.json(&format!("from_{epoch}/latest/state.json"));
        assert_eq!(state["global_step"], 13 * (epoch + 1));
        assert_eq!(state["optimizer_steps"], if epoch == 1 { 13 } else { 13 * (epoch + 1) });
        let [all, before] = [format!("from_{epoch}"), "three".to_owned()]
            .map(|run| place.numbers(&format!("{run}/losses.json"), "/eval_losses"));
        assert_eq!(all[..epoch], before[..epoch], "the losses go on");
    }
}

#[test]
fn a_status_that_is_empty_or_damaged_stands_in_nobody_s_way() {
    for content in ["", "{", "{\"state\": \"lost\"}"] {
        let place = place_with_run();
        place.write("run/status.json", content);
        for line in ["runs run", "eval run", "report run", "plot run", "train --resume run --num_epochs 3"] {
            place.ok(line);
        }
        assert_eq!(place.json("run/status.json")["epoch"], 3);
    }
}

#[test]
fn a_run_is_not_resumed_with_settings_that_were_changed_by_hand() {
    let place = place_with_run();
    let settings = place.json("run/hyperparameters.json");
    for (name, value) in [
        ("learning_rate", json!(2e-3)),
        ("batch_size", json!(8)),
        ("beta2", json!(0.999)),
        ("lr_schedule", json!("cosine")),
        ("decay_all_parameters", json!(true)),
    ] {
        let mut changed = settings.clone();
        let then = std::mem::replace(&mut changed[name], value.clone());
        place.write("run/hyperparameters.json", changed.to_string());
        let reported = format!("was saved with {name} = {then}, but hyperparameters.json now says {value}");
        check_refused(&place, "train --resume run --num_epochs 3", FAILURE, &["run/checkpoint_2", &reported]);
    }
    // How long it trains, and what it saves, may change.
    let mut longer = settings;
    longer["num_epochs"] = json!(3);
    longer["keep"] = json!("all");
    place.write("run/hyperparameters.json", longer.to_string());
    place.ok("train --resume run");
    assert_eq!(place.link("run/latest"), "checkpoint_3");
}

#[test]
fn a_run_of_the_version_before_is_resumed() {
    let place = place_with_run();
    let whole = place_with_run();
    for line in ["runs run", "train --resume run --num_epochs 3"] {
        whole.ok(line);
    }
    for epoch in [1, 2] {
        // Format 2 had no settings beside the state.
        let path = format!("run/checkpoint_{epoch}");
        let mut state = place.json(&format!("{path}/state.json"));
        state.as_object_mut().expect("an object").remove("settings").expect("there");
        let state = state.to_string();
        let mut manifest = place.json(&format!("{path}/manifest.json"));
        manifest["format"] = json!(2);
        manifest["files"]["state.json"] =
            json!({ "bytes": state.len(), "sha256": folio::files::digest(state.as_bytes()) });
        place.write(&format!("{path}/state.json"), state);
        place.write(&format!("{path}/manifest.json"), manifest.to_string());
    }
    place.ok("train --resume run --num_epochs 3");
    let model = |place: &Place| place.read("run/checkpoint_3/model.safetensors");
    assert!(model(&place) == model(&whole));
    let format = |epoch: u64| place.json(&format!("run/checkpoint_{epoch}/manifest.json"))["format"].clone();
    assert_eq!((format(2), format(3)), (Value::from(2), Value::from(3)));
}

#[test]
fn continuing_in_place_keeps_what_the_run_kept() {
    let place = Place::new();
    let five = TINY.replace("--num_epochs 2", "--num_epochs 5");
    place.ok(&format!("train {five} --save_checkpoint --run_dir run"));
    let from =
        "train --from_checkpoint --from_checkpoint_run_dir run --from_checkpoint_step 5 --num_epochs 1";
    place.ok(&format!("{from} --run_dir run"));
    for epoch in 1..=6 {
        place.ok(&format!("generate run --checkpoint_step {epoch} --max_new_tokens 2"));
    }
}

#[test]
fn what_is_kept_can_be_changed_when_a_run_is_resumed() {
    let place = Place::new();
    place.ok(&format!("train {TINY} --run_dir run"));
    place.ok("train --resume run --num_epochs 5 --keep all");
    for epoch in 1..=5 {
        assert!(place.path(&format!("run/checkpoint_{epoch}/optimizer.safetensors")).exists(), "{epoch}");
    }
}

#[test]
fn files_of_other_programs_are_not_taken_for_folio_s() {
    let place = place_with_run();
    // A tokenizer, without a run beside it.
    fs::create_dir(place.path("tokenizer")).expect("room");
    place.write("tokenizer/tokenizer.json", place.read("run/tokenizer.json"));
    for overwrite in ["", "--overwrite"] {
        let line = format!("train {TINY} --run_dir tokenizer {overwrite}");
        check_refused(&place, &line, FAILURE, &["tokenizer/tokenizer.json", "folio cannot verify"]);
    }
    // Weights that another program saved where folio's were.
    let mut weights = place.read("run/checkpoint_1/model.safetensors");
    weights.extend([0; 4]);
    place.write("run/checkpoint_1/model.safetensors", weights);
    let line = format!("train {TINY} --run_dir run --overwrite");
    check_refused(&place, &line, FAILURE, &["run/checkpoint_1/model.safetensors", "folio cannot verify"]);
}

#[test]
fn checkpoints_that_were_passed_over_stay() {
    let place = Place::new();
    let three = TINY.replace("--num_epochs 2", "--num_epochs 3");
    place.ok(&format!("train {three} --run_dir run"));
    place.write("run/checkpoint_3/optimizer.safetensors", "damaged");
    let running = place.run("train --resume run --skip_damaged --num_epochs 2");
    assert_eq!(running.code, Some(0), "{}", running.stderr);
    assert!(place.path("run/checkpoint_3/model.safetensors").exists(), "its weights may be what is wanted");
}

#[test]
fn a_search_goes_on_without_the_status_of_a_run_that_is_further() {
    let place = Place::new();
    let three = TINY.replace("--num_epochs 2", "--num_epochs 3");
    let search = "--learning_rates 1e-3 1e-4 1e-5 --search halving --halving_factor 3";
    place.ok(&format!("train {three} {search} --run_dir search"));
    let before = place.ok("runs search").stdout;
    assert!(place.path("search/run_1/checkpoint_3").exists(), "{before}");
    place.write("search/run_1/status.json", "");
    place.ok("train --resume search");
    assert_eq!(place.ok("runs search").stdout, before);
}
