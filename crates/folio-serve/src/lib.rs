//! folio's HTTP server: an OpenAI-compatible API, a playground, and a view of training.
//!
//! ```no_run
//! use folio_serve::{Limits, Options, Server};
//!
//! # async fn example() -> Result<(), folio_serve::Error> {
//! let options = Options { runs: vec!["runs".into()], ..Options::default() };
//! let server = Server::bind(options).await?;
//! println!("http://{}/", server.address());
//! server.run(async { /* resolves when the server should shut down */ }).await;
//! # Ok(())
//! # }
//! ```
//!
//! Handlers parse requests and write responses. One thread, the engine, owns the models and generates all sequences. A
//! bounded queue leads from the handlers to the engine and a bounded channel from the engine to each client, so a slow
//! client cannot block the engine.

#![forbid(unsafe_code)]

mod errors;
mod limits;

mod catalog;
mod metrics;
mod models;
mod records;

mod queue;

mod engine;

mod json;

mod chat_template;
mod guard;
mod responses;
mod state;

mod completions;
mod playground;
mod tokenizing;
mod training;

mod assets;
mod body_drain;
mod connections;

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use axum::Router;
use axum::extract::State;
use axum::handler::Handler;
use axum::http::{Method, Uri};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::MethodRouter;
use folio::model::WeightFormat;
use folio::run_dir::Found;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tower_http::catch_panic::CatchPanicLayer;

pub use chat_template::ChatTemplate;
use errors::ApiError;
pub use errors::Error;
use guard::{Guard, Origins};
pub use limits::Limits;
use state::Shared;

/// What to serve, and to whom.
pub struct Options {
    /// Runs, checkpoints, sweeps, or directories of runs and sweeps.
    pub runs: Vec<PathBuf>,
    /// Whether to start if `runs` do not exist or hold no run yet. Runs that appear later are served.
    pub may_be_empty: bool,
    /// The host to listen on.
    pub host: String,
    /// The port; 0 picks a free one.
    pub port: u16,
    /// The API key that clients must send.
    pub api_key: Option<String>,
    /// Origins of other sites whose pages may use the API, such as `https://example.org:8000`.
    pub cors_origins: Vec<String>,
    /// How the messages of a chat become a prompt. Without a template the prompt is the content of the last message.
    pub chat_template: Option<ChatTemplate>,
    /// The format of the weights; by default the precision that each model was trained in.
    pub precision: Option<WeightFormat>,
    /// Bounds on memory and time.
    pub limits: Limits,
    /// Called with one line for each problem that concerns the operator but not the client.
    pub on_warning: Box<dyn Fn(&str) + Send + Sync>,
}

impl Default for Options {
    /// No runs, on 127.0.0.1:8080.
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

/// A server that is listening.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
    guard: Arc<Guard>,
    engine: JoinHandle<()>,
    listing: Arc<catalog::Listing>,
}

impl Server {
    /// Finds the runs, loads a first model, and starts to listen.
    ///
    /// # Errors
    /// If an origin is invalid, a directory has nothing to serve, two runs have the same name, the first model cannot be
    /// loaded, or the address cannot be bound.
    pub async fn bind(options: Options) -> Result<Self, Error> {
        let Options { runs, may_be_empty, host, port, api_key, cors_origins, chat_template, .. } = options;
        let Options { precision, limits, on_warning, .. } = options;
        let origins = Origins::new(&cors_origins)?;
        let catalog = catalog::Catalog::new(runs, may_be_empty, limits.refresh_time);
        let listing = catalog.check()?;
        let models = models::ModelCache::new(precision, &limits);
        let metrics = Arc::new(metrics::Metrics::new());
        match models.preload(&listing, &metrics, &on_warning) {
            Err(error) if may_be_empty => on_warning(&error.to_string()),
            result => result?,
        }
        let (listener, address) = listen(&host, port).await?;
        let queue = Arc::new(queue::Queue::new(limits.queue, limits.streams, Arc::clone(&metrics)));
        let engine = engine::Engine::new(Arc::clone(&queue), limits.clone(), Arc::clone(&metrics));
        let engine = std::thread::Builder::new().name("engine".to_owned()).spawn(|| engine.run());
        let engine = engine.map_err(Error::Thread)?;
        let guard = Arc::new(Guard::new(api_key.as_deref(), &host, address.ip(), origins));
        let shared = Arc::new(Shared {
            catalog,
            models,
            records: records::RecordFiles::default(),
            queue,
            metrics,
            tokenize_permits: Arc::new(Semaphore::new(tokenizing::CONCURRENT_REQUESTS)),
            chat_template,
            limits,
            on_warning,
        });
        Ok(Self { listener, address, shared, guard, engine, listing })
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The names of the runs found at the start, each with its default checkpoint, if it has one.
    pub fn runs(&self) -> Vec<(String, Option<Found>)> {
        self.listing.runs.iter().map(|run| (run.id.clone(), run.found())).collect()
    }

    /// Serves until `shutdown` resolves. New requests are then rejected, and running ones have [`Limits::grace_time`] to
    /// finish.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let Self { listener, shared, guard, engine, .. } = self;
        let router = router(&shared, &guard);
        connections::accept(listener, router, &shared, shutdown).await;
        // The engine ends within the grace time, plus at most one step of a large model.
        let _ = tokio::task::spawn_blocking(|| engine.join()).await;
    }
}

