//! What a run's references mean, pinned at its start.

use graftwork_api::conditions::{condition, reason};
use graftwork_api::training_run::{MethodType, ResolvedBaseModel, ResolvedInputs};
use graftwork_api::{
    Dataset, LoRAAdapter, LoRAAdapterStatus, TrainingRun, TrainingRunSpec, VersionedDigest,
};
use graftwork_contract::run::{
    AdapterVersion, Resolved, ResolvedBase, ResolvedDataset, ResolvedReference, RunKey,
};
use graftwork_contract::{Digest, pod};

use super::validate::Valid;
use super::{Observed, Referenced};
use crate::conditions::{self, Truth};
use crate::observed::{Asked, Base, DescribedBase};

/// What `status.resolved.reference` says for the bare base model.
pub const BASE: &str = "base";

/// Why a run can't start yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// A condition's reason.
    pub reason: &'static str,
    /// In words, with the field.
    pub message: String,
}

impl Waiting {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }

    fn for_dataset(message: impl Into<String>) -> Self {
        Self::new(reason::WAITING_FOR_DATASET, message)
    }

    fn for_adapter(message: impl Into<String>) -> Self {
        Self::new(reason::WAITING_FOR_ADAPTER, message)
    }
}

/// The pinned digest of the base model.
pub fn pinned_base(cr: &TrainingRun) -> Option<Digest> {
    let resolved = cr.status.as_ref()?.resolved.as_ref()?;
    resolved.base_model.digest.parse().ok()
}

/// The digest of the base model, pinned or as it is now.
pub fn base_digest(cr: &TrainingRun, base: &Asked<DescribedBase>) -> Option<Digest> {
    pinned_base(cr).or_else(|| match base.answer() {
        Some(Ok(base)) => Some(base.digest.clone()),
        _ => None,
    })
}

/// Digest of the [`RunKey`].
pub fn key(valid: &Valid, cr: &TrainingRun, base: &Digest) -> Option<Digest> {
    Digest::of_json(&RunKey {
        base: base.clone(),
        quantization: valid.quantization,
        dataset: cr.spec.dataset_ref.name.clone(),
        dataset_version: cr.spec.dataset_ref.version,
        lora: valid.lora.clone(),
        hyperparameters: valid.hyperparameters.clone(),
        evaluation: valid.evaluation.clone(),
        adapter: cr.spec.adapter_ref.as_ref().map(|it| it.name.clone()),
        keep_best: valid.checkpoint.keep_best,
        initial: initial_version(&cr.spec).map(|initial| initial.version),
        objective: valid.objective,
        evaluate_only: valid.evaluate_only,
        output: valid.output.as_ref().map(ToString::to_string),
    })
    .ok()
}

/// What the API server alone shows to be missing, of a run whose inputs are not pinned yet: said
/// while the keeper, which is asked for the rest, does not answer.
///
/// # Errors
/// What is missing, with the field.
pub fn visible(cr: &TrainingRun, observed: &Observed) -> Result<(), Waiting> {
    if cr.status.as_ref().is_some_and(|it| it.resolved.is_some()) {
        return Ok(());
    }
    resolve_dataset(cr, None, &observed.dataset)?;
    find_adapter(cr, &observed.adapter)?;
    if let Some(initial) = initial_version(&cr.spec) {
        there(initial.field, &initial.version.adapter, &observed.initial)?;
    }
    Ok(())
}

/// The base model, where it can be used.
///
/// # Errors
/// Why not, with the field.
pub fn base(observed: &Observed) -> Result<&Base, Waiting> {
    match &observed.base {
        Asked::Answered(Ok(base)) => Ok(base),
        Asked::Answered(Err(problem)) => Err(Waiting::new(
            known_reason(&problem.reason).unwrap_or(reason::BASE_MODEL_INVALID),
            format!("spec.baseModel.uri: {}", problem.message),
        )),
        Asked::Unreachable(why) => Err(Waiting::new(reason::STORAGE_UNAVAILABLE, why)),
        Asked::NotAsked => Err(Waiting::new(
            reason::STORAGE_UNAVAILABLE,
            "the keeper was not asked yet",
        )),
    }
}

/// The constant of a reason that another process gave.
pub fn known_reason(name: &str) -> Option<&'static str> {
    graftwork_api::conditions::REASONS
        .iter()
        .find(|entry| entry.name == name)
        .map(|entry| entry.name)
}

/// Everything that the run's references mean now, or as far as they are pinned already.
///
/// # Errors
/// What is not there yet, with the field.
pub fn resolve(
    cr: &TrainingRun,
    valid: &Valid,
    base: Digest,
    observed: &Observed,
) -> Result<Resolved, Waiting> {
    let pinned = cr.status.as_ref().and_then(|it| it.resolved.as_ref());
    let dataset = resolve_dataset(cr, pinned, &observed.dataset)?;
    let reference = resolve_reference(cr, pinned, &base, observed)?;
    let initial = resolve_initial(cr, &base, observed)?;
    Ok(Resolved {
        base: ResolvedBase {
            uri: valid.base.to_string(),
            path: base_path(valid),
            digest: base,
            quantization: valid.quantization,
        },
        dataset,
        reference,
        initial,
    })
}

