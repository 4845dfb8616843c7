//! A ServingEndpoint's status: what is said about its pods, its adapters and their rollouts.

use std::time::Duration;

use graftwork_api::conditions::{condition, reason};
use graftwork_api::serving_endpoint::{
    AdapterCounts, AdapterRollout, EndpointColumns, PausedBy, RejectedDigest, RolloutState,
    ServedAdapter,
};
use graftwork_api::{ServingEndpoint, ServingEndpointStatus, labels};
use jiff::Timestamp;

use super::decide::Context;
use super::desired::{self, Desired};
use super::fleet::Fleet;
use super::observed::{Observed, children_names};
use super::rollout::{is_active, seconds_since};
use super::validate::{self, Invalid, Policy, Step, Strategy, Valid};
use super::{KIND, ServedBase};
use crate::conditions::{self, Conditions, NAMED, Truth, counted, named, shorten};
use crate::observed::{Asked, Pod};
use crate::plan::{Actions, Event};
use crate::storage::StorageProblem;

/// Longest text of the column Rollout.
const LONGEST_COLUMN: usize = 200;

/// Why an endpoint is not what its spec says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    truth: Truth,
    reason: String,
    message: String,
    moving: Moving,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moving {
    Rests,
    Reconciling,
    Stalled,
}

impl Trouble {
    /// What is wrong, in words.
    pub fn message(&self) -> &str {
        &self.message
    }

    fn new(
        truth: Truth,
        reason: impl Into<String>,
        message: impl Into<String>,
        moving: Moving,
    ) -> Self {
        Self {
            truth,
            reason: reason.into(),
            message: message.into(),
            moving,
        }
    }
}

/// A spec that can't work.
pub fn invalid(invalid: &Invalid) -> Trouble {
    let message = format!("{}: {}", invalid.field, invalid.message);
    Trouble::new(Truth::False, invalid.reason, message, Moving::Stalled)
}

/// A child whose name is somebody else's.
pub fn name_taken(what: &str) -> Trouble {
    let message = format!(
        "{what} exists and does not belong to this ServingEndpoint: remove it, or name this one otherwise"
    );
    Trouble::new(
        Truth::False,
        reason::OBJECT_NOT_OURS,
        message,
        Moving::Stalled,
    )
}

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
    if next.adapters.is_empty() {
        return say(cr, next, trouble, observed, now);
    }
    next.adapter_counts = Some(count(&next.adapters));
    next.columns = Some(columns(&next.adapters, &next.rejected));
    let mut actions = say(cr, next, trouble, observed, now);
    say_rollouts(cr, policy, &mut actions, now);
    actions
}

