//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use graftwork_contract::endpoint::KeyValueFormat;
use graftwork_contract::key_values::DEFAULT_MIB;
use graftwork_contract::pod;

use crate::scheduler::Admission;

const EXAMPLES: &str = "\
Examples:
  In a pod, everything comes from mounts and the environment:
    engine
  From a shell, with files of one's own:
    engine --config config.json --store ./store --pod-uid local \\
      --listen-http 127.0.0.1:8080 --listen-grpc 127.0.0.1:9090 --listen-metrics 127.0.0.1:8081
    curl 127.0.0.1:8080/v1/completions -H 'content-type: application/json' \\
      -d '{\"model\": \"topics\", \"prompt\": \"a large feline\", \"max_tokens\": 8}'";

/// Serves one base model with many LoRA adapters over OpenAI's HTTP API.
#[derive(Debug, Clone, Parser)]
#[command(version, after_help = EXAMPLES)]
pub struct Options {
    /// The engine's configuration (JSON); adapters and keys are taken over when it changes.
    #[arg(long, default_value = pod::CONFIG_FILE)]
    pub config: PathBuf,

    /// The namespace's folder of the artifact store; a folder for copies where the store is in a bucket.
    #[arg(long, default_value = pod::STORE_DIR)]
    pub store: PathBuf,

    /// Address of the OpenAI API, and of the Open Inference Protocol (gRPC).
    #[arg(long, default_value_t = SocketAddr::from(([0, 0, 0, 0], pod::HTTP_PORT)))]
    pub listen_http: SocketAddr,

    /// Address of the operator's gRPC: adapters and health.
    #[arg(long, default_value_t = SocketAddr::from(([0, 0, 0, 0], pod::GRPC_PORT)))]
    pub listen_grpc: SocketAddr,

    /// Address of /metrics, /healthz and /readyz.
    #[arg(long, default_value_t = SocketAddr::from(([0, 0, 0, 0], pod::METRICS_PORT)))]
    pub listen_metrics: SocketAddr,

    /// UID of this pod, which signed calls must name.
    #[arg(long, env = pod::ENV_POD_UID)]
    pub pod_uid: String,

    /// Tokens of one forward pass: decode rows first, the rest for prompts.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub pass_tokens: u32,

    /// Requests that may wait beside the running ones; more get 429.
    #[arg(long, default_value_t = 256)]
    pub maximum_waiting: u32,

    /// Which waiting request is next: that of the adapter that was served least, so that none waits for another
    /// one's burst; or the one that came first.
    #[arg(long, value_enum, default_value_t = Admission::Fair)]
    pub admission: Admission,

    /// Memory of the KV cache at most, in MiB; less is taken where less is of use.
    #[arg(long, default_value_t = DEFAULT_MIB, value_parser = clap::value_parser!(u32).range(1..))]
    pub kv_cache_mib: u32,

    /// What keys and values are held in on the CPU: f32, or f16 in half of the memory, which rounds them.
    #[arg(long, value_name = "FORMAT", default_value = "f32", value_parser = read_format)]
    pub kv_cache_format: KeyValueFormat,

    /// Memory of loaded adapters at most, in MiB; without it, only their number counts.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub adapter_memory_mib: Option<u32>,

    /// Folder on the node's own disk for copies of adapters, where the store is far away. A store in a bucket has
    /// one without it.
    #[arg(long)]
    pub adapter_cache: Option<PathBuf>,

    /// Bytes of these copies at most, in MiB.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    pub adapter_cache_mib: u32,

    /// Also export gauges under vLLM's names, for the Gateway API inference extension and others that
    /// read those.
    #[arg(long)]
    pub vllm_metrics: bool,

    /// Why the engine ends, where it ends with an error, is written here if there is such a file.
    #[arg(long, value_name = "FILE", default_value = pod::TERMINATION_FILE)]
    pub termination_file: PathBuf,

    /// Seconds after SIGTERM in which new requests are still taken, until endpoints have caught up.
    #[arg(long, default_value_t = 5)]
    pub drain_delay_seconds: u64,

    /// Seconds after SIGTERM at which requests that still run are ended with an error; below the
    /// pod's grace period.
    #[arg(long, default_value_t = 80)]
    pub drain_limit_seconds: u64,
}

fn read_format(text: &str) -> Result<KeyValueFormat, String> {
    match text {
        "f32" => Ok(KeyValueFormat::F32),
        "f16" => Ok(KeyValueFormat::F16),
        _ => Err("it must be f32 or f16".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_are_in_f32_unless_f16_is_asked_for() {
        let read = |flags: &[&str]| {
            let fixed = ["engine", "--pod-uid", "local"];
            Options::try_parse_from(fixed.iter().chain(flags))
                .map(|options| options.kv_cache_format)
        };
        assert_eq!(read(&[]).unwrap(), KeyValueFormat::F32);
        assert_eq!(
            read(&["--kv-cache-format", "f16"]).unwrap(),
            KeyValueFormat::F16
        );
        let error = read(&["--kv-cache-format", "int8"]).unwrap_err();
        assert!(error.to_string().contains("f32 or f16"), "{error}");
    }
}
