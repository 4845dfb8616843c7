//! GitOps: server-side apply with force, twice, as Argo CD does it, leaves no difference; the generated examples and
//! the custom resource definitions apply client-side and server-side.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use graftwork_api::ServingEndpoint;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use serde_json::json;

use super::Stage;
use crate::cluster::documents;
use crate::manifests;

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    let rollout = json!({"strategy": "Immediate"});
    stage.serve_amber(1, &rollout).await?;
    let cluster = &stage.world.cluster;
    let wanted = manifests::endpoint("assistants", &["colours"], 1, &rollout);
    let api: Api<DynamicObject> = Api::namespaced_with(
        cluster.client.clone(),
        &stage.namespace,
        &ApiResource::erase::<ServingEndpoint>(&()),
    );
    let parameters = PatchParams::apply("argocd-controller").force();
    let first = api
        .patch("assistants", &parameters, &Patch::Apply(&wanted))
        .await?;
    let second = api
        .patch("assistants", &parameters, &Patch::Apply(&wanted))
        .await?;
    ensure!(
        first.metadata.generation == second.metadata.generation,
        "the second apply made a new generation"
    );
    ensure!(
        first.data["spec"] == second.data["spec"],
        "the second apply changed the spec"
    );
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), serde_json::to_vec(&wanted)?)?;
    let path = file.path().to_str().context("path")?;
    // `kubectl diff` exits with 1 where there is a difference.
    let diff = [
        "-n",
        &stage.namespace,
        "diff",
        "--server-side",
        "--force-conflicts",
        "--field-manager=argocd-controller",
        "-f",
        path,
    ];
    cluster
        .kubectl(&diff)
        .await
        .context("there is a difference after two applies")?;
    stage.proved("no difference after two applies", start.elapsed());

    for folder in ["crds", "examples"] {
        for way in [
            &["--dry-run=server"][..],
            &["--dry-run=server", "--server-side", "--force-conflicts"],
        ] {
            let arguments = [&["-n", &stage.namespace, "apply", "-f", folder], way].concat();
            cluster
                .kubectl(&arguments)
                .await
                .with_context(|| format!("apply {folder} {way:?}"))?;
        }
    }
    for entry in std::fs::read_dir("examples")? {
        let path = entry?.path();
        let text = std::fs::read_to_string(&path)?;
        for object in documents(&text)? {
            stage
                .apply(&object)
                .await
                .with_context(|| path.display().to_string())?;
        }
    }
    stage.proved("every example is accepted", start.elapsed());
    Ok(())
}
