//! A build's Job and configuration.

use std::collections::BTreeMap;

use graftwork_api::{Dataset, DatasetStatus, labels, names};
use graftwork_contract::dataset::{
    BaseModel, BuildConfig, SecretKey, Source as BuildSource, Transform,
};
use graftwork_contract::remote::Remote;
use graftwork_contract::uri::{DataUri, ObjectStore};
use graftwork_contract::{Digest, pod};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::parts::Attempt;
use super::step::{Step, attempts, is_of, uri};
use super::validate::{Place, Source, Valid};
use super::{KIND, Observed, SourceState, secrets};
use crate::bucket;
use crate::jobs;
use crate::plan::{Actions, Child, ChildKind, Delete};
use crate::settings::Settings;
use crate::workload::{
    MountedKey, Owner, Placement, Recipe, StoreAccess, build_configuration, build_pod,
};

const COMPONENT: &str = labels::component::DATASET_BUILDER;
/// Jobs of ended attempts at one fingerprint that are kept for their logs.
const KEPT_JOBS: u32 = 3;

fn short(fingerprint: &Digest) -> &str {
    fingerprint.hex().get(..8).unwrap_or_default()
}

/// Name of a build's configuration.
pub fn configuration_name(owner: &str, fingerprint: &Digest) -> String {
    names::child_name(owner, &format!("build-{}", short(fingerprint)))
}

/// Name of an attempt's Job.
pub fn job_name(owner: &str, fingerprint: &Digest, attempt: u32) -> String {
    let suffix = match attempt {
        0 | 1 => format!("build-{}", short(fingerprint)),
        number => format!("build-{}-{number}", short(fingerprint)),
    };
    names::child_name(owner, &suffix)
}

/// Name of the Job that makes an attempt's parts.
pub fn parts_name(owner: &str, fingerprint: &Digest, attempt: u32) -> String {
    let suffix = match attempt {
        0 | 1 => format!("parts-{}", short(fingerprint)),
        number => format!("parts-{}-{number}", short(fingerprint)),
    };
    names::child_name(owner, &suffix)
}

/// The attempt at a fingerprint that a Job is, or is a part of, by its name, which nobody can change; none where it
/// is called as none.
pub fn attempt_of(owner: &str, fingerprint: &Digest, job: &Job) -> Option<u32> {
    let name = job.metadata.name.as_deref()?;
    let is_called = |number: &u32| {
        job_name(owner, fingerprint, *number) == name
            || parts_name(owner, fingerprint, *number) == name
    };
    // The first one's name has no number.
    [1].into_iter().chain(jobs::number_in(name)).find(is_called)
}

/// What a Dataset's children are made from.
#[derive(Clone, Copy)]
pub struct Means<'a> {
    /// The Dataset.
    pub cr: &'a Dataset,
    /// Its spec, read.
    pub valid: &'a Valid,
    /// Its surroundings.
    pub observed: &'a Observed,
    /// Those of the installation.
    pub settings: &'a Settings,
}

/// Adds a step's children and removals to its actions.
pub fn build(means: Means<'_>, step: &Step, now: Timestamp, actions: &mut Actions<DatasetStatus>) {
    let Means {
        cr,
        valid,
        observed,
        settings,
    } = means;
    let (Step::Ready { fingerprint, .. }
    | Step::Build { fingerprint, .. }
    | Step::Pause { fingerprint, .. }
    | Step::Failed { fingerprint, .. }) = step
    else {
        return;
    };
    let owner = cr.metadata.name.as_deref().unwrap_or_default();
    if let Step::Build { attempt, .. } = step {
        let made = Attempt::of(owner, &observed.jobs, fingerprint, *attempt);
        // A spec that wants other parts waits for the end of those that are being made.
        let next = match (made.rest, valid.shards) {
            (Some(_), _) => None,
            (None, Some(shards)) if made.parts.is_none() => Some(Stage::Parts(shards)),
            (None, _) => (made.parts.is_none() || made.waits_for_rest()).then_some(Stage::Rest),
        };
        if let Some(stage) = next {
            let mut config = build_config(cr, valid, fingerprint, &observed.sources, settings);
            if let Some(transform) = &mut config.transform {
                transform.now = Some(decided(&observed.jobs, fingerprint, now).to_string());
            }
            start(means, &config, (*attempt, stage), actions);
        }
    }
    actions.delete.extend(jobs::stuck(&observed.pods, now));
    // What other fingerprints left behind: a build that goes on would write a version that the spec
    // no longer asks for. And attempts of this one that are long over.
    let name = |metadata: &ObjectMeta| metadata.name.clone().unwrap_or_default();
    let keep = configuration_name(owner, fingerprint);
    let jobs = observed
        .jobs
        .iter()
        .filter(|job| !is_of(job, fingerprint))
        .chain(outlived(owner, &observed.jobs, fingerprint))
        .map(|job| (ChildKind::Job, &job.metadata));
    let maps = observed
        .configurations
        .iter()
        .filter(|map| name(&map.metadata) != keep)
        .map(|map| (ChildKind::ConfigMap, &map.metadata));
    for (kind, metadata) in jobs.chain(maps) {
        if metadata.deletion_timestamp.is_none() {
            actions.delete.push(Delete {
                kind,
                name: name(metadata),
                uid: metadata.uid.clone().unwrap_or_default(),
                grace_seconds: None,
            });
        }
    }
}

