//! The cluster as a user's tools see it: apply, get, wait, delete.

use std::fmt::Debug;
use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail, ensure};
use futures::{StreamExt as _, pin_mut};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams,
};
use kube::config::KubeConfigOptions;
use kube::core::{GroupVersionKind, NamespaceResourceScope};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::process::Command;

/// A connection to one cluster and the tools beside it.
#[derive(Clone)]
pub struct Cluster {
    /// The API server's client, as the kubeconfig's user.
    pub client: Client,
    /// Passed to `helm` and `kubectl`.
    pub kubeconfig: PathBuf,
}

/// How long a step may take before it is a failure.
pub const MINUTE: Duration = Duration::from_secs(60);

impl Cluster {
    /// Connects by the kubeconfig at `path`.
    pub async fn connect(path: PathBuf) -> anyhow::Result<Self> {
        let kubeconfig = kube::config::Kubeconfig::read_from(&path)
            .with_context(|| format!("kubeconfig {}", path.display()))?;
        let config =
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Self {
            client: Client::try_from(config)?,
            kubeconfig: path,
        })
    }

    /// The kubeconfig's user, as the API server knows it.
    pub async fn user(&self) -> anyhow::Result<String> {
        let api: Api<SelfSubjectReview> = Api::all(self.client.clone());
        let review = api
            .create(&PostParams::default(), &SelfSubjectReview::default())
            .await?;
        let user = review
            .status
            .and_then(|status| status.user_info)
            .and_then(|user| user.username);
        user.ok_or_else(|| anyhow!("the API server does not say who we are"))
    }

    /// Objects of one namespace.
    pub fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Server-side apply of one object.
    pub async fn apply_object(
        &self,
        namespace: &str,
        object: &DynamicObject,
    ) -> anyhow::Result<DynamicObject> {
        let name = object
            .metadata
            .name
            .clone()
            .ok_or_else(|| anyhow!("an object without a name"))?;
        let api = self.dynamic(namespace, object)?;
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        api.patch(&name, &parameters, &Patch::Apply(object))
            .await
            .with_context(|| format!("apply {} {name}", kind_of(object)))
    }

    fn dynamic(
        &self,
        namespace: &str,
        object: &DynamicObject,
    ) -> anyhow::Result<Api<DynamicObject>> {
        let types = object
            .types
            .clone()
            .ok_or_else(|| anyhow!("an object without apiVersion and kind"))?;
        let kind: GroupVersionKind = (&types).try_into()?;
        Ok(Api::namespaced_with(
            self.client.clone(),
            namespace,
            &ApiResource::from_gvk(&kind),
        ))
    }

    /// Waits until `judge` says something about the object, by watching it.
    pub async fn wait_for<K, T>(
        &self,
        namespace: &str,
        name: &str,
        timeout: Duration,
        what: &str,
        mut judge: impl FnMut(Option<&K>) -> Option<T>,
    ) -> anyhow::Result<T>
    where
        K: Resource<Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + Serialize
            + Send
            + 'static,
        K::DynamicType: Default,
    {
        let api: Api<K> = self.api(namespace);
        let mut newest = api.get_opt(name).await?;
        if let Some(value) = judge(newest.as_ref()) {
            return Ok(value);
        }
        let stream = watcher::watch_object(api, name).default_backoff();
        pin_mut!(stream);
        let deadline = tokio::time::sleep(timeout);
        pin_mut!(deadline);
        loop {
            tokio::select! {
                () = &mut deadline => {
                    let last = newest.map_or_else(|| "it does not exist".to_owned(), |object| last_seen(&object));
                    bail!("{} {namespace}/{name}: waited {timeout:?} for {what}; last seen: {last}", K::kind(&K::DynamicType::default()));
                }
                event = stream.next() => {
                    match event {
                        // The back-off retries by itself; the deadline ends it.
                        Some(Err(_)) => {}
                        Some(Ok(object)) => {
                            newest = object;
                            if let Some(value) = judge(newest.as_ref()) {
                                return Ok(value);
                            }
                        }
                        None => bail!("the watch of {namespace}/{name} ended"),
                    }
                }
            }
        }
    }

    /// Merge-patches the status subresource, as `kubectl patch --subresource=status` does.
    pub async fn patch_status<K>(
        &self,
        namespace: &str,
        name: &str,
        status: serde_json::Value,
    ) -> kube::Result<K>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
        K::DynamicType: Default,
    {
        let patch = serde_json::json!({ "status": status });
        self.api::<K>(namespace)
            .patch_status(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
    }

    /// Creates a Job and waits until it has succeeded.
    pub async fn run_job_to_end(
        &self,
        namespace: &str,
        job: &Job,
        timeout: Duration,
    ) -> anyhow::Result<()> {
        let name = self.start_job(namespace, job).await?;
        self.end_of_job(namespace, &name, timeout).await.map(drop)
    }

    /// Creates a Job and gives back its name.
    pub async fn start_job(&self, namespace: &str, job: &Job) -> anyhow::Result<String> {
        let created = self
            .api::<Job>(namespace)
            .create(&PostParams::default(), job)
            .await?;
        created
            .metadata
            .name
            .ok_or_else(|| anyhow!("a Job without a name"))
    }

    /// Waits for the success of a Job; its pod's termination message, empty where it left none.
    pub async fn end_of_job(
        &self,
        namespace: &str,
        name: &str,
        timeout: Duration,
    ) -> anyhow::Result<String> {
        let selector = format!("job-name={name}");
        let ended = self
            .wait_for::<Job, _>(namespace, name, timeout, "the Job to end", |job| {
                let conditions = job?.status.as_ref()?.conditions.as_ref()?;
                conditions
                    .iter()
                    .filter(|c| c.status == "True")
                    .find_map(|c| match c.type_.as_str() {
                        "Complete" => Some(true),
                        "Failed" => Some(false),
                        _ => None,
                    })
            })
            .await;
        let succeeded = match ended {
            Ok(succeeded) => succeeded,
            Err(error) => return Err(self.with_hindrances(error, namespace, &selector).await),
        };
        let pods = self.pods(namespace, &selector).await?;
        let message = pods.iter().find_map(termination_message);
        if succeeded {
            Ok(message.unwrap_or_default())
        } else {
            bail!(
                "Job {name} failed: {}",
                message.unwrap_or_else(|| "no termination message".into())
            )
        }
    }

    /// The error of a wait in vain, with what keeps the pods of that label selector from starting: an image that is not
    /// there, for example.
    pub async fn with_hindrances(
        &self,
        error: anyhow::Error,
        namespace: &str,
        selector: &str,
    ) -> anyhow::Error {
        let pods = self.pods(namespace, selector).await.unwrap_or_default();
        let told: Vec<String> = pods.iter().filter_map(hindrance).collect();
        if told.is_empty() {
            error
        } else {
            error.context(told.join("; "))
        }
    }

    /// Pods by label selector.
    pub async fn pods(&self, namespace: &str, selector: &str) -> anyhow::Result<Vec<Pod>> {
        let list = self
            .api::<Pod>(namespace)
            .list(&ListParams::default().labels(selector))
            .await?;
        Ok(list.items)
    }

    /// Name of a Job's pod.
    pub async fn pod_of_job(&self, namespace: &str, job: &str) -> anyhow::Result<String> {
        let pods = self.pods(namespace, &format!("job-name={job}")).await?;
        pods.into_iter()
            .find_map(|pod| pod.metadata.name)
            .with_context(|| format!("{job} has no pod"))
    }

    /// Pod names with their start times and restarts, by label selector: equal before and after where nothing restarted.
    pub async fn start_times(
        &self,
        namespace: &str,
        selector: &str,
    ) -> anyhow::Result<Vec<(String, String)>> {
        let start = |pod: Pod| {
            let status = pod.status.unwrap_or_default();
            let containers = status.container_statuses.iter().flatten();
            let restarts: i32 = containers.map(|container| container.restart_count).sum();
            let started = status.start_time.map(|time| time.0.to_string());
            (
                pod.metadata.name.unwrap_or_default(),
                format!("{}, {restarts} restarts", started.unwrap_or_default()),
            )
        };
        let pods = self.pods(namespace, selector).await?;
        let mut times: Vec<_> = pods.into_iter().map(start).collect();
        times.sort();
        Ok(times)
    }

    /// Kills a pod: deletion with no grace.
    pub async fn kill_pod(&self, namespace: &str, name: &str) -> anyhow::Result<()> {
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            ..DeleteParams::default()
        };
        match self.api::<Pod>(namespace).delete(name, &parameters).await {
            Err(kube::Error::Api(error)) if error.is_not_found() => Ok(()),
            other => other.map(drop).map_err(Into::into),
        }
    }

    /// Kills the process `program` of a pod with SIGKILL, as a node without memory does; `false` where the pod's node is
    /// not this machine.
    pub async fn kill_process(&self, pod: &Pod, program: &str) -> anyhow::Result<bool> {
        let uid = pod.metadata.uid.clone().context("the pod has no UID")?;
        // The kubelet writes a UID with dashes or underscores, as its cgroup driver wants it.
        let folders = [format!("pod{uid}"), format!("pod{}", uid.replace('-', "_"))];
        for process in std::fs::read_dir("/proc")? {
            let folder = process?.path();
            let read = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap_or_default();
            let cgroup = read("cgroup");
            if read("comm").trim() == program && folders.iter().any(|name| cgroup.contains(name)) {
                let pid = folder.file_name().unwrap_or_default();
                let status = Command::new("kill").arg("-9").arg(pid).status().await?;
                ensure!(status.success(), "kill -9 {}", pid.display());
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Runs `helm` against this cluster; its standard output.
    pub async fn helm(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.tool("helm", arguments).await
    }

    /// Runs `kubectl` against this cluster; its standard output.
    pub async fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.tool("kubectl", arguments).await
    }

    async fn tool(&self, tool: &str, arguments: &[&str]) -> anyhow::Result<String> {
        // Neither tool may see, or leave to the user, a list of kinds from before the installation.
        let cache = tempfile::tempdir()?;
        let output = Command::new(tool)
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("KUBECACHEDIR", cache.path())
            .kill_on_drop(true)
            .output()
            .await
            .with_context(|| format!("{tool} is not on the PATH"))?;
        if !output.status.success() {
            bail!(
                "{tool} {}: {}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Field manager of what the tests apply.
pub const FIELD_MANAGER: &str = "graftwork-e2e";

/// The documents of a YAML text.
pub fn documents(yaml: &str) -> anyhow::Result<Vec<DynamicObject>> {
    use serde::Deserialize as _;
    serde_yaml_ng::Deserializer::from_str(yaml)
        .map(|document| {
            DynamicObject::deserialize(document)
                .context("a document that is not a Kubernetes object")
        })
        .collect()
}

fn kind_of(object: &DynamicObject) -> &str {
    object
        .types
        .as_ref()
        .map_or("object", |types| types.kind.as_str())
}

/// The status in YAML: all that an error needs to say of an object.
fn last_seen<K: Resource + Serialize>(object: &K) -> String {
    let status = serde_json::to_value(object)
        .ok()
        .and_then(|mut object| object.get_mut("status").map(serde_json::Value::take));
    let generation = object.meta().generation.unwrap_or_default();
    match status.map(|status| serde_yaml_ng::to_string(&status)) {
        Some(Ok(text)) => format!("generation {generation}, status:\n{text}"),
        _ => format!("generation {generation}, no status"),
    }
}

/// What keeps a pod from starting, in the scheduler's or the kubelet's words; none where nothing does.
fn hindrance(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let mut conditions = status.conditions.iter().flatten();
    let unplaced = conditions.find(|it| it.type_ == "PodScheduled" && it.status == "False");
    let mut containers = status.container_statuses.iter().flatten();
    let waiting = containers.find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref()?;
        let message = waiting.message.as_deref().unwrap_or_default();
        (reason != "ContainerCreating").then(|| format!("{reason}: {message}"))
    });
    let why = unplaced.and_then(|it| it.message.clone()).or(waiting)?;
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    Some(format!("pod {name} does not start: {why}"))
}

/// The message that a pod's first container left at its end.
pub fn termination_message(pod: &Pod) -> Option<String> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses
        .iter()
        .find_map(|status| status.state.as_ref()?.terminated.as_ref()?.message.clone())
}

/// Asks `question` four times a second until it gives an answer. For what can't be watched.
pub async fn wait<T, F>(
    what: &str,
    timeout: Duration,
    mut question: impl FnMut() -> F,
) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<Option<T>>>,
{
    let start = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(250));
    let mut last = None;
    while start.elapsed() < timeout {
        tick.tick().await;
        match question().await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => last = None,
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) => Err(error.context(format!("waited {timeout:?} for {what}"))),
        None => bail!("waited {timeout:?} for {what}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_that_does_not_start_says_why() {
        let told = |status: serde_json::Value| {
            let pod = json!({"metadata": {"name": "seed-1"}, "status": status});
            hindrance(&serde_json::from_value(pod).unwrap())
        };
        let waits = |reason: &str| {
            let waiting = json!({"reason": reason, "message": "demo-data:dev is not there"});
            json!({"containerStatuses": [{
                "name": "main", "image": "demo-data:dev", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": waiting},
            }]})
        };
        assert_eq!(
            told(waits("ErrImageNeverPull")).as_deref(),
            Some("pod seed-1 does not start: ErrImageNeverPull: demo-data:dev is not there")
        );
        assert_eq!(told(waits("ContainerCreating")), None);
        let unplaced = json!({"conditions": [
            {"type": "Ready", "status": "False", "message": "not yet"},
            {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"},
        ]});
        assert_eq!(
            told(unplaced).as_deref(),
            Some("pod seed-1 does not start: 0/1 nodes are available")
        );
        assert_eq!(told(json!({"phase": "Running"})), None);
    }
}
