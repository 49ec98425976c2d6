//! The list of runs, runs in progress, and changes on disk.

use std::fs;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use folio::run_dir::{RunDir, RunLock};
use folio::tokenizer::Tokenizer;
use folio::train::Event;
use folio_serve::{Options, Server};
use serde_json::{Value, json};

use crate::runs::{copy, plays, train_telling};
use crate::site::{Site, limits};

async fn serving(path: impl Into<PathBuf>) -> Site {
    Site::serving(Options { runs: vec![path.into()], limits: limits(), ..Options::default() }).await
}

/// The entry of /api/runs with this id.
async fn run(site: &Site, id: &str) -> Value {
    let (_, answer) = site.get("/api/runs").await;
    let runs = answer["runs"].as_array().expect("a list");
    runs.iter().find(|run| run["id"] == id).unwrap_or_else(|| panic!("no {id}: {answer}")).clone()
}

async fn records(site: &Site, id: &str, after: u64) -> (Vec<Value>, u64, String) {
    let (status, answer) = site.get(&format!("/api/runs/{id}/records?after={after}")).await;
    assert_eq!(status, 200, "{answer}");
    let records = answer["records"].as_array().expect("a list").clone();
    let generation = answer["generation"].as_str().expect("a string").to_owned();
    (records, answer["next"].as_u64().expect("a number"), generation)
}

