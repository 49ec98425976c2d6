//! `folio serve`: startup, wrong arguments, shutdown. The API itself is tested in folio-serve.
#![cfg(unix)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::importing::golden;
use crate::mistakes::{FAILURE, USAGE, check_all, check_refused, place_with_run};
use crate::place::{Place, TINY};
use crate::running::{Running, start};

/// Timeout for everything in these tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts a server on a free port and returns its address.
fn serve(place: &Place, line: &str) -> (Running, String) {
    let server = start(place, &format!("serve {line} --port 0"));
    let address = address_of(&server);
    (server, address)
}

/// The address that a server prints.
fn address_of(server: &Running) -> String {
    announced(server).0
}

/// The address printed on stdout and the line printed on stderr, which may arrive in either order.
fn announced(server: &Running) -> (String, String) {
    let mut lines = [server.next_line().expect("a line"), server.next_line().expect("another line")];
    lines.sort_by_key(|line| !line.starts_with("Serving "));
    let [reported, what] = lines;
    let address = reported.split_once("http://").and_then(|(_, rest)| rest.strip_suffix('/'));
    (address.unwrap_or_else(|| panic!("{reported}")).to_owned(), what)
}

/// Sends a completion request and returns the connection.
fn ask(address: &str, body: &Value, key: &str) -> TcpStream {
    let body = body.to_string();
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("some time");
    write!(
        stream,
        "POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nConnection: close\r\n\
         Authorization: Bearer {key}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("room");
    stream
}

/// The JSON at a path.
fn get(address: &str, path: &str) -> Value {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("some time");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").expect("room");
    let reported = answer(stream);
    let (_, body) = reported.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{reported}"));
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {reported}"))
}

fn answer(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    // A server that exits at once resets its connections.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_server_prints_its_address_and_stops_on_signals() {
    let place = place_with_run();
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let (server, address) = serve(&place, "run --api-key k3y --max-streams 2 --threads 1");
        let body = json!({ "model": "run", "prompt": "First", "max_tokens": 5 });
        let reported = answer(ask(&address, &body, "k3y"));
        assert!(
            reported.starts_with("HTTP/1.1 200") && reported.contains("\"finish_reason\":\"length\""),
            "{reported}"
        );
        assert!(answer(ask(&address, &body, "other")).starts_with("HTTP/1.1 401"));
        server.signal(signal);
        let (status, rest) = server.end();
        assert_eq!((status.code(), rest), (Some(code), Vec::new()));
    }
}

#[test]
fn a_second_signal_ends_a_server_at_once() {
    let place = place_with_run();
    let line = "run --max_tokens 1000000000 --time_limit 600";
    let endless = json!({ "model": "run", "max_tokens": 1_000_000_000, "stream": true });
    for times in [1, 2] {
        let (server, address) = serve(&place, line);
        let mut stream = ask(&address, &endless, "");
        stream.read_exact(&mut [0]).expect("the beginning of an answer");
        server.signal(Signal::INT);
        // Generation may continue for a while, but new connections are refused.
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(&address).is_ok() {
            assert!(Instant::now() < deadline, "it still listens");
        }
        if times == 2 {
            server.signal(Signal::INT);
        }
        let reported = answer(stream);
        let is_told_why = reported.contains("shutting_down");
        assert_eq!(is_told_why, times == 1, "{}", &reported[reported.len().saturating_sub(300)..]);
        assert_eq!(server.end().0.code(), Some(130));
    }
}

#[test]
fn the_api_key_can_come_from_the_environment() {
    let place = place_with_run();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_folio"));
    command.args(["serve", "run", "--port", "0"]).current_dir(place.path("")).env("FOLIO_API_KEY", "secret");
    let server = crate::running::start_command(command);
    let address = &address_of(&server);
    let body = json!({ "model": "run", "max_tokens": 1 });
    assert!(answer(ask(address, &body, "secret")).starts_with("HTTP/1.1 200"));
    assert!(answer(ask(address, &body, "")).starts_with("HTTP/1.1 401"));
    server.signal(Signal::TERM);
    assert_eq!(server.end().0.code(), Some(143));
}

#[test]
fn a_path_to_a_checkpoint_sets_the_default_model() {
    let place = place_with_run();
    let losses = place.numbers("run/losses.json", "/eval_losses");
    let best = if losses[0] <= losses[1] { 1 } else { 2 };
    for (path, epoch) in [("run", best), ("run/best", best), ("run/latest", 2), ("run/checkpoint_1", 1)] {
        let server = start(&place, &format!("serve {path} --port 0"));
        let (address, what) = announced(&server);
        assert!(what.starts_with(&format!("model run: run/checkpoint_{epoch}")), "serve {path}: {what}");
        let models: Value = get(&address, "/api/models");
        let default = &models["models"][0];
        let reported = (&default["id"], &default["epoch"], &default["is_default"]);
        assert_eq!(reported, (&json!("run"), &json!(epoch), &json!(true)), "serve {path}: {models}");
        server.signal(Signal::TERM);
        server.end();
    }
}

#[test]
fn an_imported_model_is_served_without_losses_and_records() {
    let place = Place::new();
    place.ok(&format!("import '{}' --run_dir run", golden("nanogpt").display()));
    let (server, address) = serve(&place, "run");
    let reported = answer(ask(&address, &json!({ "model": "run", "prompt": "to be", "max_tokens": 5 }), ""));
    assert!(reported.starts_with("HTTP/1.1 200"), "{reported}");
    let run = &get(&address, "/api/runs")["runs"][0];
    assert_eq!((&run["state"], &run["best_eval_loss"]), (&json!("imported"), &Value::Null));
    assert_eq!((&run["epoch"], &run["num_epochs"]), (&json!(0), &json!(0)));
    assert!(run["parameters"].as_u64() > Some(1000), "{run}");
    assert_eq!(get(&address, "/api/models")["models"][0]["eval_loss"], Value::Null);
    assert_eq!(get(&address, "/api/runs/run/records")["records"], json!([]));
    server.signal(Signal::TERM);
    assert_eq!(server.end().0.code(), Some(143));
}

