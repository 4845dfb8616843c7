//! A run's surroundings.

use graftwork_api::uri::PvcUri;
use graftwork_api::{TrainingRun, labels};
use graftwork_operator_core::jobs::{self, JobState};
use graftwork_operator_core::observed::{Asked, Pod};
use graftwork_operator_core::run::{self, Observed, Referenced, Report};
use k8s_openapi::api::batch::v1::Job;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::Store;
use kube::{Resource, ResourceExt as _};

use super::{child, claim, config_map, keeper, owned, place, pods, sightings};
use crate::api::ApiError;
use crate::cache::{Kind, Touch, find};
use crate::calls::Peer;
use crate::clock;
use crate::context::Context;

/// Everything that a run's plan needs.
///
/// # Errors
/// Those of the API server.
pub async fn observe(context: &Context, cr: &TrainingRun) -> Result<Observed, ApiError> {
    let (namespace, name) = place(cr);
    let uid = cr.uid().unwrap_or_default();
    let touch = Touch {
        kind: Kind::Run,
        namespace: namespace.clone(),
        name: name.clone(),
    };
    let caches = &context.caches;
    let adapter = cr.spec.adapter_ref.as_ref();
    let initial = run::initial_version(&cr.spec);
    let mut observed = Observed {
        storage: keeper::problem(context, &namespace).await?,
        dataset: referenced(&caches.datasets, &namespace, &cr.spec.dataset_ref.name),
        adapter: adapter.map_or(Referenced::Absent, |adapter| {
            referenced(&caches.adapters, &namespace, &adapter.name)
        }),
        initial: initial.map_or(Referenced::Absent, |initial| {
            referenced(&caches.adapters, &namespace, &initial.version.adapter)
        }),
        base_claim: PvcUri::parse(&cr.spec.base_model.uri)
            .map(|uri| claim(context, &namespace, uri.claim()))
            .unwrap_or_default(),
        claims: run::claims(&cr.spec)
            .into_iter()
            .map(|name| {
                let state = claim(context, &namespace, &name);
                (name, state)
            })
            .collect(),
        configuration: config_map(
            context,
            &namespace,
            &run::configuration_name(cr),
            Some(&uid),
        ),
        job: child(
            context,
            &caches.jobs,
            &namespace,
            &run::job_name(cr),
            Some(&uid),
        )
        .await?,
        jobs: owned(&caches.jobs, &namespace, &uid),
        pods: pods::of(
            context,
            &namespace,
            labels::component::TRAINER,
            run::KIND,
            &name,
        ),
        ..Observed::default()
    };
    observed.sightings = sightings(&context.spells, &observed.jobs, clock::now());
    if let Some(job) = observed.job.ours().filter(|job| is_active(cr, job)) {
        // While its Job runs, the store has nothing to say about a run.
        observed.report = report(context, cr, job, &observed.pods, touch);
        return Ok(observed);
    }
    let peer = keeper::peer(context, &namespace);
    if let Some(uri) = run::base_to_describe(cr) {
        observed.base = keeper::base(context, &peer, &uri, observed.base_claim, touch).await;
    }
    if let Some((resolved, result)) = run::records_to_read(cr, &observed.base) {
        observed.resolved = keeper::get(context, &peer, resolved).await;
        observed.result = match &observed.resolved {
            Asked::Unreachable(why) => Asked::Unreachable(why.clone()),
            _ => keeper::get(context, &peer, result).await,
        };
    }
    Ok(observed)
}

fn is_active(cr: &TrainingRun, job: &Job) -> bool {
    run::is_under_way(cr) && jobs::state(job) == JobState::Active
}

fn report(
    context: &Context,
    cr: &TrainingRun,
    job: &Job,
    pods: &[Pod],
    touch: Touch,
) -> Option<Report> {
    let pod = run::pod_of(job, pods).filter(|pod| pod.is_running())?;
    let peer = Peer {
        namespace: touch.namespace.clone(),
        target: pod.target()?,
        owner_uid: cr.uid().unwrap_or_default(),
    };
    context
        .progress
        .follow(&peer, &context.calls, &context.touches, touch)
}

fn referenced<K>(store: &Store<DeserializeGuard<K>>, namespace: &str, name: &str) -> Referenced<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    match find(store, namespace, name) {
        None => Referenced::Absent,
        Some(found) if found.meta().deletion_timestamp.is_some() => Referenced::Deleting,
        Some(found) => match &found.0 {
            Ok(object) => Referenced::There(Box::new(object.clone())),
            Err(_) => Referenced::Unreadable,
        },
    }
}
