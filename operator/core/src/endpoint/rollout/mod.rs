//! The rollout of one adapter: a state machine that is a total function of what was persisted, what
//! was observed and the time.
//!
//! `Stable -> Preparing -> Stepping <-> Paused -> Promoting -> Stable(new)`, and from anywhere before
//! the end `-> RollingBack -> RolledBack`. Stable is written as no rollout at all, so that a thousand
//! stable adapters stay short. A change of state, weight or step is a decision: it is
//! persisted first, and the routing table derives from what was persisted.
//!
//! Time comes in as an argument. A clock that goes back makes waits longer, never shorter; the shell
//! sees to it that it does not jump forward within a process.

mod command;
mod step;

#[cfg(test)]
mod tests;

use graftwork_api::serving_endpoint::{
    EndpointCommand, RejectedDigest, RolloutState, ServedAdapter,
};
use graftwork_api::{AnswerOutcome, VersionedDigest};
use jiff::Timestamp;

use super::analysis::Judgement;
use super::validate::Policy;
use crate::observed::Problem;
use crate::plan::Event;

pub use step::step;

/// Everything that a step looks at besides what was persisted.
#[derive(Debug, Clone, PartialEq)]
pub struct Inputs<'a> {
    /// How versions take over.
    pub policy: &'a Policy,
    /// The version that spec and adapter name, where it may be tried here; none where there is none,
    /// or where it was rejected under the same settings.
    pub wanted: Option<&'a VersionedDigest>,
    /// Why the candidate may not be served any more, whatever is wanted; none where it may, or where
    /// there is none.
    pub withdrawn: Option<&'a str>,
    /// Versions that a person may name: approved ones and those that were rolled back before.
    pub eligible: &'a [VersionedDigest],
    /// Of those, the ones that the adapter's ledger has as rolled back, here or elsewhere.
    pub rolled_back: &'a [VersionedDigest],
    /// What was rejected here, of this adapter, under whatever settings.
    pub rejected: &'a [RejectedDigest],
    /// Hash of what decides whether a rejected version may be tried again.
    pub settings_hash: &'a str,
    /// Engines.
    pub engines: Engines,
    /// Routers.
    pub routers: Routers,
    /// The newest judgement, where one was due.
    pub judgement: Option<&'a Judgement>,
    /// A command that has no answer yet.
    pub command: Option<&'a EndpointCommand>,
}

/// The engines, as far as the candidate goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Engines {
    /// Engines that are ready.
    pub ready: usize,
    /// Ready engines that have the candidate verified.
    pub verified: usize,
    /// An engine's refusal of the candidate.
    pub refused: Option<Problem>,
}

impl Engines {
    /// Whether at least one engine is ready and every ready one has the candidate.
    pub const fn have_candidate(&self) -> bool {
        self.ready > 0 && self.verified == self.ready
    }
}

/// The routers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Routers {
    /// Routers that are ready.
    pub ready: usize,
    /// Every ready one took the table that derives from what is persisted.
    pub acknowledged: bool,
}

impl Routers {
    /// Whether at least one router is ready and every ready one took the table.
    pub const fn follow(&self) -> bool {
        self.ready > 0 && self.acknowledged
    }
}

/// What a step decides.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The adapter's next persistent facts.
    pub adapter: ServedAdapter,
    /// A version that is not to be tried again by itself.
    pub rejected: Option<RejectedDigest>,
    /// A digest that may be tried again.
    pub forgiven: Option<String>,
    /// The answer to the command.
    pub answer: Option<(AnswerOutcome, String)>,
    /// How a rollout ended, where it did, and in a sentence what became of its version.
    pub end: Option<(End, String)>,
    /// What people are told.
    pub events: Vec<Event>,
}

/// How a rollout ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The candidate is the stable version.
    Promoted,
    /// The candidate was taken back.
    TakenBack,
}

/// Whether a rollout is under way in that state.
pub fn is_active(state: &RolloutState) -> bool {
    matches!(
        state,
        RolloutState::Preparing
            | RolloutState::Stepping
            | RolloutState::Paused
            | RolloutState::Promoting
            | RolloutState::RollingBack
    )
}

/// Whole seconds from `then` to `now`; 0 where the clock went back.
pub fn seconds_since(then: Timestamp, now: Timestamp) -> u64 {
    u64::try_from(now.as_second().saturating_sub(then.as_second())).unwrap_or(0)
}
