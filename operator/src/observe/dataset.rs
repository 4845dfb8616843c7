//! A Dataset's surroundings.

use std::collections::{BTreeMap, BTreeSet};

use graftwork_api::conditions::condition;
use graftwork_api::dataset::{ConfigMapKeyReference, Source};
use graftwork_api::uri::PvcUri;
use graftwork_api::{Dataset, TrainingRun, labels};
use graftwork_contract::{Digest, paths};
use graftwork_operator_core::conditions;
use graftwork_operator_core::dataset::{self, Observed, SourceState};
use graftwork_operator_core::observed::{Asked, ClaimState};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;
use kube::api::Api;

use super::{child, claim, config_map, keeper, owned, place, pods, sightings};
use crate::api::{self, ApiError};
use crate::cache::{find, in_namespace};
use crate::clock;
use crate::context::Context;

/// Contents of `ConfigMaps` that are remembered.
const REMEMBERED_CONTENTS: usize = 4096;

/// Everything that a Dataset's plan needs.
///
/// # Errors
/// Those of the API server.
pub async fn observe(context: &Context, cr: &Dataset) -> Result<Observed, ApiError> {
    let (namespace, name) = place(cr);
    let uid = cr.uid().unwrap_or_default();
    let mut sources = BTreeMap::new();
    for source in &cr.spec.sources {
        let state = observe_source(context, &namespace, source).await?;
        sources.insert(source.name.clone(), state);
    }
    let jobs = owned(&context.caches.jobs, &namespace, &uid);
    let mut observed = Observed {
        base_claim: base_claim(context, &namespace, cr),
        storage: keeper::problem(context, &namespace).await?,
        pinned: pinned(context, &namespace, &name),
        referenced: referenced(context, &namespace, &name),
        configurations: owned(&context.caches.config_maps, &namespace, &uid),
        pods: pods::of(
            context,
            &namespace,
            labels::component::DATASET_BUILDER,
            dataset::KIND,
            &name,
        ),
        ..Observed::default()
    };
    if let Some(fingerprint) = dataset::fingerprint(cr, &sources) {
        let names = dataset::names(cr, &fingerprint, &jobs);
        let job = child(
            context,
            &context.caches.jobs,
            &namespace,
            &names.job,
            Some(&uid),
        )
        .await?;
        observed.foreign_job = job.is_foreign();
        observed.configuration = config_map(context, &namespace, &names.configuration, Some(&uid));
        let peer = keeper::peer(context, &namespace);
        let build = paths::dataset_build(&name, &fingerprint);
        let versions = format!("{}/", paths::dataset_versions(&name));
        observed.build = keeper::get(context, &peer, build).await;
        observed.versions = match &observed.build {
            Asked::Unreachable(why) => Asked::Unreachable(why.clone()),
            _ => keeper::list(context, &peer, versions).await,
        };
    }
    observed.sources = sources;
    observed.sightings = sightings(&context.spells, &jobs, clock::now());
    observed.jobs = jobs;
    Ok(observed)
}

fn base_claim(context: &Context, namespace: &str, cr: &Dataset) -> ClaimState {
    let base = cr.spec.base_model.as_ref();
    let uri = base.and_then(|base| PvcUri::parse(&base.uri).ok());
    uri.map_or_else(ClaimState::default, |uri| {
        claim(context, namespace, uri.claim())
    })
}

/// Versions of a Dataset that unfinished runs pin.
fn pinned(context: &Context, namespace: &str, name: &str) -> BTreeSet<u32> {
    let is_finished = |run: &TrainingRun| {
        let status = run.status.as_ref();
        status.is_some_and(|status| conditions::is_true(&status.conditions, condition::FINISHED))
    };
    in_namespace(&context.caches.runs, namespace)
        .iter()
        .filter_map(|run| run.0.as_ref().ok())
        .filter(|run| run.spec.dataset_ref.name == name && !is_finished(run))
        .filter_map(|run| run.spec.dataset_ref.version)
        .collect()
}

