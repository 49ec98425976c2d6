//! Reads GGUF files of the types that folio writes.

use std::fs;
use std::ops::Range;
use std::path::Path;

use super::format::{
    ALIGNMENT, ARRAY, BOOL, F32, I32, MAGIC, TENSOR_TYPES, TEXT, TensorInfo, U32, VERSION, Value, aligned,
};
use crate::error::{Error, Result};
use crate::export::WeightType;
use crate::export::weight_type::BLOCK;

/// The most dimensions of a tensor (ggml's `GGML_MAX_DIMS`).
const MOST_DIMENSIONS: u32 = 4;

/// The content of a GGUF file.
#[derive(Clone, Debug)]
pub struct Gguf {
    metadata: Vec<(String, Value)>,
    tensors: Vec<TensorInfo>,
    bytes: Vec<u8>,
    /// Where the tensors begin in `bytes`.
    start: usize,
}

impl Gguf {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read; [`Error::Export`] if it is damaged, or has types that folio does not write.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(Error::file("read", path))?;
        Self::parse(bytes).map_err(|what| Error::Export { reason: format!("{} {what}", path.display()) })
    }

    /// Reads the content of a file. The error completes the sentence "the file ...".
    ///
    /// # Errors
    /// If it is damaged, or has types that folio does not write.
    pub fn parse(bytes: Vec<u8>) -> std::result::Result<Self, String> {
        let mut cursor = Cursor { bytes: &bytes, at: 0 };
        if cursor.take(4)? != MAGIC {
            return Err("is not a GGUF file".to_owned());
        }
        let version = cursor.u32()?;
        if !(2..=VERSION).contains(&version) {
            return Err(format!("has version {version} of GGUF; folio reads 2 and 3"));
        }
        let (tensor_count, value_count) = (cursor.u64()?, cursor.u64()?);
        let mut metadata: Vec<(String, Value)> = Vec::new();
        for _ in 0..value_count {
            let key = cursor.text()?;
            let value = cursor.value(&key)?;
            if key == "general.alignment" && value != Value::U32(ALIGNMENT as u32) {
                return Err(format!("has the alignment {value:?}; folio reads {ALIGNMENT}"));
            }
            metadata.push((key, value));
        }
        let mut tensors = Vec::new();
        for _ in 0..tensor_count {
            tensors.push(cursor.tensor()?);
        }
        let start = aligned(cursor.at as u64) as usize;
        let file = Self { metadata, tensors, bytes, start };
        match file.tensors.iter().find(|tensor| file.place(tensor).is_none()) {
            Some(tensor) => Err(format!("ends before its tensor {}", tensor.name.escape_debug())),
            None => Ok(file),
        }
    }

    /// The metadata, in the order of the file.
    pub fn metadata(&self) -> &[(String, Value)] {
        &self.metadata
    }

    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.iter().find(|(known, _)| known == key).map(|(_, value)| value)
    }

    /// The tensors, in the order of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The description of a tensor.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// The numbers of a tensor of this file, row by row, as f32.
    pub fn numbers(&self, tensor: &TensorInfo) -> Vec<f32> {
        let place = self.place(tensor).expect("checked when the file was read");
        tensor.weight_type.decode(&self.bytes[place])
    }

    /// Where a tensor is in the file, if it is inside it.
    fn place(&self, tensor: &TensorInfo) -> Option<Range<usize>> {
        let start = self.start.checked_add(usize::try_from(tensor.offset).ok()?)?;
        let end = start.checked_add(usize::try_from(tensor.bytes()).ok()?)?;
        (end <= self.bytes.len()).then_some(start..end)
    }
}

/// Reads values one after the other. Every length is checked against the rest of the file before it is used.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

type Read<T> = std::result::Result<T, String>;

impl<'a> Cursor<'a> {
    fn take(&mut self, count: u64) -> Read<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let taken = usize::try_from(count).ok().and_then(|count| rest.get(..count));
        let taken = taken.ok_or_else(|| format!("ends after {} bytes, inside its head", self.bytes.len()))?;
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        Ok(self.take(N as u64)?.try_into().expect("as many as asked for"))
    }

    fn u32(&mut self) -> Read<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Read<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Read<String> {
        let count = self.u64()?;
        let text = std::str::from_utf8(self.take(count)?).map_err(|_| "has a text that is not UTF-8")?;
        Ok(text.to_owned())
    }

    fn value(&mut self, key: &str) -> Read<Value> {
        let key = key.escape_debug();
        let unknown = |number: u32| format!("has the type {number} in {key}, which folio does not write");
        Ok(match self.u32()? {
            U32 => Value::U32(self.u32()?),
            I32 => Value::I32(i32::from_le_bytes(self.array()?)),
            F32 => Value::F32(f32::from_le_bytes(self.array()?)),
            BOOL => Value::Bool(self.take(1)? != [0]),
            TEXT => Value::Text(self.text()?),
            ARRAY => match (self.u32()?, self.u64()?) {
                (TEXT, count) => Value::Texts(self.list(count, Self::text)?),
                (I32, count) => {
                    Value::I32s(self.list(count, |cursor| cursor.array().map(i32::from_le_bytes))?)
                }
                (number, _) => return Err(unknown(number)),
            },
            number => return Err(unknown(number)),
        })
    }

    /// As many values as the file says; it ends before memory for a wrong number is allocated.
    fn list<T>(&mut self, count: u64, read: impl Fn(&mut Self) -> Read<T>) -> Read<Vec<T>> {
        let mut values = Vec::new();
        for _ in 0..count {
            values.push(read(self)?);
        }
        Ok(values)
    }

    fn tensor(&mut self) -> Read<TensorInfo> {
        let name = self.text()?;
        // A damaged name may have line breaks.
        let shown = name.escape_debug();
        let dimensions = self.u32()?;
        if dimensions == 0 || dimensions > MOST_DIMENSIONS {
            return Err(format!(
                "has {dimensions} dimensions in {shown}; 1 to {MOST_DIMENSIONS} are possible"
            ));
        }
        let mut shape = self.list(dimensions.into(), Self::u64)?;
        shape.reverse();
        let number = self.u32()?;
        let known = TENSOR_TYPES.iter().find(|(known, _)| *known == number);
        let (_, weight_type) =
            *known.ok_or_else(|| format!("has {shown} of the type {number}, which folio does not write"))?;
        let count = shape.iter().try_fold(1_u64, |count, &size| count.checked_mul(size));
        // Bytes are at most four times the count.
        let fits = count.is_some_and(|count| count < u64::MAX / 4);
        let has_part = !shape[shape.len() - 1].is_multiple_of(BLOCK as u64);
        if !fits || weight_type == WeightType::Q8_0 && has_part {
            return Err(format!("has {shown} of the shape {shape:?}, which {weight_type} cannot have"));
        }
        let offset = self.u64()?;
        if !offset.is_multiple_of(ALIGNMENT) {
            return Err(format!("has {shown} at {offset}, which is not a multiple of {ALIGNMENT}"));
        }
        Ok(TensorInfo { name, shape, weight_type, offset })
    }
}
