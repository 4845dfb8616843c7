//! The decisions of an endpoint: one step of every adapter's rollout, and the answers to commands,
//! as the next persistent facts.

use std::collections::BTreeSet;

use graftwork_api::serving_endpoint::{
    AdapterEntry, EndpointCommand, EndpointVerb, RejectedDigest, ServedAdapter,
};
use graftwork_api::{
    Answer, AnswerOutcome, ServingEndpoint, ServingEndpointStatus, Time, VersionedDigest,
};
use graftwork_contract::Digest;
use jiff::Timestamp;

use super::desired::{self, Desired};
use super::fleet::Fleet;
use super::observed::Observed;
use super::rollout::{self, Change, End, Engines, Inputs};
use super::validate::Valid;
use super::analysis;
use crate::conditions::shorten;
use crate::plan::{Decision, Event};

/// Rejected versions that status keeps.
const KEPT_REJECTIONS: usize = 100;

/// The persistent facts that the spec asks for, before any step: one entry for each adapter of the
/// spec, and nothing of adapters that are gone.
pub fn reconcile_entries(cr: &ServingEndpoint) -> ServingEndpointStatus {
    let mut status = cr.status.clone().unwrap_or_default();
    let known = std::mem::take(&mut status.adapters);
    status.adapters = cr
        .spec
        .adapters
        .iter()
        .map(|entry| {
            known.iter().find(|adapter| adapter.name == entry.name).cloned().unwrap_or_else(|| {
                ServedAdapter { name: entry.name.clone(), ..ServedAdapter::default() }
            })
        })
        .collect();
    let names: BTreeSet<&str> = cr.spec.adapters.iter().map(|entry| entry.name.as_str()).collect();
    let has_target = |target: &str| {
        // A target that never was is answered, not cleared.
        target.strip_prefix("adapter/").is_none_or(|name| {
            names.contains(name) || !known.iter().any(|adapter| adapter.name == name)
        })
    };
    status.rejected.retain(|rejected| names.contains(rejected.adapter.as_str()));
    status.commands.retain(|target, _| has_target(target));
    let commands = &status.commands;
    status.answers.retain(|target, _| commands.contains_key(target));
    status
}

/// The next decision; none where nothing is to be decided.
pub fn decide(
    cr: &ServingEndpoint,
    valid: &Valid<'_>,
    observed: &Observed,
    fleet: &Fleet<'_>,
    base: Option<&Digest>,
    now: Timestamp,
) -> Option<Decision<ServingEndpointStatus>> {
    let mut next = reconcile_entries(cr);
    let mut events = Vec::new();
    refuse_unknown_targets(&mut next, now);
    for (index, entry) in cr.spec.adapters.iter().enumerate() {
        let Some(adapter) = next.adapters.get(index).cloned() else { continue };
        let change = change_of(cr, entry, &adapter, valid, observed, fleet, base, &next, now);
        if let Some(change) = change {
            apply(&mut next, index, change, now, &mut events);
        }
    }
    (cr.status.as_ref() != Some(&next) && cr.status.clone().unwrap_or_default() != next)
        .then_some(Decision { status: next, events })
}

#[expect(clippy::too_many_arguments, reason = "everything that a step looks at, gathered in one place")]
fn change_of(
    cr: &ServingEndpoint,
    entry: &AdapterEntry,
    adapter: &ServedAdapter,
    valid: &Valid<'_>,
    observed: &Observed,
    fleet: &Fleet<'_>,
    base: Option<&Digest>,
    status: &ServingEndpointStatus,
    now: Timestamp,
) -> Option<Change> {
    let lora = observed.adapters.get(&entry.adapter_ref.name);
    let settings_hash =
        desired::settings_hash(entry, &cr.spec.rollout, lora.map(|adapter| &adapter.spec.gate));
    let rejected: Vec<RejectedDigest> = status
        .rejected
        .iter()
        .filter(|rejected| rejected.adapter == adapter.name)
        .cloned()
        .collect();
    let wanted = wanted(entry, observed, base, &rejected, &settings_hash);
    let eligible = desired::eligible(lora);
    let candidate = adapter.candidate.as_ref();
    let judgement = candidate.zip(valid.policy.analysis.as_ref()).and_then(|(candidate, rules)| {
        let asked = super::observed::windows(cr, now).contains_key(&adapter.name);
        let stable = adapter.stable.as_ref().map(|stable| stable.digest.as_str());
        asked
            .then(|| analysis::judge(rules, &adapter.name, stable, &candidate.digest, &fleet.routers))
            .flatten()
    });
    let inputs = Inputs {
        policy: &valid.policy,
        wanted: wanted.as_ref(),
        eligible: &eligible,
        rejected: &rejected,
        settings_hash: &settings_hash,
        engines: candidate.map_or_else(
            || Engines { ready: fleet.engines.len(), ..Engines::default() },
            |candidate| fleet.engines_with(&adapter.name, &candidate.digest),
        ),
        routers: fleet.routers_follow(),
        judgement: judgement.as_ref(),
        command: unanswered(status, &target(&adapter.name)),
    };
    rollout::step(adapter, &inputs, now)
}

