//! How many adapters there are, and what the columns of `kubectl get` say of them.

use graftwork_api::serving_endpoint::{
    AdapterCounts, EndpointColumns, RejectedDigest, RolloutState, ServedAdapter,
};

use super::state;
use crate::endpoint::rollout::is_active;

/// Longest text of the column Rollout.
const LONGEST_COLUMN: usize = 200;

pub(super) fn count(adapters: &[ServedAdapter]) -> AdapterCounts {
    let count = |holds: fn(&ServedAdapter) -> bool| {
        u32::try_from(adapters.iter().filter(|adapter| holds(adapter)).count()).unwrap_or(u32::MAX)
    };
    AdapterCounts {
        total: count(|_| true),
        serving: count(|adapter| adapter.stable.is_some()),
        pending: count(|adapter| adapter.stable.is_none()),
        progressing: count(|adapter| state(adapter).is_some_and(is_active)),
        rolled_back: count(|adapter| state(adapter) == Some(&RolloutState::RolledBack)),
    }
}

/// What the column Rollout says of one adapter; none where nothing moves and nothing was taken back.
fn movement(adapter: &ServedAdapter, rejected: &[RejectedDigest]) -> Option<String> {
    let rollout = adapter.rollout.as_ref()?;
    let name = &adapter.name;
    let from = adapter
        .stable
        .as_ref()
        .map_or_else(String::new, |it| format!("v{}", it.version));
    match &adapter.candidate {
        Some(candidate) => Some(format!(
            "{name} {from}>v{} {}% {}",
            candidate.version, candidate.weight, rollout.state
        )),
        None if rollout.state == RolloutState::RolledBack => {
            // Newest first: the version that this rollout took back. A list that is full may have
            // let go of it.
            let taken_back = rejected
                .iter()
                .find(|it| it.adapter == *name && Some(&it.reason) == rollout.reason.as_ref());
            let to = taken_back.map_or_else(String::new, |it| format!(">v{}", it.version));
            Some(format!("{name} {from}{to} {}", rollout.state))
        }
        None => None,
    }
}

pub(super) fn columns(adapters: &[ServedAdapter], rejected: &[RejectedDigest]) -> EndpointColumns {
    let counts = count(adapters);
    let moving: Vec<String> = adapters
        .iter()
        .filter_map(|adapter| movement(adapter, rejected))
        .collect();
    let mut rollout = if moving.is_empty() {
        "-".to_owned()
    } else {
        moving.join(", ")
    };
    if rollout.len() > LONGEST_COLUMN {
        rollout = format!("{} rollouts", moving.len());
    }
    EndpointColumns {
        adapters: format!("{}/{}", counts.serving, counts.total),
        rollout,
    }
}
