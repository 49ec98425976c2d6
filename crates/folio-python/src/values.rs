//! Python values as JSON, and back.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString};
use serde_json::{Map, Number, Value};

use crate::errors::raise;

/// Keyword arguments as JSON. A path becomes its text, and whatever can be iterated over becomes a list.
pub(crate) fn arguments(given: &Bound<'_, PyDict>) -> PyResult<Map<String, Value>> {
    let mut arguments = Map::new();
    for (name, value) in given {
        let name: String = name.extract()?;
        let value = to_json(&name, &value)?;
        arguments.insert(name, value);
    }
    Ok(arguments)
}

fn to_json(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Value> {
    if value.is_none() {
        return Ok(Value::Null);
    }
    // Python's or NumPy's.
    if let Ok(switch) = value.extract::<bool>() {
        return Ok(Value::Bool(switch));
    }
    if let Ok(text) = value.cast::<PyString>() {
        return Ok(Value::String(text.extract()?));
    }
    if value.hasattr("__fspath__")? {
        let text: String = value.call_method0("__fspath__")?.extract()?;
        return Ok(Value::String(text));
    }
    if let Ok(items) = value.try_iter() {
        return items.map(|item| to_json(name, &item?)).collect::<PyResult<_>>().map(Value::Array);
    }
    if let Ok(integer) = value.extract::<i64>() {
        return Ok(Value::from(integer));
    }
    match value.extract::<f64>() {
        Ok(number) => Number::from_f64(number)
            .map(Value::Number)
            .ok_or_else(|| raise(format!("{name}={number}: give a finite number"))),
        Err(_) => {
            let kind = value.get_type().name()?;
            Err(raise(format!(
                "{name}: a value of type {kind} is not a number, a text, a path or a list of these"
            )))
        }
    }
}

/// JSON as Python values.
pub(crate) fn to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        Value::Null => py.None().into_bound(py),
        Value::Bool(value) => value.into_pyobject(py)?.to_owned().into_any(),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => integer.into_pyobject(py)?.into_any(),
            (None, real) => real.into_pyobject(py)?.into_any(),
        },
        Value::String(text) => text.into_pyobject(py)?.into_any(),
        Value::Array(values) => {
            let items = values.iter().map(|value| to_python(py, value)).collect::<PyResult<Vec<_>>>()?;
            PyList::new(py, items)?.into_any()
        }
        Value::Object(fields) => {
            let dict = PyDict::new(py);
            for (name, value) in fields {
                dict.set_item(name, to_python(py, value)?)?;
            }
            dict.into_any()
        }
    })
}
