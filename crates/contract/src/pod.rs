//! What every pod of ours finds in its container: mount paths, ports and environment.

/// Folder of the mounted configuration (a `ConfigMap`).
pub const CONFIG_DIR: &str = "/etc/graftwork";
/// The configuration file in [`CONFIG_DIR`]; which type it holds depends on the process.
pub const CONFIG_FILE: &str = "/etc/graftwork/config.json";
/// Mount point of the namespace's folder of the artifact store; of an `emptyDir` for what is on its way, where the
/// store is in a bucket.
pub const STORE_DIR: &str = "/var/lib/graftwork/store";
/// The entries of the Secret that says who asks the store's bucket.
pub const STORE_SECRET_DIR: &str = "/var/lib/graftwork/store-secret";
/// Below this, one folder for each mounted claim of base models, sources and imports:
/// `/var/lib/graftwork/claims/<claim>`.
pub const CLAIMS_DIR: &str = "/var/lib/graftwork/claims";
/// Below this, one folder for each claim that a model is written to: `/var/lib/graftwork/outputs/<claim>`.
pub const OUTPUTS_DIR: &str = "/var/lib/graftwork/outputs";
/// Below this, one folder for each `ConfigMap` source of a dataset:
/// `/var/lib/graftwork/sources/<source name>/<key>`.
pub const SOURCES_DIR: &str = "/var/lib/graftwork/sources";
/// Below this, one folder for each source of a dataset that is a query or on the network, with the entries of its
/// Secret:
/// `/var/lib/graftwork/secrets/<source name>/<entry>`.
pub const SECRETS_DIR: &str = "/var/lib/graftwork/secrets";
/// The key of pseudonyms, where a Dataset names a Secret for it.
pub const PSEUDONYM_KEY_FILE: &str = "/var/lib/graftwork/keys/pseudonym";
/// Scratch space (an `emptyDir`).
pub const SCRATCH_DIR: &str = "/tmp";
/// Copies of adapters on the node's own disk (an `emptyDir` with a limit), where an endpoint asks for them.
pub const ADAPTER_CACHE_DIR: &str = "/var/lib/graftwork/adapter-cache";
/// Where the kubelet reads the termination message.
pub const TERMINATION_FILE: &str = "/dev/termination-log";
/// A termination message is cut at this many bytes by the kubelet.
pub const TERMINATION_BYTES: usize = 4096;

/// Environment: the pod's UID, from the downward API.
pub const ENV_POD_UID: &str = "POD_UID";
/// Environment: the pod's name, from the downward API.
pub const ENV_POD_NAME: &str = "POD_NAME";

/// gRPC of keepers, trainers, engines and routers, for the operator.
pub const GRPC_PORT: u16 = 9090;
/// OpenAI HTTP of engines and routers, and gRPC for clients.
pub const HTTP_PORT: u16 = 8080;
/// `/metrics`, `/healthz` and `/readyz` of engines and routers.
pub const METRICS_PORT: u16 = 8081;

/// Seconds between SIGTERM and SIGKILL that a trainer's pod gets: what it takes to end a step and save
/// a checkpoint of a large adapter.
pub const TRAINER_GRACE_SECONDS: u32 = 120;
/// Seconds after SIGTERM at which a trainer ends by itself, whatever it is doing. The rest of the grace
/// period is for its last words, and for a clock that the kubelet started before the signal arrived.
pub const TRAINER_STOP_SECONDS: u32 = TRAINER_GRACE_SECONDS - 10;

/// User and group of every container.
pub const USER_ID: i64 = 65532;

/// The folder at which a claim is mounted to be written to.
pub fn output_dir(claim: &str) -> String {
    format!("{OUTPUTS_DIR}/{claim}")
}

/// The folder at which a claim is mounted.
pub fn claim_dir(claim: &str) -> String {
    format!("{CLAIMS_DIR}/{claim}")
}
