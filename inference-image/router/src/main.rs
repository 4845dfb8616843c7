//! The router's process: starts it and drains it on SIGTERM.

#![forbid(unsafe_code)]

use clap::Parser as _;
use graftwork_contract::pod::TERMINATION_BYTES;
use graftwork_listen::last_words;
use router::server;
use router::settings::Settings;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    run(&settings).await.inspect_err(|error| {
        last_words::leave(
            &settings.termination_file,
            &format!("{error:#}"),
            TERMINATION_BYTES,
        );
    })
}

async fn run(settings: &Settings) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .json()
        .with_env_filter(filter)
        .init();

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let running = server::start(settings).await?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    running
        .drain(settings.drain_delay, settings.drain_limit)
        .await
}
