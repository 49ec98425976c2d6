//! Tests of the `folio` binary. Each test runs it in its own temporary directory.

mod place;
mod running;

mod browser;
mod choosing;
mod combining;
mod commands;
mod continuing;
mod dashboard;
mod distilling;
mod export;
mod files;
mod flags;
mod help;
mod importing;
mod keeping;
mod mistakes;
mod output;
#[cfg(unix)]
mod ranks;
mod report;
mod searching;
mod seed;
mod serving;
mod showing;
mod stopping;
mod sweep;
mod texts;
mod tokenizer;
mod traps;
mod trouble;
