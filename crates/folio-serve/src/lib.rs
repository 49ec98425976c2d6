//! folio's server: completions as OpenAI has them, a playground, and a view of training.
//!
//! ```no_run
//! use folio_serve::{Limits, Options, Server};
//!
//! # async fn example() -> Result<(), folio_serve::Error> {
//! let options = Options { runs: vec!["runs".into()], ..Options::default() };
//! let server = Server::bind(options).await?;
//! println!("http://{}/", server.address());
//! server.run(async { /* ends when the server shall end */ }).await;
//! # Ok(())
//! # }
//! ```
//!
//! Handlers read requests and write answers; one thread, the engine, owns the models and writes all texts. Between them
//! is a bounded queue, and from the engine to each client a bounded channel, so that neither ever waits for the other
//! for long, whatever clients do.

#![forbid(unsafe_code)]

mod errors;
mod limits;

mod catalogue;
mod models;

mod engine;
mod queue;

mod completions;
mod json;
mod playground;
mod tokenizing;
mod training;

mod assets;
mod guard;
mod metrics;
mod unread;

mod connections;

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use axum::Router;
use axum::handler::Handler;
use axum::http::{HeaderValue, Method, Uri, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::MethodRouter;
use folio::model::WeightFormat;
use folio::run_dir::Found;
use tokio::net::TcpListener;
use tower_http::catch_panic::CatchPanicLayer;

pub use completions::ChatTemplate;
pub use errors::Error;
use errors::{ApiError, ApiResult};
pub use limits::Limits;

/// What to serve, and to whom.
pub struct Options {
    /// Runs, checkpoints, sweeps, or directories of runs and sweeps.
    pub runs: Vec<PathBuf>,
    /// Whether to start where these do not exist or hold no run yet; runs that appear later are served.
    pub may_be_empty: bool,
    /// The host to listen on.
    pub host: String,
    /// The port; 0 takes one that is free.
    pub port: u16,
    /// The key that clients must give.
    pub api_key: Option<String>,
    /// Web pages of other sites that may ask, by their origins, such as `https://example.org:8000`.
    pub cors_origins: Vec<String>,
    /// How the messages of a chat become a prompt; without one, the content of the last message is the prompt.
    pub chat_template: Option<ChatTemplate>,
    /// The numbers that weights are in; those that each model was trained in, if none are given.
    pub precision: Option<WeightFormat>,
    /// How much is served at once.
    pub limits: Limits,
    /// Is told, in one line, of what an operator should know and a client need not.
    pub on_warning: Box<dyn Fn(&str) + Send + Sync>,
}

impl Default for Options {
    /// Nothing, to this machine alone.
    fn default() -> Self {
        Self {
            runs: Vec::new(),
            may_be_empty: false,
            host: "127.0.0.1".to_owned(),
            port: 8080,
            api_key: None,
            cors_origins: Vec::new(),
            chat_template: None,
            precision: None,
            limits: Limits::default(),
            on_warning: Box::new(|_| {}),
        }
    }
}

/// A server that listens.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
    engine: JoinHandle<()>,
    listing: Arc<catalogue::Listing>,
}

/// What all handlers share.
struct Shared {
    catalogue: catalogue::Catalogue,
    models: models::Models,
    records: training::RecordFiles,
    queue: Arc<queue::Queue>,
    metrics: Arc<metrics::Metrics>,
    guard: guard::Guard,
    /// Permits of `/tokenize` and `/detokenize`.
    tokenizing: Arc<tokio::sync::Semaphore>,
    chat_template: Option<ChatTemplate>,
    limits: Limits,
    on_warning: Box<dyn Fn(&str) + Send + Sync>,
}

impl Server {
    /// Looks through the runs, reads a first model, and listens.
    ///
    /// # Errors
    /// For an invalid origin, a directory that has nothing to serve, two runs with one name, a first model that cannot be
    /// read, and an address that cannot be listened on.
    pub async fn bind(options: Options) -> Result<Self, Error> {
        let Options { runs, may_be_empty, host, port, api_key, cors_origins, chat_template, .. } = options;
        let Options { precision, limits, on_warning, .. } = options;
        let origins = guard::Origins::new(&cors_origins)?;
        let catalogue = catalogue::Catalogue::new(runs, may_be_empty, limits.refresh_time);
        let listing = catalogue.check()?;
        let models = models::Models::new(precision, &limits);
        let metrics = Arc::new(metrics::Metrics::new());
        match models.get_first(&listing, &metrics, &on_warning) {
            Err(error) if may_be_empty => on_warning(&error.to_string()),
            read => read?,
        }
        let (listener, address) = listen(&host, port).await?;
        let queue = Arc::new(queue::Queue::new(limits.queue, limits.streams, Arc::clone(&metrics)));
        let engine = engine::Engine::new(Arc::clone(&queue), limits.clone(), Arc::clone(&metrics));
        let engine = std::thread::Builder::new().name("engine".to_owned()).spawn(|| engine.run());
        let engine = engine.map_err(Error::Thread)?;
        let guard = guard::Guard::new(api_key.as_deref(), &host, address.ip(), origins);
        let records = training::RecordFiles::default();
        let shared = Shared {
            catalogue,
            models,
            records,
            queue,
            metrics,
            guard,
            tokenizing: tokenizing::permits(),
            chat_template,
            limits,
            on_warning,
        };
        Ok(Self { listener, address, shared: Arc::new(shared), engine, listing })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The names of the runs that it serves so far, each with its default checkpoint, if one was saved.
    pub fn runs(&self) -> Vec<(String, Option<Found>)> {
        self.listing.runs.iter().map(|run| (run.id.clone(), run.found())).collect()
    }

    /// Serves until `shutdown` resolves. Then nothing new is taken in, and what is under way has
    /// [`Limits::grace_time`] to end.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let Self { listener, shared, engine, .. } = self;
        let router = router(&shared);
        connections::accept(listener, router, &shared, shutdown).await;
        // It ends within the time of grace; a step of a very large model may be under way.
        let _ = tokio::task::spawn_blocking(|| engine.join()).await;
    }
}

