//! The keeper's binary; everything is in the library.

use clap::Parser as _;

fn main() -> std::process::ExitCode {
    keeper::cli::main(keeper::cli::Cli::parse())
}
