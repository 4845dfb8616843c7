//! What people read of their commands: whether each was taken, and what became of it. An answer that was
//! accepted ends when the rollout that it is about ends, in a sentence of its own.

use std::collections::BTreeSet;

use graftwork_api::serving_endpoint::{EndpointCommand, EndpointVerb, RolloutState};
use graftwork_api::{Answer, AnswerOutcome, ServingEndpointStatus, Time};
use jiff::Timestamp;

use super::rollout::{self, End};
use crate::conditions::shorten;

/// Answers that stay to be read though their adapter left the spec, and their commands with it.
const KEPT_ANSWERS: usize = 10;
/// Answers that the schema takes.
const MOST_ANSWERS: usize = 100;
/// What an answer that was complete before its rollout ended goes on with.
const SINCE: &str = "; since then ";

/// Where commands for an adapter stand.
pub fn target(name: &str) -> String {
    format!("adapter/{name}")
}

/// The command of that target, where it has no answer.
pub fn unanswered<'a>(
    status: &'a ServingEndpointStatus,
    target: &str,
) -> Option<&'a EndpointCommand> {
    let command = status.commands.get(target)?;
    let answered = status
        .answers
        .get(target)
        .is_some_and(|answer| answer.id == command.id);
    (!answered).then_some(command)
}

/// Answers the command that stands under `target`.
pub fn give(
    status: &mut ServingEndpointStatus,
    target: &str,
    (outcome, message): (AnswerOutcome, String),
    now: Timestamp,
) {
    let Some(command) = status.commands.get(target) else {
        return;
    };
    let answer = Answer {
        id: command.id.clone(),
        outcome,
        message: shorten(&message),
        time: Time(now),
    };
    status.answers.insert(target.to_owned(), answer);
}

/// Refuses the commands for some targets that have no answer, each in the words of `why`.
pub fn refuse(
    status: &mut ServingEndpointStatus,
    is_meant: impl Fn(&str) -> bool,
    why: impl Fn(&str) -> String,
    now: Timestamp,
) {
    let refused: Vec<String> = status
        .commands
        .keys()
        .filter(|target| is_meant(target) && unanswered(status, target).is_some())
        .cloned()
        .collect();
    for target in refused {
        let answer = (AnswerOutcome::Refused, why(&target));
        give(status, &target, answer, now);
    }
}

/// The rollout of the version of that digest ended, as `what` says in words: an accepted command is done, or
/// failed where it ended the other way. What was done before goes on with it.
pub fn finish(
    status: &mut ServingEndpointStatus,
    target: &str,
    digest: Option<&str>,
    (end, what): (End, &str),
) {
    let Some(command) = status.commands.get(target) else {
        return;
    };
    let Some(answer) = status.answers.get_mut(target) else {
        return;
    };
    if answer.id != command.id {
        return;
    }
    match answer.outcome {
        AnswerOutcome::Accepted => complete(answer, &command.verb, end, what),
        AnswerOutcome::Done
            if Some(command.digest.as_str()) == digest && !answer.message.contains(SINCE) =>
        {
            answer.message = shorten(&format!("{}{SINCE}{what}", answer.message));
        }
        _ => {}
    }
}

fn complete(answer: &mut Answer, verb: &EndpointVerb, end: End, what: &str) {
    let wanted_back = *verb == EndpointVerb::Abort;
    if wanted_back == (end == End::TakenBack) {
        answer.outcome = AnswerOutcome::Done;
        answer.message = shorten(what);
    } else {
        answer.outcome = AnswerOutcome::Failed;
        answer.message = shorten(&format!("{verb} did not come about: {what}"));
    }
}

