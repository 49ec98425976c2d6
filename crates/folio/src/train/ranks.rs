//! What must be equal on all ranks before they train together.

use sha2::{Digest, Sha256};

use crate::checkpoint::TrainingState;
use crate::distributed::Communicator;
use crate::error::{Error, Result};
use crate::model::Backend;
use crate::settings::Settings;

/// Fails on every rank if one differs from rank 0 in version, settings, place in the run or weights.
pub(super) fn check_agreement(
    communicator: &dyn Communicator,
    settings: &Settings,
    state: &TrainingState,
    backend: &dyn Backend,
) -> Result<()> {
    if communicator.world_size() == 1 {
        return Ok(());
    }
    let json = |value: serde_json::Result<Vec<u8>>| value.expect("settings and states are JSON");
    let weights = backend.parameters();
    let facts: [(&str, Vec<u8>); 4] = [
        ("version of folio", env!("CARGO_PKG_VERSION").into()),
        ("settings", json(serde_json::to_vec(settings))),
        ("place in the run", json(serde_json::to_vec(state))),
        ("weights", bytemuck::cast_slice(weights.values()).to_vec()),
    ];
    for (what, bytes) in facts {
        let own: [u8; 32] = Sha256::digest(bytes).into();
        let mut first = own;
        communicator.broadcast(&mut first);
        let mut differs = vec![0.0; communicator.world_size()];
        differs[communicator.rank()] = f64::from(u8::from(own != first));
        communicator.all_reduce_f64(&mut differs);
        if let Some(rank) = differs.iter().position(|&flag| flag > 0.0) {
            return Err(Error::Ranks { rank, what: what.to_owned() });
        }
    }
    Ok(())
}
