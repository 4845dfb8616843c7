//! A run's Jobs and the trainer's configuration.

use graftwork_api::{TrainingRun, TrainingRunStatus, labels, names};
use graftwork_contract::dataset::Classification;
use graftwork_contract::pod;
use graftwork_contract::run::{ModelOutput, Resolved, TrainerConfig};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::ConfigMap;

use super::step::Step;
use super::validate::Valid;
use super::{KIND, Observed, Referenced, attempt, inputs};
use crate::bucket;
use crate::jobs::{self, JobState};
use crate::plan::{Actions, Call, Child, ChildKind, Delete};
use crate::settings::Settings;
use crate::workload::{Owner, Placement, Recipe, StoreAccess, build_configuration, build_pod};

const COMPONENT: &str = labels::component::TRAINER;
/// Label by which Kueue finds a Job's queue; copied from the run.
const QUEUE_LABEL: &str = "kueue.x-k8s.io/queue-name";
/// Finished Jobs of earlier attempts that are kept for their logs.
const KEPT_JOBS: usize = 3;

/// Name of an attempt's Job.
pub fn job_name(cr: &TrainingRun, number: u32) -> String {
    names::attempt_name(cr.metadata.name.as_deref().unwrap_or_default(), number)
}

/// The attempt that a Job is, by its name, which nobody can change; none where it is called as none of this run's.
pub fn attempt_of(cr: &TrainingRun, job: &Job) -> Option<u32> {
    let name = job.metadata.name.as_deref()?;
    jobs::number_in(name).filter(|number| job_name(cr, *number) == name)
}

/// Name of the trainer's configuration.
pub fn configuration_name(cr: &TrainingRun) -> String {
    names::child_name(cr.metadata.name.as_deref().unwrap_or_default(), "trainer")
}

/// What a run's children are made from.
#[derive(Clone, Copy)]
pub struct Means<'a> {
    /// The run.
    pub cr: &'a TrainingRun,
    /// Its spec, read.
    pub valid: &'a Valid,
    /// Its surroundings.
    pub observed: &'a Observed,
    /// Those of the installation.
    pub settings: &'a Settings,
}

/// Adds a step's children, removals and calls to its actions.
pub fn build(
    means: Means<'_>,
    step: &Step,
    now: Timestamp,
    actions: &mut Actions<TrainingRunStatus>,
) {
    match step {
        Step::Store(request) => actions.calls.push(Call::Publish(request.clone())),
        Step::Make(number, resolved) => {
            if let Some(job) = make(means, *number, resolved, actions) {
                actions.create.push(job);
            }
        }
        _ => {}
    }
    if !matches!(step, Step::Wait(_) | Step::Invalid(_)) {
        prune(means.cr, means.observed, now, actions);
    }
}

fn make(
    means: Means<'_>,
    number: u32,
    resolved: &Resolved,
    actions: &mut Actions<TrainingRunStatus>,
) -> Option<Job> {
    let Means {
        cr,
        valid,
        observed,
        settings,
    } = means;
    let owner = Owner::new(KIND, &cr.metadata);
    let key = inputs::key(valid, cr, &resolved.base.digest)?;
    let configuration = configuration_name(cr);
    let (map, _) = build_configuration(
        owner.child_metadata(&configuration, COMPONENT),
        &TrainerConfig {
            run: owner.name.clone(),
            resolved: resolved.clone(),
            key,
            objective: valid.objective,
            evaluate_only: valid.evaluate_only,
            output: valid.output.as_ref().map(|output| ModelOutput {
                uri: output.to_string(),
                root: pod::output_dir(output.claim()),
                folder: output.path().to_owned(),
            }),
            lora: valid.lora.clone(),
            shape_of_initial: valid.shape_of_initial,
            hyperparameters: valid.hyperparameters.clone(),
            warmup_is_named: cr.spec.hyperparameters.warmup_steps.is_some(),
            checkpoint: valid.checkpoint.clone(),
            evaluation: valid.evaluation.clone(),
            adapter: cr.spec.adapter_ref.as_ref().map(|it| it.name.clone()),
            classification: classification(observed),
            store: bucket::configuration(settings, &owner.namespace),
            threads: 0,
        },
    );
    actions.apply.push(Child::ConfigMap(Box::new(map)));
    let profile = settings.profile(&cr.spec.compute.profile).ok()?;
    let pinned = cr.status.as_ref().and_then(|it| it.resolved.as_ref());
    let image = pinned
        .map(|pinned| pinned.image.as_str())
        .filter(|image| !image.is_empty())
        .unwrap_or_else(|| settings.trainer_image(profile));
    let recipe = Recipe {
        labels: labels::child(COMPONENT, KIND, &owner.name),
        annotations: std::collections::BTreeMap::new(),
        binary: "trainer",
        arguments: vec!["run".to_owned()],
        image: image.to_owned(),
        resources: profile.resources.clone(),
        configuration,
        store: Some(StoreAccess::ReadWrite),
        claims: claims(valid),
        outputs: valid
            .output
            .iter()
            .map(|output| output.claim().to_owned())
            .collect(),
        keys: Vec::new(),
        adapter_cache_bytes: None,
        ports: vec![("grpc", pod::GRPC_PORT)],
        readiness: None,
        liveness: None,
        grace_seconds: i64::from(pod::TRAINER_GRACE_SECONDS),
        restart_policy: "Never",
        priority_class_name: cr.spec.compute.priority_class_name.clone(),
    };
    let mut metadata = owner.child_metadata(&job_name(cr, number), COMPONENT);
    let job_labels = metadata.labels.get_or_insert_default();
    job_labels.insert(labels::ATTEMPT.to_owned(), number.to_string());
    if let Some(queue) = cr
        .metadata
        .labels
        .iter()
        .flatten()
        .find(|it| it.0 == QUEUE_LABEL)
    {
        job_labels.insert(QUEUE_LABEL.to_owned(), queue.1.clone());
    }
    let placement = match &profile.spot {
        Some(spot) if is_for_spot(cr) => Placement::from(profile).on_spot(spot),
        _ => Placement::from(profile),
    };
    Some(jobs::build_job(
        metadata,
        build_pod(recipe, placement, settings),
    ))
}

