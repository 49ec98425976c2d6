//! Gradients on their way out of the backward pass, which completes them from the last parameters to the first.

use std::sync::Mutex;

use super::buckets::{Bucket, UNIT};
use super::micro_batches::add;
use crate::distributed::{Exchange, Exchanges};
use crate::model::Parameters;
use crate::model::parameters::ParametersMut;

/// The gradients of a micro-batch. In the last one of a step, complete buckets are added to those of the earlier micro-batches,
/// and go to the other ranks, while the backward pass computes the rest.
pub(super) struct Gradients<'g, 'x> {
    /// Those that are not complete.
    pub(super) rest: ParametersMut<'g>,
    /// Their buckets.
    buckets: &'g [Bucket],
    /// Sums to be added to them, the last first.
    partial_sums: &'g [Parameters],
    ranks: Option<(Exchange, Mutex<&'x mut (dyn Exchanges<'g> + Send)>)>,
}

impl<'g, 'x> Gradients<'g, 'x> {
    pub(super) fn new(
        gradients: &'g mut Parameters,
        buckets: &'g [Bucket],
        partial_sums: &'g [Parameters],
    ) -> Self {
        Self { rest: gradients.split_mut(), buckets, partial_sums, ranks: None }
    }

    /// The same, summed over ranks.
    pub(super) fn over_ranks<'y>(
        self,
        exchange: Exchange,
        exchanges: &'y mut (dyn Exchanges<'g> + Send),
    ) -> Gradients<'g, 'y> {
        let Self { rest, buckets, partial_sums, .. } = self;
        Gradients { rest, buckets, partial_sums, ranks: Some((exchange, Mutex::new(exchanges))) }
    }

    /// The gradients from `start` on will not change any more.
    pub(super) fn complete(&mut self, start: usize) {
        while let Some((bucket, lower)) = self.buckets.split_last()
            && bucket.range.start >= start
        {
            self.buckets = lower;
            let values = self.rest.split_off(bucket.range.start);
            if !bucket.trained {
                continue;
            }
            for sums in self.partial_sums.iter().rev() {
                add(values, &sums.values()[bucket.range.clone()]);
            }
            if let Some((exchange, exchanges)) = &mut self.ranks {
                let exchanges = exchanges.get_mut().expect("no thread panics while it has them");
                exchanges.start(*exchange, values, UNIT);
            }
        }
    }

    /// Moves the exchanges on, unless another thread is doing so.
    pub(super) fn progress(&self) {
        if let Some((_, exchanges)) = &self.ranks
            && let Ok(mut exchanges) = exchanges.try_lock()
        {
            exchanges.progress();
        }
    }
}
