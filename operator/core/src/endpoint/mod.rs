//! ServingEndpoint: engines and routers, the versions that they serve, and how a version takes over
//! from another.
//!
//! Decisions (a rollout's state, step and weight, answers to commands, rejected versions) are
//! persisted first; configuration, pushed lists and tables derive from what is persisted.

mod analysis;
mod answers;
mod children;
mod cluster;
mod decide;
mod desired;
mod fleet;
mod observed;
mod rollout;
mod status;
mod validate;

#[cfg(test)]
mod tests;

use std::time::Duration;

use graftwork_api::serving_endpoint::RolloutState;
use graftwork_api::{ServingEndpoint, ServingEndpointStatus};
use graftwork_contract::Digest;
use graftwork_contract::key_values::KeyValueBlock;
use jiff::Timestamp;

use crate::observed::Asked;
use crate::plan::{Actions, Call, NAME_TAKEN_PAUSE, Nudge, Plan};
use crate::settings::Settings;
use children::Builder;
use decide::Context;
use fleet::Fleet;
use rollout::seconds_since;
use validate::{Policy, Valid};

pub use observed::{
    EnginePod, Names, Observed, RouterPod, Window, children_names, list_digest, windows,
};
pub use validate::{Invalid, validate};

/// Kind, as in YAML.
pub const KIND: &str = "ServingEndpoint";

/// Wait for something that is under way.
const SOON: Duration = Duration::from_secs(1);
/// A lease is renewed when this part of it has passed.
const LEASE_PARTS: u64 = 3;

/// The base model as engines are told about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedBase {
    /// Over the folder's files.
    pub digest: Digest,
    /// Longest context.
    pub maximum_positions: u32,
    /// A block of its KV cache, where the keeper has just said it.
    pub key_values: Option<KeyValueBlock>,
}

/// What is to be done about a ServingEndpoint.
pub fn plan(
    cr: &ServingEndpoint,
    observed: &Observed,
    settings: &Settings,
    now: Timestamp,
) -> Plan<ServingEndpointStatus> {
    if cr.metadata.deletion_timestamp.is_some() {
        return Plan::Act(Actions::default());
    }
    let valid = match validate(&cr.spec, settings) {
        Ok(valid) => valid,
        Err(invalid) => return hold(cr, &status::invalid(&invalid), observed, now),
    };
    if let Some(what) = foreign(cr, observed) {
        return look_again(hold(cr, &status::name_taken(&what), observed, now));
    }
    let served = decide::reconcile_entries(cr, now).adapters;
    let fleet = Fleet::new(cr, &served, observed);
    let base = served_base(&valid, observed);
    let context = Context {
        cr,
        valid: &valid,
        observed,
        fleet: &fleet,
        base: base.as_ref().map(|base| &base.digest),
        now,
    };
    if let Some(decision) = context.decide() {
        return Plan::Decide(decision);
    }
    let problem = status::problem(cr, &valid, observed, base.as_ref());
    let mut actions = status::report(context, problem.as_ref());
    if let Some(base) = base.as_ref().filter(|_| problem.is_none()) {
        actions.apply = Builder::new(context, base, settings).build();
    }
    actions.calls = calls(&valid.policy, &fleet, now);
    actions.nudge = nudges(&fleet);
    actions.requeue_after = requeue_after(cr, &valid.policy, &fleet, now);
    Plan::Act(actions)
}

/// While the spec can't be acted on: children stay as they are, nothing new begins, and engines and
/// routers are still told what was decided before, so that a pod that comes or goes is noticed.
fn hold(
    cr: &ServingEndpoint,
    trouble: &status::Trouble,
    observed: &Observed,
    now: Timestamp,
) -> Plan<ServingEndpointStatus> {
    let policy = Policy::holding(cr.spec.rollout.candidate_lease_seconds);
    let fleet = Fleet::held(cr, observed);
    if let Some(decision) = decide::hold(cr, &policy, &fleet, trouble.message(), now) {
        return Plan::Decide(decision);
    }
    let mut actions = status::held(cr, &policy, trouble, observed, now);
    let is_known = cr
        .status
        .as_ref()
        .is_some_and(|status| !status.adapters.is_empty());
    if !is_known && !cr.spec.adapters.is_empty() {
        // Status was lost, or nothing was decided yet: pods know better than we do.
        return Plan::Act(actions);
    }
    actions.calls = calls(&policy, &fleet, now);
    actions.nudge = nudges(&fleet);
    let served = cr.status.iter().flat_map(|status| &status.adapters);
    let taking_back = served
        .filter_map(|adapter| adapter.rollout.as_ref())
        .any(|rollout| rollout.state == RolloutState::RollingBack);
    actions.requeue_after = (taking_back || is_unheard(&fleet)).then_some(SOON);
    Plan::Act(actions)
}

/// How often engines are asked that could not read files.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Objects of others are not watched: whether a taken name is free is looked up.
fn look_again(plan: Plan<ServingEndpointStatus>) -> Plan<ServingEndpointStatus> {
    match plan {
        Plan::Act(mut actions) => {
            let pause = actions
                .requeue_after
                .map_or(NAME_TAKEN_PAUSE, |after| after.min(NAME_TAKEN_PAUSE));
            actions.requeue_after = Some(pause);
            Plan::Act(actions)
        }
        Plan::Decide(decision) => Plan::Decide(decision),
    }
}

