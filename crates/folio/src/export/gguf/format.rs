//! The container format of GGUF, version 3 (ggml's docs/gguf.md): a header, typed metadata, descriptions of the tensors, then
//! the tensors at multiples of the alignment. All numbers are little-endian.

use crate::export::WeightType;

/// The first four bytes of a file.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// The version that is written. Version 2 differs only in that it has no big-endian variant.
pub(super) const VERSION: u32 = 3;
/// The alignment of tensors where the metadata states none.
pub(super) const ALIGNMENT: u64 = 32;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An unsigned integer of 32 bits.
    U32(u32),
    /// A signed integer of 32 bits.
    I32(i32),
    /// A number of 32 bits.
    F32(f32),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(String),
    /// A list of texts.
    Texts(Vec<String>),
    /// A list of signed integers of 32 bits.
    I32s(Vec<i32>),
}

/// The numbers of the types in a file.
pub(super) const U32: u32 = 4;
pub(super) const I32: u32 = 5;
pub(super) const F32: u32 = 6;
pub(super) const BOOL: u32 = 7;
pub(super) const TEXT: u32 = 8;
pub(super) const ARRAY: u32 = 9;

/// The number of a type of tensors (ggml's `ggml_type`).
pub(super) const TENSOR_TYPES: [(u32, WeightType); 4] =
    [(0, WeightType::F32), (1, WeightType::F16), (8, WeightType::Q8_0), (30, WeightType::Bf16)];

/// The description of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its shape in row-major order; a file lists the dimensions the other way round.
    pub shape: Vec<u64>,
    /// The type of its numbers.
    pub weight_type: WeightType,
    /// Where it begins, from the beginning of all tensors, in bytes.
    pub offset: u64,
}

impl TensorInfo {
    /// Its length in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.weight_type.bytes(self.shape.iter().product())
    }
}

/// The next multiple of the alignment.
pub(super) fn aligned(offset: u64) -> u64 {
    offset.next_multiple_of(ALIGNMENT)
}

/// Everything before the tensors, with the padding.
pub(super) fn head(metadata: &[(&str, Value)], tensors: &[TensorInfo]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        push_text(&mut bytes, key);
        push_value(&mut bytes, value);
    }
    for tensor in tensors {
        push_text(&mut bytes, &tensor.name);
        bytes.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|size| bytes.extend(size.to_le_bytes()));
        let number = TENSOR_TYPES.iter().find(|(_, known)| *known == tensor.weight_type);
        bytes.extend(number.expect("every type is listed").0.to_le_bytes());
        bytes.extend(tensor.offset.to_le_bytes());
    }
    bytes.resize(aligned(bytes.len() as u64) as usize, 0);
    bytes
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// Appends the number of the type, then the value.
fn push_value(bytes: &mut Vec<u8>, value: &Value) {
    let mut push_array = |element: u32, count: usize| {
        bytes.extend(ARRAY.to_le_bytes());
        bytes.extend(element.to_le_bytes());
        bytes.extend((count as u64).to_le_bytes());
    };
    match value {
        Value::Texts(texts) => {
            push_array(TEXT, texts.len());
            texts.iter().for_each(|text| push_text(bytes, text));
        }
        Value::I32s(numbers) => {
            push_array(I32, numbers.len());
            numbers.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        }
        Value::U32(number) => bytes.extend([U32.to_le_bytes(), number.to_le_bytes()].as_flattened()),
        Value::I32(number) => bytes.extend([I32.to_le_bytes(), number.to_le_bytes()].as_flattened()),
        Value::F32(number) => bytes.extend([F32.to_le_bytes(), number.to_le_bytes()].as_flattened()),
        Value::Bool(flag) => {
            bytes.extend(BOOL.to_le_bytes());
            bytes.push(u8::from(*flag));
        }
        Value::Text(text) => {
            bytes.extend(TEXT.to_le_bytes());
            push_text(bytes, text);
        }
    }
}
