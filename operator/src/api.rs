//! The API server: a client without retries of its own, a deadline on every call, and what a failure
//! means.

use std::time::Duration;

use kube::{Client, Config};

/// Deadline of every call to the API server.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// Seconds after which the API server ends a watch, which then goes on from where it was.
pub const WATCH_SECONDS: u32 = 45;
/// A connection that is silent for this long is dead: longer than a watch may be.
const SILENCE: Duration = Duration::from_secs(60);
/// Field manager of everything that we write.
pub const FIELD_MANAGER: &str = "graftwork-operator";

/// Why a call to the API server failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No answer in time.
    #[error("the API server did not answer within {} s", DEADLINE.as_secs())]
    Deadline,
    /// The leader's term is over: nothing may be begun.
    #[error("this process does not lead any more")]
    NotLeading,
    /// An answer, or no connection.
    #[error("{}", describe(.0))]
    Kube(#[source] kube::Error),
}

fn describe(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        other => other.to_string(),
    }
}

/// What to do after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The object changed meanwhile: start again at once.
    Conflict,
    /// Try again later.
    Transient,
    /// The API server refuses what we send: the same will be refused again.
    Invalid,
}

impl ApiError {
    /// The answer's code; none where there was no answer.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Kube(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        }
    }

    /// Whether there is no such object.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// What to do next.
    pub fn class(&self) -> Class {
        match self.code() {
            Some(409) => Class::Conflict,
            Some(400 | 403 | 422) => Class::Invalid,
            _ => Class::Transient,
        }
    }

    /// For metrics.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Deadline => "deadline",
            Self::NotLeading => "not_leading",
            Self::Kube(_) => match self.class() {
                Class::Conflict => "conflict",
                Class::Invalid => "invalid",
                Class::Transient => "transient",
            },
        }
    }
}

/// Runs one call under [`DEADLINE`].
///
/// # Errors
/// The call's own, or the deadline's.
pub async fn call<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, ApiError> {
    match tokio::time::timeout(DEADLINE, request).await {
        Ok(answer) => answer.map_err(ApiError::Kube),
        Err(_) => Err(ApiError::Deadline),
    }
}

/// The clients of one process.
#[derive(Clone)]
pub struct Clients {
    /// For everything but streams that may be silent.
    pub client: Client,
    /// For port-forwards.
    pub streams: Client,
    /// Whether this process runs in the cluster, where pods are reached by their IP address.
    pub in_cluster: bool,
}

/// Connects as the pod's service account, or as the kubeconfig says.
///
/// # Errors
/// Where there is neither, or it can't be read.
pub async fn connect() -> anyhow::Result<Clients> {
    let (mut config, in_cluster) = match Config::incluster() {
        Ok(config) => (config, true),
        Err(_) => (Config::infer().await?, false),
    };
    config.default_retry = false;
    config.connect_timeout = Some(DEADLINE);
    config.write_timeout = Some(DEADLINE);
    let streams = Client::try_from(config.clone())?;
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    let client = Client::try_from(config)?;
    Ok(Clients {
        client,
        streams,
        in_cluster,
    })
}
