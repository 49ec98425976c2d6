//! The program `folio`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(folio_cli::main(std::env::args_os()))
}