/// Versions of a Dataset that any run was made for, and that a version of an adapter was trained or scored on.
fn referenced(context: &Context, namespace: &str, name: &str) -> BTreeSet<u32> {
    let mut versions = BTreeSet::new();
    for run in in_namespace(&context.caches.runs, namespace) {
        let Ok(run) = &run.0 else { continue };
        if run.spec.dataset_ref.name == name {
            let resolved = run.status.as_ref().and_then(|it| it.resolved.as_ref());
            versions.extend(run.spec.dataset_ref.version);
            versions.extend(resolved.map(|resolved| resolved.dataset.version));
        }
    }
    for adapter in in_namespace(&context.caches.adapters, namespace) {
        let Ok(adapter) = &adapter.0 else { continue };
        let listed = adapter.status.iter().flat_map(|status| &status.versions);
        let datasets = listed.filter_map(|version| version.dataset.as_ref());
        versions.extend(
            datasets
                .filter(|dataset| dataset.name == name)
                .map(|dataset| dataset.version),
        );
    }
    versions
}

async fn observe_source(
    context: &Context,
    namespace: &str,
    source: &Source,
) -> Result<SourceState, ApiError> {
    if let Some(reference) = &source.config_map_ref {
        return observe_key(context, namespace, reference).await;
    }
    if source.postgres.is_some() {
        return Ok(SourceState::Present(None));
    }
    let uri = source.uri.as_deref();
    // Nobody but the build looks at what is on the network.
    if uri.is_some_and(|uri| !uri.starts_with("pvc://")) {
        return Ok(SourceState::Present(None));
    }
    let uri = uri.and_then(|uri| PvcUri::parse(uri).ok());
    let Some(uri) = uri else {
        return Ok(SourceState::Absent);
    };
    Ok(match claim(context, namespace, uri.claim()) {
        ClaimState::Absent => SourceState::Absent,
        ClaimState::Deleting => SourceState::Deleting,
        ClaimState::NotBound => SourceState::NotBound,
        ClaimState::Bound => SourceState::Present(None),
    })
}

/// Digest of a key's bytes: read once for every version of the `ConfigMap`, whose metadata is
/// watched.
async fn observe_key(
    context: &Context,
    namespace: &str,
    reference: &ConfigMapKeyReference,
) -> Result<SourceState, ApiError> {
    let Some(known) = find(&context.caches.all_config_maps, namespace, &reference.name) else {
        return Ok(SourceState::Absent);
    };
    if known.metadata.deletion_timestamp.is_some() {
        return Ok(SourceState::Deleting);
    }
    let key_of = |uid: Option<String>, version: Option<String>| {
        (
            uid.unwrap_or_default(),
            version.unwrap_or_default(),
            reference.key.clone(),
        )
    };
    let key = key_of(known.uid(), known.resource_version());
    let remembered = context
        .contents
        .lock()
        .ok()
        .and_then(|contents| contents.get(&key).cloned());
    let digest = match remembered {
        Some(digest) => digest,
        None => {
            let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), namespace);
            let Some(map) = api::call(api.get_opt(&reference.name)).await? else {
                return Ok(SourceState::Absent);
            };
            let digest = content(&map, &reference.key);
            if let Ok(mut contents) = context.contents.lock() {
                if contents.len() >= REMEMBERED_CONTENTS {
                    contents.clear();
                }
                contents.insert(key_of(map.uid(), map.resource_version()), digest.clone());
            }
            digest
        }
    };
    Ok(match digest {
        Some(digest) => SourceState::Present(Some(digest)),
        None => SourceState::KeyAbsent,
    })
}

fn content(map: &ConfigMap, key: &str) -> Option<Digest> {
    let text = map.data.as_ref().and_then(|data| data.get(key));
    let bytes = map.binary_data.as_ref().and_then(|data| data.get(key));
    text.map(|text| Digest::of(text.as_bytes()))
        .or_else(|| bytes.map(|bytes| Digest::of(&bytes.0)))
}
