//! What people say about a rollout. A command names the digest and, where it matters, the step that
//! its author saw: one that comes late is refused, not misapplied.

use graftwork_api::conditions::reason;
use graftwork_api::serving_endpoint::{
    AdapterRollout, Candidate, EndpointCommand, EndpointVerb, PausedBy, RolloutState,
};
use graftwork_api::{AnswerOutcome, VersionedDigest};

use super::Change;
use super::step::Machine;
use crate::endpoint::validate::{Step, Strategy};

type Outcome = Result<Change, String>;

/// The change that a command makes, with its answer; refused, it makes none.
pub fn obey(machine: &Machine<'_>, command: &EndpointCommand) -> Change {
    match decide(machine, command) {
        Ok(change) => change,
        Err(why) => Change {
            answer: Some((AnswerOutcome::Refused, why)),
            ..machine.quiet()
        },
    }
}

fn decide(machine: &Machine<'_>, command: &EndpointCommand) -> Outcome {
    match &command.verb {
        EndpointVerb::Promote => {
            let candidate = current(machine, command)?;
            promote(machine, candidate)
        }
        EndpointVerb::Abort => {
            current(machine, command)?;
            abort(machine, command)
        }
        EndpointVerb::Pause => {
            current(machine, command)?;
            pause(machine)
        }
        EndpointVerb::Resume => {
            current(machine, command)?;
            resume(machine)
        }
        EndpointVerb::Retry => retry(machine, command),
        EndpointVerb::Rollback => roll_back(machine, command),
        EndpointVerb::Other(verb) => Err(format!(
            "verb \"{verb}\" is not known; it is one of {}",
            EndpointVerb::KNOWN.join(", ")
        )),
    }
}

/// The candidate, where it is the one that the command means.
fn current<'a>(
    machine: &'a Machine<'_>,
    command: &EndpointCommand,
) -> Result<&'a Candidate, String> {
    let under_way = machine
        .adapter
        .candidate
        .as_ref()
        .filter(|_| machine.is_active());
    let candidate = under_way.ok_or_else(|| "no rollout is under way".to_owned())?;
    if candidate.digest != command.digest {
        return Err(format!(
            "the candidate is v{} with digest {}, not {}",
            candidate.version, candidate.digest, command.digest
        ));
    }
    let step = machine
        .adapter
        .rollout
        .as_ref()
        .map_or(0, |rollout| rollout.step);
    match command.step {
        Some(meant) if meant != step => Err(format!(
            "the rollout is at step {step}, not {meant}: look at it, and say it again with that step"
        )),
        _ => Ok(candidate),
    }
}

fn answered(mut change: Change, outcome: AnswerOutcome, message: &str) -> Change {
    change.answer = Some((outcome, message.to_owned()));
    change
}

fn promote(machine: &Machine<'_>, candidate: &Candidate) -> Outcome {
    let inputs = machine.inputs;
    if let Some(why) = inputs.withdrawn {
        return Err(format!("v{} is withdrawn: {why}", candidate.version));
    }
    match machine.state() {
        Some(RolloutState::RollingBack) => Err("the candidate is being taken back".to_owned()),
        Some(RolloutState::Promoting) => Ok(answered(
            machine.quiet(),
            AnswerOutcome::Accepted,
            "the candidate is taking over already",
        )),
        _ if !inputs.engines.have_candidate() => Err(format!(
            "{} of {} ready engines have v{}: wait until all have it",
            inputs.engines.verified, inputs.engines.ready, candidate.version
        )),
        _ if inputs.routers.ready == 0 => Err("no router is ready: wait until one is".to_owned()),
        _ => Ok(answered(
            machine.promote("a person said Promote"),
            AnswerOutcome::Accepted,
            "the candidate takes over",
        )),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "as every verb")]
fn abort(machine: &Machine<'_>, command: &EndpointCommand) -> Outcome {
    if machine.state() == Some(&RolloutState::RollingBack) {
        let message = "the candidate is being taken back already";
        return Ok(answered(machine.quiet(), AnswerOutcome::Accepted, message));
    }
    let message = format!(
        "{} said Abort: {}",
        command.user,
        command.reason.as_deref().unwrap_or("no reason given")
    );
    Ok(answered(
        machine.roll_back(reason::ABORTED_BY_USER, &message),
        AnswerOutcome::Accepted,
        "the candidate is taken back",
    ))
}

fn pause(machine: &Machine<'_>) -> Outcome {
    let Some(rollout) = &machine.adapter.rollout else {
        return Err("no rollout is under way".to_owned());
    };
    match rollout.state {
        RolloutState::Stepping | RolloutState::Paused => Ok(answered(
            machine.pause(rollout, rollout.step, PausedBy::Command),
            AnswerOutcome::Done,
            "the weight is held",
        )),
        _ => Err(format!(
            "there is no weight to hold in the state {}",
            rollout.state
        )),
    }
}

