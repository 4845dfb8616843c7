//! Twenty settled objects cause no write for two minutes, but renewals of the leader's Lease: the audit log of the
//! API server says so, of every identity of ours and in every namespace.

use std::fmt::Debug;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use graftwork_api::{Dataset, LoRAAdapter, ServingEndpoint, TrainingRun};
use kube::Resource;
use kube::api::ListParams;
use kube::core::NamespaceResourceScope;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::fixture::marker_rows;
use super::{Stage, audit_log};
use crate::cluster::{MINUTE, wait};
use crate::manifests::{self, Training};
use crate::report::not_proved;

/// How many objects there are.
const OBJECTS: usize = 20;
/// How long nothing may be written.
const QUIET: Duration = Duration::from_secs(120);
/// What the last change caused has settled once nothing was written for so long.
const SETTLED: Duration = Duration::from_secs(15);
/// A leader renews every second: far fewer renewals mean that the log was not read, or nobody led.
const RENEWALS: usize = 30;

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    let Some(path) = audit_log() else {
        not_proved("that settled objects cause no write: this cluster's audit log is not here");
        return Ok(());
    };
    make_objects(&stage).await?;
    let there = count(&stage).await?;
    ensure!(there == OBJECTS, "{there} objects are there, not {OBJECTS}");
    stage.proved(&format!("{there} objects are there"), start.elapsed());

    let ours = Ours {
        system: stage.world.installation.system_namespace.clone(),
        stage: stage.namespace.clone(),
    };
    let mut log = Log::at_end(&path)?;
    settle(&mut log, &ours).await?;
    stage.proved("they have settled", start.elapsed());
    // That nothing comes shows by waiting only.
    tokio::time::sleep(QUIET).await;
    let seen = ours.sort(&log.events()?);
    ensure!(
        seen.writes.is_empty(),
        "writes in {QUIET:?}: {:#?}",
        seen.writes
    );
    ensure!(
        seen.renewals >= RENEWALS,
        "only {} renewals of the Lease in {QUIET:?}: the log says nothing",
        seen.renewals
    );
    let there = count(&stage).await?;
    ensure!(there == OBJECTS, "{there} objects are left of {OBJECTS}");
    stage.proved(
        &format!(
            "no write in {QUIET:?} but {} renewals of the Lease",
            seen.renewals
        ),
        start.elapsed(),
    );
    Ok(())
}

/// Formats of the first Datasets, with the `ConfigMap` that each one's rows are in. All others are as the first.
const FORMATS: [(&str, &str); 3] = [
    ("Completion", "amber"),
    ("Chat", "talks"),
    ("Text", "texts"),
];

/// Eight Datasets, seven LoRAAdapters, three finished runs, one for each format, and an endpoint with and one without
/// engines.
async fn make_objects(stage: &Stage) -> anyhow::Result<()> {
    let rollout = json!({"strategy": "Immediate"});
    stage.serve_amber(1, &rollout).await?;
    let rows = marker_rows("amber");
    for (format, name) in FORMATS {
        let rows: Vec<Value> = rows.iter().map(|row| in_format(format, row)).collect();
        stage.apply(&manifests::rows(name, &rows)).await?;
    }
    for number in 0..8 {
        let (format, rows) = FORMATS
            .get(number)
            .copied()
            .unwrap_or(("Completion", "amber"));
        let mut dataset = manifests::config_map_dataset(&format!("data-{number}"), rows);
        dataset.data["spec"]["format"]["type"] = json!(format);
        stage.apply(&dataset).await?;
    }
    for number in 0..6 {
        stage
            .import(&format!("adapter-{number}"), "basalt", &json!({}))
            .await?;
    }
    stage
        .apply(&manifests::endpoint("idle", &["adapter-0"], 0, &rollout))
        .await?;
    for number in 0..8 {
        stage.dataset_ready(&format!("data-{number}")).await?;
    }
    for (number, (format, _)) in FORMATS.into_iter().enumerate() {
        let (name, dataset) = (format!("run-{number}"), format!("data-{number}"));
        let mut run = Training {
            name: &name,
            dataset: &dataset,
            adapter: "",
            steps: 5,
            rank: 4,
            batch: 16,
            checkpoint_every: 5,
            ..Training::default()
        }
        .object_without_adapter();
        run.data["spec"]["evaluation"]["metrics"] = json!(metrics(format));
        stage.apply(&run).await?;
    }
    for (number, (format, _)) in FORMATS.into_iter().enumerate() {
        let run = stage
            .run_complete(&format!("run-{number}"), 3 * MINUTE)
            .await?;
        let measured = run.status.context("status")?.metrics;
        ensure!(
            measured.len() == metrics(format).len() && measured.iter().all(|it| it.samples > 0),
            "a run on rows of {format} measured {measured:?}"
        );
    }
    stage.stable_is("colours", 1).await
}

