//! Which versions nobody needs any more. The keeper has the last word: it knows what the store refers to.

use std::cmp::Reverse;

use graftwork_api::Dataset;
use graftwork_contract::proto::store::v1::PruneRequest;

use super::Observed;
use super::step::Step;
use super::validate::Valid;
use crate::jobs::{self, JobState};
use crate::plan::Call;

/// The versions beyond the newest few, but for the one that the sources are now and those that a run or an
/// adapter refers to. None are named while a Job builds: it may find that its rows are an older version's.
pub fn prune(cr: &Dataset, valid: &Valid, step: &Step, observed: &Observed) -> Option<Call> {
    let Step::Ready {
        record, versions, ..
    } = step
    else {
        return None;
    };
    let kept = valid.kept_versions? as usize;
    let builds = |job| matches!(jobs::state(job), JobState::Active | JobState::Suspended);
    if observed.jobs.iter().any(builds) {
        return None;
    }
    let mut numbers: Vec<u32> = versions.iter().map(|version| version.version).collect();
    numbers.sort_unstable_by_key(|number| Reverse(*number));
    let needed = |number: &u32| {
        *number == record.version
            || observed.pinned.contains(number)
            || observed.referenced.contains(number)
    };
    let versions: Vec<u32> = numbers
        .into_iter()
        .skip(kept)
        .filter(|number| !needed(number))
        .collect();
    (!versions.is_empty()).then(|| {
        Call::Prune(PruneRequest {
            dataset: cr.metadata.name.clone().unwrap_or_default(),
            versions,
        })
    })
}
