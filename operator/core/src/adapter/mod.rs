//! LoRAAdapter: versions come from the ledger, their stages from the gate, from people and from the
//! endpoints. What is decided about a version is a record of the store, written once; status only
//! shows it, so that it can be lost.

mod command;
mod gate;
mod ledger;
mod listing;
mod observed;
mod production;
mod status;
mod step;
mod validate;

#[cfg(test)]
mod tests;

use graftwork_api::{LoRAAdapter, LoRAAdapterStatus};
use jiff::Timestamp;

use crate::observed::Asked;
use crate::plan::{Actions, Call, Decision, Plan};
use crate::settings::Settings;
use crate::storage::StorageProblem;

pub use ledger::Ledger;
pub use observed::{Observed, Verification, Verified, import, verifications};
pub(crate) use validate::no_share;
pub use validate::{Invalid, Valid, validate};

/// Kind, as in YAML.
pub const KIND: &str = "LoRAAdapter";

/// What is to be done about a LoRAAdapter.
pub fn plan(
    cr: &LoRAAdapter,
    observed: &Observed,
    _settings: &Settings,
    now: Timestamp,
) -> Plan<LoRAAdapterStatus> {
    if cr.metadata.deletion_timestamp.is_some() {
        return Plan::Act(Actions::default());
    }
    let valid = match validate(&cr.spec) {
        Ok(valid) => valid,
        Err(invalid) => {
            let why = format!("{}: {}", invalid.field, invalid.message);
            return hold(cr, &why, status::invalid(cr, &invalid, now), now);
        }
    };
    if let Some(problem) = &observed.storage {
        let (StorageProblem::NotOurs(why) | StorageProblem::Unavailable(why)) = problem;
        return hold(cr, why, status::no_storage(cr, problem, now), now);
    }
    let records = match &observed.ledger {
        Asked::Answered(records) => records,
        Asked::Unreachable(why) => return Plan::Act(status::keeper_away(cr, observed, why, now)),
        Asked::NotAsked => {
            let why = "the keeper was not asked yet";
            return Plan::Act(status::keeper_away(cr, observed, why, now));
        }
    };
    let name = cr.metadata.name.as_deref().unwrap_or_default();
    let ledger = Ledger::read(name, records);
    let view = step::view(cr, &valid, &ledger, observed);
    let mut next = cr.status.clone().unwrap_or_default();
    let trouble = status::base_trouble(cr, observed);
    if command::decide(&mut next, &view, trouble.as_deref(), now) {
        return Plan::Decide(Decision {
            status: next,
            events: Vec::new(),
        });
    }
    let accepted = command::accepted(&next);
    let mut actions = status::report(cr, &ledger, &view, observed, now);
    let facts = step::Facts {
        cr,
        valid: &valid,
        ledger: &ledger,
        observed,
    };
    let publications = step::publications(facts, &view, &accepted, now);
    if !publications.is_empty() {
        // What was written shows in the next observation.
        actions.requeue_after = Some(status::SOON);
    }
    actions.calls = publications.into_iter().map(Call::Publish).collect();
    let imported = matches!(&observed.import, Asked::Answered(Ok(_)));
    if let Some(request) = import(cr, records).filter(|_| !imported) {
        actions.calls.push(Call::Import(request));
        actions.requeue_after.get_or_insert(status::SOON);
    }
    Plan::Act(actions)
}

/// Nothing is decided about versions, for the reason `why`: first what people wait for is answered.
fn hold(
    cr: &LoRAAdapter,
    why: &str,
    actions: Actions<LoRAAdapterStatus>,
    now: Timestamp,
) -> Plan<LoRAAdapterStatus> {
    let mut next = cr.status.clone().unwrap_or_default();
    if command::refuse_all(&mut next, why, now) {
        return Plan::Decide(Decision {
            status: next,
            events: Vec::new(),
        });
    }
    Plan::Act(actions)
}
