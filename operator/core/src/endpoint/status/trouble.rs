//! What keeps an endpoint from what its spec says: the spec itself, names of others, storage, the base model.

use graftwork_api::ServingEndpoint;
use graftwork_api::conditions::reason;

use crate::conditions::{Moving, Truth};
use crate::endpoint::ServedBase;
use crate::endpoint::observed::Observed;
use crate::endpoint::validate::{self, Invalid, Valid};
use crate::observed::Asked;
use crate::storage::StorageProblem;

/// Why an endpoint is not what its spec says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    pub(super) truth: Truth,
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) moving: Moving,
}

impl Trouble {
    /// What is wrong, in words.
    pub fn message(&self) -> &str {
        &self.message
    }

    pub(super) fn new(
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
