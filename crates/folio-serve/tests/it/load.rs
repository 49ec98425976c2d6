//! Many clients, slow clients, clients that disconnect, and shutdown.

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

/// No sequence pauses, however slowly a busy machine reads.
fn no_pauses() -> Limits {
    Limits { unread_tokens: 1 << 40, ..limits() }
}

/// A client that reads an endless text until it is aborted.
async fn reader(site: &Site) -> JoinHandle<()> {
    let mut events = site.stream(endless()).await;
    assert!(events.next().await.is_some());
    tokio::spawn(async move { while events.next().await.is_some() {} })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_rejects_until_slots_are_free() {
    let site = Site::with(Limits { streams: 1, queue: 2, ..no_pauses() }).await;
    let first = reader(&site).await;
    // Two requests wait, and start when the one before them ends.
    let body = json!({ "model": "plain", "prompt": "First", "text": "First" });
    let ask = |path: &str| site.client.post(site.url(path)).json(&body).send();
    let mut waiting = Vec::new();
    // In this order: an attention request at the front of the queue would be answered between two steps.
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
async fn disconnected_clients_free_their_slots() {
    let site = Site::with(Limits { streams: 4, queue: 10, ..no_pauses() }).await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(reader(&site).await);
    }
    site.until("folio_streams_active", 4.0).await;
    // A waiting request whose client disconnects.
    {
        let waiting = Box::pin(site.complete(endless()));
        let seen = Box::pin(site.until("folio_queue_length", 1.0));
        futures_util::future::select(waiting, seen).await;
    }
    site.until("folio_queue_length", 0.0).await;
    // Clients that disconnect while reading.
    streams.drain(1..).for_each(|reader| reader.abort());
    site.until("folio_streams_active", 1.0).await;
    streams[0].abort();
    site.until("folio_streams_active", 0.0).await;
    // A request that is not streamed.
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

/// Requests a stream of large events on a connection that nobody reads.
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
async fn clients_that_do_not_read_do_not_block_others() {
    let site = Site::with(Limits { streams: 1, stall_time: PATIENCE, ..limits() }).await;
    let deaf = deaf(&site, ENDLESS).await;
    site.until("folio_streams_paused", 1.0).await;
    // The only slot is free for others.
    let alone = Site::start().await.completed(json!({ "max_tokens": 500 })).await;
    assert_eq!(site.completed(json!({ "max_tokens": 500 })).await, alone);
    drop(deaf);
    site.until("folio_streams_active", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_never_read_are_disconnected() {
    let site = Site::with(Limits { stall_time: Duration::from_millis(300), ..limits() }).await;
    let mut deaf = deaf(&site, ENDLESS).await;
    site.until("folio_streams_paused", 1.0).await;
    site.until("folio_streams_active", 0.0).await;
    site.until("folio_connections", 1.0).await;
    let mut rest = Vec::new();
    // The contents of the system's buffers, without the end of the stream.
    let _ =
        tokio::time::timeout(PATIENCE, deaf.read_to_end(&mut rest)).await.expect("the connection is closed");
    assert!(!rest.windows(6).any(|window| window == b"[DONE]"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_resumes_reading_misses_nothing() {
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
async fn requests_end_at_the_time_limit() {
    let site = Site::with(Limits { streams: 1, request_time: Duration::from_millis(300), ..limits() }).await;
    let (status, answer) =
        site.post("/v1/completions", &json!({ "model": "plain", "max_tokens": ENDLESS })).await;
    assert_eq!((status, &answer["error"]["code"]), (504, &json!("time_limit")));
    let mut events = site.stream(endless()).await;
    // The limit includes the time in the queue.
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
async fn running_texts_may_finish_at_shutdown() {
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
async fn a_body_that_arrives_during_shutdown_is_rejected() {
    let mut site = Site::with(Limits { grace_time: PATIENCE, ..no_pauses() }).await;
    let under_way = tokio::spawn(site.stream(json!({ "max_tokens": 300_000 })).await.all());
    let body = json!({ "model": "plain", "max_tokens": 1 }).to_string();
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let head = format!("{head}Expect: 100-continue\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut late = TcpStream::connect(site.address).await.expect("it listens");
    late.write_all(head.as_bytes()).await.expect("room");
    // The server requests the body.
    let mut interim = [0; 25];
    late.read_exact(&mut interim).await.expect("an answer");
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
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
async fn endless_texts_end_at_shutdown() {
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
    // The grace time, a second for sending the rest, and slack for a busy machine.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    drop(deaf);
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_evicted_and_reloaded() {
    let site = Site::with(Limits { models: 1, ..limits() }).await;
    let models = ["plain", "plain:checkpoint_1", "search/run_1", "bytes"];
    let mut texts = Vec::new();
    for model in models {
        texts.push(site.completed(json!({ "model": model, "prompt": "", "max_tokens": 40 })).await);
        assert_eq!(site.metric("folio_models_loaded").await, 1.0);
    }
    // All at the same time, though only one is kept in memory.
    let asked = (0..12).map(|place| {
        let model = models[place % models.len()];
        site.completed(json!({ "model": model, "prompt": "", "max_tokens": 40 }))
    });
    for (place, text) in futures_util::future::join_all(asked).await.into_iter().enumerate() {
        assert_eq!(text, texts[place % models.len()]);
    }
    // An endless text on one model does not block the others.
    let reader = reader(&site).await;
    assert_eq!(site.completed(json!({ "model": "bytes", "prompt": "", "max_tokens": 40 })).await, texts[3]);
    reader.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_match_the_work_done() {
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
