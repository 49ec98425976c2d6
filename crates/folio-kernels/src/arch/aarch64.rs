//! ARM, 64 bits.

pub(crate) mod neon;
