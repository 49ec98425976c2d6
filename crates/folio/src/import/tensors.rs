//! The tensors of a checkpoint's files, wherever they are. Sizes are checked against the files before anything is read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::pickle::Number;
use super::safetensors::SafetensorsFile;
use super::torch::TorchFile;
use super::wrong;
use crate::error::Result;

/// A tensor in a file.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) number: Number,
    pub(super) shape: Vec<usize>,
    /// In elements. Row-major and without gaps in a safetensors file.
    pub(super) strides: Vec<usize>,
    pub(super) place: Place,
}

/// Where a tensor's values begin.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// At this byte of the file.
    Byte(u64),
    /// At an element of an entry of the zip file.
    Entry { key: String, first: usize, len: usize },
}

impl Stored {
    /// The number of elements. It fits: the file has that many.
    pub(super) fn len(&self) -> usize {
        self.shape.iter().product()
    }
}

/// One file with tensors.
pub(super) enum Container {
    Safetensors(SafetensorsFile),
    Torch(Box<TorchFile>),
}

impl Container {
    /// Opens a file, recognized by its content.
    pub(super) fn open(path: &Path) -> Result<Self> {
        if TorchFile::is_zip(path)? {
            return Ok(Self::Torch(Box::new(TorchFile::open(path)?)));
        }
        let is_safetensors = path.extension().is_some_and(|extension| extension == "safetensors");
        if is_safetensors {
            return SafetensorsFile::open(path).map(Self::Safetensors);
        }
        let reason = "is neither a safetensors file nor a file of torch.save: give a directory that transformers saved, \
                      or a ckpt.pt of nanoGPT (files older than PyTorch 1.6 have to be loaded and saved again)";
        Err(wrong(path, reason))
    }
}

/// The tensors of one or several files, by name.
pub(super) struct Tensors {
    files: Vec<(PathBuf, Container)>,
    /// The length of all files.
    pub(super) bytes: u64,
    tensors: BTreeMap<String, (usize, Stored)>,
}

impl Tensors {
    /// No tensors.
    pub(super) fn new() -> Self {
        Self { files: Vec::new(), bytes: 0, tensors: BTreeMap::new() }
    }

    /// Adds a file with the tensors in it.
    pub(super) fn add(
        &mut self,
        path: &Path,
        container: Container,
        tensors: Vec<(String, Stored)>,
    ) -> Result<()> {
        let index = self.files.len();
        self.bytes += path.metadata().map_err(crate::error::Error::file("read", path))?.len();
        for (name, stored) in tensors {
            if let Some((other, _)) = self.tensors.insert(name.clone(), (index, stored))
                && other != index
            {
                let other = self.files[other].0.display();
                return Err(wrong(path, format!("has the tensor {}, as {other} does", plain(&name))));
            }
        }
        self.files.push((path.to_path_buf(), container));
        Ok(())
    }

    /// The file to name in messages: the only one, or the first.
    pub(super) fn path(&self) -> &Path {
        &self.files[0].0
    }

    /// The file that has a tensor.
    pub(super) fn path_of(&self, name: &str) -> &Path {
        &self.files[self.tensors[name].0].0
    }

    /// The names, in alphabetical order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(super) fn get(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(name).map(|(_, stored)| stored)
    }

    /// Gives every tensor the name that `rename` makes of it.
    ///
    /// # Errors
    /// If two get the same name.
    pub(super) fn rename(&mut self, rename: impl Fn(&str) -> String) -> Result<()> {
        for (name, tensor) in std::mem::take(&mut self.tensors) {
            let file = tensor.0;
            let new = rename(&name);
            if self.tensors.insert(new.clone(), tensor).is_some() {
                let reason = format!("has {new} twice, with different prefixes, once as {name}: remove one");
                return Err(wrong(&self.files[file].0, reason));
            }
        }
        Ok(())
    }

    /// The values of a tensor, row-major.
    ///
    /// # Errors
    /// If they cannot be read, are not floating-point numbers, or one is not finite.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub(super) fn read(&mut self, name: &str) -> Result<Vec<f32>> {
        let (index, stored) = &self.tensors[name];
        let (path, container) = &mut self.files[*index];
        let values = match (container, &stored.place) {
            (Container::Safetensors(file), Place::Byte(start)) => {
                let bytes = file.read(path, *start, stored.len() as u64 * stored.number.bytes())?;
                convert(stored.number, &bytes)
            }
            (Container::Torch(file), Place::Entry { key, first, len }) => {
                let bytes = file.entry(path, key, *len as u64 * stored.number.bytes())?;
                convert(stored.number, &bytes)
                    .map(|all| gather(&all[*first..], &stored.shape, &stored.strides))
            }
            _ => unreachable!("a place in a file of another kind"),
        };
        let Some(values) = values else {
            return Err(wrong(
                path,
                format!("has {name} as integers, but weights are floating-point numbers"),
            ));
        };
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(at) => {
                let reason = format!(
                    "has {} in {name}, at {:?}: the model cannot be used; take an earlier checkpoint",
                    values[at],
                    position(at, &stored.shape)
                );
                Err(wrong(path, reason))
            }
        }
    }
}

