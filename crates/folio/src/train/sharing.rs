//! Rank 0 prepares a run; the other ranks receive it, so that they need neither its text nor its directory.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::NewBackend;
use super::prepared::Prepared;
use crate::checkpoint::TrainingState;
use crate::data::{Dataset, StreamHeader, TokenStream};
use crate::distributed::Communicator;
use crate::error::Result;
use crate::model::{Backend, Moments, Parameters};
use crate::settings::Settings;
use crate::text::TextPerToken;

/// Bytes that are broadcast at a time.
const CHUNK: usize = 16 << 20;

/// What precedes the arrays.
#[derive(Serialize, Deserialize)]
struct Header {
    settings: Settings,
    state: TrainingState,
    has_optimizer: bool,
    has_average: bool,
    stream: StreamHeader,
    train_text: TextPerToken,
    eval_text: TextPerToken,
}

/// Sends what rank 0 has prepared to all other ranks.
pub(super) fn send(communicator: &dyn Communicator, prepared: &Prepared) {
    if communicator.world_size() == 1 {
        return;
    }
    let Prepared { settings, dataset, backend, state, has_optimizer, train_text, eval_text, .. } = prepared;
    let average = backend.average();
    let header = Header {
        settings: settings.clone(),
        state: state.clone(),
        has_optimizer: *has_optimizer,
        has_average: average.is_some(),
        stream: dataset.stream().header(),
        train_text: *train_text,
        eval_text: *eval_text,
    };
    let header = serde_json::to_vec(&header).expect("a header is JSON");
    communicator.broadcast(&mut (header.len() as u64).to_le_bytes());
    send_bytes(communicator, &header);
    send_bytes(communicator, dataset.stream().bytes());
    send_bytes(communicator, bytemuck::cast_slice(backend.parameters().values()));
    if state.optimizer_steps > 0 {
        let moments = backend.moments();
        send_bytes(communicator, bytemuck::cast_slice(&moments.exp_avg));
        send_bytes(communicator, bytemuck::cast_slice(&moments.exp_avg_sq));
    }
    if let Some(average) = average {
        send_bytes(communicator, bytemuck::cast_slice(average.values()));
    }
}

/// Divides AdamW over the ranks, if the run asks for it.
pub(super) fn shard(communicator: &dyn Communicator, settings: &Settings, backend: &mut dyn Backend) {
    if settings.zero > 0 && communicator.world_size() > 1 {
        backend.shard(communicator.rank(), communicator.world_size());
    }
}

/// Receives what rank 0 has prepared.
///
/// # Errors
/// Only if the ranks differ in their version.
pub(super) fn receive(communicator: &dyn Communicator, new_backend: &NewBackend) -> Result<Prepared> {
    let mut length = [0; 8];
    communicator.broadcast(&mut length);
    let mut header = vec![0; u64::from_le_bytes(length) as usize];
    receive_bytes(communicator, &mut header);
    let header: Header = serde_json::from_slice(&header).expect("all ranks have the same version");
    let Header { settings, state, has_optimizer, has_average, stream, train_text, eval_text } = header;
    let mut stream = TokenStream::with_header(stream);
    receive_bytes(communicator, stream.bytes_mut());
    let dataset = Dataset::new(Arc::new(stream), settings.block_size, settings.seed)?;

    let config = state.identity.model;
    let mut parameters = Parameters::zeros(&config);
    receive_bytes(communicator, bytemuck::cast_slice_mut(parameters.values_mut()));
    let count = parameters.values().len();
    let mut backend = new_backend(config, settings.precision, parameters);
    backend.freeze(settings.freeze);
    shard(communicator, &settings, &mut *backend);
    if state.optimizer_steps > 0 {
        let own = backend.own();
        let exp_avg = receive_own(communicator, count, &own);
        let exp_avg_sq = receive_own(communicator, count, &own);
        backend.load_moments(Moments { exp_avg, exp_avg_sq });
    }
    if has_average {
        let mut average = Parameters::zeros(&config);
        receive_bytes(communicator, bytemuck::cast_slice_mut(average.values_mut()));
        backend.load_average(average);
    }
    let tokenizer = None;
    Ok(Prepared {
        settings,
        dataset,
        tokenizer,
        backend,
        state,
        resumed_from: None,
        has_optimizer,
        train_text,
        eval_text,
    })
}

/// Broadcasts bytes that rank 0 only reads.
fn send_bytes(communicator: &dyn Communicator, bytes: &[u8]) {
    let mut buffer = Vec::new();
    for chunk in bytes.chunks(CHUNK) {
        buffer.clear();
        buffer.extend_from_slice(chunk);
        communicator.broadcast(&mut buffer);
    }
}

/// Receives `count` numbers, and keeps those at some places, which are in order.
fn receive_own(communicator: &dyn Communicator, count: usize, places: &[Range<usize>]) -> Vec<f32> {
    const NUMBERS: usize = CHUNK / size_of::<f32>();
    let mut own = Vec::with_capacity(places.iter().map(Range::len).sum());
    let mut chunk = vec![0.0; NUMBERS.min(count)];
    for first in (0..count).step_by(NUMBERS) {
        let end = count.min(first + NUMBERS);
        let chunk = &mut chunk[..end - first];
        communicator.broadcast(bytemuck::cast_slice_mut(chunk));
        for place in places {
            let kept = place.start.max(first)..place.end.min(end);
            if !kept.is_empty() {
                own.extend_from_slice(&chunk[kept.start - first..kept.end - first]);
            }
        }
    }
    own
}

fn receive_bytes(communicator: &dyn Communicator, bytes: &mut [u8]) {
    bytes.chunks_mut(CHUNK).for_each(|chunk| communicator.broadcast(chunk));
}
