//! What Prometheus is told.

use std::sync::Arc;
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body::{Frame, SizeHint};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::Shared;

/// The server's counters. Each is known to the registry, which writes them down.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Answered, Counter>,
    duration: Family<Route, Histogram>,
    /// From a request for a completion to its first token.
    pub(crate) first_token: Histogram,
    /// Tokens that were drawn.
    pub(crate) drawn: Counter,
    /// Tokens of prompts that were taken up.
    pub(crate) prompt: Counter,
    /// Requests that wait.
    pub(crate) waiting: Gauge,
    /// Texts that are being written, those that wait for their client included.
    pub(crate) streams: Gauge,
    /// Of these, the ones that wait for their client.
    pub(crate) paused: Gauge,
    /// Models in memory.
    pub(crate) models: Gauge,
    /// Connections that are open.
    pub(crate) connections: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    route: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: String,
}

/// From a millisecond to two minutes.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 18))
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let metrics = Self {
            registry: Registry::with_prefix("folio"),
            requests: Family::default(),
            duration: Family::new_with_constructor(seconds),
            first_token: seconds(),
            drawn: Counter::default(),
            prompt: Counter::default(),
            waiting: Gauge::default(),
            streams: Gauge::default(),
            paused: Gauge::default(),
            models: Gauge::default(),
            connections: Gauge::default(),
        };
        metrics.registered()
    }

    fn registered(mut self) -> Self {
        let registry = &mut self.registry;
        registry.register("requests", "Requests by route and status", self.requests.clone());
        let told = "Seconds from a request to the end of its answer";
        registry.register("request_seconds", told, self.duration.clone());
        let told = "Seconds from a request for a completion to its first token";
        registry.register("first_token_seconds", told, self.first_token.clone());
        registry.register("drawn_tokens", "Tokens drawn", self.drawn.clone());
        registry.register("prompt_tokens", "Tokens of prompts", self.prompt.clone());
        registry.register("queue_length", "Requests that wait", self.waiting.clone());
        registry.register("streams_active", "Texts that are being written", self.streams.clone());
        registry.register("streams_paused", "Texts that wait for their client", self.paused.clone());
        registry.register("models_loaded", "Models in memory", self.models.clone());
        registry.register("connections", "Connections that are open", self.connections.clone());
        self
    }
}

/// `GET /metrics`
pub(crate) async fn get(State(shared): State<Arc<Shared>>) -> Response {
    let mut text = String::new();
    encode(&mut text, &shared.metrics.registry).expect("a string takes any text");
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// Counts a request, and watches its answer to the end.
pub(crate) async fn watch(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    // A path that a client made up must not become a series of its own.
    let matched = request.extensions().get::<MatchedPath>();
    let route = matched.map_or("other", |path| path.as_str()).to_owned();
    let response = next.run(request).await;
    let answered = Answered { route: route.clone(), status: response.status().as_u16() };
    shared.metrics.requests.get_or_create(&answered).inc();
    let timer = Timer { shared, route: Route { route }, begun };
    response.map(|body| Body::new(Watched { body, _timer: timer }))
}

/// Tells, when it is dropped, how long it lived.
struct Timer {
    shared: Arc<Shared>,
    route: Route,
    begun: Instant,
}

impl Drop for Timer {
    fn drop(&mut self) {
        let seconds = self.begun.elapsed().as_secs_f64();
        self.shared.metrics.duration.get_or_create(&self.route).observe(seconds);
    }
}

/// A body that is dropped together with a timer.
struct Watched {
    body: Body,
    _timer: Timer,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        std::pin::Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
