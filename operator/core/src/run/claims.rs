//! The claims that a run's pod mounts. One that is missing is said before there is a Job: a pod that
//! waits for it has no words but the scheduler's.

use graftwork_api::conditions::reason;
use graftwork_api::uri::PvcUri;
use graftwork_api::{TrainingRun, TrainingRunSpec};

use super::Observed;
use super::inputs::Waiting;
use crate::observed::ClaimState;

/// A claim beside the base model's.
struct Named {
    field: String,
    claim: String,
    is_written: bool,
}

impl Named {
    fn new(field: String, uri: &str, is_written: bool) -> Option<Self> {
        let uri = PvcUri::parse(uri).ok()?;
        Some(Self {
            field,
            claim: uri.claim().to_owned(),
            is_written,
        })
    }
}

/// Those of a spec; of a URI that can't be read there is nothing to say here.
fn named(spec: &TrainingRunSpec) -> impl Iterator<Item = Named> {
    let benchmarks = spec.evaluation.benchmarks.iter().filter_map(|benchmark| {
        let field = format!("spec.evaluation.benchmarks[{}].uri", benchmark.name);
        Named::new(field, &benchmark.uri, false)
    });
    let output = spec.method.output.iter().filter_map(|output| {
        let field = "spec.method.output.uri".to_owned();
        Named::new(field, &output.uri, true)
    });
    benchmarks.chain(output)
}

/// Names of the claims that a run's pod mounts beside the base model's.
pub fn claims(spec: &TrainingRunSpec) -> Vec<String> {
    named(spec).map(|named| named.claim).collect()
}

/// The first claim that the run's pod would wait for, with field and remedy.
pub fn missing(cr: &TrainingRun, observed: &Observed) -> Option<Waiting> {
    let base = PvcUri::parse(&cr.spec.base_model.uri).ok();
    let base = base.and_then(|uri| {
        let state = observed.base_claim;
        let said = say("spec.baseModel.uri", uri.claim(), state)?;
        Some(Waiting::new(reason::BASE_MODEL_NOT_FOUND, said))
    });
    base.or_else(|| {
        named(&cr.spec).find_map(|named| {
            let state = observed.claims.get(&named.claim).copied();
            let state = state.unwrap_or_default();
            // Some claims get their volume with the first pod, and an empty one can be written to.
            if named.is_written && state == ClaimState::NotBound {
                return None;
            }
            let said = say(&named.field, &named.claim, state)?;
            Some(Waiting::new(reason::CLAIM_NOT_FOUND, said))
        })
    })
}

fn say(field: &str, claim: &str, state: ClaimState) -> Option<String> {
    let problem = state.problem(claim)?;
    let remedy = match state {
        ClaimState::NotBound => "bind it to the volume that has the files",
        ClaimState::Absent | ClaimState::Deleting | ClaimState::Bound => "create it",
    };
    Some(format!(
        "{field}: {problem}; {remedy}, then the run goes on by itself"
    ))
}
