//! What can go wrong: errors of the server itself, and answers to requests that cannot be met.

use std::io;

use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// Why the server cannot start, or ended. Every message is one line that names the culprit and the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {advice}")]
    Address {
        /// The host and the port as given.
        address: String,
        /// What to do.
        advice: String,
        /// What the system said.
        source: io::Error,
    },
    /// Two directories whose runs would have one name.
    #[error("{first} and {second} are both called '{name}': rename one of them, or serve them apart")]
    SameName {
        /// The name.
        name: String,
        /// The run that has it.
        first: String,
        /// The run that would have it too.
        second: String,
    },
    /// A template of chats that cannot be used.
    #[error("the chat template: {reason}")]
    ChatTemplate {
        /// What is wrong and what to do.
        reason: String,
    },
    /// An invalid origin of web pages.
    #[error("--cors_origin {origin}: {reason}")]
    Origin {
        /// The origin as given.
        origin: String,
        /// What is wrong and what to do.
        reason: &'static str,
    },
    /// A directory in which there is no run.
    #[error("{path}: {reason}")]
    NoRuns {
        /// The directory.
        path: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A run or a model cannot be read.
    #[error(transparent)]
    Library(#[from] folio::error::Error),
    /// A thread cannot be started.
    #[error("starting threads: {0}")]
    Thread(#[source] io::Error),
}

/// An answer that is OpenAI's error object.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    /// OpenAI's `type`.
    kind: &'static str,
    message: String,
    /// The field of the request that is at fault.
    param: Option<String>,
    code: Option<&'static str>,
    /// Seconds after which to try again.
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

    /// A field of a request that cannot be used.
    pub(crate) fn field(param: &str, message: impl Into<String>) -> Self {
        Self::place(param, param, message)
    }

    /// A place in a field, such as `messages[0].role`.
    pub(crate) fn place(param: &str, place: &str, message: impl Into<String>) -> Self {
        let message = format!("{place}: {}", message.into());
        let param = Some(param.to_owned());
        Self { param, ..Self::new(StatusCode::BAD_REQUEST, INVALID, message).with_code("invalid_value") }
    }

    /// A request that cannot be understood at all.
    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID, message)
    }

    /// A model or a run that is not there.
    pub(crate) fn unknown_model(name: &str) -> Self {
        // What a client sends may be long.
        let short: String = name.chars().take(100).collect();
        let message = format!("the model '{short}' does not exist: GET /v1/models lists those there are");
        let error = Self::new(StatusCode::NOT_FOUND, INVALID, message).with_code("model_not_found");
        Self { param: Some("model".to_owned()), ..error }
    }

    /// A run that is not there.
    pub(crate) fn unknown_run(name: &str) -> Self {
        let short: String = name.chars().take(100).collect();
        let message = format!("the run '{short}' does not exist: GET /api/runs lists those there are");
        Self::new(StatusCode::NOT_FOUND, INVALID, message).with_code("run_not_found")
    }

    /// No run has saved anything yet.
    pub(crate) fn no_models() -> Self {
        Self::new(StatusCode::NOT_FOUND, INVALID, "there is no model yet: train one with folio train")
            .with_code("model_not_found")
    }

    /// A path without anything.
    pub(crate) fn unknown_path(path: &str) -> Self {
        let short: String = path.chars().take(100).collect();
        let message = format!(
            "there is nothing at {short}; this server has GET /v1/models, POST /v1/completions, \
             POST /v1/chat/completions, POST /tokenize, POST /detokenize, GET /health and GET /metrics"
        );
        Self::new(StatusCode::NOT_FOUND, INVALID, message).with_code("unknown_url")
    }

    /// A path that knows another method.
    pub(crate) fn wrong_method(method: &Method, other: &str) -> Self {
        // A client may make methods up.
        let short: String = method.as_str().chars().take(20).collect();
        let message = format!("{short} is not supported here: use {other}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, INVALID, message).with_code("method_not_allowed")
    }

    /// A body that is no JSON by its own words.
    pub(crate) fn not_json() -> Self {
        let message = "the body must be JSON, with Content-Type: application/json";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, message).with_code("unsupported_media_type")
    }

    /// A body beyond the limit.
    pub(crate) fn too_large(limit: usize) -> Self {
        let message = format!("the body has more than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID, message).with_code("body_too_large")
    }

    /// A body that does not come.
    pub(crate) fn too_slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, INVALID, "the body did not arrive in time")
            .with_code("body_timeout")
    }

    /// A key is wanted and none, or another, was given.
    pub(crate) fn unauthorized(given: bool) -> Self {
        let message = match given {
            true => "the API key is not the one this server was started with",
            false => "an API key is needed, as Authorization: Bearer KEY",
        };
        Self::new(StatusCode::UNAUTHORIZED, INVALID, message).with_code("invalid_api_key")
    }

    /// A request that a page of another origin may have caused.
    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, INVALID, message).with_code("forbidden")
    }

    /// More requests wait than may.
    pub(crate) fn busy(retry_after: u64) -> Self {
        let message = format!("the queue is full; retry in {retry_after} s");
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
        Self { retry_after: Some(retry_after), ..error }.with_code("queue_full")
    }

    /// The server is about to end.
    pub(crate) fn closing() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", "the server is shutting down")
            .with_code("shutting_down")
    }

    /// The request took longer than it may.
    pub(crate) fn time_limit(seconds: u64) -> Self {
        let message = format!("the request took longer than the {seconds} s it may: ask for fewer tokens");
        Self::new(StatusCode::GATEWAY_TIMEOUT, "server_error", message).with_code("time_limit")
    }

    /// The client read too slowly.
    pub(crate) fn stalled() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, INVALID, "the text was not read in time").with_code("stalled")
    }

    /// A fault of ours, or of the files.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// What the library refuses: a setting that is named like the field of the request.
    pub(crate) fn refused(error: &folio::error::Error) -> Self {
        match error {
            folio::error::Error::Setting { field, reason } => {
                let field = if *field == "max_new_tokens" { "max_tokens" } else { *field };
                Self::field(field, reason)
            }
            error => Self::malformed(error.to_string()),
        }
    }

    /// OpenAI's object.
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
