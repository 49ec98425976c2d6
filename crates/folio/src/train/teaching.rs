//! What a run learns from its teachers: the table of their probabilities, and the rows of a batch.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::{Event, Requests, Trainer, ranks};
use crate::distributed::{Communicator, RankCount, any, receive_from_first, send_to_all};
use crate::error::{Error, Result};
use crate::model::SoftTargets;
use crate::run_dir::RunDir;
use crate::teachers::{TablePlace, TeacherTable};

/// The probabilities of a run's teachers.
pub(super) struct Teaching {
    table: Arc<TeacherTable>,
    weight: f32,
    /// (B, T, V): those of a batch. Reused.
    rows: Vec<u16>,
}

/// The last table of teachers that was computed, for runs that share their teachers.
#[derive(Clone, Debug, Default)]
pub struct SharedTable(Arc<Mutex<Option<KnownTable>>>);

/// A table, and what it depends on.
type KnownTable = (TableKey, Arc<TeacherTable>);

/// What a table depends on, for one text: the teachers' weights, and the training text.
type TableKey = (Vec<String>, Vec<Range<usize>>);

impl Teaching {
    /// The probabilities of the sequences of `time` tokens that begin at `starts`.
    pub(super) fn soft_targets(&mut self, starts: &[usize], time: usize) -> Result<SoftTargets<'_>> {
        self.rows.clear();
        for &start in starts {
            let read = self.table.read(start..start + time, &mut self.rows);
            read.map_err(|error| Error::Teachers { reason: error.to_string() })?;
        }
        Ok(SoftTargets { probabilities: &self.rows, weight: self.weight })
    }
}

impl Trainer {
    /// From now on takes the table of its teachers from there, if it is the same, or else leaves its own there.
    pub fn share_table(&mut self, shared: &SharedTable) {
        self.shared_table = shared.clone();
    }

    /// Gets the table of the teachers, if the run has any and steps are left. Rank 0 computes it, and sends it to the others. Returns
    /// false if a stop was requested first.
    pub(super) fn meet_teachers(
        &mut self,
        run_dir: Option<&RunDir>,
        requests: &Requests,
        on_event: &mut dyn FnMut(&Event),
    ) -> Result<bool> {
        if self.settings.teachers.is_none() || self.steps_left() == 0 || self.teaching.is_some() {
            return Ok(true);
        }
        let table = if self.is_primary() { self.table(run_dir, requests, on_event) } else { Ok(None) };
        let table = ranks::all_succeed(&self.communicator, table, "compute the teachers' probabilities")?;
        let [is_there] = any(&self.communicator, [table.is_some()]);
        if !is_there {
            return Ok(false);
        }
        let weight = self.settings.distill_weight as f32;
        self.teaching = Some(Teaching { table: self.broadcast(table), weight, rows: Vec::new() });
        Ok(true)
    }

    /// The table, on rank 0; none if a stop was requested.
    fn table(
        &self,
        run_dir: Option<&RunDir>,
        requests: &Requests,
        on_event: &mut dyn FnMut(&Event),
    ) -> Result<Option<Arc<TeacherTable>>> {
        let teachers = self.teachers.as_ref().expect("rank 0 has opened them");
        let key = (teachers.sha256().to_vec(), self.dataset.training_ranges());
        // Runs that need the same table wait for it here.
        let mut shared = self.shared_table.0.lock().expect("no holder panics");
        if let Some((_, table)) = shared.as_ref().filter(|(known, _)| *known == key) {
            return Ok(Some(Arc::clone(table)));
        }
        *shared = None; // Frees an old table before the new one is allocated.
        let place = match self.communicator.world_size() {
            1 => {
                let run_dir = run_dir.map(RunDir::path);
                teachers.place(&self.settings, &self.dataset, RankCount::ONE, run_dir)?
            }
            _ => TablePlace::Memory,
        };
        let count = teachers.count();
        let mut progress = |done: usize, tokens: usize| {
            on_event(&Event::Teachers { count, done: done as u64, tokens: tokens as u64 });
            !requests.stop_requested()
        };
        let mut ensemble = teachers.load()?;
        let table = TeacherTable::compute(&mut ensemble, &self.dataset, place, &mut progress)?.map(Arc::new);
        *shared = table.as_ref().map(|table| (key, Arc::clone(table)));
        Ok(table)
    }

    /// Rank 0's table, on all ranks.
    fn broadcast(&self, table: Option<Arc<TeacherTable>>) -> Arc<TeacherTable> {
        let communicator = &self.communicator;
        match table {
            Some(table) if communicator.world_size() == 1 => table,
            Some(table) => {
                let values = table.values().expect("a table of several ranks is in memory");
                send_to_all(communicator, bytemuck::cast_slice(values));
                table
            }
            None => {
                let mut table = TeacherTable::zeros(&self.dataset, self.backend.config().vocab_size);
                let values = table.values_mut().expect("it is in memory");
                receive_from_first(communicator, bytemuck::cast_slice_mut(values));
                Arc::new(table)
            }
        }
    }
}
