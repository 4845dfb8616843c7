//! The engine's binary: see the library.

#![forbid(unsafe_code)]

use clap::Parser as _;

fn main() -> anyhow::Result<()> {
    engine::run::run(engine::options::Options::parse())
}
