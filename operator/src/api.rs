//! The API server: a client without retries of its own, a deadline on every call, and what a failure
//! means.

use std::ffi::OsStr;
use std::time::Duration;

use anyhow::Context as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
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

    /// Whether nothing can be made because the namespace is being deleted, or is gone.
    pub fn is_namespace_going(&self) -> bool {
        let Self::Kube(kube::Error::Api(status)) = self else {
            return false;
        };
        let causes = status.details.iter().flat_map(|details| &details.causes);
        let mut causes = causes.map(|cause| cause.reason.as_str());
        match status.code {
            403 => causes.any(|reason| reason == "NamespaceTerminating"),
            404 => status
                .details
                .as_ref()
                .is_some_and(|details| details.kind == "namespaces"),
            _ => false,
        }
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

/// Connects as `kubeconfig` says (files, as the variable KUBECONFIG lists them), else as the pod's
/// service account, else as the kubeconfig of the home directory.
///
/// # Errors
/// Where there is none of them, or it can't be read.
pub async fn connect(kubeconfig: Option<&OsStr>) -> anyhow::Result<Clients> {
    let (mut config, in_cluster) = configure(kubeconfig, Config::incluster().ok()).await?;
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

/// The configuration, and whether it is the pod's own. A kubeconfig that somebody names wins: who runs
/// the operator from a shell that happens to be in a pod means the cluster of the kubeconfig.
async fn configure(
    kubeconfig: Option<&OsStr>,
    in_cluster: Option<Config>,
) -> anyhow::Result<(Config, bool)> {
    if let Some(files) = kubeconfig.filter(|files| !files.is_empty()) {
        let named = files.display();
        let kubeconfig = read_kubeconfig(files)?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .with_context(|| format!("kubeconfig {named} can't be used"))?;
        return Ok((config, false));
    }
    if let Some(config) = in_cluster {
        return Ok((config, true));
    }
    let config = Config::infer().await.context(
        "no cluster is known: set KUBECONFIG or --kubeconfig, or run in a pod with a service account",
    )?;
    Ok((config, false))
}

/// The merged files of a list; as in kubectl, some of them may be absent.
fn read_kubeconfig(files: &OsStr) -> anyhow::Result<Kubeconfig> {
    let mut merged: Option<Kubeconfig> = None;
    let files_of = || std::env::split_paths(files).filter(|file| file.exists());
    for file in files_of() {
        let name = file.display();
        let next = Kubeconfig::read_from(&file)
            .with_context(|| format!("kubeconfig {name} can't be read"))?;
        merged = Some(match merged {
            None => next,
            Some(before) => before
                .merge(next)
                .with_context(|| format!("kubeconfig {name} can't be merged"))?,
        });
    }
    merged.with_context(|| format!("kubeconfig {} does not exist", files.display()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer(status: serde_json::Value) -> ApiError {
        let status: kube::core::Status = serde_json::from_value(status).unwrap();
        ApiError::Kube(kube::Error::Api(status.boxed()))
    }

    #[test]
    fn a_namespace_that_goes_is_told_from_other_refusals() {
        let terminating =
            json!({"causes": [{"reason": "NamespaceTerminating", "field": "metadata.namespace"}]});
        for (status, going) in [
            (json!({"code": 403, "details": terminating}), true),
            (
                json!({"code": 404, "details": {"kind": "namespaces", "name": "team"}}),
                true,
            ),
            (
                json!({"code": 404, "details": {"kind": "events", "name": "x"}}),
                false,
            ),
            (
                json!({"code": 403, "details": {"causes": [{"reason": "Quota"}]}}),
                false,
            ),
            (json!({"code": 403}), false),
            (json!({"code": 409, "details": terminating}), false),
        ] {
            assert_eq!(
                answer(status.clone()).is_namespace_going(),
                going,
                "{status}"
            );
        }
        assert!(!ApiError::Deadline.is_namespace_going());
    }

    fn kubeconfig(server: &str, namespace: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!(
            "{{apiVersion: v1, kind: Config, current-context: {namespace},
              clusters: [{{name: c, cluster: {{server: \"{server}\"}}}}], users: [{{name: u, user: {{token: t}}}}],
              contexts: [{{name: {namespace}, context: {{cluster: c, user: u, namespace: {namespace}}}}}]}}"
        );
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[expect(clippy::unnecessary_wraps, reason = "as the other argument")]
    fn pod() -> Option<Config> {
        Some(Config::new("https://10.96.0.1".parse().unwrap()))
    }

    #[tokio::test]
    async fn a_kubeconfig_that_is_named_wins_over_the_pods_service_account() {
        let file = kubeconfig("https://shell.example:6443", "somewhere");
        let path = file.path().as_os_str();
        let (config, in_cluster) = configure(Some(path), pod()).await.unwrap();
        assert_eq!(config.cluster_url.host(), Some("shell.example"));
        assert_eq!(config.default_namespace, "somewhere");
        assert!(!in_cluster, "pods are reached by port-forward");
        for none in [None, Some(OsStr::new(""))] {
            let (config, in_cluster) = configure(none, pod()).await.unwrap();
            assert_eq!(config.cluster_url.host(), Some("10.96.0.1"));
            assert!(in_cluster);
        }
    }

    #[tokio::test]
    async fn a_list_of_kubeconfigs_is_merged_and_its_first_file_decides() {
        let one = kubeconfig("https://one.example", "one");
        let two = kubeconfig("https://two.example", "two");
        let paths = [std::path::Path::new("/nowhere"), one.path(), two.path()];
        let list = std::env::join_paths(paths).unwrap();
        let (config, _) = configure(Some(&list), None).await.unwrap();
        assert_eq!(config.default_namespace, "one");
    }

    #[tokio::test]
    async fn a_kubeconfig_that_cannot_be_used_is_named() {
        let broken = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(broken.path(), "{contexts: 5}").unwrap();
        for path in [std::path::Path::new("/nowhere/config"), broken.path()] {
            let message = match configure(Some(path.as_os_str()), pod()).await {
                Ok(_) => panic!("{} was used", path.display()),
                Err(error) => format!("{error:#}"),
            };
            assert!(message.contains(&path.display().to_string()), "{message}");
        }
    }
}
