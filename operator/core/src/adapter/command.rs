//! What people say about versions: each command is answered once, under its target. One that is accepted is
//! kept by itself until it is on record: a newer one may stand in its place by then. Newer ones wait until
//! the accepted one came to its end, so that they are judged by what it came to, with one exception: a
//! Reject does not wait for an Approve. Where it is accepted, it takes the place of the Approve, whose
//! record need not be written any more; where it is refused, the Approve goes on.

use graftwork_api::lora_adapter::{AdapterCommand, AdapterVerb, VersionStage};
use graftwork_api::{Answer, AnswerOutcome, LoRAAdapterStatus, Time};
use graftwork_contract::ledger::Verdict;
use jiff::Timestamp;

use super::gate;
use super::step::{VersionView, View};
use crate::conditions::shorten;

/// A command that was accepted and is not on record yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The version that is meant.
    pub version: u32,
    /// What is wanted.
    pub verb: Verb,
    /// Who said it.
    pub user: String,
    /// Why.
    pub reason: String,
}

/// What can be wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// It may see traffic.
    Approve,
    /// It never sees traffic.
    Reject,
}

/// Writes down what became of accepted commands, and the answers to commands that have none, where one
/// can be given now. `base_trouble` says what is wrong with the base model. Returns whether anything
/// was written.
pub fn decide(
    status: &mut LoRAAdapterStatus,
    view: &View,
    base_trouble: Option<&str>,
    now: Timestamp,
) -> bool {
    keep_accepted(status);
    let settled = settle(status, view, base_trouble);
    let open: Vec<(String, AdapterCommand)> = unanswered(status)
        .filter(|(target, command)| !waits(status, target, command))
        .map(|(target, command)| (target.clone(), command.clone()))
        .collect();
    let mut answered = false;
    for (target, command) in open {
        let Some((outcome, message)) = judge(&target, &command, view, base_trouble) else {
            continue;
        };
        let said = (outcome.clone(), message.as_str());
        answer(status, &target, &command.id, said, now);
        if outcome == AnswerOutcome::Accepted {
            // From here on it is carried out, whatever stands in its place: also in that of an Approve.
            status.accepted.insert(target, command);
        }
        answered = true;
    }
    settled || answered
}

/// Keeps what is answered Accepted and not kept: the answer may be of an operator that kept nothing, or the
/// definition in the cluster may be older and drop the field. This alone is no reason to write: such a
/// cluster would never hold it.
fn keep_accepted(status: &mut LoRAAdapterStatus) {
    for (target, command) in &status.commands {
        let is_accepted = status.answers.get(target).is_some_and(|answer| {
            answer.id == command.id && answer.outcome == AnswerOutcome::Accepted
        });
        if is_accepted {
            let kept = status.accepted.entry(target.clone());
            kept.or_insert_with(|| command.clone());
        }
    }
}

/// Whether a newer command waits for what the accepted one comes to. A Reject does not wait for an Approve,
/// whose record may need what can't be had: who says no is heard at once.
fn waits(status: &LoRAAdapterStatus, target: &str, newer: &AdapterCommand) -> bool {
    status.accepted.get(target).is_some_and(|accepted| {
        (verb(accepted), verb(newer)) != (Some(Verb::Approve), Some(Verb::Reject))
    })
}

/// Refuses every command that has no answer, because nothing is decided for the reason `why`: a target
/// does not stay taken until that is mended. Returns whether there was one.
pub fn refuse_all(status: &mut LoRAAdapterStatus, why: &str, now: Timestamp) -> bool {
    let open: Vec<(String, String)> = unanswered(status)
        .map(|(target, command)| (target.clone(), command.id.clone()))
        .collect();
    let message = format!("nothing is decided about versions now: {why}");
    for (target, id) in &open {
        let said = (AnswerOutcome::Refused, message.as_str());
        answer(status, target, id, said, now);
    }
    !open.is_empty()
}

/// Commands that were accepted and are still to be carried out, of a status that [`decide`] went over.
pub fn accepted(status: &LoRAAdapterStatus) -> Vec<Accepted> {
    status
        .accepted
        .iter()
        .filter_map(|(target, command)| read(target, command))
        .collect()
}

fn read(target: &str, command: &AdapterCommand) -> Option<Accepted> {
    Some(Accepted {
        version: version_of(target)?,
        verb: verb(command)?,
        user: command.user.clone(),
        reason: command.reason.clone().unwrap_or_default(),
    })
}

fn unanswered(status: &LoRAAdapterStatus) -> impl Iterator<Item = (&String, &AdapterCommand)> {
    status.commands.iter().filter(|(target, command)| {
        status
            .answers
            .get(*target)
            .is_none_or(|answer| answer.id != command.id)
    })
}

fn answer(
    status: &mut LoRAAdapterStatus,
    target: &str,
    id: &str,
    (outcome, message): (AnswerOutcome, &str),
    now: Timestamp,
) {
    let answer = Answer {
        id: id.to_owned(),
        outcome,
        message: shorten(message),
        time: Time(now),
    };
    status.answers.insert(target.to_owned(), answer);
}

/// An accepted command goes when its record is there, or where it can't come to be any more. Its answer
/// says which, unless a newer one took its place. Returns whether one went.
fn settle(status: &mut LoRAAdapterStatus, view: &View, base_trouble: Option<&str>) -> bool {
    let ended: Vec<(String, AnswerOutcome, Option<String>)> = status
        .accepted
        .iter()
        .filter_map(|(target, command)| {
            let (outcome, message) = end_of(target, command, view, base_trouble)?;
            Some((target.clone(), outcome, message))
        })
        .collect();
    let any = !ended.is_empty();
    for (target, outcome, message) in ended {
        let Some(command) = status.accepted.remove(&target) else {
            continue;
        };
        let answer = status.answers.get_mut(&target);
        if let Some(answer) = answer.filter(|answer| answer.id == command.id) {
            answer.outcome = outcome;
            if let Some(message) = message {
                answer.message = shorten(&message);
            }
        }
    }
    any
}

