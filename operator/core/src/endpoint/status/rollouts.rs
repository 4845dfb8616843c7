//! What is said of rollouts, and of adapters that are not served as the spec says.

use std::time::Duration;

use graftwork_api::conditions::{condition, reason};
use graftwork_api::serving_endpoint::{AdapterRollout, PausedBy, RolloutState, ServedAdapter};
use jiff::Timestamp;

use super::state;
use crate::conditions::{Conditions, NAMED, Truth, named};
use crate::endpoint::rollout::{is_active, seconds_since};
use crate::endpoint::validate::{Policy, Step, Strategy};

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

/// Conditions about rollouts.
pub(super) fn say_rollouts(
    conditions: &mut Conditions,
    adapters: &[ServedAdapter],
    policy: &Policy,
    now: Timestamp,
) {
    let active = |adapter: &&ServedAdapter| state(adapter).is_some_and(is_active);
    let active: Vec<_> = adapters.iter().filter(active).collect();
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
    let back: Vec<_> = adapters.iter().filter(is_back).collect();
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
}

/// The condition about adapters that are not served as the spec says.
pub(super) fn say_pending(conditions: &mut Conditions, adapters: &[ServedAdapter]) {
    let pending: Vec<_> = adapters.iter().filter(|it| it.reason.is_some()).collect();
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
