//! The keeper's binary; everything is in the library.

#![forbid(unsafe_code)]

use clap::Parser as _;

fn main() -> std::process::ExitCode {
    keeper::cli::main(keeper::cli::Cli::parse())
}
