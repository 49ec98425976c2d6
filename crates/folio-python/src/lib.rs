//! The extension module of the Python package `folio`: training, runs, models and tokenizers as Python sees them.
//!
//! Modules and functions here take and return plain Python values. What users call is in `python/folio`, except
//! `Tokenizer`. Training, evaluation and generation release the GIL.

use pyo3::prelude::*;

mod errors;
mod events;
mod model;
mod runs;
mod tokenizer;
mod training;
mod values;

/// The compiled part of the package.
#[pymodule]
mod _folio {
    use std::ffi::OsString;

    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::errors::FolioError;
    #[pymodule_export]
    use crate::model::{Generation, Model};
    #[pymodule_export]
    use crate::runs::{
        checkpoints, evaluations, export, history, locate, settings, status, sub_runs, varying,
    };
    #[pymodule_export]
    use crate::tokenizer::Tokenizer;
    #[pymodule_export]
    use crate::training::{Training, arguments};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }

    /// Runs the command line and returns its exit code. `args` begins with the program's name.
    #[pyfunction]
    fn command(py: Python<'_>, args: Vec<OsString>) -> u8 {
        py.detach(|| folio_cli::main(args.into_iter()))
    }
}
