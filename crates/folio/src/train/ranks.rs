//! What ranks have to agree on.

use folio_kernels::isa::Isa;
use sha2::{Digest, Sha256};

use crate::checkpoint::TrainingState;
use crate::distributed::{Communicator, any};
use crate::error::{Error, Result};
use crate::model::Backend;
use crate::settings::{Kind, SETTINGS, Settings};

/// This rank's result, if all ranks have succeeded. Without it, a rank that fails alone would leave the others waiting.
///
/// # Errors
/// This rank's own error; [`Error::Ranks`] if another rank failed to do what `action` names.
pub(super) fn all_succeed<T>(
    communicator: &dyn Communicator,
    result: Result<T>,
    action: &'static str,
) -> Result<T> {
    let [failed] = any(communicator, [result.is_err()]);
    match result {
        Ok(_) if failed => {
            Err(Error::Ranks { reason: format!("another rank failed to {action}; see its error") })
        }
        result => result,
    }
}

/// Fails on every rank if one differs from rank 0 in its version, instruction set, settings, position in the run, weights,
/// their average or moments.
pub(super) fn check_agreement(
    communicator: &dyn Communicator,
    settings: &Settings,
    state: &TrainingState,
    backend: &dyn Backend,
) -> Result<()> {
    if communicator.world_size() == 1 {
        return Ok(());
    }
    let (weights, moments, average) = (backend.parameters(), backend.moments(), backend.average());
    let average = average.as_ref().map_or(&[][..], |average| average.values());
    let state = serde_json::to_vec(state).expect("a state is JSON");
    let facts: [(&str, &[u8]); 8] = [
        ("versions of folio", env!("CARGO_PKG_VERSION").as_bytes()),
        ("instruction sets", Isa::detected().name().as_bytes()),
        ("settings", &shared_settings(settings)),
        ("positions in the run", &state),
        ("weights", bytemuck::cast_slice(weights.values())),
        ("averages of the weights", bytemuck::cast_slice(average)),
        ("moments", bytemuck::cast_slice(&moments.exp_avg)),
        ("moments", bytemuck::cast_slice(&moments.exp_avg_sq)),
    ];
    for (what, bytes) in facts {
        let own: [u8; 32] = Sha256::digest(bytes).into();
        let mut first = own;
        communicator.broadcast(&mut first);
        let mut differs = vec![0.0; communicator.world_size()];
        differs[communicator.rank()] = f64::from(u8::from(own != first));
        communicator.all_reduce_f64(&mut differs);
        if let Some(rank) = differs.iter().position(|&flag| flag > 0.0) {
            let reason = format!(
                "rank {rank} and rank 0 have different {what}: start all ranks with the same program, arguments and files"
            );
            return Err(Error::Ranks { reason });
        }
    }
    Ok(())
}

/// The settings but for paths, which may differ from machine to machine. Texts are compared by their hashes.
fn shared_settings(settings: &Settings) -> Vec<u8> {
    let is_path = |kind: Kind, name: &str| matches!(kind, Kind::Path | Kind::Files) || name.ends_with("_dir");
    let shared = SETTINGS.iter().filter(|setting| !is_path(setting.kind, setting.name));
    let values: Vec<_> = shared.map(|setting| (setting.name, (setting.get)(settings))).collect();
    serde_json::to_vec(&values).expect("settings are JSON")
}
