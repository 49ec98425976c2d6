//! AdamW divided over ranks: each updates its own part of every bucket, and keeps the moments of that part.

use std::ops::Range;

use folio_kernels::adamw::{partial_squares, sum_of_partial_squares};

use super::buckets::{Bucket, UNIT, owned};
use super::{CpuBackend, Moments};
use crate::distributed::{Communicator, Exchange, Exchanges, part};
use crate::model::Precision;

/// What a rank owns.
pub(super) struct Shard {
    rank: usize,
    world_size: usize,
    /// In order.
    own: Vec<Range<usize>>,
    /// The sums of squares of every [`UNIT`] gradients, of all ranks.
    squares: Vec<f32>,
    /// Whether they are those of the current gradients.
    squares_are_shared: bool,
}

impl Shard {
    pub(super) fn own(&self) -> &[Range<usize>] {
        &self.own
    }

    /// What happens to gradients: a rank that updates everything needs all their sums.
    pub(super) fn exchange_of_gradients(shard: Option<&Self>, precision: Precision) -> Exchange {
        match shard {
            None => Exchange::AllReduce(precision),
            Some(_) => Exchange::ReduceScatter(precision),
        }
    }
}

impl CpuBackend {
    /// Keeps only what this rank owns.
    pub(super) fn divide(&mut self, rank: usize, world_size: usize) {
        assert!(self.shard.is_none(), "AdamW is divided once");
        let own = owned(&self.buckets, rank, world_size);
        self.moments = self.moments.take().map(|moments| moments.select(&own));
        let squares = trained(&self.buckets).map(Bucket::units).sum();
        let squares = vec![0.0; squares];
        self.shard = Some(Shard { rank, world_size, own, squares, squares_are_shared: false });
    }

    pub(super) fn forget_shared_squares(&mut self) {
        if let Some(shard) = &mut self.shard {
            shard.squares_are_shared = false;
        }
    }

    /// Computes the sums of squares of this rank's own gradients, and receives those of the others.
    pub(super) fn share_squares(&mut self, communicator: &dyn Communicator) {
        let Some(Shard { rank, world_size, squares, squares_are_shared, .. }) = &mut self.shard else {
            return;
        };
        let gradients = self.gradients.as_ref().expect("computed above").values();
        let mut rest = &mut squares[..];
        for bucket in trained(&self.buckets) {
            let sums = rest.split_off_mut(..bucket.units()).expect("one per unit");
            let own = part(sums.len(), 1, *rank, *world_size);
            partial_squares(&gradients[bucket.part(*rank, *world_size)], &mut sums[own]);
        }
        let buckets = trained(&self.buckets).map(|bucket| (bucket.units(), 1));
        all_gather(communicator, squares, buckets);
        *squares_are_shared = true;
    }

    /// The sums of squares of the current gradients, if they were shared.
    pub(super) fn shared_squares(&self) -> Option<&[f32]> {
        self.shard.as_ref().filter(|shard| shard.squares_are_shared).map(|shard| &shard.squares[..])
    }

    /// Receives the weights that other ranks have updated.
    pub(super) fn gather_weights(&mut self, communicator: &dyn Communicator) {
        if self.shard.is_none() {
            return;
        }
        // Frozen weights are the same on all ranks.
        for region in self.frozen.trained(&self.parameters) {
            let inside = self.buckets.iter().filter(|bucket| region.contains(&bucket.range.start));
            let buckets = inside.map(|bucket| (bucket.range.len(), UNIT));
            all_gather(communicator, &mut self.parameters.values_mut()[region.clone()], buckets);
        }
        self.invalidate();
    }

    /// The moments of all parameters, on rank 0. The other ranks need memory for those of one bucket.
    pub(super) fn gather_moments(&self, communicator: &dyn Communicator) -> Option<Moments> {
        let Shard { rank, world_size, .. } = self.shard.as_ref().expect("AdamW is divided");
        let (rank, world_size) = (*rank, *world_size);
        let all = self.parameters.values().len();
        let gather = |own: Option<&[f32]>| {
            let mut own = own;
            let mut whole = Vec::with_capacity(if rank == 0 { all } else { 0 });
            let mut values = Vec::new();
            for bucket in &self.buckets {
                values.clear();
                values.resize(bucket.range.len(), 0.0);
                if let Some(own) = &mut own {
                    let part = part(values.len(), UNIT, rank, world_size);
                    let held = own.split_off(..part.len()).expect("as many as the rank owns");
                    values[part].copy_from_slice(held);
                }
                all_gather(communicator, &mut values, [(bucket.range.len(), UNIT)]);
                if rank == 0 {
                    whole.extend_from_slice(&values);
                }
            }
            whole
        };
        let own = self.moments.as_ref();
        let exp_avg = gather(own.map(|moments| &moments.exp_avg[..]));
        let exp_avg_sq = gather(own.map(|moments| &moments.exp_avg_sq[..]));
        (rank == 0).then_some(Moments { exp_avg, exp_avg_sq })
    }
}

fn trained(buckets: &[Bucket]) -> impl Iterator<Item = &Bucket> {
    buckets.iter().filter(|bucket| bucket.trained)
}

/// Receives the parts of the other ranks of consecutive arrays of the given lengths and units, which are all of `values`.
fn all_gather<'env>(
    communicator: &dyn Communicator,
    values: &'env mut [f32],
    arrays: impl IntoIterator<Item = (usize, usize)>,
) {
    let (mut rest, mut arrays) = (values, arrays.into_iter());
    communicator.exchange(&mut |exchanges: &mut (dyn Exchanges<'env> + Send)| {
        for (len, unit) in &mut arrays {
            let array = rest.split_off_mut(..len).expect("the arrays are all of the values");
            exchanges.start(Exchange::AllGather, array, unit);
        }
    });
    assert!(rest.is_empty(), "the arrays are all of the values");
}

/// The sum of squares of some regions from the sums of every [`UNIT`] elements.
pub(super) fn sum_over_regions(regions: impl Iterator<Item = Range<usize>>, mut squares: &[f32]) -> f64 {
    let sum = |region: Range<usize>| {
        let own = squares.split_off(..region.len().div_ceil(UNIT)).expect("one per unit");
        sum_of_partial_squares(own, region.len())
    };
    regions.map(sum).sum()
}
