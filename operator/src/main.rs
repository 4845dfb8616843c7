//! The operator's binary; everything is in the library.

#![forbid(unsafe_code)]

use clap::Parser as _;

fn main() -> std::process::ExitCode {
    graftwork_operator::cli::main(graftwork_operator::cli::Cli::parse())
}
