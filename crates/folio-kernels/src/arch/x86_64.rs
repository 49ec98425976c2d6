//! Intel and AMD, 64 bits.

pub(crate) mod amx;
pub(crate) mod avx2;
pub(crate) mod avx512;