async fn listen(host: &str, port: u16) -> Result<(TcpListener, SocketAddr), Error> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let fail = |source: std::io::Error| {
        let advice = match source.kind() {
            std::io::ErrorKind::AddrInUse => "the port is in use: give another --port".to_owned(),
            std::io::ErrorKind::PermissionDenied => {
                "this port needs root privileges: give a --port of 1024 or above".to_owned()
            }
            std::io::ErrorKind::AddrNotAvailable => {
                "this machine does not have this address: give another --host, such as 127.0.0.1".to_owned()
            }
            // Includes names that do not resolve.
            _ => format!("{source}: give another --host, such as 127.0.0.1"),
        };
        Error::Address { address: format!("{host} port {port}"), advice, source }
    };
    let listener = TcpListener::bind((bare, port)).await.map_err(fail)?;
    let address = listener.local_addr().map_err(fail)?;
    Ok((listener, address))
}

/// A GET route. Other methods get a 405 that names GET.
fn get<H: Handler<T, Arc<Shared>>, T: 'static>(handler: H) -> MethodRouter<Arc<Shared>> {
    axum::routing::get(handler).fallback(async |method: Method| ApiError::wrong_method(&method, "GET"))
}

/// A POST route. Other methods get a 405 that names POST.
fn post<H: Handler<T, Arc<Shared>>, T: 'static>(handler: H) -> MethodRouter<Arc<Shared>> {
    axum::routing::post(handler).fallback(async |method: Method| ApiError::wrong_method(&method, "POST"))
}

fn router(shared: &Arc<Shared>, guard: &Arc<Guard>) -> Router {
    let router = Router::new()
        .route("/", get(assets::playground))
        .route("/training", get(assets::training))
        .route("/assets/{name}", get(assets::asset))
        .route("/health", get(health))
        .route("/v1/health", get(health))
        .route("/healthz", get(health))
        .route("/metrics", get(prometheus))
        .route("/v1/models", get(playground::list_models))
        .route("/v1/models/{*id}", get(playground::get_model))
        .route("/v1/completions", post(completions::post))
        .route("/v1/chat/completions", post(completions::post_chat))
        .route("/tokenize", post(tokenizing::tokenize))
        .route("/detokenize", post(tokenizing::detokenize))
        .route("/api/models", get(playground::model_details))
        .route("/api/attention", post(playground::attention))
        .route("/api/runs", get(training::runs))
        .route("/api/runs/{*records}", get(training::records))
        .fallback(async |uri: Uri| ApiError::unknown_path(uri.path()))
        .layer(CatchPanicLayer::custom(|_: Box<dyn std::any::Any + Send>| {
            ApiError::internal("internal server error").into_response()
        }))
        .layer(from_fn_with_state(Arc::clone(guard), guard::guard));
    // CORS headers go outside the guard, so that a page can read why its request was rejected.
    let router = match guard.cors() {
        Some(cors) => router.layer(cors),
        None => router,
    };
    router
        .layer(from_fn_with_state(Arc::clone(&shared.metrics), metrics::observe))
        .layer(from_fn_with_state(shared.limits.clone(), body_drain::drain))
        .with_state(Arc::clone(shared))
}

/// `GET /health`
async fn health() -> Response {
    responses::json_value(&serde_json::json!({ "status": "ok" }))
}

/// `GET /metrics`
async fn prometheus(State(shared): State<Arc<Shared>>) -> Response {
    shared.metrics.response()
}
