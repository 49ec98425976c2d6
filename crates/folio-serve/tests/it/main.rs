//! Tests of the server over real connections.

mod runs;
mod site;

mod abuse;
mod chat;
mod completions;
mod connections;
mod errors;
mod guarding;
mod load;
mod tokenizing;
mod training;