/// What can be measured on rows of a format.
fn metrics(format: &str) -> &'static [&'static str] {
    match format {
        // A text asks nothing.
        "Text" => &["Loss"],
        _ => &["Loss", "ExactMatch"],
    }
}

/// A row of prompt and completion as one of another format.
fn in_format(format: &str, row: &Value) -> Value {
    let text = |key: &str| row[key].as_str().unwrap_or_default();
    match format {
        "Chat" => json!({"messages": [
            {"role": "user", "content": text("prompt")},
            {"role": "assistant", "content": text("completion").trim()},
        ]}),
        "Text" => json!({"text": format!("{}{}", text("prompt"), text("completion"))}),
        _ => row.clone(),
    }
}

/// Objects of the four kinds.
async fn count(stage: &Stage) -> anyhow::Result<usize> {
    Ok(count_of::<Dataset>(stage).await?
        + count_of::<TrainingRun>(stage).await?
        + count_of::<LoRAAdapter>(stage).await?
        + count_of::<ServingEndpoint>(stage).await?)
}

async fn count_of<K>(stage: &Stage) -> anyhow::Result<usize>
where
    K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    K::DynamicType: Default,
{
    let api = stage.world.cluster.api::<K>(&stage.namespace);
    Ok(api.list(&ListParams::default()).await?.items.len())
}

/// Waits until nothing of ours was written for some seconds.
async fn settle(log: &mut Log, ours: &Ours) -> anyhow::Result<()> {
    let mut quiet_since = Instant::now();
    let mut last = Vec::new();
    wait("the last change to settle", 2 * MINUTE, || {
        let read = log.events().map(|events| ours.sort(&events).writes);
        let settled = read.and_then(|writes| {
            if !writes.is_empty() {
                quiet_since = Instant::now();
                last = writes;
            }
            let settled = quiet_since.elapsed() >= SETTLED;
            ensure!(settled, "the newest writes: {last:#?}");
            Ok(Some(()))
        });
        std::future::ready(settled)
    })
    .await
}

/// The audit log from some point on.
struct Log {
    reader: BufReader<File>,
    /// A line that the API server has not written to its end.
    begun: String,
}

impl Log {
    fn at_end(path: &Path) -> anyhow::Result<Self> {
        let mut file = File::open(path).with_context(|| path.display().to_string())?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self {
            reader: BufReader::new(file),
            begun: String::new(),
        })
    }

    /// What was written since the last look.
    fn events(&mut self) -> anyhow::Result<Vec<Value>> {
        let mut events = Vec::new();
        while self.reader.read_line(&mut self.begun)? > 0 {
            if self.begun.ends_with('\n') {
                events.push(serde_json::from_str(&self.begun).context("a line of the audit log")?);
                self.begun.clear();
            }
        }
        Ok(events)
    }
}

/// Who we are to the API server.
struct Ours {
    /// Namespace of the operator.
    system: String,
    /// Namespace of the objects, whose pods run under its service accounts.
    stage: String,
}

