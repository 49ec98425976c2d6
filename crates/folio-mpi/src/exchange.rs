//! Exchanges that run while their caller computes.
//!
//! Messages are sent and received without waiting, and without a thread that would take a core from the computation: the caller
//! polls, between blocks and between sequences, and waits at the end.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ops::{AddAssign, Range};

use folio::distributed::{Exchange, Exchanges, LARGEST_SUM, SUMS_AT_ONCE, part};
use folio::model::{Precision, tree_split};
use folio_kernels::element::{Bf16, Element};
use rayon::prelude::*;

use crate::error::Result;
use crate::interface::{Address, Message, Mpi};

/// Elements per thread when arrays are added or converted.
const PIECE: usize = 16 * 1024;
/// Exchanges that have different tags. Each has two, below those of messages.
const TAGS: u16 = LENGTH_TAG / 2;
/// The tag of a message's length; every library allows tags below 32768.
pub(crate) const LENGTH_TAG: u16 = 32764;
/// The tag of a message.
pub(crate) const MESSAGE_TAG: u16 = 32765;

/// The exchanges of one call of [`Communicator::exchange`](folio::distributed::Communicator::exchange).
pub(crate) struct MpiExchanges<'a, 'env> {
    mpi: &'a mut Mpi,
    rank: usize,
    world_size: usize,
    /// Buffers that are not in use.
    buffers: &'a mut Vec<Buffers>,
    /// In the order of their start.
    waiting: VecDeque<Waiting<'env>>,
    running: Vec<Running<'env>>,
    next_tag: u16,
    /// Whether all threads may add: while the backward pass runs, the others have work.
    parallel: bool,
}

/// Buffers of one exchange, reused.
#[derive(Default)]
pub(crate) struct Buffers {
    /// This rank's own part, from every rank.
    parts: Vec<f32>,
    /// The whole array in bfloat16: what is sent of it, later its sums.
    rounded: Vec<u16>,
    /// This rank's own part in bfloat16, from every rank.
    received: Vec<u16>,
}

struct Waiting<'env> {
    exchange: Exchange,
    values: &'env mut [f32],
    unit: usize,
}

struct Running<'env> {
    exchange: Exchange,
    /// The array, which only `messages` use while there are any.
    values: *mut f32,
    len: usize,
    unit: usize,
    tag: u16,
    stage: Stage,
    messages: Vec<Message>,
    buffers: Buffers,
    borrow: PhantomData<&'env mut [f32]>,
}

// SAFETY: `values` stands for an `&mut [f32]`, which can be sent.
unsafe impl Send for Running<'_> {}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Every rank receives its own part from every rank.
    Scatter,
    /// Every rank sends its own part to every rank.
    Gather,
}

impl<'a, 'env> MpiExchanges<'a, 'env> {
    pub(crate) fn new(
        mpi: &'a mut Mpi,
        rank: usize,
        world_size: usize,
        buffers: &'a mut Vec<Buffers>,
    ) -> Self {
        let (waiting, running) = (VecDeque::new(), Vec::new());
        Self { mpi, rank, world_size, buffers, waiting, running, next_tag: 0, parallel: false }
    }

    /// Waits until all are complete.
    pub(crate) fn finish(mut self) {
        self.parallel = true;
        while !(self.running.is_empty() && self.waiting.is_empty()) {
            if !self.advance() {
                // Ranks may be more than cores.
                std::thread::yield_now();
            }
        }
    }

    /// Moves all on as far as possible. Returns whether any moved.
    fn advance(&mut self) -> bool {
        let moved = self.try_advance();
        moved.unwrap_or_else(|error| end_all(self.mpi, self.rank, &error))
    }

    fn try_advance(&mut self) -> Result<bool> {
        let mut moved = false;
        let mut index = 0;
        while index < self.running.len() {
            let running = &mut self.running[index];
            while let Some(message) = running.messages.last_mut()
                && self.mpi.test(message)?
            {
                running.messages.pop();
                moved = true;
            }
            if !running.messages.is_empty() {
                index += 1;
            } else if !running.next(self.mpi, self.rank, self.world_size, self.parallel)? {
                self.buffers.push(self.running.remove(index).buffers);
            }
        }
        while self.running.len() < SUMS_AT_ONCE
            && let Some(Waiting { exchange, values, unit }) = self.waiting.pop_front()
        {
            let running = Running {
                exchange,
                len: values.len(),
                values: values.as_mut_ptr(),
                unit,
                tag: self.next_tag,
                stage: Stage::Scatter,
                messages: Vec::new(),
                buffers: self.buffers.pop().unwrap_or_default(),
                borrow: PhantomData,
            };
            self.next_tag = (self.next_tag + 1) % TAGS;
            self.running.push(running);
            let running = self.running.last_mut().expect("it was just added");
            running.begin(self.mpi, self.rank, self.world_size, self.parallel)?;
            moved = true;
        }
        Ok(moved)
    }
}