/// Jobs of a fingerprint whose attempts ended before the newest few. The newest one tells how often
/// it was tried.
fn outlived<'a>(
    owner: &'a str,
    jobs: &'a [Job],
    fingerprint: &'a Digest,
) -> impl Iterator<Item = &'a Job> {
    let newest = attempts(owner, jobs, fingerprint);
    jobs.iter()
        .filter(|job| is_of(job, fingerprint))
        .filter(move |job| {
            let number = attempt_of(owner, fingerprint, job);
            number.is_some_and(|number| number + KEPT_JOBS <= newest)
        })
}

/// When the first attempt at a fingerprint was decided: every Job says it to the next one.
fn decided(jobs: &[Job], fingerprint: &Digest, now: Timestamp) -> Timestamp {
    let said = jobs.iter().filter(|job| is_of(job, fingerprint));
    let said = said.filter_map(|job| {
        let annotations = job.metadata.annotations.as_ref()?;
        let time = annotations.get(labels::BUILD_TIME_ANNOTATION)?;
        time.parse::<Timestamp>().ok()
    });
    let seconds = Timestamp::from_second(now.as_second()).unwrap_or(now);
    said.min().unwrap_or(seconds)
}

/// What a Job of an attempt does.
#[derive(Debug, Clone, Copy)]
enum Stage {
    /// Makes so many parts, each by a pod of its own.
    Parts(u32),
    /// Does what follows, or all.
    Rest,
}

fn start(
    means: Means<'_>,
    config: &BuildConfig,
    attempt: (u32, Stage),
    actions: &mut Actions<DatasetStatus>,
) {
    let owner = Owner::new(KIND, &means.cr.metadata);
    let configuration = configuration_name(&owner.name, &config.fingerprint);
    let (map, _) = build_configuration(owner.child_metadata(&configuration, COMPONENT), config);
    actions.apply.push(Child::ConfigMap(Box::new(map)));
    let mut job = build_attempt(means, &owner, &config.fingerprint, attempt, configuration);
    if let Some(now) = config.transform.as_ref().and_then(|it| it.now.clone()) {
        job.metadata
            .annotations
            .get_or_insert_default()
            .insert(labels::BUILD_TIME_ANNOTATION.to_owned(), now);
    }
    actions.create.push(job);
}

