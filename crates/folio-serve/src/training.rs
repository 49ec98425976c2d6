//! How runs fare, those in progress too.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::Response;
use folio::history::lowest_eval_loss;
use folio::records::records_path;
use folio::run_dir::{RunDir, RunState};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::catalogue::Run;
use crate::errors::{ApiError, ApiResult};
use crate::{Shared, answer_json, apart};

/// Lines, and bytes of them, that one answer has at most: whoever is behind asks again.
const MOST_LINES: usize = 5_000;
const MOST_BYTES: usize = 4 << 20;
/// The end of a file in which the last line is looked for.
const TAIL: u64 = 1 << 16;

#[derive(Serialize)]
struct RunStory {
    id: String,
    state: &'static str,
    /// Epochs ended.
    epoch: u64,
    num_epochs: u64,
    step: u64,
    /// Steps in all, once an epoch has ended to tell by.
    steps: Option<u64>,
    best_eval_loss: Option<f64>,
    parameters: Option<u64>,
}

/// `GET /api/runs`
pub(crate) async fn runs(State(shared): State<Arc<Shared>>) -> ApiResult<Response> {
    let list = apart(move || {
        let listing = shared.catalogue.listing();
        Ok(serde_json::json!({ "runs": listing.runs.iter().filter_map(story).collect::<Vec<_>>() }))
    });
    Ok(answer_json(&list.await?))
}

/// How a run fares; none if it cannot be read, as while it is being replaced.
fn story(run: &Run) -> Option<RunStory> {
    let directory = &run.directory;
    let settings = directory.settings().ok()?;
    let status = directory.status();
    let state = status.as_ref().map_or("unknown", |status| directory.state_name(status));
    let eval_losses = status.as_ref().map_or(&[][..], |status| &status.eval_losses);
    let lowest = lowest_eval_loss(eval_losses).map(|(loss, _)| loss);
    // The status is written at saves, records every second.
    let last = last_record(directory).unwrap_or_default();
    let told = |key: &str| last[key].as_u64().unwrap_or(0);
    let step = status.as_ref().map_or(0, |status| status.step).max(told("step"));
    let epoch = status.as_ref().map_or(0, |status| status.epoch);
    let history = directory.history().ok().flatten();
    let first = history.and_then(|history| history.epochs.first().map(|epoch| epoch.step));
    let per_epoch = first.filter(|&steps| steps > 0);
    let steps = per_epoch.map(|steps| steps.saturating_mul(settings.last_epoch()));
    let steps = steps.map(|steps| steps.min(settings.max_steps.unwrap_or(u64::MAX))).or(settings.max_steps);
    // Steps can be limited too, so that not all epochs come.
    let finished = status.as_ref().is_some_and(|status| status.state == RunState::Finished);
    let num_epochs = match steps.zip(per_epoch) {
        _ if finished => epoch,
        Some((steps, per_epoch)) => steps.div_ceil(per_epoch),
        None => settings.last_epoch(),
    };
    let parameters = first_record(directory).and_then(|record| record["parameters"].as_u64());
    Some(RunStory {
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

/// The first line of a run's records, which tells of its start.
fn first_record(directory: &RunDir) -> Option<Value> {
    let mut line = Vec::new();
    let file = File::open(records_path(directory)).ok()?;
    BufReader::new(file.take(TAIL)).read_until(b'\n', &mut line).ok()?;
    serde_json::from_slice(&line).ok()
}

/// The last whole line of a run's records.
fn last_record(directory: &RunDir) -> Option<Value> {
    let mut file = File::open(records_path(directory)).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL))).ok()?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes).ok()?;
    let whole = &bytes[..=bytes.iter().rposition(|&byte| byte == b'\n')?];
    whole.rsplit(|&byte| byte == b'\n').find_map(|line| serde_json::from_slice(line).ok())
}

#[derive(Deserialize)]
pub(crate) struct After {
    #[serde(default)]
    after: u64,
}

#[derive(Serialize)]
struct Records {
    records: Vec<Box<RawValue>>,
    /// Lines of the file up to here.
    next: u64,
    /// Whether there are more by now.
    more: bool,
    generation: String,
}

