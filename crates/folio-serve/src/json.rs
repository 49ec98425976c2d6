//! Parses JSON bodies. Errors name the field and the values it accepts.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{self, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;

use crate::errors::{ApiError, ApiResult};

/// Parses a JSON object.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> ApiResult<T> {
    // serde would also accept a list for a struct.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(ApiError::malformed("the body must be a JSON object"));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        explain(&path, &error.into_inner())
    })?;
    json.end().map_err(|error| {
        let (line, column) = (error.line(), error.column());
        ApiError::malformed(format!("the body has text after its JSON, at line {line}, column {column}"))
    })?;
    Ok(value)
}

/// Rewords an error of the parser.
fn explain(path: &str, error: &serde_json::Error) -> ApiError {
    let place = format!("line {}, column {}", error.line(), error.column());
    let field: String = path.chars().take_while(|c| !matches!(c, '[' | '.')).collect();
    // A client can make the path as long as it likes.
    let path: String = path.chars().take(100).collect();
    match error.classify() {
        // The parser classifies this as a syntax error.
        Category::Syntax if error.to_string().starts_with("number out of range") && !field.is_empty() => {
            ApiError::field_at(&field, &path, "the number is too large")
        }
        Category::Eof => ApiError::malformed(format!("the body ends before its JSON does, at {place}")),
        Category::Syntax | Category::Io => {
            ApiError::malformed(format!("the body is not valid JSON, at {place}"))
        }
        Category::Data => {
            let message = error.to_string();
            // The parser appends the place in its own format.
            let end = format!(" at line {} column {}", error.line(), error.column());
            let message = message.strip_suffix(&end).unwrap_or(&message);
            if let Some(name) = message.strip_prefix("duplicate field `") {
                return ApiError::field(name.trim_end_matches('`'), "is given more than once");
            }
            if field.is_empty() {
                ApiError::malformed(message)
            } else {
                ApiError::field_at(&field, &path, message)
            }
        }
    }
}

/// A field of a request. `null` is the same as leaving the field out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field<T>(pub(crate) Option<T>);

impl<T> Default for Field<T> {
    fn default() -> Self {
        Self(None)
    }
}

/// A type that a field, or an element of a list, can be parsed into. By default values of every kind are rejected.
pub(crate) trait FromJson: Sized {
    /// Describes the accepted values in errors: "must be {EXPECTED}".
    const EXPECTED: &'static str;

    fn from_bool(_: bool) -> Option<Self> {
        None
    }

    fn from_integer(_: i128) -> Option<Self> {
        None
    }

    fn from_number(_: f64) -> Option<Self> {
        None
    }

    fn from_string(_: &str) -> Option<Self> {
        None
    }

    fn from_list<'de, A: SeqAccess<'de>>(_: A) -> Result<Self, A::Error> {
        Err(rejected::<Self, _>("a list"))
    }

    fn from_object<'de, A: MapAccess<'de>>(_: A) -> Result<Self, A::Error> {
        Err(rejected::<Self, _>("an object"))
    }
}

fn rejected<T: FromJson, E: de::Error>(given: impl fmt::Display) -> E {
    E::custom(format!("must be {}, not {given}", T::EXPECTED))
}

impl<'de, T: FromJson> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FieldVisitor(PhantomData))
    }
}

struct FieldVisitor<T>(PhantomData<T>);

