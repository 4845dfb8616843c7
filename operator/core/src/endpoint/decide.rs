//! The decisions of an endpoint: one step of every adapter's rollout, and the answers to commands,
//! as the next persistent facts.

use std::collections::BTreeSet;

use graftwork_api::serving_endpoint::{AdapterEntry, RejectedDigest, RolloutState, ServedAdapter};
use graftwork_api::{ServingEndpoint, ServingEndpointStatus, VersionedDigest};
use graftwork_contract::Digest;
use jiff::Timestamp;

use super::analysis::{self, Judgement};
use super::answers::{self, target, unanswered};
use super::desired::{self, Desired};
use super::fleet::Fleet;
use super::observed::{Observed, windows};
use super::rollout::{self, Change, Engines, Inputs};
use super::validate::{Policy, Valid};
use crate::conditions::{cut, named};
use crate::plan::{Decision, Event};

/// Rejected versions that status keeps, beside the newest one of each adapter.
const KEPT_REJECTIONS: usize = 100;
/// Rejected versions that the schema takes: as many as adapters.
const MOST_REJECTIONS: usize = 1000;
/// Bytes of the message about a rejected version beyond those that are kept anyway: an object has no room for a
/// thousand long ones.
const BRIEF_MESSAGE: usize = 100;

/// The persistent facts that the spec asks for, before any step: one entry for each adapter of the
/// spec, and nothing of adapters that are gone but what people wait to read.
pub fn reconcile_entries(cr: &ServingEndpoint, now: Timestamp) -> ServingEndpointStatus {
    let mut status = cr.status.clone().unwrap_or_default();
    let known = std::mem::take(&mut status.adapters);
    status.adapters = cr
        .spec
        .adapters
        .iter()
        .map(|entry| {
            known
                .iter()
                .find(|adapter| adapter.name == entry.name)
                .cloned()
                .unwrap_or_else(|| ServedAdapter {
                    name: entry.name.clone(),
                    ..ServedAdapter::default()
                })
        })
        .collect();
    let names: BTreeSet<&str> = cr
        .spec
        .adapters
        .iter()
        .map(|entry| entry.name.as_str())
        .collect();
    let has_left = |target: &str| {
        // A target that never was is answered, not cleared.
        target.strip_prefix("adapter/").is_some_and(|name| {
            !names.contains(name) && known.iter().any(|adapter| adapter.name == name)
        })
    };
    status
        .rejected
        .retain(|rejected| names.contains(rejected.adapter.as_str()));
    answers::clear(&mut status, has_left, &names, now);
    status
}

/// Everything that decisions of an endpoint look at.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The endpoint.
    pub cr: &'a ServingEndpoint,
    /// Its spec, read.
    pub valid: &'a Valid<'a>,
    /// Its surroundings.
    pub observed: &'a Observed,
    /// Its engines and routers.
    pub fleet: &'a Fleet<'a>,
    /// Digest of its base model, where that is known.
    pub base: Option<&'a Digest>,
    /// The time.
    pub now: Timestamp,
}

