//! The library against PyTorch, and against itself.

mod golden;
mod resume;
mod split;
