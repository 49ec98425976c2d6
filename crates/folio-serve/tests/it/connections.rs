//! If a response comes before the body was read, the connection stays open or the response announces its end.

use std::time::Duration;

use folio_serve::{Limits, Options};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::site::{PATIENCE, Site, limits};

const JSON: &str = "Content-Type: application/json\r\n";

/// Reads one response, with a length or in chunks. Returns its status and its head in lower case.
async fn read_answer(stream: &mut TcpStream) -> (u16, String) {
    let read = async {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("a whole head"));
        }
        let head = String::from_utf8(head).expect("text").to_ascii_lowercase();
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
        let length: usize = length.unwrap_or_else(|| panic!("{head}")).parse().expect("a number");
        stream.read_exact(&mut vec![0; length]).await.expect("a whole body");
        let status = head.strip_prefix("http/1.1 ").and_then(|rest| rest[..3].parse().ok());
        (status.unwrap_or_else(|| panic!("{head}")), head)
    };
    tokio::time::timeout(PATIENCE, read).await.expect("an answer")
}

fn closes(head: &str) -> bool {
    head.contains("\r\nconnection: close\r\n")
}

/// Expects the end of a connection, without an error: after an error a client may lose what it has not read.
async fn expect_end(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("an end");
    assert_eq!((read.expect("an orderly end"), rest.len()), (0, 0));
}

/// A body of this many bytes, with a length or in chunks.
fn with_body(head: &str, bytes: usize, chunked: bool) -> Vec<u8> {
    let body = "x".repeat(bytes);
    let request = match chunked {
        false => format!("{head}Content-Length: {bytes}\r\n\r\n{body}"),
        true => format!("{head}Transfer-Encoding: chunked\r\n\r\n{bytes:x}\r\n{body}\r\n0\r\n\r\n"),
    };
    request.into_bytes()
}

/// Requests that are rejected by their head, with the status of the response.
fn refused() -> Vec<(String, u16)> {
    let head = |line: &str, fields: &str| format!("{line} HTTP/1.1\r\nHost: localhost\r\n{fields}");
    let key = "Authorization: Bearer k3y\r\n";
    vec![
        (head("POST /v1/completions", JSON), 401),
        (head("POST /v1/embeddings", &format!("{key}{JSON}")), 404),
        (head("POST /nothing", JSON), 404),
        (head("POST /v1/models", &format!("{key}{JSON}")), 405),
        (head("PUT /v1/completions", &format!("{key}{JSON}")), 405),
        (head("POST /v1/completions", &format!("{key}Content-Type: text/plain\r\n")), 415),
        (head("POST /v1/completions", &format!("{key}{JSON}Origin: http://evil.example\r\n")), 403),
        (head("GET /v1/models", key), 200),
    ]
}

async fn with_key(limits: Limits) -> Site {
    Site::serving(Options { api_key: Some("k3y".to_owned()), limits, ..Options::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_body_within_the_limit_keeps_the_connection_open() {
    let site = with_key(limits()).await;
    for (head, status) in refused() {
        let mut stream = TcpStream::connect(site.address).await.expect("it listens");
        // More than one read of the server.
        for (bytes, chunked) in [(3, false), (700_000, false), (700_000, true), (0, false), (1, true)] {
            stream.write_all(&with_body(&head, bytes, chunked)).await.expect("it is read");
            let (got, answer) = read_answer(&mut stream).await;
            assert_eq!((got, closes(&answer)), (status, false), "{head} {bytes}\n{answer}");
        }
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("it is open");
        assert_eq!(read_answer(&mut stream).await.0, 200, "{head}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_beyond_the_limit_closes_the_connection_in_order() {
    let site = with_key(limits()).await;
    let head =
        format!("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer k3y\r\n{JSON}");
    let too_large = (head, 413);
    for (head, status) in refused().into_iter().chain([too_large]) {
        for chunked in [false, true] {
            let mut stream = TcpStream::connect(site.address).await.expect("it listens");
            // Simple clients send the whole body before they read.
            stream.write_all(&with_body(&head, 5 << 20, chunked)).await.expect("it is taken");
            let (got, answer) = read_answer(&mut stream).await;
            assert_eq!((got, closes(&answer)), (status, true), "{head}\n{answer}");
            stream.shutdown().await.expect("it is open");
            expect_end(&mut stream).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_body_closes_the_connection_with_notice() {
    let site = with_key(Limits { drain_time: Duration::from_millis(100), ..limits() }).await;
    for (head, status) in refused() {
        for expects in ["", "Expect: 100-continue\r\n"] {
            let mut stream = TcpStream::connect(site.address).await.expect("it listens");
            let request = format!("{head}{expects}Content-Length: 100\r\n\r\n");
            stream.write_all(request.as_bytes()).await.expect("room");
            let (got, answer) = read_answer(&mut stream).await;
            assert_eq!((got, closes(&answer)), (status, true), "{request}{answer}");
            expect_end(&mut stream).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reuses_connections_never_loses_a_request() {
    let site = Site::start().await;
    let client = reqwest::Client::new();
    let long = "x".repeat(300_000);
    for turn in 0..20 {
        let (path, status) =
            [("/v1/embeddings", 404), ("/v1/models", 405), ("/v1/completions", 200)][turn % 3];
        let mut body = json!({ "model": "plain", "max_tokens": 1 });
        if status != 200 {
            body["input"] = json!(long);
        }
        let response = client.post(site.url(path)).json(&body).send().await.expect("an answer");
        assert_eq!(response.status(), status, "{path}");
        response.bytes().await.expect("all of it");
    }
    // One connection for most of them, and the one of this request. The client opens another if the last one is not back in
    // its pool yet.
    let connections = site.metric("folio_connections").await;
    assert!(connections < 10.0, "{connections} connections for 20 requests");
}
