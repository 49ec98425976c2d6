//! The library against PyTorch, and against itself.

mod adamw;
mod averaging;
mod damage;
mod distilling;
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
mod muon;
mod objective;
mod precision;
mod ranks;
mod resume;
mod schedules;
mod sharded;
mod split;
mod support;
mod sweep_ranks;
mod tokenizer;