/// Trains in the background and waits after each epoch for a message to continue.
fn train_by_epochs(path: PathBuf) -> (Receiver<u64>, Sender<()>, std::thread::JoinHandle<()>) {
    let (ended, epochs) = channel();
    let (resume, resumed) = channel();
    let train = move || {
        fs::create_dir(&path).expect("room");
        let _lock = RunLock::take(&RunDir::new(&path)).expect("nobody else writes here");
        train_telling(&path, Arc::new(Tokenizer::chars(&plays())), &plays(), &mut |event| {
            if let Event::EpochEnded { epoch, .. } = event {
                ended.send(*epoch).expect("somebody waits");
                resumed.recv().expect("somebody says so");
            }
        });
    };
    (epochs, resume, std::thread::spawn(train))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_in_progress_is_visible() {
    let directory = tempfile::tempdir().expect("room");
    copy("plain", &directory.path().join("older"));
    let site = serving(directory.path()).await;
    let (epochs, resume, thread) = train_by_epochs(directory.path().join("live"));
    let (mut seen, mut next, mut first) = (Vec::new(), 0, None);
    for epoch in 1..=3 {
        assert_eq!(epochs.recv().expect("it trains"), epoch);
        let response = run(&site, "live").await;
        assert_eq!(response["state"], "running", "{response}");
        assert_eq!(response["num_epochs"], 3);
        let (new, place, generation) = records(&site, "live", next).await;
        assert_eq!(first.get_or_insert(generation.clone()), &generation);
        assert!(!new.is_empty() && place == next + new.len() as u64);
        assert_eq!(new.last().expect("records")["epoch"], epoch);
        let step = new.last().expect("records")["step"].clone();
        assert_eq!(response["step"], step);
        seen.extend(new);
        next = place;
        resume.send(()).expect("it waits");
    }
    thread.join().expect("it trained");
    let response = run(&site, "live").await;
    assert_eq!((&response["state"], &response["epoch"]), (&json!("finished"), &json!(3)));
    assert_eq!(response["steps"], response["step"]);
    assert!(response["parameters"].as_u64().is_some_and(|count| count > 1000), "{response}");
    assert_eq!(records(&site, "live", next).await.0, Vec::<Value>::new());
    let own = folio::records::read(&RunDir::new(directory.path().join("live"))).expect("readable");
    assert_eq!(seen, own);
    let losses = own.iter().filter_map(|record| record["eval_loss"].as_f64());
    assert_eq!(response["best_eval_loss"].as_f64(), losses.reduce(f64::min));
    // Its checkpoints can be used at once.
    site.complete(json!({ "model": "live:checkpoint_2" })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_of_each_run_is_reported() {
    let directory = tempfile::tempdir().expect("room");
    let path = directory.path().join("mine");
    copy("plain", &path);
    let site = serving(&path).await;
    let status = path.join("status.json");
    let text = fs::read_to_string(&status).expect("a file");
    for (state, wanted) in
        [("stopped", "stopped"), ("diverged", "diverged"), ("failed", "failed"), ("running", "killed")]
    {
        fs::write(&status, text.replace("finished", state)).expect("room");
        assert_eq!(run(&site, "mine").await["state"], wanted);
    }
    let _lock = RunLock::take(&RunDir::new(&path)).expect("free");
    assert_eq!(run(&site, "mine").await["state"], "running");
    fs::remove_file(&status).expect("it is there");
    assert_eq!(run(&site, "mine").await["state"], "unknown");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_paged_and_files_may_be_replaced() {
    let directory = tempfile::tempdir().expect("room");
    let path = directory.path().join("mine");
    copy("plain", &path);
    let site = serving(&path).await;
    let file = path.join("metrics.jsonl");
    let line = |step: u64| format!("{{\"event\":\"step\",\"step\":{step},\"loss\":0.1000}}\n");
    let write = |count: u64, rest: &str| {
        let lines: String = (0..count).map(line).collect();
        let sibling = path.join("new");
        fs::write(&sibling, lines + rest).expect("room");
        fs::rename(&sibling, &file).expect("room");
    };
    write(12_345, "{\"event\":\"st");
    let (mut all, mut next, mut pages) = (Vec::new(), 0, 0);
    loop {
        let (records, place, _) = records(&site, "mine", next).await;
        if records.is_empty() {
            break;
        }
        all.extend(records);
        next = place;
        pages += 1;
    }
    assert_eq!((all.len(), next, pages), (12_345, 12_345, 3));
    assert!(all.iter().zip(0..).all(|(record, step)| record["step"] == step));
    for after in [0, 1, 1023, 1024, 1025, 12_344] {
        assert_eq!(records(&site, "mine", after).await.0[0]["step"], after);
    }
    // An incomplete line is returned once it is complete.
    let generation = records(&site, "mine", next).await.2;
    fs::OpenOptions::new()
        .append(true)
        .open(&file)
        .and_then(|mut file| std::io::Write::write_all(&mut file, b"ep\"}\n"))
        .expect("room");
    let (new, next, same) = records(&site, "mine", next).await;
    assert_eq!((new, next, same), (vec![json!({ "event": "step" })], 12_346, generation.clone()));
    // Invalid lines are counted.
    write(3, "nonsense\n{\"step\":4}\n");
    let (new, next, other) = records(&site, "mine", 0).await;
    assert_eq!((new.len(), next), (4, 5));
    assert_ne!(other, generation);
    assert_eq!(records(&site, "mine", 99).await.1, 5);
    fs::remove_file(&file).expect("it is there");
    assert_eq!(records(&site, "mine", 3).await.1, 0);
    for after in ["-1", "x", "1.5"] {
        let (status, answer) = site.get(&format!("/api/runs/mine/records?after={after}")).await;
        assert_eq!((status, &answer["error"]["param"]), (400, &json!("after")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_of_models_follows_the_directories() {
    let directory = tempfile::tempdir().expect("room");
    copy("plain", &directory.path().join("mine"));
    let site = serving(directory.path()).await;
    let ids = async || {
        let (_, answer) = site.get("/v1/models").await;
        let list = answer["data"].as_array().expect("a list").clone();
        list.iter().map(|model| model["id"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ids().await, ["mine", "mine:checkpoint_1", "mine:checkpoint_2", "mine:checkpoint_3"]);
    copy("search", &directory.path().join("found"));
    let found =
        ["found/run_1", "found/run_1:checkpoint_1", "found/run_1:checkpoint_2", "found/run_1:checkpoint_3"];
    assert_eq!(ids().await[..4], found);
    fs::remove_dir_all(directory.path().join("found")).expect("it is there");
    assert_eq!(ids().await.len(), 4);
    // The default checkpoint has the lowest loss.
    let losses_file = directory.path().join("mine/losses.json");
    let mut losses: Value = serde_json::from_slice(&fs::read(&losses_file).expect("a file")).expect("JSON");
    losses["eval_losses"] = json!([3.0, 1.0, 2.0]);
    fs::write(&losses_file, losses.to_string()).expect("room");
    let (_, answer) = site.get("/api/models").await;
    let models = answer["models"].as_array().expect("a list");
    let response =
        models.iter().map(|model| (model["id"].as_str().expect("a name"), model["eval_loss"].clone()));
    let wanted = [("mine", json!(1.0)), ("mine:checkpoint_1", json!(3.0)), ("mine:checkpoint_3", json!(2.0))];
    assert_eq!(response.collect::<Vec<_>>(), wanted);
    assert_eq!((&models[0]["checkpoint"], &models[0]["is_default"]), (&json!("checkpoint_2"), &json!(true)));
    assert_eq!(models[0]["config"]["block_size"], 16);
    let best = site.completed(json!({ "model": "mine" })).await;
    assert_eq!(site.completed(json!({ "model": "mine:checkpoint_2" })).await, best);
    assert_ne!(site.completed(json!({ "model": "mine:checkpoint_3" })).await, best);
    // An overwritten checkpoint is loaded again.
    let place = |number: u64| directory.path().join(format!("mine/checkpoint_{number}"));
    let last = site.completed(json!({ "model": "mine:checkpoint_3" })).await;
    fs::rename(place(2), directory.path().join("aside")).expect("room");
    fs::rename(place(3), place(2)).expect("room");
    assert_eq!(site.completed(json!({ "model": "mine" })).await, last);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_reported_and_does_not_affect_other_runs() {
    let directory = tempfile::tempdir().expect("room");
    copy("plain", &directory.path().join("a"));
    copy("plain", &directory.path().join("b"));
    let warnings = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&warnings);
    let on_warning = Box::new(move |line: &str| heard.lock().expect("no panics").push(line.to_owned()));
    let runs = vec![directory.path().to_path_buf()];
    let site = Site::serving(Options { runs, limits: limits(), on_warning, ..Options::default() }).await;
    let model = directory.path().join("b/checkpoint_3/model.safetensors");
    let mut bytes = fs::read(&model).expect("a file");
    *bytes.last_mut().expect("bytes") ^= 1;
    fs::write(&model, bytes).expect("room");
    let (status, answer) = site.post("/v1/completions", &json!({ "model": "b:checkpoint_3" })).await;
    assert_eq!((status, &answer["error"]["type"]), (500, &json!("server_error")));
    let response = answer["error"]["message"].as_str().expect("text");
    assert!(!response.contains(&directory.path().display().to_string()), "a path: {response}");
    let warnings = warnings.lock().expect("no panics").clone();
    assert!(warnings.len() == 1 && warnings[0].contains("damaged"), "{warnings:?}");
    site.complete(json!({ "model": "b:checkpoint_2" })).await;
    site.complete(json!({ "model": "a" })).await;
}

/// Serving this must fail with a line that contains all of these parts.
async fn check_refused(options: Options, parts: &[&str]) {
    let error = Server::bind(options).await.err().expect("an error").to_string();
    assert!(!error.contains('\n'), "{error}");
    for part in parts {
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_to_serve_is_an_error() {
    let directory = tempfile::tempdir().expect("room");
    let place = |name: &str| directory.path().join(name);
    copy("plain", &place("mine"));
    copy("plain", &place("other/mine"));
    fs::create_dir(place("empty")).expect("room");
    fs::write(place("file"), "text").expect("room");
    copy("plain", &place("bare"));
    for number in 1..=3 {
        fs::remove_dir_all(place(&format!("bare/checkpoint_{number}"))).expect("it is there");
    }
    copy("plain", &place("damaged"));
    for number in 1..=3 {
        fs::write(place(&format!("damaged/checkpoint_{number}/model.safetensors")), "text").expect("room");
    }
    let options = |names: &[&str]| Options {
        runs: names.iter().map(|name| place(name)).collect(),
        port: 0,
        limits: limits(),
        ..Options::default()
    };
    for (names, parts) in [
        (&["none"][..], &["none does not exist", "--run_dir"][..]),
        (&["empty"], &["empty is not a folio run", "or a directory of runs"]),
        (&["file"], &["file is not a directory"]),
        (&["mine", "file"], &["file is not a directory"]),
        (&["bare"], &["bare holds no checkpoint", "they were removed"]),
        (&["mine", "other"], &["both called 'mine'", "rename"]),
        (&["damaged"], &["damaged/checkpoint_", "is damaged"]),
    ] {
        check_refused(options(names), parts).await;
    }
    let mine = || options(&["mine"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let named = format!("127.0.0.1 port {port}");
    check_refused(Options { port, ..mine() }, &[&named, "in use", "--port"]).await;
    let host = "203.0.113.7".to_owned();
    check_refused(Options { host, ..mine() }, &["203.0.113.7", "does not have this address", "--host"]).await;
    let host = "no such host".to_owned();
    check_refused(Options { host, ..mine() }, &["no such host", "--host"]).await;
    // A run in training may get a checkpoint later.
    let _lock = RunLock::take(&RunDir::new(place("bare"))).expect("free");
    assert!(Server::bind(options(&["bare"])).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn num_epochs_respects_max_steps() {
    let directory = tempfile::tempdir().expect("room");
    let path = directory.path().join("mine");
    copy("plain", &path);
    let site = serving(&path).await;
    let steps = run(&site, "mine").await["steps"].as_u64().expect("a number");
    let change = |file: &str, from: &str, to: &str| {
        let path = path.join(file);
        let text = fs::read_to_string(&path).expect("a file");
        assert!(text.contains(from), "{text}");
        fs::write(&path, text.replace(from, to)).expect("room");
    };
    change("status.json", "finished", "stopped");
    change("hyperparameters.json", r#""num_epochs": 3"#, r#""num_epochs": 9"#);
    assert_eq!(run(&site, "mine").await["num_epochs"], 9);
    change("hyperparameters.json", r#""max_steps": null"#, &format!(r#""max_steps": {}"#, steps + 1));
    let response = run(&site, "mine").await;
    assert_eq!((&response["num_epochs"], &response["steps"]), (&json!(4), &json!(steps + 1)));
    // The last epoch was cut short, so there are fewer.
    change("status.json", "stopped", "finished");
    let response = run(&site, "mine").await;
    assert_eq!((&response["num_epochs"], &response["steps"]), (&json!(3), &json!(steps)));
}
