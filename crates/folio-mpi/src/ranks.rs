//! The communicator.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use folio::distributed::{Communicator, Exchanges};

use crate::error::{Error, Result};
use crate::exchange::{Buffers, MpiExchanges, add_parts, end_all};
use crate::interface::Mpi;
use crate::launcher::Launched;
use crate::library;

/// The bytes that are broadcast at a time: MPI counts in 32 bits.
const BROADCAST: usize = 1 << 30;

/// The ranks that a launcher started.
///
/// A sum takes two exchanges. In the first, rank i receives part i of the array from every rank and adds the parts in the tree;
/// in the second, it sends the sum to every rank. A rank sends and receives 2 (N - 1) / N times the array, which is the least
/// that is possible (Thakur, Rabenseifner and Gropp 2005, "Optimization of Collective Communication Operations in MPICH").
///
/// Clones are the same rank. A process that ends without [`MpiRanks::finish`] ends the others: the launcher takes it for a crash.
#[derive(Clone)]
pub struct MpiRanks {
    shared: Arc<Mutex<Shared>>,
    launched: Launched,
    rank: usize,
    world_size: usize,
}

/// What clones share.
struct Shared {
    /// `None` after [`MpiRanks::finish`].
    mpi: Option<Mpi>,
    /// Reused by exchanges.
    buffers: Vec<Buffers>,
    /// Reused by sums in f64: the values of every rank.
    all: Vec<f64>,
}

impl MpiRanks {
    /// Joins the ranks that a launcher started. `None` if there is no launcher, or a single rank.
    ///
    /// # Errors
    /// If there is no MPI library that belongs to the launcher, or it cannot be started.
    pub fn join() -> Result<Option<Self>> {
        let Some(launched) = Launched::find() else { return Ok(None) };
        let (library, name) = library::open(launched)?;
        let mpi = Mpi::start(library, &name)?;
        let (rank, world_size) = (mpi.rank()?, mpi.world_size()?);
        if world_size != launched.ranks {
            let Launched { launcher, ranks, .. } = launched;
            return Err(Error::OtherWorld { launcher, ranks, library: name, found: world_size });
        }
        let shared = Shared { mpi: Some(mpi), buffers: Vec::new(), all: Vec::new() };
        Ok(Some(Self { shared: Arc::new(Mutex::new(shared)), launched, rank, world_size }))
    }

    /// What the launcher said.
    pub fn launched(&self) -> Launched {
        self.launched
    }

    /// The name of the MPI library.
    pub fn library(&self) -> String {
        self.shared().mpi().name().to_owned()
    }

    /// Waits until every rank has called this, and ends MPI. Nothing else may be called after it.
    ///
    /// # Errors
    /// If the library reports one.
    pub fn finish(&self) -> Result<()> {
        self.shared().mpi.take().map_or(Ok(()), Mpi::finalize)
    }

    /// Ends all ranks at once, without saving anything.
    pub fn abort(&self, exit_code: i32) {
        self.shared().mpi().abort(exit_code);
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends all ranks if a call failed.
    fn expect(&self, mpi: &Mpi, result: Result<()>) {
        if let Err(error) = result {
            end_all(mpi, self.rank, &error);
        }
    }
}

impl Shared {
    fn mpi(&self) -> &Mpi {
        self.mpi.as_ref().expect("MPI has not ended")
    }
}

impl Communicator for MpiRanks {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn exchange<'env>(&self, body: &mut dyn FnMut(&mut (dyn Exchanges<'env> + Send))) {
        let Shared { mpi, buffers, .. } = &mut *self.shared();
        let mpi = mpi.as_mut().expect("MPI has not ended");
        let mut exchanges = MpiExchanges::new(mpi, self.rank, self.world_size, buffers);
        body(&mut exchanges);
        exchanges.finish();
    }

    fn all_reduce_f64(&self, values: &mut [f64]) {
        let Shared { mpi, all, .. } = &mut *self.shared();
        let mpi = mpi.as_ref().expect("MPI has not ended");
        all.resize(values.len() * self.world_size, 0.0);
        let gathered =
            mpi.all_gather(bytemuck::cast_slice(values), bytemuck::cast_slice_mut(all), self.world_size);
        self.expect(mpi, gathered);
        add_parts(all, values.len(), self.world_size, false);
        values.copy_from_slice(&all[..values.len()]);
    }

    fn broadcast(&self, bytes: &mut [u8]) {
        let shared = self.shared();
        bytes
            .chunks_mut(BROADCAST)
            .for_each(|bytes| self.expect(shared.mpi(), shared.mpi().broadcast(bytes)));
    }
}