async fn listen(host: &str, port: u16) -> Result<(TcpListener, SocketAddr), Error> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let fail = |source: std::io::Error| {
        let advice = match source.kind() {
            std::io::ErrorKind::AddrInUse => "the port is in use: give another --port".to_owned(),
            std::io::ErrorKind::PermissionDenied => {
                "the system does not let us have this port: give a --port from 1024 on".to_owned()
            }
            std::io::ErrorKind::AddrNotAvailable => {
                "this machine has no such address: give one of its own as --host, such as 127.0.0.1"
                    .to_owned()
            }
            // Names that lead nowhere among them.
            _ => format!("{source}: give another --host, such as 127.0.0.1"),
        };
        Error::Address { address: format!("{host} port {port}"), advice, source }
    };
    let listener = TcpListener::bind((bare, port)).await.map_err(fail)?;
    let address = listener.local_addr().map_err(fail)?;
    Ok((listener, address))
}

/// A route to read from. Other methods are told so.
fn get<H: Handler<T, Arc<Shared>>, T: 'static>(handler: H) -> MethodRouter<Arc<Shared>> {
    axum::routing::get(handler).fallback(async |method: Method| ApiError::wrong_method(&method, "GET"))
}

/// A route that answers to a body. Other methods are told so.
fn post<H: Handler<T, Arc<Shared>>, T: 'static>(handler: H) -> MethodRouter<Arc<Shared>> {
    axum::routing::post(handler).fallback(async |method: Method| ApiError::wrong_method(&method, "POST"))
}

fn router(shared: &Arc<Shared>) -> Router {
    let router = Router::new()
        .route("/", get(assets::playground))
        .route("/training", get(assets::training))
        .route("/assets/{name}", get(assets::asset))
        .route("/health", get(health))
        .route("/v1/health", get(health))
        .route("/healthz", get(health))
        .route("/metrics", get(metrics::get))
        .route("/v1/models", get(playground::list))
        .route("/v1/models/{*id}", get(playground::one))
        .route("/v1/completions", post(completions::post))
        .route("/v1/chat/completions", post(completions::post_chat))
        .route("/tokenize", post(tokenizing::tokenize))
        .route("/detokenize", post(tokenizing::detokenize))
        .route("/api/models", get(playground::details))
        .route("/api/attention", post(playground::attention))
        .route("/api/runs", get(training::runs))
        .route("/api/runs/{*records}", get(training::records))
        .fallback(async |uri: Uri| ApiError::unknown_path(uri.path()))
        .layer(CatchPanicLayer::custom(|_: Box<dyn std::any::Any + Send>| {
            ApiError::internal("something broke in the server").into_response()
        }))
        .layer(from_fn_with_state(Arc::clone(shared), guard::guard));
    // Outside of the guard, so that a page can read why it was refused.
    let router = match shared.guard.cors() {
        Some(cors) => router.layer(cors),
        None => router,
    };
    router
        .layer(from_fn_with_state(Arc::clone(shared), metrics::watch))
        .layer(from_fn_with_state(Arc::clone(shared), unread::drain))
        .with_state(Arc::clone(shared))
}

async fn health() -> Response {
    answer_json(&serde_json::json!({ "status": "ok" }))
}

impl Shared {
    /// The model of this name, or without a name the one that was saved last.
    fn model_or_newest(&self, name: Option<&str>) -> ApiResult<Arc<models::Model>> {
        let Some(name) = name else {
            let listing = self.catalogue.listing();
            let newest = listing.newest().ok_or_else(ApiError::no_models)?;
            return self.model(newest);
        };
        self.model(name)
    }

    /// The model of this name, read if need be.
    fn model(&self, name: &str) -> ApiResult<Arc<models::Model>> {
        let listing = self.catalogue.listing();
        let (run, saved) = listing.find(name).ok_or_else(|| ApiError::unknown_model(name))?;
        self.models.get(run, saved, &self.metrics).map_err(|error| {
            // Where files lie is the operator's affair.
            self.warn(&error.to_string());
            ApiError::internal("the model cannot be read; the server's log says why")
        })
    }

    /// Puts work in the queue.
    fn put(&self, work: queue::Work) -> ApiResult<()> {
        self.queue.push(work).map_err(|refused| match refused {
            queue::Refused::Full(seconds) => ApiError::busy(seconds),
            queue::Refused::Closing => ApiError::closing(),
        })
    }

    fn warn(&self, line: &str) {
        (self.on_warning)(line);
    }

    /// Takes in nothing more.
    fn begin_shutdown(&self) {
        self.queue.close(Instant::now() + self.limits.grace_time);
    }
}

/// Does what may wait for files or take long on a thread of its own.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> ApiResult<T> + Send + 'static) -> ApiResult<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(ApiError::internal("something broke in the server")))
}

fn answer_json(value: &serde_json::Value) -> Response {
    json_response(value.to_string())
}

fn json_response(json: String) -> Response {
    let kind = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    ([kind], json).into_response()
}
