//! Safetensors files: a header in JSON, and the values of the tensors one after the other.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata};
use serde_json::Value;

use super::pickle::Number;
use super::tensors::{Place, Stored, Tensors, plain};
use super::{read_json, wrong};
use crate::error::{Error, Result};

/// Larger headers are refused, as in the library.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// More files than any published model has.
const MAX_SHARDS: usize = 1000;

/// An open file.
pub(super) struct SafetensorsFile {
    file: File,
    header: Metadata,
    /// Where the values begin.
    start: u64,
}

impl SafetensorsFile {
    /// Opens a file, and checks its header against its length.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let unreadable = Error::file("read", path);
        let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (bytes, mut file) = opened.map_err(unreadable)?;
        let damaged = |what: String| wrong(path, format!("is damaged ({what}): download it again"));
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(|_| damaged("it has no header".to_owned()))?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER_BYTES || length > bytes - 8 {
            return Err(damaged("its header is longer than the file".to_owned()));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(Error::file("read", path))?;
        let header: Metadata =
            serde_json::from_slice(&header).map_err(|error| damaged(plain(&error.to_string())))?;
        let start = 8 + length;
        let end = header.tensors().values().map(|info| info.data_offsets.1 as u64).max().unwrap_or(0);
        if start.checked_add(end) != Some(bytes) {
            return Err(damaged(format!(
                "it has {bytes} bytes, its header says {}",
                start.saturating_add(end)
            )));
        }
        Ok(Self { file, header, start })
    }

    /// The tensors by name.
    pub(super) fn tensors(&self) -> Vec<(String, Stored)> {
        let stored = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
            let number = match info.dtype {
                Dtype::F64 => Number::F64,
                Dtype::F32 => Number::F32,
                Dtype::F16 => Number::F16,
                Dtype::BF16 => Number::Bf16,
                other => Number::Other(other.bitsize().div_ceil(8) as u64),
            };
            let place = Place::Byte(self.start + info.data_offsets.0 as u64);
            (name, Stored { number, shape: info.shape.clone(), strides: Vec::new(), place })
        };
        self.header.tensors().into_iter().map(stored).collect()
    }

    /// Some bytes of the file, which has them.
    pub(super) fn read(&mut self, path: &Path, start: u64, count: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; count as usize];
        let read = self.file.seek(SeekFrom::Start(start)).and_then(|_| self.file.read_exact(&mut bytes));
        read.map(|()| bytes).map_err(Error::file("read", path))
    }
}

/// The files that an index such as `model.safetensors.index.json` names.
///
/// # Errors
/// If one is missing, or its name is not that of a file beside the index.
pub(super) fn shards(index: &Path) -> Result<Vec<PathBuf>> {
    let json = read_json(index)?;
    let Some(map) = json["weight_map"].as_object().filter(|map| !map.is_empty()) else {
        return Err(wrong(index, "has no object 'weight_map', which maps tensors to files"));
    };
    let mut names: Vec<&str> = map.values().filter_map(Value::as_str).collect();
    names.sort_unstable();
    names.dedup();
    if names.len() > MAX_SHARDS {
        return Err(wrong(index, format!("names {} files, more than {MAX_SHARDS}", names.len())));
    }
    let shard = |name: &str| {
        let is_plain =
            !name.contains(['/', '\\', ':']) && !name.contains(char::is_control) && !name.starts_with('.');
        if !is_plain || name.is_empty() {
            return Err(wrong(index, format!("names {:?}, which is not a file beside it", plain(name))));
        }
        let path = index.with_file_name(name);
        if path.is_file() {
            return Ok(path);
        }
        let index = index.file_name().unwrap_or_default().display();
        Err(wrong(&path, format!("is missing: {index} names it; download it as well")))
    };
    names.into_iter().map(shard).collect()
}

/// Checks that the files of an index have the tensors that it promises.
pub(super) fn check_complete(index: &Path, tensors: &Tensors) -> Result<()> {
    let json = read_json(index)?;
    let promised = json["weight_map"].as_object().into_iter().flatten();
    for (name, file) in promised {
        if tensors.get(name).is_none() {
            let path = index.with_file_name(file.as_str().unwrap_or_default());
            let index = index.file_name().unwrap_or_default().display();
            return Err(wrong(&path, format!("lacks the tensor {}, which {index} promises", plain(name))));
        }
    }
    Ok(())
}
