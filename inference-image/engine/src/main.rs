//! The engine's binary: see the library.

#![forbid(unsafe_code)]

use clap::Parser as _;
use graftwork_contract::pod::TERMINATION_BYTES;
use graftwork_listen::last_words;

fn main() -> anyhow::Result<()> {
    let options = engine::options::Options::parse();
    let file = options.termination_file.clone();
    engine::run::run(options)
        .inspect_err(|error| last_words::leave(&file, &format!("{error:#}"), TERMINATION_BYTES))
}
