//! Rank 0 prepares a run; the other ranks receive it, so that they need neither its text nor its directory.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::NewBackend;
use super::prepared::Prepared;
use crate::checkpoint::TrainingState;
use crate::data::{Dataset, StreamHeader, TokenStream};
use crate::distributed::{
    CHUNK, Communicator, encode, receive_from_first, receive_value, send_to_all, send_value,
};
use crate::error::Result;
use crate::model::{Backend, Moments, Parameters};
use crate::settings::Settings;
use crate::text::TextPerToken;

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

/// What [`send`] sends first.
///
/// # Errors
/// If a path in the settings is not UTF-8.
pub(super) fn header(prepared: &Prepared) -> Result<Vec<u8>> {
    let Prepared { settings, dataset, backend, state, has_optimizer, train_text, eval_text, .. } = prepared;
    encode(&Header {
        settings: settings.clone(),
        state: state.clone(),
        has_optimizer: *has_optimizer,
        has_average: backend.average().is_some(),
        stream: dataset.stream().header(),
        train_text: *train_text,
        eval_text: *eval_text,
    })
}

/// Sends what rank 0 has prepared to all other ranks.
pub(super) fn send(communicator: &dyn Communicator, header: &[u8], prepared: &Prepared) {
    let Prepared { dataset, backend, state, .. } = prepared;
    let average = backend.average();
    send_value(communicator, header);
    send_to_all(communicator, dataset.stream().bytes());
    send_to_all(communicator, bytemuck::cast_slice(backend.parameters().values()));
    if state.optimizer_steps > 0 {
        let moments = backend.moments();
        send_to_all(communicator, bytemuck::cast_slice(&moments.exp_avg));
        send_to_all(communicator, bytemuck::cast_slice(&moments.exp_avg_sq));
    }
    if let Some(average) = average {
        send_to_all(communicator, bytemuck::cast_slice(average.values()));
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
    let Header { settings, state, has_optimizer, has_average, stream, train_text, eval_text } =
        receive_value(communicator);
    let mut stream = TokenStream::with_header(stream);
    receive_from_first(communicator, stream.bytes_mut());
    let dataset = Dataset::new(Arc::new(stream), settings.block_size, settings.seed)?;

    let config = state.identity.model;
    let mut parameters = Parameters::zeros(&config);
    receive_from_first(communicator, bytemuck::cast_slice_mut(parameters.values_mut()));
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
        receive_from_first(communicator, bytemuck::cast_slice_mut(average.values_mut()));
        backend.load_average(average);
    }
    let tokenizer = None;
    Ok(Prepared {
        settings,
        dataset,
        tokenizer,
        teachers: None,
        backend,
        state,
        resumed_from: None,
        has_optimizer,
        train_text,
        eval_text,
    })
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
