//! The seam between training and other processes: ranks that train one model together on parts of each batch.
//!
//! All ranks hold the same weights, and derive the order of the blocks and the dropout masks from the run's seed, so a step
//! exchanges only sums.

use std::ops::Range;
use std::sync::Arc;

use crate::model::Precision;

mod broadcast;
mod timed;

pub(crate) use broadcast::{CHUNK, encode, receive_from_first, receive_value, send_to_all, send_value};
pub use timed::Timed;

/// What ranks do with an array that has the same length on all of them. It is divided into one part per rank by [`part`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exchange {
    /// Replaces the array on every rank by its sum over all ranks.
    AllReduce(Precision),
    /// Replaces each rank's own part by its sum over all ranks, and leaves the rest as it was.
    ReduceScatter(Precision),
    /// Replaces every part by that of the rank that owns it.
    AllGather,
}

/// The most elements of an array that is summed at one time, 16 MiB: more take more memory, and are no faster.
pub const LARGEST_SUM: usize = 4 << 20;
/// The most sums that are on their way at one time. Each has buffers of its own.
pub const SUMS_AT_ONCE: usize = 4;

/// Exchanges that run while their caller computes. All ranks start the same ones in the same order.
///
/// A sum adds the ranks' values in the binary tree of [`tree_split`](crate::model::tree_split), so that every rank gets the same
/// bits. With [`Precision::Bf16`] it rounds each rank's values to bfloat16, adds them in f32, and rounds the sum.
pub trait Exchanges<'env> {
    /// Starts an exchange of `values`, whose parts are multiples of `unit` elements.
    fn start(&mut self, exchange: Exchange, values: &'env mut [f32], unit: usize);

    /// Does what can be done without waiting.
    fn progress(&mut self);
}

/// The ranks of one run. Of the methods that involve all ranks, all call the same ones in the same order.
pub trait Communicator: Send + Sync {
    /// This process, from 0 to `world_size - 1`. Rank 0 writes files and reports.
    fn rank(&self) -> usize;

    /// The number of ranks.
    fn world_size(&self) -> usize;

    /// Calls `body` once, and returns when the exchanges that it started are complete.
    fn exchange<'env>(&self, body: &mut dyn FnMut(&mut (dyn Exchanges<'env> + Send)));

    /// Replaces `values` on every rank by their sum over all ranks, without rounding them.
    fn all_reduce(&self, values: &mut [f32]) {
        let mut values = Some(values);
        self.exchange(&mut |exchanges| {
            let values = values.take().expect("it is called once");
            exchanges.start(Exchange::AllReduce(Precision::F32), values, 1);
        });
    }

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

    fn exchange<'env>(&self, body: &mut dyn FnMut(&mut (dyn Exchanges<'env> + Send))) {
        (**self).exchange(body);
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

/// The part of an array of `len` elements that belongs to a rank. It starts at a multiple of `unit`.
///
/// ```
/// use folio::distributed::part;
/// assert_eq!([0, 1, 2].map(|rank| part(10, 4, rank, 3)), [0..4, 4..8, 8..10]);
/// assert_eq!([0, 1, 2].map(|rank| part(8, 4, rank, 3)), [0..0, 0..4, 4..8]);
/// ```
pub fn part(len: usize, unit: usize, rank: usize, world_size: usize) -> Range<usize> {
    let units = len.div_ceil(unit) as u128;
    let start = |rank: usize| len.min((units * rank as u128 / world_size as u128) as usize * unit);
    start(rank)..start(rank + 1)
}

/// Where gradients are summed, and how their sums travel.
#[derive(Clone, Copy)]
pub struct Reduction<'a> {
    /// The ranks.
    pub communicator: &'a dyn Communicator,
    /// The format in which gradients are sent.
    pub precision: Precision,
}

/// The ranks that a run is divided over, as far as its memory depends on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankCount {
    /// All ranks.
    pub all: usize,
    /// Those that share the memory of a machine.
    pub per_machine: usize,
}

impl RankCount {
    /// A single process.
    pub const ONE: Self = Self { all: 1, per_machine: 1 };
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

    fn exchange<'env>(&self, body: &mut dyn FnMut(&mut (dyn Exchanges<'env> + Send))) {
        body(&mut SingleProcess);
    }

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

/// Of one rank, every sum is complete.
impl<'env> Exchanges<'env> for SingleProcess {
    fn start(&mut self, _: Exchange, _: &'env mut [f32], _: usize) {}

    fn progress(&mut self) {}
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
