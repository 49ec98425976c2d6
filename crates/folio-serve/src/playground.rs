//! The list of models, and the attention weights of a text.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use folio::checkpoint::CheckpointName;
use folio::run_dir::Saved;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::catalog::Run;
use crate::completions::{seconds_since_1970, token_text};
use crate::errors::{ApiError, ApiResult};
use crate::guard::json_body;
use crate::json::{Field, parse};
use crate::models::LoadedModel;
use crate::queue::{AttentionJob, Task};
use crate::responses::{blocking, json_value};
use crate::state::Shared;

/// Maximum number of tokens in an attention map: a larger map could not be read.
const MAX_ATTENTION_TOKENS: usize = 256;

/// `GET /v1/models`
pub(crate) async fn list_models(State(shared): State<Arc<Shared>>) -> ApiResult<Response> {
    let list = blocking(move || {
        let listing = shared.catalog.listing();
        let runs = listing.runs.iter();
        let all = runs.flat_map(|run| {
            let default = run.checkpoints.get(run.default).map(|saved| model_object(&run.id, saved));
            let checkpoints = run.checkpoints.iter();
            let checkpoints = checkpoints.map(|saved| model_object(&full_name(run, saved), saved));
            default.into_iter().chain(checkpoints)
        });
        Ok(json!({ "object": "list", "data": all.collect::<Vec<Value>>() }))
    });
    Ok(json_value(&list.await?))
}

/// `GET /v1/models/{id}`
pub(crate) async fn get_model(
    State(shared): State<Arc<Shared>>,
    id: Result<Path<String>, PathRejection>,
) -> ApiResult<Response> {
    let Path(id) = id.map_err(|_| ApiError::malformed("the address is not UTF-8"))?;
    let find = move || {
        let listing = shared.catalog.listing();
        let found = listing.find(&id).map(|(_, saved)| model_object(&id, saved));
        found.ok_or_else(|| ApiError::unknown_model(&id))
    };
    Ok(json_value(&blocking(find).await?))
}

fn full_name(run: &Run, saved: &Saved) -> String {
    format!("{}:{}", run.id, saved.name)
}

/// OpenAI's model object.
fn model_object(id: &str, saved: &Saved) -> Value {
    json!({ "id": id, "object": "model", "created": seconds_since_1970(saved.modified), "owned_by": "folio" })
}

/// `GET /api/models`
pub(crate) async fn model_details(State(shared): State<Arc<Shared>>) -> ApiResult<Response> {
    let list = blocking(move || {
        let listing = shared.catalog.listing();
        Ok(json!({ "models": listing.runs.iter().flat_map(checkpoint_details).collect::<Vec<Value>>() }))
    });
    Ok(json_value(&list.await?))
}

/// The checkpoints of a run, the default one first; none if the run cannot be read.
fn checkpoint_details(run: &Run) -> Vec<Value> {
    let (Ok(settings), Ok(config)) = (run.directory.settings(), run.directory.model_config()) else {
        return Vec::new();
    };
    let mut indices: Vec<usize> = (0..run.checkpoints.len()).collect();
    indices.sort_by_key(|&index| index != run.default);
    let details = |index: usize| {
        let saved = &run.checkpoints[index];
        let is_default = index == run.default;
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
    indices.into_iter().map(details).collect()
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AttentionRequest {
    model: Field<String>,
    text: Field<String>,
    tokens: Field<Vec<u32>>,
    block: Field<u64>,
}

/// The model and the tokens whose attention weights to compute.
struct AttentionInput {
    model: Arc<LoadedModel>,
    tokens: Vec<u32>,
    block: usize,
}

/// `POST /api/attention`
pub(crate) async fn attention(State(shared): State<Arc<Shared>>, request: Request) -> ApiResult<Response> {
    let request: AttentionRequest = parse(&json_body(request, &shared.limits).await?)?;
    let input = {
        let shared = Arc::clone(&shared);
        blocking(move || attention_input(&shared, request)).await?
    };
    let AttentionInput { model, tokens, block } = input;
    let (reply, received) = oneshot::channel();
    let job = AttentionJob { model: Arc::clone(&model), tokens: tokens.clone(), block, reply };
    shared.push(Task::Attention(job))?;
    let weights = match tokio::time::timeout(shared.limits.request_time, received).await {
        Ok(Ok(weights)) => weights,
        Ok(Err(_)) if shared.queue.shutdown_deadline().is_some() => return Err(ApiError::shutting_down()),
        Ok(Err(_)) => return Err(ApiError::internal("the model failed on this request")),
        Err(_) => return Err(ApiError::time_limit(shared.limits.request_time.as_secs())),
    };
    let bytes: Vec<u8> = weights.iter().map(|weight| (weight * 255.0).round() as u8).collect();
    let texts: Vec<String> = tokens.iter().map(|&token| token_text(token, &model.tokenizer)).collect();
    Ok(json_value(&json!({
        "tokens": texts,
        "token_ids": tokens,
        "block": block,
        "heads": model.model.config().n_heads,
        "weights": STANDARD.encode(bytes),
    })))
}

/// Loads the model, encodes the text and validates the request. Of a long text the last tokens are kept.
fn attention_input(shared: &Shared, request: AttentionRequest) -> ApiResult<AttentionInput> {
    let AttentionRequest { model, text, tokens, block } = request;
    let missing = || ApiError::field("model", "is missing: GET /v1/models lists the models");
    let model = shared.model(&model.0.ok_or_else(missing)?)?;
    let block = block.0.unwrap_or(0);
    let tokens = match (text.0, tokens.0) {
        (Some(text), None) => {
            let encoded = model.tokenizer.encode(&text);
            encoded.map_err(|error| ApiError::field("text", error.to_string()))?
        }
        (None, Some(tokens)) => tokens,
        _ => return Err(ApiError::field("text", "give either text or tokens")),
    };
    let (config, vocab_size) = (model.model.config(), model.tokenizer.vocab_size());
    if tokens.is_empty() || tokens.iter().any(|&token| token as usize >= vocab_size) {
        let message = format!("must be at least one token of the vocabulary of {vocab_size}");
        return Err(ApiError::field("tokens", message));
    }
    if block >= config.n_blocks as u64 {
        let message = format!("must be from 0 to {}, the model's last block", config.n_blocks - 1);
        return Err(ApiError::field("block", message));
    }
    let max = config.block_size.min(MAX_ATTENTION_TOKENS);
    let tokens = tokens[tokens.len().saturating_sub(max)..].to_vec();
    Ok(AttentionInput { model, tokens, block: block as usize })
}
