//! The teachers' probabilities of every token of the training text.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;

use half::f16;
use rayon::prelude::*;

use crate::data::{BatchBuffer, Dataset};
use crate::ensemble::Ensemble;
use crate::error::{Error, Result};
use crate::model::{Batch, ModelConfig};

/// Where a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TablePlace<'a> {
    /// In memory.
    Memory,
    /// In a file without a name in this directory, which disappears with the table.
    Disk(&'a Path),
}

/// For each token of the training text the mean probabilities of the token that follows it: (tokens, V), in f16.
///
/// f16 is 8 times as exact as bfloat16 for numbers from 2^-14 to 1: they are rounded by at most 2^-11 of their size. Smaller ones are
/// off by at most 2^-25. A row therefore sums to 1 within 2^-11 + V 2^-25.
#[derive(Debug)]
pub struct TeacherTable {
    vocab: usize,
    /// The tokens that have a row, in the order of the rows.
    ranges: Vec<Range<usize>>,
    rows: Rows,
}

/// The rows, as the bits of f16 numbers.
#[derive(Debug)]
enum Rows {
    Memory(Vec<u16>),
    File(Mutex<File>),
}

/// Some tokens that the teachers read at once, and those of them whose probabilities are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Window {
    tokens: Range<usize>,
    kept: Range<usize>,
}

/// The most logits of a pass of a teacher. Each takes 16 bytes: see [`Ensemble::log_probabilities`].
const LOGITS: usize = 1 << 24;
/// The most windows of a pass.
const WINDOWS: usize = 64;

impl TeacherTable {
    /// Computes the table. `progress` is called with the number of tokens that are done, and the number of all; if it returns false,
    /// the table is given up.
    ///
    /// The teachers read windows of their own context length T. Each window begins T / 2 tokens after the one before, and the
    /// probabilities of its second half are kept; those of the first window of a range are kept whole. So every token has at least
    /// T / 2 tokens before it, if the range has.
    ///
    /// # Errors
    /// If the table cannot be written to the disk.
    pub fn compute(
        teachers: &mut Ensemble,
        dataset: &Dataset,
        place: TablePlace<'_>,
        progress: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Option<Self>> {
        let ModelConfig { vocab_size: vocab, block_size, .. } = *teachers.config();
        let ranges = dataset.training_ranges();
        let all: usize = ranges.iter().map(ExactSizeIterator::len).sum();
        let mut writer = Writer::new(place, all * vocab)?;
        let (mut buffer, mut starts, mut done) = (BatchBuffer::default(), Vec::new(), 0);
        let windows: Vec<Window> = ranges.iter().flat_map(|range| windows(range, block_size)).collect();
        for windows in windows.chunk_by(|one, next| one.tokens.len() == next.tokens.len()) {
            let time = windows[0].tokens.len();
            for windows in windows.chunks(pass_windows(time, vocab)) {
                if !progress(done, all) {
                    return Ok(None);
                }
                starts.clear();
                starts.extend(windows.iter().map(|window| window.tokens.start));
                let batch: Batch = buffer.fill(dataset, &starts, time);
                let logs = teachers.log_probabilities(batch);
                for (window, logs) in windows.iter().zip(logs.chunks_exact(time * vocab)) {
                    let first = window.kept.start - window.tokens.start;
                    writer.write(&logs[first * vocab..(first + window.kept.len()) * vocab])?;
                    done += window.kept.len();
                }
            }
        }
        progress(done, all);
        Ok(Some(Self { vocab, ranges, rows: writer.end()? }))
    }

    /// A table in memory, whose rows are all 0.
    pub(crate) fn zeros(dataset: &Dataset, vocab: usize) -> Self {
        let ranges = dataset.training_ranges();
        let tokens: usize = ranges.iter().map(ExactSizeIterator::len).sum();
        Self { vocab, ranges, rows: Rows::Memory(vec![0; tokens * vocab]) }
    }

    /// Approximate bytes of memory that computing takes besides the teachers' weights.
    pub(super) fn working_bytes(teachers: &ModelConfig) -> u64 {
        let ModelConfig { vocab_size, block_size, n_emb, .. } = *teachers;
        let tokens = pass_windows(block_size, vocab_size) * block_size;
        // Of the activations about 30 numbers per channel are kept for each token.
        16 * (tokens * vocab_size) as u64 + 4 * 30 * (tokens * n_emb) as u64
    }

    /// The size of the vocabulary.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// The tokens that have a row.
    pub fn ranges(&self) -> &[Range<usize>] {
        &self.ranges
    }

    /// All rows, if they are in memory.
    pub fn values(&self) -> Option<&[u16]> {
        match &self.rows {
            Rows::Memory(values) => Some(values),
            Rows::File(_) => None,
        }
    }

    /// All rows, mutable.
    pub(crate) fn values_mut(&mut self) -> Option<&mut [u16]> {
        match &mut self.rows {
            Rows::Memory(values) => Some(values),
            Rows::File(_) => None,
        }
    }

    /// Appends the rows of some tokens in a row to `out`.
    ///
    /// # Errors
    /// If they cannot be read from the disk.
    ///
    /// # Panics
    /// If one has no row.
    pub fn read(&self, tokens: Range<usize>, out: &mut Vec<u16>) -> io::Result<()> {
        let mut before = 0;
        let range = self.ranges.iter().find(|range| {
            let holds = range.start <= tokens.start && tokens.end <= range.end;
            before += if holds { 0 } else { range.len() };
            holds
        });
        let range = range.unwrap_or_else(|| panic!("tokens {tokens:?} are not training text"));
        let first = (before + tokens.start - range.start) * self.vocab;
        let count = tokens.len() * self.vocab;
        match &self.rows {
            Rows::Memory(values) => out.extend_from_slice(&values[first..first + count]),
            Rows::File(file) => {
                let start = out.len();
                out.resize(start + count, 0);
                let mut file = file.lock().expect("no holder panics");
                file.seek(SeekFrom::Start(2 * first as u64))?;
                file.read_exact(bytemuck::cast_slice_mut(&mut out[start..]))?;
            }
        }
        Ok(())
    }
}

/// Windows of a pass.
fn pass_windows(time: usize, vocab: usize) -> usize {
    (LOGITS / (time * vocab)).clamp(1, WINDOWS)
}

/// The windows over a range of tokens, for a context of `time` tokens. What they keep is the range, in order.
fn windows(range: &Range<usize>, time: usize) -> Vec<Window> {
    let stride = (time / 2).max(1);
    let mut windows = Vec::new();
    let mut kept = range.start;
    while kept < range.end {
        // The last window ends with the range.
        let start = if kept == range.start { kept } else { kept + stride - time };
        let start = start.min(range.end.saturating_sub(time)).max(range.start);
        let end = (start + time).min(range.end);
        windows.push(Window { tokens: start..end, kept: kept..end });
        kept = end;
    }
    windows
}

/// Writes rows one after another.
enum Writer<'a> {
    Memory(Vec<u16>),
    Disk { directory: &'a Path, file: BufWriter<File>, row: Vec<u16> },
}

impl<'a> Writer<'a> {
    /// For `count` numbers.
    fn new(place: TablePlace<'a>, count: usize) -> Result<Self> {
        match place {
            TablePlace::Memory => Ok(Self::Memory(Vec::with_capacity(count))),
            TablePlace::Disk(directory) => {
                let file = tempfile::tempfile_in(directory).map_err(unwritten(directory))?;
                Ok(Self::Disk { directory, file: BufWriter::new(file), row: Vec::new() })
            }
        }
    }

