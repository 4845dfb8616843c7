//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use graftwork_artifacts::Store;
use graftwork_contract::pod;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::{self, Gatekeeper};
use crate::folders::Claims;
use crate::server::{self, Keeper};

/// Keeps a namespace's artifact store.
#[derive(Debug, Parser)]
#[command(name = "keeper", version, about, after_help = EXAMPLES)]
pub struct Cli {
    /// The mounted configuration
    #[arg(long, default_value = pod::CONFIG_FILE)]
    config: PathBuf,
    /// The namespace's folder of the store; a folder for what is on its way where the store is in a bucket
    #[arg(long, default_value = pod::STORE_DIR)]
    store: PathBuf,
    /// Where claims are mounted, each under its name
    #[arg(long, default_value = pod::CLAIMS_DIR)]
    claims: PathBuf,
    /// Address of the gRPC server
    #[arg(long, default_value_t = SocketAddr::from(([0, 0, 0, 0], pod::GRPC_PORT)))]
    listen: SocketAddr,
    /// This pod's UID: calls are signed for it
    #[arg(long, env = pod::ENV_POD_UID)]
    pod_uid: String,
}

const EXAMPLES: &str = "Examples:
  In a pod, with everything mounted:
    keeper
  From a shell:
    keeper --config keeper.json --store ./store --claims ./claims --listen 127.0.0.1:9090 --pod-uid test

Logging: RUST_LOG=info.";

/// Runs until SIGTERM or Ctrl-C.
pub fn main(cli: Cli) -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    match with_runtime(run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "ended");
            ExitCode::FAILURE
        }
    }
}

/// Runs `work` on a runtime that does not wait for a base model that is still being hashed.
fn with_runtime(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let bucket = config::read(&cli.config)?.store;
    let store = Store::open_at(bucket.as_ref(), &cli.store)
        .with_context(|| cli.store.display().to_string())?;
    let gatekeeper = Gatekeeper::open(&cli.config, cli.pod_uid)?;
    let listener = TcpListener::bind(cli.listen)
        .await
        .with_context(|| cli.listen.to_string())?;
    tracing::info!(address = %listener.local_addr()?, store = %cli.store.display(), "serving");
    let following = tokio::spawn(gatekeeper.clone().follow());
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        stopping.cancel();
    });
    server::serve(
        listener,
        Keeper::new(store, Claims::new(cli.claims), gatekeeper),
        stop,
    )
    .await?;
    following.abort();
    Ok(())
}
