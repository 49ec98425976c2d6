//! The library against PyTorch, and against itself.

mod adamw;
mod averaging;
mod damage;
mod early_stopping;
mod ensemble;
mod export;
mod faults;
mod foreign;
mod frozen;
mod fuzz;
mod generation;
mod golden;
mod import;
mod objective;
mod precision;
mod ranks;
mod resume;
mod split;
mod support;
mod tokenizer;