    /// Writes probabilities, given by their logarithms.
    fn write(&mut self, logs: &[f32]) -> Result<()> {
        let probabilities = logs.par_iter().with_min_len(1024).map(|log| f16::from_f32(log.exp()).to_bits());
        match self {
            Self::Memory(values) => values.par_extend(probabilities),
            Self::Disk { directory, file, row } => {
                probabilities.collect_into_vec(row);
                file.write_all(bytemuck::cast_slice(row)).map_err(unwritten(directory))?;
            }
        }
        Ok(())
    }

    fn end(self) -> Result<Rows> {
        Ok(match self {
            Self::Memory(values) => Rows::Memory(values),
            Self::Disk { directory, file, .. } => {
                let file = file.into_inner().map_err(|error| unwritten(directory)(error.into_error()))?;
                Rows::File(Mutex::new(file))
            }
        })
    }
}

fn unwritten(directory: &Path) -> impl FnOnce(io::Error) -> Error {
    Error::file("write the teachers' probabilities to a temporary file in", directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_has_half_a_context_before_it() {
        for time in 1..9 {
            for len in 0..40 {
                let range = 5..5 + len;
                let mut next = range.start;
                for Window { tokens, kept } in windows(&range, time) {
                    assert_eq!((kept.start, kept.end), (next, tokens.end), "{time}, {len}");
                    assert!(range.start <= tokens.start && tokens.end <= range.end, "{time}, {len}");
                    assert_eq!(tokens.len(), time.min(len), "{time}, {len}");
                    let before = kept.start - tokens.start;
                    assert!(kept.start < next + 1 && (before >= time / 2 || tokens.start == range.start));
                    next = kept.end;
                }
                assert_eq!(next, range.end, "{time}, {len}");
            }
        }
        let kept: Vec<_> =
            windows(&(0..11), 4).into_iter().map(|window| (window.tokens, window.kept)).collect();
        assert_eq!(kept, [(0..4, 0..4), (2..6, 4..6), (4..8, 6..8), (6..10, 8..10), (7..11, 10..11)]);
    }
}
