//! What models there are, and what their heads attend to.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use folio::checkpoint::CheckpointName;
use folio::run_dir::Saved;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::catalogue::Run;
use crate::completions::{seconds_since_1970, spelling};
use crate::errors::{ApiError, ApiResult};
use crate::guard::json_body;
use crate::json::{Field, parse};
use crate::queue::{Attend, Work};
use crate::{Shared, answer_json, apart};

/// Tokens whose attention is told at most: a picture of more could not be read.
const ATTENTION_TOKENS: usize = 256;

/// `GET /v1/models`
pub(crate) async fn list(State(shared): State<Arc<Shared>>) -> ApiResult<Response> {
    let list = apart(move || {
        let listing = shared.catalogue.listing();
        let runs = listing.runs.iter();
        let all = runs.flat_map(|run| {
            let own = run.checkpoints.get(run.default).map(|saved| openai(&run.id, saved));
            let checkpoints = run.checkpoints.iter();
            own.into_iter().chain(checkpoints.map(|saved| openai(&full_name(run, saved), saved)))
        });
        Ok(json!({ "object": "list", "data": all.collect::<Vec<Value>>() }))
    });
    Ok(answer_json(&list.await?))
}

/// `GET /v1/models/{id}`
pub(crate) async fn one(
    State(shared): State<Arc<Shared>>,
    id: Result<Path<String>, PathRejection>,
) -> ApiResult<Response> {
    let Path(id) = id.map_err(|_| ApiError::malformed("the address is not UTF-8"))?;
    let find = move || {
        let listing = shared.catalogue.listing();
        let found = listing.find(&id).map(|(_, saved)| openai(&id, saved));
        found.ok_or_else(|| ApiError::unknown_model(&id))
    };
    Ok(answer_json(&apart(find).await?))
}

fn full_name(run: &Run, saved: &Saved) -> String {
    format!("{}:{}", run.id, saved.name)
}

/// OpenAI's object.
fn openai(id: &str, saved: &Saved) -> Value {
    json!({ "id": id, "object": "model", "created": seconds_since_1970(saved.modified), "owned_by": "folio" })
}

/// `GET /api/models`
pub(crate) async fn details(State(shared): State<Arc<Shared>>) -> ApiResult<Response> {
    let list = apart(move || {
        let listing = shared.catalogue.listing();
        Ok(json!({ "models": listing.runs.iter().flat_map(of_run).collect::<Vec<Value>>() }))
    });
    Ok(answer_json(&list.await?))
}

/// The checkpoints of a run, the one that its name alone means first. A run that cannot be read has none.
fn of_run(run: &Run) -> Vec<Value> {
    let (Ok(settings), Ok(config)) = (run.directory.settings(), run.directory.model_config()) else {
        return Vec::new();
    };
    let mut places: Vec<usize> = (0..run.checkpoints.len()).collect();
    places.sort_by_key(|&place| place != run.default);
    let model = |place: usize| {
        let saved = &run.checkpoints[place];
        let is_default = place == run.default;
        let (epoch, step) = match saved.name {
            CheckpointName::Epoch(epoch) => (Some(epoch), None),
            CheckpointName::Step(step) => (None, Some(step)),
        };
        json!({
            "id": if is_default { run.id.clone() } else { full_name(run, saved) },
            "run": run.id,
            "checkpoint": saved.name.to_string(),
            "epoch": epoch,
            "step": step,
            "eval_loss": saved.eval_loss,
            "is_default": is_default,
            "tokenizer": settings.tokenizer_type,
            "config": {
                "n_blocks": config.n_blocks, "n_heads": config.n_heads, "n_emb": config.n_emb,
                "block_size": config.block_size, "vocab_size": config.vocab_size,
            },
        })
    };
    places.into_iter().map(model).collect()
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AttentionRequest {
    model: Field<String>,
    text: Field<String>,
    tokens: Field<Vec<u32>>,
    block: Field<u64>,
}

/// `POST /api/attention`
pub(crate) async fn attention(State(shared): State<Arc<Shared>>, request: Request) -> ApiResult<Response> {
    let body = json_body(request, &shared.limits).await?;
    let AttentionRequest { model, text, tokens, block } = parse(&body)?;
    let missing = || ApiError::field("model", "is missing: GET /v1/models lists the models");
    let model = model.0.ok_or_else(missing)?;
    let block = block.0.unwrap_or(0);
    let (model, tokens) = {
        let shared = Arc::clone(&shared);
        apart(move || {
            let model = shared.model(&model)?;
            let tokens = match (text.0, tokens.0) {
                (Some(text), None) => {
                    let encoded = model.tokenizer.encode(&text);
                    encoded.map_err(|error| ApiError::field("text", error.to_string()))?
                }
                (None, Some(tokens)) => tokens,
                _ => return Err(ApiError::field("text", "give either a text or tokens")),
            };
            let config = model.predictor.config();
            if tokens.is_empty() || tokens.iter().any(|&token| token as usize >= config.vocab_size) {
                let message = format!("one token at least, and of the vocabulary of {}", config.vocab_size);
                return Err(ApiError::field("tokens", message));
            }
            if block >= config.n_blocks as u64 {
                let message = format!("the model's blocks are 0 to {}", config.n_blocks - 1);
                return Err(ApiError::field("block", message));
            }
            let most = config.block_size.min(ATTENTION_TOKENS);
            let from = tokens.len().saturating_sub(most);
            Ok((model, tokens[from..].to_vec()))
        })
        .await?
    };
    let (answer, answered) = oneshot::channel();
    let block = block as usize;
    let work = Attend { model: Arc::clone(&model), tokens: tokens.clone(), block, answer };
    shared.put(Work::Attend(work))?;
    let weights = match tokio::time::timeout(shared.limits.request_time, answered).await {
        Ok(Ok(weights)) => weights,
        Ok(Err(_)) if shared.queue.closing().is_some() => return Err(ApiError::closing()),
        Ok(Err(_)) => return Err(ApiError::internal("the model failed at this request")),
        Err(_) => return Err(ApiError::time_limit(shared.limits.request_time.as_secs())),
    };
    let bytes: Vec<u8> = weights.iter().map(|weight| (weight * 255.0).round() as u8).collect();
    let texts: Vec<String> = tokens.iter().map(|&token| spelling(token, &model.tokenizer)).collect();
    Ok(answer_json(&json!({
        "tokens": texts,
        "token_ids": tokens,
        "block": block,
        "heads": model.predictor.config().n_heads,
        "weights": STANDARD.encode(bytes),
    }))
    .into_response())
}
