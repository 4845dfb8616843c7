//! A ServingEndpoint's status: what is said about its pods, its adapters and their rollouts.

mod columns;
mod rollouts;
mod serving;
mod trouble;

use graftwork_api::conditions::{condition, reason};
use graftwork_api::serving_endpoint::{RolloutState, ServedAdapter};
use graftwork_api::{ServingEndpoint, ServingEndpointStatus, labels};
use jiff::Timestamp;

use super::KIND;
use super::decide::Context;
use super::desired::{self, Desired};
use super::observed::{Observed, children_names};
use super::validate::Policy;
use crate::conditions::{self, Conditions, Truth, counted, shorten};
use crate::observed::Pod;
use crate::plan::Actions;
use columns::{columns, count};
use rollouts::{say_pending, say_rollouts};
use serving::{replacing, serving};

pub use rollouts::pause_left;
pub use trouble::{Trouble, invalid, name_taken, problem};

/// What is said while the spec is not acted on: the trouble, and where what was decided before
/// stands.
pub fn held(
    cr: &ServingEndpoint,
    policy: &Policy,
    trouble: &Trouble,
    observed: &Observed,
    now: Timestamp,
) -> Actions<ServingEndpointStatus> {
    let mut next = cr.status.clone().unwrap_or_default();
    let decided = !next.adapters.is_empty();
    if decided {
        next.adapter_counts = Some(count(&next.adapters));
        next.columns = Some(columns(&next.adapters, &next.rejected));
    }
    let mut actions = say(cr, next, trouble, observed, now);
    if let Some(status) = &mut actions.status {
        let mut conditions = Conditions::new(&status.conditions, cr.metadata.generation, now);
        if decided {
            say_rollouts(&mut conditions, &status.adapters, policy, now);
        }
        // What adapters are said to wait for is of the spec before.
        conditions.set(
            condition::ADAPTERS_PENDING,
            Truth::Unknown,
            &trouble.reason,
            "what the spec asks for is not looked at while it can't be acted on",
        );
        status.conditions = conditions.into_list();
    }
    actions
}

/// Everything that is known, said.
pub fn report(context: Context<'_>, problem: Option<&Trouble>) -> Actions<ServingEndpointStatus> {
    let Context {
        cr,
        valid,
        observed,
        fleet,
        base,
        now,
    } = context;
    let mut next = cr.status.clone().unwrap_or_default();
    for (adapter, entry) in next.adapters.iter_mut().zip(&cr.spec.adapters) {
        let digest = adapter
            .candidate
            .as_ref()
            .map(|candidate| &candidate.digest)
            .or(adapter.stable.as_ref().map(|stable| &stable.digest));
        adapter.verified_replicas = digest.map(|digest| {
            u32::try_from(fleet.engines_with(&adapter.name, digest).verified).unwrap_or(u32::MAX)
        });
        let held = &cr.spec.engine.quantization;
        let desired = desired::desired(entry, &observed.adapters, base, held);
        let pending = pending(adapter, &desired, cr.spec.replicas);
        adapter.reason = pending.as_ref().map(|(reason, _)| reason.clone());
        adapter.message = pending.map(|(_, message)| shorten(&message));
    }
    next.adapter_counts = Some(count(&next.adapters));
    next.columns = Some(columns(&next.adapters, &next.rejected));
    let trouble = problem
        .cloned()
        .unwrap_or_else(|| serving(cr, observed, fleet, &next.adapters));
    let mut actions = say(cr, next, &trouble, observed, now);
    if let Some(status) = &mut actions.status {
        let mut conditions = Conditions::new(&status.conditions, cr.metadata.generation, now);
        say_rollouts(&mut conditions, &status.adapters, &valid.policy, now);
        say_pending(&mut conditions, &status.adapters);
        status.conditions = conditions.into_list();
    }
    actions
}

