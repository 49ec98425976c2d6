//! JSON responses, and blocking work outside the async threads.

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use crate::errors::{ApiError, ApiResult};

/// Runs work that reads files or takes long on a blocking thread.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> ApiResult<T> + Send + 'static,
) -> ApiResult<T> {
    let result = tokio::task::spawn_blocking(work).await;
    result.unwrap_or_else(|_| Err(ApiError::internal("internal server error")))
}

pub(crate) fn json_value(value: &Value) -> Response {
    json_text(value.to_string())
}

/// A response whose body is JSON already.
pub(crate) fn json_text(json: String) -> Response {
    let content_type = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    ([content_type], json).into_response()
}
