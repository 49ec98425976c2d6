//! Reads the records of runs (`metrics.jsonl`) from any line on.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::sync::{Mutex, PoisonError};

use folio::records::records_path;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::catalog::Run;

/// The maximum number of lines in a response. The client requests the rest.
const MAX_LINES: usize = 5_000;
/// The maximum bytes of these lines.
const MAX_BYTES: usize = 4 << 20;
/// The maximum bytes that are read to find the first line.
pub(crate) const HEAD_BYTES: u64 = 1 << 16;

/// Consecutive records of a run.
#[derive(Serialize)]
pub(crate) struct Records {
    records: Vec<Box<RawValue>>,
    /// The number of lines up to the end of these records.
    next: u64,
    /// Whether the file has more lines.
    more: bool,
    /// Changes when the file is replaced.
    generation: String,
}

/// Remembers where lines begin, so that a page that polls every second only makes the server read new lines.
#[derive(Default)]
pub(crate) struct RecordFiles {
    indices: Mutex<HashMap<String, LineIndex>>,
}

#[derive(Clone, Default)]
struct LineIndex {
    generation: String,
    /// Lines indexed so far.
    lines: u64,
    /// The offset of the first line after these.
    end: u64,
    /// The offset of every [`STRIDE`]th line.
    offsets: Vec<u64>,
}

/// One line in this many has its offset stored.
const STRIDE: u64 = 1024;

impl RecordFiles {
    /// The records of a run after the first `after` lines.
    pub(crate) fn read(&self, run: &Run, after: u64) -> io::Result<Records> {
        let file = match File::open(records_path(&run.directory)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let generation = "none".to_owned();
                return Ok(Records { records: Vec::new(), next: 0, more: false, generation });
            }
            Err(error) => return Err(error),
        };
        let mut reader = BufReader::new(file);
        let generation = generation(&mut reader)?;
        let lock = || self.indices.lock().unwrap_or_else(PoisonError::into_inner);
        let index = lock().get(&run.id).filter(|index| index.generation == generation).cloned();
        let mut index = index.unwrap_or_else(|| LineIndex { generation, ..LineIndex::default() });
        index.update(&mut reader)?;
        let records = index.lines_after(&mut reader, after)?;
        lock().insert(run.id.clone(), index);
        Ok(records)
    }
}

impl LineIndex {
    /// Indexes the lines that were appended since the last call.
    fn update(&mut self, reader: &mut BufReader<File>) -> io::Result<()> {
        reader.seek(SeekFrom::Start(self.end))?;
        let mut line = Vec::new();
        loop {
            line.clear();
            let length = reader.read_until(b'\n', &mut line)?;
            if !line.ends_with(b"\n") {
                // The last line is still being written.
                return Ok(());
            }
            if self.lines.is_multiple_of(STRIDE) {
                self.offsets.push(self.end);
            }
            self.lines += 1;
            self.end += length as u64;
        }
    }

    fn lines_after(&self, reader: &mut BufReader<File>, after: u64) -> io::Result<Records> {
        let generation = self.generation.clone();
        let mut next = after.min(self.lines);
        let mut records = Vec::new();
        let Some(&offset) = self.offsets.get((next / STRIDE) as usize) else {
            return Ok(Records { records, next, more: false, generation });
        };
        reader.seek(SeekFrom::Start(offset))?;
        let mut line = Vec::new();
        for _ in 0..next % STRIDE {
            line.clear();
            reader.read_until(b'\n', &mut line)?;
        }
        let mut bytes = 0;
        while next < self.lines && records.len() < MAX_LINES && bytes < MAX_BYTES {
            line.clear();
            bytes += reader.read_until(b'\n', &mut line)?;
            next += 1;
            // Invalid lines are counted, so that line numbers stay correct, but not returned.
            if let Ok(record) = serde_json::from_slice(&line) {
                records.push(record);
            }
        }
        Ok(Records { records, next, more: next < self.lines, generation })
    }
}

/// A hash of the file's identity and its first line, which has the start time of the run. Changes when the file is
/// replaced.
fn generation(reader: &mut BufReader<File>) -> io::Result<String> {
    let metadata = reader.get_ref().metadata()?;
    let mut hasher = DefaultHasher::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        (metadata.dev(), metadata.ino()).hash(&mut hasher);
    }
    metadata.created().ok().hash(&mut hasher);
    let mut first = Vec::new();
    reader.by_ref().take(HEAD_BYTES).read_until(b'\n', &mut first)?;
    if first.ends_with(b"\n") {
        first.hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}
