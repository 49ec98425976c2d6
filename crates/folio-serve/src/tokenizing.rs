//! `/tokenize` and `/detokenize`, as llama.cpp's server has them.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::errors::{ApiError, ApiResult};
use crate::guard::json_body;
use crate::json::{Field, parse};
use crate::{Shared, answer_json, apart};

#[derive(Default, Deserialize)]
#[serde(default)]
struct Raw {
    /// The model whose tokenizer to use; the one that was saved last, if none is named.
    model: Field<String>,
    content: Field<String>,
    tokens: Field<Vec<u32>>,
    with_pieces: Field<bool>,
}

/// `POST /tokenize`
pub(crate) async fn tokenize(State(shared): State<Arc<Shared>>, request: Request) -> ApiResult<Response> {
    let raw: Raw = parse(&json_body(request, &shared.limits).await?)?;
    let content = raw.content.0.ok_or_else(|| ApiError::field("content", "is missing: give the text"))?;
    let with_pieces = raw.with_pieces.0.unwrap_or(false);
    let work = move || {
        let model = shared.model_or_newest(raw.model.0.as_deref())?;
        let tokens = model.tokenizer.encode(&content);
        let tokens = tokens.map_err(|error| ApiError::field("content", error.to_string()))?;
        let piece = |&token: &u32| {
            let bytes = model.tokenizer.decode_bytes(&[token]);
            // What is no whole characters is a list of bytes.
            let piece = String::from_utf8(bytes).map_or_else(|error| json!(error.as_bytes()), Value::from);
            json!({ "id": token, "piece": piece })
        };
        let tokens: Vec<Value> = if with_pieces {
            tokens.iter().map(piece).collect()
        } else {
            tokens.iter().map(|&token| token.into()).collect()
        };
        Ok(json!({ "tokens": tokens }))
    };
    Ok(answer_json(&apart(work).await?))
}

/// `POST /detokenize`
pub(crate) async fn detokenize(State(shared): State<Arc<Shared>>, request: Request) -> ApiResult<Response> {
    let raw: Raw = parse(&json_body(request, &shared.limits).await?)?;
    let tokens =
        raw.tokens.0.ok_or_else(|| ApiError::field("tokens", "is missing: give a list of tokens"))?;
    let work = move || {
        let model = shared.model_or_newest(raw.model.0.as_deref())?;
        let vocab_size = model.tokenizer.vocab_size();
        if let Some(unknown) = tokens.iter().find(|&&token| token as usize >= vocab_size) {
            return Err(ApiError::field(
                "tokens",
                format!("token {unknown} is outside the vocabulary of {vocab_size}"),
            ));
        }
        Ok(json!({ "content": model.tokenizer.decode(&tokens) }))
    };
    Ok(answer_json(&apart(work).await?))
}
