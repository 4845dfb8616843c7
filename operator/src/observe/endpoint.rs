//! An endpoint's surroundings.

use std::collections::BTreeMap;

use futures::future::join_all;
use graftwork_api::uri::PvcUri;
use graftwork_api::{ServingEndpoint, labels};
use graftwork_contract::proto::router::v1::StatsRequest;
use graftwork_operator_core::endpoint::{
    self, EnginePod, Observed, RouterPod, Window, children_names,
};
use graftwork_operator_core::observed::{Asked, Pod};
use jiff::Timestamp;
use kube::ResourceExt as _;

use super::{child, claim, config_map, keeper, place, pods};
use crate::api::ApiError;
use crate::cache::{Kind, Touch, find_readable};
use crate::calls::Peer;
use crate::context::Context;

/// Everything that an endpoint's plan needs.
///
/// # Errors
/// Those of the API server.
pub async fn observe(
    context: &Context,
    cr: &ServingEndpoint,
    now: Timestamp,
) -> Result<Observed, ApiError> {
    let (namespace, name) = place(cr);
    let uid = cr.uid().unwrap_or_default();
    let owner = Some(uid.as_str());
    let caches = &context.caches;
    let names = children_names(cr);
    let mut observed = Observed {
        storage: keeper::problem(context, &namespace).await?,
        adapters: cr
            .spec
            .adapters
            .iter()
            .filter_map(|entry| {
                let name = &entry.adapter_ref.name;
                let found = find_readable(&caches.adapters, &namespace, name)?;
                Some((name.clone(), found))
            })
            .collect(),
        engine_configuration: config_map(context, &namespace, &names.engine, owner),
        router_configuration: config_map(context, &namespace, &names.router, owner),
        engine_deployment: child(
            context,
            &caches.deployments,
            &namespace,
            &names.engine,
            owner,
        )
        .await?,
        router_deployment: child(
            context,
            &caches.deployments,
            &namespace,
            &names.router,
            owner,
        )
        .await?,
        engines_service: child(
            context,
            &caches.services,
            &namespace,
            &names.engines_service,
            owner,
        )
        .await?,
        service: child(context, &caches.services, &namespace, &names.service, owner).await?,
        operator_keys: context.calls.public_keys().to_vec(),
        ..Observed::default()
    };
    let peer = keeper::peer(context, &namespace);
    if let Ok(base) = PvcUri::parse(&cr.spec.base_model.uri) {
        observed.base_claim = claim(context, &namespace, base.claim());
        let touch = Touch {
            kind: Kind::Endpoint,
            namespace: namespace.clone(),
            name: name.clone(),
        };
        observed.base = keeper::base(context, &peer, &base, observed.base_claim, touch).await;
    }
    let of = |component| pods::of(context, &namespace, component, endpoint::KIND, &name);
    let engines = of(labels::component::ENGINE).into_iter();
    let engines = engines.map(|pod| observe_engine(context, &namespace, &uid, pod));
    let windows = endpoint::windows(cr, now);
    let routers = of(labels::component::ROUTER).into_iter();
    let routers = routers.map(|pod| observe_router(context, &namespace, &uid, pod, &windows));
    (observed.engines, observed.routers) =
        futures::future::join(join_all(engines), join_all(routers)).await;
    Ok(observed)
}

fn peer_of(namespace: &str, owner: &str, pod: &Pod) -> Option<Peer> {
    Some(Peer {
        namespace: namespace.to_owned(),
        target: pod.target()?,
        owner_uid: owner.to_owned(),
    })
}

async fn observe_engine(context: &Context, namespace: &str, owner: &str, pod: Pod) -> EnginePod {
    let peer = peer_of(namespace, owner, &pod).filter(|_| pod.ready);
    let Some(peer) = peer else {
        return EnginePod {
            pod,
            ..EnginePod::default()
        };
    };
    let status = keeper::asked(context.calls.engine_status(&peer).await);
    EnginePod {
        pod,
        status,
        // After the question: its answer shows whether the process is still the one that took it.
        acknowledged: context.calls.acknowledged(&peer.target),
    }
}

async fn observe_router(
    context: &Context,
    namespace: &str,
    owner: &str,
    pod: Pod,
    windows: &BTreeMap<String, Window>,
) -> RouterPod {
    let peer = peer_of(namespace, owner, &pod).filter(|_| pod.ready);
    let Some(peer) = peer else {
        return RouterPod {
            pod,
            ..RouterPod::default()
        };
    };
    let questions = windows.iter().map(|(adapter, window)| {
        let request = StatsRequest {
            from_milliseconds_ago: window.from_milliseconds_ago,
            to_milliseconds_ago: window.to_milliseconds_ago,
        };
        let calls = &context.calls;
        let peer = &peer;
        async move {
            let stats: Asked<_> = keeper::asked(calls.router_stats(peer, request).await);
            (adapter.clone(), stats)
        }
    });
    let stats = join_all(questions).await.into_iter().collect();
    RouterPod {
        pod,
        acknowledged: context.calls.acknowledged(&peer.target),
        stats,
    }
}
