//! The seam between training and other processes: ranks that train one model together on parts of each batch.
//!
//! All ranks hold the same weights, and derive the order of the blocks and the dropout masks from the run's seed, so a step
//! exchanges only sums.

use std::ops::Range;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The ranks of one run. Of the methods that involve all ranks, all call the same ones in the same order.
pub trait Communicator: Send + Sync {
    /// This process, from 0 to `world_size - 1`. Rank 0 writes files and reports.
    fn rank(&self) -> usize;

    /// The number of ranks.
    fn world_size(&self) -> usize;

    /// Replaces `values` on every rank by their sum over all ranks, added in the binary tree of
    /// [`tree_split`](crate::model::tree_split) over ranks, so that every rank gets the same bits.
    fn all_reduce(&self, values: &mut [f32]);

    /// [`Communicator::all_reduce`] in f64.
    fn all_reduce_f64(&self, values: &mut [f64]);

    /// Replaces `bytes` on every rank by those of rank 0.
    fn broadcast(&self, bytes: &mut [u8]);

    /// Sends a message to another rank. May wait until that rank receives it.
    fn send(&self, to: usize, message: &[u8]);

    /// The next message from another rank, if one has arrived. Messages of a rank arrive in the order in which it sent them.
    fn try_receive(&self, from: usize) -> Option<Vec<u8>>;
}

impl<C: Communicator + ?Sized> Communicator for Arc<C> {
    fn rank(&self) -> usize {
        (**self).rank()
    }

    fn world_size(&self) -> usize {
        (**self).world_size()
    }

    fn all_reduce(&self, values: &mut [f32]) {
        (**self).all_reduce(values);
    }

    fn all_reduce_f64(&self, values: &mut [f64]) {
        (**self).all_reduce_f64(values);
    }

    fn broadcast(&self, bytes: &mut [u8]) {
        (**self).broadcast(bytes);
    }

    fn send(&self, to: usize, message: &[u8]) {
        (**self).send(to, message);
    }

    fn try_receive(&self, from: usize) -> Option<Vec<u8>> {
        (**self).try_receive(from)
    }
}

/// Bytes that are broadcast at a time.
const CHUNK: usize = 16 << 20;

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

/// Broadcasts a value as JSON, from rank 0.
pub(crate) fn send_value(communicator: &dyn Communicator, value: &impl Serialize) {
    let json = serde_json::to_vec(value).expect("it is JSON");
    communicator.broadcast(&mut (json.len() as u64).to_le_bytes());
    send_to_all(communicator, &json);
}

/// Receives what rank 0 sends by [`send_value`].
pub(crate) fn receive_value<T: DeserializeOwned>(communicator: &dyn Communicator) -> T {
    let mut length = [0; 8];
    communicator.broadcast(&mut length);
    let mut json = vec![0; u64::from_le_bytes(length) as usize];
    receive_from_first(communicator, &mut json);
    serde_json::from_slice(&json).expect("all ranks have the same version")
}

/// Which of the flags are set on any rank.
pub fn any<const N: usize>(communicator: &dyn Communicator, flags: [bool; N]) -> [bool; N] {
    if communicator.world_size() == 1 {
        return flags;
    }
    let mut counts = flags.map(|flag| f64::from(u8::from(flag)));
    communicator.all_reduce_f64(&mut counts);
    counts.map(|count| count > 0.0)
}

/// The communicator of a run with a single process.
#[derive(Clone, Copy, Debug, Default)]
pub struct SingleProcess;

impl Communicator for SingleProcess {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn all_reduce(&self, _: &mut [f32]) {}

    fn all_reduce_f64(&self, _: &mut [f64]) {}

    fn broadcast(&self, _: &mut [u8]) {}

    /// # Panics
    /// There is no other rank.
    fn send(&self, to: usize, _: &[u8]) {
        panic!("there is no rank {to}");
    }

    fn try_receive(&self, _: usize) -> Option<Vec<u8>> {
        None
    }
}

/// How the sequences of a global batch are divided into micro-batches over ranks: in order, as evenly as possible. With
/// fewer sequences than micro-batches some are empty.
///
/// Equal products of `micro_batches` and `world_size` give equal micro-batches. If both are powers of two, the sums of
/// gradients have equal bits as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Division {
    /// Sequences of the global batch.
    pub sequences: usize,
    /// Micro-batches of each rank.
    pub micro_batches: usize,
    /// This rank.
    pub rank: usize,
    /// The number of ranks.
    pub world_size: usize,
}

impl Division {
    /// One micro-batch on one rank.
    pub fn whole(sequences: usize) -> Self {
        Self { sequences, micro_batches: 1, rank: 0, world_size: 1 }
    }

    /// This rank's part.
    ///
    /// # Panics
    /// If there are no micro-batches.
    pub fn of(communicator: &dyn Communicator, sequences: usize, micro_batches: usize) -> Self {
        let (rank, world_size) = (communicator.rank(), communicator.world_size());
        assert!(micro_batches > 0, "a batch has at least one micro-batch");
        Self { sequences, micro_batches, rank, world_size }
    }

    /// The sequences of this rank's micro-batch `index`, counted in the global batch.
    ///
    /// ```
    /// use folio::distributed::Division;
    /// let division = Division { sequences: 7, micro_batches: 2, rank: 1, world_size: 2 };
    /// assert_eq!([0, 1].map(|index| division.micro_batch(index)), [3..5, 5..7]);
    /// assert_eq!(division.own(), 3..7);
    /// ```
    pub fn micro_batch(&self, index: usize) -> Range<usize> {
        let first = self.rank * self.micro_batches + index;
        self.start(first)..self.start(first + 1)
    }

    /// All sequences of this rank.
    pub fn own(&self) -> Range<usize> {
        let first = self.rank * self.micro_batches;
        self.start(first)..self.start(first + self.micro_batches)
    }

    /// The first sequence of the micro-batch `number`, counted over all ranks.
    fn start(&self, number: usize) -> usize {
        let count = self.micro_batches * self.world_size;
        (self.sequences as u128 * number as u128 / count as u128) as usize
    }
}
