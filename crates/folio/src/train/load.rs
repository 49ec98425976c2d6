//! What each rank did in a run: its speed, its memory and its time in communication.

use std::time::{Duration, Instant};

use super::{Event, RankReport, Trainer};
use crate::distributed::{Communicator, Timed};
use crate::machine::peak_memory;

/// This rank's work in the optimizer steps of a run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RankLoad {
    /// Tokens of its own sequences.
    tokens: usize,
    /// The time of the steps.
    steps: Duration,
    /// The part of it in communication.
    communication: Duration,
}

/// The beginning of a step.
#[derive(Clone, Copy)]
pub(super) struct StepStart {
    at: Instant,
    communication: Duration,
}

impl RankLoad {
    pub(super) fn begin_step(&self, communicator: &Timed) -> StepStart {
        StepStart { at: Instant::now(), communication: communicator.spent() }
    }

    pub(super) fn end_step(&mut self, start: StepStart, communicator: &Timed, tokens: usize) {
        self.tokens += tokens;
        self.steps += start.at.elapsed();
        self.communication += communicator.spent() - start.communication;
    }
}

impl Trainer {
    /// Reports what the ranks did, if there are several. All ranks call this at once.
    pub(super) fn report_ranks(&self, on_event: &mut dyn FnMut(&Event)) {
        /// Numbers of each rank.
        const NUMBERS: usize = 4;
        let (rank, world_size) = (self.communicator.rank(), self.communicator.world_size());
        if world_size == 1 {
            return;
        }
        let RankLoad { tokens, steps, communication } = self.load;
        let own: [f64; NUMBERS] = [
            peak_memory().unwrap_or(0) as f64,
            tokens as f64,
            steps.as_secs_f64(),
            communication.as_secs_f64(),
        ];
        // Each rank adds to zeros.
        let mut all = vec![0.0; world_size * NUMBERS];
        all[rank * NUMBERS..][..NUMBERS].copy_from_slice(&own);
        self.communicator.all_reduce_f64(&mut all);
        let report = |&[peak, tokens, seconds, communication]: &[f64; NUMBERS]| RankReport {
            peak_memory: (peak > 0.0).then_some(peak as u64),
            tokens_per_s: tokens / (seconds - communication).max(1e-9),
            seconds,
            communication_seconds: communication,
        };
        let ranks = all.as_chunks().0.iter().map(report).collect();
        on_event(&Event::Ranks { epoch: self.state.epoch, step: self.state.global_step, ranks });
    }
}