/// What keeps children from being written; what runs goes on running.
pub fn problem(
    cr: &ServingEndpoint,
    valid: &Valid<'_>,
    observed: &Observed,
    base: Option<&ServedBase>,
) -> Option<Trouble> {
    match &observed.storage {
        Some(StorageProblem::NotOurs(message)) => {
            return Some(Trouble::new(
                Truth::False,
                reason::OBJECT_NOT_OURS,
                message,
                Moving::Stalled,
            ));
        }
        Some(StorageProblem::Unavailable(message)) => {
            return Some(Trouble::new(
                Truth::False,
                reason::STORAGE_UNAVAILABLE,
                message,
                Moving::Rests,
            ));
        }
        None => {}
    }
    let field = "spec.baseModel.uri";
    if let Some(problem) = observed.base_claim.problem(valid.base.claim()) {
        let message = format!("{field}: {problem}");
        return Some(Trouble::new(
            Truth::False,
            reason::BASE_MODEL_NOT_FOUND,
            message,
            Moving::Rests,
        ));
    }
    if let Asked::Answered(Err(problem)) = &observed.base {
        let message = format!("{field}: {}", problem.message);
        return Some(Trouble::new(
            Truth::False,
            &problem.reason,
            message,
            Moving::Rests,
        ));
    }
    let Some(base) = base else {
        let why = match &observed.base {
            Asked::Unreachable(why) => why.as_str(),
            _ => "the base model is being looked at",
        };
        return Some(Trouble::new(
            Truth::Unknown,
            reason::STORAGE_UNAVAILABLE,
            why,
            Moving::Reconciling,
        ));
    };
    // What the files have is known only from who has read them.
    if !matches!(observed.base, Asked::Answered(Ok(_))) {
        return None;
    }
    let message = validate::base_problem(&cr.spec.engine, &valid.engine, base)?;
    Some(Trouble::new(
        Truth::False,
        reason::INVALID_SPEC,
        message,
        Moving::Stalled,
    ))
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
    say_rollouts(cr, &valid.policy, &mut actions, now);
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

/// Rules in order: the first that holds says whether the endpoint serves.
fn serving(
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
fn replacing(observed: &Observed) -> String {
    let engines = observed.engines.iter().map(|engine| &engine.pod);
    let mut starting: Vec<_> = engines
        .filter(|pod| !pod.ready && pod.deleting_since.is_none())
        .collect();
    // Those of the newest spec come first.
    starting.sort_by_key(|pod| std::cmp::Reverse(pod.created));
    let why = first_problem(&starting).map_or_else(String::new, |why| format!("; {why}"));
    format!("engines are being replaced{why}")
}

fn count(adapters: &[ServedAdapter]) -> AdapterCounts {
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

fn state(adapter: &ServedAdapter) -> Option<&RolloutState> {
    adapter.rollout.as_ref().map(|rollout| &rollout.state)
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

fn columns(adapters: &[ServedAdapter], rejected: &[RejectedDigest]) -> EndpointColumns {
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

/// What is left of a timed pause or preview; nothing where it is over and something else holds it.
pub fn pause_left(policy: &Policy, rollout: &AdapterRollout, now: Timestamp) -> Option<Duration> {
    if rollout.state == RolloutState::Promoting {
        return None;
    }
    let length = match &policy.strategy {
        Strategy::Canary(steps) => match steps.get(rollout.step as usize)? {
            Step::Pause(seconds) => (*seconds)?,
            Step::SetWeight(_) => return None,
        },
        Strategy::BlueGreen {
            auto_promote: true,
            preview_seconds,
            ..
        } => *preview_seconds,
        Strategy::BlueGreen { .. } | Strategy::Immediate => return None,
    };
    let entered = rollout.step_since.as_ref()?;
    let passed = seconds_since(entered.0, now);
    Some(Duration::from_secs(length.saturating_sub(passed)))
}

/// Conditions about rollouts and adapters.
fn say_rollouts(
    cr: &ServingEndpoint,
    policy: &Policy,
    actions: &mut Actions<ServingEndpointStatus>,
    now: Timestamp,
) {
    let Some(status) = &mut actions.status else {
        return;
    };
    let mut conditions = Conditions::new(&status.conditions, cr.metadata.generation, now);
    let active = |adapter: &&ServedAdapter| state(adapter).is_some_and(is_active);
    let active: Vec<_> = status.adapters.iter().filter(active).collect();
    match active.first() {
        Some(adapter) => {
            let (truth, reason, message) = progress(adapter, policy, now);
            let message = of_several(&active, "are in a rollout", message);
            conditions.set(condition::PROGRESSING, truth, reason, message);
        }
        None => conditions.set(
            condition::PROGRESSING,
            Truth::False,
            reason::ALL_STABLE,
            "no rollout is under way",
        ),
    }
    let is_back = |it: &&ServedAdapter| state(it) == Some(&RolloutState::RolledBack);
    let back: Vec<_> = status.adapters.iter().filter(is_back).collect();
    let first = back.first();
    match first.and_then(|adapter| Some((adapter, adapter.rollout.as_ref()?))) {
        Some((adapter, rollout)) => {
            let why = rollout.message.as_deref().unwrap_or_default();
            let message = format!("{}: {why}", adapter.name);
            conditions.set(
                condition::ROLLED_BACK,
                Truth::True,
                rollout.reason.as_deref().unwrap_or(reason::ROLLING_BACK),
                of_several(&back, "were taken back", message),
            );
        }
        None => conditions.set(
            condition::ROLLED_BACK,
            Truth::False,
            reason::NOT_ROLLED_BACK,
            "no adapter's newest candidate was taken back",
        ),
    }
    let pending: Vec<_> = status
        .adapters
        .iter()
        .filter(|it| it.reason.is_some())
        .collect();
    match pending.first() {
        Some(first) => conditions.set(
            condition::ADAPTERS_PENDING,
            Truth::True,
            first.reason.as_deref().unwrap_or(reason::LOADING),
            explain_pending(&pending),
        ),
        None => conditions.set(
            condition::ADAPTERS_PENDING,
            Truth::False,
            reason::ALL_SERVING,
            "every adapter is served",
        ),
    }
    status.conditions = conditions.into_list();
}

/// What is said of the first of several adapters, after how many and which these are: a message is cut at its end.
fn of_several(adapters: &[&ServedAdapter], what: &str, first: String) -> String {
    if adapters.len() < 2 {
        return first;
    }
    let names: Vec<&str> = adapters.iter().map(|it| it.name.as_str()).collect();
    let (many, names) = (names.len(), named(&names));
    format!("{many} adapters {what} ({names}); {first}")
}

/// Why adapters are not served as the spec says: the first few, after how many there are.
fn explain_pending(pending: &[&ServedAdapter]) -> String {
    let explain = |it: &&ServedAdapter| {
        let why = it.message.as_deref().unwrap_or_default();
        format!("{}: {why}", it.name)
    };
    let first: Vec<String> = pending.iter().take(NAMED).map(explain).collect();
    let words = first.join("; ");
    if pending.len() > first.len() {
        format!("{} adapters, of which the first: {words}", pending.len())
    } else {
        words
    }
}

fn progress(
    adapter: &ServedAdapter,
    policy: &Policy,
    now: Timestamp,
) -> (Truth, &'static str, String) {
    let nothing = || (Truth::Unknown, reason::PREPARING, String::new());
    let Some(rollout) = &adapter.rollout else {
        return nothing();
    };
    let Some(candidate) = &adapter.candidate else {
        return nothing();
    };
    let whom = format!(
        "{}: v{} at {} %",
        adapter.name, candidate.version, candidate.weight
    );
    let inconclusive = rollout.analysis.iter().find_map(|result| {
        let open = result.verdict == graftwork_api::lora_adapter::Verdict::Inconclusive;
        open.then(|| result.message.clone().unwrap_or_default())
    });
    match rollout.state {
        RolloutState::Preparing => (Truth::True, reason::PREPARING, whom),
        RolloutState::Promoting => (Truth::True, reason::PROMOTING, whom),
        RolloutState::RollingBack => {
            let why = rollout.message.as_deref().unwrap_or_default();
            (Truth::True, reason::ROLLING_BACK, format!("{whom}: {why}"))
        }
        RolloutState::Paused => match (&rollout.paused_by, pause_left(policy, rollout, now)) {
            (Some(PausedBy::Step), Some(left)) => match inconclusive.filter(|_| left.is_zero()) {
                Some(why) => undecided(&whom, &why),
                None => (
                    Truth::True,
                    reason::PAUSED,
                    format!("{whom}, step {}", rollout.step),
                ),
            },
            (Some(PausedBy::Analysis), _) => {
                let why = rollout.message.as_deref().unwrap_or_default();
                (
                    Truth::Unknown,
                    reason::PAUSED,
                    format!("{whom} is held by a failed analysis: {why}"),
                )
            }
            (Some(PausedBy::Command), _) => (
                Truth::Unknown,
                reason::PAUSED,
                format!("{whom} is held until somebody says Resume"),
            ),
            _ => (
                Truth::Unknown,
                reason::PAUSED,
                format!(
                    "{whom}, step {}, until somebody says Resume or Promote",
                    rollout.step
                ),
            ),
        },
        _ => match inconclusive {
            Some(why) => undecided(&whom, &why),
            None => (
                Truth::True,
                reason::STEPPING,
                format!("{whom}, step {}", rollout.step),
            ),
        },
    }
}

/// A candidate that nobody can judge keeps its weight.
fn undecided(whom: &str, why: &str) -> (Truth, &'static str, String) {
    let message = format!("{whom} is held: {why}");
    (Truth::True, reason::ANALYSIS_INCONCLUSIVE, message)
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
    let rolling = trouble.truth == Truth::True;
    let why = if rolling {
        reason::ROLLING_ENGINES
    } else {
        &trouble.reason
    };
    let words = if rolling {
        replacing(observed)
    } else {
        trouble.message.clone()
    };
    conditions.set_while(
        condition::RECONCILING,
        trouble.moving == Moving::Reconciling,
        why,
        words,
    );
    conditions.set_while(
        condition::STALLED,
        trouble.moving == Moving::Stalled,
        &trouble.reason,
        &trouble.message,
    );
    next.conditions = conditions.into_list();
    let events = if conditions::has_turned(&old, &next.conditions, condition::READY) {
        let note = shorten(&trouble.message);
        vec![if trouble.truth == Truth::False {
            Event::warning(&trouble.reason, note)
        } else {
            Event::normal(&trouble.reason, note)
        }]
    } else {
        Vec::new()
    };
    Actions {
        status: Some(next),
        events,
        ..Actions::default()
    }
}