#[test]
fn without_a_path_runs_created_later_are_served() {
    let place = Place::new();
    for make in [false, true] {
        if make {
            std::fs::create_dir(place.path("runs")).expect("room");
        }
        let server = start(&place, "serve --port 0");
        let (address, what) = announced(&server);
        assert!(what.starts_with("runs/ has no runs yet"), "{what}");
        assert_eq!(get(&address, "/v1/models")["data"], json!([]));
        if make {
            place.ok(&format!("train {TINY} --save_losses --save_checkpoint --run_dir runs/first"));
            let deadline = Instant::now() + PATIENCE;
            while get(&address, "/v1/models")["data"][0]["id"] != "first" {
                assert!(Instant::now() < deadline, "the run is not found");
            }
            let body = json!({ "model": "first", "max_tokens": 1 });
            assert!(answer(ask(&address, &body, "")).starts_with("HTTP/1.1 200"));
        }
        server.signal(Signal::TERM);
        server.end();
    }
}

/// Starts a server with `--open`, with PATH set to this directory only.
#[cfg(target_os = "linux")]
fn serve_open(place: &Place, programs: &str) -> Running {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_folio"));
    command.args(["serve", "run", "--port", "0", "--open"]).current_dir(place.path(""));
    command.env("PATH", place.path(programs));
    crate::running::start_command(command)
}

#[cfg(target_os = "linux")]
#[test]
fn open_opens_the_browser_or_warns() {
    use std::os::unix::fs::PermissionsExt;

    let place = place_with_run();
    std::fs::create_dir(place.path("programs")).expect("room");
    let server = serve_open(&place, "programs");
    let address = address_of(&server);
    let line = std::iter::from_fn(|| server.next_line()).find(|line| line.starts_with("warning: "));
    let line = line.expect("a warning");
    assert!(
        line.contains("cannot open a browser") && line.contains(&format!("open http://{address}/")),
        "{line}"
    );
    assert!(get(&address, "/healthz")["status"] == "ok", "the server still runs");
    server.signal(Signal::TERM);
    assert_eq!(server.end().1, Vec::<String>::new());

    let seen = place.path("seen");
    place.write(
        "programs/xdg-open",
        format!("#!/bin/sh\necho \"$1\" > {0}.new\n/bin/mv {0}.new {0}\n", seen.display()),
    );
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(place.path("programs/xdg-open"), executable).expect("our own file");
    let server = serve_open(&place, "programs");
    let address = address_of(&server);
    let deadline = Instant::now() + PATIENCE;
    while !seen.exists() {
        assert!(Instant::now() < deadline, "the browser is not opened");
        std::thread::yield_now();
    }
    assert_eq!(place.text("seen"), format!("http://{address}/\n"));
    server.signal(Signal::TERM);
    assert_eq!(server.end().1, Vec::<String>::new());
}

#[test]
fn wrong_arguments_are_rejected() {
    let place = place_with_run();
    place.train_bare("bare");
    place.ok(&format!("train {TINY} --save_losses --save_checkpoint --run_dir damaged"));
    for number in 1..=2 {
        place.write(&format!("damaged/checkpoint_{number}/model.safetensors"), "text");
    }
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let in_use = format!("serve run --port {port}");
    check_refused(&place, &in_use, FAILURE, &[&format!("127.0.0.1 port {port}"), "in use", "another --port"]);
    let mistakes: &[(&str, i32, &[&str])] = &[
        ("serve none", FAILURE, &["none does not exist", "--run_dir"]),
        ("serve plays.txt", FAILURE, &["plays.txt is not a directory"]),
        ("serve run/checkpoint_9", FAILURE, &["run holds no checkpoint 9", "there are 1, 2"]),
        ("serve bare", FAILURE, &["bare holds no checkpoint", "they were removed"]),
        ("serve damaged", FAILURE, &["damaged/checkpoint_", "is damaged"]),
        ("serve run run", USAGE, &["both called 'run'", "rename"]),
        ("serve run --host 203.0.113.7", FAILURE, &["203.0.113.7", "does not have this address", "--host"]),
        ("serve run --port 70000", USAGE, &["--port", "70000"]),
        ("serve run --port -1", USAGE, &["--port", "-1"]),
        ("serve run --max_streams 0", USAGE, &["--max_streams", "at least 1"]),
        ("serve run --max-queue 0", USAGE, &["--max_queue", "at least 1"]),
        ("serve run --max_tokens 0", USAGE, &["--max_tokens", "at least 1"]),
        ("serve run --time_limit 0", USAGE, &["--time_limit", "at least 1"]),
        ("serve run --threads 0", USAGE, &["--threads", "at least 1"]),
        ("serve run --api_key ''", USAGE, &["api_key"]),
        ("serve run --cors_origin '*'", USAGE, &["--cors_origin *", "list the origins"]),
        (
            "serve run --cors_origin example.org",
            USAGE,
            &["--cors_origin", "example.org", "https://example.org"],
        ),
        ("serve run --chat_template '{role}'", USAGE, &["--chat_template", "{content} exactly once"]),
        (
            "serve run --chat_template '{content}{name}'",
            USAGE,
            &["--chat_template", "{name} is not a placeholder"],
        ),
        ("serve run --precision f16", USAGE, &["precision", "'f16'", "int8"]),
    ];
    check_all(&place, mistakes);
}
