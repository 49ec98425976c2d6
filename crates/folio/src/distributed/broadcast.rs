//! Broadcasts of bytes and of values.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Communicator;
use crate::error::{Error, Result};

/// Bytes that are broadcast at a time.
pub(crate) const CHUNK: usize = 16 << 20;

/// Broadcasts bytes of a length that the other ranks know, from rank 0.
pub(crate) fn send_to_all(communicator: &dyn Communicator, bytes: &[u8]) {
    let mut buffer = Vec::new();
    for chunk in bytes.chunks(CHUNK) {
        buffer.clear();
        buffer.extend_from_slice(chunk);
        communicator.broadcast(&mut buffer);
    }
}

/// Receives what rank 0 sends by [`send_to_all`].
pub(crate) fn receive_from_first(communicator: &dyn Communicator, bytes: &mut [u8]) {
    bytes.chunks_mut(CHUNK).for_each(|chunk| communicator.broadcast(chunk));
}

/// A value as JSON, for [`send_value`].
///
/// # Errors
/// If a path in it is not UTF-8.
pub(crate) fn encode(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::Ranks {
        reason: format!("the other ranks cannot be told what to train: {error}; use paths in UTF-8"),
    })
}

/// Broadcasts a value that [`encode`] has made JSON, from rank 0.
pub(crate) fn send_value(communicator: &dyn Communicator, json: &[u8]) {
    communicator.broadcast(&mut (json.len() as u64).to_le_bytes());
    send_to_all(communicator, json);
}

/// Receives what rank 0 sends by [`send_value`].
pub(crate) fn receive_value<T: DeserializeOwned>(communicator: &dyn Communicator) -> T {
    let mut length = [0; 8];
    communicator.broadcast(&mut length);
    let mut json = vec![0; u64::from_le_bytes(length) as usize];
    receive_from_first(communicator, &mut json);
    serde_json::from_slice(&json).expect("all ranks have the same version")
}