/// How an accepted command ended; none while it is to be carried out.
fn end_of(
    target: &str,
    command: &AdapterCommand,
    view: &View,
    base_trouble: Option<&str>,
) -> Option<(AnswerOutcome, Option<String>)> {
    let is_done = read(target, command).is_some_and(|accepted| is_done(&accepted, view));
    if is_done {
        return Some((AnswerOutcome::Done, None));
    }
    match judge(target, command, view, base_trouble)? {
        (AnswerOutcome::Accepted, _) => None,
        (AnswerOutcome::Done, message) => Some((AnswerOutcome::Done, Some(message))),
        (_, message) => {
            let message = format!("{} did not come about: {message}", command.verb);
            Some((AnswerOutcome::Failed, Some(message)))
        }
    }
}

/// Whether what an accepted command wanted is on record.
fn is_done(command: &Accepted, view: &View) -> bool {
    view.versions
        .get(&command.version)
        .is_some_and(|version| match command.verb {
            Verb::Approve => version.ledger.approved.is_some(),
            Verb::Reject => version.ledger.is_rejected_for_good(),
        })
}

/// The version that a target names: a version has one target, however numbers may be written.
pub fn version_of(target: &str) -> Option<u32> {
    let number = target.strip_prefix("version/")?.parse().ok()?;
    (target == format!("version/{number}")).then_some(number)
}

fn verb(command: &AdapterCommand) -> Option<Verb> {
    match command.verb {
        AdapterVerb::Approve => Some(Verb::Approve),
        AdapterVerb::Reject => Some(Verb::Reject),
        AdapterVerb::Other(_) => None,
    }
}

/// None where the answer has to wait.
fn judge(
    target: &str,
    command: &AdapterCommand,
    view: &View,
    base_trouble: Option<&str>,
) -> Option<(AnswerOutcome, String)> {
    let refused = |message: String| Some((AnswerOutcome::Refused, message));
    let Some(number) = version_of(target) else {
        return refused(format!(
            "target \"{target}\" is not known: write version/NUMBER"
        ));
    };
    let Some(version) = view.versions.get(&number) else {
        return refused(format!(
            "there is no version {number}; status.versions has those that there are"
        ));
    };
    let digest = version.ledger.created.digest.as_str();
    if command.digest != digest {
        return refused(format!(
            "version {number} has digest {digest}, not {}: say it again with the digest of the version that is meant",
            command.digest
        ));
    }
    match verb(command) {
        None => refused(format!(
            "verb \"{}\" is not known; it is one of {}",
            command.verb,
            AdapterVerb::KNOWN.join(", ")
        )),
        Some(Verb::Approve) => judge_approval(number, version, base_trouble),
        Some(Verb::Reject) => judge_rejection(number, version),
    }
}

fn judge_approval(
    number: u32,
    version: &VersionView,
    base_trouble: Option<&str>,
) -> Option<(AnswerOutcome, String)> {
    let refused = |message: String| Some((AnswerOutcome::Refused, message));
    if let Some(rejected) = version.ledger.rejection() {
        return refused(format!(
            "version {number} was rejected ({}): a rejection is final",
            rejected.reason
        ));
    }
    if version.ledger.approved.is_some() {
        return Some((
            AnswerOutcome::Done,
            format!("version {number} is approved already"),
        ));
    }
    if !version.stable_on.is_empty() {
        return Some((
            AnswerOutcome::Done,
            format!(
                "version {number} is stable on {} already",
                version.stable_on.join(", ")
            ),
        ));
    }
    if version.stage == VersionStage::Rejected {
        return refused(format!("version {number} is rejected: {}", version.message));
    }
    match (&version.verified, &version.judgement, version.fits_base) {
        (Some(Ok(())), Some(judgement), _) if judgement.verdict == Verdict::Fail => {
            refused(format!(
                "the gate rejects version {number}: {}",
                gate::explain(judgement)
            ))
        }
        (Some(Ok(())), Some(_), Some(true)) => Some((
            AnswerOutcome::Accepted,
            format!("version {number} is approved"),
        )),
        (_, _, Some(false)) => refused(format!(
            "version {number} was made for base model {}, which is not that of spec.baseModel",
            version.ledger.created.base
        )),
        (Some(Err(problem)), _, _) => refused(format!(
            "version {number} can't be approved now: {}",
            problem.message
        )),
        // Without trouble, the keeper has not looked at the files or at the base model yet.
        _ => base_trouble
            .and_then(|why| refused(format!("version {number} can't be approved now: {why}"))),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "as for every verb")]
fn judge_rejection(number: u32, version: &VersionView) -> Option<(AnswerOutcome, String)> {
    if !version.stable_on.is_empty() {
        return Some((
            AnswerOutcome::Refused,
            format!(
                "version {number} is stable on {}: roll it back there first",
                version.stable_on.join(", ")
            ),
        ));
    }
    Some(if version.ledger.is_rejected_for_good() {
        (
            AnswerOutcome::Done,
            format!("version {number} is rejected already"),
        )
    } else {
        (
            AnswerOutcome::Accepted,
            format!("version {number} is rejected"),
        )
    })
}
