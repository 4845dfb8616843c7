//! The end-to-end program: the demo, the stories, and what runs of them inside the cluster.

#![forbid(unsafe_code)]
#![allow(
    clippy::large_futures,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a program of tests: it waits and measures, and absent members of JSON are null"
)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use graftwork_e2e::cluster::Cluster;
use graftwork_e2e::install::Installation;
use graftwork_e2e::{demo, load, seed, story};

#[derive(Parser)]
#[command(version, about, long_about = None)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Load on an endpoint, one JSON line for each request and a summary at the end.
    Load(load::Load),
    /// Copies folders into a volume.
    Seed(seed::Seed),
    /// Prints a folder's files as JSON.
    Export(seed::Export),
    /// Walks through the whole loop on a cluster and leaves it running.
    Demo {
        /// The cluster.
        #[arg(long, env = "KUBECONFIG")]
        kubeconfig: PathBuf,
        #[command(flatten)]
        installation: Installation,
        #[command(flatten)]
        demo: demo::Demo,
    },
    /// Proves the stories on a cluster.
    Stories {
        /// The cluster.
        #[arg(long, env = "KUBECONFIG")]
        kubeconfig: PathBuf,
        #[command(flatten)]
        installation: Installation,
        #[command(flatten)]
        stories: story::Stories,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    // The only error is that a provider is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match run(Arguments::parse().command).await {
        Ok(code) => code,
        Err(error) => {
            eprintln_error(&error);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "errors go to people")]
fn eprintln_error(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}

async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Load(load) => load.run().await?,
        Command::Seed(seed) => seed.run()?,
        Command::Export(export) => export.run()?,
        Command::Demo {
            kubeconfig,
            installation,
            demo,
        } => {
            demo.run(&Cluster::connect(kubeconfig).await?, &installation)
                .await?;
        }
        Command::Stories {
            kubeconfig,
            installation,
            stories,
        } => {
            let cluster = Cluster::connect(kubeconfig).await?;
            return stories.run(cluster, installation).await;
        }
    }
    Ok(ExitCode::SUCCESS)
}