fn build_config(
    cr: &Dataset,
    valid: &Valid,
    fingerprint: &Digest,
    states: &BTreeMap<String, SourceState>,
    settings: &Settings,
) -> BuildConfig {
    BuildConfig {
        dataset: cr.metadata.name.clone().unwrap_or_default(),
        description: cr.spec.description.clone(),
        fingerprint: fingerprint.clone(),
        format: valid.format,
        reward: valid.reward,
        sources: valid
            .sources
            .iter()
            .map(|source| BuildSource {
                name: source.name.clone(),
                uri: uri(&source.place),
                path: match &source.place {
                    Place::Key { key, .. } => {
                        format!("{}/{}/{key}", pod::SOURCES_DIR, source.name)
                    }
                    Place::File(uri) => {
                        format!("{}/{}", pod::claim_dir(uri.claim()), uri.path())
                    }
                    Place::Query { .. } | Place::Remote { .. } => secrets::folder(&source.name),
                },
                columns: source.columns.clone(),
                root: match &source.place {
                    Place::Key { .. } | Place::Query { .. } | Place::Remote { .. } => None,
                    Place::File(uri) => Some(pod::claim_dir(uri.claim())),
                },
                digest: match states.get(&source.name) {
                    Some(SourceState::Present(digest)) => digest.clone(),
                    _ => None,
                },
                query: match &source.place {
                    Place::Query { query, .. } => Some(query.clone()),
                    Place::Key { .. } | Place::File(_) | Place::Remote { .. } => None,
                },
                remote: match &source.place {
                    Place::Remote { secret, .. } => Some(Remote {
                        secret: secret.clone(),
                    }),
                    Place::Key { .. } | Place::File(_) | Place::Query { .. } => None,
                },
                share: source.share,
            })
            .collect(),
        transform: valid.transform.as_ref().map(|sql| Transform {
            sql: sql.clone(),
            pseudonym_key: valid.pseudonym_key.is_some(),
            now: None,
        }),
        validation: valid.validation.clone(),
        split: valid.split.clone(),
        balance: valid.balance.clone(),
        base_model: valid.base.as_ref().map(|base| BaseModel {
            uri: base.to_string(),
            path: match base.path() {
                "" => pod::claim_dir(base.claim()),
                path => format!("{}/{path}", pod::claim_dir(base.claim())),
            },
        }),
        classification: valid.classification,
        privacy: valid.privacy.clone(),
        pseudonym_key: valid.pseudonym_key.as_ref().map(|named| SecretKey {
            name: named.name.clone(),
            key: named.key.clone(),
        }),
        shards: valid.shards,
        allowed_hosts: settings.data_sources.allow.clone(),
        hub_endpoint: settings.data_sources.hub_endpoint.clone(),
        store: bucket::configuration(
            settings,
            cr.metadata.namespace.as_deref().unwrap_or_default(),
        ),
    }
}

fn pod_labels(owner: &Owner, valid: &Valid) -> BTreeMap<String, String> {
    let mut labels = labels::child(COMPONENT, KIND, &owner.name);
    let is_azure = |source: &Source| {
        matches!(
            &source.place,
            Place::Remote {
                uri: DataUri::Object {
                    store: ObjectStore::Az,
                    ..
                },
                ..
            }
        )
    };
    if valid.sources.iter().any(is_azure) {
        labels.insert(bucket::AZURE_IDENTITY.to_owned(), "true".to_owned());
    }
    labels
}

fn build_attempt(
    means: Means<'_>,
    owner: &Owner,
    fingerprint: &Digest,
    (attempt, stage): (u32, Stage),
    configuration: String,
) -> Job {
    let Means {
        valid, settings, ..
    } = means;
    let recipe = Recipe {
        labels: pod_labels(owner, valid),
        annotations: std::collections::BTreeMap::new(),
        binary: "dataset-builder",
        arguments: Vec::new(),
        image: settings.images.trainer.clone(),
        resources: settings.dataset_builder.resources.clone(),
        configuration,
        store: Some(StoreAccess::ReadWrite),
        outputs: std::collections::BTreeSet::new(),
        claims: valid
            .sources
            .iter()
            .filter_map(|source| match &source.place {
                Place::File(uri) => Some(uri.claim().to_owned()),
                Place::Key { .. } | Place::Query { .. } | Place::Remote { .. } => None,
            })
            .chain(valid.base.iter().map(|base| base.claim().to_owned()))
            .collect(),
        keys: valid
            .sources
            .iter()
            .filter_map(|source| match &source.place {
                Place::Key { config_map, key } => Some(MountedKey {
                    source: source.name.clone(),
                    config_map: config_map.clone(),
                    key: key.clone(),
                }),
                Place::File(_) | Place::Query { .. } | Place::Remote { .. } => None,
            })
            .collect(),
        adapter_cache_bytes: None,
        ports: Vec::new(),
        readiness: None,
        liveness: None,
        grace_seconds: 30,
        restart_policy: "Never",
        priority_class_name: None,
    };
    let name = match stage {
        Stage::Parts(_) => parts_name(&owner.name, fingerprint, attempt),
        Stage::Rest => job_name(&owner.name, fingerprint, attempt),
    };
    let mut metadata = owner.child_metadata(&name, COMPONENT);
    metadata
        .labels
        .get_or_insert_default()
        .insert(labels::ATTEMPT.to_owned(), attempt.to_string());
    metadata.annotations.get_or_insert_default().insert(
        labels::CONTENT_HASH_ANNOTATION.to_owned(),
        fingerprint.hex().to_owned(),
    );
    let template = build_pod(recipe, Placement::default(), settings);
    let template = secrets::mount(valid, template);
    match stage {
        Stage::Parts(count) => jobs::build_indexed(metadata, template, count),
        Stage::Rest => jobs::build_job(metadata, template),
    }
}
