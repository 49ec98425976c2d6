//! The program itself, run in directories of its own.

mod commands;
mod continuing;
mod files;
mod flags;
mod mistakes;
mod place;
mod seed;
mod stopping;
mod sweep;
mod tokenizer;