impl<'de, T: FromJson> Visitor<'de> for FieldVisitor<T> {
    type Value = Field<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(T::EXPECTED)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Field<T>, E> {
        Ok(Field(None))
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Field<T>, E> {
        accept(T::from_bool(value), value)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Field<T>, E> {
        accept(T::from_integer(value.into()), value)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Field<T>, E> {
        accept(T::from_integer(value.into()), value)
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Field<T>, E> {
        // 16.0 is accepted as an integer. From 2^53 on, f64 does not represent every integer.
        let integer = (value.fract() == 0.0 && value.abs() < 2f64.powi(53)).then_some(value as i128);
        accept(integer.and_then(T::from_integer).or_else(|| T::from_number(value)), value)
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Field<T>, E> {
        let is_short = value.chars().nth(40).is_none();
        accept(T::from_string(value), if is_short { format!("{value:?}") } else { "this string".to_owned() })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Field<T>, A::Error> {
        T::from_list(list).map(|value| Field(Some(value)))
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<Field<T>, A::Error> {
        T::from_object(object).map(|value| Field(Some(value)))
    }
}

fn accept<T: FromJson, E: de::Error>(value: Option<T>, given: impl fmt::Display) -> Result<Field<T>, E> {
    value.map(|value| Field(Some(value))).ok_or_else(|| rejected::<T, E>(given))
}

/// The elements of a list, none of which is null.
pub(crate) fn elements<'de, T: FromJson, A: SeqAccess<'de>>(mut list: A) -> Result<Vec<T>, A::Error> {
    let mut all = Vec::new();
    while let Some(Field(element)) = list.next_element()? {
        all.push(element.ok_or_else(|| rejected::<T, A::Error>("null"))?);
    }
    Ok(all)
}

impl FromJson for String {
    const EXPECTED: &'static str = "a string";

    fn from_string(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
}

impl FromJson for bool {
    const EXPECTED: &'static str = "true or false";

    fn from_bool(value: bool) -> Option<Self> {
        Some(value)
    }
}

impl FromJson for u64 {
    const EXPECTED: &'static str = "a whole number, 0 or more";

    fn from_integer(value: i128) -> Option<Self> {
        value.try_into().ok()
    }
}

impl FromJson for f64 {
    const EXPECTED: &'static str = "a number";

    fn from_integer(value: i128) -> Option<Self> {
        Some(value as f64)
    }

    fn from_number(value: f64) -> Option<Self> {
        Some(value)
    }
}

/// A token. Whether it is in the vocabulary is checked with the model.
impl FromJson for u32 {
    const EXPECTED: &'static str = "a token, a whole number below 2^32";

    fn from_integer(value: i128) -> Option<Self> {
        value.try_into().ok()
    }
}

impl FromJson for Vec<u32> {
    const EXPECTED: &'static str = "a list of tokens";

    fn from_list<'de, A: SeqAccess<'de>>(list: A) -> Result<Self, A::Error> {
        elements(list)
    }
}

/// A string or a list of strings.
#[derive(Clone, Debug)]
pub(crate) struct Strings(pub(crate) Vec<String>);

impl FromJson for Strings {
    const EXPECTED: &'static str = "a string or a list of strings";

    fn from_string(text: &str) -> Option<Self> {
        Some(Self(vec![text.to_owned()]))
    }

    fn from_list<'de, A: SeqAccess<'de>>(list: A) -> Result<Self, A::Error> {
        elements(list).map(Self)
    }
}

/// A value of an unsupported field. Clients send `{}`, `[]` and the like when they do not use it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unsupported {
    pub(crate) is_empty: bool,
}

impl FromJson for Unsupported {
    const EXPECTED: &'static str = "any value";

    fn from_bool(value: bool) -> Option<Self> {
        Some(Self { is_empty: !value })
    }

    fn from_integer(value: i128) -> Option<Self> {
        Some(Self { is_empty: value == 0 })
    }

    fn from_number(value: f64) -> Option<Self> {
        Some(Self { is_empty: value == 0.0 })
    }

    fn from_string(text: &str) -> Option<Self> {
        Some(Self { is_empty: text.is_empty() })
    }

    fn from_list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Self, A::Error> {
        let mut is_empty = true;
        while list.next_element::<de::IgnoredAny>()?.is_some() {
            is_empty = false;
        }
        Ok(Self { is_empty })
    }

    fn from_object<'de, A: MapAccess<'de>>(mut object: A) -> Result<Self, A::Error> {
        let mut is_empty = true;
        while object.next_entry::<de::IgnoredAny, de::IgnoredAny>()?.is_some() {
            is_empty = false;
        }
        Ok(Self { is_empty })
    }
}
