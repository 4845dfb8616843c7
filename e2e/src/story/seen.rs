//! What the operator says to those who look at it: events of objects, `/metrics`, and its probes.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::Stage;
use crate::cluster::wait;
use crate::install::Installation;

/// Port of `/metrics` and the probes.
const PORT: u16 = 8081;
/// Events follow status, and a look at metrics follows both.
const SOON: Duration = Duration::from_secs(15);
/// The four kinds.
const KINDS: [&str; 4] = ["Dataset", "TrainingRun", "LoRAAdapter", "ServingEndpoint"];

impl Stage {
    /// Waits until `kubectl get events` has each of the reasons for an object.
    pub async fn events(&self, kind: &str, name: &str, reasons: &[&str]) -> anyhow::Result<()> {
        let arguments = ["-n", &self.namespace, "get", "events", "-o", "json"];
        let what = format!("events {reasons:?} of {kind} {name}");
        wait(&what, SOON, || async {
            let text = self.world.cluster.kubectl(&arguments).await?;
            let list: Value = serde_json::from_str(&text)?;
            let seen: Vec<&str> = list["items"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|event| {
                    event["involvedObject"]["kind"] == kind
                        && event["involvedObject"]["name"] == name
                        && event["message"].as_str().is_some_and(|it| !it.is_empty())
                })
                .filter_map(|event| event["reason"].as_str())
                .collect();
            ensure!(
                reasons.iter().all(|reason| seen.contains(reason)),
                "there are {seen:?}"
            );
            Ok(Some(()))
        })
        .await
    }

    /// Waits until the leader's metrics speak of all four kinds, of a finished run and of a stable adapter; who does
    /// not lead says nothing of objects, and both are alive and ready.
    pub async fn operator_is_measured(&self) -> anyhow::Result<()> {
        wait("the operator's metrics", SOON, || async {
            let cluster = &self.world.cluster;
            let system = &self.world.installation.system_namespace;
            let pods = cluster
                .pods(system, Installation::operator_selector())
                .await?;
            let mut leaders = 0;
            for pod in pods {
                let name = pod.metadata.name.context("a pod without a name")?;
                for probe in ["healthz", "readyz"] {
                    let answer = self.ask_operator(&name, probe).await?;
                    ensure!(answer == "ok", "{name}: /{probe} says {answer}");
                }
                let metrics = self.ask_operator(&name, "metrics").await?;
                if sum(&metrics, "graftwork_leader", &[]) == Some(1.0) {
                    leaders += 1;
                    ensure_whole(&metrics)?;
                } else {
                    let objects = ["graftwork_training_runs", "graftwork_rollouts"];
                    let said = objects.map(|gauge| sum(&metrics, gauge, &[]));
                    ensure!(said == [None, None], "{name} does not lead: {metrics}");
                }
            }
            ensure!(leaders == 1, "{leaders} operators lead");
            Ok(Some(()))
        })
        .await
    }

    /// GET through the API server.
    async fn ask_operator(&self, pod: &str, path: &str) -> anyhow::Result<String> {
        let system = &self.world.installation.system_namespace;
        let uri = format!("/api/v1/namespaces/{system}/pods/{pod}:{PORT}/proxy/{path}");
        let request = http::Request::get(uri).body(Vec::new())?;
        Ok(self.world.cluster.client.request_text(request).await?)
    }
}

fn ensure_whole(metrics: &str) -> anyhow::Result<()> {
    for kind in KINDS {
        for name in [
            "graftwork_reconciles_total",
            "graftwork_reconcile_duration_seconds_count",
            "graftwork_api_writes_total",
        ] {
            let counted = sum(metrics, name, &[("kind", kind)]);
            ensure!(counted > Some(0.0), "no {name} of {kind}: {metrics}");
        }
        let depth = sum(metrics, "graftwork_queue_depth", &[("kind", kind)]);
        ensure!(
            depth.is_some(),
            "no graftwork_queue_depth of {kind}: {metrics}"
        );
    }
    for (name, labels) in [
        (
            "graftwork_api_writes_total",
            &[("kind", "Job"), ("verb", "create"), ("outcome", "ok")][..],
        ),
        ("graftwork_calls_total", &[("outcome", "ok")]),
        ("graftwork_training_runs", &[("reason", "Completed")]),
        ("graftwork_rollouts", &[("state", "Stable")]),
    ] {
        let counted = sum(metrics, name, labels);
        ensure!(counted > Some(0.0), "no {name} of {labels:?}: {metrics}");
    }
    // A counter of errors appears with the first error.
    let anonymous = metrics
        .lines()
        .filter(|line| line.starts_with("graftwork_reconcile_errors_total"))
        .find(|line| !(line.contains("kind=\"") && line.contains("category=\"")));
    ensure!(anonymous.is_none(), "{anonymous:?}");
    Ok(())
}

/// Sum over the lines of a metric that have all the labels; none where there is no such line.
fn sum(metrics: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let values: Vec<f64> = metrics
        .lines()
        .filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (known, rest) = series.split_once('{').unwrap_or((series, ""));
            let fits = labels
                .iter()
                .all(|(key, value)| rest.contains(&format!("{key}=\"{value}\"")));
            (known == name && fits)
                .then(|| value.parse().ok())
                .flatten()
        })
        .collect();
    (!values.is_empty()).then(|| values.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_the_lines_that_have_the_labels() {
        let metrics = "# HELP a_total A.\na_total{kind=\"X\",verb=\"get\"} 2\na_total{kind=\"X\",verb=\"put\"} 3\n\
                       a_total{kind=\"Y\",verb=\"get\"} 5\na_total_more{kind=\"X\"} 7\nb 1\n";
        assert_eq!(sum(metrics, "a_total", &[("kind", "X")]), Some(5.0));
        assert_eq!(
            sum(metrics, "a_total", &[("kind", "X"), ("verb", "put")]),
            Some(3.0)
        );
        assert_eq!(sum(metrics, "a_total", &[]), Some(10.0));
        assert_eq!(sum(metrics, "b", &[]), Some(1.0));
        assert_eq!(sum(metrics, "a_total", &[("kind", "Z")]), None);
        assert_eq!(sum(metrics, "c", &[]), None);
    }
}
