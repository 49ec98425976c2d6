//! A server for one test, and a client for it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use folio_serve::{Limits, Options, Server};
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::runs::RUNS;

/// A timeout that only a bug can exceed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A token limit that is never reached.
pub(crate) const ENDLESS: usize = usize::MAX / 2;

/// A server that runs until it is dropped.
pub(crate) struct Site {
    pub(crate) address: SocketAddr,
    pub(crate) client: Client,
    pub(crate) stop: Option<oneshot::Sender<()>>,
    pub(crate) ended: JoinHandle<()>,
}

pub(crate) fn limits() -> Limits {
    // Directories are read for every request, so that tests need not wait.
    Limits { tokens: ENDLESS, request_tokens: usize::MAX, refresh_time: Duration::ZERO, ..Limits::default() }
}

impl Site {
    /// Serves the shared runs.
    pub(crate) async fn start() -> Self {
        Self::with(limits()).await
    }

    pub(crate) async fn with(limits: Limits) -> Self {
        Self::serving(Options { limits, ..Options::default() }).await
    }

    /// Serves the runs in the options, or else the shared runs.
    pub(crate) async fn serving(options: Options) -> Self {
        let mut runs = options.runs.clone();
        if runs.is_empty() {
            runs.push(PathBuf::from(RUNS.path()));
        }
        let server = Server::bind(Options { runs, port: 0, ..options }).await.expect("it starts");
        let address = server.address();
        let (stop, stopped) = oneshot::channel::<()>();
        let ended = tokio::spawn(server.run(async { drop(stopped.await) }));
        let client = Client::builder().pool_max_idle_per_host(0).build().expect("a client");
        Self { address, client, stop: Some(stop), ended }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        read_json(self.client.get(self.url(path)).send().await.expect("an answer")).await
    }

    pub(crate) async fn text(&self, path: &str) -> String {
        let response = self.client.get(self.url(path)).send().await.expect("an answer");
        assert!(response.status().is_success(), "{path}: {}", response.status());
        response.text().await.expect("text")
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        read_json(self.client.post(self.url(path)).json(body).send().await.expect("an answer")).await
    }

    /// A completion, which must succeed. `body` overrides the default fields.
    #[track_caller]
    pub(crate) fn complete(&self, body: Value) -> impl Future<Output = Value> {
        let body = with_defaults(body);
        let place = std::panic::Location::caller();
        async move {
            let (status, answer) = self.post("/v1/completions", &body).await;
            assert_eq!(status, 200, "{place}: {body}\n{answer}");
            answer
        }
    }

    /// The first text of a completion.
    pub(crate) async fn completed(&self, body: Value) -> String {
        text_of(&self.complete(body).await["choices"][0])
    }

    /// A streamed completion.
    pub(crate) async fn stream(&self, body: Value) -> Events {
        let mut body = with_defaults(body);
        body["stream"] = json!(true);
        let request = self.client.post(self.url("/v1/completions")).json(&body);
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), 200, "{body}");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Events { response, bytes: Vec::new() }
    }

    /// Sends raw bytes and returns everything until the server closes the connection.
    pub(crate) async fn raw(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.expect("it listens");
        // The server may respond and close before it has read everything.
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// A value of /metrics. Every line must be in Prometheus's format.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = self.text("/metrics").await;
        assert!(text.ends_with("# EOF\n"), "{text}");
        let mut found = 0.0;
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
            let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
            if series == name {
                found = value;
            }
        }
        found
    }

    /// Waits until a metric has a value.
    #[track_caller]
    pub(crate) fn until(&self, name: &str, wanted: f64) -> impl Future<Output = ()> {
        let place = std::panic::Location::caller();
        async move {
            let deadline = Instant::now() + PATIENCE;
            loop {
                let value = self.metric(name).await;
                if value == wanted {
                    return;
                }
                assert!(Instant::now() < deadline, "{place}: {name} is {value}, not {wanted}");
            }
        }
    }

    /// Shuts the server down.
    pub(crate) fn stop(&mut self) {
        let stop = self.stop.take().expect("it was not stopped before");
        stop.send(()).expect("it runs");
    }
}

/// The status of a response and its JSON.
async fn read_json(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let kind = response.headers().get("content-type").map(|kind| kind.to_str().expect("text").to_owned());
    let text = response.text().await.expect("text");
    assert_eq!(kind.as_deref(), Some("application/json"), "{status} {text}");
    (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
}

fn with_defaults(body: Value) -> Value {
    let mut whole = json!({ "model": "plain", "prompt": "First", "max_tokens": 20, "seed": 7 });
    let fields = body.as_object().expect("an object").clone();
    whole.as_object_mut().expect("an object").extend(fields);
    whole
}

pub(crate) fn text_of(choice: &Value) -> String {
    choice["text"].as_str().unwrap_or_else(|| panic!("a text: {choice}")).to_owned()
}

/// The events of a stream.
pub(crate) struct Events {
    response: Response,
    bytes: Vec<u8>,
}

impl Events {
    /// The data of the next event; none at the end of the connection.
    pub(crate) async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.bytes.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = self.bytes.drain(..end + 2).collect();
                let event = String::from_utf8(event).expect("whole characters");
                let data = event.trim_end().strip_prefix("data: ").unwrap_or_else(|| panic!("{event:?}"));
                return Some(data.to_owned());
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await.expect("something comes");
            match chunk {
                Ok(Some(chunk)) => self.bytes.extend_from_slice(&chunk),
                Ok(None) | Err(_) => {
                    assert!(
                        self.bytes.is_empty(),
                        "half an event: {:?}",
                        String::from_utf8_lossy(&self.bytes)
                    );
                    return None;
                }
            }
        }
    }

    /// All events to the end, the last of which must be `[DONE]`.
    pub(crate) async fn all(mut self) -> Vec<Value> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            if event == "[DONE]" {
                assert_eq!(self.next().await, None, "nothing follows");
                return events;
            }
            events.push(serde_json::from_str(&event).expect("JSON"));
        }
        panic!("the stream broke off: {events:?}");
    }
}
