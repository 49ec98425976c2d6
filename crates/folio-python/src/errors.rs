//! Errors as Python exceptions.

use pyo3::create_exception;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

create_exception!(
    folio,
    FolioError,
    PyValueError,
    "What folio cannot do, in one line: what is wrong, with the value, and how to fix it."
);

/// An error as an exception.
pub(crate) fn raise(error: impl ToString) -> PyErr {
    FolioError::new_err(error.to_string())
}
