//! Misbehaving clients get an error or are disconnected, and nothing remains of them.

use std::time::Duration;

use folio_serve::Limits;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::site::{PATIENCE, Site, limits};

/// Sends bytes on a new connection. The response must start with `HTTP/1.1 STATUS`; with status 0 there must be none.
#[track_caller]
fn check(site: &Site, request: impl Into<Vec<u8>>, status: u16) -> impl Future<Output = String> {
    let (request, place) = (request.into(), std::panic::Location::caller());
    async move {
        let answer = site.raw(&request).await;
        let got = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest[..3].parse().ok()).unwrap_or(0);
        let shown = String::from_utf8_lossy(&request[..request.len().min(200)]).into_owned();
        assert_eq!(got, status, "{place}: {shown}\n{answer}");
        answer
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_http_is_rejected() {
    let site = Site::with(Limits { head_time: Duration::from_millis(300), ..limits() }).await;
    check(&site, "hello\r\n\r\n", 400).await;
    check(&site, [0u8; 100], 400).await;
    check(&site, "GET / HTTP/1.1\r\n\r\n", 400).await;
    check(&site, "GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400).await;
    check(&site, "GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", 400).await;
    check(&site, "GET /\0 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400).await;
    check(&site, "GET /v1/models/%ff%fe HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 400).await;
    let long = "x".repeat(1_000_000);
    check(&site, format!("GET /{long} HTTP/1.1\r\nHost: localhost\r\n\r\n"), 431).await;
    check(&site, format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {long}\r\n\r\n"), 431).await;
    let many: String = (0..500).map(|number| format!("X{number}: y\r\n")).collect();
    check(&site, format!("GET / HTTP/1.1\r\nHost: localhost\r\n{many}\r\n"), 431).await;
    // Path traversal.
    for path in
        ["/../../etc/passwd", "/assets/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/assets//etc/passwd"]
    {
        check(&site, format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"), 404)
            .await;
    }
    // The server still works.
    assert_eq!(site.get("/healthz").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_large_and_too_slow_bodies_are_rejected() {
    let site = Site::with(Limits { body_time: Duration::from_millis(200), ..limits() }).await;
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    // Too large by its Content-Length: not read at all.
    check(&site, format!("{head}Content-Length: 999999999999\r\n\r\n"), 413).await;
    check(&site, format!("{head}Content-Length: 1048577\r\n\r\n"), 413).await;
    check(&site, format!("{head}Content-Length: -1\r\n\r\n"), 400).await;
    check(&site, format!("{head}Content-Length: 3\r\nContent-Length: 4\r\n\r\n"), 400).await;
    // Too large, without a Content-Length.
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    check(&site, format!("{head}Transfer-Encoding: chunked\r\n\r\n{}", chunk.repeat(17)), 413).await;
    // A body that never arrives.
    let answer = check(&site, format!("{head}Content-Length: 100\r\n\r\n{{"), 408).await;
    assert!(answer.contains("body_timeout"), "{answer}");
    // At the limit.
    let body = format!("{{\"model\":\"plain\",\"max_tokens\":1{}}}", " ".repeat((1 << 20) - 32));
    assert_eq!(body.len(), 1 << 20);
    let request = site.client.post(site.url("/v1/completions")).header("content-type", "application/json");
    assert_eq!(request.body(body).send().await.expect("an answer").status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_are_closed() {
    let site = Site::with(Limits { head_time: Duration::from_millis(300), ..limits() }).await;
    let mut slow = Vec::new();
    for begun in
        ["", "G", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: localhost\r\nX: ", "\r\n\r\n"].repeat(10)
    {
        let mut stream = TcpStream::connect(site.address).await.expect("it listens");
        stream.write_all(begun.as_bytes()).await.expect("room");
        slow.push(stream);
    }
    for mut stream in slow {
        let mut answer = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "the connection was left open");
    }
    // The connection of this request itself.
    site.until("folio_connections", 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_wait() {
    let site = Site::with(Limits { connections: 2, ..limits() }).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(site.address).await.expect("it listens");
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("room");
        let mut byte = [0];
        stream.read_exact(&mut byte).await.expect("an answer");
        held.push(stream);
    }
    let waiting = site.client.get(site.url("/healthz")).send();
    tokio::pin!(waiting);
    // It is not answered while all connections are in use, at least not within 100 ms.
    let early = tokio::time::timeout(Duration::from_millis(100), &mut waiting).await;
    assert!(early.is_err(), "a third was served");
    held.pop();
    assert_eq!(waiting.await.expect("an answer").status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_of_a_million_tokens_is_rejected_in_little_memory() {
    let site = Site::start().await;
    let body = format!("{{\"model\":\"plain\",\"prompt\":[{}0]}}", "0,".repeat(520_000));
    let request = site.client.post(site.url("/v1/completions")).header("content-type", "application/json");
    let response = request.body(body).send().await.expect("an answer");
    assert_eq!(response.status(), 400);
    let long =
        site.post("/v1/completions", &json!({ "model": "plain", "prompt": "a".repeat(1_000_000) })).await;
    assert_eq!((long.0, &long.1["error"]["param"]), (400, &json!("prompt")));
}
