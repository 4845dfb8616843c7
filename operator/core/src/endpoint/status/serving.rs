//! Whether an endpoint serves, and what its pods say where it does not.

use graftwork_api::ServingEndpoint;
use graftwork_api::conditions::{condition, reason};
use graftwork_api::serving_endpoint::ServedAdapter;

use super::both;
use super::trouble::Trouble;
use crate::conditions::{self, Moving, Truth};
use crate::endpoint::fleet::Fleet;
use crate::endpoint::observed::Observed;
use crate::observed::Pod;

/// Rules in order: the first that holds says whether the endpoint serves.
pub(super) fn serving(
    cr: &ServingEndpoint,
    observed: &Observed,
    fleet: &Fleet<'_>,
    adapters: &[ServedAdapter],
) -> Trouble {
    if cr.spec.replicas == 0 {
        return Trouble::new(
            Truth::False,
            reason::SCALED_TO_ZERO,
            "spec.replicas is 0",
            Moving::Rests,
        );
    }
    if fleet.engines.is_empty() {
        let pods: Vec<_> = observed.engines.iter().map(|engine| &engine.pod).collect();
        let message = explain_pods("engine", &pods);
        return Trouble::new(
            Truth::False,
            reason::ENGINES_NOT_READY,
            message,
            Moving::Reconciling,
        );
    }
    if fleet.routers.is_empty() {
        let pods: Vec<_> = observed.routers.iter().map(|router| &router.pod).collect();
        let message = explain_pods("router", &pods);
        return Trouble::new(
            Truth::False,
            reason::ROUTERS_NOT_READY,
            message,
            Moving::Reconciling,
        );
    }
    let loading = adapters
        .iter()
        .find(|it| it.reason.as_deref() == Some(reason::LOADING));
    if let Some(adapter) = loading {
        let message = format!(
            "{}: {}",
            adapter.name,
            adapter.message.as_deref().unwrap_or_default()
        );
        return Trouble::new(
            Truth::Unknown,
            reason::LOADING,
            message,
            Moving::Reconciling,
        );
    }
    let already = cr
        .status
        .as_ref()
        .is_some_and(|status| conditions::is_true(&status.conditions, condition::READY));
    if !already && !fleet.routers_follow().acknowledged {
        let message = "routers are being told what to serve";
        return Trouble::new(
            Truth::Unknown,
            reason::LOADING,
            message,
            Moving::Reconciling,
        );
    }
    let both = both(fleet.engines.len(), fleet.routers.len());
    let message = format!("{both} serve");
    let moving = if is_rolling(cr, observed) {
        Moving::Reconciling
    } else {
        Moving::Rests
    };
    Trouble::new(Truth::True, reason::READY, message, moving)
}

/// Whether engines are being replaced by those of the newest spec.
fn is_rolling(cr: &ServingEndpoint, observed: &Observed) -> bool {
    let Some(deployment) = observed.engine_deployment.ours() else {
        return true;
    };
    let Some(status) = &deployment.status else {
        return true;
    };
    let wanted = i32::try_from(cr.spec.replicas).unwrap_or(i32::MAX);
    status.observed_generation < deployment.metadata.generation
        || status.updated_replicas.unwrap_or(0) < wanted
        || status.replicas.unwrap_or(0) != wanted
        || status.ready_replicas.unwrap_or(0) < wanted
}

/// Why no pod is ready, from the first that says something.
fn explain_pods(what: &str, pods: &[&Pod]) -> String {
    if pods.is_empty() {
        return format!("there is no {what} pod yet");
    }
    let problem = first_problem(pods);
    problem.unwrap_or_else(|| match pods.len() {
        1 => format!("the {what} pod is starting"),
        many => format!("{many} {what} pods are starting"),
    })
}

fn first_problem(pods: &[&Pod]) -> Option<String> {
    pods.iter()
        .find_map(|pod| Some(format!("{}: {}", pod.name, pod.problem()?)))
}

/// What is said while engines are being replaced: also why the newest of them do not come up.
pub(super) fn replacing(observed: &Observed) -> String {
    let engines = observed.engines.iter().map(|engine| &engine.pod);
    let mut starting: Vec<_> = engines
        .filter(|pod| !pod.ready && pod.deleting_since.is_none())
        .collect();
    // Those of the newest spec come first.
    starting.sort_by_key(|pod| std::cmp::Reverse(pod.created));
    let why = first_problem(&starting).map_or_else(String::new, |why| format!("; {why}"));
    format!("engines are being replaced{why}")
}
