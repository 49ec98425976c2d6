//! The library against PyTorch, and against itself.

mod golden;
mod precision;
mod resume;
mod split;
mod tokenizer;