/// The mounted folder of the base model.
fn base_path(valid: &Valid) -> String {
    let claim = pod::claim_dir(valid.base.claim());
    match valid.base.path() {
        "" => claim,
        path => format!("{claim}/{path}"),
    }
}

fn resolve_dataset(
    cr: &TrainingRun,
    pinned: Option<&ResolvedInputs>,
    dataset: &Referenced<Dataset>,
) -> Result<ResolvedDataset, Waiting> {
    let wanted = &cr.spec.dataset_ref;
    let say = |what: &str| {
        Waiting::for_dataset(format!(
            "spec.datasetRef.name: Dataset \"{}\" {what}",
            wanted.name
        ))
    };
    let dataset = match dataset {
        Referenced::Absent => return Err(say("does not exist")),
        Referenced::Deleting => return Err(say("is being deleted")),
        Referenced::Unreadable => return Err(say("can't be read by this version")),
        Referenced::There(dataset) => dataset,
    };
    let status = dataset.status.clone().unwrap_or_default();
    let version = if let Some(pinned) = pinned {
        pinned.dataset.clone()
    } else if let Some(number) = wanted.version {
        let found = status.versions.iter().find(|it| it.version == number);
        let Some(found) = found else {
            return Err(Waiting::for_dataset(format!(
                "spec.datasetRef.version: Dataset \"{}\" has no version {number} yet",
                wanted.name
            )));
        };
        VersionedDigest {
            version: number,
            digest: found.digest.clone(),
        }
    } else {
        let ready = conditions::find(&status.conditions, condition::READY);
        let settled = status.observed_generation == dataset.metadata.generation
            && ready.is_some_and(|ready| ready.status != "Unknown");
        match status.latest.filter(|_| settled) {
            Some(latest) => latest.versioned_digest(),
            None => {
                let why = ready.map_or("is not built yet".to_owned(), |ready| {
                    format!("is not ready: {}: {}", ready.reason, ready.message)
                });
                return Err(say(&why));
            }
        }
    };
    let evaluates = cr.spec.method.type_ == MethodType::Evaluate;
    let listed = status
        .versions
        .iter()
        .find(|it| it.version == version.version);
    if pinned.is_none() && !evaluates && listed.is_some_and(|it| it.rows.train == 0) {
        let number = version.version;
        return Err(say(&format!(
            "has no rows in the train split of version {number}: give it more rows, or another spec.split"
        )));
    }
    let digest = version
        .digest
        .parse()
        .map_err(|_| say("has a version without a digest"))?;
    Ok(ResolvedDataset {
        name: wanted.name.clone(),
        version: version.version,
        digest,
        format: crate::dataset::read_format(&dataset.spec)
            .map_err(|_| say("has a format unknown to this version"))?,
    })
}

/// The adapter that the run publishes to.
fn find_adapter<'a>(
    cr: &TrainingRun,
    adapter: &'a Referenced<LoRAAdapter>,
) -> Result<Option<&'a LoRAAdapter>, Waiting> {
    let Some(wanted) = &cr.spec.adapter_ref else {
        return Ok(None);
    };
    there(ADAPTER, &wanted.name, adapter).map(Some)
}

/// A version to start from, or to score.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Initial {
    /// The field that names the adapter.
    pub field: &'static str,
    /// The field that says which version.
    pub version_field: &'static str,
    /// The version.
    pub version: AdapterVersion,
}

/// The version that the spec wants to start from, or to score.
pub fn initial_version(spec: &TrainingRunSpec) -> Option<Initial> {
    if let Some(subject) = &spec.method.subject {
        return Some(Initial {
            field: "spec.method.subject.adapterRef",
            version_field: "spec.method.subject.version",
            version: AdapterVersion {
                adapter: subject.adapter_ref.name.clone(),
                version: subject.version,
            },
        });
    }
    let initial = spec.initial_adapter_ref.as_ref()?;
    Some(Initial {
        field: "spec.initialAdapterRef",
        version_field: "spec.initialAdapterRef.version",
        version: AdapterVersion {
            adapter: initial.name.clone(),
            version: initial.version,
        },
    })
}

/// The field of the adapter that the run publishes to.
const ADAPTER: &str = "spec.adapterRef";

fn there<'a>(
    field: &str,
    name: &str,
    adapter: &'a Referenced<LoRAAdapter>,
) -> Result<&'a LoRAAdapter, Waiting> {
    let what = match adapter {
        Referenced::There(adapter) => return Ok(adapter),
        Referenced::Absent => "does not exist",
        Referenced::Deleting => "is being deleted",
        Referenced::Unreadable => "can't be read by this version",
    };
    Err(adapter_waits(field, name, what))
}

