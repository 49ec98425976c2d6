//! The ranks that `mpirun` or `srun` started, if it did: joining them, and leaving them when the program ends.

use folio::distributed::{Communicator, SingleProcess};

/// This process alone.
pub(crate) fn alone() -> Box<dyn Communicator> {
    Box::new(SingleProcess)
}

#[cfg(unix)]
mod mpi {
    use std::sync::OnceLock;
    use std::thread::available_parallelism;

    use folio::distributed::{Communicator, RankCount};
    use folio_mpi::{Launched, MpiRanks};

    static JOINED: OnceLock<MpiRanks> = OnceLock::new();

    /// Joins the other ranks, if a launcher started any.
    pub(crate) fn join() -> anyhow::Result<Box<dyn Communicator>> {
        let Some(ranks) = MpiRanks::join()? else { return Ok(super::alone()) };
        Ok(Box::new(JOINED.get_or_init(|| ranks).clone()))
    }

    /// The threads of each rank: all that the launcher bound it to, or else its share of the machine's. `None` if there is
    /// nothing to share.
    pub(crate) fn threads() -> Option<usize> {
        let Launched { local_ranks, .. } = Launched::find()?;
        let processors = available_parallelism().map_or(1, usize::from);
        let is_bound = processors < folio::machine::processors();
        Some(if is_bound { processors } else { (processors / local_ranks?).max(1) })
    }

    /// The ranks that this process has joined.
    pub(crate) fn count() -> RankCount {
        JOINED.get().map_or(RankCount::ONE, |ranks| RankCount {
            all: ranks.world_size(),
            per_machine: ranks.launched().local_ranks.unwrap_or(1),
        })
    }

    /// Ends MPI after a program that succeeded; after an error, ends all ranks.
    pub(crate) fn leave(exit_code: u8, has_failed: bool) {
        match JOINED.get() {
            Some(ranks) if has_failed => ranks.abort(i32::from(exit_code)),
            // What the library reports now concerns nobody: everything is saved.
            Some(ranks) => drop(ranks.finish()),
            None => {}
        }
    }
}

#[cfg(not(unix))]
mod mpi {
    use folio::distributed::{Communicator, RankCount};

    pub(crate) fn join() -> anyhow::Result<Box<dyn Communicator>> {
        Ok(super::alone())
    }

    pub(crate) fn threads() -> Option<usize> {
        None
    }

    pub(crate) fn count() -> RankCount {
        RankCount::ONE
    }

    pub(crate) fn leave(_: u8, _: bool) {}
}

pub(crate) use mpi::{count, join, leave, threads};
