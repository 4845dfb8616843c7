//! Names as long as names may be work like others, and what is made for them has names that fit. Meanwhile the run's
//! Dataset and LoRAAdapter are given specs that can't work, and its Job goes on.

use anyhow::ensure;
use graftwork_api::labels::component;
use serde_json::json;

use super::super::Stage;
use super::{READ, go_bad_beside_a_job, run_with};
use crate::manifests::{self, CLAIM};

/// The longest name of an object.
const LONGEST: usize = 253;
/// The longest name of a Service, of a pod's host name and of a label's value.
const LONGEST_OF_CHILDREN: usize = 63;

/// A Dataset, a run of it, and the adapter that the run publishes to.
pub async fn long(stage: &Stage) -> anyhow::Result<()> {
    let (dataset, run, adapter) = (name("data"), name("runs"), name("lora"));
    stage.import(&adapter, "basalt", &json!({})).await?;
    let approved = |version: &graftwork_api::lora_adapter::AdapterVersion| {
        version.stage.as_str() == "Approved"
    };
    stage.version(&adapter, 1, "Approved", approved).await?;
    let rows = manifests::config_map_dataset(&dataset, "amber");
    stage.apply(&rows).await?;
    stage.dataset_ready(&dataset).await?;
    stage
        .apply(&run_with(&run, |spec| {
            spec["datasetRef"] = json!({"name": dataset});
            spec["adapterRef"] = json!({"name": adapter});
        }))
        .await?;
    // What the run is made of goes bad while it trains.
    let mut no_rows = rows.clone();
    no_rows.data["spec"]["sources"][0]["configMapRef"]["key"] = json!("gone.jsonl");
    let import = |path: &str| {
        let uri = format!("pvc://{CLAIM}/adapters/{path}");
        manifests::adapter(&adapter, &json!({}), Some(&uri))
    };
    let job = (component::TRAINER, "TrainingRun", run.as_str());
    go_bad_beside_a_job(
        stage,
        job,
        &[
            (&rows, no_rows, &["SourceNotFound", "gone.jsonl"]),
            (
                &import("basalt"),
                import("absent"),
                &["ImportFailed", "absent"],
            ),
        ],
    )
    .await?;
    let done = stage.run_complete(&run, READ * 4).await?;
    let attempts = done.status.and_then(|status| status.attempts);
    ensure!(
        attempts.as_ref().is_some_and(|it| it.started == 1),
        "{attempts:?}"
    );
    let published = stage.version(&adapter, 2, "Approved", approved).await?;
    ensure!(
        published.training_run.as_ref() == Some(&run),
        "{published:?}"
    );
    let children = stage.inventory().await?;
    let too_long = children
        .iter()
        .find(|object| object.ours && object.name.len() > LONGEST_OF_CHILDREN);
    ensure!(too_long.is_none(), "{too_long:?}");
    Ok(())
}

fn name(start: &str) -> String {
    start
        .chars()
        .chain("x-".chars().cycle())
        .take(LONGEST)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_a_name() {
        for start in ["data", "runs", "lora"] {
            let name = name(start);
            assert_eq!(name.len(), LONGEST);
            assert!(name.starts_with(start) && name.ends_with('x'), "{name}");
        }
    }
}
