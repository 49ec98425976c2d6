//! Ranks that are threads of one process.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use folio::distributed::{Communicator, Exchange, Exchanges, part};
use folio::model::{Precision, tree_split};
use folio_kernels::element::{Bf16, Element};

/// One rank.
pub(crate) struct ThreadRank {
    rank: usize,
    world_size: usize,
    meeting: Arc<Meeting>,
}

/// Where the ranks exchange bytes.
struct Meeting {
    state: Mutex<MeetingState>,
    changed: Condvar,
}

struct MeetingState {
    /// One per rank; taken when all have arrived.
    arrived: Vec<Option<Vec<u8>>>,
    /// What all ranks brought to the last meeting, and how many have not collected it yet.
    exchanged: Arc<Vec<Vec<u8>>>,
    to_collect: usize,
    /// Messages by sender and receiver.
    messages: HashMap<(usize, usize), VecDeque<Vec<u8>>>,
}

impl ThreadRank {
    /// All ranks of a run.
    pub(crate) fn world(world_size: usize) -> Vec<Self> {
        let state = MeetingState {
            arrived: vec![None; world_size],
            exchanged: Arc::default(),
            to_collect: 0,
            messages: HashMap::new(),
        };
        let meeting = Arc::new(Meeting { state: Mutex::new(state), changed: Condvar::new() });
        (0..world_size).map(|rank| Self { rank, world_size, meeting: Arc::clone(&meeting) }).collect()
    }

    /// The bytes of all ranks.
    fn exchange_bytes(&self, bytes: Vec<u8>) -> Arc<Vec<Vec<u8>>> {
        /// A rank that failed never arrives.
        const PATIENCE: Duration = Duration::from_secs(60);
        let wait = |state, condition: &dyn Fn(&mut MeetingState) -> bool| {
            let (state, timeout) = (self.meeting.changed)
                .wait_timeout_while(state, PATIENCE, |state| condition(state))
                .expect("no rank panics inside");
            assert!(!timeout.timed_out(), "rank {}: another rank did not arrive", self.rank);
            state
        };
        let state = self.meeting.state.lock().expect("no rank panics inside");
        let mut state = wait(state, &|state| state.to_collect > 0);
        assert!(state.arrived[self.rank].replace(bytes).is_none(), "one meeting at a time");
        if state.arrived.iter().all(Option::is_some) {
            let all = state.arrived.iter_mut().map(|bytes| bytes.take().expect("arrived")).collect();
            state.exchanged = Arc::new(all);
            state.to_collect = self.world_size;
        } else {
            state = wait(state, &|state| state.to_collect == 0);
        }
        state.to_collect -= 1;
        self.meeting.changed.notify_all();
        Arc::clone(&state.exchanged)
    }
}

/// Exchanges that happen as early as possible or as late as possible, in turn.
struct ThreadExchanges<'a, 'env> {
    rank: &'a ThreadRank,
    late: Vec<(Exchange, &'env mut [f32], usize)>,
    started: usize,
}

impl<'env> Exchanges<'env> for ThreadExchanges<'_, 'env> {
    fn start(&mut self, exchange: Exchange, values: &'env mut [f32], unit: usize) {
        self.started += 1;
        if self.started.is_multiple_of(2) {
            self.late.push((exchange, values, unit));
        } else {
            self.rank.complete(exchange, values, unit);
        }
    }

    fn progress(&mut self) {}
}

impl ThreadRank {
    fn complete(&self, exchange: Exchange, values: &mut [f32], unit: usize) {
        let own = part(values.len(), unit, self.rank, self.world_size);
        let round = |precision: Precision, values: &mut [f32]| {
            if precision == Precision::Bf16 {
                values.iter_mut().for_each(|value| *value = Bf16::from_f32(*value).to_f32());
            }
        };
        if let Exchange::AllReduce(precision) | Exchange::ReduceScatter(precision) = exchange {
            let mut sent = values.to_vec();
            round(precision, &mut sent);
            let mut sum = tree_sum(&self.all(&sent));
            round(precision, &mut sum);
            match exchange {
                Exchange::AllReduce(_) => values.copy_from_slice(&sum),
                _ => values[own.clone()].copy_from_slice(&sum[own]),
            }
            return;
        }
        let len = values.len();
        for (rank, theirs) in self.all(values).iter().enumerate() {
            let part = part(len, unit, rank, self.world_size);
            values[part.clone()].copy_from_slice(&theirs[part]);
        }
    }

    /// The arrays of all ranks.
    fn all(&self, values: &[f32]) -> Vec<Vec<f32>> {
        let all = self.exchange_bytes(bytemuck::cast_slice(values).to_vec());
        all.iter().map(|bytes| numbers(bytes, f32::from_ne_bytes)).collect()
    }
}

impl Communicator for ThreadRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn exchange<'env>(&self, body: &mut dyn FnMut(&mut (dyn Exchanges<'env> + Send))) {
        let mut exchanges = ThreadExchanges { rank: self, late: Vec::new(), started: 0 };
        body(&mut exchanges);
        for (exchange, values, unit) in exchanges.late {
            self.complete(exchange, values, unit);
        }
    }

    fn all_reduce_f64(&self, values: &mut [f64]) {
        let all = self.exchange_bytes(bytemuck::cast_slice(values).to_vec());
        let all: Vec<Vec<f64>> = all.iter().map(|bytes| numbers(bytes, f64::from_ne_bytes)).collect();
        values.copy_from_slice(&tree_sum(&all));
    }

    fn broadcast(&self, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.exchange_bytes(bytes.to_vec())[0]);
    }

    fn send(&self, to: usize, message: &[u8]) {
        let mut state = self.meeting.state.lock().expect("no rank panics inside");
        state.messages.entry((self.rank, to)).or_default().push_back(message.to_vec());
    }

    fn try_receive(&self, from: usize) -> Option<Vec<u8>> {
        let mut state = self.meeting.state.lock().expect("no rank panics inside");
        state.messages.get_mut(&(from, self.rank))?.pop_front()
    }
}

fn tree_sum<T: Copy + std::ops::Add<Output = T>>(ranks: &[Vec<T>]) -> Vec<T> {
    if let [one] = ranks {
        return one.clone();
    }
    let (left, right) = ranks.split_at(tree_split(ranks.len()));
    tree_sum(left).into_iter().zip(tree_sum(right)).map(|(a, b)| a + b).collect()
}

fn numbers<T, const SIZE: usize>(bytes: &[u8], parse: fn([u8; SIZE]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().copied().map(parse).collect()
}
