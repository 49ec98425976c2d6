//! Metrics for Prometheus.

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

/// The server's metrics. Each is registered in `registry`, which renders them.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    duration: Family<RouteLabels, Histogram>,
    /// Seconds from the arrival of a request to its first token.
    pub(crate) first_token: Histogram,
    pub(crate) generated_tokens: Counter,
    /// Prompt tokens of accepted requests.
    pub(crate) prompt_tokens: Counter,
    pub(crate) queue_length: Gauge,
    /// Active sequences, paused ones included.
    pub(crate) streams: Gauge,
    /// Paused sequences.
    pub(crate) paused: Gauge,
    /// Models in memory.
    pub(crate) models: Gauge,
    /// Open connections.
    pub(crate) connections: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
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
            generated_tokens: Counter::default(),
            prompt_tokens: Counter::default(),
            queue_length: Gauge::default(),
            streams: Gauge::default(),
            paused: Gauge::default(),
            models: Gauge::default(),
            connections: Gauge::default(),
        };
        metrics.register()
    }

    fn register(mut self) -> Self {
        let registry = &mut self.registry;
        registry.register("requests", "Requests by route and status", self.requests.clone());
        let help = "Seconds from the arrival of a request to the end of its response";
        registry.register("request_seconds", help, self.duration.clone());
        let help = "Seconds from the arrival of a completion request to its first token";
        registry.register("first_token_seconds", help, self.first_token.clone());
        registry.register("generated_tokens", "Generated tokens", self.generated_tokens.clone());
        registry.register("prompt_tokens", "Prompt tokens", self.prompt_tokens.clone());
        registry.register("queue_length", "Requests in the queue", self.queue_length.clone());
        registry.register("streams_active", "Sequences being generated or paused", self.streams.clone());
        let help = "Sequences paused because their client is not reading";
        registry.register("streams_paused", help, self.paused.clone());
        registry.register("models_loaded", "Models in memory", self.models.clone());
        registry.register("connections", "Open connections", self.connections.clone());
        self
    }

    /// All metrics in OpenMetrics text format.
    pub(crate) fn response(&self) -> Response {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string does not fail");
        let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
        ([(header::CONTENT_TYPE, kind)], text).into_response()
    }
}

/// Middleware that counts requests and measures the time to the end of each response.
pub(crate) async fn observe(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    // Unknown paths share one label, so that clients cannot create new time series.
    let matched = request.extensions().get::<MatchedPath>();
    let route = matched.map_or("other", |path| path.as_str()).to_owned();
    let response = next.run(request).await;
    let labels = RequestLabels { route: route.clone(), status: response.status().as_u16() };
    metrics.requests.get_or_create(&labels).inc();
    let timer = Timer { metrics, labels: RouteLabels { route }, start };
    response.map(|body| Body::new(TimedBody { body, _timer: timer }))
}

/// Records the time since `start` when it is dropped.
struct Timer {
    metrics: Arc<Metrics>,
    labels: RouteLabels,
    start: Instant,
}

impl Drop for Timer {
    fn drop(&mut self) {
        let seconds = self.start.elapsed().as_secs_f64();
        self.metrics.duration.get_or_create(&self.labels).observe(seconds);
    }
}

/// A body with a timer that ends when the body is dropped.
struct TimedBody {
    body: Body,
    _timer: Timer,
}

impl http_body::Body for TimedBody {
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
