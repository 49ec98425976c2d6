//! How long communication takes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Communicator, Exchange, Exchanges};

/// A communicator that measures the time its calls take: waiting for other ranks, moving data and adding.
pub struct Timed {
    inner: Box<dyn Communicator>,
    /// Nanoseconds.
    spent: AtomicU64,
}

impl Timed {
    /// Measures the calls of `inner`.
    pub fn new(inner: Box<dyn Communicator>) -> Self {
        Self { inner, spent: AtomicU64::new(0) }
    }

    /// The time spent so far.
    pub fn spent(&self) -> Duration {
        Duration::from_nanos(self.spent.load(Ordering::Relaxed))
    }

    fn add(&self, spent: Duration) {
        self.spent.fetch_add(spent.as_nanos() as u64, Ordering::Relaxed);
    }
}

impl Communicator for Timed {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn world_size(&self) -> usize {
        self.inner.world_size()
    }

    fn exchange<'env>(&self, body: &mut dyn FnMut(&mut (dyn Exchanges<'env> + Send))) {
        let start = Instant::now();
        let mut computing = Duration::ZERO;
        self.inner.exchange(&mut |inner| {
            let start = Instant::now();
            let mut exchanges = TimedExchanges { inner, spent: Duration::ZERO };
            body(&mut exchanges);
            computing += start.elapsed().saturating_sub(exchanges.spent);
        });
        self.add(start.elapsed().saturating_sub(computing));
    }

    fn all_reduce_f64(&self, values: &mut [f64]) {
        let start = Instant::now();
        self.inner.all_reduce_f64(values);
        self.add(start.elapsed());
    }

    fn broadcast(&self, bytes: &mut [u8]) {
        let start = Instant::now();
        self.inner.broadcast(bytes);
        self.add(start.elapsed());
    }

    fn send(&self, to: usize, message: &[u8]) {
        self.inner.send(to, message);
    }

    fn try_receive(&self, from: usize) -> Option<Vec<u8>> {
        self.inner.try_receive(from)
    }
}

struct TimedExchanges<'a, 'env> {
    inner: &'a mut (dyn Exchanges<'env> + Send + 'a),
    spent: Duration,
}

impl<'env> Exchanges<'env> for TimedExchanges<'_, 'env> {
    fn start(&mut self, exchange: Exchange, values: &'env mut [f32], unit: usize) {
        let start = Instant::now();
        self.inner.start(exchange, values, unit);
        self.spent += start.elapsed();
    }

    fn progress(&mut self) {
        let start = Instant::now();
        self.inner.progress();
        self.spent += start.elapsed();
    }
}
