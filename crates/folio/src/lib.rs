//! Trains GPT-2 from scratch on one's own text, on the machine one has.
pub mod error;
pub mod rng;
pub mod files;
pub mod schedule;
pub mod model;
pub mod optim;