impl Context<'_> {
    /// The next decision; none where nothing is to be decided.
    pub fn decide(&self) -> Option<Decision<ServingEndpointStatus>> {
        let mut next = reconcile_entries(self.cr, self.now);
        let mut events = Vec::new();
        refuse_unknown_targets(&mut next, self.now);
        for (index, entry) in self.cr.spec.adapters.iter().enumerate() {
            let Some(adapter) = next.adapters.get(index).cloned() else {
                continue;
            };
            if let Some(change) = self.change_of(entry, &adapter, &next) {
                apply(&mut next, index, change, self.now, &mut events);
            }
        }
        answers::end_abandoned(&mut next);
        let before = self.cr.status.clone().unwrap_or_default();
        (before != next).then_some(Decision {
            status: next,
            events,
        })
    }

    fn change_of(
        &self,
        entry: &AdapterEntry,
        adapter: &ServedAdapter,
        status: &ServingEndpointStatus,
    ) -> Option<Change> {
        let lora = self.observed.adapters.get(&entry.adapter_ref.name);
        let gate = lora.map(|adapter| &adapter.spec.gate);
        let settings_hash = desired::settings_hash(entry, &self.cr.spec.rollout, gate);
        let rejected = rejected_of(status, &adapter.name);
        let adapters = &self.observed.adapters;
        let eligible = desired::eligible(entry, adapters, self.base);
        let rolled_back = desired::rolled_back(entry, adapters, self.base);
        let withdrawn = adapter.candidate.as_ref().and_then(|candidate| {
            let digest = &candidate.digest;
            desired::withdrawn(entry, adapters, self.base, digest).or_else(|| {
                is_barred(digest, &rejected, &settings_hash)
                    .then(|| "it was rejected under the present settings".to_owned())
            })
        });
        let may_be_tried =
            |wanted: &VersionedDigest| !is_barred(&wanted.digest, &rejected, &settings_hash);
        let first = if adapter.stable.is_none() {
            let name = self.cr.metadata.name.as_deref().unwrap_or_default();
            let held = &self.cr.spec.engine.quantization;
            desired::first(name, entry, adapters, self.base, held)
        } else {
            None
        };
        let wanted = first.filter(may_be_tried).or_else(|| {
            let wanted = self.wanted(entry, adapter, &eligible, &rejected);
            wanted.filter(may_be_tried)
        });

        let judgement = self.judge(adapter);
        let inputs = Inputs {
            policy: &self.valid.policy,
            wanted: wanted.as_ref(),
            withdrawn: withdrawn.as_deref(),
            eligible: &eligible,
            rolled_back: &rolled_back,
            rejected: &rejected,
            settings_hash: &settings_hash,
            engines: adapter.candidate.as_ref().map_or_else(
                || Engines {
                    ready: self.fleet.engines.len(),
                    ..Engines::default()
                },
                |candidate| self.fleet.engines_with(&adapter.name, &candidate.digest),
            ),
            routers: self.fleet.routers_follow(),
            judgement: judgement.as_ref(),
            command: unanswered(status, &target(&adapter.name)),
        };
        rollout::step(adapter, &inputs, self.now)
    }

    /// The version that an entry asks for. Who follows an adapter does not go back to an older
    /// version by itself while the newer one may be served: what a person brought back stays. Nor
    /// does a version that was taken back here give way to an older one: it is what is wanted, for the
    /// day on which it may be tried again.
    fn wanted(
        &self,
        entry: &AdapterEntry,
        adapter: &ServedAdapter,
        eligible: &[VersionedDigest],
        rejected: &[RejectedDigest],
    ) -> Option<VersionedDigest> {
        let held = &self.cr.spec.engine.quantization;
        let Desired::Version(version) =
            desired::desired(entry, &self.observed.adapters, self.base, held)
        else {
            return None;
        };
        let (Some(stable), None) = (&adapter.stable, entry.version) else {
            return Some(version);
        };
        let is_kept = stable.version > version.version && eligible.contains(stable);
        let followed = if is_kept { stable.clone() } else { version };
        let adapters = &self.observed.adapters;
        desired::taken_back(entry, adapters, self.base, held)
            .into_iter()
            .filter(|version| rejected.iter().any(|it| it.digest == version.digest))
            .filter(|version| version.version > followed.version)
            .max_by_key(|version| version.version)
            .or(Some(followed))
    }

    /// The judgement of a window that is due and about which the routers were asked.
    fn judge(&self, adapter: &ServedAdapter) -> Option<Judgement> {
        let analysis = self.valid.policy.analysis.as_ref()?;
        let candidate = adapter.candidate.as_ref()?;
        if !windows(self.cr, self.now).contains_key(&adapter.name) {
            return None;
        }
        let stable = adapter.stable.as_ref().map(|stable| stable.digest.as_str());
        let judgement = analysis::judge(
            analysis,
            &adapter.name,
            stable,
            &candidate.digest,
            &self.fleet.routers,
        )?;
        let lease = self.valid.policy.lease_seconds;
        Some(match self.fleet.uncounted(lease, self.now) {
            Some(why) => judgement.of_a_part(&why),
            None => judgement,
        })
    }
}

