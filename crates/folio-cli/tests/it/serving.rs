//! The server as a program: what it says, what it refuses, how it ends. What it answers is tested with its library.
#![cfg(unix)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::mistakes::{FAILURE, USAGE, check_all, check_refused, place_with_run};
use crate::place::{Place, TINY};
use crate::running::{Running, start};

/// Longer than anything here takes, unless it is broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts a server on a free port. Returns where it listens.
fn serve(place: &Place, line: &str) -> (Running, String) {
    let server = start(place, &format!("serve {line} --port 0"));
    let told = server.next_line().expect("a line");
    let address = told.split_once("http://").and_then(|(_, rest)| rest.strip_suffix('/'));
    let address = address.unwrap_or_else(|| panic!("{told}")).to_owned();
    (server, address)
}

/// A connection on which a request for a completion was sent.
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

fn answer(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    // A server that is ended at once resets its connections.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_server_says_where_it_is_and_ends_as_it_is_told() {
    let place = place_with_run();
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let (server, address) = serve(&place, "run --api-key k3y --max-streams 2 --threads 1");
        let body = json!({ "model": "run", "prompt": "First", "max_tokens": 5 });
        let told = answer(ask(&address, &body, "k3y"));
        assert!(told.starts_with("HTTP/1.1 200") && told.contains("\"finish_reason\":\"length\""), "{told}");
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
        // The text may go on for a while, though nobody new is let in.
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(&address).is_ok() {
            assert!(Instant::now() < deadline, "it still listens");
        }
        if times == 2 {
            server.signal(Signal::INT);
        }
        let told = answer(stream);
        let is_told_why = told.contains("shutting_down");
        assert_eq!(is_told_why, times == 1, "{}", &told[told.len().saturating_sub(300)..]);
        assert_eq!(server.end().0.code(), Some(130));
    }
}

#[test]
fn the_key_may_come_from_the_environment() {
    let place = place_with_run();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_folio"));
    command.args(["serve", "run", "--port", "0"]).current_dir(place.path("")).env("FOLIO_API_KEY", "secret");
    let server = crate::running::start_command(command);
    let told = server.next_line().expect("a line");
    let address = told.split_once("http://").expect("an address").1.trim_end_matches('/');
    let body = json!({ "model": "run", "max_tokens": 1 });
    assert!(answer(ask(address, &body, "secret")).starts_with("HTTP/1.1 200"));
    assert!(answer(ask(address, &body, "")).starts_with("HTTP/1.1 401"));
    server.signal(Signal::TERM);
    assert_eq!(server.end().0.code(), Some(143));
}

#[test]
fn what_cannot_be_served() {
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
        ("serve", USAGE, &["RUN_DIR"]),
        ("serve none", FAILURE, &["none: does not exist", "--run_dir"]),
        ("serve plays.txt", FAILURE, &["plays.txt: is not a directory"]),
        ("serve run/checkpoint_1", FAILURE, &["checkpoint_1: is neither a run", "directory of runs"]),
        ("serve bare", FAILURE, &["bare: holds no checkpoint", "they were removed"]),
        ("serve damaged", FAILURE, &["damaged/checkpoint_", "is damaged"]),
        ("serve run run", USAGE, &["both called 'run'", "rename"]),
        ("serve run --host 203.0.113.7", FAILURE, &["203.0.113.7", "no such address", "--host"]),
        ("serve run --port 70000", USAGE, &["--port", "70000"]),
        ("serve run --port -1", USAGE, &["--port", "-1"]),
        ("serve run --max_streams 0", USAGE, &["--max_streams", "at least 1"]),
        ("serve run --max-queue 0", USAGE, &["--max_queue", "at least 1"]),
        ("serve run --max_tokens 0", USAGE, &["--max_tokens", "at least 1"]),
        ("serve run --time_limit 0", USAGE, &["--time_limit", "at least 1"]),
        ("serve run --threads 0", USAGE, &["--threads", "at least 1"]),
        ("serve run --api_key ''", USAGE, &["api_key"]),
        ("serve run --precision f16", USAGE, &["precision", "'f16'", "int8"]),
    ];
    check_all(&place, mistakes);
}
