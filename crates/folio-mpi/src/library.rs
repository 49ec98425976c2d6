//! Finds and opens the MPI library.

use std::env;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::error::{Error, Result};
use crate::launcher::Launched;

/// Names the library, and overrides the search.
pub(crate) const VARIABLE: &str = "FOLIO_MPI";

const OPEN_MPI: &str = "libmpi.so.40";
const MPICH: [&str; 2] = ["libmpi.so.12", "libmpich.so.12"];
const MPI_5: &str = "libmpi_abi.so.1";

/// Opens the library that belongs to the launcher. Returns it with its name.
pub(crate) fn open(launched: Launched) -> Result<(Library, String)> {
    let candidates = match env::var(VARIABLE) {
        Ok(path) if !path.is_empty() => vec![path],
        _ => names(launched.launcher).map(str::to_owned).to_vec(),
    };
    let mut tried = Vec::new();
    for name in candidates {
        // Open MPI's plugins need the symbols of the library that opened them.
        // SAFETY: opening an MPI library runs its initializers, which do nothing that Rust would not expect.
        match unsafe { Library::open(Some(&name), RTLD_NOW | RTLD_GLOBAL) } {
            Ok(library) => return Ok((library, name)),
            Err(error) => {
                let reason =
                    std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
                tried.push(format!("{name}: {reason}"));
            }
        }
    }
    let Launched { launcher, ranks, .. } = launched;
    Err(Error::NoLibrary { launcher, ranks, tried: tried.join("; ") })
}

/// The libraries to try. srun works with each of them.
fn names(launcher: &str) -> [&'static str; 4] {
    let [mpich, debian_mpich] = MPICH;
    if launcher.contains("MPICH") || launcher.contains("MVAPICH") {
        [mpich, debian_mpich, MPI_5, OPEN_MPI]
    } else {
        [OPEN_MPI, MPI_5, mpich, debian_mpich]
    }
}
