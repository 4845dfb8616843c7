//! What a ServingEndpoint's surroundings look like, and what has to be asked to know it.

use std::collections::BTreeMap;

use graftwork_api::serving_endpoint::RolloutState;
use graftwork_api::{LoRAAdapter, ServingEndpoint, names};
use graftwork_contract::proto::{engine, router};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Service};

use super::rollout::seconds_since;
use crate::observed::{Acknowledgement, Asked, ClaimState, DescribedBase, Found, Pod};
use crate::storage::StorageProblem;

/// Routers keep one-second buckets for 15 minutes; a window stays a minute inside.
const LONGEST_WINDOW_SECONDS: u64 = 14 * 60;

/// What a ServingEndpoint's surroundings look like.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// Why the namespace has no store.
    pub storage: Option<StorageProblem>,
    /// The claim of `spec.baseModel`.
    pub base_claim: ClaimState,
    /// The folder of `spec.baseModel`.
    pub base: Asked<DescribedBase>,
    /// The LoRAAdapters that `spec.adapters` names and that exist, by name.
    pub adapters: BTreeMap<String, LoRAAdapter>,
    /// The engines' configuration: [`Names::engine`].
    pub engine_configuration: Found<ConfigMap>,
    /// The routers' configuration: [`Names::router`].
    pub router_configuration: Found<ConfigMap>,
    /// The engines: [`Names::engine`].
    pub engine_deployment: Found<Deployment>,
    /// The routers: [`Names::router`].
    pub router_deployment: Found<Deployment>,
    /// The engines' headless Service: [`Names::engines_service`].
    pub engines_service: Found<Service>,
    /// The Service that clients use: [`Names::service`].
    pub service: Found<Service>,
    /// Pods of the engines' Deployment.
    pub engines: Vec<EnginePod>,
    /// Pods of the routers' Deployment.
    pub routers: Vec<RouterPod>,
    /// The operator's public keys.
    pub operator_keys: Vec<String>,
}

/// An engine.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EnginePod {
    /// The pod.
    pub pod: Pod,
    /// Its answer to `Status`; asked of ready pods.
    pub status: Asked<engine::v1::SyncReply>,
    /// The list that its present process took last: `table` is its [`list_digest`].
    pub acknowledged: Option<Acknowledgement>,
}

/// A router.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RouterPod {
    /// The pod.
    pub pod: Pod,
    /// The table that its present process took last.
    pub acknowledged: Option<Acknowledgement>,
    /// Its answers to `Stats`, by the adapter's name, for each of [`windows`].
    pub stats: BTreeMap<String, Asked<router::v1::StatsReply>>,
}

/// Names of an endpoint's children.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// Deployment and ConfigMap of the engines.
    pub engine: String,
    /// Deployment and ConfigMap of the routers.
    pub router: String,
    /// Headless Service of the engines.
    pub engines_service: String,
    /// Service that clients use.
    pub service: String,
}

/// Names of an endpoint's children.
pub fn children_names(cr: &ServingEndpoint) -> Names {
    let owner = cr.metadata.name.as_deref().unwrap_or_default();
    Names {
        engine: names::child_name(owner, "engine"),
        router: names::child_name(owner, "router"),
        engines_service: names::child_name(owner, "engines"),
        // The CRD holds the name to what a Service may be called.
        service: owner.to_owned(),
    }
}

/// A window of the routers' counters, in milliseconds before now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Start.
    pub from_milliseconds_ago: u64,
    /// End.
    pub to_milliseconds_ago: u64,
}

/// The windows that are to be asked of every ready router now, by the adapter's name: only where a
/// judgement is due, so that an endpoint without a rollout asks nothing.
pub fn windows(cr: &ServingEndpoint, now: Timestamp) -> BTreeMap<String, Window> {
    let Some(analysis) = &cr.spec.rollout.analysis else {
        return BTreeMap::new();
    };
    cr.status
        .iter()
        .flat_map(|status| &status.adapters)
        .filter_map(|adapter| {
            let rollout = adapter.rollout.as_ref()?;
            adapter.candidate.as_ref()?;
            let judged = matches!(
                rollout.state,
                RolloutState::Stepping | RolloutState::Paused | RolloutState::Promoting
            );
            let start = &rollout.window_since.as_ref()?.0;
            let last = rollout
                .last_analysis_time
                .as_ref()
                .map_or(*start, |time| time.0.max(*start));
            // A judgement that lies ahead was made by a clock ahead of ours: waiting for that time would judge
            // nothing meanwhile.
            let due = last > now || seconds_since(last, now) >= analysis.interval_seconds;
            if !judged || !due {
                return None;
            }
            let seconds = seconds_since(*start, now).min(LONGEST_WINDOW_SECONDS);
            Some((
                adapter.name.clone(),
                Window {
                    from_milliseconds_ago: seconds * 1000,
                    to_milliseconds_ago: 0,
                },
            ))
        })
        .collect()
}

/// Digest of an encoded list of adapters: two lists are the same where their digests are.
pub fn list_digest(list: &engine::v1::SyncRequest) -> graftwork_contract::Digest {
    use prost::Message as _;
    graftwork_contract::Digest::of(&list.encode_to_vec())
}
