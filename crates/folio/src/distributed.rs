//! The seam between training and other processes: ranks that train one model together on parts of each batch.
//!
//! All ranks hold the same weights, and derive the order of the blocks and the dropout masks from the run's seed, so a step
//! exchanges only sums.

use std::ops::Range;

/// The ranks of one run. All ranks call the same methods in the same order.
pub trait Communicator: Send {
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