/// The next decision while the spec is not acted on, for the reason `why`; none where nothing is to
/// be decided. Nobody judges a candidate then, so its callers go back to the stable version, without
/// blame: it is tried again once the spec is mended. What serves goes on. Commands are refused: a target
/// that waits for its answer would keep others from it until then.
pub fn hold(
    cr: &ServingEndpoint,
    policy: &Policy,
    fleet: &Fleet<'_>,
    why: &str,
    now: Timestamp,
) -> Option<Decision<ServingEndpointStatus>> {
    let before = cr.status.clone().unwrap_or_default();
    let mut next = before.clone();
    let mut events = Vec::new();
    let refusal = |_: &str| format!("no command is taken now: {why}");
    answers::refuse(&mut next, |_| true, refusal, now);
    for (index, adapter) in before.adapters.iter().enumerate() {
        let Some(state) = adapter.rollout.as_ref().map(|rollout| &rollout.state) else {
            continue;
        };
        // The first version has no callers yet, and nothing to go back to.
        let moves = adapter.stable.is_some() || *state == RolloutState::RollingBack;
        if adapter.candidate.is_none() || !rollout::is_active(state) || !moves {
            continue;
        }
        let rejected = rejected_of(&next, &adapter.name);
        let inputs = Inputs {
            policy,
            wanted: None,
            withdrawn: Some(why),
            eligible: &[],
            rolled_back: &[],
            rejected: &rejected,
            settings_hash: "",
            engines: Engines::default(),
            routers: fleet.routers_follow(),
            judgement: None,
            command: None,
        };
        if let Some(change) = rollout::step(adapter, &inputs, now) {
            apply(&mut next, index, change, now, &mut events);
        }
    }
    (before != next).then_some(Decision {
        status: next,
        events,
    })
}

/// What was rejected here of an adapter.
fn rejected_of(status: &ServingEndpointStatus, adapter: &str) -> Vec<RejectedDigest> {
    let rejected = status.rejected.iter();
    let of_adapter = rejected.filter(|it| it.adapter == adapter);
    of_adapter.cloned().collect()
}

/// Whether a version was rejected here under the same settings.
fn is_barred(digest: &str, rejected: &[RejectedDigest], settings_hash: &str) -> bool {
    rejected.iter().any(|rejected| {
        rejected.digest == digest && rejected.settings_hash.as_deref() == Some(settings_hash)
    })
}

fn refuse_unknown_targets(status: &mut ServingEndpointStatus, now: Timestamp) {
    let known: BTreeSet<String> = status
        .adapters
        .iter()
        .map(|adapter| target(&adapter.name))
        .collect();
    let is_unknown = |target: &str| !known.contains(target);
    let targets: Vec<&str> = known.iter().map(String::as_str).collect();
    let named = if targets.is_empty() {
        "spec.adapters is empty".to_owned()
    } else {
        format!("there is {}", named(&targets))
    };
    let why = |target: &str| format!("target \"{target}\" is not known: {named}");
    answers::refuse(status, is_unknown, why, now);
}

/// Lets go of what is too much: the oldest of which their adapter has a newer one. The newest one of an adapter
/// stays however many adapters there are: its version would be tried again by itself, and again.
fn trim(newest_first: &mut Vec<RejectedDigest>) {
    let mut older = superseded(newest_first);
    while newest_first.len() > KEPT_REJECTIONS
        && let Some(oldest) = older.pop()
    {
        newest_first.remove(oldest);
    }
    newest_first.truncate(MOST_REJECTIONS);
    for rejected in newest_first.iter_mut().skip(KEPT_REJECTIONS) {
        rejected.message = cut(&rejected.message, BRIEF_MESSAGE);
    }
}

/// Where the rejected versions are of which their adapter has a newer one, the newest of them first.
fn superseded(newest_first: &[RejectedDigest]) -> Vec<usize> {
    let mut adapters = BTreeSet::new();
    let rejected = newest_first.iter().enumerate();
    let older = rejected.filter(|(_, rejected)| !adapters.insert(rejected.adapter.as_str()));
    older.map(|(index, _)| index).collect()
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
        status
            .rejected
            .retain(|it| it.adapter != name || it.digest != *digest);
    }
    if let Some(rejected) = change.rejected {
        status
            .rejected
            .retain(|it| it.adapter != name || it.digest != rejected.digest);
        status.rejected.insert(0, rejected);
        trim(&mut status.rejected);
    }
    if let Some((end, what)) = &change.end {
        let candidate = status
            .adapters
            .get(index)
            .and_then(|it| it.candidate.as_ref());
        let digest = candidate.map(|candidate| candidate.digest.clone());
        answers::finish(status, &target, digest.as_deref(), (*end, what.as_str()));
    }
    if let Some(answer) = change.answer {
        answers::give(status, &target, answer, now);
    }
    if let Some(adapter) = status.adapters.get_mut(index) {
        *adapter = change.adapter;
    }
    events.extend(change.events);
}