fn adapter_waits(field: &str, name: &str, what: &str) -> Waiting {
    Waiting::for_adapter(format!("{field}.name: LoRAAdapter \"{name}\" {what}"))
}

/// The status of an adapter that has read its ledger and is for this base model.
fn usable<'a>(
    field: &str,
    name: &str,
    adapter: &'a LoRAAdapter,
    base: &Digest,
) -> Result<&'a LoRAAdapterStatus, Waiting> {
    let status = adapter.status.as_ref().filter(|it| has_read_ledger(it));
    let Some(status) = status else {
        let what = "has not read its ledger of versions yet";
        return Err(adapter_waits(field, name, what));
    };
    let known = status.base_model.as_ref().map(|it| it.digest.as_str());
    match known.filter(|known| !known.is_empty()) {
        // What it trained would be a version of an adapter that may be for another base model.
        None => Err(adapter_waits(field, name, &knows_no_base(status))),
        Some(known) if known == base.as_str() => Ok(status),
        Some(other) => Err(Waiting::new(
            reason::BASE_MODEL_MISMATCH,
            format!(
                "spec.baseModel.uri: LoRAAdapter \"{name}\" is for base model {other}, this run for {base}"
            ),
        )),
    }
}

/// In its own words, where it says why.
fn knows_no_base(status: &LoRAAdapterStatus) -> String {
    let ready = conditions::find(&status.conditions, condition::READY);
    let why = ready.filter(|ready| ready.status == Truth::False.as_str());
    match why {
        Some(why) => format!("is not ready: {}: {}", why.reason, why.message),
        None => "does not know its base model yet".to_owned(),
    }
}

fn resolve_initial(
    cr: &TrainingRun,
    base: &Digest,
    observed: &Observed,
) -> Result<Option<ResolvedReference>, Waiting> {
    let Some(initial) = initial_version(&cr.spec) else {
        return Ok(None);
    };
    let AdapterVersion { adapter, version } = initial.version;
    let found = there(initial.field, &adapter, &observed.initial)?;
    let status = usable(initial.field, &adapter, found, base)?;
    let found = status.versions.iter().find(|it| it.version == version);
    let digest = found.and_then(|found| found.digest.parse().ok());
    let digest = digest.ok_or_else(|| {
        Waiting::for_adapter(format!(
            "{}: LoRAAdapter \"{adapter}\" lists no version {version}",
            initial.version_field
        ))
    })?;
    Ok(Some(ResolvedReference {
        adapter,
        version,
        digest,
    }))
}

/// Whether what an adapter's status says of its versions was read from the ledger. Only who has read
/// it decides that condition; a status without it comes from an adapter that still waits for its
/// keeper, and its silence about a production version means nothing.
fn has_read_ledger(status: &LoRAAdapterStatus) -> bool {
    conditions::find(&status.conditions, condition::VERSION_AVAILABLE)
        .is_some_and(|known| known.status != Truth::Unknown.as_str())
}

fn resolve_reference(
    cr: &TrainingRun,
    pinned: Option<&ResolvedInputs>,
    base: &Digest,
    observed: &Observed,
) -> Result<Option<ResolvedReference>, Waiting> {
    let Some(adapter) = find_adapter(cr, &observed.adapter)? else {
        return Ok(None);
    };
    let wanted = cr.spec.adapter_ref.as_ref();
    let name = wanted.map_or_else(String::new, |wanted| wanted.name.clone());
    let status = usable(ADAPTER, &name, adapter, base)?;
    let number = match pinned.and_then(|pinned| pinned.reference.as_deref()) {
        Some(BASE) => None,
        Some(number) => number.parse().ok(),
        None => status.production.as_ref().map(|it| it.version),
    };
    let Some(number) = number else {
        return Ok(None);
    };
    let version = status.versions.iter().find(|it| it.version == number);
    let digest = version.and_then(|version| version.digest.parse().ok());
    let digest = digest
        .ok_or_else(|| adapter_waits(ADAPTER, &name, "does not list the version in production"))?;
    Ok(Some(ResolvedReference {
        adapter: name,
        version: number,
        digest,
    }))
}

/// Pinned inputs as status shows them.
pub fn print(resolved: &Resolved, image: &str, profile: &str) -> ResolvedInputs {
    ResolvedInputs {
        dataset: VersionedDigest {
            version: resolved.dataset.version,
            digest: resolved.dataset.digest.to_string(),
        },
        base_model: ResolvedBaseModel {
            digest: resolved.base.digest.to_string(),
        },
        image: image.to_owned(),
        profile: profile.to_owned(),
        reference: Some(match &resolved.reference {
            Some(reference) => reference.version.to_string(),
            None => BASE.to_owned(),
        }),
    }
}
