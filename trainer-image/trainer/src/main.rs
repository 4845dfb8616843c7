//! The trainer's binary; everything is in the library.

#![forbid(unsafe_code)]

use clap::Parser as _;

fn main() -> std::process::ExitCode {
    trainer::cli::main(&trainer::cli::Cli::parse())
}