/// The values of little-endian numbers in single precision. None for integers.
fn convert(number: Number, bytes: &[u8]) -> Option<Vec<f32>> {
    Some(match number {
        Number::F64 => {
            let (numbers, _) = bytes.as_chunks::<8>();
            numbers.iter().map(|bytes| f64::from_le_bytes(*bytes) as f32).collect()
        }
        Number::F32 => {
            let (numbers, _) = bytes.as_chunks::<4>();
            numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        }
        Number::F16 => {
            let (numbers, _) = bytes.as_chunks::<2>();
            numbers.iter().map(|bytes| f16_to_f32(u16::from_le_bytes(*bytes))).collect()
        }
        Number::Bf16 => {
            let (numbers, _) = bytes.as_chunks::<2>();
            // The upper half of the same number in single precision.
            numbers.iter().map(|bytes| f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16)).collect()
        }
        Number::Other(_) => return None,
    })
}

/// A number of IEEE 754's binary16: a sign, 5 bits of exponent and 10 of fraction.
fn f16_to_f32(bits: u16) -> f32 {
    let sign = if bits >> 15 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f32::from(bits & 0x3ff));
    // All operations are exact in single precision.
    sign * match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1024.0 + fraction) * 2f32.powi(exponent - 25),
    }
}

/// The elements of a view of at most two dimensions, row-major. The last one is inside `all`.
fn gather(all: &[f32], shape: &[usize], strides: &[usize]) -> Vec<f32> {
    match (shape, strides) {
        ([rows, columns], [by_row, by_column]) => {
            let row = |row: usize| (0..*columns).map(move |column| all[row * by_row + column * by_column]);
            (0..*rows).flat_map(row).collect()
        }
        ([len], [stride]) => (0..*len).map(|index| all[index * stride]).collect(),
        _ => all[..1].to_vec(),
    }
}

/// The coordinates of an element.
fn position(mut at: usize, shape: &[usize]) -> Vec<usize> {
    let mut coordinates: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&size| {
            let coordinate = at % size;
            at /= size;
            coordinate
        })
        .collect();
    coordinates.reverse();
    coordinates
}

/// A name from a file as it can stand in a message of one line.
pub(super) fn plain(name: &str) -> String {
    const SHOWN_CHARS: usize = 120;
    name.chars().take(SHOWN_CHARS).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_precision_is_exact() {
        // IEEE 754-2008, section 3.6: the smallest subnormal and normal number, the largest, and numbers around 1.
        for (bits, want) in [
            (0x0001, 2f32.powi(-24)),
            (0x0400, 2f32.powi(-14)),
            (0x3c00, 1.0),
            (0x3c01, 1.0 + 2f32.powi(-10)),
            (0xc000, -2.0),
            (0x7bff, 65_504.0),
            (0x7c00, f32::INFINITY),
            (0xfc00, f32::NEG_INFINITY),
            (0x8000, -0.0),
        ] {
            assert_eq!(f16_to_f32(bits).to_bits(), want.to_bits(), "{bits:#06x}");
        }
        assert!(f16_to_f32(0x7c01).is_nan());
        // Positive numbers ascend with their bits.
        assert!((0..0x7c00).all(|bits| f16_to_f32(bits) < f16_to_f32(bits + 1)));
    }

    #[test]
    fn views_are_gathered_in_row_major_order() {
        let all: Vec<f32> = (0..6u8).map(f32::from).collect();
        assert_eq!(gather(&all, &[2, 3], &[3, 1]), all);
        assert_eq!(gather(&all, &[3, 2], &[1, 3]), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(gather(&all[1..], &[2], &[2]), [1.0, 3.0]);
        assert_eq!(position(5, &[2, 3]), [1, 2]);
    }
}