/// Why an adapter is not served as the spec says.
fn pending(adapter: &ServedAdapter, desired: &Desired, replicas: u32) -> Option<(String, String)> {
    if let Desired::Pending { reason, message } = desired {
        return Some(((*reason).to_owned(), message.clone()));
    }
    if adapter.stable.is_some() {
        return None;
    }
    let rollout = adapter.rollout.as_ref();
    if let Some(rollout) = rollout.filter(|rollout| rollout.state == RolloutState::RolledBack) {
        let message = rollout.message.clone().unwrap_or_default();
        return Some((reason::ADAPTER_REFUSED.to_owned(), message));
    }
    let message = match &adapter.candidate {
        Some(candidate) if replicas == 0 => format!(
            "v{} is loaded once there are engines: spec.replicas is 0",
            candidate.version
        ),
        Some(candidate) => format!("engines are loading v{}", candidate.version),
        None => "the first version is about to be loaded".to_owned(),
    };
    Some((reason::LOADING.to_owned(), message))
}

fn both(engines: usize, routers: usize) -> String {
    let (engines, routers) = (counted(engines, "engine"), counted(routers, "router"));
    format!("{engines} and {routers}")
}

fn state(adapter: &ServedAdapter) -> Option<&RolloutState> {
    adapter.rollout.as_ref().map(|rollout| &rollout.state)
}

/// What is said whatever else is: readiness, availability, where the endpoint is.
fn say(
    cr: &ServingEndpoint,
    mut next: ServingEndpointStatus,
    trouble: &Trouble,
    observed: &Observed,
    now: Timestamp,
) -> Actions<ServingEndpointStatus> {
    let old = cr
        .status
        .as_ref()
        .map(|status| status.conditions.clone())
        .unwrap_or_default();
    let ready = |pod: &Pod| pod.ready && pod.target().is_some();
    let engines = observed
        .engines
        .iter()
        .filter(|engine| ready(&engine.pod))
        .count();
    let routers = observed
        .routers
        .iter()
        .filter(|router| ready(&router.pod))
        .count();
    next.replicas = u32::try_from(observed.engines.len()).unwrap_or(u32::MAX);
    next.ready_replicas = u32::try_from(engines).unwrap_or(u32::MAX);
    let name = cr.metadata.name.as_deref().unwrap_or_default();
    next.selector = Some(labels::to_text(&labels::selector(
        labels::component::ENGINE,
        KIND,
        name,
    )));
    let namespace = cr.metadata.namespace.as_deref().unwrap_or_default();
    next.url = Some(format!(
        "http://{}.{namespace}.svc:80",
        children_names(cr).service
    ));
    next.observed_generation = cr.metadata.generation;
    let mut conditions = Conditions::new(&next.conditions, cr.metadata.generation, now);
    conditions.set(
        condition::READY,
        trouble.truth,
        &trouble.reason,
        &trouble.message,
    );
    let (truth, why) = match (cr.spec.replicas, engines, routers) {
        (0, ..) => (Truth::False, reason::SCALED_TO_ZERO),
        (_, 0, _) => (Truth::False, reason::ENGINES_NOT_READY),
        (_, _, 0) => (Truth::False, reason::ROUTERS_NOT_READY),
        _ => (Truth::True, reason::REPLICAS_AVAILABLE),
    };
    conditions.set(
        condition::AVAILABLE,
        truth,
        why,
        format!("{} are ready", both(engines, routers)),
    );
    for kind in [
        condition::PROGRESSING,
        condition::ROLLED_BACK,
        condition::ADAPTERS_PENDING,
    ] {
        if conditions::find(&next.conditions, kind).is_none() {
            conditions.set(kind, Truth::Unknown, &trouble.reason, &trouble.message);
        }
    }
    if trouble.truth == Truth::True {
        conditions.set_moving(trouble.moving, reason::ROLLING_ENGINES, replacing(observed));
    } else {
        conditions.set_moving(trouble.moving, &trouble.reason, &trouble.message);
    }
    next.conditions = conditions.into_list();
    let event = conditions::turned(&old, &next.conditions, condition::READY, trouble.moving);
    Actions {
        status: Some(next),
        events: event.into_iter().collect(),
        ..Actions::default()
    }
}
