//! What a namespace's keeper says.

use graftwork_api::labels;
use graftwork_api::uri::PvcUri;
use graftwork_contract::key_values::KeyValueBlock;
use graftwork_contract::proto::store::v1::DescribeBaseRequest;
use graftwork_operator_core::hindered;
use graftwork_operator_core::observed::{
    Asked, Base, ClaimState, Container, DescribedBase, Found, Pod, Problem, Record,
};
use graftwork_operator_core::storage::{self, KEEPER, StorageProblem};
use graftwork_operator_core::workload::STORE_CLAIM;
use kube::ResourceExt as _;

use super::{child, config_map, pods};
use crate::api::ApiError;
use crate::cache::{Touch, find};
use crate::calls::{CallError, Peer, request_key};
use crate::context::Context;

/// Why a namespace has no store, as its objects see it.
///
/// # Errors
/// Those of the API server.
pub async fn problem(
    context: &Context,
    namespace: &str,
) -> Result<Option<StorageProblem>, ApiError> {
    // Beside a bucket, a claim that stays from before is nobody's store.
    let on_claim = context.settings.store.url.is_none();
    let claim = find(&context.caches.claims, namespace, STORE_CLAIM).filter(|_| on_claim);
    let claim = match claim {
        None => Found::Absent,
        Some(claim) if super::is_ours(&claim.metadata, None) => {
            Found::Ours(Box::new((*claim).clone()))
        }
        Some(_) => Found::Foreign,
    };
    let deployment = child(
        context,
        &context.caches.deployments,
        namespace,
        KEEPER,
        None,
    )
    .await?;
    let configuration = config_map(context, namespace, KEEPER, None);
    Ok(storage::problem(&claim, &configuration, &deployment))
}

/// The namespace's keeper.
///
/// # Errors
/// Why it can't be called, in words.
pub fn peer(context: &Context, namespace: &str) -> Result<Peer, String> {
    let owner_uid = context
        .caches
        .namespaces
        .get(&kube::runtime::reflector::ObjectRef::new(namespace))
        .and_then(|found| found.uid())
        .ok_or_else(|| format!("namespace {namespace} is not known yet"))?;
    let mut pods = pods::of(
        context,
        namespace,
        labels::component::KEEPER,
        "Namespace",
        namespace,
    );
    pods.retain(|pod| pod.deleting_since.is_none());
    pods.sort_by_key(|pod| pod.created);
    let Some(pod) = pods.last() else {
        let what = format!("the keeper of namespace {namespace} has no pod yet");
        return Err(match refusal(context, namespace) {
            Some(why) => format!("{what}: {why}"),
            None => what,
        });
    };
    if let Some(why) = &pod.unschedulable {
        return Err(format!("keeper pod {} has no node: {why}", pod.name));
    }
    if let Some(why) = pod.image_problem() {
        return Err(format!("keeper pod {} has no image: {why}", pod.name));
    }
    match pod.target().filter(|_| pod.ready) {
        Some(target) => Ok(Peer {
            namespace: namespace.to_owned(),
            target,
            owner_uid,
        }),
        None => Err(not_ready(pod)),
    }
}

/// Why a keeper pod that has a node can't be called: a volume that hangs on another node shows as
/// `ContainerCreating`.
fn not_ready(pod: &Pod) -> String {
    match &pod.container {
        Container::Waiting { reason, message } => {
            let words = format!("keeper pod {} is not ready: {reason} {message}", pod.name);
            words.trim_end().to_owned()
        }
        _ => format!("keeper pod {} is not ready", pod.name),
    }
}

/// Why there is no keeper pod, in the API server's words: it refuses what the keeper needs, or its
/// pods.
fn refusal(context: &Context, namespace: &str) -> Option<String> {
    let refused = context.refused_storage.lock().ok();
    let refused = refused.and_then(|refused| refused.get(namespace).cloned());
    refused.or_else(|| {
        let deployment = find(&context.caches.deployments, namespace, KEEPER)?;
        hindered::replica_failure(&deployment)
    })
}

/// An answer, or in words why there is none.
pub fn asked<T>(answer: Result<T, CallError>) -> Asked<T> {
    match answer {
        Ok(answer) => Asked::Answered(answer),
        Err(error) => Asked::Unreachable(error.to_string()),
    }
}

/// The records below a prefix.
pub async fn list(
    context: &Context,
    keeper: &Result<Peer, String>,
    prefix: String,
) -> Asked<Vec<Record>> {
    match keeper {
        Ok(peer) => asked(context.calls.list(peer, prefix).await),
        Err(why) => Asked::Unreachable(why.clone()),
    }
}

/// One record.
pub async fn get(
    context: &Context,
    keeper: &Result<Peer, String>,
    path: String,
) -> Asked<Option<Record>> {
    match keeper {
        Ok(peer) => asked(context.calls.get(peer, path).await),
        Err(why) => Asked::Unreachable(why.clone()),
    }
}

/// A base model's folder, where its claim is bound. The first look at a large one takes a while:
/// `touch` is looked at again then.
pub async fn base(
    context: &Context,
    keeper: &Result<Peer, String>,
    uri: &PvcUri,
    claim: ClaimState,
    touch: Touch,
) -> Asked<DescribedBase> {
    if claim != ClaimState::Bound {
        return Asked::NotAsked;
    }
    let peer = match keeper {
        Ok(peer) => peer,
        Err(why) => return Asked::Unreachable(why.clone()),
    };
    let request = DescribeBaseRequest {
        claim: uri.claim().to_owned(),
        path: uri.path().to_owned(),
    };
    let key = request_key(peer, &request);
    let known = context.bases.known(&key, |reply| reply.problem.is_some());
    let answer = match known {
        Some(answer) => Some(answer),
        None => {
            let calls = std::sync::Arc::clone(&context.calls);
            let peer = peer.clone();
            let call = async move {
                let answer = calls.describe_base(&peer, request).await;
                answer.map_err(|error| error.to_string())
            };
            context.bases.ask(key, &context.touches, touch, call).await
        }
    };
    match answer {
        None => Asked::Unreachable(format!("the keeper is reading the base model {uri}")),
        Some(Err(why)) => Asked::Unreachable(why),
        Some(Ok(reply)) => match (reply.problem, reply.digest.parse()) {
            (Some(problem), _) => Asked::Answered(Err(Problem {
                reason: problem.reason,
                message: problem.message,
            })),
            (None, Ok(digest)) => Asked::Answered(Ok(Base {
                digest,
                hidden_size: reply.hidden_size,
                target_modules: reply.target_modules,
                maximum_positions: reply.maximum_positions,
                key_values: KeyValueBlock::new(
                    reply.key_value_block_bytes,
                    u64::from(reply.key_value_block_tokens),
                ),
            })),
            (None, Err(error)) => Asked::Unreachable(error.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keeper_that_waits_for_its_volume_says_so() {
        let mut pod = Pod {
            name: "graftwork-keeper-x".to_owned(),
            container: Container::Waiting {
                reason: "ContainerCreating".to_owned(),
                message: String::new(),
            },
            ..Pod::default()
        };
        assert_eq!(
            not_ready(&pod),
            "keeper pod graftwork-keeper-x is not ready: ContainerCreating"
        );
        pod.container = Container::Running { since: None };
        assert_eq!(
            not_ready(&pod),
            "keeper pod graftwork-keeper-x is not ready"
        );
    }
}