impl<'env> Exchanges<'env> for MpiExchanges<'_, 'env> {
    fn start(&mut self, exchange: Exchange, values: &'env mut [f32], unit: usize) {
        // A sum does not depend on the parts.
        let largest = if matches!(exchange, Exchange::AllReduce(_)) { LARGEST_SUM } else { usize::MAX };
        let arrays = values.chunks_mut(largest).filter(|values| !values.is_empty());
        self.waiting.extend(arrays.map(|values| Waiting { exchange, values, unit }));
        self.advance();
    }

    fn progress(&mut self) {
        self.advance();
    }
}

impl Drop for MpiExchanges<'_, '_> {
    fn drop(&mut self) {
        // Only after a panic: messages still use borrowed memory, and the other ranks wait for this one.
        if !self.running.is_empty() {
            self.mpi.abort(1);
            std::process::abort();
        }
    }
}

impl Running<'_> {
    /// The whole array. While there are messages, they have its pointer, and nobody may call this.
    fn values(&mut self) -> &mut [f32] {
        assert!(self.messages.is_empty(), "messages use the array");
        // SAFETY: the pointer and the length are those of a slice that is borrowed for longer than `self`, and used by nothing else.
        unsafe { std::slice::from_raw_parts_mut(self.values, self.len) }
    }

    fn part(&self, rank: usize, world_size: usize) -> Range<usize> {
        part(self.len, self.unit, rank, world_size)
    }

    /// Sends the first messages.
    fn begin(&mut self, mpi: &Mpi, rank: usize, world_size: usize, parallel: bool) -> Result<()> {
        let precision = match self.exchange {
            Exchange::AllGather => {
                self.stage = Stage::Gather;
                return self.send_gather(mpi, rank, world_size);
            }
            Exchange::AllReduce(precision) | Exchange::ReduceScatter(precision) => precision,
        };
        let own = self.part(rank, world_size).len();
        self.buffers.parts.resize(own * world_size, 0.0);
        match precision {
            Precision::F32 => {
                let (to, from) = (self.values, self.buffers.parts.as_mut_ptr());
                // SAFETY: the parts of `to` are inside the array, those of `from` inside the buffer, and nobody uses either while
                // there are messages.
                unsafe { self.send_scatter(mpi, rank, world_size, to, from) }
            }
            Precision::Bf16 => {
                let mut rounded = std::mem::take(&mut self.buffers.rounded);
                rounded.resize(self.len, 0);
                zip(parallel, &mut rounded, self.values(), |rounded, &value| *rounded = to_bf16(value));
                self.buffers.rounded = rounded;
                self.buffers.received.resize(own * world_size, 0);
                let (to, from) = (self.buffers.rounded.as_mut_ptr(), self.buffers.received.as_mut_ptr());
                // SAFETY: as above, with the two buffers.
                unsafe { self.send_scatter(mpi, rank, world_size, to, from) }
            }
        }
    }

    /// What follows when all messages have arrived. False if nothing does.
    fn next(&mut self, mpi: &Mpi, rank: usize, world_size: usize, parallel: bool) -> Result<bool> {
        let own = self.part(rank, world_size);
        match (self.stage, self.exchange) {
            (Stage::Scatter, Exchange::AllReduce(precision)) => {
                self.add(own, precision, rank, world_size, parallel);
                self.stage = Stage::Gather;
                self.send_gather(mpi, rank, world_size)?;
                Ok(true)
            }
            (Stage::Scatter, Exchange::ReduceScatter(precision)) => {
                self.add(own, precision, rank, world_size, parallel);
                Ok(false)
            }
            (Stage::Gather, Exchange::AllReduce(Precision::Bf16)) => {
                let rounded = std::mem::take(&mut self.buffers.rounded);
                zip(parallel, self.values(), &rounded, |value, &rounded| *value = from_bf16(rounded));
                self.buffers.rounded = rounded;
                Ok(false)
            }
            _ => Ok(false),
        }
    }

    /// Adds the own parts of all ranks, and leaves the sum in the array.
    fn add(
        &mut self,
        own: Range<usize>,
        precision: Precision,
        rank: usize,
        world_size: usize,
        parallel: bool,
    ) {
        let len = own.len();
        let Buffers { mut parts, mut rounded, received } = std::mem::take(&mut self.buffers);
        let mine = rank * len..(rank + 1) * len;
        match precision {
            Precision::F32 => {
                parts[mine].copy_from_slice(&self.values()[own.clone()]);
                add_parts(&mut parts, len, world_size, parallel);
                self.values()[own].copy_from_slice(&parts[..len]);
            }
            Precision::Bf16 => {
                zip(parallel, &mut parts, &received, |value, &received| *value = from_bf16(received));
                zip(parallel, &mut parts[mine], &rounded[own.clone()], |value, &own| *value = from_bf16(own));
                add_parts(&mut parts, len, world_size, parallel);
                zip(parallel, &mut rounded[own.clone()], &parts[..len], |sum, &value| *sum = to_bf16(value));
                zip(parallel, &mut self.values()[own.clone()], &rounded[own], |value, &sum| {
                    *value = from_bf16(sum);
                });
            }
        }
        self.buffers = Buffers { parts, rounded, received };
    }

    /// Sends part j of `to` to rank j, and receives the own part from rank i at part i of `from`.
    ///
    /// # Safety
    /// `to` must have as many elements as the array, `from` as many as the own part of every rank; nobody may use them while there
    /// are messages.
    unsafe fn send_scatter<T>(
        &mut self,
        mpi: &Mpi,
        rank: usize,
        world_size: usize,
        to: *mut T,
        from: *mut T,
    ) -> Result<()> {
        let own = self.part(rank, world_size).len();
        for other in others(rank, world_size).filter(|_| own > 0) {
            // SAFETY: as the caller promises.
            self.messages.push(unsafe {
                mpi.receive(from.add(other * own).cast(), own * size_of::<T>(), self.address(other))?
            });
        }
        for other in others(rank, world_size) {
            let part = self.part(other, world_size);
            if !part.is_empty() {
                // SAFETY: as the caller promises.
                self.messages.push(unsafe {
                    mpi.send(to.add(part.start).cast(), part.len() * size_of::<T>(), self.address(other))?
                });
            }
        }
        Ok(())
    }

    /// Sends the own part, and receives those of the other ranks.
    fn send_gather(&mut self, mpi: &Mpi, rank: usize, world_size: usize) -> Result<()> {
        match self.exchange {
            Exchange::AllReduce(Precision::Bf16) => {
                let array = self.buffers.rounded.as_mut_ptr();
                // SAFETY: the buffer is as long as the array, and nobody uses it while there are messages.
                unsafe { self.send_gather_of(mpi, rank, world_size, array) }
            }
            _ => {
                let array = self.values;
                // SAFETY: this is the array itself.
                unsafe { self.send_gather_of(mpi, rank, world_size, array) }
            }
        }
    }

    /// # Safety
    /// `array` must have as many elements as the array, and nobody may use it while there are messages.
    unsafe fn send_gather_of<T>(
        &mut self,
        mpi: &Mpi,
        rank: usize,
        world_size: usize,
        array: *mut T,
    ) -> Result<()> {
        for other in others(rank, world_size) {
            let part = self.part(other, world_size);
            if !part.is_empty() {
                // SAFETY: the parts are inside the array and do not overlap.
                self.messages.push(unsafe {
                    mpi.receive(
                        array.add(part.start).cast(),
                        part.len() * size_of::<T>(),
                        self.address(other),
                    )?
                });
            }
        }
        let own = self.part(rank, world_size);
        for other in others(rank, world_size).filter(|_| !own.is_empty()) {
            // SAFETY: as above; several messages may read the same bytes.
            self.messages.push(unsafe {
                mpi.send(array.add(own.start).cast(), own.len() * size_of::<T>(), self.address(other))?
            });
        }
        Ok(())
    }

    fn address(&self, rank: usize) -> Address {
        Address { rank, tag: 2 * self.tag + u16::from(self.stage == Stage::Gather) }
    }
}

