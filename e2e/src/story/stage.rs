//! A namespace of a story's own, and what stories do in it.

use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use graftwork_api::lora_adapter::AdapterVersion;
use graftwork_api::serving_endpoint::{RolloutState, ServedAdapter};
use graftwork_api::{Answer, Dataset, LoRAAdapter, ServingEndpoint, TrainingRun};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::DynamicObject;
use serde_json::{Value, json};

use super::World;
use super::fixture::Files;
use crate::cluster::MINUTE;
use crate::manifests::{self, Training};
use crate::report::{say, seconds};

/// Chart values of the stories: leaders change within seconds, there is a profile with a GPU and one with other resources
/// than the default, a node of two cores has room for the pods of two stories, and Datasets may ask a database at this
/// machine's end of the cluster's link.
pub const FAST_LEASE: &[&str] = &[
    "replicas=2",
    "leaderElection.leaseSeconds=5",
    "leaderElection.renewDeadlineSeconds=3",
    "leaderElection.retrySeconds=1",
    "computeProfiles.default.resources.requests.cpu=100m",
    "computeProfiles.other.resources.requests.cpu=110m",
    "computeProfiles.other.resources.limits.memory=2Gi",
    r"computeProfiles.gpu.resources.limits.nvidia\.com/gpu=1",
    "computeProfiles.gpu.tolerations[0].key=nvidia.com/gpu",
    "computeProfiles.gpu.tolerations[0].operator=Exists",
    "dataSources.allow[0]=10.98.0.0/30",
];

/// One story's namespace.
#[derive(Clone)]
pub struct Stage {
    /// Cluster, installation and trained adapters.
    pub world: World,
    /// The namespace.
    pub namespace: String,
}

impl Stage {
    /// Makes the namespace; whatever an earlier run left in it goes first.
    pub async fn set(world: World, story: &str) -> anyhow::Result<Self> {
        let namespace = format!("e2e-{}", story.replace('_', "-"));
        world.cluster.delete_namespace(&namespace).await?;
        world.cluster.create_namespace(&namespace).await?;
        Ok(Self { world, namespace })
    }

    /// Deletes the namespace.
    pub async fn strike(&self) -> anyhow::Result<()> {
        self.world.cluster.delete_namespace(&self.namespace).await
    }

    /// Prints what a person would look at after a failure.
    pub async fn describe(&self) {
        for arguments in [
            &["get", "graft,pods,jobs", "-o", "wide"][..],
            &["get", "events", "--sort-by=.lastTimestamp"],
            &["get", "graft", "-o", "yaml", "--show-managed-fields=false"],
        ] {
            let arguments = [&["-n", &self.namespace], arguments].concat();
            match self.world.cluster.kubectl(&arguments).await {
                Ok(text) => {
                    let lines: Vec<&str> = text.lines().collect();
                    let tail = lines
                        .get(lines.len().saturating_sub(200)..)
                        .unwrap_or_default();
                    say(&tail.join("\n"));
                }
                Err(error) => say(&format!("{error:#}")),
            }
        }
    }

    /// Applies an object in this namespace.
    pub async fn apply(&self, object: &DynamicObject) -> anyhow::Result<DynamicObject> {
        self.world
            .cluster
            .apply_object(&self.namespace, object)
            .await
    }

    /// Claim with base model and text, filled by the seeding Job.
    pub async fn seed(&self) -> anyhow::Result<()> {
        self.apply(&manifests::claim()).await?;
        self.fill("seed", "demo-data", &manifests::SEEDED, &[])
            .await
    }

    /// Base model, text, and the trained adapters as folders of the claim, ready to import.
    pub async fn seed_with_adapters(&self) -> anyhow::Result<()> {
        let adapters = self.world.adapters.get(&self.world).await?;
        self.apply(&manifests::claim()).await?;
        let folders: Vec<_> = adapters
            .iter()
            .map(|(name, files)| (format!("adapters/{name}"), files.clone()))
            .collect();
        self.fill("seed", "demo-data", &manifests::SEEDED, &folders)
            .await
    }

    /// Copies folders of the claim, each as FROM=TO, and puts files into folders of it, by a Job of that name. A file
    /// that is there with the same size stays.
    pub async fn put(
        &self,
        job: &str,
        copies: &[&str],
        folders: &[(String, Files)],
    ) -> anyhow::Result<()> {
        self.fill(job, "e2e", copies, folders).await
    }

