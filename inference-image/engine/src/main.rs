//! The engine's binary: see the library.

use clap::Parser as _;

fn main() -> anyhow::Result<()> {
    engine::run::run(engine::options::Options::parse())
}