/// The other ranks, from the next one on, so that not all begin with the same.
fn others(rank: usize, world_size: usize) -> impl Iterator<Item = usize> {
    (rank + 1..world_size).chain(0..rank)
}

/// Ends all ranks after a call failed. That happens if the network or another rank does: training cannot continue.
pub(crate) fn end_all(mpi: &Mpi, rank: usize, error: &crate::Error) -> ! {
    eprintln!(
        "rank {rank}: {error}; if the run was saved, resume from its newest checkpoint, which is complete"
    );
    mpi.abort(1);
    std::process::exit(1)
}

fn to_bf16(value: f32) -> u16 {
    Bf16::from_f32(value).to_bits() as u16
}

fn from_bf16(bits: u16) -> f32 {
    Bf16::from_bits(u32::from(bits)).to_f32()
}

/// Adds `count` parts in the binary tree of [`tree_split`], into the first of them.
pub(crate) fn add_parts<T>(parts: &mut [T], part: usize, count: usize, parallel: bool)
where
    T: Copy + Send + Sync + AddAssign,
{
    if count < 2 || part == 0 {
        return;
    }
    let left = tree_split(count);
    let (first, second) = parts.split_at_mut(left * part);
    add_parts(first, part, left, parallel);
    add_parts(second, part, count - left, parallel);
    zip(parallel, &mut first[..part], &second[..part], |sum, &value| *sum += value);
}