fn resume(machine: &Machine<'_>) -> Outcome {
    let Some(rollout) = machine
        .adapter
        .rollout
        .as_ref()
        .filter(|it| it.state == RolloutState::Paused)
    else {
        return Err("the rollout is not paused".to_owned());
    };
    // What was paused by a person goes back into the step's own pause, which was running meanwhile.
    let own = own_pause(machine, rollout).filter(|_| !machine.is_paused_by(&PausedBy::Step));
    let (change, message) = if let Some(rest) = own {
        let resumed = machine.resume();
        let mut change = machine.pause(rollout, rollout.step, PausedBy::Step);
        if let (Some(next), Some(resumed)) = (&mut change.adapter.rollout, resumed.adapter.rollout)
        {
            next.failures = resumed.failures;
            next.window_since = resumed.window_since;
            next.analysis = resumed.analysis;
        }
        (change, rest.describe(rollout.step))
    } else {
        (machine.resume(), "the pause is over".to_owned())
    };
    Ok(answered(change, AnswerOutcome::Done, &message))
}

/// What is left of the pause that the strategy itself makes at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    Seconds(u64),
    UntilSomebodyEndsIt,
}

impl Rest {
    fn describe(self, step: u32) -> String {
        let goes_on = format!("that pause is over; the one of step {step} itself goes on");
        match self {
            Self::Seconds(0) => "the pause is over".to_owned(),
            Self::Seconds(left) => format!("{goes_on} for another {left} s"),
            Self::UntilSomebodyEndsIt => format!("{goes_on} until somebody says Resume or Promote"),
        }
    }
}

/// None where the strategy does not pause at the rollout's step.
fn own_pause(machine: &Machine<'_>, rollout: &AdapterRollout) -> Option<Rest> {
    let length = match &machine.inputs.policy.strategy {
        Strategy::Canary(steps) => match steps.get(rollout.step as usize)? {
            Step::Pause(length) => *length,
            Step::SetWeight(_) => return None,
        },
        Strategy::BlueGreen {
            auto_promote,
            preview_seconds,
            ..
        } => auto_promote.then_some(*preview_seconds),
        Strategy::Immediate => return None,
    };
    Some(length.map_or(Rest::UntilSomebodyEndsIt, |length| {
        Rest::Seconds(length.saturating_sub(machine.elapsed(rollout)))
    }))
}

fn retry(machine: &Machine<'_>, command: &EndpointCommand) -> Outcome {
    if machine.is_active() {
        return Err("a rollout is under way: abort it first".to_owned());
    }
    let stable = machine.adapter.stable.as_ref();
    if let Some(stable) = stable.filter(|stable| stable.digest == command.digest) {
        return Err(format!("v{} is stable already", stable.version));
    }
    let inputs = machine.inputs;
    let is_rejected = inputs.rejected.iter().any(|it| it.digest == command.digest);
    // An endpoint that was deleted and applied again has no list of its own any more.
    let is_on_record = || {
        let mut rolled_back = inputs.rolled_back.iter();
        rolled_back.any(|it| it.digest == command.digest)
    };
    if !is_rejected && !is_on_record() {
        return Err(format!(
            "{} was not rejected here; status.rejected has what was",
            command.digest
        ));
    }
    let version = eligible(machine, command)?;
    Ok(answered(
        begin(machine, command, version),
        AnswerOutcome::Accepted,
        "the version is tried again",
    ))
}

fn roll_back(machine: &Machine<'_>, command: &EndpointCommand) -> Outcome {
    if machine.is_active() {
        return Err("a rollout is under way: abort it first".to_owned());
    }
    let Some(stable) = &machine.adapter.stable else {
        return Err("there is no stable version to leave".to_owned());
    };
    if stable.digest == command.digest {
        return Err(format!("v{} is stable already", stable.version));
    }
    let version = eligible(machine, command)?;
    if version.version >= stable.version {
        return Err(format!(
            "v{} is not older than v{}",
            version.version, stable.version
        ));
    }
    Ok(answered(
        begin(machine, command, version),
        AnswerOutcome::Accepted,
        "a rollout to the older version begins",
    ))
}

/// A rollout to the version that a person named. Where it is older than the stable one, that one is left for good: it
/// is not followed again by itself.
fn begin(machine: &Machine<'_>, command: &EndpointCommand, version: &VersionedDigest) -> Change {
    let mut change = machine.begin_commanded(version);
    change.forgiven = Some(command.digest.clone());
    let stable = machine.adapter.stable.as_ref();
    if let Some(left) = stable.filter(|stable| version.version < stable.version) {
        let message = format!(
            "{} said {} v{}: {}",
            command.user,
            match command.verb {
                EndpointVerb::Retry => "Retry of",
                _ => "Rollback to",
            },
            version.version,
            command.reason.as_deref().unwrap_or("no reason given")
        );
        change.rejected = Some(machine.reject(left, reason::ROLLED_BACK_BY_USER, &message));
    }
    change
}

fn eligible<'a>(
    machine: &'a Machine<'_>,
    command: &EndpointCommand,
) -> Result<&'a VersionedDigest, String> {
    machine
        .inputs
        .eligible
        .iter()
        .find(|version| version.digest == command.digest)
        .ok_or_else(|| {
            format!(
                "{} is no version of the adapter that may see traffic; status.versions of the LoRAAdapter has digests and \
                 stages",
                command.digest
            )
        })
}
