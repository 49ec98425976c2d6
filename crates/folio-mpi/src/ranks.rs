//! The communicator.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use folio::distributed::{Communicator, Exchanges};

use crate::error::{Error, Result};
use crate::exchange::{Buffers, LENGTH_TAG, MESSAGE_TAG, MpiExchanges, add_parts, end_all};
use crate::interface::{Address, Message, Mpi};
use crate::launcher::Launched;
use crate::library;

/// The bytes that are broadcast at a time: MPI counts in 32 bits.
const BROADCAST: usize = 1 << 30;
/// How often a message between two ranks is looked for.
const POLL: Duration = Duration::from_millis(1);

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
    /// By rank, the length of its next message, once [`Communicator::try_receive`] has asked for it.
    expected: Vec<Option<Expected>>,
}

/// The length of a message that has not arrived.
struct Expected {
    message: Message,
    /// 8 bytes. Not a box, whose memory the compiler may assume nobody else writes to.
    length: Vec<u8>,
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
        let shared = Shared { mpi: Some(mpi), buffers: Vec::new(), all: Vec::new(), expected: Vec::new() };
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

impl MpiRanks {
    /// The length of the next message of a rank, if it has arrived.
    fn try_receive_length(&self, from: usize) -> Option<usize> {
        let Shared { mpi, expected, .. } = &mut *self.shared();
        let mpi = mpi.as_ref().expect("MPI has not ended");
        expected.resize_with(self.world_size, || None);
        let begin = || -> Result<Expected> {
            let mut length = vec![0; 8];
            let address = Address { rank: from, tag: LENGTH_TAG };
            // SAFETY: the buffer is kept, and not touched, until the message has arrived. `Shared` lives as long as the process.
            let message = unsafe { mpi.receive(length.as_mut_ptr(), length.len(), address)? };
            Ok(Expected { message, length })
        };
        let waiting = match expected[from].take() {
            Some(waiting) => Ok(waiting),
            None => begin(),
        };
        let arrived = waiting.and_then(|mut waiting| {
            let has_arrived = mpi.test(&mut waiting.message)?;
            if has_arrived {
                return Ok(Some(u64::from_le_bytes(*waiting.length.as_array().expect("8 bytes"))));
            }
            expected[from] = Some(waiting);
            Ok(None)
        });
        match arrived {
            Ok(length) => length.map(|length| length as usize),
            Err(error) => end_all(mpi, self.rank, &error),
        }
    }

    /// Begins messages, and waits until they are sent or received. Meanwhile other threads may call MPI.
    fn wait_for(&self, begin: impl FnOnce(&Mpi) -> Result<Vec<Message>>) {
        let mut messages = {
            let shared = self.shared();
            begin(shared.mpi()).unwrap_or_else(|error| end_all(shared.mpi(), self.rank, &error))
        };
        while let Some(message) = messages.last_mut() {
            let shared = self.shared();
            match shared.mpi().test(message) {
                Ok(true) => drop(messages.pop()),
                Ok(false) => {
                    drop(shared);
                    std::thread::sleep(POLL);
                }
                Err(error) => end_all(shared.mpi(), self.rank, &error),
            }
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

    fn send(&self, to: usize, message: &[u8]) {
        let length = (message.len() as u64).to_le_bytes();
        self.wait_for(|mpi| {
            let [length_to, message_to] = [LENGTH_TAG, MESSAGE_TAG].map(|tag| Address { rank: to, tag });
            // SAFETY: both arrays outlive the wait for their messages.
            unsafe {
                Ok(vec![
                    mpi.send(length.as_ptr(), length.len(), length_to)?,
                    mpi.send(message.as_ptr(), message.len(), message_to)?,
                ])
            }
        });
    }

    fn try_receive(&self, from: usize) -> Option<Vec<u8>> {
        let length = self.try_receive_length(from)?;
        let mut message = vec![0_u8; length];
        self.wait_for(|mpi| {
            let address = Address { rank: from, tag: MESSAGE_TAG };
            // SAFETY: the buffer outlives the wait for its message.
            unsafe { Ok(vec![mpi.receive(message.as_mut_ptr(), message.len(), address)?]) }
        });
        Some(message)
    }
}
