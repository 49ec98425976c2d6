//! What can go wrong between a launcher and its ranks.

/// An error of MPI. Each is one line that names the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A launcher started several ranks, but no MPI library was found.
    #[error(
        "{launcher} started {ranks} ranks, but no MPI library was found ({tried}): add its directory to LD_LIBRARY_PATH, or name \
         the library in FOLIO_MPI"
    )]
    NoLibrary {
        /// The launcher.
        launcher: &'static str,
        /// The ranks that it started.
        ranks: usize,
        /// What was tried, with reasons.
        tried: String,
    },
    /// The library is not one that folio knows.
    #[error("{library}: {reason}; name another library in FOLIO_MPI")]
    Unknown {
        /// The library.
        library: String,
        /// What is wrong.
        reason: String,
    },
    /// The library sees another number of ranks than the launcher started, usually each rank alone.
    #[error(
        "{launcher} started {ranks} ranks, but {library} sees {found}: it belongs to another MPI than {launcher}; name the right \
         library in FOLIO_MPI"
    )]
    OtherWorld {
        /// The launcher.
        launcher: &'static str,
        /// The ranks that it started.
        ranks: usize,
        /// The library.
        library: String,
        /// The ranks that the library sees.
        found: usize,
    },
    /// A call failed.
    #[error("{call} of {library} failed: {reason}")]
    Call {
        /// The function.
        call: &'static str,
        /// The library.
        library: String,
        /// The library's text.
        reason: String,
    },
}

/// A result with an [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