/// `GET /api/runs/{id}/records`; the id of a run of a sweep has two segments.
pub(crate) async fn records(
    State(shared): State<Arc<Shared>>,
    path: Result<Path<String>, PathRejection>,
    query: Result<Query<After>, QueryRejection>,
) -> ApiResult<Response> {
    let Path(path) = path.map_err(|_| ApiError::malformed("the address is not UTF-8"))?;
    let missing = || ApiError::unknown_path(&format!("/api/runs/{path}"));
    let id = path.strip_suffix("/records").ok_or_else(missing)?.to_owned();
    let Query(After { after }) = query.map_err(|_| ApiError::field("after", "give a number of lines"))?;
    let read = move || {
        let listing = shared.catalogue.listing();
        let run = listing.runs.iter().find(|run| run.id == id).ok_or_else(|| ApiError::unknown_run(&id))?;
        let read = shared.records.read(run, after);
        read.map_err(|error| {
            shared.warn(&format!("reading the records of {id}: {error}"));
            ApiError::internal("the records cannot be read")
        })
    };
    let records = apart(read).await?;
    Ok(answer_json(&serde_json::to_value(records).expect("records are JSON")))
}

/// Where lines begin in the files of records, so that a page that asks every second has only what is new read.
#[derive(Default)]
pub(crate) struct RecordFiles {
    known: Mutex<HashMap<String, Index>>,
}

#[derive(Clone, Default)]
struct Index {
    generation: String,
    /// Lines counted.
    lines: u64,
    /// Where the first line after these begins.
    end: u64,
    /// Where every [`STRIDE`]th line begins.
    places: Vec<u64>,
}

/// Lines between two that are remembered.
const STRIDE: u64 = 1024;

impl RecordFiles {
    /// The lines of a run's records after the first so many.
    fn read(&self, run: &Run, after: u64) -> io::Result<Records> {
        let file = match File::open(records_path(&run.directory)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let generation = "none".to_owned();
                return Ok(Records { records: Vec::new(), next: 0, more: false, generation });
            }
            Err(error) => return Err(error),
        };
        let mut reader = BufReader::new(file);
        let generation = generation(&mut reader)?;
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock().get(&run.id).filter(|index| index.generation == generation).cloned();
        let mut index = known.unwrap_or_else(|| Index { generation, ..Index::default() });
        index.grow(&mut reader)?;
        let records = index.lines_after(&mut reader, after)?;
        lock().insert(run.id.clone(), index);
        Ok(records)
    }
}

impl Index {
    /// Counts the lines that were written since.
    fn grow(&mut self, reader: &mut BufReader<File>) -> io::Result<()> {
        reader.seek(SeekFrom::Start(self.end))?;
        let mut line = Vec::new();
        loop {
            line.clear();
            let length = reader.read_until(b'\n', &mut line)?;
            if !line.ends_with(b"\n") {
                // Half a line is none yet.
                return Ok(());
            }
            if self.lines.is_multiple_of(STRIDE) {
                self.places.push(self.end);
            }
            self.lines += 1;
            self.end += length as u64;
        }
    }

    fn lines_after(&self, reader: &mut BufReader<File>, after: u64) -> io::Result<Records> {
        let generation = self.generation.clone();
        let mut next = after.min(self.lines);
        let mut records = Vec::new();
        let Some(&place) = self.places.get((next / STRIDE) as usize) else {
            return Ok(Records { records, next, more: false, generation });
        };
        reader.seek(SeekFrom::Start(place))?;
        let mut line = Vec::new();
        for _ in 0..next % STRIDE {
            line.clear();
            reader.read_until(b'\n', &mut line)?;
        }
        let mut bytes = 0;
        while next < self.lines && records.len() < MOST_LINES && bytes < MOST_BYTES {
            line.clear();
            bytes += reader.read_until(b'\n', &mut line)?;
            next += 1;
            // A line that is no JSON counts, so that places agree, but is not told.
            if let Ok(record) = serde_json::from_slice(&line) {
                records.push(record);
            }
        }
        Ok(Records { records, next, more: next < self.lines, generation })
    }
}

/// What changes when the file is written anew: which file it is, and its first line, which tells when the run began.
fn generation(reader: &mut BufReader<File>) -> io::Result<String> {
    let metadata = reader.get_ref().metadata()?;
    let mut hasher = DefaultHasher::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        (metadata.dev(), metadata.ino()).hash(&mut hasher);
    }
    metadata.created().ok().hash(&mut hasher);
    let mut first = Vec::new();
    reader.by_ref().take(TAIL).read_until(b'\n', &mut first)?;
    if first.ends_with(b"\n") {
        first.hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}
