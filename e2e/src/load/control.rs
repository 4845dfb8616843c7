//! How a load that goes on until it is told otherwise is told: by an annotation of its pod, which the kubelet
//! mirrors into a file within a second. That needs no open port, no shell in the image and no token in the pod, and
//! the pod stays until its summary was read.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::cluster::Cluster;

/// The annotation that ends the load, with whatever value.
pub const STOP: &str = "graftwork.dev/stop-load";
/// Folder of the annotations in the load's pod.
const FOLDER: &str = "/control";
/// The file in [`FOLDER`].
const FILE: &str = "annotations";

const EVERY: Duration = Duration::from_millis(200);

/// What a load that can be told mounts: name, path and source of a volume.
pub fn mount() -> (&'static str, &'static str, Value) {
    let annotations = json!({"downwardAPI": {"items": [
        {"path": FILE, "fieldRef": {"fieldPath": "metadata.annotations"}},
    ]}});
    ("control", FOLDER, annotations)
}

/// The flag that goes with [`mount`].
pub fn flag() -> [String; 2] {
    ["--control".to_owned(), format!("{FOLDER}/{FILE}")]
}

/// Tells the load of a Job that it is enough.
pub async fn tell(cluster: &Cluster, namespace: &str, job: &str) -> anyhow::Result<()> {
    let pod = cluster.pod_of_job(namespace, job).await?;
    let patch = json!({"metadata": {"annotations": {STOP: "enough"}}});
    cluster
        .api::<Pod>(namespace)
        .patch(&pod, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
}

/// Returns once `file` holds the annotation.
pub async fn told(file: &Path) {
    loop {
        // The kubelet replaces the file in one step; before its first version there is none.
        if std::fs::read_to_string(file).is_ok_and(|annotations| is_told(&annotations)) {
            return;
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Whether annotations as the downward API writes them, `key="value"` a line, hold [`STOP`].
fn is_told(annotations: &str) -> bool {
    annotations
        .lines()
        .filter_map(|line| line.split_once('='))
        .any(|(key, _)| key == STOP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_annotation_itself_ends_a_load() {
        assert!(!is_told(""));
        assert!(!is_told(
            "note=\"graftwork.dev/stop-load\"\ngraftwork.dev/stop-loads=\"1\""
        ));
        assert!(is_told(
            "kubernetes.io/config.source=\"api\"\ngraftwork.dev/stop-load=\"\""
        ));
    }
}
