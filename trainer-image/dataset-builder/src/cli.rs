//! The command line.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use graftwork_artifacts::panics;
use graftwork_contract::{exit, pod};

use crate::build::{Places, build};
use crate::config;
use crate::dealing::Part;
use crate::detect::detect;
use crate::failure::Failure;
use crate::parts::build_part;
use crate::spill::{Scratch, check_room_for_query, default_memory_bytes};
use crate::termination::{self, part_made, succeeded};

const EXAMPLES: &str = "Examples:
  One build, as a Job starts it:
    dataset-builder
  The same on a machine without a cluster:
    dataset-builder --config config.json --store ./store --termination-file summary.json
  Where personal data stands in texts:
    dataset-builder detect < texts.jsonl

Exit codes: 0 done, 64 bad configuration, 65 bad data, 69 store unavailable, 70 internal error.
Logging: RUST_LOG=info, RUST_LOG=dataset_builder=debug.";

/// Builds one version of a Dataset from its sources into the artifact store.
#[derive(Debug, Parser)]
#[command(name = "dataset-builder", version, about, after_help = EXAMPLES)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// The build's configuration
    #[arg(long, value_name = "FILE", default_value = pod::CONFIG_FILE)]
    pub config: PathBuf,
    /// The namespace's folder of the artifact store; a folder for what is on its way where the store is in a bucket
    #[arg(long, value_name = "FOLDER", default_value = pod::STORE_DIR)]
    pub store: PathBuf,
    /// Where the summary of the build goes, as JSON
    #[arg(long, value_name = "FILE", default_value = pod::TERMINATION_FILE)]
    pub termination_file: PathBuf,
    /// The key of pseudonyms, where the configuration asks for them
    #[arg(long, value_name = "FILE", default_value = pod::PSEUDONYM_KEY_FILE)]
    pub pseudonym_key: PathBuf,
    /// Where rows go that don't fit in memory; files there have no name, and go with the process
    #[arg(long, value_name = "FOLDER", default_value = pod::SCRATCH_DIR)]
    pub scratch: PathBuf,
    /// Rows and tables that are held in memory, in bytes; the outcome is the same with any. Left out: a
    /// quarter of the container's memory, and at most 512 MiB
    #[arg(long, value_name = "BYTES")]
    pub memory_bytes: Option<u64>,
    /// What a query over the sources holds in memory, in bytes, in place of 300 MiB. For tests: with another
    /// size, rows that the query leaves in any order may come in another one, and the digest be another
    #[arg(long, value_name = "BYTES", hide = true)]
    pub query_memory_bytes: Option<u64>,
    /// Makes one part of the build, by its number from 0, where the configuration has `shards`: as a pod of
    /// an Indexed Job does
    #[arg(long, env = "JOB_COMPLETION_INDEX", value_name = "INDEX")]
    pub part: Option<u32>,
    /// Something else than a build
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What else the binary does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Reads {"text": "..."} a line and prints types and offsets of personal data, never the data
    Detect,
}

/// Runs the command line and returns the process's exit code. A summary is left in every case that
/// the process survives.
pub fn main(cli: &Cli) -> ExitCode {
    match cli.command {
        Some(Command::Detect) => detect_lines(),
        None => build_version(cli),
    }
}

fn detect_lines() -> ExitCode {
    let output = std::io::BufWriter::new(std::io::stdout().lock());
    match detect(std::io::stdin().lock(), output) {
        Ok(()) => exit::ExitCode::Done.into(),
        Err(error) => {
            eprintln!("error: {error}");
            exit::ExitCode::BadData.into()
        }
    }
}

fn build_version(cli: &Cli) -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt()
        .json()
        .with_env_filter(filter)
        .try_init();
    panics::hide_messages();
    termination::begin(&cli.termination_file);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let config = config::load(&cli.config)?;
        let memory = cli.memory_bytes.unwrap_or_else(default_memory_bytes);
        let scratch = Scratch::new(&cli.scratch, memory);
        let scratch = match cli.query_memory_bytes {
            Some(bytes) => scratch.with_query_bytes(bytes),
            None => scratch,
        };
        if config.transform.is_some() && cli.query_memory_bytes.is_none() {
            check_room_for_query()?;
        }
        let places = Places {
            store: &cli.store,
            key_file: &cli.pseudonym_key,
            scratch: &scratch,
        };
        let Some(index) = cli.part else {
            return build(&config, places).map(|built| succeeded(&built));
        };
        let count = config.shards.unwrap_or(1);
        let part = Part { index, count };
        build_part(&config, part, places).map(|made| part_made(part, made.as_ref()))
    }))
    .unwrap_or_else(|_| Err(Failure::bug(panics::last())));
    let (summary, code) = match outcome {
        Ok(summary) => (summary, exit::ExitCode::Done),
        Err(failure) => {
            tracing::error!(
                code = failure.code.code(),
                reason = failure.reason,
                "{failure}"
            );
            let code = failure.code;
            (failure.into_summary(), code)
        }
    };
    if let Err(error) = termination::write(&cli.termination_file, summary) {
        let path = cli.termination_file.display();
        tracing::error!(%error, %path, "cannot write the termination message");
    }
    code.into()
}
