//! Rank 0 prepares a run; the other ranks receive it, so that they need neither its text nor its directory.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::NewBackend;
use super::prepared::Prepared;
use crate::checkpoint::TrainingState;
use crate::data::{Dataset, StreamHeader, TokenStream};
use crate::distributed::{Communicator, receive_from_first, receive_value, send_to_all, send_value};
use crate::error::Result;
use crate::model::{Moments, Parameters};
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
    send_value(communicator, &header);
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
    if state.optimizer_steps > 0 {
        let mut moments = Moments::zeros(count);
        receive_from_first(communicator, bytemuck::cast_slice_mut(&mut moments.exp_avg));
        receive_from_first(communicator, bytemuck::cast_slice_mut(&mut moments.exp_avg_sq));
        backend.load_moments(moments);
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
        backend,
        state,
        resumed_from: None,
        has_optimizer,
        train_text,
        eval_text,
    })
}
