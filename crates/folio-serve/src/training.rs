//! The state and the records of runs, finished or in progress.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::sync::Arc;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::Response;
use folio::checkpoint::lowest_eval_loss;
use folio::records::records_path;
use folio::run_dir::{RunDir, RunState};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::catalog::Run;
use crate::errors::{ApiError, ApiResult};
use crate::records::HEAD_BYTES;
use crate::responses::{blocking, json_value};
use crate::state::Shared;

/// The last record is searched for in this many bytes at the end of the file.
const TAIL_BYTES: u64 = 1 << 16;

/// A run in the list of runs.
#[derive(Serialize)]
struct RunSummary {
    id: String,
    state: &'static str,
    /// Completed epochs.
    epoch: u64,
    num_epochs: u64,
    step: u64,
    /// Total number of steps, known once an epoch has been completed; of a finished run those it took.
    steps: Option<u64>,
    best_eval_loss: Option<f64>,
    parameters: Option<u64>,
}

/// `GET /api/runs`
pub(crate) async fn runs(State(shared): State<Arc<Shared>>) -> ApiResult<Response> {
    let list = blocking(move || {
        let listing = shared.catalog.listing();
        Ok(serde_json::json!({ "runs": listing.runs.iter().filter_map(summarize).collect::<Vec<_>>() }))
    });
    Ok(json_value(&list.await?))
}

/// The summary of a run; none if it cannot be read, for instance while it is being replaced.
fn summarize(run: &Run) -> Option<RunSummary> {
    let directory = &run.directory;
    let settings = directory.settings().ok()?;
    let status = directory.status();
    let state = status.as_ref().map_or("unknown", |status| directory.state_name(status));
    let lowest =
        status.as_ref().and_then(|status| lowest_eval_loss(&status.eval_losses, &status.step_losses));
    let lowest = lowest.map(|(loss, _)| loss);
    // The status is written at every save, records every second.
    let last = last_record(directory).unwrap_or_default();
    let last_step = last["step"].as_u64().unwrap_or(0);
    let step = status.as_ref().map_or(0, |status| status.step).max(last_step);
    let epoch = status.as_ref().map_or(0, |status| status.epoch);
    let history = directory.history().ok().flatten();
    let first = history.and_then(|history| history.epochs.first().map(|epoch| epoch.step));
    let per_epoch = first.filter(|&steps| steps > 0);
    let steps = per_epoch.map(|steps| steps.saturating_mul(settings.last_epoch()));
    let steps = steps.map(|steps| steps.min(settings.max_steps.unwrap_or(u64::MAX))).or(settings.max_steps);
    // With `max_steps` a run may end before its last epoch. An imported model has none.
    let ended = [RunState::Finished, RunState::Imported, RunState::Averaged];
    let finished = status.as_ref().is_some_and(|status| ended.contains(&status.state));
    // A run that stopped early has no more steps to take.
    let is_finished = status.as_ref().is_some_and(|status| status.state == RunState::Finished);
    let steps = if is_finished { Some(step) } else { steps };
    let num_epochs = match steps.zip(per_epoch) {
        _ if finished => epoch,
        Some((steps, per_epoch)) => steps.div_ceil(per_epoch),
        None => settings.last_epoch(),
    };
    let parameters = first_record(directory).and_then(|record| record["parameters"].as_u64());
    let parameters = parameters.or_else(|| Some(directory.model_config().ok()?.parameters()));
    Some(RunSummary {
        id: run.id.clone(),
        state,
        epoch,
        num_epochs,
        step,
        steps,
        best_eval_loss: lowest,
        parameters,
    })
}

/// The first record of a run, which describes its start.
fn first_record(directory: &RunDir) -> Option<Value> {
    let mut line = Vec::new();
    let file = File::open(records_path(directory)).ok()?;
    BufReader::new(file.take(HEAD_BYTES)).read_until(b'\n', &mut line).ok()?;
    serde_json::from_slice(&line).ok()
}

/// The last complete record of a run.
fn last_record(directory: &RunDir) -> Option<Value> {
    let mut file = File::open(records_path(directory)).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES))).ok()?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes).ok()?;
    let lines = &bytes[..=bytes.iter().rposition(|&byte| byte == b'\n')?];
    lines.rsplit(|&byte| byte == b'\n').find_map(|line| serde_json::from_slice(line).ok())
}

#[derive(Deserialize)]
pub(crate) struct RecordsQuery {
    /// The number of lines that the client has read already.
    #[serde(default)]
    after: u64,
}

/// `GET /api/runs/{id}/records`. The id of a run of a sweep has two segments.
pub(crate) async fn records(
    State(shared): State<Arc<Shared>>,
    path: Result<Path<String>, PathRejection>,
    query: Result<Query<RecordsQuery>, QueryRejection>,
) -> ApiResult<Response> {
    let Path(path) = path.map_err(|_| ApiError::malformed("the address is not UTF-8"))?;
    let missing = || ApiError::unknown_path(&format!("/api/runs/{path}"));
    let id = path.strip_suffix("/records").ok_or_else(missing)?.to_owned();
    let Query(RecordsQuery { after }) =
        query.map_err(|_| ApiError::field("after", "must be a number of lines"))?;
    let read = move || {
        let listing = shared.catalog.listing();
        let run = listing.runs.iter().find(|run| run.id == id).ok_or_else(|| ApiError::unknown_run(&id))?;
        let read = shared.records.read(run, after);
        read.map_err(|error| {
            shared.warn(&format!("cannot read the records of {id}: {error}"));
            ApiError::internal("the records cannot be read")
        })
    };
    let records = blocking(read).await?;
    Ok(json_value(&serde_json::to_value(records).expect("records are valid JSON")))
}
