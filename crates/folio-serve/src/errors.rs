//! Errors of the server itself, and error responses to clients.

use std::io;

use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// Why the server cannot start. Every message is one line that says what is wrong and how to fix it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address cannot be bound.
    #[error("cannot listen on {address}: {advice}")]
    Address {
        /// The host and the port as given.
        address: String,
        /// What is wrong and how to fix it.
        advice: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// Two runs have the same name.
    #[error("{first} and {second} are both called '{name}': rename one of them, or use two servers")]
    SameName {
        /// The name.
        name: String,
        /// The first run's directory.
        first: String,
        /// The second run's directory.
        second: String,
    },
    /// An invalid chat template.
    #[error("the chat template: {reason}")]
    ChatTemplate {
        /// What is wrong and how to fix it.
        reason: String,
    },
    /// An invalid origin.
    #[error("--cors_origin {origin}: {reason}")]
    Origin {
        /// The origin as given.
        origin: String,
        /// What is wrong and how to fix it.
        reason: &'static str,
    },
    /// A directory has nothing to serve.
    #[error("{path} {reason}")]
    NoRuns {
        /// The directory.
        path: String,
        /// What is wrong and how to fix it.
        reason: String,
    },
    /// A run or a model cannot be loaded.
    #[error(transparent)]
    Library(#[from] folio::error::Error),
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
}

/// An error response, in OpenAI's format.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    /// OpenAI's `type`.
    kind: &'static str,
    message: String,
    /// The invalid field of the request.
    param: Option<String>,
    code: Option<&'static str>,
    /// Seconds after which to retry.
    retry_after: Option<u64>,
}

pub(crate) type ApiResult<T> = Result<T, ApiError>;

const INVALID: &str = "invalid_request_error";

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), param: None, code: None, retry_after: None }
    }

    fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// An invalid field of a request.
    pub(crate) fn field(param: &str, message: impl Into<String>) -> Self {
        Self::field_at(param, param, message)
    }

    /// An invalid value inside a field; `path` is for instance `messages[0].role`.
    pub(crate) fn field_at(param: &str, path: &str, message: impl Into<String>) -> Self {
        let message = format!("{path}: {}", message.into());
        let param = Some(param.to_owned());
        Self { param, ..Self::new(StatusCode::BAD_REQUEST, INVALID, message).with_code("invalid_value") }
    }

    /// A request that cannot be parsed.
    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID, message)
    }

    /// A model that does not exist.
    pub(crate) fn unknown_model(name: &str) -> Self {
        let message =
            format!("the model '{}' does not exist: GET /v1/models lists the models", shortened(name, 100));
        let error = Self::new(StatusCode::NOT_FOUND, INVALID, message).with_code("model_not_found");
        Self { param: Some("model".to_owned()), ..error }
    }

    /// A run that does not exist.
    pub(crate) fn unknown_run(name: &str) -> Self {
        let message =
            format!("the run '{}' does not exist: GET /api/runs lists the runs", shortened(name, 100));
        Self::new(StatusCode::NOT_FOUND, INVALID, message).with_code("run_not_found")
    }

    /// No run has saved a checkpoint yet.
    pub(crate) fn no_models() -> Self {
        Self::new(StatusCode::NOT_FOUND, INVALID, "there is no model yet: train one with folio train")
            .with_code("model_not_found")
    }

    /// A path that has no route.
    pub(crate) fn unknown_path(path: &str) -> Self {
        let message = format!(
            "{} does not exist; this server has GET /v1/models, POST /v1/completions, POST /v1/chat/completions, \
             POST /tokenize, POST /detokenize, GET /health and GET /metrics",
            shortened(path, 100)
        );
        Self::new(StatusCode::NOT_FOUND, INVALID, message).with_code("unknown_url")
    }

    /// A path that only supports another method.
    pub(crate) fn wrong_method(method: &Method, supported: &str) -> Self {
        let message = format!("{} is not supported here: use {supported}", shortened(method.as_str(), 20));
        Self::new(StatusCode::METHOD_NOT_ALLOWED, INVALID, message).with_code("method_not_allowed")
    }

    /// A Content-Type other than JSON.
    pub(crate) fn not_json() -> Self {
        let message = "the body must be JSON, with Content-Type: application/json";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, message).with_code("unsupported_media_type")
    }

    /// A body that exceeds the limit.
    pub(crate) fn too_large(limit: usize) -> Self {
        let message = format!("the body has more than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID, message).with_code("body_too_large")
    }

    /// A body that did not arrive in time.
    pub(crate) fn too_slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, INVALID, "the body did not arrive in time")
            .with_code("body_timeout")
    }

    /// The API key is wrong or missing.
    pub(crate) fn unauthorized(has_key: bool) -> Self {
        let message = match has_key {
            true => "the API key is wrong",
            false => "this server needs an API key: send Authorization: Bearer KEY",
        };
        Self::new(StatusCode::UNAUTHORIZED, INVALID, message).with_code("invalid_api_key")
    }

    /// A request from another host or origin.
    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, INVALID, message).with_code("forbidden")
    }

    /// The queue is full.
    pub(crate) fn queue_full(retry_after: u64) -> Self {
        let message = format!("the request queue is full; retry in {retry_after} s");
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
        Self { retry_after: Some(retry_after), ..error }.with_code("queue_full")
    }

    /// The server is shutting down.
    pub(crate) fn shutting_down() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", "the server is shutting down")
            .with_code("shutting_down")
    }

    /// The request exceeded its time limit.
    pub(crate) fn time_limit(seconds: u64) -> Self {
        let message = format!("the request exceeded the time limit of {seconds} s: request fewer tokens");
        Self::new(StatusCode::GATEWAY_TIMEOUT, "server_error", message).with_code("time_limit")
    }

    /// The client read too slowly.
    pub(crate) fn stalled() -> Self {
        let message = "the client did not read the response in time";
        Self::new(StatusCode::REQUEST_TIMEOUT, INVALID, message).with_code("stalled")
    }

    /// An error on the server's side.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// An error of the library. Its settings are named like the fields of a request, but for `max_new_tokens`.
    pub(crate) fn rejected(error: &folio::error::Error) -> Self {
        match error {
            folio::error::Error::Setting { field, reason } => {
                let field = if *field == "max_new_tokens" { "max_tokens" } else { *field };
                Self::field(field, reason)
            }
            error => Self::malformed(error.to_string()),
        }
    }

    /// OpenAI's error object.
    pub(crate) fn body(&self) -> serde_json::Value {
        let Self { kind, message, param, code, .. } = self;
        json!({ "error": { "message": message, "type": kind, "param": param, "code": code } })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let json = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let mut response = (self.status, [json], self.body().to_string()).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// The first characters of a text from a client, which may be of any length.
fn shortened(text: &str, max_chars: usize) -> String {
    text.chars().take(max_chars).collect()
}
