//! The micro-batches of a step: their gradients and losses, and the sums of these.

use std::ops::Range;

use rayon::prelude::*;

use super::gradients::Gradients;
use super::pass::Pass;
use super::sharded::Shard;
use super::{CpuBackend, Engine, check_batch, on_worker};
use crate::distributed::Reduction;
use crate::model::{Frozen, MicroBatch, ModelConfig, Parameters, StepBatch, tree_split};

impl CpuBackend {
    /// Sums the gradients of some micro-batches of a step into `self.gradients`, and their losses.
    pub(super) fn sum_micro_batches(
        &mut self,
        step: &StepBatch,
        micro_batches: Range<usize>,
        level: usize,
        reduction: Option<Reduction>,
    ) -> f64 {
        let Range { start, end } = micro_batches;
        if end - start == 1 {
            return self.micro_batch(step, start, level, reduction);
        }
        let middle = start + tree_split(end - start);
        let left = self.sum_micro_batches(step, start..middle, level + 1, reduction);
        while self.partial_sums.len() <= level {
            self.partial_sums.push(Parameters::zeros(&self.config));
        }
        let gradients = self.gradients.as_mut().expect("computed above");
        std::mem::swap(gradients, &mut self.partial_sums[level]);
        let right = self.sum_micro_batches(step, middle..end, level + 1, reduction);
        // The last micro-batch of the step has added the partial sums of every level above it.
        if end < step.division.micro_batches {
            let gradients = self.gradients.as_mut().expect("computed above");
            for range in self.frozen.trained(gradients) {
                add(&mut gradients.values_mut()[range.clone()], &self.partial_sums[level].values()[range]);
            }
        }
        left + right
    }

    /// Overwrites the gradients by those of one micro-batch, of which there are `level` partial sums of earlier ones. Returns the
    /// sum of its losses. The last micro-batch also adds the partial sums, and sums over ranks.
    fn micro_batch(
        &mut self,
        step: &StepBatch,
        index: usize,
        level: usize,
        reduction: Option<Reduction>,
    ) -> f64 {
        let Self { config, frozen, parameters, gradients, partial_sums, buckets, engine, .. } = self;
        let gradients = gradients.get_or_insert_with(|| Parameters::zeros(config));
        let is_last = index + 1 == step.division.micro_batches;
        let partial_sums = if is_last { &partial_sums[..level] } else { &[] };
        let micro_batch = step.micro_batch(index);
        if micro_batch.batch.inputs.is_empty() {
            gradients.values_mut().fill(0.0);
        }
        let gradients = Gradients::new(gradients, buckets, partial_sums);
        let mut compute = |gradients: Gradients<'_, '_>| {
            engine.micro_batch(config, *frozen, parameters, gradients, &micro_batch)
        };
        let Some(Reduction { communicator, precision }) = reduction.filter(|_| is_last) else {
            return compute(gradients);
        };
        let exchange = Shard::exchange_of_gradients(self.shard.as_ref(), precision);
        let (mut gradients, mut loss) = (Some(gradients), 0.0);
        communicator.exchange(&mut |exchanges| {
            let gradients = gradients.take().expect("it is called once");
            loss = compute(gradients.over_ranks(exchange, exchanges));
        });
        loss
    }
}

impl Engine {
    /// Forward and backward of one micro-batch. Returns the sum of its losses.
    fn micro_batch(
        &mut self,
        config: &ModelConfig,
        frozen: Frozen,
        parameters: &Parameters,
        mut gradients: Gradients,
        micro_batch: &MicroBatch,
    ) -> f64 {
        let MicroBatch { batch, first_sequence, total_tokens, dropout_key, dropout, .. } = *micro_batch;
        let MicroBatch { label_smoothing, soft_targets, .. } = *micro_batch;
        if batch.inputs.is_empty() {
            on_worker(|| gradients.complete(0));
            return 0.0;
        }
        check_batch(config, batch);
        let pass = Pass {
            config: ModelConfig { dropout: dropout.unwrap_or(config.dropout), ..*config },
            batch: batch.sequences(),
            time: batch.time,
            chunk_size: 1,
            first_sequence,
            total_tokens,
            label_smoothing,
            frozen,
            dropout_key: Some(dropout_key),
        };
        let losses = match self {
            Self::F32(buffers) => buffers.train(pass, parameters, gradients, batch, soft_targets),
            Self::Bf16(buffers) => buffers.train(pass, parameters, gradients, batch, soft_targets),
        };
        losses.iter().map(|&loss| f64::from(loss)).sum()
    }
}

/// `sum += values`
pub(super) fn add(sum: &mut [f32], values: &[f32]) {
    /// Elements per thread at a time: two arrays of 64 KiB.
    const PIECE: usize = 16 * 1024;
    sum.par_chunks_mut(PIECE).zip(values.par_chunks(PIECE)).for_each(|(sum, values)| {
        sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    });
}
