//! Names as long as names may be work like others, and what is made for them has names that fit.

use anyhow::ensure;
use serde_json::json;

use super::super::Stage;
use super::{READ, run_with};
use crate::manifests;

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
    stage
        .apply(&manifests::config_map_dataset(&dataset, "amber"))
        .await?;
    stage.dataset_ready(&dataset).await?;
    stage
        .apply(&run_with(&run, |spec| {
            spec["datasetRef"] = json!({"name": dataset});
            spec["adapterRef"] = json!({"name": adapter});
        }))
        .await?;
    stage.run_complete(&run, READ * 4).await?;
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
