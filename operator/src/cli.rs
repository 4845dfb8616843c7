//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::run::{self, Options};

/// Turns Datasets, `TrainingRuns`, `LoRAAdapters` and `ServingEndpoints` into running things.
#[derive(Debug, Parser)]
#[command(name = "operator", version, about, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  In a cluster, as the chart does it:
    operator run
  From a shell, against the cluster of the kubeconfig (pods are reached by port-forward):
    operator run --settings settings.json --namespace graftwork-system
  (That user needs what the chart's ClusterRole and Role allow, create on pods/portforward, and a
  place in the chart's value operatorUsers, or the API server refuses its writes of status.)
  The same, whatever the variable KUBECONFIG says, and from inside a pod too:
    operator run --settings settings.json --kubeconfig ~/.kube/other
  What is wanted of every object, as one line of JSON each (children are named whether or not they are so already: what
  is there as wanted is not written):
    operator run --settings settings.json --plan-only
  The definitions of the four kinds:
    operator crds | kubectl apply --server-side -f -

Logging: RUST_LOG=info, RUST_LOG=graftwork_operator=debug.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Reconcile until a signal
    Run(RunArgs),
    /// Print the CustomResourceDefinitions
    Crds,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The installation's settings, as JSON or YAML
    #[arg(
        long,
        env = "GRAFTWORK_SETTINGS",
        default_value = "/etc/graftwork/settings.json"
    )]
    settings: PathBuf,
    /// Kubeconfig files, listed as in PATH; they win over a pod's service account
    #[arg(long, env = "KUBECONFIG", value_name = "FILES")]
    kubeconfig: Option<std::ffi::OsString>,
    /// Namespace of the operator's Lease and signing key
    #[arg(long, env = "POD_NAMESPACE", default_value = "graftwork-system")]
    namespace: String,
    /// Name of this process in the Lease and in events [default: shell]; a random end tells two starts apart
    #[arg(long, env = "POD_NAME")]
    identity: Option<String>,
    /// Address of /metrics, /healthz and /readyz
    #[arg(long, env = "GRAFTWORK_LISTEN", default_value = "0.0.0.0:8081")]
    listen: SocketAddr,
    /// Print the plan of every object and do nothing; children and calls are listed whole, not only what differs
    #[arg(long)]
    plan_only: bool,
    /// How to log
    #[arg(long, value_enum, default_value_t = LogFormat::Json)]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    /// One object a line, for machines
    Json,
    /// For people
    Text,
}

/// Runs the command line and returns the process's exit code.
pub fn main(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Run(args) => start(args),
        Command::Crds => print_crds(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "ended");
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "for people who have no logs yet")]
fn complain(error: &anyhow::Error) {
    if !tracing::enabled!(tracing::Level::ERROR) {
        eprintln!("operator: {error:#}");
    }
}

fn start(args: RunArgs) -> anyhow::Result<()> {
    log(args.log_format);
    // kube and tonic would otherwise look for a default at their first connection.
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider was installed before"))?;
    let suffix: u32 = rand::random();
    let identity = args.identity.unwrap_or_else(|| "shell".to_owned());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run::run(Options {
        settings: args.settings,
        kubeconfig: args.kubeconfig,
        namespace: args.namespace,
        // Two starts of one pod are two candidates.
        identity: format!("{identity}-{suffix:08x}"),
        listen: args.listen,
        plan_only: args.plan_only,
    }))
}

fn log(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text => builder
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .init(),
    }
}

#[expect(
    clippy::print_stdout,
    reason = "definitions are what this command prints"
)]
fn print_crds() -> anyhow::Result<()> {
    print!("{}", graftwork_api::crds::all_yaml()?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_kubeconfig_can_be_named() {
        let line = ["operator", "run", "--kubeconfig", "a:b", "--plan-only"];
        let Command::Run(arguments) = Cli::try_parse_from(line).unwrap().command else {
            panic!("this is operator run")
        };
        assert_eq!(arguments.kubeconfig.as_deref(), Some("a:b".as_ref()));
        assert!(arguments.plan_only);
    }
}
