//! What a run asks of its rows, held against what the Dataset says of them. The trainer looks at the
//! rows themselves; what shows here costs no node.

use graftwork_api::Dataset;
use graftwork_api::conditions::condition;
use graftwork_contract::dataset::Format;
use graftwork_contract::run::{MetricKind, ResolvedDataset};

use super::validate::{Invalid, Valid};
use super::{Observed, Referenced};
use crate::conditions;

/// The first field that can't work with the rows, where that can be told.
pub fn refused(valid: &Valid, rows: &ResolvedDataset, observed: &Observed) -> Option<Invalid> {
    let Referenced::There(dataset) = &observed.dataset else {
        return None;
    };
    if !is_as_the_spec_says(dataset, rows.version) {
        return None;
    }
    refused_objective(valid, rows)
        .or_else(|| refused_metric(valid, rows, dataset.spec.format.reward))
}

fn refused_objective(valid: &Valid, rows: &ResolvedDataset) -> Option<Invalid> {
    if valid.objective.is_default() || rows.format == Format::Preference {
        return None;
    }
    let message = format!(
        "DPO needs rows of format Preference, Dataset \"{}\" has {:?}; name such a Dataset, or type SFT, \
         in a new run",
        rows.name, rows.format
    );
    Some(Invalid::new("spec.objective.type", message))
}

fn refused_metric(valid: &Valid, rows: &ResolvedDataset, has_rewards: bool) -> Option<Invalid> {
    let name = &rows.name;
    valid.evaluation.metrics.iter().find_map(|metric| {
        let message = if metric.needs_answers() && rows.format == Format::Text {
            format!(
                "{metric:?} needs rows with answers, Dataset \"{name}\" has format Text; leave it out of a \
                 new run, or name a Dataset of another format"
            )
        } else if *metric == MetricKind::MeanReward && !has_rewards {
            format!(
                "{metric:?} needs rewards, Dataset \"{name}\" keeps none; set spec.format.reward of the \
                 Dataset, or leave the metric out, and start a new run"
            )
        } else {
            return None;
        };
        Some(Invalid::new("spec.evaluation.metrics", message))
    })
}

/// Whether a version has the format and columns of the Dataset's spec: that was built as it is now, and the
/// version has the schema of what came out. An older version may be of another spec.
fn is_as_the_spec_says(dataset: &Dataset, version: u32) -> bool {
    let Some(status) = &dataset.status else {
        return false;
    };
    let schema = |number: u32| {
        let mut versions = status.versions.iter();
        versions
            .find(|known| known.version == number)
            .map(|known| known.schema_hash.as_str())
    };
    let latest = status.latest.as_ref();
    let latest = latest.and_then(|latest| schema(latest.version));
    status.observed_generation == dataset.metadata.generation
        && conditions::is_true(&status.conditions, condition::READY)
        && latest.is_some()
        && latest == schema(version)
}
