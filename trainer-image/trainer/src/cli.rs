//! The command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use graftwork_artifacts::panics;

use crate::failure::{Failure, causes};
use crate::pretrain::{PretrainArgs, pretrain};
use crate::run::{RunArgs, run};
use crate::signals::StopFlag;

/// Trains LoRA adapters and small base models.
#[derive(Debug, Parser)]
#[command(name = "trainer", version, about, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "Examples:
  One attempt of a training run, as a Job starts it:
    trainer run
  The same on a machine without a cluster:
    trainer run --config config.json --store ./store --termination-file summary.json \\
      --listen 127.0.0.1:0
  A base model from text, resumable with the same command:
    trainer pretrain --text pretrain.jsonl --held-out held-out.jsonl \\
      --recipe recipe.json --work target/pretrain --out base-model

Exit codes: 0 done, 64 bad configuration, 65 bad data, 66 diverged, 69 store unavailable,
70 internal error, 75 stopped on request after a checkpoint, 76 a newer attempt has taken over.
Logging: RUST_LOG=info, RUST_LOG=trainer=debug.";

/// What the trainer can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run one attempt of a TrainingRun: train, score, publish to the store
    Run(RunArgs),
    /// Train a small base model from random weights, without a cluster
    Pretrain(PretrainArgs),
}

/// Runs the command line and returns the process's exit code.
pub fn main(cli: &Cli) -> ExitCode {
    let result = match &cli.command {
        Command::Run(args) => {
            tracing_subscriber::fmt()
                .json()
                .with_env_filter(filter())
                .init();
            panics::hide_messages();
            with_runtime(|stop| run(args, stop))
        }
        Command::Pretrain(args) => {
            tracing_subscriber::fmt()
                .with_env_filter(filter())
                .with_target(false)
                .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
                .with_writer(std::io::stderr)
                .init();
            with_runtime(|stop| on_pool(args.threads, || pretrain(args, stop)))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tracing::error!(code = failure.code.code(), "{failure}");
            failure.code.into()
        }
    }
}

fn filter() -> tracing_subscriber::EnvFilter {
    tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"))
}

/// Runs `work` beside a tokio runtime, with a flag that a signal sets.
fn with_runtime(work: impl FnOnce(&StopFlag) -> Result<(), Failure>) -> Result<(), Failure> {
    let bug = |error: &dyn std::error::Error| Failure::bug(causes(error));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| bug(&error))?;
    let stop = StopFlag::default();
    let _entered = runtime.enter();
    stop.listen().map_err(|error| bug(&error))?;
    let result = work(&stop);
    runtime.shutdown_background();
    result
}

/// Runs `work` on a pool of `threads` compute threads (0: as many as the process may use).
pub(crate) fn on_pool<T: Send>(
    threads: usize,
    work: impl FnOnce() -> Result<T, Failure> + Send,
) -> Result<T, Failure> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|error| Failure::bug(causes(&error)))?;
    pool.install(work)
}