/// Applies `op` to the elements of two arrays.
fn zip<A: Send, B: Sync>(parallel: bool, a: &mut [A], b: &[B], op: impl Fn(&mut A, &B) + Sync) {
    let piece = |(a, b): (&mut [A], &[B])| a.iter_mut().zip(b).for_each(|(a, b)| op(a, b));
    if parallel {
        a.par_chunks_mut(PIECE).zip(b.par_chunks(PIECE)).for_each(piece);
    } else {
        piece((a, b));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_added_in_the_tree() {
        // Text shows the order of additions.
        #[derive(Clone, Copy, Debug, PartialEq)]
        struct Depth(f32);
        impl AddAssign for Depth {
            fn add_assign(&mut self, other: Self) {
                self.0 = self.0 * 2.0 + other.0;
            }
        }
        let tree = |count: usize| {
            let mut parts: Vec<Depth> = (1..=count).map(|number| Depth(number as f32)).collect();
            add_parts(&mut parts, 1, count, count.is_multiple_of(2));
            parts[0].0
        };
        assert_eq!(tree(1), 1.0);
        assert_eq!(tree(2), 1.0 * 2.0 + 2.0);
        assert_eq!(tree(3), (1.0 * 2.0 + 2.0) * 2.0 + 3.0);
        assert_eq!(tree(4), (1.0 * 2.0 + 2.0) * 2.0 + (3.0 * 2.0 + 4.0));
        assert_eq!(tree(5), ((1.0 * 2.0 + 2.0) * 2.0 + (3.0 * 2.0 + 4.0)) * 2.0 + 5.0);
    }

    #[test]
    fn sums_in_bfloat16_round_every_value_once_and_the_sum_once() {
        // This rank is 1 of 3, whose own part are the elements 1 and 2 of 5.
        let mut values = [9.0, 1.0 + 1.0 / 256.0, -3.0, 9.0, 9.0];
        let rounded = values.map(to_bf16).to_vec();
        let theirs = [[1.0, 0.5], [0.0; 2], [1.0 / 128.0, 7.0]];
        let mut running = Running {
            exchange: Exchange::AllReduce(Precision::Bf16),
            values: values.as_mut_ptr(),
            len: 5,
            unit: 1,
            tag: 0,
            stage: Stage::Scatter,
            messages: Vec::new(),
            buffers: Buffers {
                parts: vec![0.0; 6],
                rounded,
                received: theirs.as_flattened().iter().map(|&value| to_bf16(value)).collect(),
            },
            borrow: PhantomData,
        };
        let own = running.part(1, 3);
        assert_eq!(own, 1..3);
        running.add(own, Precision::Bf16, 1, 3, true);
        // 1 + 1/256 is halfway, and rounds to 1. The sum 2 + 1/128 is halfway too, and rounds to 2.
        let sums = [2.0, 4.5];
        assert_eq!(running.buffers.rounded[1..3], sums.map(to_bf16));
        assert_eq!(values, [9.0, 2.0, 4.5, 9.0, 9.0]);
    }

    #[test]
    fn every_rank_is_another_of_all_others() {
        assert_eq!(others(1, 4).collect::<Vec<_>>(), [2, 3, 0]);
        assert_eq!(others(0, 1).count(), 0);
    }
}
