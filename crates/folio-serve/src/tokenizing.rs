//! `/tokenize` and `/detokenize`, as in llama.cpp's server.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use folio::tokenizer::Tokenizer;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::json;

use crate::errors::{ApiError, ApiResult};
use crate::guard::json_body;
use crate::json::{Field, parse};
use crate::limits::Limits;
use crate::responses::{blocking, json_text};
use crate::state::Shared;

/// How many requests to both routes run at the same time; more wait. This bounds the memory for their tokens.
pub(crate) const CONCURRENT_REQUESTS: usize = 2;

#[derive(Default, Deserialize)]
#[serde(default)]
struct TokenizerRequest {
    /// The model whose tokenizer to use; by default the most recently saved one.
    model: Field<String>,
    content: Field<String>,
    tokens: Field<Vec<u32>>,
    with_pieces: Field<bool>,
}

/// The response of `/tokenize`, where `tokens` are ids or [`TokenPieces`].
#[derive(Serialize)]
struct TokenizeResponse<T> {
    tokens: T,
}

/// Tokens with the text of each. Serialized one by one: as JSON values a million of them would take a gigabyte.
struct TokenPieces<'a> {
    tokens: &'a [u32],
    tokenizer: &'a Tokenizer,
}

#[derive(Serialize)]
struct TokenPiece {
    id: u32,
    piece: PieceText,
}

/// The text of a token, or its bytes if it is not a sequence of whole characters.
#[derive(Serialize)]
#[serde(untagged)]
enum PieceText {
    Text(String),
    Bytes(Vec<u8>),
}

impl Serialize for TokenPieces<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.tokens.iter().map(|&id| {
            let bytes = self.tokenizer.decode_bytes(&[id]);
            let piece = String::from_utf8(bytes)
                .map_or_else(|error| PieceText::Bytes(error.into_bytes()), PieceText::Text);
            TokenPiece { id, piece }
        }))
    }
}

fn check_count(field: &'static str, tokens: usize, limits: &Limits) -> ApiResult<()> {
    let max = limits.tokenized_tokens;
    if tokens <= max {
        return Ok(());
    }
    let message = format!("{tokens} tokens exceed the limit of {max} tokens per request; split it");
    Err(ApiError::field(field, message))
}

/// `POST /tokenize`
pub(crate) async fn tokenize(State(shared): State<Arc<Shared>>, request: Request) -> ApiResult<Response> {
    let body: TokenizerRequest = parse(&json_body(request, &shared.limits).await?)?;
    let content =
        body.content.0.ok_or_else(|| ApiError::field("content", "is missing: give the text to tokenize"))?;
    let with_pieces = body.with_pieces.0.unwrap_or(false);
    let work = move |shared: Arc<Shared>| {
        let model = shared.model_or_newest(body.model.0.as_deref())?;
        let tokenizer = &*model.tokenizer;
        let tokens = tokenizer.encode(&content);
        let tokens = tokens.map_err(|error| ApiError::field("content", error.to_string()))?;
        check_count("content", tokens.len(), &shared.limits)?;
        let json = match with_pieces {
            true => {
                let tokens = TokenPieces { tokens: &tokens, tokenizer };
                serde_json::to_string(&TokenizeResponse { tokens })
            }
            false => serde_json::to_string(&TokenizeResponse { tokens }),
        };
        Ok(json.expect("numbers and strings are valid JSON"))
    };
    respond(shared, work).await
}

/// `POST /detokenize`
pub(crate) async fn detokenize(State(shared): State<Arc<Shared>>, request: Request) -> ApiResult<Response> {
    let body: TokenizerRequest = parse(&json_body(request, &shared.limits).await?)?;
    let tokens =
        body.tokens.0.ok_or_else(|| ApiError::field("tokens", "is missing: give a list of tokens"))?;
    check_count("tokens", tokens.len(), &shared.limits)?;
    let work = move |shared: Arc<Shared>| {
        let model = shared.model_or_newest(body.model.0.as_deref())?;
        let vocab_size = model.tokenizer.vocab_size();
        if let Some(unknown) = tokens.iter().find(|&&token| token as usize >= vocab_size) {
            return Err(ApiError::field(
                "tokens",
                format!("token {unknown} is outside the vocabulary of {vocab_size}"),
            ));
        }
        Ok(json!({ "content": model.tokenizer.decode(&tokens) }).to_string())
    };
    respond(shared, work).await
}

/// Runs work that returns JSON, [`CONCURRENT_REQUESTS`] at a time.
async fn respond(
    shared: Arc<Shared>,
    work: impl FnOnce(Arc<Shared>) -> ApiResult<String> + Send + 'static,
) -> ApiResult<Response> {
    let permit = Arc::clone(&shared.tokenize_permits).acquire_owned().await;
    let permit = permit.map_err(|_| ApiError::shutting_down())?;
    let work = move || {
        // The blocking thread holds the permit, because it continues after the client has disconnected.
        let _permit = permit;
        work(shared)
    };
    Ok(json_text(blocking(work).await?))
}
