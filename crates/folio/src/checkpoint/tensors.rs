//! Arrays with one value per parameter in safetensors files.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, View};

use crate::error::{Error, Result};
use crate::model::ParameterSpec;

/// A tensor that is written without a copy.
struct Tensor<'a> {
    shape: &'a [usize],
    values: &'a [f32],
}

impl View for Tensor<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if cfg!(target_endian = "little") {
            return bytemuck::cast_slice(self.values).into();
        }
        self.values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn data_len(&self) -> usize {
        size_of_val(self.values)
    }
}

/// Writes arrays to a new file, each with its prefix for the tensor names.
pub(super) fn write(path: &Path, arrays: &[(&str, &[f32])], specs: &[ParameterSpec]) -> Result<()> {
    let tensors = arrays.iter().flat_map(|(prefix, values)| {
        specs.iter().map(move |spec| {
            let tensor = Tensor { shape: &spec.shape, values: &values[spec.range.clone()] };
            (format!("{prefix}{}", spec.name), tensor)
        })
    });
    serialize(path, tensors)
}

/// Writes tensors to a new file in the format that transformers reads.
pub(crate) fn serialize<N, V>(path: &Path, tensors: impl IntoIterator<Item = (N, V)>) -> Result<()>
where
    N: AsRef<str> + Ord + fmt::Display,
    V: View,
{
    // transformers requires this metadata entry.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(tensors, Some(metadata), path).map_err(|error| {
        let source = match error {
            SafeTensorError::IoError(error) => error,
            other => io::Error::other(other),
        };
        Error::file("write", path)(source)
    })
}

/// Reads arrays from the content of the file `path`, each with its prefix of the tensor names.
pub(super) fn read(
    path: &Path,
    bytes: &[u8],
    specs: &[ParameterSpec],
    arrays: &mut [(&str, &mut [f32])],
) -> Result<()> {
    let wrong = |reason: String| Error::Checkpoint { path: path.to_path_buf(), reason };
    let tensors = SafeTensors::deserialize(bytes)
        .map_err(|error| wrong(format!("is damaged ({error}): take another checkpoint of the run")))?;
    for (prefix, values) in arrays {
        for spec in specs {
            let name = format!("{prefix}{}", spec.name);
            let tensor = tensors
                .tensor(&name)
                .map_err(|_| wrong(format!("has no tensor {name}: it belongs to another model")))?;
            if tensor.dtype() != Dtype::F32 || tensor.shape() != spec.shape {
                let (kind, shape, want) = (tensor.dtype(), tensor.shape(), &spec.shape);
                return Err(wrong(format!(
                    "has {name} as {kind:?} {shape:?}, but the model has F32 {want:?}: it belongs to another model"
                )));
            }
            for (value, bytes) in values[spec.range.clone()].iter_mut().zip(tensor.data().chunks_exact(4)) {
                *value = f32::from_le_bytes(bytes.try_into().expect("four bytes"));
            }
        }
    }
    Ok(())
}
