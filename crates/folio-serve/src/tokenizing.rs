//! `/tokenize` and `/detokenize`, as llama.cpp's server has them.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use folio::tokenizer::Tokenizer;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::json;
use tokio::sync::Semaphore;

use crate::errors::{ApiError, ApiResult};
use crate::guard::json_body;
use crate::json::{Field, parse};
use crate::limits::Limits;
use crate::{Shared, apart, json_response};

/// Requests whose tokens are in memory at once; more wait.
const AT_ONCE: usize = 2;

/// Bounds the memory of both routes.
pub(crate) fn permits() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(AT_ONCE))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Raw {
    /// The model whose tokenizer to use; the one that was saved last, if none is named.
    model: Field<String>,
    content: Field<String>,
    tokens: Field<Vec<u32>>,
    with_pieces: Field<bool>,
}

/// The tokens of a text: numbers, or [`Pieces`].
#[derive(Serialize)]
struct Tokens<T> {
    tokens: T,
}

/// Tokens with the text of each. They are written one by one: a million of them would be a gigabyte of JSON values.
struct Pieces<'a> {
    tokens: &'a [u32],
    tokenizer: &'a Tokenizer,
}

#[derive(Serialize)]
struct Entry {
    id: u32,
    piece: Piece,
}

/// What is no whole characters is a list of bytes.
#[derive(Serialize)]
#[serde(untagged)]
enum Piece {
    Text(String),
    Bytes(Vec<u8>),
}

impl Serialize for Pieces<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.tokens.iter().map(|&id| {
            let bytes = self.tokenizer.decode_bytes(&[id]);
            let piece =
                String::from_utf8(bytes).map_or_else(|error| Piece::Bytes(error.into_bytes()), Piece::Text);
            Entry { id, piece }
        }))
    }
}

fn check_count(field: &'static str, tokens: usize, limits: &Limits) -> ApiResult<()> {
    let most = limits.tokenized_tokens;
    if tokens <= most {
        return Ok(());
    }
    let message = format!("{tokens} tokens are more than the {most} that a request may have; split it");
    Err(ApiError::field(field, message))
}

/// `POST /tokenize`
pub(crate) async fn tokenize(State(shared): State<Arc<Shared>>, request: Request) -> ApiResult<Response> {
    let raw: Raw = parse(&json_body(request, &shared.limits).await?)?;
    let content = raw.content.0.ok_or_else(|| ApiError::field("content", "is missing: give the text"))?;
    let with_pieces = raw.with_pieces.0.unwrap_or(false);
    let work = move |shared: Arc<Shared>| {
        let model = shared.model_or_newest(raw.model.0.as_deref())?;
        let tokenizer = &*model.tokenizer;
        let tokens = tokenizer.encode(&content);
        let tokens = tokens.map_err(|error| ApiError::field("content", error.to_string()))?;
        check_count("content", tokens.len(), &shared.limits)?;
        let json = match with_pieces {
            true => serde_json::to_string(&Tokens { tokens: Pieces { tokens: &tokens, tokenizer } }),
            false => serde_json::to_string(&Tokens { tokens }),
        };
        Ok(json.expect("numbers and texts are JSON"))
    };
    alone(shared, work).await
}

/// `POST /detokenize`
pub(crate) async fn detokenize(State(shared): State<Arc<Shared>>, request: Request) -> ApiResult<Response> {
    let raw: Raw = parse(&json_body(request, &shared.limits).await?)?;
    let tokens =
        raw.tokens.0.ok_or_else(|| ApiError::field("tokens", "is missing: give a list of tokens"))?;
    check_count("tokens", tokens.len(), &shared.limits)?;
    let work = move |shared: Arc<Shared>| {
        let model = shared.model_or_newest(raw.model.0.as_deref())?;
        let vocab_size = model.tokenizer.vocab_size();
        if let Some(unknown) = tokens.iter().find(|&&token| token as usize >= vocab_size) {
            return Err(ApiError::field(
                "tokens",
                format!("token {unknown} is outside the vocabulary of {vocab_size}"),
            ));
        }
        Ok(json!({ "content": model.tokenizer.decode(&tokens) }).to_string())
    };
    alone(shared, work).await
}

/// Does work that makes JSON, [`AT_ONCE`] at a time.
async fn alone(
    shared: Arc<Shared>,
    work: impl FnOnce(Arc<Shared>) -> ApiResult<String> + Send + 'static,
) -> ApiResult<Response> {
    let permit = Arc::clone(&shared.tokenizing).acquire_owned().await;
    let permit = permit.map_err(|_| ApiError::closing())?;
    let work = move || {
        // Work goes on when its client leaves, and so it holds the permit itself.
        let _permit = permit;
        work(shared)
    };
    Ok(json_response(apart(work).await?))
}