    /// Both images hold the same program; that with the data is larger.
    async fn fill(
        &self,
        job: &str,
        image: &str,
        copies: &[&str],
        folders: &[(String, Files)],
    ) -> anyhow::Result<()> {
        let mut arguments = vec!["seed".to_owned()];
        for copy in copies {
            arguments.extend(["--copy".to_owned(), (*copy).to_owned()]);
        }
        let mut places = Vec::new();
        for (index, (folder, files)) in folders.iter().enumerate() {
            let map = format!("{job}-{index}");
            self.apply(&serde_json::from_value(json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": map}, "binaryData": files,
            }))?)
            .await?;
            let path = format!("/put/{index}");
            arguments.extend(["--copy".to_owned(), format!("{path}=/demo/{folder}")]);
            places.push((map, path));
        }
        let mut mounts = vec![("demo", "/demo", manifests::claim_source())];
        for (map, path) in &places {
            mounts.push((map, path, json!({"configMap": {"name": map}})));
        }
        let image = self.world.installation.image(image);
        let job = manifests::job(job, &image, &arguments, &mounts);
        self.world
            .cluster
            .run_job_to_end(&self.namespace, &job, 2 * MINUTE)
            .await
            .context("fill the claim")
    }

    /// A LoRAAdapter `name` that imports the trained adapter `from`; its next version, once it is there.
    pub async fn import(&self, name: &str, from: &str, gate: &Value) -> anyhow::Result<u32> {
        let before = self
            .get::<LoRAAdapter>(name)
            .await?
            .and_then(|a| a.status)
            .map_or(0, |s| newest_version(&s));
        let uri = format!("pvc://{}/adapters/{from}", manifests::CLAIM);
        self.apply(&manifests::adapter(name, gate, Some(&uri)))
            .await?;
        self.world
            .cluster
            .wait_for::<LoRAAdapter, _>(
                &self.namespace,
                name,
                MINUTE,
                "the imported version",
                |adapter| {
                    let newest = newest_version(adapter?.status.as_ref()?);
                    (newest > before).then_some(newest)
                },
            )
            .await
    }

    /// One of our objects.
    pub async fn get<K>(&self, name: &str) -> anyhow::Result<Option<K>>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
        K::DynamicType: Default,
    {
        Ok(self
            .world
            .cluster
            .api::<K>(&self.namespace)
            .get_opt(name)
            .await?)
    }

    /// A Dataset's newest version, once it is Ready at its newest generation.
    pub async fn dataset_ready(
        &self,
        name: &str,
    ) -> anyhow::Result<graftwork_api::dataset::LatestVersion> {
        self.world
            .cluster
            .wait_for::<Dataset, _>(&self.namespace, name, 2 * MINUTE, "Ready=True", |dataset| {
                let dataset = dataset?;
                let status = dataset.status.as_ref()?;
                let ready = condition(&status.conditions, "Ready")?;
                (ready.status == "True" && ready.observed_generation == dataset.metadata.generation)
                    .then(|| status.latest.clone())
                    .flatten()
            })
            .await
    }

    /// Applies a run and waits until it is complete.
    pub async fn train(&self, training: &Training<'_>) -> anyhow::Result<TrainingRun> {
        self.apply(&training.object()).await?;
        self.run_complete(training.name, 10 * MINUTE).await
    }

    /// Waits until a run is Finished and fails unless it has succeeded.
    pub async fn run_complete(&self, name: &str, timeout: Duration) -> anyhow::Result<TrainingRun> {
        let run = self
            .world
            .cluster
            .wait_for::<TrainingRun, _>(&self.namespace, name, timeout, "Finished=True", |run| {
                let run = run?;
                let finished = condition(&run.status.as_ref()?.conditions, "Finished")?;
                (finished.status == "True").then(|| run.clone())
            })
            .await?;
        let conditions = &run
            .status
            .as_ref()
            .ok_or_else(|| anyhow!("no status"))?
            .conditions;
        let succeeded =
            condition(conditions, "Succeeded").ok_or_else(|| anyhow!("no condition Succeeded"))?;
        ensure!(
            succeeded.status == "True",
            "run {name}: {} {}",
            succeeded.reason,
            succeeded.message
        );
        Ok(run)
    }

    /// Waits until `judge` accepts the endpoint.
    pub async fn endpoint<T>(
        &self,
        name: &str,
        timeout: Duration,
        what: &str,
        mut judge: impl FnMut(&ServingEndpoint) -> Option<T>,
    ) -> anyhow::Result<T> {
        self.world
            .cluster
            .wait_for(&self.namespace, name, timeout, what, |endpoint| {
                judge(endpoint?)
            })
            .await
    }

    /// Waits until `adapter` has `version` as its stable one and the endpoint is Ready.
    pub async fn stable(
        &self,
        endpoint: &str,
        adapter: &str,
        version: u32,
        timeout: Duration,
    ) -> anyhow::Result<()> {
        self.endpoint(
            endpoint,
            timeout,
            &format!("{adapter} to be stable at v{version}"),
            |endpoint| {
                let status = endpoint.status.as_ref()?;
                let served = status
                    .adapters
                    .iter()
                    .find(|served| served.name == adapter)?;
                let ready = condition(&status.conditions, "Ready")?.status == "True";
                (ready && served.candidate.is_none() && served.stable.as_ref()?.version == version)
                    .then_some(())
            },
        )
        .await
    }

    /// Says what was proved, with the time it took.
    pub fn proved(&self, what: &str, took: Duration) {
        say(&format!("    {what} ({})", seconds(took)));
    }
}

