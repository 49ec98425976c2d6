//! ARM.

pub(crate) mod neon;
