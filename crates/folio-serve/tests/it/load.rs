//! Many clients, slow clients, clients that go away, and the end.

use std::time::{Duration, Instant};

use folio_serve::Limits;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::site::{ENDLESS, PATIENCE, Site, limits, text_of};

fn endless() -> Value {
    json!({ "max_tokens": ENDLESS })
}

/// Texts keep their places however slowly a busy machine reads them.
fn no_pauses() -> Limits {
    Limits { unread_tokens: 1 << 40, ..limits() }
}

/// A client that reads a text without end, until it is aborted.
async fn reader(site: &Site) -> JoinHandle<()> {
    let mut events = site.stream(endless()).await;
    assert!(events.next().await.is_some());
    tokio::spawn(async move { while events.next().await.is_some() {} })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_and_places_come_free() {
    let site = Site::with(Limits { streams: 1, queue: 2, ..no_pauses() }).await;
    let first = reader(&site).await;
    // Two wait, and are let in when the one before them goes.
    let body = json!({ "model": "plain", "prompt": "First", "text": "First" });
    let ask = |path: &str| site.client.post(site.url(path)).json(&body).send();
    let mut waiting = Vec::new();
    // In this order: attention is told of between two steps if nothing is before it.
    for (path, length) in [("/v1/completions", 1.0), ("/api/attention", 2.0)] {
        waiting.push(tokio::spawn(ask(path)));
        site.until("folio_queue_length", length).await;
    }
    for path in ["/v1/completions", "/api/attention"] {
        let response = ask(path).await.expect("an answer");
        assert_eq!(response.status(), 429, "{path}");
        let seconds: u64 =
            response.headers()["retry-after"].to_str().expect("text").parse().expect("a number");
        assert!((1..=60).contains(&seconds), "{seconds}");
        let answer: Value = response.json().await.expect("JSON");
        assert_eq!(answer["error"]["code"], "queue_full");
    }
    first.abort();
    for waiting in waiting {
        assert_eq!(waiting.await.expect("no panic").expect("an answer").status(), 200);
    }
    site.until("folio_streams_active", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_go_away_free_their_places() {
    let site = Site::with(Limits { streams: 4, queue: 10, ..no_pauses() }).await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(reader(&site).await);
    }
    site.until("folio_streams_active", 4.0).await;
    // One that waits for its turn, and does not wait for it.
    {
        let waiting = Box::pin(site.complete(endless()));
        let seen = Box::pin(site.until("folio_queue_length", 1.0));
        futures_util::future::select(waiting, seen).await;
    }
    site.until("folio_queue_length", 0.0).await;
    // Half an answer is enough for some.
    streams.drain(1..).for_each(|reader| reader.abort());
    site.until("folio_streams_active", 1.0).await;
    streams[0].abort();
    site.until("folio_streams_active", 0.0).await;
    // One that asks for everything at once.
    {
        let waiting = Box::pin(site.complete(json!({ "max_tokens": ENDLESS, "n": 3 })));
        let seen = Box::pin(site.until("folio_streams_active", 3.0));
        futures_util::future::select(waiting, seen).await;
    }
    site.until("folio_streams_active", 0.0).await;
    site.until("folio_connections", 1.0).await;
    let drawn = site.metric("folio_generated_tokens_total").await;
    assert_eq!(site.metric("folio_generated_tokens_total").await, drawn, "nothing is written for nobody");
}

/// Asks for a stream of large events on a connection that nobody reads.
async fn deaf(site: &Site, tokens: usize) -> TcpStream {
    let body = json!({
        "model": "plain", "prompt": "", "max_tokens": tokens, "stream": true, "logprobs": 20, "seed": 3,
    });
    let body = body.to_string();
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let request = format!("{head}Connection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let mut stream = TcpStream::connect(site.address).await.expect("it listens");
    stream.write_all(request.as_bytes()).await.expect("room");
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_do_not_read_hold_nobody_up() {
    let site = Site::with(Limits { streams: 1, stall_time: PATIENCE, ..limits() }).await;
    let deaf = deaf(&site, ENDLESS).await;
    site.until("folio_streams_paused", 1.0).await;
    // The one place is free for others.
    let alone = Site::start().await.completed(json!({ "max_tokens": 500 })).await;
    assert_eq!(site.completed(json!({ "max_tokens": 500 })).await, alone);
    drop(deaf);
    site.until("folio_streams_active", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_never_read_are_let_go() {
    let site = Site::with(Limits { stall_time: Duration::from_millis(300), ..limits() }).await;
    let mut deaf = deaf(&site, ENDLESS).await;
    site.until("folio_streams_paused", 1.0).await;
    site.until("folio_streams_active", 0.0).await;
    site.until("folio_connections", 1.0).await;
    let mut rest = Vec::new();
    // What the system had in its buffers, and no end of the stream.
    let _ =
        tokio::time::timeout(PATIENCE, deaf.read_to_end(&mut rest)).await.expect("the connection is closed");
    assert!(!rest.windows(6).any(|window| window == b"[DONE]"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_comes_back_misses_nothing() {
    const TOKENS: usize = 20_000;
    let site = Site::with(Limits { stall_time: PATIENCE, ..limits() }).await;
    let mut deaf = deaf(&site, TOKENS).await;
    site.until("folio_streams_paused", 1.0).await;
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, deaf.read_to_end(&mut answer)).await.expect("an end").expect("no error");
    let answer = String::from_utf8_lossy(&answer);
    let events = answer.lines().filter_map(|line| line.strip_prefix("data: {"));
    let events = events.map(|event| serde_json::from_str::<Value>(&format!("{{{event}")).expect("JSON"));
    let text: String = events.map(|event| text_of(&event["choices"][0])).collect();
    assert!(answer.trim_end().ends_with('0') && answer.contains("data: [DONE]"), "the end of the last chunk");
    let whole = site.completed(json!({ "prompt": "", "max_tokens": TOKENS, "seed": 3 })).await;
    assert!(text == whole, "{} and {} characters", text.len(), whole.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_takes_longer_than_it_may() {
    let site = Site::with(Limits { streams: 1, request_time: Duration::from_millis(300), ..limits() }).await;
    let (status, answer) =
        site.post("/v1/completions", &json!({ "model": "plain", "max_tokens": ENDLESS })).await;
    assert_eq!((status, &answer["error"]["code"]), (504, &json!("time_limit")));
    let mut events = site.stream(endless()).await;
    // Those that wait for their turn do not wait for longer, either.
    let (status, answer) =
        site.post("/v1/completions", &json!({ "model": "plain", "max_tokens": ENDLESS })).await;
    assert_eq!((status, &answer["error"]["code"]), (504, &json!("time_limit")));
    let mut last = Value::Null;
    while let Some(event) = events.next().await {
        last = serde_json::from_str(&event).expect("JSON, and no [DONE]");
    }
    assert_eq!(last["error"]["code"], "time_limit", "{last}");
    site.until("folio_streams_active", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_under_way_may_end_when_the_server_does() {
    let mut site = Site::with(Limits { streams: 1, grace_time: PATIENCE, ..no_pauses() }).await;
    let events = site.stream(json!({ "max_tokens": 30_000 })).await;
    let events = tokio::spawn(events.all());
    let waiting = {
        let request = site.client.post(site.url("/v1/completions"));
        let request = request.json(&json!({ "model": "plain" })).send();
        tokio::spawn(request)
    };
    site.until("folio_queue_length", 1.0).await;
    site.stop();
    let refused = waiting.await.expect("no panic").expect("an answer");
    assert_eq!(refused.status(), 503);
    let answer: Value = refused.json().await.expect("JSON");
    assert_eq!(answer["error"]["code"], "shutting_down");
    assert_eq!(events.await.expect("[DONE] at the end").len(), 30_000);
    tokio::time::timeout(PATIENCE, site.ended).await.expect("it ends").expect("without a panic");
    assert!(TcpStream::connect(site.address).await.is_err(), "nobody listens any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_body_comes_after_the_end_has_begun_is_refused() {
    let mut site = Site::with(Limits { grace_time: PATIENCE, ..no_pauses() }).await;
    let under_way = tokio::spawn(site.stream(json!({ "max_tokens": 300_000 })).await.all());
    let body = json!({ "model": "plain", "max_tokens": 1 }).to_string();
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let head = format!("{head}Expect: 100-continue\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut late = TcpStream::connect(site.address).await.expect("it listens");
    late.write_all(head.as_bytes()).await.expect("room");
    // The server says that it waits for the body.
    let mut told = [0; 25];
    late.read_exact(&mut told).await.expect("an answer");
    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    site.stop();
    while TcpStream::connect(site.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    late.write_all(body.as_bytes()).await.expect("room");
    let mut answer = String::new();
    late.read_to_string(&mut answer).await.expect("text");
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("shutting_down"), "{answer}");
    drop(under_way);
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_without_end_are_ended_with_the_server() {
    let mut site = Site::with(Limits { grace_time: Duration::from_millis(200), ..limits() }).await;
    let mut events = site.stream(endless()).await;
    assert!(events.next().await.is_some());
    let deaf = deaf(&site, ENDLESS).await;
    site.until("folio_streams_paused", 1.0).await;
    let begun = Instant::now();
    site.stop();
    let mut last = Value::Null;
    while let Some(event) = events.next().await {
        last = serde_json::from_str(&event).expect("JSON, and no [DONE]");
    }
    assert_eq!(last["error"]["code"], "shutting_down", "{last}");
    tokio::time::timeout(PATIENCE, site.ended).await.expect("it ends").expect("without a panic");
    // The time of grace, a second for what is still to be sent, and what a busy machine takes.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    drop(deaf);
}

#[tokio::test(flavor = "multi_thread")]
async fn few_models_are_kept_and_all_are_served() {
    let site = Site::with(Limits { models: 1, ..limits() }).await;
    let models = ["plain", "plain:checkpoint_1", "search/run_1", "bytes"];
    let mut texts = Vec::new();
    for model in models {
        texts.push(site.completed(json!({ "model": model, "prompt": "", "max_tokens": 40 })).await);
        assert_eq!(site.metric("folio_models_loaded").await, 1.0);
    }
    // All at once, each in its turn, though only one is kept.
    let asked = (0..12).map(|place| {
        let model = models[place % models.len()];
        site.completed(json!({ "model": model, "prompt": "", "max_tokens": 40 }))
    });
    for (place, text) in futures_util::future::join_all(asked).await.into_iter().enumerate() {
        assert_eq!(text, texts[place % models.len()]);
    }
    // A text without end on one model leaves the others their turns.
    let reader = reader(&site).await;
    assert_eq!(site.completed(json!({ "model": "bytes", "prompt": "", "max_tokens": 40 })).await, texts[3]);
    reader.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_counted_is_what_was_done() {
    let site = Site::start().await;
    site.complete(json!({ "max_tokens": 30, "n": 2 })).await;
    site.post("/v1/completions", &json!({})).await;
    site.get("/made/up/by/a/client").await;
    assert_eq!(site.metric("folio_generated_tokens_total").await, 60.0);
    assert_eq!(site.metric("folio_prompt_tokens_total").await, 5.0);
    let requests =
        |route: &str, status: u16| format!("folio_requests_total{{route=\"{route}\",status=\"{status}\"}}");
    for (route, status) in [("/v1/completions", 200), ("/v1/completions", 400), ("other", 404)] {
        assert_eq!(site.metric(&requests(route, status)).await, 1.0, "{route} {status}");
    }
    let count = site.metric("folio_request_seconds_count{route=\"/v1/completions\"}").await;
    assert_eq!((count, site.metric("folio_first_token_seconds_count").await), (2.0, 1.0));
}