/// The condition of that type.
pub fn condition<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// The highest version number.
pub fn newest_version(status: &graftwork_api::LoRAAdapterStatus) -> u32 {
    status
        .versions
        .iter()
        .map(|version| version.version)
        .max()
        .unwrap_or_default()
}

impl Stage {
    /// Base model and trained adapters on the claim, `amber` imported as version 1 of adapter `colours`, and an
    /// endpoint `assistants` that serves it.
    pub async fn serve_amber(&self, replicas: u32, rollout: &Value) -> anyhow::Result<()> {
        self.seed_with_adapters().await?;
        self.serve_seeded(replicas, rollout).await
    }

    /// The same on a claim that is filled already.
    pub async fn serve_seeded(&self, replicas: u32, rollout: &Value) -> anyhow::Result<()> {
        self.apply(&manifests::endpoint(
            "assistants",
            &["colours"],
            replicas,
            rollout,
        ))
        .await?;
        self.import("colours", "amber", &json!({})).await?;
        self.stable("assistants", "colours", 1, 2 * MINUTE).await
    }

    /// What the endpoint's status says of adapter `colours`.
    pub async fn served(&self) -> anyhow::Result<ServedAdapter> {
        let endpoint: ServingEndpoint = self
            .get("assistants")
            .await?
            .ok_or_else(|| anyhow!("the endpoint is gone"))?;
        endpoint
            .status
            .and_then(|status| {
                status
                    .adapters
                    .into_iter()
                    .find(|served| served.name == "colours")
            })
            .ok_or_else(|| anyhow!("status says nothing of colours"))
    }

    /// Waits until the rollout of `colours` is in one of `states`; the state it is in.
    pub async fn rollout_state(
        &self,
        states: &[RolloutState],
        timeout: Duration,
    ) -> anyhow::Result<RolloutState> {
        let what = format!(
            "the rollout to be {}",
            states
                .iter()
                .map(RolloutState::as_str)
                .collect::<Vec<_>>()
                .join(" or ")
        );
        self.endpoint("assistants", timeout, &what, |endpoint| {
            let served = endpoint
                .status
                .as_ref()?
                .adapters
                .iter()
                .find(|served| served.name == "colours")?;
            let state = served.rollout.as_ref()?.state.clone();
            states.contains(&state).then_some(state)
        })
        .await
    }

    /// Waits until the candidate of `colours` has that weight.
    pub async fn weight(&self, weight: u32, timeout: Duration) -> anyhow::Result<()> {
        let what = format!("the candidate to have weight {weight}");
        self.endpoint("assistants", timeout, &what, |endpoint| {
            let mut served = endpoint.status.as_ref()?.adapters.iter();
            let colours = served.find(|served| served.name == "colours")?;
            (colours.candidate.as_ref()?.weight == weight).then_some(())
        })
        .await
    }

    /// What adapter `name` says of one of its versions, once `judge` accepts it.
    pub async fn version(
        &self,
        name: &str,
        number: u32,
        what: &str,
        mut judge: impl FnMut(&AdapterVersion) -> bool,
    ) -> anyhow::Result<AdapterVersion> {
        let what = format!("v{number} to be {what}");
        self.world
            .cluster
            .wait_for::<LoRAAdapter, _>(&self.namespace, name, MINUTE, &what, |adapter| {
                let mut versions = adapter?.status.as_ref()?.versions.iter();
                let version = versions.find(|version| version.version == number)?;
                judge(version).then(|| version.clone())
            })
            .await
    }

    /// Gives a command about the candidate of `colours` and waits for the answer.
    pub async fn command(
        &self,
        id: &str,
        verb: &str,
        digest: &str,
        step: Option<u32>,
    ) -> anyhow::Result<Answer> {
        let command = json!({"id": id, "verb": verb, "digest": digest, "step": step, "user": self.world.user, "reason": "a test"});
        let status = json!({"commands": {"adapter/colours": command}});
        self.world
            .cluster
            .patch_status::<ServingEndpoint>(&self.namespace, "assistants", status)
            .await?;
        self.endpoint(
            "assistants",
            MINUTE,
            &format!("the answer to {verb}"),
            |endpoint| {
                endpoint
                    .status
                    .as_ref()?
                    .answers
                    .get("adapter/colours")
                    .filter(|answer| answer.id == id)
                    .cloned()
            },
        )
        .await
    }

    /// Pod names with their start times, by label selector.
    pub async fn start_times(&self, selector: &str) -> anyhow::Result<Vec<(String, String)>> {
        let cluster = &self.world.cluster;
        cluster.start_times(&self.namespace, selector).await
    }
}

/// Label selector of the engines of `assistants`.
pub const ENGINES: &str =
    "app.kubernetes.io/instance=assistants,app.kubernetes.io/component=engine";
/// Label selector of everything that the operator made.
pub const OURS: &str = "app.kubernetes.io/managed-by=graftwork-operator";

impl Stage {
    /// Fails unless `version` of `adapter` is stable now.
    pub async fn stable_is(&self, adapter: &str, version: u32) -> anyhow::Result<()> {
        self.stable("assistants", adapter, version, Duration::from_secs(10))
            .await
    }
}
