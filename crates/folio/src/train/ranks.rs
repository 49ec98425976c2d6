//! What ranks have to agree on.

use folio_kernels::isa::Isa;
use sha2::{Digest, Sha256};

use crate::distributed::Communicator;
use crate::error::{Error, Result};
use crate::settings::Settings;

/// This rank's result, if all ranks have succeeded. Without it, a rank that fails alone would leave the others waiting.
///
/// # Errors
/// This rank's own error; [`Error::Ranks`] with the rank if another one failed to do what `action` names.
pub(crate) fn all_succeed<T>(
    communicator: &dyn Communicator,
    result: Result<T>,
    action: &'static str,
) -> Result<T> {
    match (first_with(communicator, result.is_err()), result) {
        (Some(rank), Ok(_)) => {
            Err(Error::Ranks { reason: format!("rank {rank} failed to {action}; see its error") })
        }
        (_, result) => result,
    }
}

/// The first rank whose flag is set.
fn first_with(communicator: &dyn Communicator, flag: bool) -> Option<usize> {
    let mut flags = vec![0.0; communicator.world_size()];
    flags[communicator.rank()] = f64::from(u8::from(flag));
    communicator.all_reduce_f64(&mut flags);
    flags.iter().position(|&flag| flag > 0.0)
}

/// Fails if a batch has fewer sequences than there are ranks: some would have nothing to do in any step.
pub(super) fn check_enough_sequences(communicator: &dyn Communicator, settings: &Settings) -> Result<()> {
    let (ranks, sequences) = (communicator.world_size(), settings.batch_size);
    if ranks <= sequences {
        return Ok(());
    }
    let reason = format!(
        "{ranks} ranks share a batch of {sequences} sequences; use a larger batch, or at most {sequences} ranks"
    );
    Err(Error::setting("batch_size", reason))
}

/// Fails on every rank if one differs from rank 0 in its version or instruction set. Sums of different instruction sets round
/// differently, so that weights would drift apart.
pub(super) fn check_agreement(communicator: &dyn Communicator) -> Result<()> {
    check_same(communicator, &[VERSION, ("instruction sets", Isa::detected().name())])
}

/// Fails on every rank if one differs from rank 0 in its version.
pub(crate) fn check_version(communicator: &dyn Communicator) -> Result<()> {
    check_same(communicator, &[VERSION])
}

/// What must be the same, and this rank's value.
const VERSION: (&str, &str) = ("versions of folio", env!("CARGO_PKG_VERSION"));

fn check_same(communicator: &dyn Communicator, facts: &[(&str, &str)]) -> Result<()> {
    if communicator.world_size() == 1 {
        return Ok(());
    }
    for (what, name) in facts {
        let own: [u8; 32] = Sha256::digest(name).into();
        let mut first = own;
        communicator.broadcast(&mut first);
        if let Some(rank) = first_with(communicator, own != first) {
            let reason = format!(
                "rank {rank} and rank 0 have different {what}: start all ranks with the same program on the same processors"
            );
            return Err(Error::Ranks { reason });
        }
    }
    Ok(())
}
