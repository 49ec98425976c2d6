//! The program itself, run in directories of its own.

mod place;

mod commands;
mod continuing;
mod files;
mod flags;
mod mistakes;
mod seed;
mod sweep;
mod tokenizer;
