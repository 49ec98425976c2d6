//! The library against PyTorch, and against itself.

mod adamw;
mod damage;
mod faults;
mod foreign;
mod fuzz;
mod generation;
mod golden;
mod precision;
mod resume;
mod split;
mod tokenizer;
