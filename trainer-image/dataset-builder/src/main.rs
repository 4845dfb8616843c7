//! The dataset builder's binary; everything is in the library.

#![forbid(unsafe_code)]

use clap::Parser as _;

fn main() -> std::process::ExitCode {
    dataset_builder::cli::main(&dataset_builder::cli::Cli::parse())
}
