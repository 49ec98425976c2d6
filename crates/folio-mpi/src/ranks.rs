//! The communicator.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use folio::distributed::Communicator;
use folio::model::tree_split;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::interface::Mpi;
use crate::launcher::Launched;
use crate::library;

/// The bytes that are summed at a time. Larger segments are no faster, and take more memory.
const SEGMENT: usize = 16 << 20;
/// The bytes that are broadcast at a time: MPI counts in 32 bits.
const BROADCAST: usize = 1 << 30;
/// Elements per thread when parts are added.
const PIECE: usize = 16 * 1024;

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
    scratch: Scratch,
}

/// Buffers that are reused.
#[derive(Default)]
struct Scratch {
    /// A segment that is padded to whole parts.
    padded: Vec<f32>,
    /// This rank's part of a segment, from every rank.
    parts: Vec<f32>,
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
        let shared = Shared { mpi: Some(mpi), scratch: Scratch::default() };
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

    /// Ends all ranks if a call failed. That happens if the network or another rank does: training cannot continue.
    fn expect(&self, mpi: &Mpi, result: Result<()>) {
        if let Err(error) = result {
            eprintln!("rank {}: {error}; the newest checkpoint is complete: resume from it", self.rank);
            mpi.abort(1);
            std::process::exit(1);
        }
    }

    /// [`Communicator::all_reduce`] of a segment of whole parts.
    fn sum_segment(&self, mpi: &Mpi, segment: &mut [f32], parts: &mut Vec<f32>) {
        parts.resize(segment.len(), 0.0);
        self.expect(mpi, mpi.all_to_all(bytes(segment), bytes_mut(parts), self.world_size));
        let part = segment.len() / self.world_size;
        add_parts(parts, part, self.world_size);
        self.expect(mpi, mpi.all_gather(bytes(&parts[..part]), bytes_mut(segment), self.world_size));
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

    fn all_reduce(&self, values: &mut [f32]) {
        let Shared { mpi, scratch: Scratch { padded, parts } } = &mut *self.shared();
        let mpi = mpi.as_ref().expect("MPI has not ended");
        let part = (SEGMENT / size_of::<f32>()).div_ceil(self.world_size);
        let mut segments = values.chunks_exact_mut(part * self.world_size);
        for segment in &mut segments {
            self.sum_segment(mpi, segment, parts);
        }
        let rest = segments.into_remainder();
        if !rest.is_empty() {
            padded.clear();
            padded.extend_from_slice(rest);
            padded.resize(rest.len().next_multiple_of(self.world_size), 0.0);
            self.sum_segment(mpi, padded, parts);
            rest.copy_from_slice(&padded[..rest.len()]);
        }
    }

    fn all_reduce_f64(&self, values: &mut [f64]) {
        let own: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
        let mut all = vec![0; own.len() * self.world_size];
        let shared = self.shared();
        self.expect(shared.mpi(), shared.mpi().all_gather(&own, &mut all, self.world_size));
        let mut all: Vec<f64> = all.as_chunks().0.iter().map(|bytes| f64::from_ne_bytes(*bytes)).collect();
        add_parts(&mut all, values.len(), self.world_size);
        values.copy_from_slice(&all[..values.len()]);
    }

    fn broadcast(&self, bytes: &mut [u8]) {
        let shared = self.shared();
        bytes
            .chunks_mut(BROADCAST)
            .for_each(|bytes| self.expect(shared.mpi(), shared.mpi().broadcast(bytes)));
    }
}

/// Adds `count` parts in the binary tree of [`tree_split`], into the first of them.
fn add_parts<T: Copy + Send + Sync + std::ops::AddAssign>(parts: &mut [T], part: usize, count: usize) {
    if count < 2 || part == 0 {
        return;
    }
    let left = tree_split(count);
    let (first, second) = parts.split_at_mut(left * part);
    add_parts(first, part, left);
    add_parts(second, part, count - left);
    first[..part].par_chunks_mut(PIECE).zip(second[..part].par_chunks(PIECE)).for_each(|(sum, values)| {
        sum.iter_mut().zip(values).for_each(|(sum, &value)| *sum += value);
    });
}

fn bytes(values: &[f32]) -> &[u8] {
    bytemuck::cast_slice(values)
}

fn bytes_mut(values: &mut [f32]) -> &mut [u8] {
    bytemuck::cast_slice_mut(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_added_in_the_tree() {
        // Text shows the order of additions.
        #[derive(Clone, Copy, Debug, PartialEq)]
        struct Depth(f32);
        impl std::ops::AddAssign for Depth {
            fn add_assign(&mut self, other: Self) {
                self.0 = self.0 * 2.0 + other.0;
            }
        }
        let tree = |count: usize| {
            let mut parts: Vec<Depth> = (1..=count).map(|number| Depth(number as f32)).collect();
            add_parts(&mut parts, 1, count);
            parts[0].0
        };
        assert_eq!(tree(1), 1.0);
        assert_eq!(tree(2), 1.0 * 2.0 + 2.0);
        assert_eq!(tree(3), (1.0 * 2.0 + 2.0) * 2.0 + 3.0);
        assert_eq!(tree(4), (1.0 * 2.0 + 2.0) * 2.0 + (3.0 * 2.0 + 4.0));
        assert_eq!(tree(5), ((1.0 * 2.0 + 2.0) * 2.0 + (3.0 * 2.0 + 4.0)) * 2.0 + 5.0);
    }
}
