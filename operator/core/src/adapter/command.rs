//! What people say about versions: each command is answered once, under its target.

use std::collections::BTreeMap;

use graftwork_api::lora_adapter::{AdapterCommand, AdapterVerb, VersionStage};
use graftwork_api::{Answer, AnswerOutcome, LoRAAdapterStatus, Time};
use graftwork_contract::ledger::Verdict;
use jiff::Timestamp;

use super::gate;
use super::step::{VersionView, View};
use crate::conditions::shorten;

/// A command that was accepted and whose effect is still to come, or came.
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

/// Answers to commands that have none, where one can be given now.
pub fn answers(
    status: &LoRAAdapterStatus,
    view: &View,
    now: Timestamp,
) -> BTreeMap<String, Answer> {
    status
        .commands
        .iter()
        .filter(|(target, command)| {
            status
                .answers
                .get(*target)
                .is_none_or(|answer| answer.id != command.id)
        })
        .filter_map(|(target, command)| {
            let (outcome, message) = judge(target, command, view)?;
            Some((
                target.clone(),
                Answer {
                    id: command.id.clone(),
                    outcome,
                    message: shorten(&message),
                    time: Time(now),
                },
            ))
        })
        .collect()
}

/// Commands whose answer says that they were accepted.
pub fn accepted(status: &LoRAAdapterStatus) -> Vec<Accepted> {
    status
        .commands
        .iter()
        .filter_map(|(target, command)| {
            let answer = status.answers.get(target)?;
            let taken = answer.id == command.id && answer.outcome == AnswerOutcome::Accepted;
            Some(Accepted {
                version: version_of(target).filter(|_| taken)?,
                verb: verb(command)?,
                user: command.user.clone(),
                reason: command.reason.clone().unwrap_or_default(),
            })
        })
        .collect()
}

/// Whether what an accepted command wanted is on record.
pub fn is_done(command: &Accepted, view: &View) -> bool {
    view.versions
        .get(&command.version)
        .is_some_and(|version| match command.verb {
            Verb::Approve => version.ledger.approved.is_some(),
            Verb::Reject => version.ledger.is_rejected_for_good(),
        })
}

/// The version that a target names.
pub fn version_of(target: &str) -> Option<u32> {
    target.strip_prefix("version/")?.parse().ok()
}

fn verb(command: &AdapterCommand) -> Option<Verb> {
    match command.verb {
        AdapterVerb::Approve => Some(Verb::Approve),
        AdapterVerb::Reject => Some(Verb::Reject),
        AdapterVerb::Other(_) => None,
    }
}

/// None where the answer has to wait.
fn judge(target: &str, command: &AdapterCommand, view: &View) -> Option<(AnswerOutcome, String)> {
    let refused = |message: String| Some((AnswerOutcome::Refused, message));
    let Some(number) = version_of(target) else {
        return refused(format!(
            "target \"{target}\" is not known: write version/NUMBER"
        ));
    };
    let Some(version) = view.versions.get(&number) else {
        return refused(format!("there is no version {number}"));
    };
    let digest = version.ledger.created.digest.as_str();
    if command.digest != digest {
        return refused(format!(
            "version {number} has digest {digest}, not {}",
            command.digest
        ));
    }
    match verb(command) {
        None => refused(format!("verb \"{}\" is not known", command.verb)),
        Some(Verb::Approve) => judge_approval(number, version),
        Some(Verb::Reject) => judge_rejection(number, version),
    }
}

fn judge_approval(number: u32, version: &VersionView) -> Option<(AnswerOutcome, String)> {
    let refused = |message: String| Some((AnswerOutcome::Refused, message));
    if let Some(rejected) = &version.ledger.rejected {
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
        // The keeper has not looked at the files or at the base model yet.
        _ => None,
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
