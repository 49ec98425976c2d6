//! Files of `torch.save`: a zip file of a pickle, `data.pkl`, and of one uncompressed entry per storage, `data/KEY`.
//!
//! The layout is described at <https://docs.pytorch.org/docs/stable/notes/serialization.html>.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use zip::{CompressionMethod, ZipArchive};

use super::pickle::{Node, Pickle, Tensor};
use super::tensors::{Place, Stored, plain};
use super::wrong;
use crate::error::{Error, Result};

/// Larger pickles are refused. That of GPT-2 XL with its optimizer takes less than 1 MB.
const MAX_PICKLE_BYTES: u64 = 16 << 20;
/// The length of a tensor's name. GPT-2's have at most 40 bytes.
const LONGEST_NAME: usize = 1024;

/// An open file.
pub(super) struct TorchFile {
    archive: ZipArchive<BufReader<File>>,
    /// The length of the file.
    bytes: u64,
    /// What stands before the name of every entry.
    prefix: String,
    pickle: Pickle,
}

impl TorchFile {
    /// Whether a file begins like a zip file.
    pub(super) fn is_zip(path: &Path) -> Result<bool> {
        let mut start = [0; 4];
        let mut file = File::open(path).map_err(Error::file("read", path))?;
        Ok(file.read_exact(&mut start).is_ok() && start == *b"PK\x03\x04")
    }

    /// Opens a file and reads its pickle.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let damaged = |what: String| wrong(path, format!("is damaged ({}): copy it again", plain(&what)));
        let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (bytes, file) = opened.map_err(Error::file("read", path))?;
        let archive = ZipArchive::new(BufReader::new(file)).map_err(|error| damaged(error.to_string()))?;
        let pickles =
            archive.file_names().filter_map(|name| name.ok()?.strip_suffix("data.pkl").map(str::to_owned));
        let mut prefixes: Vec<String> =
            pickles.filter(|prefix| prefix.is_empty() || prefix.ends_with('/')).collect();
        let (Some(prefix), None) = (prefixes.pop(), prefixes.pop()) else {
            return Err(wrong(
                path,
                "is a zip file, but not one of torch.save: it has no data.pkl, or several",
            ));
        };
        let empty = Pickle::read(b"N.").expect("None");
        let mut file = Self { archive, bytes, prefix, pickle: empty };
        if file.archive.index_for_name(&format!("{}byteorder", file.prefix)).is_some()
            && file.any_entry(path, "byteorder", None)? != b"little"
        {
            return Err(wrong(
                path,
                "was saved on a big-endian machine: load and save it again on another one",
            ));
        }
        let pickle = file.any_entry(path, "data.pkl", None)?;
        file.pickle = Pickle::read(&pickle).map_err(|reason| wrong(path, reason))?;
        Ok(file)
    }

    pub(super) fn pickle(&self) -> &Pickle {
        &self.pickle
    }

    /// The content of a storage, which must have `bytes` bytes.
    pub(super) fn entry(&mut self, path: &Path, key: &str, bytes: u64) -> Result<Vec<u8>> {
        self.any_entry(path, &format!("data/{key}"), Some(bytes))
    }

    /// The content of an entry. Its checksum is verified.
    fn any_entry(&mut self, path: &Path, name: &str, bytes: Option<u64>) -> Result<Vec<u8>> {
        let damaged =
            |what: &str| wrong(path, format!("is damaged ({} {}): copy it again", plain(name), plain(what)));
        let entry = self.archive.by_name(&format!("{}{name}", self.prefix));
        let mut entry = entry.map_err(|error| damaged(&error.to_string()))?;
        if entry.compression() != CompressionMethod::Stored {
            let reason =
                format!("has {} compressed, which torch.save does not do: save it again", plain(name));
            return Err(wrong(path, reason));
        }
        let size = entry.size();
        if size > self.bytes || bytes.is_some_and(|bytes| bytes != size) {
            return Err(damaged("has another length than its tensor"));
        }
        if bytes.is_none() && size > MAX_PICKLE_BYTES {
            let most = MAX_PICKLE_BYTES >> 20;
            return Err(wrong(
                path,
                format!("has {name} of more than {most} MiB, too large for a state dict"),
            ));
        }
        let mut content = Vec::with_capacity(size as usize);
        entry.read_to_end(&mut content).map_err(|error| damaged(&error.to_string()))?;
        if content.len() as u64 != size { Err(damaged("ends early")) } else { Ok(content) }
    }

    /// The tensors of the state dict: those under `model` in a checkpoint of nanoGPT, else all of them.
    pub(super) fn state_dict(&self, path: &Path) -> Result<Vec<(String, Stored)>> {
        let (pickle, root) = (&self.pickle, self.pickle.root());
        let state = pickle.get(root, "model").filter(|model| pickle.entries(model).is_some()).unwrap_or(root);
        let no_state_dict = || {
            wrong(
                path,
                "holds no state dict, a dictionary of tensors: save one with torch.save(model.state_dict(), FILE)",
            )
        };
        let entries = pickle.entries(state).ok_or_else(no_state_dict)?;
        let mut tensors = Vec::new();
        for (key, value) in entries {
            let (Node::Text(name), Node::Tensor(tensor)) = (pickle.node(*key), pickle.node(*value)) else {
                continue;
            };
            if name.len() > LONGEST_NAME {
                return Err(wrong(
                    path,
                    format!("has a tensor with a name of {} bytes: no GPT-2 has such names", name.len()),
                ));
            }
            let stored = self.stored(tensor).map_err(|what| {
                wrong(
                    path,
                    format!("has the tensor {}, which {what}: save it again with torch.save", plain(name)),
                )
            })?;
            tensors.push((name.clone(), stored));
        }
        if tensors.is_empty() { Err(no_state_dict()) } else { Ok(tensors) }
    }

    /// Checks a tensor against its storage, and the storage against the file.
    fn stored(&self, tensor: &Tensor) -> std::result::Result<Stored, &'static str> {
        let outside = "is larger than its storage";
        let size = |size: &u64| usize::try_from(*size).map_err(|_| outside);
        let storage = &tensor.storage;
        if storage.len.checked_mul(storage.number.bytes()).is_none_or(|bytes| bytes > self.bytes) {
            return Err("is larger than the file");
        }
        let elements =
            tensor.shape.iter().try_fold(1, |all: u64, size| all.checked_mul(*size)).ok_or(outside)?;
        let last = tensor.shape.iter().zip(&tensor.strides).try_fold(tensor.offset, |at, (size, stride)| {
            at.checked_add(size.saturating_sub(1).checked_mul(*stride)?)
        });
        // A view that repeats elements could be larger than its storage.
        if elements > storage.len || last.is_none_or(|last| elements > 0 && last >= storage.len) {
            return Err(outside);
        }
        Ok(Stored {
            number: storage.number,
            shape: tensor.shape.iter().map(size).collect::<std::result::Result<_, _>>()?,
            strides: tensor
                .strides
                .iter()
                .map(|stride| (*stride).min(storage.len))
                .map(|stride| stride as usize)
                .collect(),
            place: Place::Entry {
                key: storage.key.clone(),
                first: tensor.offset.min(storage.len) as usize,
                len: size(&storage.len)?,
            },
        })
    }
}