/// The base model that engines run: as the keeper describes it, or as they were configured while it
/// does not answer, so that a keeper that is away takes nothing down.
fn served_base(valid: &Valid<'_>, observed: &Observed) -> Option<ServedBase> {
    if let Asked::Answered(described) = &observed.base {
        let base = described.as_ref().ok()?;
        return Some(ServedBase {
            digest: base.digest.clone(),
            maximum_positions: base.maximum_positions,
            key_values: base.key_values,
        });
    }
    let configured = fleet::read_configuration(observed.engine_configuration.ours())?;
    let folder = graftwork_contract::pod::claim_dir(valid.base.claim());
    let path = valid.base.path();
    let same = configured.base_path == folder || configured.base_path == format!("{folder}/{path}");
    same.then_some(ServedBase {
        digest: configured.base_digest,
        maximum_positions: configured.maximum_context_tokens,
        key_values: None,
    })
}

/// The first child whose name is somebody else's.
fn foreign(cr: &ServingEndpoint, observed: &Observed) -> Option<String> {
    let names = children_names(cr);
    [
        (
            "ConfigMap",
            &names.engine,
            observed.engine_configuration.is_foreign(),
        ),
        (
            "ConfigMap",
            &names.router,
            observed.router_configuration.is_foreign(),
        ),
        (
            "Deployment",
            &names.engine,
            observed.engine_deployment.is_foreign(),
        ),
        (
            "Deployment",
            &names.router,
            observed.router_deployment.is_foreign(),
        ),
        (
            "Service",
            &names.engines_service,
            observed.engines_service.is_foreign(),
        ),
        ("Service", &names.service, observed.service.is_foreign()),
    ]
    .into_iter()
    .find(|(.., foreign)| *foreign)
    .map(|(kind, name, _)| {
        // An endpoint `a-engines` wants the name that the engines of an endpoint `a` have.
        let other = name
            .strip_suffix("-engines")
            .filter(|_| kind == "Service" && *name == names.service);
        match other {
            Some(other) => format!(
                "{kind} {name}, which is what the engines of a ServingEndpoint \"{other}\" are called,"
            ),
            None => format!("{kind} {name}"),
        }
    })
}

/// Engines before routers: a router never hears of a version before the engines.
fn calls(policy: &Policy, fleet: &Fleet<'_>, now: Timestamp) -> Vec<Call> {
    let request = fleet.request();
    let digest = list_digest(&request);
    let engines = fleet
        .engines
        .iter()
        .filter(|engine| {
            engine
                .acknowledged
                .as_ref()
                .is_none_or(|known| known.table != digest)
        })
        .filter_map(|engine| Some(Call::SyncEngine(engine.pod.target()?, request.clone())));
    let leased = has_lease(fleet);
    let routers = fleet
        .routers
        .iter()
        .filter(|router| {
            router.acknowledged.as_ref().is_none_or(|known| {
                let age = seconds_since(known.at, now);
                known.table != fleet.table_digest
                    || (leased && age >= policy.lease_seconds / LEASE_PARTS)
            })
        })
        .filter_map(|router| Some(Call::SyncRouter(router.pod.target()?, fleet.table.clone())));
    engines.chain(routers).collect()
}

/// Whether a candidate has a share of the callers that has to be renewed.
fn has_lease(fleet: &Fleet<'_>) -> bool {
    fleet
        .table
        .models
        .iter()
        .any(|model| model.candidate.is_some())
}

/// Engines that can't be dialled read their mounted list.
fn nudges(fleet: &Fleet<'_>) -> Vec<Nudge> {
    let digest = list_digest(&fleet.request());
    fleet
        .engines
        .iter()
        .filter(|engine| matches!(engine.status, Asked::Unreachable(_)))
        .map(|engine| Nudge {
            pod: engine.pod.name.clone(),
            uid: engine.pod.uid.clone(),
            configuration: digest.short().to_owned(),
        })
        .collect()
}

/// Whether a pod that is ready has not taken what it was sent last.
fn is_unheard(fleet: &Fleet<'_>) -> bool {
    let list = list_digest(&fleet.request());
    let engines = fleet.engines.iter().any(|engine| {
        engine
            .acknowledged
            .as_ref()
            .is_none_or(|known| known.table != list)
    });
    engines || (!fleet.routers.is_empty() && !fleet.routers_follow().acknowledged)
}

/// When to look again without an event: soon while something is under way, at the renewal of a lease
/// or the next judgement otherwise, and not at all at rest.
fn requeue_after(
    cr: &ServingEndpoint,
    policy: &Policy,
    fleet: &Fleet<'_>,
    now: Timestamp,
) -> Option<Duration> {
    let served = cr.status.iter().flat_map(|status| &status.adapters);
    let mut wait = is_unheard(fleet).then_some(SOON);
    if wait.is_none() && fleet.looks_again() {
        // Nobody tells when a volume gives what it owed.
        wait = Some(LOOK_AGAIN);
    }
    let mut sooner = |after: Duration| {
        wait = Some(wait.map_or(after, |known| known.min(after)));
    };
    for adapter in served {
        let Some(rollout) = adapter
            .rollout
            .as_ref()
            .filter(|_| adapter.candidate.is_some())
        else {
            continue;
        };
        if !rollout::is_active(&rollout.state) {
            continue;
        }
        let renewal = policy.lease_seconds / LEASE_PARTS;
        sooner(Duration::from_secs(renewal.max(1)));
        let holds = rollout.state == RolloutState::Paused;
        if !holds {
            sooner(SOON);
        }
        if let Some(analysis) = &policy.analysis {
            let last = rollout
                .last_analysis_time
                .as_ref()
                .or(rollout.window_since.as_ref());
            let since = last.map_or(0, |time| seconds_since(time.0, now));
            let due = analysis.interval_seconds.saturating_sub(since).max(1);
            sooner(Duration::from_secs(due));
        }
        // The end of a timed pause, to the second.
        let left = status::pause_left(policy, rollout, now);
        sooner(left.map_or(Duration::from_secs(30), |left| left.max(SOON)));
    }
    wait
}
