//! [`Communicator`] over the MPI library of the cluster.
//!
//! The library is opened at run time, when a launcher such as `mpirun` or `srun` started the process. So one binary works with
//! every MPI, needs none to be built, and trains alone without one. Three binary interfaces cover what clusters have:
//!
//! | interface | libraries |
//! |---|---|
//! | Open MPI | `libmpi.so.40` of Open MPI 3 to 5 |
//! | MPICH | `libmpi.so.12`, `libmpich.so.12` of MPICH 3 and 4, Intel MPI, MVAPICH |
//! | MPI 5 | `libmpi_abi.so.1`, the standard's own ([MPI 5.0](https://www.mpi-forum.org/docs/), chapter 20) |
//!
//! MPI only moves bytes here. Sums are computed by folio, in the binary tree that [`Communicator`] promises: the order of the
//! additions in `MPI_Allreduce` depends on the library and on the number of ranks.
//!
//! On systems other than Unix the crate is empty.
//!
//! - launcher.rs: whether a launcher started this process, and how many ranks there are
//! - library.rs: finds and opens the library
//! - interface.rs: the binary interfaces
//! - exchange.rs: sums that run while the caller computes
//! - ranks.rs: the communicator

#![cfg(unix)]

mod error;
mod exchange;
mod interface;
mod launcher;
mod library;
mod ranks;

pub use error::{Error, Result};
pub use folio::distributed::Communicator;
pub use launcher::Launched;
pub use ranks::MpiRanks;
