//! Muon's update of the blocks' matrices.

use std::ops::Range;

use folio_kernels::element::Element;
use folio_kernels::moving_average::update_scaled_average;
use folio_kernels::newton_schulz::{Columns, ITERATIONS, NewtonSchulz};
use rayon::prelude::*;

use crate::model::{Frozen, ModelConfig, MuonUpdate, Parameters};

/// The most matrices that are orthogonalized in parallel: each needs buffers, and their matmuls are parallel inside.
const MOST: usize = 8;

/// A matrix of a parameter.
struct Matrix {
    /// The parameter's place among all.
    parameter: Range<usize>,
    columns: Columns,
}

/// Matrices to update, and buffers. E is the format of the matmuls' operands, as in the passes of the model.
pub(super) struct Muon<E> {
    /// The parameters that are updated.
    parameters: Vec<Range<usize>>,
    matrices: Vec<Matrix>,
    /// One for each matrix that is orthogonalized at a time.
    buffers: Vec<NewtonSchulz<E>>,
}

impl<E: Element> Muon<E> {
    pub(super) fn new(parameters: &Parameters, frozen: Frozen) -> Self {
        let specs = parameters.specs().iter();
        let own = specs.filter(|spec| MuonUpdate::updates(spec) && !frozen.contains(spec));
        let (mut parameters, mut matrices) = (Vec::new(), Vec::new());
        for spec in own {
            parameters.push(spec.range.clone());
            let of_spec =
                MuonUpdate::matrices(spec).map(|columns| Matrix { parameter: spec.range.clone(), columns });
            matrices.extend(of_spec);
        }
        let largest = |side: fn(Columns) -> usize| {
            matrices.iter().map(|matrix: &Matrix| side(matrix.columns)).max().unwrap_or(0)
        };
        let (short, long) = (largest(Columns::short), largest(Columns::long));
        let count = in_parallel(matrices.len());
        let buffers = (0..count).map(|_| NewtonSchulz::new(short, long)).collect();
        Self { parameters, matrices, buffers }
    }

    /// Bytes of the buffers for a model.
    pub(super) fn bytes(config: &ModelConfig) -> u64 {
        let (c, inner) = (config.n_emb, config.inner());
        let count = in_parallel(6 * config.n_blocks);
        (count as u64).saturating_mul(NewtonSchulz::<E>::bytes(c, c.max(inner)) as u64)
    }

    /// One update.
    ///
    /// - `parameters`, `exp_avg`: Muon's are updated in place.
    /// - `gradients`: read.
    pub(super) fn update(
        &mut self,
        update: &MuonUpdate,
        parameters: &mut [f32],
        gradients: &[f32],
        exp_avg: &mut [f32],
    ) {
        let MuonUpdate { learning_rate, momentum, weight_decay, gradient_scale } = *update;
        for range in &self.parameters {
            let (exp_avg, gradient) = (&mut exp_avg[range.clone()], &gradients[range.clone()]);
            update_scaled_average(exp_avg, gradient, gradient_scale, momentum);
        }
        let (of_gradient, of_average) = (((1.0 - momentum) * gradient_scale) as f32, momentum as f32);
        let decay = (learning_rate * weight_decay) as f32;
        for matrices in self.matrices.chunks(self.buffers.len().max(1)) {
            self.buffers.par_iter_mut().zip(matrices).for_each(|(buffers, matrix)| {
                let range = matrix.parameter.clone();
                let (gradient, exp_avg) = (&gradients[range.clone()], &exp_avg[range]);
                // Nesterov's momentum.
                buffers.orthogonalize(matrix.columns, ITERATIONS, |index| {
                    of_gradient * gradient[index] + of_average * exp_avg[index]
                });
            });
            for (buffers, matrix) in self.buffers.iter().zip(matrices) {
                let parameter = &mut parameters[matrix.parameter.clone()];
                buffers.update(matrix.columns, parameter, decay, update.rate(matrix.columns) as f32);
            }
        }
    }
}

/// How many of `matrices` are orthogonalized in parallel.
fn in_parallel(matrices: usize) -> usize {
    rayon::current_num_threads().min(MOST).min(matrices)
}