/// The version that an entry asks for, unless it was rejected here under the same settings.
fn wanted(
    entry: &AdapterEntry,
    observed: &Observed,
    base: Option<&Digest>,
    rejected: &[RejectedDigest],
    settings_hash: &str,
) -> Option<VersionedDigest> {
    let Desired::Version(version) = desired::desired(entry, &observed.adapters, base) else {
        return None;
    };
    let barred = rejected.iter().any(|rejected| {
        rejected.digest == version.digest
            && rejected.settings_hash.as_deref() == Some(settings_hash)
    });
    (!barred).then_some(version)
}

/// Where commands for an adapter stand.
pub fn target(name: &str) -> String {
    format!("adapter/{name}")
}

fn unanswered<'a>(status: &'a ServingEndpointStatus, target: &str) -> Option<&'a EndpointCommand> {
    let command = status.commands.get(target)?;
    let answered = status.answers.get(target).is_some_and(|answer| answer.id == command.id);
    (!answered).then_some(command)
}

fn refuse_unknown_targets(status: &mut ServingEndpointStatus, now: Timestamp) {
    let known: BTreeSet<String> =
        status.adapters.iter().map(|adapter| target(&adapter.name)).collect();
    let unknown: Vec<(String, String)> = status
        .commands
        .iter()
        .filter(|(target, _)| !known.contains(*target))
        .filter(|(target, _)| unanswered(status, target).is_some())
        .map(|(target, command)| (target.clone(), command.id.clone()))
        .collect();
    for (target, id) in unknown {
        let message = format!("target \"{target}\" is not known: write adapter/NAME");
        let answer = Answer {
            id,
            outcome: AnswerOutcome::Refused,
            message: shorten(&message),
            time: Time(now),
        };
        status.answers.insert(target, answer);
    }
}

fn apply(
    status: &mut ServingEndpointStatus,
    index: usize,
    change: Change,
    now: Timestamp,
    events: &mut Vec<Event>,
) {
    let target = target(&change.adapter.name);
    let name = change.adapter.name.clone();
    if let Some(digest) = &change.forgiven {
        status.rejected.retain(|it| it.adapter != name || it.digest != *digest);
    }
    if let Some(rejected) = change.rejected {
        status.rejected.retain(|it| it.adapter != name || it.digest != rejected.digest);
        status.rejected.insert(0, rejected);
        status.rejected.truncate(KEPT_REJECTIONS);
    }
    if let Some(end) = change.end {
        finish_answer(status, &target, end);
    }
    if let Some((outcome, message)) = change.answer
        && let Some(command) = status.commands.get(&target)
    {
        let answer =
            Answer { id: command.id.clone(), outcome, message: shorten(&message), time: Time(now) };
        status.answers.insert(target, answer);
    }
    if let Some(adapter) = status.adapters.get_mut(index) {
        *adapter = change.adapter;
    }
    events.extend(change.events);
}

/// An accepted command whose rollout ended is done, or failed where it ended the other way.
fn finish_answer(status: &mut ServingEndpointStatus, target: &str, end: End) {
    let Some(command) = status.commands.get(target) else { return };
    let Some(answer) = status.answers.get_mut(target) else { return };
    if answer.id != command.id || answer.outcome != AnswerOutcome::Accepted {
        return;
    }
    let wanted_back = command.verb == EndpointVerb::Abort;
    answer.outcome = if wanted_back == (end == End::TakenBack) {
        AnswerOutcome::Done
    } else {
        AnswerOutcome::Failed
    };
}
