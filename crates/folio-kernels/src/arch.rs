//! The micro-kernels and other code for one instruction set: a folder per architecture, a file per instruction set.

pub(crate) mod generic;

#[cfg(target_arch = "aarch64")]
pub(crate) mod aarch64;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;
