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

    use crate::usage::Usage;

    static JOINED: OnceLock<MpiRanks> = OnceLock::new();

    /// Joins the other ranks, if a launcher started any.
    pub(crate) fn join() -> anyhow::Result<Box<dyn Communicator>> {
        let Some(ranks) = MpiRanks::join()? else { return Ok(super::alone()) };
        Ok(Box::new(JOINED.get_or_init(|| ranks).clone()))
    }

    /// The threads of each rank. `None` if there is nothing to share.
    pub(crate) fn threads() -> Option<usize> {
        let Launched { local_ranks, .. } = Launched::find()?;
        let processors = available_parallelism().map_or(1, usize::from);
        share(processors, folio::machine::processors(), local_ranks)
    }

    /// A rank's share of the processors that the launcher bound it to, of those of the machine. The ranks of the machine are
    /// taken to be bound evenly, so that as many share these processors as their part of the machine has.
    fn share(bound: usize, machine: usize, local_ranks: Option<usize>) -> Option<usize> {
        let Some(local_ranks) = local_ranks else { return (bound < machine).then_some(bound) };
        let sharing = (local_ranks * bound).div_ceil(machine.max(bound)).max(1);
        Some((bound / sharing).max(1))
    }

    /// Fails, on rank 0, if a launcher started several ranks; the others wait for their end. For commands that ranks do not
    /// share: each would write the same files.
    pub(crate) fn refuse(command: &str) -> anyhow::Result<()> {
        let communicator = join()?;
        match communicator.rank() {
            _ if communicator.world_size() == 1 => Ok(()),
            0 => {
                let ranks = communicator.world_size();
                let reason =
                    format!("{ranks} ranks would each write the files of `folio {command}`; start it once");
                Err(Usage(reason).into())
            }
            _ => {
                communicator.broadcast(&mut [0]);
                Err(anyhow::anyhow!("rank 0 has ended"))
            }
        }
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

    #[cfg(test)]
    mod tests {
        use super::share;

        #[test]
        fn ranks_share_the_processors_that_they_are_bound_to() {
            for (bound, machine, local_ranks, want) in [
                // Not bound.
                (16, 16, Some(4), Some(4)),
                (16, 16, Some(32), Some(1)),
                (16, 16, None, None),
                // Each to processors of its own.
                (4, 16, Some(4), Some(4)),
                (1, 16, Some(3), Some(1)),
                (8, 16, None, Some(8)),
                // Four to each of two sockets; three to two sockets.
                (8, 16, Some(8), Some(2)),
                (8, 16, Some(3), Some(4)),
            ] {
                assert_eq!(share(bound, machine, local_ranks), want, "{bound} of {machine}, {local_ranks:?}");
            }
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

    pub(crate) fn refuse(_: &str) -> anyhow::Result<()> {
        Ok(())
    }

    pub(crate) fn count() -> RankCount {
        RankCount::ONE
    }

    pub(crate) fn leave(_: u8, _: bool) {}
}

pub(crate) use mpi::{count, join, leave, refuse, threads};
