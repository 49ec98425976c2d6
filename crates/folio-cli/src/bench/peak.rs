//! `folio bench peak`: the peak throughput of this machine.

use std::time::Instant;

use folio_kernels::element::{Bf16, Element};
use folio_kernels::isa::Isa;
use folio_kernels::peak::multiply_add;
use rayon::prelude::*;
use serde::Serialize;

/// The peak throughput of all threads together.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Peak {
    /// Multiply-adds in registers, f32.
    pub(super) f32_gflop_per_s: f64,
    /// Multiply-adds in registers with bfloat16 operands, or f32 if the processor has no bfloat16 arithmetic.
    pub(super) bf16_gflop_per_s: f64,
    /// Memory copy; counts bytes read and bytes written.
    pub(super) copy_gb_per_s: f64,
    /// Memory read.
    pub(super) read_gb_per_s: f64,
}

impl Peak {
    pub(super) fn measure() -> Self {
        Self {
            f32_gflop_per_s: arithmetic::<f32>(),
            bf16_gflop_per_s: arithmetic::<Bf16>(),
            copy_gb_per_s: copying(),
            read_gb_per_s: reading(),
        }
    }
}

/// The best of several short runs.
fn arithmetic<E: Element>() -> f64 {
    (0..8).map(|_| multiplying::<E>(4_000_000)).fold(0.0, f64::max)
}

/// GFLOP/s of `rounds` multiply-adds in registers, on all threads.
pub(super) fn multiplying<E: Element>(rounds: usize) -> f64 {
    let threads = rayon::current_num_threads();
    let start = Instant::now();
    let done = (0..threads).into_par_iter().with_max_len(1).map(|_| {
        let (flop, sum) = multiply_add::<E>(rounds);
        std::hint::black_box(sum);
        flop
    });
    done.sum::<f64>() / start.elapsed().as_secs_f64() / 1e9
}

/// Arrays to copy: 64 MiB per thread, larger than any cache.
pub(super) struct Copies {
    arrays: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Copies {
    const BYTES: usize = 64 << 20;

    pub(super) fn new() -> Self {
        let array = |value| vec![value; Self::BYTES];
        Self { arrays: (0..rayon::current_num_threads()).map(|_| (array(1), array(2))).collect() }
    }

    /// GB/s of all threads; counts bytes read and bytes written.
    pub(super) fn run(&mut self) -> f64 {
        let start = Instant::now();
        self.arrays.par_iter_mut().with_max_len(1).for_each(|(from, to)| {
            to.copy_from_slice(from);
            std::mem::swap(from, to);
        });
        (2 * Self::BYTES * self.arrays.len()) as f64 / start.elapsed().as_secs_f64() / 1e9
    }
}

/// The best of several copies.
fn copying() -> f64 {
    let mut copies = Copies::new();
    (0..8).map(|_| copies.run()).fold(0.0, f64::max)
}

/// Reads 128 MiB per thread, larger than any cache. Sums integers, which compilers vectorize.
pub(super) fn reading() -> f64 {
    const NUMBERS: usize = 16 << 20;
    let arrays: Vec<Vec<u64>> = (0..rayon::current_num_threads()).map(|_| vec![1; NUMBERS]).collect();
    let run = |_| {
        let start = Instant::now();
        let sum = |array: &Vec<u64>| {
            Isa::detected().run(
                #[inline(always)]
                || array.iter().fold(0u64, |sum, value| sum.wrapping_add(*value)),
            )
        };
        std::hint::black_box(arrays.par_iter().with_max_len(1).map(sum).sum::<u64>());
        (NUMBERS * size_of::<u64>() * arrays.len()) as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    (0..8).map(run).fold(0.0, f64::max)
}