/// How far the rows may go: as the Dataset says by now, and no further than the attempt before was told, which
/// counts alone where the Dataset is gone since. Where nobody knows any more, as far as the strictest lets them.
fn classification(observed: &Observed) -> Option<Classification> {
    let configuration = observed.configuration.ours();
    let told = configuration.and_then(read_configuration);
    let before = told.as_ref().map(|told| told.classification);
    match &observed.dataset {
        Referenced::There(dataset) => {
            crate::dataset::classification(&dataset.spec).max(before.flatten())
        }
        Referenced::Absent | Referenced::Deleting | Referenced::Unreadable => {
            before.unwrap_or(Some(Classification::Restricted))
        }
    }
}

/// What the trainer of an attempt was told.
fn read_configuration(configuration: &ConfigMap) -> Option<TrainerConfig> {
    serde_json::from_str(configuration.data.as_ref()?.get("config.json")?).ok()
}

/// Whether the next attempt runs on spot nodes: the run asks for it, and was not evicted too often.
pub fn is_for_spot(cr: &TrainingRun) -> bool {
    let spot = cr.spec.compute.spot.as_ref().filter(|spot| spot.enabled);
    spot.is_some_and(|spot| attempt::attempts(cr).evicted < spot.on_demand_after_evictions)
}

/// The claims that a trainer reads: the base model's, and those of benchmarks.
fn claims(valid: &Valid) -> std::collections::BTreeSet<String> {
    let mut claims = valid.benchmark_claims.clone();
    claims.insert(valid.base.claim().to_owned());
    claims
}

/// Jobs of attempts that are over must not run; a few finished ones stay for their logs. A pod that
/// does not stop is forced out.
pub fn prune(
    cr: &TrainingRun,
    observed: &Observed,
    now: Timestamp,
    actions: &mut Actions<TrainingRunStatus>,
) {
    let ended = attempt::attempts(cr).ended;
    let mut finished: Vec<(u32, &Job)> = Vec::new();
    for job in &observed.jobs {
        let number = attempt_of(cr, job).filter(|number| *number <= ended);
        let Some(number) = number.filter(|_| job.metadata.deletion_timestamp.is_none()) else {
            continue;
        };
        if matches!(jobs::state(job), JobState::Active | JobState::Suspended) {
            actions.delete.extend(delete(job));
        } else {
            finished.push((number, job));
        }
    }
    finished.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    actions.delete.extend(
        finished
            .iter()
            .skip(KEPT_JOBS)
            .filter_map(|(_, job)| delete(job)),
    );
    actions.delete.extend(jobs::stuck(&observed.pods, now));
}

fn delete(job: &Job) -> Option<Delete> {
    Some(Delete {
        kind: ChildKind::Job,
        name: job.metadata.name.clone()?,
        uid: job.metadata.uid.clone()?,
        grace_seconds: None,
    })
}