/// Ends accepted commands whose rollout is nowhere any more, though no end of it was seen here: status was
/// written by hand, or by an operator that knows other states.
pub fn end_abandoned(status: &mut ServingEndpointStatus) {
    for adapter in &status.adapters {
        let target = target(&adapter.name);
        let Some(command) = status.commands.get(&target) else {
            continue;
        };
        let candidate = adapter.candidate.as_ref();
        let goes_on = candidate.is_some_and(|candidate| candidate.digest == command.digest)
            && adapter
                .rollout
                .as_ref()
                .is_some_and(|rollout| rollout::is_active(&rollout.state));
        let answer = status
            .answers
            .get_mut(&target)
            .filter(|answer| answer.id == command.id && answer.outcome == AnswerOutcome::Accepted);
        let Some(answer) = answer.filter(|_| !goes_on) else {
            continue;
        };
        let stable = adapter.stable.as_ref();
        let state = adapter.rollout.as_ref().map(|rollout| &rollout.state);
        match stable.filter(|stable| stable.digest == command.digest) {
            Some(stable) => {
                let what = format!("v{} is stable", stable.version);
                complete(answer, &command.verb, End::Promoted, &what);
            }
            None => complete(answer, &command.verb, End::TakenBack, abandoned(state)),
        }
    }
}

fn abandoned(state: Option<&RolloutState>) -> &'static str {
    match state {
        Some(RolloutState::RolledBack) => "the version was taken back",
        _ => "the rollout is not under way any more, and the version is not the stable one",
    }
}

/// Clears the commands of the adapters that left the spec, of which `left` says which targets they are.
/// Who waits for the answer reads that; `names` are those of the spec.
pub fn clear(
    status: &mut ServingEndpointStatus,
    left: impl Fn(&str) -> bool,
    names: &BTreeSet<&str>,
    now: Timestamp,
) {
    let targets: Vec<String> = status
        .commands
        .keys()
        .filter(|target| left(target))
        .cloned()
        .collect();
    for target in targets {
        if let Some(answer) = answer_of_left(status, &target) {
            give(status, &target, answer, now);
        }
        status.commands.remove(&target);
    }
    keep(status, names);
}

/// The last answer to the command of an adapter that left the spec; none where it has one.
fn answer_of_left(status: &ServingEndpointStatus, target: &str) -> Option<(AnswerOutcome, String)> {
    let command = status.commands.get(target)?;
    let answer = status.answers.get(target);
    let outcome = answer
        .filter(|answer| answer.id == command.id)
        .map(|answer| &answer.outcome);
    let name = target.strip_prefix("adapter/").unwrap_or(target);
    let gone = format!("\"{name}\" left spec.adapters");
    match outcome {
        None => Some((
            AnswerOutcome::Refused,
            format!("{gone} before the command was looked at"),
        )),
        Some(AnswerOutcome::Accepted) if command.verb == EndpointVerb::Abort => Some((
            AnswerOutcome::Done,
            format!("{gone}, and nothing of it is served any more"),
        )),
        Some(AnswerOutcome::Accepted) => Some((
            AnswerOutcome::Failed,
            format!(
                "{} did not come about: {gone}, and its rollout ended with that",
                command.verb
            ),
        )),
        Some(_) => None,
    }
}

/// Keeps the answers to commands that are there, and the newest of those whose adapter left the spec.
fn keep(status: &mut ServingEndpointStatus, names: &BTreeSet<&str>) {
    let commands = &status.commands;
    let has_left = |target: &str| {
        let name = target.strip_prefix("adapter/");
        name.is_some_and(|name| !names.contains(name))
    };
    let mut kept: Vec<(Timestamp, String)> = status
        .answers
        .iter()
        .filter(|(target, _)| !commands.contains_key(*target) && has_left(target))
        .map(|(target, answer)| (answer.time.0, target.clone()))
        .collect();
    kept.sort();
    kept.reverse();
    kept.truncate(KEPT_ANSWERS.min(MOST_ANSWERS.saturating_sub(commands.len())));
    status.answers.retain(|target, _| {
        commands.contains_key(target) || kept.iter().any(|(_, known)| known == target)
    });
}
