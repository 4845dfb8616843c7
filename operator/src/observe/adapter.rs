//! An adapter's surroundings.

use std::collections::BTreeMap;

use futures::future::join_all;
use graftwork_api::uri::PvcUri;
use graftwork_api::{LoRAAdapter, TrainingRun};
use graftwork_contract::paths;
use graftwork_contract::proto::store::v1::{Problem as KeeperProblem, VerifyRequest};
use graftwork_operator_core::adapter::{self, Observed, Verification, Verified};
use graftwork_operator_core::observed::{Asked, Problem, Record};
use graftwork_operator_core::run;
use jiff::Timestamp;
use kube::ResourceExt as _;

use super::{claim, keeper, place};
use crate::api::ApiError;
use crate::cache::{Kind, Touch, in_namespace};
use crate::calls::{Peer, request_key};
use crate::context::Context;

/// Results that are remembered.
const REMEMBERED_RESULTS: usize = 4096;

/// Everything that an adapter's plan needs.
///
/// # Errors
/// Those of the API server.
pub async fn observe(
    context: &Context,
    cr: &LoRAAdapter,
    now: Timestamp,
) -> Result<Observed, ApiError> {
    let mut observed = gather(context, cr).await?;
    let unanswered = observed.is_unanswered(cr);
    let uid = cr.uid().unwrap_or_default();
    observed.unanswered_since = context.spells.note(&uid, "unanswered", unanswered, now);
    Ok(observed)
}

async fn gather(context: &Context, cr: &LoRAAdapter) -> Result<Observed, ApiError> {
    let (namespace, name) = place(cr);
    let touch = Touch {
        kind: Kind::Adapter,
        namespace: namespace.clone(),
        name: name.clone(),
    };
    let bound = |uri: &str| {
        PvcUri::parse(uri)
            .map(|uri| claim(context, &namespace, uri.claim()))
            .unwrap_or_default()
    };
    let endpoints = in_namespace(&context.caches.endpoints, &namespace);
    let runs = in_namespace(&context.caches.runs, &namespace);
    let mut observed = Observed {
        storage: keeper::problem(context, &namespace).await?,
        wanted: runs
            .iter()
            .filter_map(|it| run::wanted_version(it.0.as_ref().ok()?))
            .filter(|wanted| wanted.adapter == name)
            .map(|wanted| wanted.version)
            .collect(),
        base_claim: bound(&cr.spec.base_model.uri),
        import_claim: cr
            .spec
            .import
            .as_ref()
            .map(|import| bound(&import.uri))
            .unwrap_or_default(),
        endpoints: endpoints
            .iter()
            .filter_map(|endpoint| endpoint.0.clone().ok())
            .collect(),
        ..Observed::default()
    };
    let peer = keeper::peer(context, &namespace);
    let ledger = format!("{}/", paths::adapter_versions(&name));
    observed.ledger = keeper::list(context, &peer, ledger).await;
    let Some(records) = observed.ledger.answer().cloned() else {
        return Ok(observed);
    };
    let base = PvcUri::parse(&cr.spec.base_model.uri);
    if let Ok(base) = &base {
        let state = observed.base_claim;
        observed.base = keeper::base(context, &peer, base, state, touch.clone()).await;
    }
    observed.results = results(context, &peer, &namespace, &name).await;
    if let (Ok(peer), Ok(base)) = (&peer, &base) {
        let asked = adapter::verifications(cr, &records).into_iter();
        let asked = asked.map(|question| verify(context, peer, base, question, touch.clone()));
        observed.verifications = join_all(asked).await.into_iter().collect();
        if let Some(request) = adapter::import(cr, &records) {
            let last = context.imports.last(&request_key(peer, &request));
            observed.import = match last {
                None => Asked::NotAsked,
                Some(Err(why)) => Asked::Unreachable(why),
                Some(Ok(reply)) => {
                    verified(reply.problem, &reply.digest, reply.rank, reply.size_bytes)
                }
            };
        }
    }
    Ok(observed)
}

/// Results of the runs that are complete and publish to the adapter.
async fn results(
    context: &Context,
    peer: &Result<Peer, String>,
    namespace: &str,
    adapter: &str,
) -> BTreeMap<String, Asked<Record>> {
    let runs = in_namespace(&context.caches.runs, namespace);
    let mut results = BTreeMap::new();
    for run in runs.iter().filter_map(|run| run.0.as_ref().ok()) {
        let publishes = run
            .spec
            .adapter_ref
            .as_ref()
            .is_some_and(|reference| reference.name == adapter);
        let complete = run
            .status
            .as_ref()
            .is_some_and(|status| status.result.is_some());
        if publishes && complete {
            results.insert(run.name_any(), result(context, peer, run).await);
        }
    }
    results
}

async fn result(
    context: &Context,
    peer: &Result<Peer, String>,
    run: &TrainingRun,
) -> Asked<Record> {
    let uid = run.uid().unwrap_or_default();
    let remembered = context
        .results
        .lock()
        .ok()
        .and_then(|results| results.get(&uid).cloned());
    if let Some(record) = remembered {
        return Asked::Answered(record);
    }
    let Some(key) = run::key(run, &Asked::NotAsked) else {
        return Asked::NotAsked;
    };
    let path = paths::run_result(&run.name_any(), &key);
    match keeper::get(context, peer, path.clone()).await {
        Asked::Answered(Some(record)) => {
            if let Ok(mut results) = context.results.lock() {
                if results.len() >= REMEMBERED_RESULTS {
                    results.clear();
                }
                results.insert(uid, record.clone());
            }
            Asked::Answered(record)
        }
        Asked::Answered(None) => Asked::Unreachable(format!("the store has no {path}")),
        Asked::Unreachable(why) => Asked::Unreachable(why),
        Asked::NotAsked => Asked::NotAsked,
    }
}

async fn verify(
    context: &Context,
    peer: &Peer,
    base: &PvcUri,
    question: Verification,
    touch: Touch,
) -> (String, Asked<Result<Verified, Problem>>) {
    let request = VerifyRequest {
        folder: question.folder,
        digest: question.digest.clone(),
        base_claim: base.claim().to_owned(),
        base_path: base.path().to_owned(),
    };
    let key = request_key(peer, &request);
    let known = context
        .verifications
        .known(&key, |reply| reply.problem.is_some());
    let answer = match known {
        Some(answer) => Some(answer),
        None => {
            let calls = std::sync::Arc::clone(&context.calls);
            let peer = peer.clone();
            let call = async move {
                let answer = calls.verify(&peer, request).await;
                answer.map_err(|error| error.to_string())
            };
            context
                .verifications
                .ask(key, &context.touches, touch, call)
                .await
        }
    };
    let answer = match answer {
        None => Asked::NotAsked,
        Some(Err(why)) => Asked::Unreachable(why),
        Some(Ok(reply)) => verified(reply.problem, &reply.digest, reply.rank, reply.size_bytes),
    };
    (question.digest, answer)
}

fn verified(
    problem: Option<KeeperProblem>,
    digest: &str,
    rank: u32,
    size_bytes: u64,
) -> Asked<Result<Verified, Problem>> {
    match (problem, digest.parse()) {
        (Some(problem), _) => Asked::Answered(Err(Problem {
            reason: problem.reason,
            message: problem.message,
        })),
        (None, Ok(digest)) => Asked::Answered(Ok(Verified {
            digest,
            rank,
            size_bytes,
        })),
        (None, Err(error)) => Asked::Unreachable(format!("the keeper's answer: {error}")),
    }
}
