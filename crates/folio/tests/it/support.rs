//! What several tests share: the backends that the suite runs on, and ranks.

use folio::distributed::{Communicator, Exchanges};
use folio::model::{Backend, CpuBackend, ModelConfig, Parameters, Precision};

mod reference_backend;
mod thread_ranks;

pub(crate) use reference_backend::ReferenceBackend;
pub(crate) use thread_ranks::ThreadRank;

/// A constructor of a backend.
pub(crate) type New = fn(ModelConfig, Precision, Parameters) -> Box<dyn Backend>;

pub(crate) const CPU: New =
    |config, precision, parameters| Box::new(CpuBackend::from_parameters(config, precision, parameters));

/// The naive twins in f64; the precision does not matter to it.
pub(crate) const REFERENCE: New = |config, _, parameters| Box::new(ReferenceBackend::new(config, parameters));

pub(crate) const BACKENDS: [(&str, New); 2] = [("cpu", CPU), ("reference", REFERENCE)];

/// A communicator that replaces gradients by its own values.
pub(crate) struct Replace(pub(crate) Vec<f32>);

impl Communicator for Replace {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn exchange<'env>(&self, _: &mut dyn FnMut(&mut (dyn Exchanges<'env> + Send))) {
        unreachable!("gradients are replaced as a whole");
    }

    fn all_reduce(&self, values: &mut [f32]) {
        values.copy_from_slice(&self.0);
    }

    fn all_reduce_f64(&self, _: &mut [f64]) {}

    fn broadcast(&self, _: &mut [u8]) {}

    fn send(&self, _: usize, _: &[u8]) {}

    fn try_receive(&self, _: usize) -> Option<Vec<u8>> {
        None
    }
}