/// What of the log is ours.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    /// Of the leader's Lease.
    renewals: usize,
    /// All other writes, whether they were let through or not.
    writes: Vec<String>,
}

impl Ours {
    fn sort(&self, events: &[Value]) -> Seen {
        let mut seen = Seen::default();
        for event in events.iter().filter(|event| self.wrote(event)) {
            if self.is_renewal(event) {
                seen.renewals += 1;
            } else {
                seen.writes
                    .push(format!("{} {}", event["verb"], event["requestURI"]));
            }
        }
        seen
    }

    /// A service account of the operator's namespace or of the objects', wherever it writes.
    fn wrote(&self, event: &Value) -> bool {
        let user = event["user"]["username"].as_str().unwrap_or_default();
        let account = user.strip_prefix("system:serviceaccount:");
        let namespace = account.and_then(|account| account.split(':').next());
        let ours = namespace.is_some_and(|it| it == self.system || it == self.stage);
        let writes = matches!(
            event["verb"].as_str(),
            Some("create" | "update" | "patch" | "delete" | "deletecollection")
        );
        ours && writes
    }

    fn is_renewal(&self, event: &Value) -> bool {
        let object = &event["objectRef"];
        object["resource"] == "leases"
            && object["namespace"] == self.system.as_str()
            && object["name"] == "graftwork-operator"
            && matches!(event["verb"].as_str(), Some("update" | "patch"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn event(user: &str, verb: &str, namespace: &str, resource: &str, name: &str) -> Value {
        json!({
            "user": {"username": user}, "verb": verb,
            "requestURI": format!("/{namespace}/{resource}/{name}"),
            "objectRef": {"namespace": namespace, "resource": resource, "name": name},
        })
    }

    #[test]
    fn every_write_of_ours_counts_but_a_renewal_of_the_lease() {
        let ours = Ours {
            system: "system".into(),
            stage: "stage".into(),
        };
        let operator = "system:serviceaccount:system:graftwork";
        let renewal = event(operator, "update", "system", "leases", "graftwork-operator");
        assert_eq!(
            ours.sort(&[renewal]),
            Seen {
                renewals: 1,
                writes: Vec::new()
            }
        );
        for (user, verb, namespace, resource, name) in [
            (operator, "create", "stage", "events", "a"),
            (operator, "patch", "stage", "servingendpoints", "a"),
            (operator, "delete", "elsewhere", "jobs", "a"),
            (operator, "deletecollection", "stage", "jobs", ""),
            (operator, "create", "system", "leases", "graftwork-operator"),
            (operator, "update", "system", "leases", "another"),
            (operator, "update", "stage", "leases", "graftwork-operator"),
            (
                "system:serviceaccount:stage:default",
                "patch",
                "stage",
                "pods",
                "a",
            ),
        ] {
            let seen = ours.sort(&[event(user, verb, namespace, resource, name)]);
            assert_eq!(
                (seen.renewals, seen.writes.len()),
                (0, 1),
                "{verb} {resource}"
            );
        }
        for (user, verb) in [
            (operator, "get"),
            ("system:serviceaccount:system-2:graftwork", "patch"),
            ("system:kube-controller-manager", "update"),
            ("kubernetes-admin", "create"),
        ] {
            let seen = ours.sort(&[event(user, verb, "stage", "pods", "a")]);
            assert_eq!(seen, Seen::default(), "{user} {verb}");
        }
    }

    #[test]
    fn a_line_is_read_once_it_is_whole() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"{\"before\": 1}\n").unwrap();
        let mut log = Log::at_end(file.path()).unwrap();
        file.write_all(b"{\"a\": 1}\n{\"b\"").unwrap();
        assert_eq!(log.events().unwrap(), [json!({"a": 1})]);
        assert!(log.events().unwrap().is_empty());
        file.write_all(b": 2}\n").unwrap();
        assert_eq!(log.events().unwrap(), [json!({"b": 2})]);
    }
}
