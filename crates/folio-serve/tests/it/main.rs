//! The server, asked over real connections.

mod runs;
mod site;

mod abuse;
mod completions;
mod errors;
mod guarding;
mod load;
mod training;
